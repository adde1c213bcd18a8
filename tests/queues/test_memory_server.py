"""The server that brokers in memory share."""

from __future__ import annotations

import logging
import threading

import pytest

from tq_broker.clock import SystemClock
from tq_broker.model.message import Message, Publication
from tq_broker.queues.memory_server import MemoryServer
from tq_broker.queues.topology import DeclareQueue, DeleteQueue
from tq_broker.testing.manual_clock import ManualClock

PATIENCE_S = 20.0


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(monotonic=0.0)


def declare_short_lived(server: MemoryServer, clock: ManualClock, expires_ms: int) -> None:
    with server.changed:
        step = DeclareQueue(f"q{expires_ms}", {"x-expires": expires_ms})
        server.vhost.take(step, server.vhost.connect(), clock.monotonic())
        server.book(clock)


def test_what_is_due_happens_when_the_clock_gets_there(clock: ManualClock) -> None:
    server = MemoryServer()
    for expires_ms in (3000, 1000, 2000):
        declare_short_lived(server, clock, expires_ms)
    left = []
    for _ in range(3):
        clock.advance(1)
        left.append(len(server.vhost.queues))
    assert left == [2, 1, 0]
    assert clock.next_booking is None


def test_one_booking_at_a_time_is_enough(clock: ManualClock) -> None:
    server = MemoryServer()
    declare_short_lived(server, clock, 1000)
    booked = clock.next_booking
    for _ in range(3):
        with server.changed:
            server.book(clock)
    assert booked == 1.0
    clock.advance(1)
    assert clock.next_booking is None


def test_waiting_ends_at_the_deadline(clock: ManualClock) -> None:
    server = MemoryServer()
    answers: list[bool] = []
    entered = threading.Event()

    def is_ready() -> bool:
        entered.set()
        return False

    def wait() -> None:
        with server.changed:
            answers.append(server.wait(clock, 5.0, is_ready))

    waiting = threading.Thread(target=wait)
    waiting.start()
    assert entered.wait(PATIENCE_S)
    # Whether it waits already or is about to: it looks at the clock or it is notified.
    with server.changed:
        pass
    clock.advance(5)
    waiting.join(PATIENCE_S)
    assert answers == [False]


def test_waiting_ends_when_it_is_true(clock: ManualClock) -> None:
    server = MemoryServer()
    clock = ManualClock(monotonic=0.0)
    with server.changed:
        assert server.wait(clock, -1.0, lambda: True)
    assert clock.next_booking is None


def test_a_lock_is_freed_by_its_holder_only() -> None:
    server = MemoryServer()
    calls: list[str] = []
    with server.changed:
        holder, other = server.vhost.connect(), server.vhost.connect()
        server.hold("lock", holder, 0.0)
        server.when_unlocked(lambda: calls.append("free"))
        server.free("lock", other, 0.0)
        assert server.is_locked("lock")
        assert calls == []
        server.free("lock", holder, 0.0)
        server.free("lock", holder, 0.0)
        assert not server.is_locked("lock")
    assert calls == ["free"]


def test_a_dropped_message_can_be_followed_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    vhost = MemoryServer().vhost
    connection = vhost.connect()
    vhost.take(DeclareQueue("q"), connection, 0.0)
    vhost.publish(Publication("", "q", Message(body=b"", message_id="lost")), 0.0)
    with caplog.at_level(logging.DEBUG, logger="tq_broker"):
        vhost.take(DeleteQueue("q"), connection, 0.0)
    assert "lost" in caplog.text
    assert "its queue was deleted" in caplog.text


def test_it_works_on_the_clock_of_the_machine() -> None:
    server, clock = MemoryServer(), SystemClock()
    with server.changed:
        step = DeclareQueue("q", {"x-expires": 1})
        server.vhost.take(step, server.vhost.connect(), clock.monotonic())
        server.book(clock)
        deadline = clock.monotonic() + PATIENCE_S
        # Nobody notifies of an expiry, so ask at short deadlines.
        while server.vhost.queues and clock.monotonic() < deadline:
            server.wait(clock, clock.monotonic() + 0.005, lambda: not server.vhost.queues)
        assert not server.vhost.queues
