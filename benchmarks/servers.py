"""Servers: the broker and the result store of one run.

Both are private to the run, listen on 127.0.0.1 only, and are gone after it.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from integration.postgresql_server import NotHere, PostgresqlServer
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ

_START_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """What the peers connect to.

    Attributes:
        url: of the broker.
        redis_url: of the result store; empty when this machine has none.
        postgresql: for workflows; None when this machine has none.
        node: the broker's node when it is ours, so that its memory can be seen.
    """

    url: str
    redis_url: str
    postgresql: PostgresqlServer | None
    node: LocalRabbitMQ | None


@contextlib.contextmanager
def started(url: str | None) -> Iterator[Servers]:
    """The servers, for the length of a ``with`` block.

    Args:
        url: of a broker that runs already; None starts one.
    """
    with contextlib.ExitStack() as stack:
        node = None if url else stack.enter_context(LocalRabbitMQ())
        if node is not None:
            _speak_amqp_1_0(node)
        redis_url = stack.enter_context(_redis())
        yield Servers(
            url=_plain(url or (node.url if node else "")),
            redis_url=redis_url,
            postgresql=_postgresql(stack),
            node=node,
        )


def _plain(url: str) -> str:
    """*url* with its virtual host ``/`` written as all libraries read it."""
    return f"{url[:-2]}/%2F" if url.endswith("//") else url


def _speak_amqp_1_0(node: LocalRabbitMQ) -> None:
    """Enable the plugin that Repid needs; from 4.0 on it is part of the server."""
    if int(node.version.split(".")[0]) >= 4 or node.directory is None:
        return
    enabled = Path(node.directory) / "enabled_plugins"
    enabled.write_text("[rabbitmq_amqp1_0].\n")
    # What `rabbitmq-plugins enable` asks a running node to do.
    node.ctl("eval", f'rabbit_plugins:ensure("{enabled}").')


def _postgresql(stack: contextlib.ExitStack) -> PostgresqlServer | None:
    try:
        return stack.enter_context(PostgresqlServer())
    except NotHere:
        return None


@contextlib.contextmanager
def _redis() -> Iterator[str]:
    program = shutil.which("redis-server")
    if program is None:
        yield ""
        return
    port = _free_port()
    settings = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen([program, *settings], stdout=subprocess.DEVNULL, cwd="/")
    try:
        _wait_listening(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_listening(port: int) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(0.05)
