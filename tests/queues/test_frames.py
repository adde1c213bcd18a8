"""`tq_broker.queues.frames` against py-amqp's reading and writing of the same bytes."""

from __future__ import annotations

import contextlib
import struct
from typing import Any

import amqp
import amqp.serialization
import pika.frame
import pika.spec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model.message import Message
from tq_broker.queues.frames import (
    ACK_BYTES,
    BASIC_ACK,
    BASIC_NACK,
    BASIC_REJECT,
    HEADER,
    METHOD,
    PublishEncoder,
    body_size,
    decode_ack,
    decode_deliver,
    decode_message,
    decode_routing_key,
    encode_table,
    frame,
    settle_frame,
)

shorts = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | shorts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(shorts, inner, max_size=3),
    max_leaves=8,
)
messages = st.builds(
    Message,
    body=st.binary(max_size=300),
    message_id=shorts,
    kind=shorts,
    headers=st.dictionaries(shorts, values, max_size=4),
    correlation_id=st.none() | shorts,
    reply_to=st.none() | shorts,
    content_type=st.none() | shorts,
    content_encoding=st.none() | shorts,
    priority=st.none() | st.integers(0, 255),
    timestamp=st.none() | st.integers(0, 2**63),
    persistent=st.booleans(),
)


def split(data: bytes) -> list[tuple[int, int, bytes]]:
    frames = []
    while data:
        kind, channel, size = struct.unpack_from(">BHI", data)
        assert data[7 + size] == 0xCE
        frames.append((kind, channel, data[7 : 7 + size]))
        data = data[8 + size :]
    return frames


def encode(message: Message, extra: dict[str, Any] | None = None) -> bytes:
    return PublishEncoder(3, 131072).encode("exchange", "key", message, extra or {})


@given(messages)
def test_what_is_encoded_is_decoded_to_the_same(message: Message) -> None:
    method, header, *bodies = split(encode(message))
    assert method[:2] == (METHOD, 3)
    assert header[:2] == (HEADER, 3)
    assert body_size(header[2]) == len(message.body)
    assert decode_message(header[2], b"".join(body for _, _, body in bodies)) == message


@given(messages)
def test_py_amqp_reads_the_same_properties(message: Message) -> None:
    _, (_, _, header), *_ = split(encode(message))
    theirs = amqp.Message()
    theirs.inbound_header(header)
    expected = {
        "content_type": message.content_type,
        "content_encoding": message.content_encoding,
        "application_headers": dict(message.headers) or None,
        "delivery_mode": 2 if message.persistent else 1,
        "priority": message.priority,
        "correlation_id": message.correlation_id,
        "reply_to": message.reply_to,
        "message_id": message.message_id or None,
        "timestamp": message.timestamp,
        "type": message.kind or None,
    }
    assert theirs.properties == {k: v for k, v in expected.items() if v is not None}


@given(messages)
def test_what_py_amqp_writes_is_read(message: Message) -> None:
    theirs = amqp.Message(
        message_id=message.message_id or None,
        type=message.kind or None,
        application_headers={k: str(v) for k, v in message.headers.items()} or None,
        correlation_id=message.correlation_id,
        reply_to=message.reply_to,
        expiration="5000",
        user_id="me",
    )
    header = struct.pack(">HHQ", 60, 0, 0) + theirs._serialize_properties()
    ours = decode_message(header, b"")
    assert ours.message_id == message.message_id
    assert ours.kind == message.kind
    assert ours.correlation_id == message.correlation_id
    assert ours.reply_to == message.reply_to
    assert dict(ours.headers) == {k: str(v) for k, v in message.headers.items()}


def test_the_method_frame_is_the_one_of_pika() -> None:
    data = encode(Message(body=b"", message_id="m"))
    theirs = pika.frame.Method(
        3, pika.spec.Basic.Publish(exchange="exchange", routing_key="key", mandatory=True)
    ).marshal()
    assert data.startswith(theirs)


def test_a_big_body_is_cut_to_the_size_of_frames() -> None:
    body = bytes(range(256)) * 40
    data = PublishEncoder(1, 4096).encode("e", "k", Message(body=body, message_id="m"), {})
    bodies = [payload for _, _, payload in split(data)[2:]]
    assert b"".join(bodies) == body
    assert [len(payload) for payload in bodies] == [4088, 4088, 10240 - 2 * 4088]


def test_extra_headers_win() -> None:
    message = Message(body=b"", message_id="m", headers={"a": "old", "b": 1})
    _, (_, _, header), *_ = split(encode(message, {"a": "new", "tq-resent": 2}))
    assert decode_message(header, b"").headers == {"a": "new", "b": 1, "tq-resent": 2}


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (Message(body=b"", message_id="x" * 256), "message_id"),
        (Message(body=b"", message_id="\ud800"), "message_id"),
        (Message(body=b"", message_id="m", priority=256), "priority"),
        (Message(body=b"", message_id="m", timestamp=-1), "timestamp"),
        (Message(body=b"", message_id="m", reply_to="x" * 256), "reply_to"),
        (Message(body=b"", message_id="m", headers={"big": 2**63}), "big"),
        (Message(body=b"", message_id="m", headers={"odd": object()}), "odd"),
        (Message(body=b"", message_id="m", headers={"text": "\ud800"}), "text"),
        (Message(body=b"", message_id="m", headers={"x" * 256: 1}), "header's name"),
    ],
)
def test_what_amqp_cannot_say_is_refused_by_name(message: Message, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        encode(message)


def test_caches_do_not_grow_with_churning_names() -> None:
    encoder = PublishEncoder(1, 4096)
    for number in range(10_000):
        message = Message(body=b"", message_id="m", headers={f"h{number}": 1})
        encoder.encode("e", f"key{number}", message, {})
    assert len(encoder._methods) <= 4096


def test_text_that_is_not_utf8_is_kept_readable() -> None:
    table = b"\x01aS" + struct.pack(">I", 1) + b"\xff"
    header = struct.pack(">HHQH", 60, 0, 0, 0x2080) + struct.pack(">I", len(table)) + table
    message = decode_message(header + b"\x01\xff", b"")
    assert message.headers == {"a": b"\xff"}
    assert message.message_id == "\\xff"


def test_every_type_of_field_that_rabbitmq_knows_is_read() -> None:
    table = b"".join(
        (
            b"\x01bb\xff",
            b"\x01BB\xff",
            b"\x01ss\xff\xff",
            b"\x01uu\xff\xff",
            b"\x01ii\xff\xff\xff\xff",
            b"\x01ff" + struct.pack(">f", 0.5),
            b"\x01TT" + struct.pack(">Q", 7),
            b"\x01DD\x02" + struct.pack(">i", 150),
            b"\x01xx" + struct.pack(">I", 2) + b"\x00\x01",
            b"\x01VV",
        )
    )
    header = struct.pack(">HHQH", 60, 0, 0, 0x2000) + struct.pack(">I", len(table)) + table
    assert decode_message(header, b"").headers == {
        "b": -1,
        "B": 255,
        "s": -1,
        "u": 65535,
        "i": 2**32 - 1,
        "f": 0.5,
        "T": 7,
        "D": 1.5,
        "x": b"\x00\x01",
        "V": None,
    }


@given(st.binary(max_size=80))
def test_garbage_is_malformed_and_nothing_worse(garbage: bytes) -> None:
    with contextlib.suppress(Malformed):
        decode_message(struct.pack(">HHQ", 60, 0, 0) + garbage, b"")


def test_tables_nested_without_end_are_malformed() -> None:
    table = b""
    for _ in range(5000):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    header = struct.pack(">HHQH", 60, 0, 0, 0x2000) + struct.pack(">I", len(table)) + table
    with pytest.raises(Malformed):
        decode_message(header, b"")
    endless: dict[str, Any] = {}
    endless["a"] = endless
    with pytest.raises(InvalidArgument):
        encode_table(endless)


@given(shorts, shorts, shorts, st.integers(1, 2**63), st.booleans())
def test_the_arguments_of_a_delivery_are_read(
    tag: str, exchange: str, key: str, number: int, redelivered: bool
) -> None:
    arguments = amqp.serialization.dumps("sLbss", (tag, number, redelivered, exchange, key))
    payload = b"\x00\x3c\x00\x3c" + arguments
    assert decode_deliver(payload) == (number, redelivered)
    assert decode_routing_key(payload) == key


@pytest.mark.parametrize("channel", [1, 65535])
def test_settling_frames_are_those_of_pika(channel: int) -> None:
    for ours, theirs in (
        (settle_frame(channel, BASIC_ACK, 7, 1), pika.spec.Basic.Ack(7, multiple=True)),
        (settle_frame(channel, BASIC_ACK, 2**40, 0), pika.spec.Basic.Ack(2**40)),
        (settle_frame(channel, BASIC_NACK, 7, 2), pika.spec.Basic.Nack(7, requeue=True)),
        (settle_frame(channel, BASIC_REJECT, 7, 0), pika.spec.Basic.Reject(7, requeue=False)),
    ):
        assert ours == pika.frame.Method(channel, theirs).marshal()


def test_a_frame_is_what_the_standard_says() -> None:
    assert frame(8, 0, b"") == b"\x08\x00\x00\x00\x00\x00\x00\xce"


@given(
    before=st.binary(max_size=30),
    channel=st.integers(1, 65535),
    tag=st.integers(0, 2**64 - 1),
    multiple=st.booleans(),
    after=st.binary(max_size=30),
)
def test_an_ack_is_read_wherever_it_is(
    before: bytes, channel: int, tag: int, multiple: bool, after: bytes
) -> None:
    ack = pika.frame.Method(channel, pika.spec.Basic.Ack(tag, multiple)).marshal()
    assert len(ack) == ACK_BYTES
    data = before + ack + after
    assert decode_ack(data, len(before), channel) == (tag, multiple)
    assert decode_ack(data, len(before), channel - 1) is None, "of another channel"
    assert decode_ack(data[: len(before) + ACK_BYTES - 1], len(before), channel) is None


@pytest.mark.parametrize(
    "method",
    [
        pika.spec.Basic.Nack(7),
        pika.spec.Basic.Reject(7),
        pika.spec.Basic.Cancel("a consumer"),
        pika.spec.Channel.Close(404, "gone", 0, 0),
    ],
    ids=lambda method: method.NAME,
)
def test_what_is_no_ack_is_not_taken_for_one(method: Any) -> None:
    data = pika.frame.Method(3, method).marshal() + bytes(ACK_BYTES)
    assert decode_ack(data, 0, 3) is None
