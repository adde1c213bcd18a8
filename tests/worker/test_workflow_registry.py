"""Workflows by type."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tq_broker import workflow
from tq_broker.activity import RawValue
from tq_broker.common import VersioningBehavior
from tq_broker.exceptions import InvalidArgument
from tq_broker.worker.workflow_registry import WorkflowRegistry


@workflow.defn
class Order:
    @workflow.run
    async def run(self) -> None:
        pass


@workflow.defn(name="Order")
class Other:
    @workflow.run
    async def run(self) -> None:
        pass


@workflow.defn(dynamic=True)
class Anything:
    @workflow.run
    async def run(self, args: Sequence[RawValue]) -> None:
        pass


@workflow.defn(dynamic=True)
class Everything:
    @workflow.run
    async def run(self, args: Sequence[RawValue]) -> None:
        pass


def test_a_workflow_is_found_by_its_type() -> None:
    registry = WorkflowRegistry([Order])
    found = registry.find("Order")
    assert found is not None
    assert found.cls is Order
    assert registry.find("other") is None
    assert registry.types == ("Order",)


def test_a_dynamic_one_serves_what_has_none_of_its_own() -> None:
    registry = WorkflowRegistry([Order, Anything])
    found = registry.find("other")
    assert found is not None
    assert found.cls is Anything
    assert registry.types == ("Order",)
    assert len(registry) == 2


@pytest.mark.parametrize(
    ("workflows", "message"),
    [
        ([Order, Other], "More than one workflow named Order"),
        ([Anything, Everything], "More than one dynamic workflow"),
        ([int], "not a workflow"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(workflows: list[type], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        WorkflowRegistry(workflows)


def test_with_a_deployment_each_says_what_a_new_version_means() -> None:
    behavior = VersioningBehavior

    @workflow.defn(versioning_behavior=behavior.PINNED)
    class Pinned:
        @workflow.run
        async def run(self) -> None:
            pass

    WorkflowRegistry([Pinned]).check_behaviors(behavior.UNSPECIFIED)
    for one, name in ((Order, "Order"), (Anything, "Anything")):
        registry = WorkflowRegistry([Pinned, one])
        registry.check_behaviors(behavior.AUTO_UPGRADE)
        with pytest.raises(InvalidArgument, match=f"workflow {name} has no versioning_behavior"):
            registry.check_behaviors(behavior.UNSPECIFIED)
    with pytest.raises(InvalidArgument, match="must be a VersioningBehavior"):
        workflow.defn(versioning_behavior="pinned")(Pinned)  # type: ignore[call-overload]
