"""A PostgreSQL server of the test's own: started from the system's programs in a temporary folder, reached by a socket."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def postgres_programs() -> Path | None:
    """The folder of initdb and pg_ctl, newest version first (Debian keeps them off the PATH); None where there is none."""
    on_path = shutil.which("initdb")
    debian = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda p: float(p.parts[-3]) if p.parts[-3].isdigit() else 0,
    )
    found = Path(on_path) if on_path else debian[-1] if debian else None
    return found.parent if found else None


@contextmanager
def running_postgres(programs: Path, settings: Sequence[str] = ("fsync=off",)) -> Iterator[str]:
    """Yields the URL of an empty database; the server and its folder are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="vitdomains-pg-"))  # not under tmp_path: sockets need short names
    user: dict[str, object] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        account = pwd.getpwnam("postgres")
        os.chown(folder, account.pw_uid, account.pw_gid)
        user = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}

    def call(*words: str) -> None:
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False, **user)  # type: ignore[call-overload]
        assert done.returncode == 0, f"{words[0]}: {done.stdout}{done.stderr}"

    data = str(folder / "data")
    options = " ".join(["-k", str(folder), "-c", "listen_addresses=''", *(f"-c {s}" for s in settings)])
    try:
        call(str(programs / "initdb"), "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        # The log goes to a file: a server that keeps our pipe open would keep subprocess.run waiting.
        call(str(programs / "pg_ctl"), "-D", data, "-o", options, "-l", str(folder / "log"), "-w", "start")
        yield f"postgresql://postgres@/postgres?host={folder}"
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            call(str(programs / "pg_ctl"), "-D", data, "-m", "immediate", "-w", "stop")
        shutil.rmtree(folder, ignore_errors=True)
