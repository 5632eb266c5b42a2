"""All three review apps with demo data: ``python -m apps.demo`` (``make demo-apps``), stopped by Ctrl-C.

The first start makes the data under ``runs/demo-apps`` (a few minutes, no network); later ones go straight to the apps.
"""

from __future__ import annotations

import argparse
import http.client
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from apps.demo.folders import Size, prepare
from vitdomains.core.errors import ConfigError, VitDomainsError
from vitdomains.core.terminal import console, set_up_logging, show_error

HERE = Path(__file__).resolve().parents[1]
PORTS = {"cxr": 8501, "satellite": 8502, "zeroshot": 8503}
TITLES = {"cxr": "Chest films", "satellite": "Satellite tiles", "zeroshot": "Zero-shot labels"}
_START_SECONDS, _STOP_SECONDS = 60.0, 10.0


@dataclass(frozen=True)
class Server:
    """One running app."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def address(self) -> str:
        """Where it is to be opened."""
        return f"http://localhost:{self.port}"

    @property
    def answers(self) -> bool:
        """Whether the server says that it is up."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/_stcore/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()


def main(argv: Sequence[str]) -> int:
    """Make what is not there, start the servers, wait for Ctrl-C."""
    args = _parser().parse_args([*argv])
    set_up_logging()
    logging.getLogger("vitdomains.core.pipeline").setLevel(logging.ERROR)  # its advice is for data that matter
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # ignored: nohup
            signal.signal(number, _interrupt)
    names = [args.only] if args.only else list(PORTS)
    try:
        given: dict[str, list[str]] = {}
        for i, name in enumerate(names, start=1):
            console.print(f"==> \\[{i}/{len(names)}] {TITLES[name]}: data")
            given[name], note = prepare(name, args.folder, Size())
            console.print(f"    {note}", markup=False, highlight=False, soft_wrap=True)
        ports = {name: getattr(args, f"{name}_port") for name in names}
        with running(given, ports, args.folder) as servers:
            console.print("==> open in a browser (Ctrl-C stops all)")
            for server in servers:
                console.print(f"    {TITLES[server.name]:<18}{server.address}", highlight=False)
            _watch(servers)
    except VitDomainsError as error:
        show_error(error)
        return error.exit_status
    except KeyboardInterrupt:
        console.print("stopped")
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m apps.demo", description="The review apps with demo data.")
    parser.add_argument("--only", choices=tuple(PORTS), help="this app alone")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/demo-apps"), help="data and reviews (default: %(default)s)"
    )
    for name, port in PORTS.items():
        parser.add_argument(
            f"--{name}_port", type=int, default=port, help="the next free one from here (default: %(default)s)"
        )
    return parser


def _interrupt(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


@contextmanager
def running(given: Mapping[str, Sequence[str]], ports: Mapping[str, int], logs: Path) -> Iterator[list[Server]]:
    """Servers that answer, one an app, at localhost alone; all are stopped at the end, whatever the end is.

    Args:
        given: The words that each app is started with.
        ports: For each app the port from which on the first free one is taken.
        logs: Folder of what the servers say.

    Raises:
        ConfigError: A server does not come up; the message ends with what it said.
    """
    with ExitStack() as stack:
        servers: list[Server] = []
        for name, words in given.items():
            port = free_port(ports[name], [server.port for server in servers])
            servers.append(stack.enter_context(_started(name, words, port, logs.absolute() / f"{name}.log")))
        until = time.monotonic() + _START_SECONDS
        for server in servers:
            while not server.answers:
                _check(server)
                if time.monotonic() > until:
                    raise _failed(server, f"did not answer within {_START_SECONDS:.0f} s")
                time.sleep(0.2)
        try:
            yield servers
        finally:
            for server in servers:  # all at once; each is then waited for
                server.process.terminate()


def free_port(first: int, taken: Sequence[int] = ()) -> int:
    """The first port from ``first`` on at which nothing listens and that is not ``taken``.

    Raises:
        ConfigError: There is none among the next hundred.
    """
    for port in range(max(first, 1), min(first + 100, 65536)):
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in taken:
            return port
    raise ConfigError(f"No port from {first} on is free.", hint="Name another one, such as --cxr_port 9000.")


@contextmanager
def _started(name: str, words: Sequence[str], port: int, log: Path) -> Iterator[Server]:
    options = ("--server.address", "localhost", "--server.port", str(port), "--server.headless", "true",
               "--browser.gatherUsageStats", "false")  # fmt: skip
    argv = [sys.executable, "-m", "streamlit", "run", str(HERE / f"{name}_review.py"), *options, "--", *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        # In a session of its own: Ctrl-C reaches this process alone, which then stops its servers.
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        yield Server(name, port, process, log)
    finally:
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _watch(servers: Sequence[Server]) -> NoReturn:
    """Until Ctrl-C, or until a server ends by itself."""
    while True:
        for server in servers:
            _check(server)
        time.sleep(0.5)


def _check(server: Server) -> None:
    status = server.process.poll()
    if status is not None:
        raise _failed(server, f"ended with status {status}")


def _failed(server: Server, how: str) -> ConfigError:
    said = server.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-5:]
    return ConfigError(f"The app {server.name} {how}: {' | '.join(said)}", hint=f"Read {server.log}.")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
