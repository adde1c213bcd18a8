"""Who decides about an option of a task: the call, over the decorator, over what is inherited from
the workflow that makes the call.

Rules of this file: the one table of options that stand at more than one of these places, and the
one function that decides by it. Afterwards traffic rules are asked (`tq_broker.queues.routing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Option:
    """An option, and which places count for it; the call always does.

    Attributes:
        at_workflow_defn: It can be given at ``@workflow.defn``,
        at_activity_defn: and at ``@activity.defn``.
        is_inherited: What a workflow starts has it from the workflow, where nobody says it.
        is_merged: The places are put together instead, name by name.
    """

    name: str
    at_workflow_defn: bool = False
    is_inherited: bool = False
    is_merged: bool = False
    at_activity_defn: bool = True


OPTIONS: Mapping[str, Option] = {
    option.name: option
    for option in (
        Option("task_queue", at_workflow_defn=True, is_inherited=True),
        Option("route", at_workflow_defn=True),
        Option("affinity", at_workflow_defn=True, is_inherited=True),
        Option("affinity_group", at_workflow_defn=True, is_inherited=True),
        Option("on_lost", at_workflow_defn=True, is_inherited=True),
        Option("requires", at_workflow_defn=True),
        Option("priority", at_workflow_defn=True, is_inherited=True),
        Option("rate_limit_key"),
        Option("fairness_key", at_workflow_defn=True, is_inherited=True),
        Option("fairness_weight", at_workflow_defn=True, is_inherited=True),
        Option("version", at_workflow_defn=True, is_inherited=True),
        Option("headers", is_inherited=True, is_merged=True),
        Option("versioning_behavior", at_workflow_defn=True, at_activity_defn=False),
    )
}


def settle(option: str, call: T | None, decorator: T | None, inherited: T) -> T:
    """What counts for ``option``, which is one that is inherited; ``None`` is a place that does
    not say it.

    Merged ones are put together by `tq_broker.common.inherited_headers`; what makes up an affinity
    counts together, by `tq_broker.model.affinity.affinity_under`.
    """
    row = OPTIONS[option]
    assert row.is_inherited, f"{option} is not inherited"
    assert not row.is_merged, f"{option} is put together, not chosen"
    if call is not None:
        return call
    return inherited if decorator is None else decorator


def completed(call: Mapping[str, Any], decorator: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of a start, completed by those of ``@workflow.defn``."""
    said = {name: value for name, value in call.items() if value is not None}
    if "versioning_override" in said:  # the same by its other name
        decorator = {name: value for name, value in decorator.items() if name != "version"}
    return {**decorator, **said}
