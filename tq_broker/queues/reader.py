"""The reader: one connection that consumes, declares and asks, in a thread of its own.

The daemon thread ``tq-consumer`` owns a Kombu connection. It waits for the socket and for other
threads at once, cuts all that has arrived into deliveries, hands them over in lists, and writes
all acknowledgements of a turn at once. Calls of other threads are *commands* that run on it;
while one waits for RabbitMQ, the traffic goes on, because py-amqp waits by running our turn.

Rules of this file:

* methods whose names start with an underscore run on the thread;
* one channel per subscription, so that what goes wrong with one does not touch another; one for
  administration, where a refused declare may close it; one for ``get``.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import amqp.exceptions

from tq_broker.clock import Clock, remaining
from tq_broker.exceptions import (
    AccessRefused,
    BrokerUnavailable,
    Bug,
    DeadlineExceeded,
    TqBrokerError,
    Unavailable,
)
from tq_broker.queues.acks import PENDING_MAX
from tq_broker.queues.address import Address
from tq_broker.queues.backoff import backoff_s
from tq_broker.queues.commands import Command, CommandQueue
from tq_broker.queues.errors import RpcTimeout, is_fatal, translate
from tq_broker.queues.feeds import AmqpDelivery, Feed, GotDelivery
from tq_broker.queues.frames import decode_deliver
from tq_broker.queues.handshake import client_properties, tls_context
from tq_broker.queues.kombu_transport import Channel, Connection, establish
from tq_broker.queues.subscriber import Subscriber
from tq_broker.queues.topology import Plan

log = logging.getLogger(__name__)

CONNECT_S = 5.0
TURN_MAX = 256
"""Deliveries per turn: enough to make a turn's fixed cost small, few enough that commands, acks
and heartbeats wait some milliseconds at most."""
POST_S = 10.0
"""How long a command that nobody waits for may take."""
CERTAIN_S = 0.3
"""How long a connection is kept after the last of many acks, lest they be lost."""
STABLE_S = 5.0
"""A connection that lived this long was a good one: its end is not one more failure."""

T = TypeVar("T")


class Reader:
    """Consumes and administers on one connection, for ever: connects at the first need and
    reconnects by itself.

    Args:
        take_plan: Takes the steps of a plan once, on the thread, until a deadline.
    """

    def __init__(
        self,
        addresses: Sequence[Address],
        clock: Clock,
        take_plan: Callable[[Reader, Plan, float], None],
        *,
        heartbeat_s: float,
        name: str,
    ) -> None:
        self._take_plan = take_plan
        self.subscriber = Subscriber(self, clock)
        self._addresses = itertools.cycle(addresses)
        self._address = next(self._addresses)
        self._clock = clock
        self._heartbeat_s = heartbeat_s
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._ident = 0
        self.closing = False
        self._ended = False
        self._close_deadline = 0.0
        self._commands = CommandQueue()
        self._touched: deque[Feed] = deque()
        self._woken = False
        self._waker: tuple[socket.socket, socket.socket] | None = None
        # What follows belongs to the thread.
        self._selector: Any = None
        self._watched: Any = None
        self._connection: Connection | None = None
        self._admin: Channel | None = None
        self._gets: Feed | None = None
        self._feeds: dict[int, Feed] = {}
        self._ready: list[Feed] = []
        self._taken = 0
        self._rpc_deadline = 0.0
        self._next_beat = 0.0
        self._attempt = 0
        self._connected_at = math.inf
        self._problem: TqBrokerError | None = None
        self.epoch = 0
        """Grows with every connection."""
        self.held_locks: set[str] = set()
        self.warned: set[str] = set()
        """Names that a warning about other arguments was given for."""

    # --- from any thread ---

    def call(
        self,
        run: Callable[[float], T],
        deadline: float,
        *,
        discard: Callable[[T], None] | None = None,
        offline: bool = False,
    ) -> T:
        """Run ``run(deadline)`` on the thread and return its result.

        It runs again when the connection breaks under it, so it must be idempotent.

        Args:
            discard: Takes, on the thread, a result that came after the caller has gone.
            offline: It needs no connection.

        Raises:
            BrokerUnavailable: no connection before the deadline, or not even a thread for it.
            DeadlineExceeded: no answer before the deadline.
            AccessRefused: RabbitMQ refuses the login or the vhost.
        """
        if threading.get_ident() == self._ident:
            raise Bug("a callback of the broker made a call that waits for the broker")
        command = Command(run, deadline, discard, offline=offline)
        self._put(command)
        if not command.wait(remaining(self._clock, deadline)):
            raise self.why_late()
        return command.result()

    def post(self, run: Callable[[float], None]) -> None:
        """Run ``run`` on the thread some time soon; nobody waits.

        Raises:
            BrokerUnavailable: the reader is closed, or cannot be started.
        """
        self._put(Command(run, self._clock.monotonic() + POST_S, offline=True))

    def _put(self, command: Command[Any]) -> None:  # from any thread
        if self.closing:
            raise BrokerUnavailable("the broker object is closed")
        if not self._ident:
            self._start()  # Before it is put: what cannot be done now must not be done later.
        self._commands.put(command)
        self.wake()
        if self._ended:
            raise BrokerUnavailable("the broker object is closed")

    def why_late(self) -> TqBrokerError:
        """Why there was no answer in time."""
        problem = self._problem
        if self._connection is not None:
            return DeadlineExceeded("no answer from RabbitMQ before the deadline")
        if problem is not None:
            return type(problem)(str(problem))
        return BrokerUnavailable(f"no connection to {self._address} before the deadline")

    def check_hope(self) -> None:
        """Return if waiting for a connection makes sense.

        Raises:
            AccessRefused: RabbitMQ refuses the login or the vhost.
            BrokerUnavailable: the reader is closed.
        """
        problem = self._problem
        if self._connection is None and isinstance(problem, AccessRefused):
            raise AccessRefused(str(problem))
        if self.closing:
            raise BrokerUnavailable("the broker object is closed")

    def touch(self, feed: Feed) -> None:
        """Something on ``feed`` is done with."""
        self._touched.append(feed)
        # The thread itself flushes at the end of its turn.
        if not self._woken and threading.get_ident() != self._ident:
            self.wake()

    def wake(self) -> None:
        """Make the thread, which was started, look at what there is to do."""
        if self._woken:
            return
        self._woken = True
        assert self._waker is not None, "_start() makes it"
        with contextlib.suppress(OSError):  # Full: it will wake. Closed: the thread has ended.
            self._waker[1].send(b"w")

    def _start(self) -> None:  # from any thread
        with self._lock:
            if self._thread is not None:
                return
            try:
                self._open_waker()
                self._thread = threading.Thread(target=self._run, name="tq-consumer", daemon=True)
                self._thread.start()
            except (OSError, RuntimeError) as error:  # ``ulimit -n``, ``pids.max``
                self._thread = None
                self._close_waker()
                raise BrokerUnavailable(f"nothing to connect to RabbitMQ with: {error}") from error

    def _open_waker(self) -> None:  # from any thread, before there is this one
        near, far = self._waker = socket.socketpair()
        near.setblocking(False)
        far.setblocking(False)
        # Not epoll: the child of a fork would share it with us.
        self._selector = getattr(selectors, "PollSelector", selectors.SelectSelector)()
        self._selector.register(near, selectors.EVENT_READ)

    def _close_waker(self) -> None:
        if self._selector is not None:
            self._selector.close()
        for sock in self._waker or ():
            sock.close()

    def close(self, deadline: float) -> None:
        """Send the acks that are due, and close."""
        with self._lock:
            self._close_deadline = deadline
            self.closing = True
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._woken = False
            self.wake()
            thread.join(remaining(self._clock, deadline) + 1.0)
        self.subscriber.notify()

    def abandon(self) -> None:
        """In the child of a fork: let go of the parent's sockets without a word on them."""
        for sock in (*(self._waker or ()), self._watched):
            if sock is not None:
                sock.close()

    # --- the life of the thread ---

    def _run(self) -> None:
        self._ident = threading.get_ident()
        try:
            while not self.closing:
                try:
                    self._connect()
                    self._serve()
                except Exception as error:
                    if translate(error) is None:
                        log.exception("consumer: internal error (please report this)")
                    self._disconnected(error)
                    self._pause()
            self._say_goodbye()
        finally:
            self._forget_connection()
            self._ended = True
            # Who puts one from now on sees that it has ended.
            for command in self._commands.take():
                command.fail(BrokerUnavailable("the broker object is closed"))
            self._close_waker()

    def _connect(self) -> None:
        address = self._address
        connection = establish(
            address,
            tls_context(address.tls) if address.tls else None,
            connect_s=CONNECT_S,
            heartbeat_s=self._heartbeat_s,
            properties=client_properties(self._name),
        )
        self._connection = connection
        connection.on_delivery = self._on_delivery
        connection.pump = self._pump
        self._watched = connection.transport.sock
        self._selector.register(self._watched, selectors.EVENT_READ)
        self._next_beat = 0.0
        self._connected_at = self._clock.monotonic()
        self.epoch += 1
        self._problem = None
        self.subscriber.connected()
        log.info("consumer: connected to %s", address)

    def _disconnected(self, error: BaseException) -> None:
        problem = translate(error) or BrokerUnavailable(f"internal error: {error!r}")
        told = f"no connection to {self._address}: {problem}"
        if not self.closing and (self._connection is not None or str(self._problem) != told):
            log.warning("consumer: %s; trying again", told)
        kind = AccessRefused if isinstance(problem, AccessRefused) else BrokerUnavailable
        if self._clock.monotonic() - self._connected_at > STABLE_S:
            self._attempt = 0
        self._connected_at = math.inf
        self._problem = kind(told)
        self._forget_connection()
        self.subscriber.notify()
        if kind is AccessRefused:
            # Waiting does not heal this, so who waits is told now. Subscriptions go on trying.
            for command in self._commands.take_if(lambda c: not c.offline):
                command.fail(AccessRefused(told))
        self._address = next(self._addresses)

    def _forget_connection(self) -> None:
        connection, self._connection = self._connection, None
        for feed in list(self._feeds.values()):
            self._lost(feed)
        self._ready.clear()
        self._admin = self._gets = None
        self.held_locks.clear()
        # Also when py-amqp has closed it already: its number may be the next socket's.
        watched, self._watched = self._watched, None
        if watched is not None:
            self._selector.unregister(watched)
        if connection is not None:
            connection.collect()

    def _pause(self) -> None:
        """Between two tries to connect; what needs no connection is done meanwhile."""
        wait_until = self._clock.monotonic() + backoff_s(self._attempt)
        self._attempt += 1
        while not self.closing and (left_s := remaining(self._clock, wait_until)):
            for command in self._commands.take_if(lambda c: c.offline):
                self._run_command(command)
            self._select(left_s)

    def _serve(self) -> None:
        while not self.closing:
            for command in self._commands.take():
                self._run_command(command)
            wait_s = self.subscriber.tend()
            if self._commands or self.closing:
                wait_s = 0.0
            self._turn(wait_s)

    def _say_goodbye(self) -> None:
        connection = self._connection
        if connection is None:
            return
        self._rpc_deadline = self._close_deadline
        self.subscriber.silence()
        try:
            self._flush()
            self._be_certain()
            connection.close()
        except Exception as error:
            log.debug("consumer: closing: %r", error)

    def _be_certain(self) -> None:
        """Wait until what was acknowledged is kept; see `tq_broker.queues.acks`."""
        uncertain = [f for f in self._feeds.values() if f.ledger.frames > PENDING_MAX]
        told_at = max((feed.told_at for feed in uncertain), default=-math.inf)
        until = min(told_at + CERTAIN_S, self._close_deadline)
        while left_s := remaining(self._clock, until):
            self._turn(left_s)

    # --- one turn ---

    def _pump(self) -> None:
        """What py-amqp calls instead of waiting for a frame."""
        left_s = self._rpc_deadline - self._clock.monotonic()
        if left_s <= 0:
            raise RpcTimeout
        self._turn(left_s)

    def _turn(self, wait_s: float) -> None:
        """Send what is due, wait, read what has come, hand it over, send what is due."""
        connection = self._connection
        assert connection is not None, "turns are made while connected"
        transport = connection.transport
        take_frame = transport.take_frame
        self._flush()
        frame = take_frame()
        if frame is None:
            self._beat(connection)
            left_s = self._next_beat - self._clock.monotonic()
            if transport.more() or self._select(max(0.0, min(wait_s, left_s))):
                with contextlib.suppress(TimeoutError):
                    transport.fill()
                frame = take_frame()
        on_frame = connection.on_inbound_frame
        self._taken = 0
        while frame is not None:
            on_frame(frame)
            # A frame may have ended the connection.
            if self._taken >= TURN_MAX or not connection.connected:
                break
            frame = take_frame()
        self._hand_over()
        self._flush()

    def _select(self, wait_s: float) -> bool:
        """Wait for the socket or for another thread; tells whether the socket is readable."""
        assert self._waker is not None, "the thread runs"
        near = self._waker[0]
        readable = False
        for key, _ in self._selector.select(wait_s):
            if key.fileobj is near:
                near.recv(4096)
                self._woken = False
            else:
                readable = True
        return readable

    def _beat(self, connection: Connection) -> None:
        now = self._clock.monotonic()
        if now >= self._next_beat:
            connection.heartbeat_tick(rate=2)
            self._next_beat = now + min(1.0, self._heartbeat_s / 4)

    def _on_delivery(self, channel: int, method: bytes, header: bytes, body: bytes) -> None:
        feed = self._feeds.get(channel)
        if feed is None:
            return  # Its channel is being closed, which gives it back.
        tag, redelivered = decode_deliver(method)
        feed.ledger.delivered(tag)
        if not feed.inbox:
            self._ready.append(feed)
        feed.inbox.append(AmqpDelivery(feed, tag, redelivered, method, header, body))
        self._taken += 1

    def _hand_over(self) -> None:
        if self._ready:
            ready, self._ready = self._ready, []
            for feed in ready:
                self.subscriber.hand_over(feed)

    def _flush(self) -> None:
        """Tell RabbitMQ what is done with, in one write."""
        touched = self._touched
        if not touched:
            return
        feeds = [touched.popleft() for _ in range(len(touched))]
        data = b"".join([feed.take_settled() for feed in feeds])
        if data and self._connection is not None:
            self._connection.write_raw(data)
            now = self._clock.monotonic()
            for feed in feeds:
                feed.told_at = now
        for feed in feeds:
            if feed.owner is not None and feed.owner.over:
                self.subscriber.retire(feed)

    # --- commands and channels ---

    def _run_command(self, command: Command[Any]) -> None:
        try:
            result = command.run(command.deadline)
        except TqBrokerError as error:
            command.fail(error)
        except RpcTimeout:
            command.fail(DeadlineExceeded("no answer from RabbitMQ before the deadline"))
        except amqp.exceptions.ChannelError as error:
            command.fail(translate(error) or error)
        except (amqp.exceptions.AMQPError, OSError) as error:
            if is_fatal(error):
                command.fail(translate(error) or error)
            else:
                self._commands.put_back(command)
            raise
        except Exception as error:
            command.fail(error)
            if self._connection is not None and not self._connection.connected:
                # py-amqp, surprised by the end of its connection
                raise BrokerUnavailable("the connection broke") from error
        else:
            command.succeed(result)

    def take_plan(self, plan: Plan, deadline: float) -> None:
        """On the thread: take the steps of ``plan`` once."""
        self._take_plan(self, plan, deadline)

    def rpc(self, run: Callable[[Any], T], deadline: float) -> T:
        """On the thread: ``run`` on the administration channel, opened anew if need be.

        Raises:
            amqp.exceptions.ChannelError: RabbitMQ has closed the channel with that.
            RpcTimeout: no answer before the deadline; the channel is given up.
        """
        try:
            if self._admin is None:
                self._admin = self._open_channel(deadline)
            return self.on_channel(self._admin, run, deadline)
        except (RpcTimeout, amqp.exceptions.ChannelError):
            admin, self._admin = self._admin, None
            if admin is not None:
                admin.close_nowait()
            raise

    def on_channel(self, channel: Channel, run: Callable[[Any], T], deadline: float) -> T:
        """On the thread: ``run`` on ``channel``.

        Raises:
            amqp.exceptions.ChannelError: RabbitMQ has closed the channel with that.
            RpcTimeout: no answer before the deadline.
        """
        self._rpc_deadline = deadline
        try:
            return run(channel)
        except amqp.exceptions.RecoverableConnectionError:
            if channel.ended_by is not None:
                raise channel.ended_by from None
            raise

    def _open_channel(self, deadline: float) -> Channel:
        self._rpc_deadline = deadline
        connection = self._connected()
        try:
            channel: Channel = connection.channel()
        except amqp.exceptions.ResourceError as error:
            if connection.connected:  # It is py-amqp that has no number for one more.
                raise Unavailable(f"too many channels on one connection: {error}") from error
            raise
        return channel

    def _connected(self) -> Connection:
        if self._connection is None:
            raise amqp.exceptions.RecoverableConnectionError("not connected")
        return self._connection

    def open_feed(self, queue: str, deadline: float, owner: Any = None) -> Feed:
        """On the thread: a new channel for the deliveries of ``owner``."""
        feed = Feed(self._open_channel(deadline), queue, self.touch, owner)
        self._feeds[feed.number] = feed
        return feed

    def forget(self, feed: Feed) -> None:
        """On the thread: ``feed`` is lost."""
        feed.lose()
        if self._feeds.get(feed.number) is feed:
            del self._feeds[feed.number]
        if self._gets is feed:
            self._gets = None

    def _lost(self, feed: Feed) -> None:
        if feed.owner is None:
            self.forget(feed)
        else:
            self.subscriber.lost(feed)

    def version(self, _deadline: float) -> tuple[int, ...]:
        """On the thread: the server's version."""
        text = str(self._connected().server_properties.get("version", ""))
        words = text.replace("-", ".").replace("+", ".").split(".")
        return tuple(map(int, itertools.takewhile(str.isdigit, words)))

    def get(self, queue: str, deadline: float) -> AmqpDelivery | None:
        """On the thread: one message of ``queue``, which must exist: from one that is missing
        it would close the channel on which other deliveries are held."""
        feed = self._gets
        if feed is None:
            feed = self._gets = self.open_feed("", deadline)
            feed.channel.on_ended = lambda _error, feed=feed: self.forget(feed)
        try:
            content = self.on_channel(feed.channel, lambda ch: ch.basic_get(queue), deadline)
        except RpcTimeout:
            # Whatever still comes must go back.
            self.forget(feed)
            feed.channel.close_nowait()
            raise
        if content is None:
            return None
        feed.ledger.delivered(content.delivery_info["delivery_tag"])
        return GotDelivery(feed, queue, content)
