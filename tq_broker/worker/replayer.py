"""The replayer: runs workflow code against histories that were stored, to see whether it fits.

Use it before a release, with histories of runs that are open or have just ended::

    await Replayer(workflows=[Order]).replay_workflow(history)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tq_broker import chain
from tq_broker.converter import DEFAULT, DataConverter
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.events import WorkflowExecutionStarted
from tq_broker.model.history_json import WorkflowHistory
from tq_broker.model.workflow_tasks import RunKey
from tq_broker.worker.interceptors import Interceptor
from tq_broker.worker.replay import OutOfStep, Replay
from tq_broker.worker.workflow_chain import WorkflowInterception
from tq_broker.worker.workflow_registry import WorkflowRegistry


@dataclass(frozen=True)
class WorkflowReplayResult:
    """How one replay ended. ``replay_failure`` is ``None`` if the code fits the history."""

    history: WorkflowHistory
    replay_failure: BaseException | None


@dataclass(frozen=True)
class WorkflowReplayResults:
    """How several ended. ``replay_failures``: those that failed, by run id."""

    replay_failures: Mapping[str, BaseException]


class Replayer:
    """Replays histories. Nothing is connected, and no activity runs.

    Args:
        workflows: Classes decorated with ``@workflow.defn``.
        namespace: What the workflows are told about it.
        data_converter: That of the worker which has run them.
        workflow_failure_exception_types: As of the worker.
        interceptors: As of the worker.

    Raises:
        InvalidArgument: there are no workflows, or two of the same type.
    """

    def __init__(
        self,
        *,
        workflows: Sequence[type],
        namespace: str = "ReplayNamespace",
        data_converter: DataConverter = DEFAULT,
        workflow_failure_exception_types: Sequence[type[BaseException]] = (),
        interceptors: Sequence[Interceptor] = (),
    ) -> None:
        if not workflows:
            raise InvalidArgument("At least one workflow must be specified")
        self._registry = WorkflowRegistry(workflows)
        self._namespace = namespace
        self._converter = data_converter
        self._failure_types = tuple(workflow_failure_exception_types)
        self._interception = WorkflowInterception.of(
            chain.check("interceptors", interceptors, Interceptor)
        )

    async def replay_workflow(
        self, history: WorkflowHistory, *, raise_on_replay_failure: bool = True
    ) -> WorkflowReplayResult:
        """Replay one history.

        Raises:
            NondeterminismError: the code does not fit; it says which event, and what was expected.
            Exception: whatever else the code raised that is no failure of the workflow.
        """
        failure = await asyncio.to_thread(self._replay, history)
        if failure is not None and raise_on_replay_failure:
            raise failure
        return WorkflowReplayResult(history, failure)

    async def replay_workflows(
        self,
        histories: AsyncIterable[WorkflowHistory] | Iterable[WorkflowHistory],
        *,
        raise_on_replay_failure: bool = True,
    ) -> WorkflowReplayResults:
        """Replay several, one after the other; raises as `replay_workflow` does, for the first."""
        failures: dict[str, BaseException] = {}
        async for history in _each(histories):
            result = await self.replay_workflow(
                history, raise_on_replay_failure=raise_on_replay_failure
            )
            if result.replay_failure is not None:
                failures[history.run_id] = result.replay_failure
        return WorkflowReplayResults(failures)

    def _replay(self, history: WorkflowHistory) -> BaseException | None:
        """Why the code does not fit; ``None`` if it does."""
        first = history.events[0] if history.events else None
        if not isinstance(first, WorkflowExecutionStarted):
            return InvalidArgument("history: its first event is not WorkflowExecutionStarted")
        definition = self._registry.find(first.workflow_type)
        if definition is None:
            known = ", ".join(self._registry.types)
            return InvalidArgument(f"no workflow {first.workflow_type!r} here; there are: {known}")
        replay = Replay(
            definition,
            RunKey(history.workflow_id, history.run_id),
            namespace=self._namespace,
            converter=self._converter,
            failure_exception_types=self._failure_types,
            interception=self._interception,
        )
        try:
            turn = replay.activate(history.events, now_ms=history.events[-1].time_ms, live=False)
        except OutOfStep as error:
            return error
        finally:
            replay.close()
        return None if turn.failure is None else turn.failure.error


async def _each(
    histories: AsyncIterable[WorkflowHistory] | Iterable[WorkflowHistory],
) -> AsyncIterable[WorkflowHistory]:
    if isinstance(histories, AsyncIterable):
        async for history in histories:
            yield history
    else:
        for history in histories:
            yield history
