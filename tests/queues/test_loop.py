from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.queues.amqp_server import PATIENCE_S
from tq_broker.clock import SystemClock
from tq_broker.queues.loop import Interrupted, Loop


@pytest.fixture
def ended() -> queue.SimpleQueue[BaseException]:
    """What the loop has ended with."""
    return queue.SimpleQueue()


@pytest.fixture
def loop(clock: SystemClock, ended: queue.SimpleQueue[BaseException]) -> Iterator[Loop]:
    loop = Loop(clock)

    def run() -> None:
        try:
            loop.start()
        except Interrupted as error:
            ended.put(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield loop
    loop.add_callback(loop.stop)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    loop.close()


def on_thread(loop: Loop, work: Callable[[], Any]) -> Any:
    """What ``work`` returns on the loop's thread."""
    results: list[Any] = []
    done = threading.Event()

    def do() -> None:
        results.append(work())
        done.set()

    loop.add_callback(do)
    assert done.wait(PATIENCE_S)
    return results[0]


def lend(loop: Loop, work: Callable[[], bool]) -> None:
    """Have ``work`` done here. The loop waits most of the time, and not always."""
    for _ in range(1_000_000):
        if loop.lend(work):
            return
    raise AssertionError("the loop never waits")


def test_work_is_done_by_who_asks_while_the_loop_waits(loop: Loop) -> None:
    did = []

    def work() -> bool:
        did.append(threading.get_ident())
        return True

    lend(loop, work)
    assert did == [threading.get_ident()]
    assert on_thread(loop, threading.get_ident) != threading.get_ident()


def test_a_loop_that_does_something_is_not_lent(loop: Loop) -> None:
    entered, leave = threading.Event(), threading.Event()

    def busy() -> None:
        entered.set()
        assert leave.wait(PATIENCE_S)

    loop.add_callback(busy)
    assert entered.wait(PATIENCE_S)
    assert not loop.lend(lambda: True)
    leave.set()
    assert not on_thread(loop, lambda: loop.lend(lambda: True)), "the thread has it already"
    lend(loop, lambda: True)


def test_a_loop_that_does_not_run_is_not_lent(clock: SystemClock) -> None:
    loop = Loop(clock)
    assert not loop.lend(lambda: True)
    loop.add_callback(loop.stop)
    loop.start()
    assert not loop.lend(lambda: True)
    loop.close()
    loop.add_callback(loop.stop)  # harmless


def test_lent_work_that_lends_again_is_told_no(loop: Loop) -> None:
    nested = []

    def work() -> bool:
        nested.append(loop.lend(lambda: True))
        return True

    lend(loop, work)
    assert nested == [False]
    lend(loop, lambda: True)


def test_what_lent_work_books_is_called_on_the_thread(loop: Loop) -> None:
    called = threading.Event()
    by = []

    def note() -> None:
        by.append(threading.get_ident())
        called.set()

    lend(loop, lambda: loop.call_later(0.001, note) is not None)
    assert called.wait(PATIENCE_S), "the wait under way knew of no timer"
    assert by == [on_thread(loop, threading.get_ident)]


def test_a_handler_that_lent_work_has_added_is_called(loop: Loop) -> None:
    near, far = socket.socketpair()
    called = threading.Event()

    def on_event(fd: int, events: int) -> None:
        assert (fd, events) == (near.fileno(), Loop.READ)
        near.recv(1)
        called.set()

    def work() -> bool:
        loop.add_handler(near.fileno(), on_event, Loop.READ | Loop.ERROR)
        return True

    with near, far:
        lend(loop, work)
        far.send(b"x")
        assert called.wait(PATIENCE_S), "the wait under way knew of no socket"
        on_thread(loop, lambda: loop.remove_handler(near.fileno()))


def test_events_that_nobody_looks_for_any_more_are_dropped(loop: Loop) -> None:
    first, second = socket.socketpair()
    got: list[tuple[int, int]] = []
    seen = threading.Event()

    def on_event(fd: int, events: int) -> None:
        got.append((fd, events))
        for sock in (first, second):
            if sock.fileno() != fd:
                loop.remove_handler(sock.fileno())
        loop.update_handler(fd, Loop.READ)
        seen.set()

    def add() -> None:
        for sock in (first, second):
            loop.add_handler(sock.fileno(), on_event, Loop.READ | Loop.WRITE)

    with first, second:
        on_thread(loop, add)  # both can be written to at once
        assert seen.wait(PATIENCE_S)
        on_thread(loop, lambda: None)
        assert len(got) == 1
        on_thread(loop, lambda: loop.remove_handler(got[0][0]))


def test_timers_are_called_in_their_order_and_not_when_removed(loop: Loop) -> None:
    order: list[str] = []
    done = threading.Event()

    def book() -> None:
        loop.call_later(0.02, done.set)
        loop.call_later(0.01, lambda: order.append("second"))
        loop.call_later(0.0, lambda: order.append("first"))
        loop.remove_timeout(loop.call_later(0.005, lambda: order.append("removed")))

    on_thread(loop, book)
    assert done.wait(PATIENCE_S)
    assert order == ["first", "second"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")], ids=repr)
def test_a_turn_that_ends_halfway_ends_the_loop(
    loop: Loop, ended: queue.SimpleQueue[BaseException], error: BaseException
) -> None:
    """Found in thought: between the count of a publish and its bytes a signal would leave a count
    that is wrong, and the next confirm would be another's."""

    def work() -> bool:
        raise error

    with pytest.raises(type(error)):
        lend(loop, work)
    assert not loop.lend(lambda: True), "nothing is done on what is left of it"
    end = ended.get(timeout=PATIENCE_S)
    assert isinstance(end, Interrupted)
    assert end.__cause__ is error
    assert not loop.lend(lambda: True)


def test_an_exception_before_the_work_leaves_the_loop_as_it_was(
    loop: Loop, ended: queue.SimpleQueue[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(work: Callable[[], bool]) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "_lent", interrupted)
        with pytest.raises(KeyboardInterrupt):
            lend(loop, lambda: True)
    lend(loop, lambda: True)
    assert ended.empty()
