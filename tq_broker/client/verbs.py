"""Verbs: what an operator does to whole task queues, beside `tq_broker.client.operations`.

Blocking. Pauses are records of the settings log, which every worker follows; moving and copying
is done by this process, see `tq_broker.client.transfer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tq_broker.client.core import ClientCore
from tq_broker.client.operations import Operations
from tq_broker.client.purging import aside
from tq_broker.client.settings_book import append
from tq_broker.client.transfer import Job, OnProgress, Transfer, Transferred, Verb
from tq_broker.clock import epoch_ms
from tq_broker.exceptions import InvalidArgument, NotFound
from tq_broker.model.composition import begin_first, counterpart
from tq_broker.model.names import Kind, QueueName, check_task_queue, check_text
from tq_broker.model.settings import (
    ACTIVITY_SIDE,
    SIDES,
    TaskQueuePaused,
    TaskQueueResumed,
    sides_of,
)
from tq_broker.queues.broker import QueueStats

REASON_BYTES_MAX = 1_000


class Verbs:
    """What an operator may do to task queues, in the namespace of a client. Thread-safe."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core
        self._operations = Operations(core)

    # --- pausing ------------------------------------------------------------------------------

    def pause(self, task_queue: str, reason: str = "", *, side: str = "") -> TaskQueuePaused:
        """Let workers take no more tasks of ``task_queue``; returns when that is on record.

        Within a second no worker consumes it any more, those that start later included. Tasks may
        still be added, and wait; what runs goes on. Host and process queues are paused with it.
        Timeouts and workflow timers go on.

        Args:
            reason: Is shown to whoever wonders.
            side: ``activity``, ``workflow``, or empty for both.

        Raises:
            NotFound: there is no such task queue.
            InvalidArgument: nothing was recorded.
        """
        self._check(task_queue, reason, side)
        paused = self._operations.settings().pauses()
        if not any(
            self._stats(task_queue, one) is not None or (one, task_queue) in paused
            for one in sides_of(side)
        ):
            self._operations.estate(task_queue)  # its tasks may all require something
        record = TaskQueuePaused(
            task_queue, epoch_ms(self._core.clock), self._core.identity, reason, side
        )
        append(self._core, record)
        return record

    def resume(self, task_queue: str, reason: str = "", *, side: str = "") -> TaskQueueResumed:
        """Let workers take tasks of ``task_queue`` again; arguments as for `pause`.

        Raises:
            NotFound: it is not paused.
            InvalidArgument: nothing was recorded.
        """
        self._check(task_queue, reason, side)
        paused = self._operations.settings().pauses()
        if not any((one, task_queue) in paused for one in sides_of(side)):
            which = f"the {side} side of " if side else ""
            raise NotFound(f"{which}task queue {task_queue!r} is not paused")
        record = TaskQueueResumed(
            task_queue, epoch_ms(self._core.clock), self._core.identity, reason, side
        )
        append(self._core, record)
        return record

    def _check(self, task_queue: str, reason: str, side: str) -> None:
        check_task_queue(task_queue)
        if reason:
            check_text("reason", reason, bytes_max=REASON_BYTES_MAX)
        if side:
            self._check_side(side)

    # --- moving -------------------------------------------------------------------------------

    def move(
        self,
        source: str,
        target: str,
        *,
        types: Sequence[str] = (),
        limit: int | None = None,
        side: str = ACTIVITY_SIDE,
        requires: Sequence[str] = (),
        create: bool = False,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
    ) -> Transferred:
        """Move the tasks that wait in ``source`` to ``target``, oldest first.

        As many as wait now; each leaves ``source`` when ``target`` has it for sure. Interrupt it
        as you like, and call it again for the rest. With ``types`` what stays goes to the back of
        its queue. Retries of a moved activity of a workflow go to where the workflow said.

        All queues of ``source`` are meant but those of a host, a process or a traffic rule, and of
        a version that does not serve ``target``: what is for these workers only stays with them. In
        ``target`` tasks are for the same version and capabilities; limits of types and keys are
        those of ``target``.

        Args:
            types: Patterns of the types to move, such as ``Send*``; none means all.
            limit: Move so many at most.
            side: ``activity`` or ``workflow``.
            requires: Only tasks that require just these capabilities.
            create: ``target`` need not exist.
            dry_run: Only count. With ``types`` all tasks are read for it, and go round once.
            on_progress: Called every hundred tasks, when none is in hand; what it raises ends the
                move there.

        Raises:
            NotFound: there is no such task queue.
            InvalidArgument: nothing was moved.
        """
        verb = Verb.COUNT if dry_run else Verb.MOVE
        return self._transfer(
            verb, source, target, types, limit, side, requires, create, "", on_progress
        )

    def copy(
        self,
        source: str,
        target: str,
        *,
        types: Sequence[str] = (),
        limit: int | None = None,
        requires: Sequence[str] = (),
        create: bool = False,
        dry_run: bool = False,
        job: str = "",
        on_progress: OnProgress | None = None,
    ) -> Transferred:
        """Put a copy of each activity task that waits in ``source`` into ``target``.

        A copy is an activity of its own, with a new id, of which nobody gets the outcome: neither
        the caller nor the workflow of the original. The originals go to the back of ``source``.

        Args:
            job: Continues the copy whose `Transferred.job` it is: what that has copied is left.

        Raises as `move`, of which the other arguments are.
        """
        verb = Verb.COUNT if dry_run else Verb.COPY
        return self._transfer(
            verb, source, target, types, limit, ACTIVITY_SIDE, requires, create, job, on_progress
        )

    def _transfer(
        self,
        verb: Verb,
        source: str,
        target: str,
        types: Sequence[str],
        limit: int | None,
        side: str,
        requires: Sequence[str],
        create: bool,
        job: str,
        on_progress: OnProgress | None,
    ) -> Transferred:
        if isinstance(types, str):
            raise InvalidArgument("types must be a sequence of patterns")
        self._check_side(side)
        first = Job(
            verb=verb,
            source=self._queue(source, side),
            target=self._queue(target, side),
            types=tuple(types),
            limit=limit,
            id=job or self._core.new_id(),
        )
        estate = self._operations.estate(source, side, requires)
        if not create and self._stats(target, side) is None:
            raise self._missing(target, "; say create if it is to be made")
        told = Transferred(job=first.id, waiting=0, is_dry=verb is Verb.COUNT)
        deployments = self._operations.settings().deployments
        found = [
            (member, to)
            for member in begin_first(estate)
            if (to := counterpart(self._core.names, member, target, deployments)) is not None
        ]
        if verb is Verb.COUNT and not first.types:
            ready = sum(estate[member].backlog for member, _ in found)
            return replace(told, waiting=ready, done=ready if limit is None else min(limit, ready))
        with aside(self._core, source, estate):
            for member, to in found:
                left = None if limit is None else limit - told.done
                if left is None or left > 0:
                    work = replace(first, source=member.queue, target=to, limit=left)
                    told = self._one(work, told, on_progress)
        return told

    def _one(self, job: Job, before: Transferred, on_progress: OnProgress | None) -> Transferred:
        """Do it for one queue of the task queue; ``before`` is what was done for the others."""
        core = self._core
        stats = core.broker.stats(str(job.source), core.deadline())
        ready = 0 if stats is None else stats.ready
        tell = None if on_progress is None else lambda now: on_progress(before.plus(now))
        return before.plus(Transfer(core, job, tell).run({job.source: ready}))

    # --- task queues --------------------------------------------------------------------------

    def _queue(self, task_queue: str, side: str) -> QueueName:
        return self._core.names.queue(Kind(side), check_task_queue(task_queue))

    def _stats(self, task_queue: str, side: str) -> QueueStats | None:
        queue = self._queue(task_queue, side)
        return self._core.broker.stats(str(queue), self._core.deadline())

    def _check_side(self, side: str) -> None:
        if side not in SIDES:
            raise InvalidArgument(f"side is {side!r}; it must be one of {', '.join(SIDES)}")

    def _missing(self, task_queue: str, hint: str = "") -> NotFound:
        return NotFound(
            f"there is no task queue {task_queue!r} in namespace"
            f" {self._core.names.namespace!r}{hint}"
        )
