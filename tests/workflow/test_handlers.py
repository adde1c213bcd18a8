"""Handlers that are set at run time: see also `tests/worker/test_replay_handlers.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.worker.replays import Run, types
from tq_broker import workflow


@workflow.defn
class Setting:
    def __init__(self) -> None:
        self.got: list[Any] = []

    @workflow.run
    async def run(self) -> list[Any]:
        for get, set_ in (
            (workflow.get_dynamic_signal_handler, workflow.set_dynamic_signal_handler),
            (workflow.get_dynamic_query_handler, workflow.set_dynamic_query_handler),
            (workflow.get_dynamic_update_handler, workflow.set_dynamic_update_handler),
        ):
            assert get() is None
            set_(self.any)
            assert get() is not None
        assert workflow.get_query_handler("x") is None
        assert workflow.get_update_handler("x") is None
        assert workflow.current_update_info() is None
        await workflow.wait_condition(lambda: len(self.got) == 2)
        return self.got

    def any(self, name: str, args: Sequence[workflow.RawValue]) -> str:
        if not workflow.unsafe.is_read_only():
            self.got.append([name, *(arg.decode(int) for arg in args)])
        return name


def test_dynamic_handlers_take_what_has_none_of_its_own() -> None:
    run = Run(Setting)
    run.task()
    run.signal("s", 1)
    run.update("u1", "u", 2)
    assert run.query("q").result == b'"q"'
    assert types(run.task()) == ["AcceptUpdate", "CompleteUpdate", "CompleteWorkflow"]
    assert run.result() == [["s", 1], ["u", 2]]


def test_wrong_handlers_fail_the_task() -> None:
    @workflow.defn
    class Wrong:
        @workflow.run
        async def run(self) -> None:
            async def validate() -> None: ...

            workflow.set_update_handler("x", print, validator=validate)

    turn = Run(Wrong).task()
    assert turn.failure is not None
    assert "must not be async" in turn.failure.failure.message
