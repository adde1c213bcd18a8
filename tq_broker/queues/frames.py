"""Frames: AMQP 0-9-1 on the wire, as far as the hot paths need it.

pika and py-amqp speak the protocol; what they do per message costs more than all our own work,
so the three frames of a publish, the acknowledgements and the content of a delivery are built
and read here.

Rules of this file:

* pure: values in, bytes out, and back;
* what cannot be encoded is an `InvalidArgument` that names the field, before anything is sent;
* decoding is total: text that is not UTF-8 stays ``bytes`` in a table and is escaped in a
  property. RabbitMQ has parsed every table that it hands out, so `Malformed` is a last resort.

The grammar: https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, sections 2.3 and 4.2, with
the field types as RabbitMQ has them: https://www.rabbitmq.com/amqp-0-9-1-errata#section_3
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model.message import NO_HEADERS, Message

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
FRAME_END = b"\xce"
FRAME_OVERHEAD = 8
BASIC_PUBLISH = (60, 40)
BASIC_DELIVER = b"\x00\x3c\x00\x3c"
BASIC_ACK = (60, 80)
BASIC_NACK = (60, 120)
BASIC_REJECT = (60, 90)

_MANDATORY = 1
_CACHE_MAX = 4096
"""Encodings kept per cache. A full cache is emptied: names that churn must not pile up."""

_frame_start = struct.Struct(">BHI").pack
_settle = struct.Struct(">BHIHHQBB").pack
_content = struct.Struct(">HHQH").pack
_u16 = struct.Struct(">H")
_u32 = struct.Struct(">I")
_u64 = struct.Struct(">Q")
_deliver = struct.Struct(">QB").unpack_from
_ack = struct.Struct(">BHIHHQBB").unpack_from
ACK_BYTES = 21


def frame(kind: int, channel: int, payload: bytes) -> bytes:
    """One frame."""
    return b"%b%b\xce" % (_frame_start(kind, channel, len(payload)), payload)


def settle_frame(channel: int, method: tuple[int, int], tag: int, bits: int) -> bytes:
    """The frame of ``basic.ack``, ``basic.nack`` or ``basic.reject``.

    Args:
        bits: ``ack``: 1 multiple; ``nack``: 1 multiple, 2 requeue; ``reject``: 1 requeue.
    """
    return _settle(METHOD, channel, 13, *method, tag, bits, 0xCE)


class PublishEncoder:
    """Makes the frames of publishes on one channel. Belongs to one thread."""

    def __init__(self, channel: int, frame_max: int) -> None:
        self._channel = channel
        self._chunk_bytes = frame_max - FRAME_OVERHEAD
        self._methods: dict[tuple[str, str], bytes] = {}
        self._types: dict[tuple[str | None, str | None], tuple[int, bytes]] = {}
        self._header_start = struct.pack(">BH", HEADER, channel)
        self._body_start = struct.pack(">BH", BODY, channel)

    def encode(
        self, exchange: str, routing_key: str, message: Message, extra: Mapping[str, Any]
    ) -> bytes:
        """The method, header and body frames of a mandatory publish.

        Args:
            extra: Headers that are added to (and win over) the message's own.

        Raises:
            InvalidArgument: a field does not fit the protocol.
        """
        method = self._methods.get((exchange, routing_key))
        if method is None:
            method = self._method(exchange, routing_key)
        body = message.body
        size = len(body)
        header = self._properties(message, extra, size)
        if size <= self._chunk_bytes:
            return b"".join(
                (
                    method,
                    self._header_start,
                    _u32.pack(len(header)),
                    header,
                    FRAME_END,
                    *((self._body_start, _u32.pack(size), body, FRAME_END) if size else ()),
                )
            )
        parts: list[bytes | memoryview] = [method, frame(HEADER, self._channel, header)]
        view = memoryview(body)
        for start in range(0, size, self._chunk_bytes):
            chunk = view[start : start + self._chunk_bytes]
            parts += (self._body_start, _u32.pack(len(chunk)), chunk, FRAME_END)
        return b"".join(parts)

    def _method(self, exchange: str, routing_key: str) -> bytes:
        payload = b"".join(
            (
                struct.pack(">HHH", *BASIC_PUBLISH, 0),
                _shortstr("exchange", exchange),
                _shortstr("routing_key", routing_key),
                bytes((_MANDATORY,)),
            )
        )
        if len(self._methods) >= _CACHE_MAX:
            self._methods.clear()
        method = self._methods[exchange, routing_key] = frame(METHOD, self._channel, payload)
        return method

    def _properties(self, message: Message, extra: Mapping[str, Any], size: int) -> bytes:
        kinds = (message.content_type, message.content_encoding)
        start = self._types.get(kinds)
        if start is None:
            if len(self._types) >= _CACHE_MAX:
                self._types.clear()
            start = self._types[kinds] = _types(*kinds)
        flags, first = start
        parts = [b"", first]
        headers = message.headers
        if extra:
            headers = {**headers, **extra}
        if headers:
            flags |= 0x2000
            parts.append(encode_table(headers))
        flags |= 0x1000
        parts.append(b"\x02" if message.persistent else b"\x01")
        if message.priority is not None:
            flags |= 0x0800
            if not 0 <= message.priority <= 255:
                raise InvalidArgument(f"priority must be 0 to 255, not {message.priority}")
            parts.append(bytes((message.priority,)))
        if message.correlation_id is not None:
            flags |= 0x0400
            parts.append(_shortstr("correlation_id", message.correlation_id))
        if message.reply_to is not None:
            flags |= 0x0200
            parts.append(_shortstr("reply_to", message.reply_to))
        if message.message_id:
            flags |= 0x0080
            parts.append(_shortstr("message_id", message.message_id))
        if message.timestamp is not None:
            flags |= 0x0040
            if not 0 <= message.timestamp < 1 << 64:
                raise InvalidArgument(f"timestamp must not be {message.timestamp}")
            parts.append(_u64.pack(message.timestamp))
        if message.kind:
            flags |= 0x0020
            parts.append(_shortstr("kind", message.kind))
        parts[0] = _content(60, 0, size, flags)
        return b"".join(parts)


def _types(content_type: str | None, content_encoding: str | None) -> tuple[int, bytes]:
    flags, encoded = 0, b""
    if content_type is not None:
        flags, encoded = 0x8000, _shortstr("content_type", content_type)
    if content_encoding is not None:
        flags |= 0x4000
        encoded += _shortstr("content_encoding", content_encoding)
    return flags, encoded


def _shortstr(field: str, text: str) -> bytes:
    try:
        data = text.encode()
        return b"%c%b" % (len(data), data)
    except (UnicodeEncodeError, OverflowError):
        raise InvalidArgument(
            f"{field} must be at most 255 bytes of valid Unicode: {text[:40]!r}..."
        ) from None


_names: dict[str, bytes] = {}
"""Encoded names of headers. There are few; shared by all encoders (a dict's get and set are
atomic, and the value for a key is always the same)."""


def encode_table(table: Mapping[str, Any]) -> bytes:
    """A field table, with its length.

    Raises:
        InvalidArgument: a key or value does not fit; it names the key.
    """
    parts: list[bytes] = [b""]
    for name, value in table.items():
        encoded = _names.get(name)
        if encoded is None:
            if len(_names) >= _CACHE_MAX:
                _names.clear()
            encoded = _names[name] = _shortstr("a header's name", name)
        parts.append(encoded)
        if type(value) is str:
            try:
                data = value.encode()
            except UnicodeEncodeError:
                raise InvalidArgument(f"header {name!r} is not valid Unicode") from None
            parts.append(b"S")
            parts.append(_u32.pack(len(data)))
            parts.append(data)
        else:
            try:
                parts.append(_encode_value(value))
            except (struct.error, TypeError, UnicodeEncodeError, RecursionError) as error:
                raise InvalidArgument(f"header {name!r} cannot be sent: {error}") from None
    payload = b"".join(parts)
    return _u32.pack(len(payload)) + payload


def _encode_value(value: Any) -> bytes:
    if isinstance(value, str):
        data = value.encode()
        return b"S" + _u32.pack(len(data)) + data
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int):
        if -0x80000000 <= value <= 0x7FFFFFFF:
            return struct.pack(">ci", b"I", value)
        return struct.pack(">cq", b"l", value)
    if isinstance(value, float):
        return struct.pack(">cd", b"d", value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b"x" + _u32.pack(len(value)) + bytes(value)
    if value is None:
        return b"V"
    if isinstance(value, Mapping):
        return b"F" + encode_table(value)
    if isinstance(value, (list, tuple)):
        payload = b"".join(map(_encode_value, value))
        return b"A" + _u32.pack(len(payload)) + payload
    raise TypeError(f"a {type(value).__name__} has no form in AMQP")


def decode_ack(data: bytes, at: int, channel: int) -> tuple[int, bool] | None:
    """The tag and the multiple bit, if the frame at ``at`` is a ``basic.ack`` on ``channel``."""
    if len(data) - at < ACK_BYTES:
        return None
    kind, number, size, class_id, method_id, tag, bits, end = _ack(data, at)
    is_ack = (kind, number, size, class_id, method_id, end) == (METHOD, channel, 13, 60, 80, 0xCE)
    return (tag, bits & 1 != 0) if is_ack else None


def decode_deliver(payload: bytes) -> tuple[int, bool]:
    """The tag, and whether it was delivered before, in the payload of a ``basic.deliver``."""
    tag, redelivered = _deliver(payload, 5 + payload[4])
    return tag, redelivered != 0


def decode_routing_key(payload: bytes) -> str:
    """The routing key in the payload of a ``basic.deliver`` method frame."""
    exchange = 14 + payload[4]
    key = exchange + 1 + payload[exchange]
    return payload[key + 1 : key + 1 + payload[key]].decode(errors="backslashreplace")


def body_size(header: bytes) -> int:
    """How many bytes of body follow this payload of a header frame."""
    size: int = _u64.unpack_from(header, 4)[0]
    return size


def decode_message(header: bytes, body: bytes) -> Message:
    """The message whose header frame has the payload ``header``.

    Raises:
        Malformed: the properties cannot be read.
    """
    try:
        return _decode_message(header, body)
    except (struct.error, IndexError, ValueError, RecursionError) as error:
        raise Malformed(f"the properties cannot be read: {error}") from error


def _decode_message(header: bytes, body: bytes) -> Message:
    flags = _u16.unpack_from(header, 12)[0]
    at = 14
    content_type = content_encoding = correlation_id = reply_to = None
    kind = message_id = ""
    headers: Mapping[str, Any] = NO_HEADERS
    priority = timestamp = None
    persistent = False
    if flags & 0x8000:
        content_type, at = _text(header, at)
    if flags & 0x4000:
        content_encoding, at = _text(header, at)
    if flags & 0x2000:
        end = at + 4 + _u32.unpack_from(header, at)[0]
        headers = _decode_table(header, at + 4, end)
        at = end
    if flags & 0x1000:
        persistent = header[at] == 2
        at += 1
    if flags & 0x0800:
        priority = header[at]
        at += 1
    if flags & 0x0400:
        correlation_id, at = _text(header, at)
    if flags & 0x0200:
        reply_to, at = _text(header, at)
    if flags & 0x0100:  # expiration: the broker's business
        at += 1 + header[at]
    if flags & 0x0080:
        message_id, at = _text(header, at)
    if flags & 0x0040:
        timestamp = _u64.unpack_from(header, at)[0]
        at += 8
    if flags & 0x0020:
        kind, at = _text(header, at)
    return Message(
        body=body,
        message_id=message_id,
        kind=kind,
        headers=headers,
        correlation_id=correlation_id,
        reply_to=reply_to,
        content_type=content_type,
        content_encoding=content_encoding,
        priority=priority,
        timestamp=timestamp,
        persistent=persistent,
    )


def _text(data: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + data[at]
    return data[at + 1 : end].decode(errors="backslashreplace"), end


def _decode_table(data: bytes, at: int, end: int) -> dict[str, Any]:
    table: dict[str, Any] = {}
    while at < end:
        start = at + 1
        at = start + data[at]
        name = data[start:at].decode(errors="backslashreplace")
        if data[at] == 83:  # S, nearly always
            start = at + 5
            at = start + _u32.unpack_from(data, at + 1)[0]
            value = data[start:at]
            try:
                table[name] = value.decode()
            except UnicodeDecodeError:
                table[name] = value
        else:
            table[name], at = _decode_value(data, at)
    return table


_FIXED = {
    "t": struct.Struct("?"),
    "b": struct.Struct("b"),
    "B": struct.Struct("B"),
    "s": struct.Struct(">h"),
    "U": struct.Struct(">h"),
    "u": struct.Struct(">H"),
    "I": struct.Struct(">i"),
    "i": struct.Struct(">I"),
    "l": struct.Struct(">q"),
    "L": struct.Struct(">q"),
    "f": struct.Struct(">f"),
    "d": struct.Struct(">d"),
    "T": struct.Struct(">Q"),
}


def _decode_value(data: bytes, at: int) -> tuple[Any, int]:
    kind = chr(data[at])
    at += 1
    fixed = _FIXED.get(kind)
    if fixed is not None:
        return fixed.unpack_from(data, at)[0], at + fixed.size
    if kind == "V":
        return None, at
    if kind == "D":
        scale, digits = struct.unpack_from(">Bi", data, at)
        return digits / 10**scale, at + 5
    start = at + 4
    end = start + _u32.unpack_from(data, at)[0]
    if end > len(data):
        raise ValueError("a field is longer than its frame")
    if kind == "S":
        value = data[start:end]
        try:
            return value.decode(), end
        except UnicodeDecodeError:
            return value, end
    if kind == "x":
        return data[start:end], end
    if kind == "F":
        return _decode_table(data, start, end), end
    if kind == "A":
        values = []
        while start < end:
            value, start = _decode_value(data, start)
            values.append(value)
        return values, end
    raise ValueError(f"unknown type of field {kind!r}")
