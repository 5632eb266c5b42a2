"""Byte ranges of http(s) addresses, read such that nothing lost comes back as blank pixels.

GDAL's own HTTP reader follows redirects to any host and resolves names anew at each request. Here each connection goes to
an address that was just checked (``addresses.check_address``), each redirect is checked like a first address, and a read
that failed leaves its reason in ``RemoteFile.failure``, whatever GDAL makes of the missing bytes. What GDAL's settings give
its own reader is the same here: no listing of the folder, ranges of at least 128 KiB, kept connections, retries with
growing pauses, a cache of what was fetched. Proxies are not used.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import os
import socket
import ssl
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from vitdomains.core import __version__
from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read.vrt import allowed_folders

# Which addresses may be read: http(s) on public hosts, or on those that the environment names.
#
# Environment:
#     VITDOMAINS_HOSTS: the only hosts that may be read, by comma: ``data.example.org,*.example.com``. Empty: any public host.
#     VITDOMAINS_PRIVATE_HOSTS: hosts that may be read although they stand in a private, loopback or link-local network.

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


def is_remote(path: str | Path) -> bool:
    """Is this an http(s) address?"""
    return isinstance(path, str) and path[:8].lower().startswith(("http://", "https://"))


def shown(url: str) -> str:
    """The address without query, which may hold a signature: for messages and tables."""
    return url.split("?", 1)[0].split("#", 1)[0]


def resolve_href(href: str, base: str | Path) -> str:
    """The place that a STAC item's ``href`` means.

    Args:
        href: As it stands in the item: absolute or relative to the item.
        base: The item's own path or address.

    Raises:
        ImageError: Neither a file nor http(s), a local file named by a remote item, or one outside of a local item's folder.
    """
    if is_remote(base):
        found = urljoin(str(base), href)
    elif "://" in href:
        found = href
    else:
        return _local_asset(href, Path(base))
    if not is_remote(found):
        raise ImageError(
            shown(str(base)),
            "points to an asset that is not at an http(s) address",
            tag="href",
            value=href,
            hint="Where the item lists an alternate https href, use that; else download the asset.",
        )
    return found


def _local_asset(href: str, item: Path) -> str:
    """The local file that a local STAC item names, in its own folder or one that is listed."""
    found = item.parent / href
    target = Path(os.path.realpath(found))
    if not any(target.is_relative_to(folder) for folder in allowed_folders(item.parent)):
        raise ImageError(
            item,
            "points outside its folder",
            tag="href",
            value=href,
            hint="If that is meant, list the folder in VITDOMAINS_VRT_FOLDERS.",
        )
    return str(found)


def _names(variable: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in os.environ.get(variable, "").split(",") if name.strip())


def _listed(host: str, names: tuple[str, ...]) -> bool:
    return any(host == name or (name.startswith("*.") and host.endswith(name[1:])) for name in names)


def is_public(address: str) -> bool:
    """Is this IP address one of the open internet, also where an IPv6 address carries an IPv4 one?"""
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        else:
            inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
            ip = inner or ip
    return ip.is_global and not ip.is_multicast


def split_address(url: str) -> tuple[SplitResult, str, int]:
    """An address in parts, its host and its port.

    Raises:
        ImageError: It cannot be taken apart.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return parts, (parts.hostname or "").lower(), port
    except ValueError as error:
        raise ImageError(shown(url), f"is no valid address ({error})") from error


def check_address(url: str) -> tuple[SplitResult, list[tuple[Any, ...]]]:
    """Resolve an address's host and refuse what may not be read.

    Returns:
        The address in parts, and what ``socket.getaddrinfo`` gave: connect to these and to nothing else.

    Raises:
        ImageError: No http(s), credentials inside, a host that is not listed or not found, or a private network.
    """
    parts, host, port = split_address(url)
    if parts.scheme not in ("http", "https") or not host:
        raise ImageError(shown(url), "is no http(s) address")
    if parts.username is not None or parts.password is not None:
        raise ImageError(f"{parts.scheme}://{host}{parts.path}", "carries a user name or password",
                         hint="Use a signed address, or download the file.")  # fmt: skip
    private = _listed(host, _names("VITDOMAINS_PRIVATE_HOSTS"))
    allowed = _names("VITDOMAINS_HOSTS")
    if allowed and not private and not _listed(host, allowed):
        raise ImageError(
            shown(url),
            "is on a host that is not listed",
            tag="VITDOMAINS_HOSTS",
            value=",".join(allowed),
            hint=f"Add {host} to this environment variable if its data may be read.",
        )
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ImageError(shown(url), f"has a host that cannot be found ({error})") from error
    closed = [str(info[4][0]) for info in found if not is_public(str(info[4][0]))]
    if closed and not private:
        raise ImageError(
            shown(url),
            "leads into a private, loopback or link-local network",
            tag="address",
            value=closed[0],
            hint=f"If that is meant, set VITDOMAINS_PRIVATE_HOSTS={host}",
        )
    return parts, list(found)


__all__ = ["RemoteFile", "RemoteView", "check_address", "is_remote", "read_remote", "resolve_href", "shown"]

CHUNK = 2**17  # bytes asked for at least: one round trip fetches a COG's header
CACHED_CHUNKS = 128
TIMEOUT_S = 30.0  # of one socket operation
DEADLINE_S = 300.0  # of one answer: a server that drips bytes does not hold a job for ever
RETRIES = 5
BACKOFF_S = 0.5  # before the second retry, doubled at each further one
MAX_REDIRECTS = 5
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_EXPIRED = {401, 403, 410}  # of a signed address behind a redirect: ask the first one again
_REDIRECT = {301, 302, 303, 307, 308}
_PIECE = 2**18
_IN_ADDRESSES = "%/:?#[]@!$&'()*+,;=~"  # what stands in an address unquoted or is quoted already


class _TransientError(Exception):
    """Worth another try: the connection broke, the server is busy, the answer is short."""


@dataclass(frozen=True)
class _Answer:
    body: bytes
    total: int  # bytes of the whole file
    version: str  # changes when the file does


def _dial(url: str) -> socket.socket:
    """A connected socket, to one of the addresses that were checked and to no other."""
    parts, found = check_address(url)
    problem: OSError = OSError("no address")
    for family, kind, protocol, _, address in found:
        dialled = socket.socket(family, kind, protocol)
        try:
            dialled.settimeout(TIMEOUT_S)
            dialled.connect(address)
            dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if parts.scheme == "https":
                return ssl.create_default_context().wrap_socket(dialled, server_hostname=parts.hostname)
            return dialled
        except OSError as error:  # ssl.SSLError is one
            dialled.close()
            problem = error
    raise problem


class _Client:
    """One kept connection and the way from an address, over its redirects, to the file."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.final = url  # behind the redirects; asked first from the second request on
        self._connection: http.client.HTTPConnection | None = None
        self._answer: http.client.HTTPResponse | None = None
        self._origin = ""

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = self._answer = None

    def get(self, first: int | None, last: int, limit: int) -> _Answer:
        """Bytes ``first..last``, or the whole file up to ``limit`` where first is None; tried again where that may help.

        Raises:
            ImageError: What the server answered, or that it did not.
        """
        problem = ""
        for attempt in range(RETRIES + 1):
            if attempt > 1:  # at once the first time: a kept connection may have been closed by the server
                time.sleep(BACKOFF_S * 2 ** (attempt - 2))
            try:
                return self._follow(first, last, limit)
            except ssl.SSLCertVerificationError as error:
                raise ImageError(shown(self.url), f"shows a certificate that does not hold ({error.reason})") from error
            except (_TransientError, OSError, http.client.HTTPException) as error:
                self.close()
                self.final = self.url
                problem = str(error) or type(error).__name__
        where = "" if first is None else f", bytes {first} to {last}"
        raise ImageError(
            shown(self.url),
            f"could not be fetched in {RETRIES + 1} attempts ({problem}{where})",
            hint="Try again later, or download the file and give its path.",
        )

    def _follow(self, first: int | None, last: int, limit: int) -> _Answer:
        for _ in range(MAX_REDIRECTS + 1):
            answer = self._ask(self.final, first, last)
            if answer.status not in _REDIRECT:
                return self._body(answer, first, last, limit)
            target = urljoin(self.final, answer.headers.get("Location", ""))
            if self.final.lower().startswith("https://") and not target.lower().startswith("https://"):
                raise ImageError(
                    shown(self.url), "redirects to an address without https", tag="Location", value=shown(target)
                )
            check_address(target)
            self.final = target
        raise ImageError(shown(self.url), f"redirects more than {MAX_REDIRECTS} times")

    def _ask(self, url: str, first: int | None, last: int) -> http.client.HTTPResponse:
        parts, host, port = split_address(url)
        origin = f"{parts.scheme}://{parts.netloc}"
        done = self._answer is None or self._answer.isclosed()  # else a body is still on its way
        if self._connection is None or origin != self._origin or not done:
            self.close()
            dialled = _dial(url)
            self._connection = http.client.HTTPConnection(host, port)
            self._connection.sock = dialled
            self._connection.auto_open = 0  # never dial again by name, past the check
            self._origin = origin
        headers = {"Host": parts.netloc, "User-Agent": f"vitdomains/{__version__}", "Accept-Encoding": "identity"}
        if first is not None:
            headers["Range"] = f"bytes={first}-{last}"
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), safe=_IN_ADDRESSES)
        self._connection.request("GET", target, headers=headers)
        self._answer = self._connection.getresponse()
        return self._answer

    def _body(self, answer: http.client.HTTPResponse, first: int | None, last: int, limit: int) -> _Answer:
        status = f"{answer.status} {answer.reason}"
        if answer.status in _TRANSIENT or (answer.status in _EXPIRED and self.final != self.url):
            raise _TransientError(f"the server answers {status}")
        if answer.status not in (200, 206):
            raise ImageError(shown(self.url), "cannot be fetched", tag="answer of the server", value=status)
        version = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
        if first is None:
            body = _read(answer, limit + 1)
            if answer.length and len(body) <= limit:
                raise _TransientError(f"{answer.length} bytes did not come")
            if len(body) > limit:
                raise ImageError(shown(self.url), f"is larger than the {limit} bytes that are taken here")
            return _Answer(body, len(body), version)
        given = answer.headers.get("Content-Range", "")
        if answer.status != 206 or not given.startswith(f"bytes {first}-"):
            raise ImageError(
                shown(self.url),
                "is on a server that does not give byte ranges",
                tag="answer of the server",
                value=status,
                hint="Download the file and give its path.",
            )
        total_text = given.rpartition("/")[2]
        if not total_text.isdigit():
            raise ImageError(shown(self.url), "has no known length", tag="Content-Range", value=given)
        total = int(total_text)
        expected = min(last + 1, total) - first
        body = _read(answer, expected)
        if len(body) != expected:
            raise _TransientError(f"{len(body)} of {expected} bytes came")
        return _Answer(body, total, version)


def _read(answer: http.client.HTTPResponse, size: int) -> bytes:
    """At most ``size`` bytes, within the deadline."""
    end = time.monotonic() + DEADLINE_S
    pieces: list[bytes] = []
    left = size
    while left > 0 and (piece := answer.read1(min(left, _PIECE))):
        pieces.append(piece)
        left -= len(piece)
        if time.monotonic() > end:
            raise _TransientError(f"the answer took longer than {DEADLINE_S:.0f} s")
    if answer.length == 0:
        answer.read()  # gives nothing, but http.client notes that the connection can be used again
    return b"".join(pieces)


def read_remote(url: str, *, limit: int = 2**24) -> bytes:
    """A whole small file, such as a STAC item.

    Raises:
        ImageError: An address that may not be read, no such file, or more than ``limit`` bytes.
    """
    client = _Client(url)
    try:
        return client.get(None, 0, limit).body
    finally:
        client.close()


class RemoteFile:
    """A remote file in chunks, for one thread.

    A failure is kept in ``failure``, and no byte is given from then on: GDAL can make blank pixels of an error, so whoever
    reads pixels asks for ``failure`` afterwards.

    Raises:
        ImageError: The first bytes cannot be had.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.failure: ImageError | None = None
        self.size = 0
        self._version = ""
        self._client = _Client(url)
        self._chunks: OrderedDict[int, bytes] = OrderedDict()
        self._fetch(0, 0)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def read_at(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes; fewer at the end of the file, none after a failure."""
        size = min(size, self.size - offset)
        if size <= 0 or self.failure is not None:
            return b""
        first, last = offset // CHUNK, (offset + size - 1) // CHUNK
        try:
            missing = [index for index in range(first, last + 1) if index not in self._chunks]
            if missing:
                self._fetch(missing[0], missing[-1])
        except ImageError as error:
            self.failure = error
            return b""
        found = b"".join(self._chunks[index] for index in range(first, last + 1))
        for index in range(first, last + 1):
            self._chunks.move_to_end(index)
        while len(self._chunks) > CACHED_CHUNKS:
            self._chunks.popitem(last=False)
        return found[offset - first * CHUNK :][:size]

    def _fetch(self, first: int, last: int) -> None:
        """Fetch chunks ``first..last`` in one request."""
        answer = self._client.get(first * CHUNK, (last + 1) * CHUNK - 1, limit=0)
        if (self._version, self.size) not in (("", 0), (answer.version, answer.total)):
            raise ImageError(shown(self.url), "changed while it was read", tag="ETag", value=answer.version)
        self._version, self.size = answer.version, answer.total
        for index in range(last - first + 1):
            self._chunks[first + index] = answer.body[index * CHUNK : (index + 1) * CHUNK]


class RemoteView(io.RawIOBase):
    """One position in a ``RemoteFile``: GDAL may open the same file several times."""

    def __init__(self, file: RemoteFile) -> None:
        super().__init__()
        self._file = file
        self._position = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        found = self._file.read_at(self._position, self._file.size if size < 0 else size)
        self._position += len(found)
        return found
