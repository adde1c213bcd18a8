"""Patches: new code for new runs, old code for old histories."""

from __future__ import annotations

import asyncio

from tests.worker.replays import Run, types
from tq_broker import workflow
from tq_broker.converter import DEFAULT
from tq_broker.worker.replay import Replay
from tq_broker.workflow.definition import definition_of


@workflow.defn(name="Same")
class Before:
    @workflow.run
    async def run(self) -> str:
        await asyncio.sleep(1)
        return "old"


@workflow.defn(name="Same")
class Patched:
    @workflow.run
    async def run(self) -> str:
        if workflow.patched("p"):
            await asyncio.sleep(2)
            await asyncio.sleep(3)
            assert workflow.patched("p")
            return "new"
        await asyncio.sleep(1)
        assert not workflow.patched("p")
        return "old"


@workflow.defn(name="Same")
class Deprecated:
    @workflow.run
    async def run(self) -> str:
        workflow.deprecate_patch("p")
        await asyncio.sleep(2)
        await asyncio.sleep(3)
        return "new"


@workflow.defn(name="Same")
class After:
    @workflow.run
    async def run(self) -> str:
        await asyncio.sleep(2)
        await asyncio.sleep(3)
        return "new"


def moved(run: Run, to: type) -> Run:
    """The same run in a worker with other code."""
    run.cached.close()
    run.workflow = to
    run.cached = run.replay()
    return run


def test_a_new_run_takes_the_new_way_and_marks_it() -> None:
    run = Run(Patched)
    assert types(run.task()) == ["RecordMarker", "StartTimer"]
    run.fire("1")
    assert types(run.task()) == ["StartTimer"]
    run.fire("2")
    run.task()
    assert run.result() == "new"


def test_an_old_history_takes_the_old_way() -> None:
    run = Run(Before)
    run.task()
    run.fire("1")
    moved(run, Patched).task()
    assert run.result() == "old"


def test_a_deprecated_patch_fits_what_has_its_mark() -> None:
    run = Run(Patched)
    run.task()
    run.fire("1")
    assert types(moved(run, Deprecated).task()) == ["StartTimer"]


def test_a_patch_can_be_removed_from_what_was_deprecated() -> None:
    run = Run(Deprecated)
    run.task()
    run.fire("1")
    assert types(moved(run, After).task()) == ["StartTimer"]


def test_deprecating_may_meet_a_history_that_has_no_mark_any_more() -> None:
    run = Run(After)
    run.task()
    run.fire("1")
    assert types(moved(run, Deprecated).task()) == ["StartTimer"]


def test_a_patch_must_not_be_removed_too_early() -> None:
    run = Run(Patched)
    run.task()
    replay = Replay(
        definition_of(After), run.cached._situation.run, namespace="n", converter=DEFAULT
    )
    turn = replay.activate(run.events, now_ms=1, live=False)
    replay.close()
    assert turn.failure is not None
    assert "MarkerRecorded(core_patch, id='p')" in turn.failure.failure.message
