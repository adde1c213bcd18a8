"""A run's state, as it is stored."""

from __future__ import annotations

import msgspec
import pytest

from tests.history.stage import CLIENT, Stage, an_activity
from tq_broker.exceptions import Malformed
from tq_broker.history.state import FORMAT, Execution
from tq_broker.model import commands as c
from tq_broker.model import events as e


def test_it_is_stored_without_its_memory() -> None:
    stage = Stage(want_result=True)
    stage.answer(an_activity(), c.StartTimer(timer_id="t", start_to_fire_ms=50))
    stored = Execution.load(stage.run.dump())
    assert stored.live is None
    assert stage.run.memory().tail == stage.history
    stored.live = stage.run.live
    assert stored == stage.run
    assert stored.waiters == [CLIENT]


def test_arguments_stay_out_of_it() -> None:
    stage = Stage(input=b'["' + b"x" * 100_000 + b'"]')
    stage.answer(an_activity(input=b'{"args":["' + b"y" * 100_000 + b'"]}'))
    assert len(stage.run.dump()) < 400


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x92\x01\x80", b"\x92\x01\x91\x01", b"\x90"])
def test_what_is_no_state_is_malformed(data: bytes) -> None:
    with pytest.raises(Malformed, match="state of a run"):
        Execution.load(data)


def test_a_state_of_a_later_release_is_refused() -> None:
    _, fields = msgspec.msgpack.decode(Stage().run.dump())
    with pytest.raises(Malformed, match="later release"):
        Execution.load(msgspec.msgpack.encode((FORMAT + 1, fields)))


def test_a_state_of_an_earlier_release_has_fewer_fields() -> None:
    run = Stage().run
    _, fields = msgspec.msgpack.decode(run.dump())
    assert Execution.load(msgspec.msgpack.encode((1, fields[:20]))).task == run.task


def test_the_next_time_is_the_soonest() -> None:
    stage = Stage(run_timeout_ms=90_000, execution_timeout_ms=80_000)
    begin_ms = stage.now_ms
    assert stage.run.next_ms() == begin_ms + 80_000
    stage.answer(
        c.StartTimer(timer_id="t", start_to_fire_ms=70_000),
        an_activity(schedule_to_close_ms=60_000),
    )
    assert stage.run.next_ms() == begin_ms + 60_000
    stage.outcome(6)
    assert stage.run.next_ms() == begin_ms + 70_000
    stage.fail_task()
    assert stage.run.next_ms() == begin_ms + 1_000


def test_events_are_had_from_memory_as_far_as_it_reaches() -> None:
    stage = Stage()
    stage.answer(an_activity(), sticky=True)
    assert stage.run.events_from(1) is None
    assert stage.run.events_from(3) == stage.history[2:]
    assert stage.run.events_from(6) == []
    assert Execution.load(stage.run.dump()).events_from(3) is None


def test_a_retried_task_shows_its_scheduling_before_it_is_written() -> None:
    stage = Stage()
    stage.fail_task()
    assert stage.run.unwritten() == []
    stage.wait(1_000)
    [scheduled] = stage.run.unwritten()
    assert isinstance(scheduled, e.WorkflowTaskScheduled)
    assert (scheduled.event_id, scheduled.attempt) == (5, 2)
    assert stage.run.events_from(1) == [*stage.history, scheduled]
    assert stage.run.events_from(5) == [scheduled]
