"""The in-memory server: one `Vhost` shared by the brokers of this process, locked and on time.

Rules of this file:

* ``changed`` guards everything in the vhost; nobody is called back while it is held, but for
  `Recipient`, which only notes;
* all brokers of one server use one clock;
* whoever changed something calls `MemoryServer.book` before letting go of the lock.

A server lives in one process: a child made by ``os.fork()`` has a copy of its own.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tq_broker.clock import Clock
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.message import Message
from tq_broker.queues.memory_vhost import Connection, Vhost
from tq_broker.queues.topology import DeclareQueue, DeleteQueue

SCHEME = "memory://"
DEFAULT_URL = f"{SCHEME}default"
VERSION = (3, 10, 8)
"""The RabbitMQ that the vhost is modelled on."""

_log = logging.getLogger(__name__)
_servers: dict[str, MemoryServer] = {}
_servers_lock = threading.Lock()


def server_for(url: str) -> MemoryServer:
    """The server named by ``url`` (``memory://<name>``), made when it is first asked for."""
    _check_url(url)
    with _servers_lock:
        server = _servers.get(url)
        if server is None:
            server = _servers[url] = MemoryServer(url)
        return server


def forget(url: str) -> None:
    """Forget the server named by ``url``: who asks for it next gets an empty one.

    Brokers that are connected to the old one go on with it. Harmless when there is none.
    """
    _check_url(url)
    with _servers_lock:
        _servers.pop(url, None)


def _check_url(url: str) -> None:
    if not url.startswith(SCHEME) or url == SCHEME:
        raise InvalidArgument(f"url must look like {SCHEME}<name>, not {url!r}")


class MemoryServer:
    """One vhost, for any number of brokers (= connections) on any number of threads.

    Attributes:
        url: Its name, for people and for `server_for`.
        changed: The one lock; notified when an exclusive queue is gone, a deadline is over or
            a subscription has been answered.
        vhost: What it guards.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self.url = url
        self.changed = threading.Condition(threading.Lock())
        self.vhost = Vhost()
        self.vhost.on_dropped = _log_dropped
        self._booked_at: float | None = None
        self._waiting_for_lock: list[Callable[[], None]] = []

    def book(self, clock: Clock) -> None:
        """See to it that the vhost's next due time is not missed. Lock held."""
        due = self.vhost.next_due()
        if due is None or (self._booked_at is not None and self._booked_at <= due):
            return
        self._booked_at = due
        clock.call_at(due, lambda: self._tick(clock, due))

    def _tick(self, clock: Clock, due: float) -> None:
        with self.changed:
            if self._booked_at == due:
                self._booked_at = None
            self.vhost.advance(clock.monotonic())
            self.book(clock)

    def wait(self, clock: Clock, deadline: float, ready: Callable[[], bool]) -> bool:
        """Wait, lock held, until ``ready()``; False if the deadline is over before.

        The condition lets go of the lock meanwhile.
        """
        if ready():
            return True
        timer = clock.call_at(deadline, self._notify)
        try:
            while not ready():
                if clock.monotonic() >= deadline:
                    return False
                self.changed.wait()
            return True
        finally:
            timer.cancel()

    def _notify(self) -> None:
        with self.changed:
            self.changed.notify_all()

    # --- locks: exclusive queues, one holder each ---

    def is_locked(self, name: str) -> bool:
        """Whether anybody holds the lock ``name``. Lock held."""
        return name in self.vhost.queues

    def hold(self, name: str, connection: Connection, now: float) -> None:
        """Take a lock that is free. Lock held."""
        arguments = {"x-queue-type": "classic"}
        self.vhost.take(DeclareQueue(name, arguments, exclusive=True), connection, now)

    def free(self, name: str, connection: Connection, now: float) -> None:
        """Let go of a lock; harmless if it went with its connection. Lock held."""
        queue = self.vhost.queues.get(name)
        if queue is not None and queue.owner is connection:
            self.vhost.take(DeleteQueue(name), connection, now)
            self.exclusive_gone()

    def when_unlocked(self, call: Callable[[], None]) -> None:
        """Make ``call`` (which only notes) as soon as some lock is free. Lock held."""
        self._waiting_for_lock.append(call)

    def exclusive_gone(self) -> None:
        """Tell those who wait that exclusive queues are gone. Lock held."""
        calls, self._waiting_for_lock = self._waiting_for_lock, []
        for call in calls:
            call()
        self.changed.notify_all()


def _log_dropped(message: Message, queue: str, why: str) -> None:
    _log.debug("message %s of queue %s was dropped: %s", message.message_id, queue, why)
