"""The runtime: read-only where it must be; the rest is in the tests of the parts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.worker.replays import Run
from tq_broker import activity, workflow

CHANGES: dict[str, Callable[[], Any]] = {
    "random": lambda: workflow.random(),
    "new_random": lambda: workflow.new_random(),
    "uuid4": lambda: workflow.uuid4(),
    "patched": lambda: workflow.patched("x"),
    "upsert_memo": lambda: workflow.upsert_memo({"a": 1}),
    "set_current_details": lambda: workflow.set_current_details("x"),
    "set_signal_handler": lambda: workflow.set_signal_handler("x", print),
    "local": lambda: workflow.start_local_activity(act),
    "create_task": lambda: asyncio.get_running_loop().call_later(1, print),
}
READS: dict[str, Callable[[], Any]] = {
    "info": lambda: workflow.info().workflow_id,
    "now": lambda: workflow.now().isoformat(),
    "memo": lambda: workflow.memo(),
    "seed": lambda: workflow.random_seed(),
    "details": lambda: workflow.get_current_details(),
    "finished": lambda: workflow.all_handlers_finished(),
}


@activity.defn
def act() -> None: ...


@workflow.defn
class Asked:
    @workflow.run
    async def run(self) -> None:
        await asyncio.Event().wait()

    @workflow.query
    def ask(self, what: str) -> Any:
        return {**CHANGES, **READS}[what]()


@pytest.mark.parametrize("name", CHANGES)
def test_a_query_changes_nothing(name: str) -> None:
    run = Run(Asked)
    run.task()
    answer = run.query("ask", name)
    assert answer.failure is not None
    assert answer.failure.type == "ReadOnlyContextError"


@pytest.mark.parametrize("name", READS)
def test_a_query_may_look(name: str) -> None:
    run = Run(Asked)
    run.task()
    assert run.query("ask", name).error == ""
