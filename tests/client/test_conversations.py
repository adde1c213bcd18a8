"""Conversations with a hand that plays history, under a clock that is told the time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from tests.client.fake_history import SOON_S, FakeHistory, Taken
from tq_broker.client.conversations import (
    LONG_AGAIN_S,
    SHORT_AGAIN_S,
    OneAnswer,
    ResultWait,
    StartWithUpdate,
    UpdateWait,
)
from tq_broker.client.core import ClientCore
from tq_broker.converter import DEFAULT
from tq_broker.exceptions import (
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    Rejected,
    Unavailable,
    WorkflowAlreadyStartedError,
    WorkflowQueryFailedError,
)
from tq_broker.model import requests
from tq_broker.model.message import Message
from tq_broker.model.names import Names
from tq_broker.model.requests import Status
from tq_broker.model.workflow_tasks import UpdateRequest
from tq_broker.queues.connection import Connection
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.testing.manual_clock import ManualClock

NAMES = Names("n")
START = requests.StartWorkflow(workflow_id="w", workflow_type="T", task_queue="q", want_result=True)
AWAIT = requests.AwaitResult(workflow_id="w")
UPDATE = UpdateRequest(update_id="u", name="change")
STARTED = requests.Started(run_id="r1", first_run_id="r1")


def same(answer: Any) -> Any:
    return answer


def closed(run_id: str, next_run_id: str = "") -> requests.Closed:
    status = Status.CONTINUED_AS_NEW if next_run_id else Status.COMPLETED
    return requests.Closed(run_id=run_id, status=status, next_run_id=next_run_id)


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.server = MemoryServer()
        self.broker = MemoryBroker(self.server, self.clock)
        self.core = ClientCore(Connection(self.broker, NAMES, self.clock, DEFAULT, "me"))
        self.history = self.make_history()

    def make_history(self) -> FakeHistory:
        hand = MemoryBroker(self.server, self.clock)
        return FakeHistory(hand, NAMES, self.soon)

    def soon(self) -> float:
        return self.clock.monotonic() + 10_000

    def ask(self, conversation: Any) -> Future[Any]:
        future: Future[Any] = conversation.begin(same).future
        return future

    def settle(self) -> None:
        self.broker.wait_quiet(self.soon())
        self.history.broker.wait_quiet(self.soon())  # type: ignore[attr-defined]
        self.broker.wait_quiet(self.soon())

    def wait(self, seconds: float) -> None:
        self.settle()
        self.clock.advance(seconds)
        self.settle()

    def pass_until(self, has_come: Callable[[], bool]) -> None:
        """Let time pass, however late the threads are that book calls with the clock."""
        give_up = time.monotonic() + SOON_S
        while not has_come() and time.monotonic() < give_up:
            self.wait(1.0)

    def close(self) -> None:
        self.core.close(self.soon())
        self.history.broker.close(self.soon())


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def test_one_request_one_answer(world: World) -> None:
    future = world.ask(OneAnswer(world.core, START, requests.Started))
    taken = world.history.take(requests.StartWorkflow)
    assert taken.request == START
    assert taken.message.message_id
    taken.answer(requests.Done(), STARTED, STARTED)
    assert future.result(SOON_S) == STARTED
    world.wait(100)
    assert world.history.is_idle


def test_what_changes_keeps_its_id_and_what_asks_does_not(world: World) -> None:
    for request, expected, keeps in [
        (START, requests.Started, True),
        (requests.SignalWorkflow(workflow_id="w", signal_name="s"), requests.Done, True),
        (requests.Describe(workflow_id="w"), requests.Description, False),
        (requests.ListWorkflows(), requests.Listing, False),
    ]:
        future = world.ask(OneAnswer(world.core, request, expected))
        first = world.history.take(type(request))
        world.wait(SHORT_AGAIN_S)
        second = world.history.take(type(request))
        assert first.message.correlation_id == second.message.correlation_id
        assert (first.message.message_id == second.message.message_id) is keeps
        world.wait(SHORT_AGAIN_S)
        with pytest.raises(DeadlineExceeded, match="no history service answered; start one with"):
            future.result(SOON_S)


def test_an_answer_that_cannot_be_read_is_dropped(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    future = world.ask(OneAnswer(world.core, START, requests.Started))
    taken = world.history.take(requests.StartWorkflow)
    bad = Message(body=b"?", message_id="m", kind="?", correlation_id=taken.message.correlation_id)
    world.history.tell(str(taken.message.reply_to), bad)
    taken.answer(STARTED)
    assert future.result(SOON_S) == STARTED
    assert "reply dropped: not a history-reply" in caplog.text


@pytest.mark.parametrize(
    ("request_", "refused", "error", "text"),
    [
        (AWAIT, ("not_found", ""), NotFound, "there is no workflow 'w' in namespace 'n'$"),
        (
            requests.Describe(workflow_id="w", run_id="r"),
            ("not_found", "gone"),
            NotFound,
            "workflow 'w' with run 'r' in namespace 'n': gone",
        ),
        (AWAIT, ("closed", ""), NotFound, "workflow 'w' has ended already"),
        (START, ("already_started", ""), WorkflowAlreadyStartedError, "already started: T 'w'"),
        (START, ("invalid_argument", "cron: ?"), InvalidArgument, "cron: [?]"),
        (AWAIT, ("query_failed", "no"), WorkflowQueryFailedError, "no"),
        (AWAIT, ("limit", "too many"), Rejected, "too many"),
        (AWAIT, ("whatever", ""), Rejected, "whatever"),
    ],
)
def test_a_refusal_is_an_error(
    world: World, request_: Any, refused: tuple[str, str], error: type[Exception], text: str
) -> None:
    future = world.ask(OneAnswer(world.core, request_, requests.Done))
    reason, message = refused
    world.history.take(object).answer(requests.Refused(reason=reason, message=message, run_id="r0"))
    with pytest.raises(error, match=text) as raised:
        future.result(SOON_S)
    if isinstance(raised.value, WorkflowAlreadyStartedError):
        assert raised.value.run_id == "r0"


# --- results --------------------------------------------------------------------------------------


def test_a_result_is_waited_for_however_long(world: World) -> None:
    future = world.ask(ResultWait(world.core, AWAIT, follow=True))
    first = world.history.take(requests.AwaitResult)
    for _ in range(3):
        world.wait(LONG_AGAIN_S)
        again = world.history.take(requests.AwaitResult)
        assert again.message.correlation_id == first.message.correlation_id
        assert again.message.message_id != first.message.message_id
    first.answer(closed("r1"))
    assert future.result(SOON_S).run_id == "r1"


def test_a_result_is_asked_for_again_after_a_reconnect(world: World) -> None:
    future = world.ask(ResultWait(world.core, AWAIT, follow=True))
    world.history.take(requests.AwaitResult)
    world.settle()
    world.broker.break_connection()
    world.history.take(requests.AwaitResult).answer(closed("r1"))
    assert future.result(SOON_S).run_id == "r1"


def test_a_result_outlives_a_broker_that_is_away_and_a_history_that_died(world: World) -> None:
    world.history.broker.close(world.soon())
    world.broker.server_version(world.soon())
    world.broker.break_connection(away_s=200.0)
    future = world.ask(ResultWait(world.core, AWAIT, follow=True))
    for _ in range(30):
        world.clock.advance(10.0)
        world.broker.wait_quiet(world.soon())
    world.history = world.make_history()
    world.pass_until(lambda: not world.history.is_idle)
    world.history.take(requests.AwaitResult).answer(closed("r1"))
    assert future.result(SOON_S).run_id == "r1"


def test_runs_are_followed_each_once(world: World) -> None:
    future = world.ask(ResultWait(world.core, AWAIT, follow=True))
    first = world.history.take(requests.AwaitResult)
    first.answer(closed("r1", "r2"), closed("r1", "r2"))
    second = world.history.take(requests.AwaitResult)
    assert second.request.run_id == "r2"
    second.answer(closed("r2"))
    assert future.result(SOON_S).run_id == "r2"
    assert world.history.is_idle


def test_a_run_that_is_not_followed_ends_the_wait(world: World) -> None:
    future = world.ask(ResultWait(world.core, AWAIT, follow=False))
    world.history.take(requests.AwaitResult).answer(closed("r1", "r2"))
    assert future.result(SOON_S).next_run_id == "r2"


def test_a_start_that_wants_the_result_is_one_round_trip(world: World) -> None:
    future = world.ask(ResultWait(world.core, START, follow=True))
    world.history.take(requests.StartWorkflow).answer(STARTED, closed("r1"))
    assert future.result(SOON_S).run_id == "r1"
    assert world.history.is_idle


def test_after_a_start_the_result_is_asked_for(world: World) -> None:
    future = world.ask(ResultWait(world.core, START, follow=True))
    world.history.take(requests.StartWorkflow).answer(STARTED)
    world.wait(SHORT_AGAIN_S)
    assert world.history.is_idle
    world.wait(LONG_AGAIN_S)
    asked = world.history.take(requests.AwaitResult)
    assert asked.request == requests.AwaitResult(workflow_id="w", run_id="r1")
    world.wait(LONG_AGAIN_S * 10)
    asked.answer(closed("r1"))
    assert future.result(SOON_S).run_id == "r1"


def test_a_start_that_nobody_answers_ends_at_the_deadline(world: World) -> None:
    future = world.ask(ResultWait(world.core, START, follow=True))
    world.history.take(requests.StartWorkflow)
    world.wait(10)
    with pytest.raises(DeadlineExceeded, match="no history service"):
        future.result(SOON_S)


def test_a_broker_that_is_away_is_named_at_the_deadline(world: World) -> None:
    world.core.listen(world.soon())
    world.ask(OneAnswer(world.core, AWAIT, requests.Done))
    world.history.take(requests.AwaitResult).answer(requests.Done())
    world.settle()
    world.broker.break_connection(away_s=100)
    future = world.ask(OneAnswer(world.core, AWAIT, requests.Done))
    world.wait(10)
    with pytest.raises(DeadlineExceeded, match="no answer before the deadline"):
        future.result(SOON_S)


def test_who_waits_no_more_does_not_ask_again(world: World) -> None:
    asked = ResultWait(world.core, AWAIT, follow=True).begin(same)
    world.history.take(requests.AwaitResult)
    asked.drop()
    world.wait(LONG_AGAIN_S * 2)
    assert world.history.is_idle


def test_closing_the_client_ends_every_wait(world: World) -> None:
    future = world.ask(ResultWait(world.core, AWAIT, follow=True))
    world.history.take(requests.AwaitResult)
    world.core.close(world.soon())
    with pytest.raises(Unavailable, match="the client was closed"):
        future.result(SOON_S)


# --- updates --------------------------------------------------------------------------------------


def state(stage: int) -> requests.UpdateState:
    return requests.UpdateState(update_id="u", run_id="r1", stage=stage)


def update_wait(world: World) -> tuple[Future[Any], Taken]:
    request = requests.UpdateWorkflow(workflow_id="w", update=UPDATE, wait=3)
    future = world.ask(UpdateWait(world.core, request))
    taken = world.history.take(requests.UpdateWorkflow)
    assert taken.request == request
    return future, taken


def test_the_end_of_an_update_is_one_round_trip(world: World) -> None:
    future, taken = update_wait(world)
    taken.answer(state(3))
    assert future.result(SOON_S) == state(3)


def test_an_update_that_takes_long_is_asked_for(world: World) -> None:
    future, _ = update_wait(world)
    world.wait(10)
    probe = world.history.take(requests.UpdateWorkflow)
    assert probe.request.wait == 1
    probe.answer(state(1))
    asked = world.history.take(requests.AwaitUpdate)
    assert asked.request.run_id == "r1"
    world.wait(LONG_AGAIN_S * 3)
    asked.answer(state(2), state(3))
    assert future.result(SOON_S).stage == 3


def test_an_update_that_nobody_answers_ends(world: World) -> None:
    future, _ = update_wait(world)
    world.wait(10)
    world.history.take(requests.UpdateWorkflow)
    world.wait(10)
    with pytest.raises(DeadlineExceeded, match="no history service"):
        future.result(SOON_S)


def test_an_update_that_was_sent_before_is_waited_for(world: World) -> None:
    request = requests.AwaitUpdate(workflow_id="w", update_id="u")
    future = world.ask(UpdateWait(world.core, request))
    world.history.take(requests.AwaitUpdate)
    world.wait(LONG_AGAIN_S)
    world.history.take(requests.AwaitUpdate).answer(STARTED, state(3))
    assert future.result(SOON_S).stage == 3


def start_with_update(world: World, wait: int) -> tuple[StartWithUpdate, Taken]:
    request = requests.StartWorkflow(
        workflow_id="w", workflow_type="T", task_queue="q", update=UPDATE, update_wait=wait
    )
    both = StartWithUpdate(world.core, request)
    both.begin(same)
    return both, world.history.take(requests.StartWorkflow)


def test_a_start_with_an_update_has_two_answers(world: World) -> None:
    both, taken = start_with_update(world, 2)
    taken.answer(STARTED, state(1), state(2))
    assert both.started.result(SOON_S) == STARTED
    assert both.future.result(SOON_S).stage == 2


def test_after_the_start_only_the_update_is_asked_for(world: World) -> None:
    both, taken = start_with_update(world, 2)
    taken.answer(STARTED)
    world.wait(SHORT_AGAIN_S)
    asked = world.history.take(requests.UpdateWorkflow)
    assert (asked.request.update, asked.request.run_id, asked.request.wait) == (UPDATE, "r1", 2)
    assert asked.message.message_id != taken.message.message_id
    asked.answer(state(2))
    assert both.future.result(SOON_S).stage == 2


def test_the_end_of_an_update_with_start_is_waited_for(world: World) -> None:
    both, taken = start_with_update(world, 3)
    taken.answer(STARTED)
    assert both.started.result(SOON_S) == STARTED
    world.wait(LONG_AGAIN_S)
    asked = world.history.take(requests.AwaitUpdate)
    assert (asked.request.update_id, asked.request.run_id) == ("u", "r1")
    asked.answer(state(3))
    assert both.future.result(SOON_S).stage == 3


@pytest.mark.parametrize("fails", [lambda w: w.wait(10), lambda w: w.core.close(w.soon())])
def test_a_start_with_an_update_fails_as_a_whole(
    world: World, fails: Callable[[World], None]
) -> None:
    both, _ = start_with_update(world, 2)
    fails(world)
    for future in (both.started, both.future):
        with pytest.raises(Unavailable):
            future.result(SOON_S)
