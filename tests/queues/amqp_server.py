"""A broker of a few lines: answers what it is asked, remembers it, and misbehaves on demand.

It speaks through pika's codec, so our frames are read by somebody else's code.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pika.frame
from pika import spec

PATIENCE_S = 20.0
Rule = Callable[["Session", int, Any], bool]


class Session:
    """One connection of a client."""

    def __init__(self, server: AmqpServer, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.published: dict[int, int] = {}
        self._pending: dict[int, list[Any]] = {}

    def send(self, channel: int, method: Any) -> None:
        self.sock.sendall(pika.frame.Method(channel, method).marshal())

    def send_content(self, channel: int, method: Any, body: bytes, **properties: Any) -> None:
        frames = [
            pika.frame.Method(channel, method),
            pika.frame.Header(channel, len(body), pika.BasicProperties(**properties)),
            *([pika.frame.Body(channel, body)] if body else []),
        ]
        self.sock.sendall(b"".join(each.marshal() for each in frames))

    def deliver(self, channel: int, tag: int, body: bytes = b"x") -> None:
        method = spec.Basic.Deliver("tq-1", tag, False, "e", "key")
        self.send_content(channel, method, body, message_id=f"m{tag}")

    def close_channel(self, channel: int, code: int, text: str) -> None:
        self.send(channel, spec.Channel.Close(code, text, 0, 0))

    def run(self) -> None:
        data = b""
        with contextlib.suppress(OSError):
            while chunk := self.sock.recv(65536):
                data += chunk
                if data.startswith(b"AMQP"):
                    data = data[8:]
                    properties = {
                        "product": "RabbitMQ",
                        "version": "3.10.8",
                        "capabilities": {
                            "consumer_cancel_notify": True,
                            "publisher_confirms": True,
                            "basic.nack": True,
                            "connection.blocked": True,
                        },
                    }
                    self.send(0, spec.Connection.Start(0, 9, properties, b"PLAIN", b"en_US"))
                while data:
                    used, frame = pika.frame.decode_frame(data)
                    if frame is None:
                        break
                    data = data[used:]
                    self._take(frame)
        self.sock.close()

    def _take(self, frame: Any) -> None:
        channel = frame.channel_number
        if isinstance(frame, pika.frame.Method):
            if isinstance(frame.method, spec.Basic.Publish):
                self._pending[channel] = [frame.method]
            else:
                self._handle(channel, frame.method)
        elif isinstance(frame, pika.frame.Header):
            self._pending[channel] += [frame.properties, frame.body_size, b""]
        elif isinstance(frame, pika.frame.Body):
            self._pending[channel][3] += frame.fragment
        pending = self._pending.get(channel, [])
        if len(pending) == 4 and len(pending[3]) == pending[2]:
            method, properties, _, body = self._pending.pop(channel)
            method.properties, method.body = properties, body
            self.published[channel] = method.tag = self.published.get(channel, 0) + 1
            self._handle(channel, method)

    def _handle(self, channel: int, method: Any) -> None:
        server = self.server
        if isinstance(method, spec.Channel.Open):
            self.published[channel] = 0
        server.seen.put((self, channel, method))
        rule = server.rules.get(type(method))
        if rule is not None and rule(self, channel, method):
            return
        for answer in _answers(channel, method):
            self.send(channel, answer)


def _answers(_channel: int, method: Any) -> Iterator[Any]:
    if isinstance(method, spec.Connection.StartOk):
        yield spec.Connection.Tune(2047, 131072, 60)
    elif isinstance(method, spec.Basic.Publish):
        yield spec.Basic.Ack(method.tag)
    elif isinstance(method, spec.Queue.Declare):
        if not method.nowait:
            yield spec.Queue.DeclareOk(method.queue, 3, 1)
    elif isinstance(method, spec.Queue.Delete):
        if not method.nowait:
            yield spec.Queue.DeleteOk(0)
    elif isinstance(method, spec.Queue.Purge):
        yield spec.Queue.PurgeOk(5)
    elif isinstance(method, spec.Basic.Consume):
        yield spec.Basic.ConsumeOk(method.consumer_tag)
    elif isinstance(method, spec.Basic.Cancel):
        yield spec.Basic.CancelOk(method.consumer_tag)
    elif isinstance(method, spec.Basic.Get):
        yield spec.Basic.GetEmpty()
    elif not getattr(method, "nowait", False):
        answer = _PLAIN.get(type(method))
        if answer is not None:
            yield answer()


_PLAIN: dict[type, Callable[[], Any]] = {
    spec.Connection.Open: spec.Connection.OpenOk,
    spec.Connection.Close: spec.Connection.CloseOk,
    spec.Channel.Open: spec.Channel.OpenOk,
    spec.Channel.Close: spec.Channel.CloseOk,
    spec.Confirm.Select: spec.Confirm.SelectOk,
    spec.Exchange.Declare: spec.Exchange.DeclareOk,
    spec.Exchange.Bind: spec.Exchange.BindOk,
    spec.Queue.Bind: spec.Queue.BindOk,
    spec.Queue.Unbind: spec.Queue.UnbindOk,
    spec.Basic.Qos: spec.Basic.QosOk,
}


class AmqpServer:
    """Listens until closed.

    Attributes:
        seen: all methods that clients have sent, as (session, channel, method).
        rules: instead of the usual answer; a rule that returns False leaves it to that.
    """

    def __init__(self) -> None:
        self.seen: queue.SimpleQueue[tuple[Session, int, Any]] = queue.SimpleQueue()
        self.rules: dict[type, Rule] = {}
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"amqp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._sessions: list[Session] = []
        self._threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                self._sessions.append(Session(self, sock))
                self._threads.append(threading.Thread(target=self._sessions[-1].run, daemon=True))
                self._threads[-1].start()

    def wait_for(self, kind: type) -> tuple[Session, int, Any]:
        """The next method of that kind; those before it are forgotten."""
        while True:
            session, channel, method = self.seen.get(timeout=PATIENCE_S)
            if isinstance(method, kind):
                return session, channel, method

    def cut(self) -> None:
        """Break all connections."""
        for session in self._sessions:
            with contextlib.suppress(OSError):
                session.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for session in self._sessions:
            session.sock.close()
