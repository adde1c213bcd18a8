"""How answers about workflows are read. That they come is shown beside the conversations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.client.fake_history import SOON_S, FakeHistory
from tq_broker.client.core import ClientCore
from tq_broker.client.workflow_core import WorkflowCore
from tq_broker.converter import DataConverter, ZlibCodec
from tq_broker.exceptions import (
    ApplicationError,
    CancelledError,
    Malformed,
    TerminatedError,
    TimeoutError,
    WorkflowFailureError,
    WorkflowUpdateFailedError,
)
from tq_broker.model import failure, payload, requests
from tq_broker.model.names import Names
from tq_broker.model.requests import Closed, Status
from tq_broker.queues.connection import Connection
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.testing.manual_clock import ManualClock

CODED = DataConverter(codecs=(ZlibCodec(),))
NAMES = Names("n")


class World:
    def __init__(self) -> None:
        self.clock = ManualClock()
        server = MemoryServer()
        broker = MemoryBroker(server, self.clock)
        self.client = ClientCore(Connection(broker, NAMES, self.clock, CODED, "me"))
        self.core = WorkflowCore(self.client)
        self.history = FakeHistory(MemoryBroker(server, self.clock), NAMES, self.soon)

    def soon(self) -> float:
        return self.clock.monotonic() + 10_000

    def result(self, closed: Closed, hint: Any = Any) -> Any:
        self.history.script[requests.AwaitResult] = lambda _: closed
        return self.core.result("w", None, hint, follow=True).waited(SOON_S)


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.client.close(world.soon())
    world.history.broker.close(world.soon())


def test_a_result_is_unsealed_and_typed(world: World) -> None:
    closed = Closed(run_id="r", status=Status.COMPLETED, result=payload.dump([1], CODED))
    assert world.result(closed, tuple[float, ...]) == (1.0,)
    broken = Closed(run_id="r", status=Status.COMPLETED, result=b"\x00zlib\x00?")
    with pytest.raises(Malformed, match=r"result of workflow 'w': .* is cut short"):
        world.result(broken)
    state = requests.UpdateState(
        update_id="u", run_id="r", stage=3, result=payload.dump("x", CODED)
    )
    with pytest.raises(Malformed, match=r"result of update 'u': .*Expected `int`, got `str`"):
        world.core.update_value(state, int)


@pytest.mark.parametrize(
    ("status", "text", "cause"),
    [
        (Status.FAILED, "'w' failed: no good", ApplicationError),
        (Status.CANCELED, "'w' canceled: Workflow cancelled", CancelledError),
        (Status.TERMINATED, "'w' terminated: Workflow terminated", TerminatedError),
        (Status.TIMED_OUT, "'w' timed out: Workflow timed out", TimeoutError),
    ],
)
def test_every_bad_end_has_its_cause(
    world: World, status: Status, text: str, cause: type[Exception]
) -> None:
    why = payload.seal_failure(failure.application("no good", "E"), CODED)
    closed = Closed(
        run_id="r",
        status=status,
        failure=why if status is Status.FAILED else None,
        details=payload.dump_args(["a", 1], CODED),
    )
    with pytest.raises(WorkflowFailureError, match=text) as raised:
        world.result(closed)
    assert isinstance(raised.value.cause, cause)
    if cause in (CancelledError, TerminatedError):
        assert list(raised.value.cause.details) == ["a", 1]  # type: ignore[attr-defined]


def test_a_termination_tells_its_reason(world: World) -> None:
    why = failure.Failure(kind=failure.FailureKind.TERMINATED, message="enough")
    closed = Closed(run_id="r", status=Status.TERMINATED, failure=why, details=b"[1]")
    with pytest.raises(WorkflowFailureError, match="'w' terminated: enough") as raised:
        world.result(closed)
    assert list(raised.value.cause.details) == [1]  # type: ignore[attr-defined]


def test_the_cause_of_a_failed_update_is_unsealed(world: World) -> None:
    why = payload.seal_failure(failure.application("no good", "E"), CODED)
    state = requests.UpdateState(update_id="u", run_id="r", stage=3, failure=why)
    with pytest.raises(WorkflowUpdateFailedError, match="'u' failed: no good"):
        world.core.update_value(state, Any)
