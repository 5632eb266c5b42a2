"""COGs over http from a real local server: right pixels, refused addresses, and no blank where a read was lost."""

from __future__ import annotations

import http.server
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil

from tests.core.geo.rasters import ramp, write
from vitdomains.core.errors import ImageError
from vitdomains.core.geo.read import http as addresses
from vitdomains.core.geo.read import http as remote
from vitdomains.core.geo.read.http import RemoteFile, RemoteView, check_address, is_public, read_remote, resolve_href
from vitdomains.core.geo.read.raster import close_all, describe_raster, read_window

Fault = Callable[[http.server.BaseHTTPRequestHandler, int], bool]


@dataclass
class Server:
    """What it serves, what it did, and how it misbehaves: ``fault(handler, n)`` answers request n itself and returns True."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    fault: Fault | None = None
    etag: str = '"1"'
    connections: int = 0
    handler: type[http.server.BaseHTTPRequestHandler] = http.server.BaseHTTPRequestHandler


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            state.connections += 1
            super().setup()

        def log_message(self, *_: object) -> None:
            return

        def do_GET(self) -> None:
            wanted = self.headers.get("Range", "")
            state.requests.append((self.path, wanted))
            if state.fault and state.fault(self, len(state.requests)):
                return
            content = state.files.get(self.path.split("?")[0])
            if content is None:
                self.send_error(404)
                return
            first, last = 0, len(content) - 1
            if wanted:
                start, _, end = wanted.removeprefix("bytes=").partition("-")
                first, last = int(start), min(int(end), last)
            if first > last:
                self.send_error(416)
                return
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
            self.send_header("ETag", state.etag)
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            self.wfile.write(content[first : last + 1])

    state.handler = Handler
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    monkeypatch.setattr(running, "handle_error", lambda *_: None)  # connections that a test breaks are meant
    threading.Thread(target=running.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{running.server_address[1]}"
    monkeypatch.setenv("VITDOMAINS_PRIVATE_HOSTS", "127.0.0.1")
    monkeypatch.setattr(remote, "BACKOFF_S", 0.01)
    monkeypatch.setattr(remote, "TIMEOUT_S", 2.0)
    yield state
    close_all()
    running.shutdown()
    running.server_close()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(1, 60_000, (3, 640, 640)).astype(np.uint16)


@pytest.fixture(scope="module")
def cog(tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray) -> bytes:
    folder = tmp_path_factory.mktemp("cog")
    with rasterio.open(write(folder / "a.tif", pixels)) as dataset:
        rasterio.shutil.copy(dataset, folder / "cog.tif", driver="COG", blocksize=128, compress="deflate")
    return (folder / "cog.tif").read_bytes()


def answer(handler: http.server.BaseHTTPRequestHandler, status: int, **headers: str) -> bool:
    handler.send_response(status)
    for name, value in ({"Content_Length": "0"} | headers).items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    return True


def test_windows_of_a_remote_cog(server: Server, cog: bytes, pixels: np.ndarray) -> None:
    server.files["/cog.tif"] = cog
    url = f"{server.url}/cog.tif?signature=secret"
    info = describe_raster(url)
    assert (info.width, info.height, info.count) == (640, 640, 3) and info.overviews
    assert "secret" not in info.path
    opened = len(server.requests)
    window = read_window(url, (200, 300, 224, 224))
    assert (window.pixels == pixels[:, 300:524, 200:424]).all() and window.valid.all()
    assert read_window(url, resolution=40).pixels.shape == (3, 160, 160)
    read_window(url, (210, 310, 100, 100))
    asked = {path.split("?")[0] for path, _ in server.requests}
    assert asked == {"/cog.tif"}  # no side file, no listing of the folder
    assert opened <= 6 and len(server.requests) < 20  # the header, and a block in each corner
    assert server.connections == 1  # it is kept
    assert all(wanted.startswith("bytes=") for _, wanted in server.requests)


def test_each_thread_reads_remotely_by_itself(server: Server, cog: bytes, pixels: np.ndarray) -> None:
    server.files["/cog.tif"] = cog
    found: dict[int, bool] = {}

    def read(column: int) -> None:
        window = read_window(f"{server.url}/cog.tif", (column, 0, 50, 400))
        found[column] = bool((window.pixels == pixels[:, :400, column : column + 50]).all())

    threads = [threading.Thread(target=read, args=(column,)) for column in (0, 150, 300, 450)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys((0, 150, 300, 450), True)


@pytest.mark.parametrize("kind", ["status", "cut", "hang up"])
def test_passing_trouble_is_retried(server: Server, cog: bytes, pixels: np.ndarray, kind: str) -> None:
    server.files["/cog.tif"] = cog

    def fault(handler: http.server.BaseHTTPRequestHandler, number: int) -> bool:
        if number % 3:  # two of three requests fail
            return trouble(handler, kind)
        return False

    server.fault = fault
    window = read_window(f"{server.url}/cog.tif", (0, 0, 640, 640))
    assert (window.pixels == pixels).all()


def trouble(handler: http.server.BaseHTTPRequestHandler, kind: str) -> bool:
    handler.close_connection = True
    if kind == "status":
        return answer(handler, 503)
    if kind == "cut":  # half of the body
        start = int(handler.headers["Range"].removeprefix("bytes=").partition("-")[0])
        answer(handler, 206, Content_Range=f"bytes {start}-{start + 9999}/9999999", Content_Length="10000")
        handler.wfile.write(b"x" * 5000)
        return True
    handler.connection.shutdown(socket.SHUT_RDWR)
    return True


@pytest.mark.parametrize("kind", ["status", "cut", "hang up"])
@pytest.mark.parametrize("resolution", [None, 15.0])
def test_lost_read_is_an_error_and_never_blank(
    server: Server, cog: bytes, pixels: np.ndarray, kind: str, resolution: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RETRIES", 1)
    server.files["/cog.tif"] = cog
    url = f"{server.url}/cog.tif"
    described = describe_raster(url)
    server.fault = lambda handler, _: trouble(handler, kind)
    with pytest.raises(ImageError, match=r"could not be fetched in 2 attempts.*bytes \d+ to \d+"):
        read_window(url, (100, 100, 300, 300), resolution=resolution)
    server.fault = None  # the line is back: nothing blank was kept
    window = read_window(url, (100, 100, 300, 300), resolution=resolution)
    assert window.valid.all() and window.pixels.min() > 0
    if resolution is None:
        assert (window.pixels == pixels[:, 100:400, 100:400]).all()
    assert described == describe_raster(url)


def test_address_that_is_not_there_or_no_raster(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.files |= {"/page.tif": b"<html>hello</html>" * 9, "/empty.tif": b""}
    with pytest.raises(ImageError, match="404 Not Found"):
        read_window(f"{server.url}/missing.tif")
    with pytest.raises(ImageError, match="no raster format"):
        read_window(f"{server.url}/page.tif")
    with pytest.raises(ImageError, match="416"):
        read_window(f"{server.url}/empty.tif")
    server.files["/a.vrt"] = b'<VRTDataset rasterXSize="1" rasterYSize="1"></VRTDataset>'
    with pytest.raises(ImageError, match="no raster format"):
        read_window(f"{server.url}/a.vrt")
    monkeypatch.setattr(remote, "RETRIES", 0)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(ImageError, match="could not be fetched in 1 attempts.*refused"):
            read_window(f"http://127.0.0.1:{closed.getsockname()[1]}/a.tif")


def test_server_without_ranges_and_file_that_changes(server: Server, cog: bytes) -> None:
    server.files["/cog.tif"] = cog
    server.fault = lambda handler, _: answer(handler, 200, Content_Length="0")
    with pytest.raises(ImageError, match="does not give byte ranges"):
        read_window(f"{server.url}/cog.tif")
    server.fault = None
    describe_raster(f"{server.url}/cog.tif")
    server.etag = '"2"'
    with pytest.raises(ImageError, match="changed while it was read"):
        read_window(f"{server.url}/cog.tif", (300, 300, 300, 300))


def test_redirect_is_followed_and_checked(server: Server, cog: bytes, pixels: np.ndarray) -> None:
    server.files["/real.tif"] = cog
    targets = {"/moved.tif": "/real.tif", "/loop.tif": "/loop.tif", "/inside.tif": "http://127.0.0.2:1/a.tif",
               "/cloud.tif": "http://169.254.169.254/latest/meta-data/", "/file.tif": "file:///etc/passwd"}  # fmt: skip

    def fault(handler: http.server.BaseHTTPRequestHandler, _: int) -> bool:
        return handler.path in targets and answer(handler, 302, Location=targets[handler.path])

    server.fault = fault
    assert (read_window(f"{server.url}/moved.tif", (0, 0, 200, 200)).pixels == pixels[:, :200, :200]).all()
    assert sum(path == "/moved.tif" for path, _ in server.requests) == 1  # later reads go straight to the target
    for name, problem in (("loop", "redirects more than"), ("inside", "private, loopback"), ("cloud", "private, loopback"),
                          ("file", "no http")):  # fmt: skip
        with pytest.raises(ImageError, match=problem):
            read_window(f"{server.url}/{name}.tif")


def test_signed_target_of_a_redirect_that_ran_out_is_asked_for_again(
    server: Server, cog: bytes, pixels: np.ndarray
) -> None:
    server.files["/real.tif"] = cog
    signature = 1

    def fault(handler: http.server.BaseHTTPRequestHandler, _: int) -> bool:
        if handler.path == "/moved.tif":
            return answer(handler, 307, Location=f"/real.tif?signature={signature}")
        return not handler.path.endswith(f"={signature}") and answer(handler, 403)

    server.fault = fault
    read_window(f"{server.url}/moved.tif", (0, 0, 20, 20))
    signature = 2
    assert (read_window(f"{server.url}/moved.tif", (300, 300, 50, 50)).pixels == pixels[:, 300:350, 300:350]).all()


def test_private_addresses_are_refused_before_a_connection(
    server: Server, cog: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/cog.tif"] = cog
    monkeypatch.delenv("VITDOMAINS_PRIVATE_HOSTS")
    port = server.url.rpartition(":")[2]
    for host in ("127.0.0.1", "localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "10.0.0.1", "192.168.1.1",
                 "169.254.169.254", "[fe80::1]", "[fd00::1]", "100.64.0.1", "[64:ff9b::7f00:1]"):  # fmt: skip
        with pytest.raises(ImageError, match="private, loopback or link-local|cannot be found"):
            read_window(f"http://{host}:{port}/cog.tif")
    assert server.requests == []


def test_name_that_resolves_to_a_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("93.184.216.34", "10.1.2.3")]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ImageError, match=r"private.*10\.1\.2\.3.*VITDOMAINS_PRIVATE_HOSTS=data.example.org"):
        check_address("http://data.example.org/a.tif")
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: found[:1])
    assert check_address("http://data.example.org/a.tif")[1] == found[:1]


def test_only_listed_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("93.184.216.34", 80))]
    monkeypatch.setattr(addresses.socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setenv("VITDOMAINS_HOSTS", "data.example.org, *.example.com")
    for url in ("https://data.example.org/a.tif", "https://a.b.example.com/a.tif", "HTTPS://DATA.example.org/a.tif"):
        check_address(url)
    for url in ("https://example.org/a.tif", "https://example.com/a.tif", "https://data.example.org.evil.net/a.tif"):
        with pytest.raises(ImageError, match="host that is not listed"):
            check_address(url)


@pytest.mark.parametrize("url", ["https://user:secret@example.org/a.tif", "http:///a.tif", "https://[::1/a.tif"])
def test_addresses_with_credentials_or_without_host(url: str) -> None:
    with pytest.raises(ImageError, match="user name or password|no http|no valid address") as caught:
        read_window(url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "public"),
    [("93.184.216.34", True), ("2606:2800:220:1:248:1893:25c8:1946", True), ("127.0.0.1", False), ("::ffff:10.0.0.1", False),
     ("64:ff9b::5db8:d822", True), ("64:ff9b::a00:1", False), ("2002:7f00:1::", False), ("224.0.0.1", False),
     ("fe80::1%eth0", False)],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_dripping_server_does_not_hold_the_job(server: Server, cog: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "RETRIES", 0)
    monkeypatch.setattr(remote, "DEADLINE_S", 0.3)

    def drip(handler: http.server.BaseHTTPRequestHandler, _: int) -> bool:
        answer(handler, 206, Content_Range="bytes 0-131071/131072", Content_Length="131072")
        for _ in range(20):
            handler.wfile.write(b"x")
            time.sleep(0.05)
        handler.close_connection = True
        return True

    server.fault = drip
    started = time.monotonic()
    with pytest.raises(ImageError, match="took longer than"):
        read_window(f"{server.url}/cog.tif")
    assert time.monotonic() - started < 1.5


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate with")
def test_https_checks_the_certificate(
    server: Server, cog: bytes, pixels: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.files["/cog.tif"] = cog
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-keyout", key, "-out", certificate, "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    secure = http.server.ThreadingHTTPServer(("127.0.0.1", 0), server.handler)
    secure.socket = context.wrap_socket(secure.socket, server_side=True)
    monkeypatch.setattr(secure, "handle_error", lambda *_: None)
    threading.Thread(target=secure.serve_forever, daemon=True).start()
    url = f"https://127.0.0.1:{secure.server_address[1]}/cog.tif"
    with pytest.raises(ImageError, match="certificate that does not hold"):
        read_window(url)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert (read_window(url, (0, 0, 300, 300)).pixels == pixels[:, :300, :300]).all()
    server.fault = lambda handler, _: answer(handler, 302, Location=f"{server.url}/cog.tif")
    with pytest.raises(ImageError, match="redirects to an address without https"):
        read_window(f"{url}?again")
    secure.shutdown()
    secure.server_close()


def test_small_files_are_read_whole(server: Server) -> None:
    server.files["/item.json"] = b'{"type": "Feature"}'
    assert read_remote(f"{server.url}/item.json") == b'{"type": "Feature"}'
    with pytest.raises(ImageError, match="larger than the 5 bytes"):
        read_remote(f"{server.url}/item.json", limit=5)

    def endless(handler: http.server.BaseHTTPRequestHandler, _: int) -> bool:
        handler.close_connection = True
        answer(handler, 200, Content_Length="99999999")
        for _ in range(50):
            handler.wfile.write(b"x" * 1000)
        return True

    server.fault = endless
    with pytest.raises(ImageError, match="larger than the 2000 bytes"):
        read_remote(f"{server.url}/item.json", limit=2000)
    with pytest.raises(ImageError, match="bytes did not come"):
        read_remote(f"{server.url}/item.json")


def test_assets_of_an_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item = "https://example.org/items/1.json"
    assert resolve_href("./a.tif", item) == "https://example.org/items/a.tif"
    assert resolve_href("https://other.org/a.tif", item) == "https://other.org/a.tif"
    assert resolve_href("./a.tif", tmp_path / "1.json") == str(tmp_path / "a.tif")
    for href in ("../a.tif", "/etc/passwd"):
        with pytest.raises(ImageError, match="points outside its folder.*VITDOMAINS_VRT_FOLDERS"):
            resolve_href(href, tmp_path / "items" / "1.json")
    monkeypatch.setenv("VITDOMAINS_VRT_FOLDERS", str(tmp_path))
    assert resolve_href("../a.tif", tmp_path / "items" / "1.json") == str(tmp_path / "items" / "../a.tif")
    assert resolve_href("https://other.org/a.tif", tmp_path / "1.json") == "https://other.org/a.tif"
    for href, base in (
        ("s3://bucket/a.tif", item),
        ("file:///etc/a.tif", item),
        ("s3://bucket/a.tif", tmp_path / "1.json"),
    ):
        with pytest.raises(ImageError, match="not at an http"):
            resolve_href(href, base)


def test_view_behaves_as_a_file(server: Server) -> None:
    content = bytes(range(256)) * 2000
    server.files["/a.bin"] = content
    view = RemoteView(RemoteFile(f"{server.url}/a.bin"))
    assert view.read(10) == content[:10] and view.tell() == 10
    assert view.seek(-20, 2) == len(content) - 20 and view.read(100) == content[-20:] and view.read(5) == b""
    view.seek(remote.CHUNK - 7)
    assert view.read(20) == content[remote.CHUNK - 7 :][:20]
    view.seek(0)
    assert view.read() == content


def test_pixels_of_a_remote_file_equal_those_of_its_copy(server: Server, tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", ramp(2, 90, 90, "float32"), nodata=1)
    server.files["/a.tif"] = path.read_bytes()
    local, fetched = read_window(path, resolution=25), read_window(f"{server.url}/a.tif", resolution=25)
    assert (local.pixels == fetched.pixels).all() and (local.valid == fetched.valid).all()
    assert local.transform == fetched.transform
