"""The part of both faces of the client that is about whole task queues.

What is awaited here is done by a thread: an operator's verbs take many steps, one after another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict

from tq_broker.client.broadcast import WorkerResult, broadcast
from tq_broker.client.core import ClientCore
from tq_broker.client.fairness import Fairness, FairnessOperations
from tq_broker.client.finding import ActivityDescription, describe_activity
from tq_broker.client.operations import (
    PING_WAIT_S,
    Operations,
    TaskQueueDescription,
    TaskQueueSummary,
)
from tq_broker.client.peeking import PeekedTask
from tq_broker.client.transfer import OnProgress, Transferred
from tq_broker.client.verbs import Verbs
from tq_broker.client.waiting import UNSET, Timeout, one_or_many, to_seconds
from tq_broker.common import ActivityOptionsDict
from tq_broker.model.settings import FairnessWeightSet, TaskQueuePaused, TaskQueueResumed

if TYPE_CHECKING:
    from typing_extensions import Unpack

BROADCAST_S = 30.0


class MoveOptionsDict(TypedDict, total=False):
    """The keywords of `Verbs.move`."""

    types: Sequence[str]
    limit: int | None
    side: str
    requires: Sequence[str]
    create: bool
    dry_run: bool
    on_progress: OnProgress | None


class CopyOptionsDict(TypedDict, total=False):
    """The keywords of `Verbs.copy`."""

    types: Sequence[str]
    limit: int | None
    requires: Sequence[str]
    create: bool
    dry_run: bool
    job: str
    on_progress: OnProgress | None


class _Verbs:
    core: ClientCore

    @property
    def _fairness(self) -> FairnessOperations:
        return FairnessOperations(self.core)

    @cached_property
    def operations(self) -> Operations:
        """What an operator does: look at, purge and reclaim task queues, parked messages."""
        return Operations(self.core)

    @cached_property
    def verbs(self) -> Verbs:
        """Pause and resume task queues, move and copy what waits in them; blocking."""
        return Verbs(self.core)

    def _broadcast(
        self,
        activity: Callable[..., Any] | str,
        args: Sequence[Any],
        options: Mapping[str, Any],
        timeout: Timeout,
        wait: Timeout,
    ) -> list[WorkerResult]:
        return broadcast(
            self.core,
            activity,
            args,
            options,
            timeout_s=to_seconds(timeout) or 0.0,
            wait_s=to_seconds(wait) or 0.0,
        )


class AsyncVerbs(_Verbs):
    """Verbs of `tq_broker.client.Client`."""

    async def fairness(self, task_queue: str) -> Fairness:
        """What is known of its fairness keys. See `FairnessOperations.look`."""
        return await asyncio.to_thread(self._fairness.look, task_queue)

    async def set_fairness_weights(
        self,
        task_queue: str,
        weights: Mapping[str, float | None],
        *,
        reason: str = "",
        side: str = "",
    ) -> list[FairnessWeightSet]:
        """Give fairness keys of it weights. See `FairnessOperations.set_weights`."""
        return await asyncio.to_thread(
            self._fairness.set_weights, task_queue, weights, reason=reason, side=side
        )

    async def pause_task_queue(
        self, task_queue: str, reason: str = "", *, side: str = ""
    ) -> TaskQueuePaused:
        """Let workers take no more tasks of it. See `Verbs.pause`."""
        return await asyncio.to_thread(self.verbs.pause, task_queue, reason, side=side)

    async def resume_task_queue(
        self, task_queue: str, reason: str = "", *, side: str = ""
    ) -> TaskQueueResumed:
        """Let workers take tasks of it again. See `Verbs.resume`."""
        return await asyncio.to_thread(self.verbs.resume, task_queue, reason, side=side)

    async def move_tasks(
        self, source: str, target: str, **options: Unpack[MoveOptionsDict]
    ) -> Transferred:
        """Move the tasks that wait in ``source`` to ``target``. See `Verbs.move`."""
        return await asyncio.to_thread(self.verbs.move, source, target, **options)

    async def copy_tasks(
        self, source: str, target: str, **options: Unpack[CopyOptionsDict]
    ) -> Transferred:
        """Copy the tasks that wait in ``source`` to ``target``. See `Verbs.copy`."""
        return await asyncio.to_thread(self.verbs.copy, source, target, **options)

    async def list_task_queues(self) -> list[TaskQueueSummary]:
        """All task queues, each side for itself, and who listens. See `Operations.task_queues`."""
        return await asyncio.to_thread(self.operations.task_queues)

    async def describe_task_queue(self, task_queue: str) -> TaskQueueDescription:
        """All about one task queue. See `Operations.describe`."""
        return await asyncio.to_thread(self.operations.describe, task_queue)

    async def peek_tasks(
        self, task_queue: str, count: int = 10, *, requires: Sequence[str] = ()
    ) -> list[PeekedTask]:
        """The first tasks that wait; they go to the back. See `Operations.peek`."""
        return await asyncio.to_thread(self.operations.peek, task_queue, count, requires=requires)

    async def purge_task_queue(self, task_queue: str, *, requires: Sequence[str] = ()) -> int:
        """Drop all tasks that wait, for ever; returns how many. See `Operations.purge`."""
        return await asyncio.to_thread(self.operations.purge, task_queue, requires=requires)

    async def describe_activity(
        self, activity_id: str, *, task_queue: str = "", search: int = 0
    ) -> ActivityDescription:
        """What can be known of an activity, and where it goes. See
        `tq_broker.client.finding.describe_activity`."""
        return await asyncio.to_thread(
            describe_activity, self.core, activity_id, task_queue=task_queue, search=search
        )

    async def broadcast_activity(
        self,
        activity: Callable[..., Any] | str,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        timeout: Timeout = BROADCAST_S,
        wait: Timeout = PING_WAIT_S,
        **options: Unpack[ActivityOptionsDict],
    ) -> list[WorkerResult]:
        """Run an activity once on every worker of its task queue, and collect what they answer.

        Args:
            activity: As for ``start_activity``; so are ``arg``, ``args`` and the options.
            timeout: How long each worker may take, its wait for a free slot included.
            wait: How long workers may take to say that they are there.

        Returns:
            One entry for each worker that is there: its result, or why there is none.

        Raises:
            InvalidArgument: nothing was sent.
        """
        return await asyncio.to_thread(
            self._broadcast, activity, one_or_many(arg, args), options, timeout, wait
        )


class BlockingVerbs(_Verbs):
    """Verbs of `tq_broker.client.BlockingClient`."""

    def fairness(self, task_queue: str) -> Fairness:
        """What is known of its fairness keys. See `FairnessOperations.look`."""
        return self._fairness.look(task_queue)

    def set_fairness_weights(
        self,
        task_queue: str,
        weights: Mapping[str, float | None],
        *,
        reason: str = "",
        side: str = "",
    ) -> list[FairnessWeightSet]:
        """Give fairness keys of it weights. See `FairnessOperations.set_weights`."""
        return self._fairness.set_weights(task_queue, weights, reason=reason, side=side)

    def pause_task_queue(
        self, task_queue: str, reason: str = "", *, side: str = ""
    ) -> TaskQueuePaused:
        """Let workers take no more tasks of it. See `Verbs.pause`."""
        return self.verbs.pause(task_queue, reason, side=side)

    def resume_task_queue(
        self, task_queue: str, reason: str = "", *, side: str = ""
    ) -> TaskQueueResumed:
        """Let workers take tasks of it again. See `Verbs.resume`."""
        return self.verbs.resume(task_queue, reason, side=side)

    def move_tasks(
        self, source: str, target: str, **options: Unpack[MoveOptionsDict]
    ) -> Transferred:
        """Move the tasks that wait in ``source`` to ``target``. See `Verbs.move`."""
        return self.verbs.move(source, target, **options)

    def copy_tasks(
        self, source: str, target: str, **options: Unpack[CopyOptionsDict]
    ) -> Transferred:
        """Copy the tasks that wait in ``source`` to ``target``. See `Verbs.copy`."""
        return self.verbs.copy(source, target, **options)

    def list_task_queues(self) -> list[TaskQueueSummary]:
        """All task queues, each side for itself, and who listens. See `Operations.task_queues`."""
        return self.operations.task_queues()

    def describe_task_queue(self, task_queue: str) -> TaskQueueDescription:
        """All about one task queue. See `Operations.describe`."""
        return self.operations.describe(task_queue)

    def peek_tasks(
        self, task_queue: str, count: int = 10, *, requires: Sequence[str] = ()
    ) -> list[PeekedTask]:
        """The first tasks that wait; they go to the back. See `Operations.peek`."""
        return self.operations.peek(task_queue, count, requires=requires)

    def purge_task_queue(self, task_queue: str, *, requires: Sequence[str] = ()) -> int:
        """Drop all tasks that wait, for ever; returns how many. See `Operations.purge`."""
        return self.operations.purge(task_queue, requires=requires)

    def describe_activity(
        self, activity_id: str, *, task_queue: str = "", search: int = 0
    ) -> ActivityDescription:
        """What can be known of an activity, and where it goes. See
        `tq_broker.client.finding.describe_activity`."""
        return describe_activity(self.core, activity_id, task_queue=task_queue, search=search)

    def broadcast_activity(
        self,
        activity: Callable[..., Any] | str,
        arg: Any = UNSET,
        *,
        args: Sequence[Any] = (),
        timeout: Timeout = BROADCAST_S,
        wait: Timeout = PING_WAIT_S,
        **options: Unpack[ActivityOptionsDict],
    ) -> list[WorkerResult]:
        """Run an activity once on every worker of its task queue.

        See `Client.broadcast_activity`.
        """
        return self._broadcast(activity, one_or_many(arg, args), options, timeout, wait)
