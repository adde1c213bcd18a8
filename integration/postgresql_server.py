"""A private PostgreSQL: one throwaway server of the version that this machine has.

The rules of this file:

- Nothing is shared with a PostgreSQL that runs here already: own directory and port, no settings
  from ``/etc``; only 127.0.0.1 is listened on, and everybody who reaches it may log in.
- It writes to the disk as a real one does (fsync is on).
- The server refuses to run as root; then it runs as ``postgres``, whose the directory becomes.
- What was started is gone, and its directory too, when ``close()`` returns; and also, by a guard
  process, when the owner was killed and could not call it.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType

_START_TIMEOUT_S = 60

# Waits for the end of its owner, which closes the pipe, however it ends.
_GUARD = """
trap '' HUP INT TERM
read -r _
kill -QUIT "$1"
sleep 1
rm -rf "$2"
"""


class NotHere(Exception):
    """This machine cannot run PostgreSQL; the message says why."""


class PostgresqlServer:
    """One server for one owner: ``with`` starts it and removes it without a trace.

    ``kill()`` is a crash; ``start()`` brings it back on the same port with the same data.

    Attributes:
        url: Of its database ``postgres``, for `tq_broker.stores.opening.open_store`.
    """

    def __init__(self) -> None:
        self._programs = _programs()
        self._user = pwd.getpwnam(_user()) if os.geteuid() == 0 else None
        self._directory = Path(tempfile.mkdtemp(prefix="tq-postgresql-"))
        self._data = self._directory / "data"
        self._server: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        self.url = f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> PostgresqlServer:
        try:
            self._initialize()
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def version(self) -> str:
        """As it says itself, such as ``15.8``."""
        said = subprocess.run(
            [self._programs / "postgres", "--version"], capture_output=True, text=True, check=True
        )
        return said.stdout.split()[2]

    def start(self) -> None:
        """Start it, and return when it takes connections."""
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": "",
            "max_connections": "100",
        }
        options = [part for setting in settings.items() for part in ("-c", "=".join(setting))]
        with (self._directory / "log").open("ab") as log:
            self._server = self._spawn("postgres", "-D", str(self._data), *options, log=log)
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", str(self._server.pid), str(self._directory)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        ready = [self._programs / "pg_isready", "-h", "127.0.0.1", "-p", str(self.port), "-t", "1"]
        for _ in range(_START_TIMEOUT_S * 10):
            if subprocess.run(ready, stdout=subprocess.DEVNULL, check=False).returncode == 0:
                return
            try:
                self._server.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
            break
        log_text = (self._directory / "log").read_text(errors="replace")
        raise RuntimeError(f"the private PostgreSQL is not ready:\n{log_text[-2000:]}")

    def create(self, database: str) -> str:
        """Make an empty database; its URL, as `url`."""
        address = ["-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres"]
        subprocess.run([self._programs / "createdb", *address, database], check=True, cwd="/")
        return f"{self.url.rpartition('/')[0]}/{database}"

    def kill(self) -> None:
        """End it without a checkpoint, as a crash does; all its connections break."""
        self._end(signal.SIGQUIT)

    def close(self) -> None:
        """End it and remove its directory. Idempotent."""
        self._end(signal.SIGINT)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _initialize(self) -> None:
        if self._user is not None:
            os.chown(self._directory, self._user.pw_uid, self._user.pw_gid)
        with (self._directory / "log").open("ab") as log:
            options = ("--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-locale")
            done = self._spawn("initdb", "-D", str(self._data), *options, log=log).wait()
        if done != 0:
            raise RuntimeError(f"initdb: {(self._directory / 'log').read_text()[-2000:]}")

    def _spawn(self, program: str, *arguments: str, log: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [str(self._programs / program), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,  # type: ignore[arg-type]
            stderr=subprocess.STDOUT,
            cwd=self._directory,
            start_new_session=True,  # Ctrl-C at the tests is not meant for it.
            user=self._user.pw_uid if self._user else None,
            group=self._user.pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
        )

    def _end(self, how: signal.Signals) -> None:
        guard, self._guard = self._guard, None
        server, self._server = self._server, None
        if guard is not None:
            guard.kill()  # First: it must not end who has our id afterwards.
            guard.wait()
            assert guard.stdin is not None, "the guard listens"
            guard.stdin.close()
        if server is not None and server.poll() is None:
            server.send_signal(how)
            server.wait(timeout=60)


def _programs() -> Path:
    """Where the newest server's programs are; Debian keeps them out of the path."""
    if found := shutil.which("initdb"):
        return Path(found).resolve().parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_number)
    if not versions:
        raise NotHere("no initdb; tests/run installs what is needed")
    return versions[-1].parent


def _number(initdb: Path) -> float:
    return float(initdb.parent.parent.name)


def _user() -> str:
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        raise NotHere("no user postgres to run it, and root may not") from None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
