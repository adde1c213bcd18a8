"""The launcher of private nodes: what it starts, what survives, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import amqp
import pytest

from tq_broker.testing.local_rabbitmq import LocalRabbitMQ, LocalRabbitMQError, RabbitMQNotFound


def connect(node: LocalRabbitMQ) -> amqp.Connection:
    connection = amqp.Connection(f"127.0.0.1:{node.port}", confirm_publish=True)
    connection.connect()
    return connection


def publish_durably(node: LocalRabbitMQ, queue: str) -> None:
    with connect(node) as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, auto_delete=False)
        channel.basic_publish(amqp.Message("kept", delivery_mode=2), routing_key=queue)


def read(node: LocalRabbitMQ, queue: str) -> str | None:
    with connect(node) as connection:
        message = connection.channel().basic_get(queue, no_ack=True)
        return None if message is None else message.body


def processes_of(directory: Path) -> list[str]:
    """The commands of all processes that work in, or were told of, that directory.

    The environment is asked too, since the Erlang machine's helpers have no arguments.
    """
    mark = directory.name.encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            about = (process / "cmdline").read_bytes()
            if mark in about or mark in (process / "environ").read_bytes():
                found.append(about.replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue  # It has just ended.
    return found


def soon(is_true: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not is_true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def directory_of(node: LocalRabbitMQ) -> Path:
    assert node.directory is not None
    return node.directory


def test_a_node_tells_its_version(broker: LocalRabbitMQ) -> None:
    with connect(broker) as connection:
        assert broker.version == connection.server_properties["version"]
    assert broker.version in repr(broker)


def test_ctl_speaks_to_this_node(broker: LocalRabbitMQ) -> None:
    assert broker.nodename in broker.ctl("eval", "node().")


def test_a_command_that_fails_says_why(broker: LocalRabbitMQ) -> None:
    with pytest.raises(LocalRabbitMQError, match="no_such_command"):
        broker.ctl("no_such_command")


def test_no_plugin_runs(broker: LocalRabbitMQ) -> None:
    running = broker.ctl("eval", "rabbit_plugins:active().")
    assert running.strip() == "[]"


@pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="asks Linux for its sockets")
def test_only_loopback_is_listened_on(broker: LocalRabbitMQ) -> None:
    listening = "0A"
    sockets = []
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            address, _, port = local.partition(":")
            if state == listening:
                sockets.append((int(port, 16), address))
    ports = broker.ctl("eval", "[{N, P} || {N, P} <- element(2, erl_epmd:names(localhost))].")
    dist_port = int("".join(filter(str.isdigit, ports.rpartition(",")[2])))
    addresses = {address for port, address in sockets if port in (broker.port, dist_port)}
    assert addresses == {"0100007F"}


def test_a_stopped_node_keeps_a_durable_message(rabbitmq_each: LocalRabbitMQ) -> None:
    publish_durably(rabbitmq_each, "kept")
    url = rabbitmq_each.url

    rabbitmq_each.stop()
    with pytest.raises(OSError, match="refused"):
        connect(rabbitmq_each)
    rabbitmq_each.start()

    assert rabbitmq_each.url == url
    assert read(rabbitmq_each, "kept") == "kept"


def test_a_killed_node_keeps_a_durable_message(rabbitmq_each: LocalRabbitMQ) -> None:
    publish_durably(rabbitmq_each, "kept")
    # Before Khepri a node writes down a moment later that the queue exists.
    rabbitmq_each.ctl("eval", "catch mnesia:sync_log().")
    rabbitmq_each.kill()
    assert rabbitmq_each.pid is None
    rabbitmq_each.start()
    assert read(rabbitmq_each, "kept") == "kept"


def test_settings_reach_the_node() -> None:
    with LocalRabbitMQ(settings={"channel_max": "17"}) as node, connect(node) as connection:
        assert connection.channel_max == 17


def test_two_nodes_do_not_meet(rabbitmq: LocalRabbitMQ) -> None:
    with LocalRabbitMQ() as other:
        publish_durably(rabbitmq, "mine")
        assert rabbitmq.port != other.port
        assert "mine" not in other.ctl("list_queues", "name")


def test_nothing_stays_behind(rabbitmq_each: LocalRabbitMQ) -> None:
    directory = directory_of(rabbitmq_each)
    assert len(processes_of(directory)) >= 2  # The node and its epmd, or we look wrongly.
    rabbitmq_each.close()
    rabbitmq_each.close()
    assert processes_of(directory) == []
    assert not directory.exists()


def test_a_node_that_cannot_start_shows_its_log_and_leaves_nothing() -> None:
    node = LocalRabbitMQ(settings={"no_such_setting": "1"})
    with pytest.raises(LocalRabbitMQError, match="no_such_setting"):
        node.start()
    assert node.pid is None
    assert node.directory is None


def test_a_node_that_takes_too_long_is_given_up() -> None:
    node = LocalRabbitMQ(start_timeout_s=0.5)
    with pytest.raises(LocalRabbitMQError, match=r"not ready in 0\.5 s"):
        node.start()
    assert node.directory is None


def test_a_missing_server_is_said_with_the_way_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(RabbitMQNotFound, match="apt-get install rabbitmq-server"):
        LocalRabbitMQ(tmp_path).start()


def test_a_killed_owner_leaves_nothing_behind() -> None:
    program = """
        from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
        node = LocalRabbitMQ()
        node.start()
        print(node.directory, flush=True)
        input()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as owner:
        assert owner.stdout is not None
        directory = Path(owner.stdout.readline().strip())
        assert processes_of(directory)
        os.kill(owner.pid, signal.SIGKILL)
    assert soon(lambda: not directory.exists() and not processes_of(directory))
