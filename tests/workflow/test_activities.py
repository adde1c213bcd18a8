"""How activities are named at a call; what follows is in
`tests/worker/test_replay_activities.py`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import pytest

from tests.worker.replays import Run
from tq_broker import activity, workflow
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.commands import ScheduleActivity
from tq_broker.workflow.activities import _about

SECOND = timedelta(seconds=1)


@activity.defn
async def function(number: int) -> str: ...


class Holder:
    @activity.defn(name="by name", start_to_close_timeout=SECOND)
    def method(self, number: int) -> int: ...


@activity.defn
class Callable:
    def __call__(self, number: int) -> float: ...


@activity.defn(dynamic=True)
def dynamic(args: Sequence[activity.RawValue]) -> None: ...


@pytest.mark.parametrize(
    ("target", "name", "hint"),
    [
        (function, "function", str),
        (Holder.method, "by name", int),
        (Holder().method, "by name", int),
        (Callable, "Callable", float),
        (Callable(), "Callable", float),
        ("any name", "any name", None),
    ],
)
def test_functions_methods_classes_and_names(target: object, name: str, hint: object) -> None:
    found, _, result_type = _about(target)
    assert found == name
    assert hint is None or result_type is hint


def test_what_is_no_activity_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="not an activity"):
        _about(print)
    with pytest.raises(InvalidArgument, match="by the name of a type"):
        _about(dynamic)


def test_outside_a_workflow_there_is_nothing_to_start() -> None:
    with pytest.raises(RuntimeError, match="not in a workflow"):
        workflow.start_activity(function, 1, start_to_close_timeout=SECOND)


@workflow.defn
class Variants:
    @workflow.run
    async def run(self) -> None:
        workflow.start_activity_method(Holder.method, 1)
        workflow.start_activity_class(Callable, 2, start_to_close_timeout=SECOND)
        await workflow.execute_activity_method(Holder.method, 3)


def test_temporals_variants_are_the_same_functions() -> None:
    commands = Run(Variants).task().commands
    names = [c.activity_type for c in commands if isinstance(c, ScheduleActivity)]
    assert names == ["by name", "Callable", "by name"]
