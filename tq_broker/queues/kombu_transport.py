"""A Kombu transport that reads fast: what stands between py-amqp and the reader's loop.

py-amqp takes four system calls and three objects per delivery. Here one ``recv`` takes all that
has arrived, frames are cut out of that, and a delivery goes to ``Connection.on_delivery`` as the
bytes of its frames. All the rest of the protocol is py-amqp's.

Rules of this file:

* one thread uses a connection;
* what RabbitMQ says to one channel must not be raised out of a call on another: a channel that
  is closed keeps its error in ``ended_by``, where the caller of that channel looks for it.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import Callable
from typing import Any

import amqp.transport
import kombu.connection
import kombu.transport.pyamqp
from amqp import spec
from amqp.exceptions import UnexpectedFrame, error_for_code

from tq_broker.queues.address import Address
from tq_broker.queues.frames import BASIC_DELIVER, BODY, HEADER, HEARTBEAT, METHOD, body_size

RECV_BYTES = 1 << 18
_FRAME_BYTES_MAX = 1 << 20
"""More than this in a frame's length means that we have lost the thread: we ask for 128 KiB."""

Frame = tuple[int, int, bytes]

_start = struct.Struct(">BHI").unpack_from
_signature = struct.Struct(">HH").unpack_from


class _Buffered:
    """Whole frames out of big reads; mixed into py-amqp's transports."""

    sock: Any

    def _setup_transport(self) -> None:
        super()._setup_transport()  # type: ignore[misc]
        self._bytes = b""
        self._at = 0

    def fill(self) -> None:
        """Take in what has arrived; waits for the socket's timeout when nothing has.

        Raises:
            TimeoutError: nothing came. Nothing is lost by that.
            OSError: the connection is gone.
        """
        try:
            data = self.sock.recv(RECV_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            # SO_RCVTIMEO, by which py-amqp bounds reads, shows as EAGAIN.
            raise TimeoutError("nothing came") from None
        if not data:
            raise ConnectionResetError("RabbitMQ closed the connection")
        self._bytes = self._bytes[self._at :] + data if self._at < len(self._bytes) else data
        self._at = 0

    def more(self) -> bool:
        """TLS: there is more to read that the socket does not show as readable."""
        return isinstance(self.sock, ssl.SSLSocket) and self.sock.pending() > 0

    def take_frame(self) -> Frame | None:
        """The next whole frame that has arrived."""
        data, at = self._bytes, self._at
        if len(data) - at < 8:
            return None
        kind, channel, size = _start(data, at)
        at += 7
        end = at + size
        if len(data) <= end:
            if size > _FRAME_BYTES_MAX:
                raise UnexpectedFrame(f"a frame of {size} bytes")
            return None
        if data[end] != 0xCE:
            raise UnexpectedFrame(f"a frame ends with {data[end]:#04x} and not 0xce")
        self._at = end + 1
        return kind, channel, data[at:end]

    def read_frame(self, unpack: object = None) -> Frame:
        """What py-amqp calls: wait for one frame."""
        while (frame := self.take_frame()) is None:
            self.fill()
        return frame


class TcpTransport(_Buffered, amqp.transport.TCPTransport):  # type: ignore[misc]
    """Plain TCP."""


class TlsTransport(_Buffered, amqp.transport.SSLTransport):  # type: ignore[misc]
    """TLS, with the `ssl.SSLContext` that we made: py-amqp's own does not check host names
    unless told in a way that differs by version."""

    def _wrap_socket(
        self, sock: Any, context: ssl.SSLContext | None = None, server_hostname: str = ""
    ) -> Any:
        assert context is not None, "establish() always passes one"
        return context.wrap_socket(
            sock, server_hostname=server_hostname, do_handshake_on_connect=False
        )


class RawContent:
    """The content of a ``basic.get-ok``: the payload of its header frame, and its body."""

    __slots__ = ("body", "channel", "delivery_info", "header")

    def __init__(self, header: bytes, body: bytes) -> None:
        self.header = header
        self.body = body
        self.channel: Any = None
        self.delivery_info: dict[str, Any] = {}


def read_frames(connection: Connection, callback: Callable[..., None]) -> Callable[[Frame], bool]:
    """py-amqp's frame handler, for contents that stay undecoded.

    Returns:
        A function that takes one frame, and tells whether py-amqp has handled a method.
    """
    partial: dict[int, tuple[bytes, bytes, int, list[bytes]]] = {}

    def finish(channel: int, method: bytes, header: bytes, body: bytes) -> bool:
        if method.startswith(BASIC_DELIVER):
            connection.on_delivery(channel, method, header, body)
            return False
        callback(channel, _signature(method, 0), method, RawContent(header, body))
        return True

    def on_frame(frame: Frame) -> bool:
        kind, channel, payload = frame
        # It is the sign of life that heartbeats look at.
        connection.bytes_recv += 1
        if kind == METHOD:
            signature = _signature(payload, 0)
            if signature in _WITH_CONTENT:
                partial[channel] = (payload, b"", 0, [])
                return False
            callback(channel, signature, payload, None)
            return True
        if kind == HEADER:
            method = partial[channel][0]
            size = body_size(payload)
            if not size:
                del partial[channel]
                return finish(channel, method, payload, b"")
            partial[channel] = (method, payload, size, [])
            return False
        if kind == BODY:
            method, header, size, chunks = partial[channel]
            if len(payload) == size:
                del partial[channel]
                return finish(channel, method, header, payload)
            chunks.append(payload)
            if sum(map(len, chunks)) < size:
                return False
            del partial[channel]
            return finish(channel, method, header, b"".join(chunks))
        if kind != HEARTBEAT:
            raise UnexpectedFrame(f"a frame of the unknown type {kind}")
        return False

    return on_frame


_WITH_CONTENT = {spec.Basic.Deliver, spec.Basic.Return, spec.Basic.GetOk}


class Channel(kombu.transport.pyamqp.Channel):
    """A channel that ends quietly."""

    ended_by: Exception | None = None
    on_ended: Callable[[Exception], None] | None = None
    on_cancel_ok: Callable[[], None] | None = None
    is_cancelled = False
    is_closing: bool

    def _on_close(self, reply_code: int, reply_text: str, class_id: int, method_id: int) -> None:
        # py-amqp would open the channel again and raise here, which is in the middle of
        # whatever call is reading just now, perhaps of another channel.
        self.send_method(spec.Channel.CloseOk)
        error = error_for_code(
            reply_code, reply_text, (class_id, method_id), amqp.exceptions.ChannelError
        )
        self.ended_by = error
        on_ended = self.on_ended
        self.collect()
        if on_ended is not None:
            on_ended(error)

    def _on_basic_cancel_ok(self, consumer_tag: str) -> None:
        super()._on_basic_cancel_ok(consumer_tag)
        if not self.is_cancelled:
            # RabbitMQ's channel gets this answer from the queue out of turn: deliveries that the
            # queue had sent before may still be in its mailbox. They come before the answer to
            # anything that is asked from now on, so ask once more.
            self.is_cancelled = True
            self.cancel_nowait(consumer_tag)
        elif self.on_cancel_ok is not None:
            self.on_cancel_ok()

    def cancel_nowait(self, consumer_tag: str) -> None:
        """Cancel, and be told by ``on_cancel_ok`` when the last delivery has come."""
        self.send_method(spec.Basic.Cancel, "sb", (consumer_tag, False))

    def close_nowait(self) -> None:
        """Close without waiting for the answer; its number is free when that has come."""
        if self.connection is not None and self.is_open and not self.is_closing:
            self.is_closing = True
            self.send_method(spec.Channel.Close, "BsBB", (0, "", 0, 0))


class Connection(kombu.transport.pyamqp.Connection):
    """A connection whose waiting calls run the reader's loop, so that traffic goes on."""

    Channel = Channel

    on_delivery: Callable[[int, bytes, bytes, bytes], None]
    pump: Callable[[], None] | None = None

    def Transport(
        self, host: str, connect_timeout: float, ssl: Any = False, *args: Any, **kwargs: Any
    ) -> Any:
        read_timeout, write_timeout = args
        kind = TlsTransport if ssl else TcpTransport
        return kind(
            host,
            connect_timeout=connect_timeout,
            ssl=ssl,
            read_timeout=read_timeout,
            write_timeout=write_timeout,
            **kwargs,
        )

    def connect(self, callback: Any = None) -> Any:
        try:
            return super().connect(callback)
        except BaseException:  # py-amqp lets go of the socket in some cases only
            self.collect()
            raise

    def drain_events(self, timeout: float | None = None) -> None:
        if self.pump is None:  # the handshake
            super().drain_events(timeout)
        else:
            self.pump()

    def on_inbound_method(
        self, channel_id: int, method_sig: Any, payload: bytes, content: Any
    ) -> None:
        # A channel that we have given up may still be talked to.
        if self.channels is None or channel_id in self.channels:
            super().on_inbound_method(channel_id, method_sig, payload, content)

    @property
    def transport(self) -> Any:
        # py-amqp's would quietly connect again.
        if self._transport is None:
            raise amqp.exceptions.RecoverableConnectionError("connection already closed")
        return self._transport

    @transport.setter
    def transport(self, transport: Any) -> None:
        self._transport = transport

    def write_raw(self, data: bytes) -> None:
        """Write whole frames that were encoded elsewhere."""
        self.transport.write(data)
        # It is what heartbeats count.
        self.bytes_sent += 1


class Transport(kombu.transport.pyamqp.Transport):
    """The transport to give to `kombu.Connection`."""

    Connection = Connection


def establish(
    address: Address,
    context: ssl.SSLContext | None,
    *,
    connect_s: float,
    heartbeat_s: float,
    properties: dict[str, Any],
) -> Connection:
    """Connect through Kombu; returns the connection of py-amqp inside.

    Raises:
        amqp.exceptions.AMQPError, OSError: it could not be.
    """
    settings = {}
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # py-amqp's default ends a connection when one packet is not acknowledged for a second.
        settings[socket.TCP_USER_TIMEOUT] = int(2000 * heartbeat_s)
    outer = kombu.connection.Connection(
        hostname=address.host,
        port=address.port,
        userid=address.user,
        password=address.password,
        virtual_host=address.vhost,
        transport=Transport,
        connect_timeout=connect_s,
        heartbeat=heartbeat_s,
        login_method="PLAIN",
        ssl={"context": context, "server_hostname": address.tls.server_name}
        if address.tls
        else False,
        transport_options={
            "client_properties": properties,
            "frame_handler": read_frames,
            "read_timeout": connect_s,
            "write_timeout": heartbeat_s,
            "socket_settings": settings,
        },
    )
    # Not outer.connect(), which tries again by itself and sleeps between.
    inner: Connection = outer.transport.establish_connection()
    if address.tls:
        inner.transport.sock.settimeout(heartbeat_s)
    return inner
