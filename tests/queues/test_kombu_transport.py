from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import amqp.exceptions
import pika.frame
import pytest
from pika import spec

from tests.queues.amqp_server import AmqpServer
from tq_broker.queues.address import parse_addresses
from tq_broker.queues.frames import BODY, HEADER, HEARTBEAT, METHOD, frame
from tq_broker.queues.kombu_transport import (
    Connection,
    RawContent,
    TcpTransport,
    establish,
    read_frames,
)


@pytest.fixture
def pair() -> Iterator[tuple[TcpTransport, socket.socket]]:
    near, far = socket.socketpair()
    transport = TcpTransport("nowhere")
    transport.sock = near
    transport._setup_transport()
    yield transport, far
    near.close()
    far.close()


def test_many_frames_come_out_of_one_read(pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, far = pair
    far.sendall(frame(METHOD, 1, b"a") + frame(BODY, 2, b"") + frame(HEARTBEAT, 0, b""))
    transport.fill()
    assert transport.take_frame() == (METHOD, 1, b"a")
    assert transport.take_frame() == (BODY, 2, b"")
    assert transport.take_frame() == (HEARTBEAT, 0, b"")
    assert transport.take_frame() is None


def test_a_frame_may_come_in_pieces(pair: tuple[TcpTransport, socket.socket]) -> None:
    transport, far = pair
    whole = frame(METHOD, 1, b"payload") + frame(BODY, 1, b"next")
    for at in range(len(whole)):
        far.sendall(whole[at : at + 1])
        transport.fill()
        if at == len(frame(METHOD, 1, b"payload")) - 1:
            assert transport.take_frame() == (METHOD, 1, b"payload")
        elif at < len(whole) - 1:
            assert transport.take_frame() is None
    assert transport.read_frame() == (BODY, 1, b"next")


def test_when_nothing_comes_in_time_nothing_is_lost(
    pair: tuple[TcpTransport, socket.socket],
) -> None:
    transport, far = pair
    transport.sock.settimeout(0)
    far.sendall(frame(METHOD, 1, b"abc")[:9])
    with pytest.raises(TimeoutError):
        transport.read_frame()
    far.sendall(frame(METHOD, 1, b"abc")[9:])
    assert transport.read_frame() == (METHOD, 1, b"abc")


def test_the_end_of_the_stream_is_the_end_of_the_connection(
    pair: tuple[TcpTransport, socket.socket],
) -> None:
    transport, far = pair
    far.close()
    with pytest.raises(ConnectionResetError):
        transport.fill()


@pytest.mark.parametrize("garbage", [b"\x01\x00\x01\x00\x00\x00\x01aX", b"HTTP/1.1 400 Bad"])
def test_what_is_no_frame_is_noticed(
    pair: tuple[TcpTransport, socket.socket], garbage: bytes
) -> None:
    transport, far = pair
    far.sendall(garbage)
    transport.fill()
    with pytest.raises(amqp.exceptions.UnexpectedFrame):
        transport.take_frame()


def marshal(*frames: Any) -> list[tuple[int, int, bytes]]:
    cut = []
    for each in frames:
        data = each.marshal()
        cut.append((data[0], int.from_bytes(data[1:3], "big"), data[7:-1]))
    return cut


def reading() -> tuple[Any, list[tuple[Any, ...]], list[tuple[Any, ...]]]:
    delivered: list[tuple[Any, ...]] = []
    called: list[tuple[Any, ...]] = []
    connection = SimpleNamespace(
        bytes_recv=0, on_delivery=lambda *arguments: delivered.append(arguments)
    )
    on_frame = read_frames(connection, lambda *arguments: called.append(arguments))  # type: ignore[arg-type]
    return on_frame, delivered, called


@pytest.mark.parametrize("cuts", [(), (1,), (1, 2, 50)])
def test_a_delivery_is_handed_on_whole_and_undecoded(cuts: tuple[int, ...]) -> None:
    on_frame, delivered, called = reading()
    body = bytes(range(100))
    edges = [0, *cuts, len(body)]
    parts = [body[a:b] for a, b in itertools.pairwise(edges)]
    frames = marshal(
        pika.frame.Method(3, spec.Basic.Deliver("t", 1, False, "e", "k")),
        pika.frame.Header(3, len(body), pika.BasicProperties(message_id="m")),
        *(pika.frame.Body(3, part) for part in parts),
    )
    assert not any(on_frame(each) for each in frames)
    assert [(channel, got) for channel, _, _, got in delivered] == [(3, body)]
    assert not called


def test_contents_of_two_channels_may_interleave() -> None:
    on_frame, delivered, called = reading()
    one = marshal(
        pika.frame.Method(1, spec.Basic.Deliver("t", 1, False, "e", "k")),
        pika.frame.Header(1, 0, pika.BasicProperties()),
    )
    two = marshal(
        pika.frame.Method(2, spec.Basic.GetOk(1, False, "e", "k", 0)),
        pika.frame.Header(2, 3, pika.BasicProperties()),
        pika.frame.Body(2, b"two"),
    )
    for each in (one[0], two[0], two[1], one[1], two[2]):
        on_frame(each)
    assert [channel for channel, *_ in delivered] == [1]
    ((channel, _, _, content),) = called
    assert channel == 2
    assert isinstance(content, RawContent)
    assert content.body == b"two"


def test_an_unknown_kind_of_frame_is_an_error() -> None:
    on_frame, _, _ = reading()
    assert on_frame((HEARTBEAT, 0, b"")) is False
    with pytest.raises(amqp.exceptions.UnexpectedFrame):
        on_frame((9, 0, b""))
    assert HEADER == 2


@pytest.fixture
def connection(server: AmqpServer) -> Iterator[Connection]:
    (address,) = parse_addresses(server.url)
    connection = establish(address, None, connect_s=5, heartbeat_s=10, properties={"product": "x"})
    yield connection
    connection.collect()


def test_a_closed_channel_keeps_its_error_for_its_own_caller(
    server: AmqpServer, connection: Connection
) -> None:
    def refuse(session: Any, channel: int, _method: Any) -> bool:
        session.close_channel(channel, 404, "no such queue")
        return True

    server.rules[spec.Basic.Qos] = refuse
    doomed, other = connection.channel(), connection.channel()
    ended: list[Exception] = []
    doomed.on_ended = ended.append
    doomed.send_method(spec_basic_qos(), "lBb", (0, 1, False))
    # The error arrives while we wait on the other channel, which must not notice.
    assert other.queue_declare("q", passive=True).message_count == 3
    assert isinstance(doomed.ended_by, amqp.exceptions.NotFound)
    assert ended == [doomed.ended_by]


def spec_basic_qos() -> Any:
    return amqp.spec.Basic.Qos


def test_it_announces_itself_and_that_it_understands_cancels(
    server: AmqpServer, connection: Connection
) -> None:
    _, _, start_ok = server.wait_for(spec.Connection.StartOk)
    assert start_ok.client_properties["product"] == "x"
    assert start_ok.client_properties["capabilities"]["consumer_cancel_notify"] is True
    assert connection.server_properties["version"] == "3.10.8"


def test_a_dead_connection_is_never_quietly_opened_again(connection: Connection) -> None:
    connection.collect()
    with pytest.raises(amqp.exceptions.RecoverableConnectionError):
        connection.write_raw(b"x")
