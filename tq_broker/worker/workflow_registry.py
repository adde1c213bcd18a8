"""The workflows a worker has, by type."""

from __future__ import annotations

from collections.abc import Iterable

from tq_broker.common import VersioningBehavior
from tq_broker.exceptions import InvalidArgument
from tq_broker.workflow.definition import WorkflowDefinition, definition_of


class WorkflowRegistry:
    """Workflows by type. A dynamic one serves the types that have none of their own."""

    def __init__(self, workflows: Iterable[type]) -> None:
        self._by_type: dict[str, WorkflowDefinition] = {}
        self._dynamic: WorkflowDefinition | None = None
        for workflow in workflows:
            self._add(definition_of(workflow))
        self.types: tuple[str, ...] = tuple(sorted(self._by_type))

    def _add(self, definition: WorkflowDefinition) -> None:
        if definition.dynamic:
            if self._dynamic is not None:
                raise InvalidArgument("More than one dynamic workflow")
            self._dynamic = definition
        elif definition.name in self._by_type:
            raise InvalidArgument(f"More than one workflow named {definition.name}")
        else:
            self._by_type[definition.name] = definition

    def find(self, workflow_type: str) -> WorkflowDefinition | None:
        """The workflow that serves ``workflow_type``, if one does."""
        return self._by_type.get(workflow_type, self._dynamic)

    def check_behaviors(self, default: VersioningBehavior) -> None:
        """Raises `InvalidArgument` if one says not what a new version means, nor ``default``."""
        if default is not VersioningBehavior.UNSPECIFIED:
            return
        every = (*self._by_type.values(), *filter(None, (self._dynamic,)))
        for one in every:
            if one.versioning_behavior is VersioningBehavior.UNSPECIFIED:
                raise InvalidArgument(
                    f"workflow {one.name or one.cls.__name__} has no versioning_behavior, which a"
                    " worker with a deployment needs: say it at @workflow.defn, or as the"
                    " default_versioning_behavior of the worker"
                )

    def __len__(self) -> int:
        return len(self._by_type) + (self._dynamic is not None)
