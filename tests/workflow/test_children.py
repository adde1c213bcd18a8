"""How child workflows are named at a call; what follows is in
`tests/worker/test_replay_children.py`."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.worker.replays import Run
from tq_broker import workflow
from tq_broker.exceptions import InvalidArgument
from tq_broker.workflow.children import workflow_about


@workflow.defn(name="kid")
class Child:
    @workflow.run
    async def run(self) -> int: ...


@workflow.defn(dynamic=True)
class Any:
    @workflow.run
    async def run(self, args: Sequence[workflow.RawValue]) -> None: ...


def test_classes_run_methods_and_names() -> None:
    assert workflow_about(Child) == workflow_about(Child.run) == ("kid", int)
    assert workflow_about("kid")[0] == "kid"


def test_what_is_no_workflow_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not a workflow"):
        workflow_about(print)
    with pytest.raises(InvalidArgument, match="by the name of a type"):
        workflow_about(Any)


def test_an_unknown_option_is_named() -> None:
    @workflow.defn
    class Mother:
        @workflow.run
        async def run(self) -> None:
            await workflow.start_child_workflow(Child.run, colour="red")  # type: ignore[call-overload]

    turn = Run(Mother).task()
    assert turn.failure is not None
    assert "'colour'" in turn.failure.failure.message
