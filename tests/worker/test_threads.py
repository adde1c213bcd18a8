"""Threads that run items: how many there are, in which order, and how they end."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tq_broker.worker.threads import Threads

SOON_S = 20.0


class Hands:
    """Threads whose items are calls; each tells when it has begun, and ends when it is let."""

    def __init__(self, most: int) -> None:
        self.begun: queue.Queue[tuple[object, str]] = queue.Queue()
        self.go = threading.Semaphore(0)
        self.threads: Threads[object] = Threads(most, self.run)

    def run(self, item: object) -> None:
        self.begun.put((item, threading.current_thread().name))
        if isinstance(item, BaseException):
            raise item
        assert self.go.acquire(timeout=SOON_S)

    def next(self) -> tuple[object, str]:
        return self.begun.get(timeout=SOON_S)

    def let_go(self, count: int) -> None:
        self.go.release(count)

    def wait_idle(self, count: int) -> None:
        """Until so many threads wait for something to do."""
        give_up = threading.Event()
        for _ in range(2000):
            if self.threads._asleep == count:
                return
            give_up.wait(0.01)
        raise AssertionError(f"{self.threads._asleep} threads are idle, not {count}")


@pytest.fixture
def hands() -> Iterator[Callable[[int], Hands]]:
    made: list[Hands] = []

    def make(most: int) -> Hands:
        made.append(Hands(most))
        return made[-1]

    yield make
    for one in made:
        one.threads.close()
        one.let_go(1000)


def test_there_are_as_many_as_are_needed_and_no_more_than_the_bound(hands: Any) -> None:
    three = hands(3)
    three.threads.put(["a", "b"])
    assert {three.next() for _ in range(2)} == {("a", "tq-activity_0"), ("b", "tq-activity_1")}
    three.threads.put(["c", "d", "e"])
    assert three.next() == ("c", "tq-activity_2")
    assert three.begun.empty()
    three.let_go(1)
    assert three.next()[0] == "d"
    three.let_go(1)
    assert three.next()[0] == "e"


def test_a_thread_that_is_free_is_used_again(hands: Any) -> None:
    many = hands(100)
    for item in "abc":
        many.threads.put([item])
        assert many.next() == (item, "tq-activity_0")
        many.let_go(1)
        many.wait_idle(1)


def test_what_an_item_raises_costs_no_thread(hands: Any, caplog: pytest.LogCaptureFixture) -> None:
    one = hands(1)
    with caplog.at_level(logging.ERROR):
        one.threads.put([SystemExit("out"), "next"])
        one.next()
        assert one.next() == ("next", "tq-activity_0")
    assert "a thread for activities goes on" in caplog.text


def no_more_threads(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_system_without_more_threads_costs_no_item(
    hands: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    three = hands(3)
    three.threads.put(["a"])
    three.next()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more_threads)
        three.threads.put(["b", "c"])
        three.threads.put(["d"])
        three.let_go(3)
        assert [three.next() for _ in "bcd"] == [(item, "tq-activity_0") for item in "bcd"]
    assert caplog.text.count("1 threads for activities, not 3: can't start new thread") == 1
    three.threads.put(["e"])
    assert three.next() == ("e", "tq-activity_1")


def test_without_any_thread_items_are_refused(hands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    three = hands(3)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", no_more_threads)
        with pytest.raises(RuntimeError, match="can't start"):
            three.threads.put(["a", "b"])
    three.threads.put(["c"])
    assert three.next() == ("c", "tq-activity_0")


def test_what_waits_when_they_are_closed_is_dropped_and_what_runs_ends(hands: Any) -> None:
    one = hands(1)
    one.threads.put(["runs", "waits"])
    assert one.next()[0] == "runs"
    thread = next(t for t in threading.enumerate() if t.name == "tq-activity_0")
    one.threads.close()
    one.threads.put(["late"])
    one.let_go(3)
    thread.join(SOON_S)
    assert not thread.is_alive()
    assert one.begun.empty()
