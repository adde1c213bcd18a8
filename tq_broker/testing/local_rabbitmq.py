"""A private RabbitMQ: one throwaway node of the server that this machine has.

It serves our integration tests, ``tq-broker demo --broker local`` and users who want to try
their workers on the real server::

    with LocalRabbitMQ() as node:
        connection = kombu.Connection(node.url)

The rules of this file:

- Nothing is shared with a RabbitMQ that runs here already: own directory, node name, cookie and
  ports, own epmd, no settings from ``/etc``.
- Only 127.0.0.1 is listened on.
- A process is ended by the id under which it was started, never by its name.
- What was started is gone, and its directory too, when ``close()`` returns; and also, by a guard
  process, when the owner was killed and could not call it.

A node belongs to one thread; nothing here locks.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import amqp

from tq_broker.clock import SystemClock
from tq_broker.exceptions import TqBrokerError

__all__ = ["LocalRabbitMQ", "LocalRabbitMQError", "RabbitMQNotFound"]

# Debian's /usr/sbin/rabbitmq-server is a wrapper which only root may use and which writes under
# /var; the script behind it does neither.
_SERVER_SCRIPTS = (
    "usr/lib/rabbitmq/bin/rabbitmq-server",
    "usr/lib64/rabbitmq/bin/rabbitmq-server",
)

# Below the range from which the kernel takes the ports of outgoing connections (32768 and up): a
# node that is restarted must find its ports still free. rabbitmqctl listens at the distribution
# port + 20000, which must be a port too.
_PORTS = range(20_000, 32_000)

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# In a mount namespace of its own, so that the mounts go when the node goes, however it ends.
_ENTER_ROOT = """
mount --bind /proc "$1/proc"
mount --rbind /dev "$1/dev"
root=$1; user=$2; shift 2
exec chroot ${user:+--userspec="$user"} "$root" "$@"
"""

# Waits for the end of its owner, which closes the pipe, however it ends. The pause lets the node's
# port programs write their last.
_GUARD = """
trap '' HUP INT TERM
read -r _
kill -KILL "$1" "$2"
sleep 1
rm -rf "$3"
"""


class LocalRabbitMQError(TqBrokerError):
    """The private RabbitMQ node did not do what it should.

    The message ends with what the node's log says about it.
    """


class RabbitMQNotFound(LocalRabbitMQError):
    """This machine (or this root) has no RabbitMQ server.

    The caller installs one, or uses a broker that runs elsewhere.
    """


class LocalRabbitMQ:
    """One RabbitMQ node for one owner.

    ``with`` (or ``start()``) starts it; the end of the block (or ``close()``) removes it without
    a trace. ``stop()`` and ``kill()`` keep the data and ``start()`` brings the node back on the
    same ports: that is how restarts and crashes are tried. Quicker than either, when the Erlang
    machine may stay up: ``ctl("stop_app")`` and ``ctl("start_app")``.

    Attributes:
        root: the system that the node runs in, ``None`` for this machine's own.
        port: where AMQP is spoken on 127.0.0.1; stays the same over restarts.
        nodename: the Erlang name of the node.
        directory: data, log and settings of the node; removed by ``close()``.
    """

    def __init__(
        self,
        root: Path | None = None,
        *,
        settings: Mapping[str, str] | None = None,
        start_timeout_s: float = 90.0,
    ) -> None:
        """Prepare a node; nothing is started and nothing is written yet.

        Args:
            root: a directory holding a whole system with a RabbitMQ, as made by
                ``debootstrap --include=rabbitmq-server trixie DIR``; the node runs inside, which
                needs the rights of root. ``None`` takes the server of this machine.
            settings: more lines for ``rabbitmq.conf``, such as ``{"consumer_timeout": "10000"}``.
            start_timeout_s: a node that does not accept connections by then has failed. It takes
                3 to 15 s on two cores.
        """
        self.root = root
        self.port = 0
        self.nodename = ""
        self.directory: Path | None = None
        self._settings = dict(settings or {})
        self._start_timeout_s = start_timeout_s
        self._clock = SystemClock()
        self._epmd_port = 0
        self._dist_port = 0
        self._epmd: subprocess.Popen[bytes] | None = None
        self._beam: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._version = ""

    def __enter__(self) -> LocalRabbitMQ:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<LocalRabbitMQ {self._version or 'not started'} {self.url if self.port else ''}>"

    @property
    def url(self) -> str:
        """Where clients connect, as the user ``guest`` on the virtual host ``/``."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    @property
    def version(self) -> str:
        """The version that the server tells its clients, ``"3.10.8"``; empty before a start."""
        return self._version

    @property
    def pid(self) -> int | None:
        """The process id of the running node, ``None`` while it is down."""
        return self._beam.pid if self._beam is not None and self._beam.poll() is None else None

    def start(self) -> None:
        """Start the node, on the data it has from before if any.

        Returns when it accepts AMQP connections; does nothing while it runs.

        Raises:
            RabbitMQNotFound: there is no server to start.
            LocalRabbitMQError: it ended early or is not ready in time; nothing of it is left.
        """
        if self.pid is not None:
            return
        deadline = self._clock.monotonic() + self._start_timeout_s
        try:
            if self.directory is None:
                self._prepare()
            self._starts += 1
            self._start_epmd(deadline)
            self._start_beam()
            self._start_guard()
            self._wait_until_ready(deadline)
        except BaseException:
            self.close()
            raise

    def stop(self) -> None:
        """Shut the node down in order, as a service manager does; ``start()`` finds its data."""
        self._end_node(signal.SIGTERM)

    def kill(self) -> None:
        """End the node by SIGKILL, as a crash would; ``start()`` finds what was on disk."""
        self._end_node(signal.SIGKILL)

    def close(self) -> None:
        """End the node if it runs and remove all it wrote. Closing twice is harmless."""
        self.kill()  # Nobody will read the data, and an orderly shutdown takes seconds.
        if self.directory is not None:
            shutil.rmtree(self.directory)
            self.directory = None

    def ctl(self, *args: str, timeout_s: float = 60.0) -> str:
        """Run ``rabbitmqctl`` with *args* against this node and return what it printed.

        Raises:
            LocalRabbitMQError: it failed, or took longer than *timeout_s*.
        """
        what = " ".join(("rabbitmqctl", *args))
        command = self._command(
            str(self._server_script().with_name("rabbitmqctl")), "--quiet", *args
        )
        with self._spawn(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            try:
                out, err = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise LocalRabbitMQError(f"{what} gave no answer in {timeout_s:g} s.") from None
        if process.returncode != 0:
            told = (err or out).decode(errors="replace").strip()
            raise LocalRabbitMQError(f"{what} ended with {process.returncode}: {told}")
        return out.decode(errors="replace")

    def log(self) -> str:
        """What the node logged so far, over all its starts."""
        if self.directory is None:
            return ""
        files = sorted(self.directory.glob("start-*.log"))
        return "".join(file.read_text(errors="replace") for file in files)

    # --- where things are ---

    def _server_script(self) -> Path:
        """The server's start script, as the node sees it: inside the root, if there is one."""
        top = self.root or Path("/")
        for script in _SERVER_SCRIPTS:
            if (top / script).exists():
                return Path("/") / script
        found = shutil.which("rabbitmq-server") if self.root is None else None
        if found is None:
            where = "on this machine" if self.root is None else f"in {self.root}"
            raise RabbitMQNotFound(
                f"no rabbitmq-server {where}. Install it (Debian, Ubuntu: apt-get install"
                " rabbitmq-server; macOS: brew install rabbitmq; others:"
                " https://www.rabbitmq.com/docs/download) or give the address of a broker that"
                " runs already."
            )
        return Path(found)

    def _epmd_program(self) -> str:
        top = self.root or Path("/")
        if self.root is None and (found := shutil.which("epmd", path=self._environment()["PATH"])):
            return found
        if (top / "usr/bin/epmd").exists():
            return "/usr/bin/epmd"
        # Some Erlangs keep it to themselves, beside the virtual machine.
        if self.root is None and (erl := shutil.which("erl")):
            ask = [erl, "-noshell", "-eval", "io:put_chars(code:root_dir()), halt()."]
            home = subprocess.run(
                ask, capture_output=True, text=True, timeout=30, check=False
            ).stdout
            for program in sorted(Path(home).glob("erts-*/bin/epmd")):
                return str(program)
        raise RabbitMQNotFound("no epmd found: the Erlang beside this RabbitMQ is not complete.")

    def _user(self) -> pwd.struct_passwd | None:
        """Whom the node runs as, when that is not ourselves.

        A server should not run as root only because its tests do.
        """
        if os.geteuid() != 0:
            return None
        accounts = (self.root or Path("/")) / "etc/passwd"
        # Read by hand, as the accounts of a root are not those of this machine.
        for line in accounts.read_text().splitlines() if accounts.exists() else ():
            name, password, uid, gid, gecos, home, shell = line.split(":")
            if name == "rabbitmq":
                return pwd.struct_passwd((name, password, int(uid), int(gid), gecos, home, shell))
        return None

    def _inside(self, name: str = "") -> str:
        """The path of a file of ours as the node sees it."""
        assert self.directory is not None, "there are no files before _prepare()"
        path = self.directory / name
        return str(path if self.root is None else Path("/") / path.relative_to(self.root))

    # --- starting ---

    def _prepare(self) -> None:
        """Write what the node reads at each start, once."""
        self._server_script()  # Says that there is none before anything is written.
        if self.root is not None and os.geteuid() != 0:
            raise LocalRabbitMQError(f"only root can run the RabbitMQ in {self.root}.")
        self._epmd_port, self._dist_port, self.port = _free_ports(3)
        # At localhost: no name of this machine has to resolve.
        self.nodename = f"tq-{secrets.token_hex(4)}@localhost"
        self.directory = self._make_directory()
        listener = f"listeners.tcp.local = 127.0.0.1:{self.port}\n"
        settings = "".join(f"{key} = {value}\n" for key, value in self._settings.items())
        (self.directory / "rabbitmq.conf").write_text(listener + settings)
        (self.directory / "enabled_plugins").write_text("[].\n")
        (self.directory / "rabbitmq-env.conf").write_text("")
        cookie = self.directory / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        if user := self._user():
            for path in (self.directory, *self.directory.iterdir()):
                os.chown(path, user.pw_uid, user.pw_gid)

    def _make_directory(self) -> Path:
        if self.root is not None:
            hosts = self.root / "etc/hosts"
            if not hosts.exists():
                # Without it the node looks for its own name in the DNS.
                hosts.write_text("127.0.0.1 localhost\n")
            parent: str | None = str(self.root / "tmp")
        else:
            # The TMPDIR of root may be closed to the user that the node runs as; /tmp is open.
            parent = "/tmp" if self._user() else None
        return Path(tempfile.mkdtemp(prefix="tq-rabbitmq-", dir=parent))

    def _environment(self) -> dict[str, str]:
        """The whole environment of the node: no RABBITMQ_ or ERL_ variable of ours may reach it."""
        path = _PATH if self.root is not None else f"{os.environ.get('PATH', '')}:{_PATH}"
        if self.directory is None:
            return {"PATH": path}
        loopback = "-kernel inet_dist_use_interface {127,0,0,1}"
        return {
            "PATH": path,
            "HOME": self._inside(),  # Where Erlang looks for the cookie.
            "TMPDIR": self._inside(),
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_CRASH_DUMP": self._inside("erl_crash.dump"),
            "RABBITMQ_NODENAME": self.nodename,
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": loopback,
            "RABBITMQ_CTL_ERL_ARGS": loopback,
            "RABBITMQ_CONF_ENV_FILE": self._inside("rabbitmq-env.conf"),
            "RABBITMQ_CONFIG_FILE": self._inside("rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": self._inside("conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": self._inside("advanced.config"),
            "RABBITMQ_GENERATED_CONFIG_DIR": self._inside("generated"),
            "RABBITMQ_SCHEMA_DIR": self._inside("schema"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": self._inside("enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": self._inside("data"),
            "RABBITMQ_LOG_BASE": self._inside("log"),
            "RABBITMQ_LOGS": self._inside(f"start-{self._starts}-node.log"),
            "RABBITMQ_PID_FILE": self._inside("pid"),
            # Makes the script become the Erlang machine (exec) instead of its parent: the process
            # that we started is the one that we end.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _command(self, *command: str) -> list[str]:
        if self.root is None:
            return list(command)
        user = self._user()
        names = f"{user.pw_uid}:{user.pw_gid}" if user else ""
        enter = ["unshare", "--mount", "sh", "-ec", _ENTER_ROOT, "sh"]
        return [*enter, str(self.root), names, *command]

    def _spawn(self, command: list[str], **files: Any) -> subprocess.Popen[bytes]:
        user = self._user() if self.root is None else None  # Inside a root, chroot changes it.
        account: dict[str, Any] = {}
        if user:
            account = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
        return subprocess.Popen(
            command,
            cwd=self.directory,
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            # A session of its own: Ctrl-C in the terminal reaches the owner, who ends the node.
            start_new_session=True,
            **account,
            **files,
        )

    def _start_logged(self, *command: str) -> subprocess.Popen[bytes]:
        assert self.directory is not None, "_prepare() comes first"
        with (self.directory / f"start-{self._starts}-console.log").open("ab") as console:
            return self._spawn(self._command(*command), stdout=console, stderr=subprocess.STDOUT)

    def _start_epmd(self, deadline: float) -> None:
        # In the foreground and before the node: a node that finds none starts one as a daemon,
        # which would outlive it.
        program = (self._epmd_program(), "-port", str(self._epmd_port), "-address", "127.0.0.1")
        self._epmd = self._start_logged(*program)
        while not _accepts(self._epmd_port):
            self._check_alive(self._epmd, "epmd", deadline)

    def _start_beam(self) -> None:
        self._beam = self._start_logged(str(self._server_script()))

    def _start_guard(self) -> None:
        assert self._beam is not None, "there is nothing to guard"
        assert self._epmd is not None, "_start_epmd() comes first"
        watched = (str(self._beam.pid), str(self._epmd.pid), str(self.directory))
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "sh", *watched],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._beam is not None, "_start_beam() comes first"
        while not (version := _version_at(self.port)):
            self._check_alive(self._beam, "RabbitMQ", deadline)
        self._version = version

    def _check_alive(self, process: subprocess.Popen[bytes], name: str, deadline: float) -> None:
        """Fail if there is nothing more to wait for, else wait a moment."""
        if process.poll() is not None:
            why = f"ended with {process.returncode} before it was ready."
            raise LocalRabbitMQError(f"the private {name} {why}{self._log_tail()}")
        if self._clock.monotonic() > deadline:
            why = f"was not ready in {self._start_timeout_s:g} s."
            raise LocalRabbitMQError(f"the private {name} {why}{self._log_tail()}")
        self._clock.sleep(0.05)

    def _log_tail(self) -> str:
        """What this start logged, from the first error on: Erlang's reports of what fell with it
        are long and tell less.
        """
        assert self.directory is not None, "a node that was started has files"
        files = sorted(self.directory.glob(f"start-{self._starts}-*.log"), reverse=True)
        lines = [line for file in files for line in file.read_text(errors="replace").splitlines()]
        errors = [number for number, line in enumerate(lines) if "[error]" in line]
        shown = lines[errors[0] :][:30] if errors else lines[-30:]
        if not shown:
            return " It logged nothing."
        return "\n".join([" From its log:", *(f"    {line}" for line in shown)])

    # --- ending ---

    def _end_node(self, how: signal.Signals) -> None:
        guard, self._guard = self._guard, None
        beam, self._beam = self._beam, None
        epmd, self._epmd = self._epmd, None
        if guard is not None:
            _end(guard, signal.SIGKILL)  # First: it must not end who has our ids afterwards.
            assert guard.stdin is not None, "the guard listens"
            guard.stdin.close()
        for process in (beam, epmd):
            if process is not None:
                helpers = _children(process.pid)
                _end(process, how if process is beam else signal.SIGKILL)
                self._wait_until_gone(helpers)

    def _wait_until_gone(self, helpers: list[int]) -> None:
        """Wait for the node's port programs, which end by themselves a moment after it."""
        deadline = self._clock.monotonic() + 10
        while any(_runs(pid) for pid in helpers) and self._clock.monotonic() < deadline:
            self._clock.sleep(0.01)


def _free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on, all different."""
    with contextlib.ExitStack() as held:
        ports: list[int] = []
        for port in random.sample(_PORTS, len(_PORTS)):
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                ports.append(port)
            if len(ports) == count:
                return ports
    raise LocalRabbitMQError(
        f"no {count} free ports from {_PORTS.start} to {_PORTS.stop} on 127.0.0.1."
    )


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _version_at(port: int) -> str:
    """The version of the RabbitMQ that accepts guests at *port*, empty while none does."""
    timeouts = {"connect_timeout": 5, "read_timeout": 10, "write_timeout": 10}
    connection = amqp.Connection(f"127.0.0.1:{port}", **timeouts)
    try:
        connection.connect()
        return str(connection.server_properties["version"])
    except (OSError, amqp.AMQPError):
        return ""
    finally:
        with contextlib.suppress(OSError, amqp.AMQPError):
            connection.close()


def _end(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if process.poll() is not None:
        return
    process.send_signal(how)
    try:
        process.wait(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _children(pid: int) -> list[int]:
    """The processes below *pid*; none where the system has no /proc to ask."""
    return list(_walk_children(pid))


def _walk_children(pid: int) -> Iterator[int]:
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in map(int, file.read_text().split()):
                yield child
                yield from _walk_children(child)


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state != "Z"  # Ended, though its new parent has not asked how.
