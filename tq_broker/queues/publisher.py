"""The publisher: one connection that only publishes, in a thread of its own.

A pika ``SelectConnection`` runs in the daemon thread ``tq-publisher``, which the first publish
starts. While something is under way other threads only append to ``_inbox`` and wake the thread, at
most once per batch; when nothing is, one publish is written where it is made, in the thread's place
(see `loop`). The rules of confirms are in `confirms`; this module moves bytes.

Rules of this file:

* methods whose names start with an underscore run on the thread, except where they say not;
* an exception in a callback would end pika's loop and strand every publish, so `_run` restarts
  from nothing, and what was on its way is sent again;
* what is not pika's public face is in the functions at the end, with the reason.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import math
import ssl
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pika
import pika.exceptions

from tq_broker.clock import Clock, remaining
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.message import Publication
from tq_broker.queues.address import Address
from tq_broker.queues.backoff import backoff_s
from tq_broker.queues.broker import (
    IndexedReceiptCallback,
    Receipt,
    ReceiptCallback,
    Verdict,
)
from tq_broker.queues.confirms import (
    Confirms,
    Outgoing,
    blame,
    headers_of_copy,
)
from tq_broker.queues.frames import ACK_BYTES, PublishEncoder, decode_ack
from tq_broker.queues.handshake import client_properties, tls_context
from tq_broker.queues.loop import Interrupted, Loop

log = logging.getLogger(__name__)

WINDOW = 1000
"""Unanswered publishes on the channel. More than a thousand buys no speed and makes a resend
after a broken connection longer."""
WINDOW_BYTES = 16 << 20
STALE_MAX = 4 * WINDOW
"""Late publishes without an answer before the channel is replaced, to bound memory."""
BATCH = 64
"""Publishes encoded before the first byte is written: small, so that RabbitMQ works meanwhile."""
CONNECT_S = 5.0
HANDSHAKE_S = 10.0
EXPIRY_SCAN_S = 0.02
STALL_S = 10.0
"""Silence on a channel with unanswered publishes after which a new one is tried. What a channel
has sent to a quorum queue that had no leader then can stay without an answer for ever, while a
new channel is served at once. Doubles with every try that helps nothing."""
STALL_MAX_S = 60.0
_LONE = -1
"""The index of a publish that is not part of many: its callback takes no index."""

_CLOSED = "the broker object was closed before an answer came"
_PROTOCOL_ERRORS = {501, 502, 503, 505}
"""Codes with which RabbitMQ closes the whole connection because of what one frame said."""
_REFUSALS = (403, 530)
_PROBABLE = (
    pika.exceptions.ProbableAuthenticationError,
    pika.exceptions.ProbableAccessDeniedError,
)


class Publisher:
    """Publishes to one broker, for ever: connects at the first publish, reconnects by itself.

    Every method may be called from any thread.
    """

    def __init__(
        self, addresses: Sequence[Address], clock: Clock, *, heartbeat_s: float, name: str
    ) -> None:
        self._addresses = itertools.cycle(addresses)
        self._address = next(self._addresses)
        self._clock = clock
        self._heartbeat_s = max(1, round(heartbeat_s))
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self._ended = False
        self._leaving = False
        self._close_deadline = math.inf
        self._inbox: deque[Outgoing] = deque()
        self._woken = False
        # What follows belongs to the thread.
        self._loop: Any = None
        self._connection: Any = None
        self._channel: Any = None
        self._encoder: PublishEncoder | None = None
        self._confirms = Confirms()
        self._waiting: deque[Outgoing] = deque()
        self._blocked = ""
        self._problem = "not connected yet"
        self._was_open = False
        self._opened = 0
        self._attempt = 0
        self._one_by_one = 0
        self._pumping = False
        self._earliest = math.inf
        self._booked = math.inf
        self._watching = False
        self._heard_at = 0.0
        self._patience_s = STALL_S

    # --- from any thread ---

    def publish(self, publication: Publication, deadline: float, done: ReceiptCallback) -> None:
        """See `tq_broker.queues.broker.Broker.publish`."""
        outgoing = Outgoing(publication, deadline, done, _LONE)
        write = functools.partial(self._write_alone, outgoing)
        if not (self._is_idle() and self._loop.lend(write)):
            self._accept((outgoing,))

    def publish_many(
        self, publications: Sequence[Publication], deadline: float, done: IndexedReceiptCallback
    ) -> None:
        """See `tq_broker.queues.broker.Broker.publish_many`."""
        self._accept(
            [
                Outgoing(publication, deadline, done, index)
                for index, publication in enumerate(publications)
            ]
        )

    def _accept(self, outgoings: Iterable[Outgoing]) -> None:
        if self._closing:
            for outgoing in outgoings:
                _end(outgoing, Receipt(Verdict.REFUSED, "the broker object is closed"))
            return
        self._inbox.extend(outgoings)
        # Set after the append and cleared before the read, so that none is overlooked.
        if not self._woken:
            self._woken = True
            self._wake()

    def _is_idle(self) -> bool:
        """Whether a publish may be written alone; from any thread, then it is a guess.

        While one is unanswered, others wait for the thread, which writes many in one go: the rule
        of Nagle, for the same reason.
        """
        return not (
            self._encoder is None
            or len(self._confirms)
            or self._waiting
            or self._inbox
            or self._blocked
            or self._closing
        )

    def _write_alone(self, outgoing: Outgoing) -> bool:
        """On any thread that has the loop: write ``outgoing``, if nothing speaks against it. What
        does is told on the thread."""
        if not self._is_idle() or outgoing.deadline <= self._clock.monotonic():
            return False
        try:
            frames = self._encode(outgoing)
        except InvalidArgument:
            return False
        self._send([frames])
        if outgoing.deadline < self._earliest:
            self._earliest = outgoing.deadline
            self._book_expiry()
        return True

    def _wake(self) -> None:
        """From any thread."""
        reason = _CLOSED
        with self._lock:
            if not self._ended:
                try:
                    self._start()
                except (OSError, RuntimeError) as error:  # ``ulimit -n``, ``pids.max``
                    reason = f"nothing to publish with: {explain(error)}"
                else:
                    self._loop.add_callback(self._take)
                    return
            self._woken = False
            stranded = list(_drained(self._inbox))
        for outgoing in stranded:
            _end(outgoing, Receipt(Verdict.EXPIRED, reason))

    def _start(self) -> None:
        """From any thread that has the lock: see that the thread runs.

        Raises:
            OSError: the system has no more descriptors.
            RuntimeError: the system has no more threads.
        """
        if self._thread is not None:
            return
        self._loop = Loop(self._clock)
        self._thread = threading.Thread(target=self._run, name="tq-publisher", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            self._loop = self._thread = None
            raise

    def close(self, deadline: float) -> None:
        """Wait for what is on its way, and close. What is not answered by then is EXPIRED."""
        with self._lock:
            self._closing = True
            self._close_deadline = deadline
            thread = self._thread
            if thread is not None and not self._ended:
                self._loop.add_callback(self._begin_close)
        if thread is not None and thread is not threading.current_thread():
            # The loop ends by the deadline; the margin is for its last callbacks.
            thread.join(remaining(self._clock, deadline) + 1.0)

    def abandon(self) -> None:
        """In the child of a fork: let go of the parent's socket without a word on it."""
        if self._connection is not None:
            _drop_socket(self._connection)

    # --- the thread ---

    def _run(self) -> None:
        _hush(threading.current_thread())
        self._connect()
        while True:
            try:
                self._loop.start()
                break
            except Interrupted as error:
                log.warning("publisher: %s; starting anew", error)
                self._start_anew()
            except Exception:
                if self._leaving:
                    # pika 1.4 trips over its own close() of a connection that is not open yet.
                    log.debug("publisher: closing", exc_info=True)
                    break
                log.exception("publisher: internal error; starting anew (please report this)")
                self._start_anew()
        with self._lock:
            self._ended = True
        self._end_all(_CLOSED)
        if self._connection is not None:
            _drop_socket(self._connection)  # Open still if RabbitMQ did not answer our goodbye.
        self._loop.close()

    def _start_anew(self) -> None:
        if self._connection is not None:
            _drop_socket(self._connection)
        loop = self._new_loop()
        with self._lock:  # Nobody may wake the old one any more.
            with contextlib.suppress(Exception):  # whatever state the error has left it in
                self._loop.close()
            self._loop = loop
            if self._closing:  # which the old one may have been told
                loop.add_callback(self._begin_close)
        self._booked = math.inf
        self._pumping = self._watching = False
        self._resend_all()
        self._connection = self._channel = self._encoder = None
        self._retry_connect()
        self._woken = True
        self._loop.add_callback(self._take)

    def _new_loop(self) -> Loop:
        """A loop, as soon as the system has descriptors for it."""
        for attempt in itertools.count():
            try:
                return Loop(self._clock)
            except OSError as error:
                log.warning("publisher: %s; trying again", explain(error))
                self._clock.sleep(backoff_s(attempt))
        raise AssertionError("it is tried for ever")

    def _connect(self) -> None:
        if self._closing and not self._pending():
            self._loop.stop()
            return
        log.debug("publisher: connecting to %s", self._address)
        try:
            self._connection = _Connection(
                _parameters(self._address, self._heartbeat_s, self._name),
                on_open_callback=self._on_open,
                on_open_error_callback=self._on_open_error,
                on_close_callback=self._on_closed,
                custom_ioloop=self._loop,
            )
        except (OSError, ssl.SSLError, ValueError) as error:  # an unreadable certificate, say
            self._connection = None
            self._disconnected(error)

    def _on_open(self, connection: Any) -> None:
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._open_channel()

    def _open_channel(self) -> None:
        self._connection.channel(on_open_callback=self._on_channel_open)
        self._opened += 1
        self._loop.call_later(HANDSHAKE_S, functools.partial(self._check_ready, self._opened))

    def _check_ready(self, opened: int) -> None:
        if opened == self._opened and self._encoder is None and self._connection.is_open:
            _abort(self._connection, "RabbitMQ opened no channel in time")

    def _on_channel_open(self, channel: Any) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_returned)
        on_answer = functools.partial(self._on_answer, channel)
        channel.confirm_delivery(on_answer, callback=self._on_ready)

    def _on_ready(self, _frame: Any) -> None:
        if not self._was_open:
            log.info("publisher: connected to %s", self._address)
        elif self._attempt:
            log.info("publisher: connected again to %s", self._address)
        self._was_open = True
        self._attempt = 0
        self._problem = ""
        self._confirms = Confirms()
        self._connection.hear_acks(self._channel, self._on_ack)
        self._encoder = PublishEncoder(
            self._channel.channel_number, self._connection.params.frame_max
        )
        self._pump()

    def _on_open_error(self, connection: Any, error: BaseException) -> None:
        if connection is not self._connection:
            return
        if self._closing and not self._pending():
            self._loop.stop()
            return
        self._disconnected(error)

    def _on_closed(self, connection: Any, error: BaseException) -> None:
        if connection is not self._connection:
            return
        if self._closing and not self._pending():
            self._loop.stop()
            return
        code = getattr(error, "reply_code", None)
        if code in _PROTOCOL_ERRORS and len(self._confirms):
            self._judge(code, str(getattr(error, "reply_text", "")))
        self._disconnected(error)

    def _disconnected(self, error: BaseException) -> None:
        hint = "; check the user, the password and the vhost" if is_refusal(error) else ""
        problem = f"no connection to {self._address}: {explain(cause_of(error))}{hint}"
        if problem != self._problem or not self._attempt:
            log.warning("publisher: %s; trying again", problem)
        self._problem = problem
        self._blocked = ""
        self._resend_all()
        self._channel = self._encoder = None
        if not self._was_open and is_refusal(error):
            # Never connected and refused: a wrong login or vhost, which waiting does not heal.
            # After a first success it may be a password that is being changed: keep trying.
            receipt = Receipt(Verdict.REFUSED, problem)
            while self._waiting:
                _end(self._waiting.popleft(), receipt)
        self._address = next(self._addresses)
        self._retry_connect()

    def _retry_connect(self) -> None:
        self._loop.call_later(backoff_s(self._attempt), self._connect)
        self._attempt += 1

    def _resend_all(self) -> None:
        self._waiting.extendleft(reversed(self._confirms.lost()))

    def _on_blocked(self, _connection: Any, frame: Any) -> None:
        self._blocked = str(frame.method.reason)
        log.warning("publisher: RabbitMQ blocks publishers: %s", self._blocked)

    def _on_unblocked(self, _connection: Any, _frame: Any) -> None:
        self._blocked = ""
        log.info("publisher: RabbitMQ takes publishes again")
        self._pump()

    def _on_channel_closed(self, channel: Any, error: BaseException) -> None:
        if channel is not self._channel:
            return
        self._channel = self._encoder = None
        if not isinstance(error, pika.exceptions.ChannelClosed):
            return  # The connection is going; its own callback follows.
        if isinstance(error, pika.exceptions.ChannelClosedByBroker):
            self._judge(error.reply_code, error.reply_text)
        self._resend_all()
        if self._connection.is_open:
            self._open_channel()

    def _judge(self, code: int, text: str) -> None:
        found = blame(code, text, self._confirms)
        guilty = {id(outgoing) for outgoing in found.guilty}
        others = [out for out in self._confirms.lost() if id(out) not in guilty]
        self._waiting.extendleft(reversed(others))
        if found.doubt:
            self._one_by_one = len(others)
        else:
            self._one_by_one = max(0, self._one_by_one - len(found.guilty))
        for outgoing in found.guilty:
            _end(outgoing, found.receipt)

    # --- sending ---

    def _take(self) -> None:
        self._woken = False
        inbox, waiting = self._inbox, self._waiting
        earliest = self._earliest
        now = self._clock.monotonic()
        for _ in range(len(inbox)):
            outgoing = inbox.popleft()
            if outgoing.deadline <= now:
                _end(outgoing, Receipt(Verdict.EXPIRED, "its deadline was over before it was sent"))
                continue
            if outgoing.deadline < earliest:
                earliest = outgoing.deadline
            waiting.append(outgoing)
        self._earliest = earliest
        self._book_expiry()
        self._pump()

    def _pump(self) -> None:
        """Write what the window takes, a batch at a time so that answers are read between."""
        self._pumping = False
        waiting, confirms = self._waiting, self._confirms
        if self._encoder is None or self._blocked or not waiting:
            return
        window = 1 if self._one_by_one else WINDOW
        frames = []
        for _ in range(min(window - len(confirms), BATCH)):
            if not waiting or confirms.live_bytes >= WINDOW_BYTES:
                break
            outgoing = waiting.popleft()
            try:
                frames.append(self._encode(outgoing))
            except InvalidArgument as error:
                self._one_by_one = max(0, self._one_by_one - 1)
                _end(outgoing, Receipt(Verdict.REFUSED, str(error)))
        if frames:
            self._send(frames)
        if waiting and len(confirms) < window and confirms.live_bytes < WINDOW_BYTES:
            self._pump_later()

    def _encode(self, outgoing: Outgoing) -> bytes:
        """The frames of ``outgoing``, which counts as sent now. Raises `InvalidArgument`."""
        publication = outgoing.publication
        extra = headers_of_copy(outgoing.sends) if outgoing.sends else {}
        assert self._encoder is not None, "there is a channel"
        frames = self._encoder.encode(
            publication.exchange, publication.routing_key, publication.message, extra
        )
        self._confirms.sent(outgoing)
        outgoing.sends += 1
        return frames

    def _send(self, frames: Sequence[bytes]) -> None:
        _write(self._connection, frames)
        if not self._watching:
            self._heard_at = self._clock.monotonic()
            self._watch()

    def _pump_later(self) -> None:
        if not self._pumping:
            self._pumping = True
            self._loop.add_callback(self._pump)

    def _on_answer(self, channel: Any, frame: Any) -> None:
        if channel is not self._channel:
            return  # Late, on a channel that was replaced: its tags are not those of ours.
        method = frame.method
        if isinstance(method, pika.spec.Basic.Ack):
            self._on_ack(method.delivery_tag, method.multiple)
        else:
            self._end_answered(self._confirms.nacked(method.delivery_tag, method.multiple))

    def _on_ack(self, tag: int, multiple: bool) -> None:
        self._end_answered(self._confirms.acked(tag, multiple))

    def _end_answered(self, ended: Sequence[tuple[Outgoing, Receipt]]) -> None:
        confirms = self._confirms
        self._heard_at = self._clock.monotonic()
        self._patience_s = STALL_S
        for outgoing, receipt in ended:
            _end(outgoing, receipt)
        if self._one_by_one:
            self._one_by_one = max(0, self._one_by_one - len(ended))
            self._pump()
        elif self._waiting and len(confirms) <= WINDOW - BATCH:
            # Not for each answer: a batch is written in one go.
            self._pump_later()
        elif self._closing and not self._pending():
            self._begin_close()

    def _on_returned(self, channel: Any, method: Any, properties: Any, _body: bytes) -> None:
        if channel is not self._channel:
            return
        self._confirms.returned(
            method.exchange,
            method.routing_key,
            properties.message_id or "",
            f"{method.reply_text} ({method.reply_code})",
        )

    # --- silence ---

    def _watch(self) -> None:
        """Once a second while publishes are unanswered: is anybody there?"""
        self._watching = len(self._confirms) > 0
        if not self._watching:
            return
        self._loop.call_later(1.0, self._watch)
        silence_s = self._clock.monotonic() - self._heard_at
        if self._channel is not None and not self._blocked and silence_s > self._patience_s:
            log.warning(
                "publisher: no confirm for %.0f s; trying a new channel (%d publishes)",
                silence_s,
                len(self._confirms),
            )
            self._patience_s = min(STALL_MAX_S, 2 * self._patience_s)
            self._replace_channel()

    def _replace_channel(self) -> None:
        old, self._channel, self._encoder = self._channel, None, None
        self._resend_all()
        old.close()
        # Its number stays taken until RabbitMQ has answered, if ever: this is another one.
        self._open_channel()

    # --- deadlines ---

    def _book_expiry(self) -> None:
        """Look at the clock when the earliest deadline is over, and not before."""
        if self._earliest >= self._booked:
            return
        self._booked = self._earliest
        wait_s = max(EXPIRY_SCAN_S, self._earliest - self._clock.monotonic())
        self._loop.call_later(wait_s, functools.partial(self._expire, self._booked))

    def _expire(self, booked: float) -> None:
        if booked != self._booked:
            return  # An earlier one was booked since.
        self._booked = math.inf
        now = self._clock.monotonic()
        late = self._confirms.expired(now)
        if any(outgoing.deadline <= now for outgoing in self._waiting):
            late += [outgoing for outgoing in self._waiting if outgoing.deadline <= now]
            self._waiting = deque(out for out in self._waiting if out.deadline > now)
        if late:
            receipt = Receipt(Verdict.EXPIRED, self._why_late())
            self._one_by_one = max(0, self._one_by_one - len(late))
            for outgoing in late:
                _end(outgoing, receipt)
        if self._confirms.stale > STALE_MAX and self._channel is not None:
            self._replace_channel()
        self._earliest = min(
            (
                outgoing.deadline
                for outgoing in itertools.chain(self._confirms.live(), self._waiting)
            ),
            default=math.inf,
        )
        self._book_expiry()
        self._pump()

    def _why_late(self) -> str:
        if self._blocked:
            return f"RabbitMQ blocks publishers (memory or disk alarm): {self._blocked}"
        if self._encoder is None:
            return self._problem or "no connection"
        return "no confirm from RabbitMQ before the deadline"

    # --- the end ---

    def _pending(self) -> bool:
        return bool(self._inbox or self._waiting or len(self._confirms))

    def _begin_close(self) -> None:
        if self._pending() and self._clock.monotonic() < self._close_deadline:
            wait_s = min(0.05, remaining(self._clock, self._close_deadline))
            self._loop.call_later(wait_s, self._begin_close)
            return
        self._end_all(_CLOSED)
        self._leaving = True
        connection = self._connection
        if connection is None or connection.is_closed:
            self._loop.stop()
        elif not connection.is_closing:
            # Also when it is not open yet: its socket is pika's until a callback says it is gone.
            connection.close()
            grace_s = min(1.0, remaining(self._clock, self._close_deadline))
            self._loop.call_later(grace_s, self._loop.stop)

    def _end_all(self, reason: str) -> None:
        receipt = Receipt(Verdict.EXPIRED, reason)
        for outgoing in itertools.chain(
            self._confirms.lost(), _drained(self._waiting), _drained(self._inbox)
        ):
            _end(outgoing, receipt)


def _drained(waiting: deque[Outgoing]) -> Iterator[Outgoing]:
    """All of ``waiting``, taken out of it."""
    while True:
        try:
            outgoing = waiting.popleft()
        except IndexError:  # Another thread may be doing the same.
            return
        yield outgoing


def _end(outgoing: Outgoing, receipt: Receipt) -> None:
    try:
        if outgoing.index == _LONE:
            outgoing.done(receipt)
        else:
            outgoing.done(outgoing.index, receipt)
    except Exception:
        # The contract forbids it; one caller's bug must not cost the others their answers.
        log.exception("publisher: the callback of a publish raised")


def is_refusal(error: BaseException) -> bool:
    """The broker knows who we are and says no: login (403) or vhost (530)."""
    code = getattr(error, "reply_code", None)
    if code is None and isinstance(error, _PROBABLE):
        # pika guesses from the moment when the connection ended; so it does when a broker that is
        # going down cuts us off. What that was stands in the text: RabbitMQ says why it refuses.
        return any(f"({refusal})" in str(error) for refusal in _REFUSALS)
    return code in _REFUSALS or isinstance(error, pika.exceptions.AuthenticationError)


def cause_of(error: BaseException) -> BaseException:
    """What is behind ``error``: pika wraps the cause of a failed connect several times."""
    while True:
        inner = getattr(error, "exceptions", None) or (getattr(error, "exception", None),)
        if not isinstance(inner[-1], BaseException):
            first = error.args[0] if error.args else None
            inner = (first if isinstance(error, pika.exceptions.AMQPConnectionError) else None,)
        if not isinstance(inner[-1], BaseException):
            return error
        error = inner[-1]


def explain(error: BaseException) -> str:
    """``error`` in one line."""
    text = getattr(error, "reply_text", "") or str(error) or type(error).__name__
    return " ".join(str(text).split())


def _parameters(address: Address, heartbeat_s: int, name: str) -> Any:
    return pika.ConnectionParameters(
        host=address.host,
        port=address.port,
        virtual_host=address.vhost,
        credentials=pika.PlainCredentials(address.user, address.password),
        heartbeat=heartbeat_s,
        ssl_options=(
            pika.SSLOptions(tls_context(address.tls), address.tls.server_name)
            if address.tls
            else None
        ),
        connection_attempts=1,
        socket_timeout=CONNECT_S,
        stack_timeout=HANDSHAKE_S,
        client_properties=client_properties(name),
    )


# --- beside pika's public face ---


class _Connection(pika.SelectConnection):  # type: ignore[misc]
    """Reads the acks of one channel itself: they are nearly all that comes to a publisher.

    Private, because pika looks at each through five layers, which takes longer than everything
    else that an answer costs.
    """

    _acked: Any = None
    _on_ack: Callable[[int, bool], None]

    def hear_acks(self, channel: Any, on_ack: Callable[[int, bool], None]) -> None:
        """From now on call ``on_ack`` with the tag and the multiple bit of what is acked there."""
        self._acked, self._on_ack = channel, on_ack

    def _on_data_available(self, data_in: bytes) -> None:
        at = 0
        # After the first part of a frame comes the second. A channel that closes is pika's.
        while not self._frame_buffer and self._acked is not None and self._acked.is_open:
            ack = decode_ack(data_in, at, self._acked.channel_number)
            if ack is None:
                break
            at += ACK_BYTES
            self.frames_received += 1
            self.bytes_received += ACK_BYTES  # by which pika knows that the broker lives
            self._on_ack(*ack)
        if at < len(data_in):
            super()._on_data_available(data_in[at:])


def _write(connection: Any, frames: Sequence[bytes]) -> None:
    """Send encoded frames; what the socket does not take now pika sends when it does.

    Private, because ``Channel.basic_publish`` builds, marshals and counts three objects per
    message, which costs several times what `PublishEncoder` does, and because pika's transport
    sends nothing before the loop has found the socket writable, which it nearly always is. It keeps
    pika's counters.
    """
    data = b"".join(frames)
    transport = connection._transport
    if not transport.get_write_buffer_size():
        # What is wrong with the socket pika finds out, too, and sees to it on its thread.
        with contextlib.suppress(OSError):
            sent = transport._sock.send(data)
            connection.bytes_sent += sent
            connection.frames_sent += 1
            data = data[sent:]
    if data:
        connection._output_marshaled_frames((data,))


def _abort(connection: Any, reason: str) -> None:
    """End a connection at once; its callbacks tell the rest.

    Private, because ``Connection.close`` waits for the broker, which does not answer.
    """
    connection._terminate_stream(pika.exceptions.AMQPConnectionError(reason))


def _drop_socket(connection: Any) -> None:
    """Close our copy of the connection's socket without saying goodbye on it.

    Private, because every public way to close speaks to the broker first. Neither the loop nor
    its poller is told: after a fork an epoll is shared with the parent.
    """
    sock = getattr(getattr(connection, "_transport", None), "_sock", None)
    if sock is not None:
        sock.close()


_HUSHED: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def _is_loud(_record: logging.LogRecord) -> bool:
    return threading.current_thread() not in _HUSHED


def _hush(thread: threading.Thread) -> None:
    """Drop what pika logs on our thread: tracebacks for every refused connect, which we report
    in one line. Other users of pika in this process keep their logs."""
    _HUSHED.add(thread)
    for name in list(logging.root.manager.loggerDict):
        if name.split(".")[0] == "pika":
            logging.getLogger(name).addFilter(_is_loud)  # once, however often it is said
