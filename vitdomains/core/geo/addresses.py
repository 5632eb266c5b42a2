"""Which addresses may be read: http(s) on public hosts, or on those that the environment names.

Environment:
    VITDOMAINS_HOSTS: the only hosts that may be read, by comma: ``data.example.org,*.example.com``. Empty: any public host.
    VITDOMAINS_PRIVATE_HOSTS: hosts that may be read although they stand in a private, loopback or link-local network.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

from vitdomains.core.errors import ImageError

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
        ImageError: Neither a file nor http(s), or a local file named by a remote item.
    """
    if is_remote(base):
        found = urljoin(str(base), href)
    elif "://" in href:
        found = href
    else:
        return str(Path(base).parent / href)
    if not is_remote(found):
        raise ImageError(
            shown(str(base)),
            "points to an asset that is not at an http(s) address",
            tag="href",
            value=href,
            hint="Where the item lists an alternate https href, use that; else download the asset.",
        )
    return found


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
