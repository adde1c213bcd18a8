"""Sending until it is taken."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from tq_broker.exceptions import BrokerUnavailable, Rejected, TqBrokerError
from tq_broker.queues.sender import NoRoute
from tq_broker.testing.manual_clock import ManualClock
from tq_broker.worker.insistence import INSIST_EVERY_S, Insistence


class Bench:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.insistence = Insistence(self.clock)
        self.sent: list[Callable[[TqBrokerError | None], None]] = []
        self.done = 0
        self.refused: list[TqBrokerError] = []

    def insist(self, **options: Any) -> None:
        self.insistence.insist(self.sent.append, self._done, self.refused.append, **options)

    def _done(self) -> None:
        self.done += 1


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_is_taken_is_sent_once(bench: Bench) -> None:
    bench.insist()
    bench.sent[0](None)
    bench.clock.advance(INSIST_EVERY_S)
    assert (len(bench.sent), bench.done) == (1, 1)


def test_what_is_not_taken_is_sent_again_until_it_is(bench: Bench) -> None:
    bench.insist()
    for attempt in range(3):
        bench.sent[attempt](BrokerUnavailable("down"))
        assert bench.done == 0
        bench.clock.advance(INSIST_EVERY_S)
    bench.sent[3](None)
    assert bench.done == 1


def test_what_will_never_be_taken_is_said(bench: Bench) -> None:
    bench.insist()
    bench.sent[0](Rejected("too large"))
    assert (bench.done, len(bench.refused)) == (0, 1)


@pytest.mark.parametrize(("gone_is_fine", "done"), [(True, 1), (False, 0)])
def test_nobody_to_take_it_may_be_fine(bench: Bench, gone_is_fine: bool, done: int) -> None:
    bench.insist(gone_is_fine=gone_is_fine)
    bench.sent[0](NoRoute())
    bench.clock.advance(INSIST_EVERY_S)
    assert (bench.done, len(bench.sent)) == (done, 2 - done)


def test_nothing_is_insisted_on_after_the_end(bench: Bench) -> None:
    bench.insist()
    bench.insistence.close()
    bench.sent[0](BrokerUnavailable("down"))
    bench.clock.advance(INSIST_EVERY_S)
    assert (len(bench.sent), bench.done) == (1, 0)


def test_what_is_taken_is_let_go_without_the_garbage_collector(bench: Bench) -> None:
    class Message:
        pass

    message = Message()
    gone = weakref.ref(message)
    gc.disable()
    try:
        bench.insistence.insist(
            lambda ended, message=message: bench.sent.append(ended),
            bench._done,
            bench.refused.append,
        )
        del message
        bench.sent.pop()(None)
        assert gone() is None
    finally:
        gc.enable()
