"""Operations: what an operator asks and does about the task queues of a namespace.

Rules of this file:

* blocking; every method takes one absolute deadline, the client's ``timeout`` from its start;
* a look changes nothing: `task_queues`, `describe`, `workers` and `parked` read counts, the
  settings log, the answers of workers, and the parked queue, which nobody consumes;
* what must read *tasks* says so. RabbitMQ has no way to look at a message in its place: one that
  was handed out and given back is marked ``redelivered``, and to a worker that mark means that
  somebody may have begun, so the attempt counts as lost (and an activity with
  ``maximum_attempts=1`` fails). Hence `peek` puts a fresh, confirmed copy of each task at the
  *back* of its queue instead: the mark keeps its meaning, the place in the queue does not;
* nothing is declared in a namespace that nobody uses: a mistyped name leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from tq_broker.client.backlog import stats_of
from tq_broker.client.core import ClientCore
from tq_broker.client.deployments import DeploymentOperations
from tq_broker.client.parked import (
    DELIVERY_COUNT,
    ParkedMessage,
    fresh,
    read_parked,
    renewed,
)
from tq_broker.client.traffic import TrafficOperations
from tq_broker.clock import epoch_ms, remaining
from tq_broker.common import PRIORITY_DEFAULT, Requires
from tq_broker.exceptions import (
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    Malformed,
    NotFound,
    TqBrokerError,
)
from tq_broker.model import control, envelope, workflow_tasks
from tq_broker.model.capabilities import check_requires, in_words
from tq_broker.model.figures import Figures, Look, Series
from tq_broker.model.limits import Limits, Side, check_limits
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import (
    ORDERED,
    PLAIN,
    Exchange,
    Kind,
    QueueName,
    check_task_queue,
    requirements,
)
from tq_broker.model.parts import ALL, PARTS_MAX, Part, check_part
from tq_broker.model.registrations import capable_of, compare, serving
from tq_broker.model.settings import (
    ACTIVITY_SIDE,
    SIDES,
    WORKFLOW_SIDE,
    BackedOff,
    LimitsSet,
    LimitState,
    TaskQueuePaused,
    side_of,
)
from tq_broker.model.tasks import ActivityTask
from tq_broker.queues.broker import Delivery, QueueStats
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.queues.topology import DELIVERY_LIMIT

PEEK_MAX = 1_000
TURN_ROUND_MAX = 500
"""A queue no longer than this, which nobody consumes, is peeked at as a whole: then every task
has gone to the back once, and their order is what it was."""
PARKED_MAX = 10_000
PREVIEW_CHARS = 200
PING_WAIT_S = 1.0
LOOKS_MAX = DELIVERY_LIMIT // 2
"""A parked message that was looked at so often is parked anew: from 4.0 RabbitMQ drops what was
given back more than 20 times, and the parked queue of an older tq_broker may have that bound."""
QUEUES_PER_S = 200
SILENCE_S = 0.3
"""The settings log has been read to its end when nothing came for so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQueueSummary:
    """A task queue at a glance.

    Attributes:
        backlog: Tasks that wait in the shared queue.
        consumers: Consumers that RabbitMQ counts, which also counts frozen ones.
        in_flight: Tasks that the workers that answered have in hand.
        workers: Identities of those workers.
        exists: False when workers say they serve it, but its queue is not there now.
        side: ``activity`` or ``workflow``.
        requires: It is about the tasks that require just these capabilities, which have a queue of
            their own, and ``workers`` are those that have them all. What they have in hand is
            counted with the rest of the task queue.
        pause: Who paused it, when and why; ``None`` if it is not paused.
        back_offs: What was asked from inside, of all or of keys; they lift themselves.
        prioritized: Its tasks wait in a priority queue, which the counts include.
    """

    task_queue: str
    backlog: int
    consumers: int
    in_flight: int
    workers: tuple[str, ...]
    exists: bool = True
    side: str = ACTIVITY_SIDE
    requires: tuple[str, ...] = ()
    pause: TaskQueuePaused | None = None
    back_offs: tuple[BackedOff, ...] = ()
    prioritized: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateBacklog:
    """Tasks that wait for one host or process. ``kind`` is ``host`` or ``process``."""

    kind: str
    target: str
    backlog: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQueueDescription:
    """All about a task queue.

    Attributes:
        oldest_age_s: How long the task at the head has waited. ``None``: not known without
            reading it, see `Operations.describe`.
        activities: Types that every one of its workers has.
        mismatches: Types that only some of its workers have, with the identities of those that
            lack them.
        workflow: The same of its workflow side; ``None`` if it has none.
        capable: What waits for workers with certain capabilities; by set.
        limits: What limits each side of it, and who set that, when and why.
        figures: How much comes and goes, of each side that is there.
        part_limits: The same of types and keys of its activities.
        settings_faults: What of the settings log could not be read, and by whom ("" is us): the
            last settings that could are in force there.
        waiting: Activities in sight that wait for limits of their types or keys; beside the
            backlog.
    """

    summary: TaskQueueSummary
    oldest_age_s: float | None
    private: tuple[PrivateBacklog, ...]
    workers: tuple[control.WorkerInfo, ...]
    activities: tuple[str, ...]
    mismatches: tuple[tuple[str, tuple[str, ...]], ...]
    limits: tuple[tuple[Side, LimitState], ...] = ()
    capable: tuple[TaskQueueSummary, ...] = ()
    figures: tuple[Figures, ...] = ()
    part_limits: tuple[tuple[Part, LimitState], ...] = ()
    waiting: int = 0
    settings_faults: tuple[tuple[str, str], ...] = ()
    workflow: WorkflowSideDescription | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowSideDescription:
    """The workflow side of a task queue. ``workflows`` are the types that all its workers have;
    ``mismatches`` those that some lack."""

    summary: TaskQueueSummary
    workers: tuple[control.WorkerInfo, ...]
    workflows: tuple[str, ...]
    mismatches: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PeekedTask:
    """A task that waits.

    Attributes:
        age_s: Since this attempt was put on its queue; ``None`` if it does not tell.
        arguments: The JSON of its arguments, shortened; or why they cannot be read.
        redelivered: Somebody has had it and given it back or died: a worker that gets it takes
            the attempt for lost.
        priority: 1 (first) to 5.
    """

    type: str
    id: str
    attempt: int
    age_s: float | None
    size_bytes: int
    arguments: str
    redelivered: bool
    priority: int = PRIORITY_DEFAULT


class Operations:
    """What an operator may do, in the namespace of a client. Thread-safe."""

    def __init__(self, core: ClientCore) -> None:
        self._core = core
        self._names = core.names

    @property
    def traffic(self) -> TrafficOperations:
        """What an operator does about traffic rules."""
        return TrafficOperations(self._core)

    @property
    def deployments(self) -> DeploymentOperations:
        """What an operator does about deployment versions."""
        return DeploymentOperations(self._core)

    # --- looking ------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether anybody has used this namespace on this broker."""
        return self._stats(self._names.queue(Kind.PARKED), self._core.deadline()) is not None

    def workers(self, wait_s: float = PING_WAIT_S) -> list[control.WorkerInfo]:
        """The living workers of the namespace: those that answer within ``wait_s`` seconds."""
        return self._waited(self._pinged(wait_s), self._core.deadline(), wait_s)

    def task_queues(self, wait_s: float = PING_WAIT_S) -> list[TaskQueueSummary]:
        """The task queues that exist, by name, each side for itself: all that the settings log and
        workers know of."""
        if not self.exists():
            return []
        deadline = self._core.deadline()
        ping = self._pinged(wait_s)
        logged = self._logged(deadline)
        workers = self._waited(ping, deadline, wait_s)
        found = {(name, side) for side in SIDES for name in logged.task_queues(side)}
        found |= {(name, side) for side, name in logged.pauses()}
        found |= {
            (name, side)
            for side in SIDES
            for worker in workers
            for name in worker.task_queues
            if serving((worker,), name, side)
        }
        deadline = self._core.deadline() + len(found) / QUEUES_PER_S
        summaries = [
            self._summary(self._names.queue(Kind(side), name), workers, logged, deadline)
            for name, side in sorted(found)
        ]
        summaries += [
            self._summary(queue, workers, logged, deadline)
            for queue in sorted(
                logged.capable_queues(), key=lambda q: (q.parts[-1], *requirements(q))
            )
        ]
        # Known to the log but gone, and served by nobody: it was deleted behind our back, or it is
        # the side that a pause of both means, too.
        there = {one.task_queue for one in summaries if one.exists or one.workers}
        return [
            one
            for one in summaries
            if one.exists
            or (not one.requires and (one.workers or (one.pause and one.task_queue not in there)))
        ]

    def describe(
        self, task_queue: str, *, read_head: bool = False, wait_s: float = PING_WAIT_S
    ) -> TaskQueueDescription:
        """All about one task queue.

        Args:
            read_head: Read the task at the head to tell its age, at the price of `peek`: it
                goes to the back. Without it the age is told only when nothing waits.

        Raises:
            NotFound: there is no such task queue.
        """
        check_task_queue(task_queue)
        sides = [side for side in SIDES if self._is_there(task_queue, side)]
        deadline = self._core.deadline()
        series = [self._begun(task_queue, Side(side), deadline) for side in sides]
        ping = self._pinged(wait_s)
        logged = self._logged(deadline)
        capable = self._capable(task_queue, logged)
        if not sides and not capable:
            self._existing(task_queue)
        found = self._waited(ping, deadline, wait_s)
        workers = serving(found, task_queue, ACTIVITY_SIDE)
        queue = self._queue(task_queue)
        summary = self._summary(queue, workers, logged, deadline)
        age_s: float | None = None
        if not summary.backlog:
            age_s = 0.0
        elif read_head:
            heads = self._heads(queue, 1, deadline)
            age_s = heads[0].age_s if heads else 0.0
        compared = compare(workers, ACTIVITY_SIDE)
        return TaskQueueDescription(
            summary=summary,
            oldest_age_s=age_s,
            private=self._private(task_queue, workers, deadline),
            workers=workers,
            activities=compared.everywhere,
            mismatches=compared.mismatches,
            workflow=(
                self._workflow_side(task_queue, found, logged, deadline)
                if WORKFLOW_SIDE in sides
                else None
            ),
            capable=tuple(self._summary(one, found, logged, deadline) for one in capable),
            limits=tuple((side, logged.limits(side, task_queue)) for side in Side),
            figures=tuple(self._figures(one, found, logged, deadline) for one in series),
            part_limits=tuple(logged.part_limits(task_queue)),
            waiting=self._waiting(task_queue, workers, deadline),
            settings_faults=tuple(
                (who, fault)
                for who, fault in (
                    ("", logged.fault),
                    *((one.identity, one.settings_fault) for one in workers),
                )
                if fault
            ),
        )

    def _begun(self, task_queue: str, side: Side, deadline: float) -> Series:
        """A first look."""
        waiting = self.waiting(self._names.queue(Kind(side.value), task_queue), deadline)
        series = Series(task_queue, side)
        series.begin(self._core.clock.monotonic(), sum(waiting.values()))
        return series

    def _figures(
        self,
        series: Series,
        workers: Sequence[control.WorkerInfo],
        logged: SettingsLog,
        deadline: float,
    ) -> Figures:
        """A second look, after which there are rates."""
        queue = self._names.queue(Kind(series.side.value), series.task_queue)
        stats = stats_of(self._core, queue, logged.prioritized, deadline)
        return series.look(
            Look(
                at=self._core.clock.monotonic(),
                backlog=stats.ready if stats else 0,
                workers=workers,
                limits=logged.limits(series.side, series.task_queue),
                is_paused=bool(logged.pause_of(queue)),
            )
        )

    def _waiting(
        self, task_queue: str, workers: Sequence[control.WorkerInfo], deadline: float
    ) -> int:
        stats = self._stats(self._names.queue(Kind.ANTEROOM, task_queue), deadline)
        out_of_sight = 0 if stats is None else stats.ready
        return out_of_sight + sum(one.waiting.get(task_queue, 0) for one in workers)

    def _workflow_side(
        self,
        task_queue: str,
        found: Sequence[control.WorkerInfo],
        logged: SettingsLog,
        deadline: float,
    ) -> WorkflowSideDescription:
        workers = serving(found, task_queue, WORKFLOW_SIDE)
        compared = compare(workers, WORKFLOW_SIDE)
        return WorkflowSideDescription(
            summary=self._summary(self._names.workflow(task_queue), workers, logged, deadline),
            workers=workers,
            workflows=compared.everywhere,
            mismatches=compared.mismatches,
        )

    def settings(self) -> SettingsLog:
        """The settings of the namespace, read as far as they go now; not followed any more."""
        return self._logged(self._core.deadline())

    def peek(
        self,
        task_queue: str,
        count: int = 10,
        *,
        side: str = ACTIVITY_SIDE,
        requires: Sequence[str] = (),
    ) -> list[PeekedTask]:
        """The first ``count`` tasks that wait, in order.

        They go to the back of the queue (see the rules of this file), as fresh copies which no
        attempt is used up by; but for those that were redelivered already, which keep place and
        mark. A short queue without consumers is turned round as a whole, so that its order
        stays. Should this process be killed meanwhile, each task in its hands comes back as a
        lost attempt, and may run beside its copy.

        Args:
            requires: Those of the tasks that require just these capabilities.

        Raises:
            NotFound: there is no such task queue.
            InvalidArgument: ``count`` is not from 1 to 1000.
        """
        if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= PEEK_MAX:
            raise InvalidArgument(f"count is {count!r}; it must be from 1 to {PEEK_MAX}")
        (queue,) = self.queues_of(task_queue, side, requires, every=False)
        return self._heads(queue, count, self._core.deadline())

    def parked(self, limit: int = 1_000) -> list[ParkedMessage]:
        """The parked messages, oldest first, ``limit`` at most. They stay where they are.

        Raises:
            InvalidArgument: ``limit`` is not from 1 to 10 000.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= PARKED_MAX:
            raise InvalidArgument(f"limit is {limit!r}; it must be from 1 to {PARKED_MAX}")
        found: list[ParkedMessage] = []

        def look(parked: ParkedMessage) -> bool:
            found.append(parked)
            return False

        self._each_parked(limit, look)
        return sorted(found, key=lambda parked: parked.parked_ms)

    def limits(self, task_queue: str, side: Side = Side.ACTIVITY, part: Part = ALL) -> LimitState:
        """The limits of one side of a task queue or of a part, who set them, when and why."""
        check_task_queue(task_queue)
        return self.settings().limits(side, task_queue, check_part(part))

    # --- doing --------------------------------------------------------------------------------

    def set_limits(
        self,
        task_queue: str,
        change: Callable[[Limits], Limits] | None,
        *,
        side: Side = Side.ACTIVITY,
        part: Part = ALL,
        reason: str = "",
    ) -> LimitState:
        """Change the limits of one side of a task queue, for all workers, within a second.

        Args:
            change: Makes the new limits of those in force; ``None`` takes the setting back, so
                that the default of the workers is in force again.
            part: Which tasks of it they are for: of one activity type, of one key, or of each key
                for itself. Whatever was set for the others stays in force beside it.
            reason: For those who ask later.

        Raises:
            InvalidArgument: a limit is out of bounds, or there are no such parts.
            NotFound: there is no such task queue, or nothing to take back of that part.
            DeadlineExceeded: the settings log could not be read.
            Conflict: somebody else has changed them meanwhile; nothing was changed.
        """
        check_part(part)
        if part != ALL and side is not Side.ACTIVITY:
            raise InvalidArgument("only activities have limits by type and key")
        self._existing(task_queue, side.value)
        core, deadline = self._core, self._core.deadline()
        # Whoever declares a task queue says so in the log; but it may be on its way still.
        core.sender.ensure([self._names.queue(Kind.SETTINGS)], deadline)
        with self._following(deadline) as settings:
            if settings.is_behind:
                raise DeadlineExceeded("the settings log was not read to its end: nothing is set")
            before = settings.limits(side, task_queue, part)
            if change is None and part != ALL and before.setting is None:
                raise NotFound(f"nothing was set for {part} of task queue {task_queue!r}")
            table = settings.part_table(task_queue)
            if table is not None and part not in table.limits and len(table.limits) > PARTS_MAX:
                raise InvalidArgument(
                    f"{task_queue!r} has limits for {PARTS_MAX} types and keys; that is the bound"
                )
            record = LimitsSet(
                task_queue=task_queue,
                side=side,
                part=part,
                limits=None if change is None else check_limits(change(before.limits)),
                at_ms=epoch_ms(core.clock),
                change_id=core.sender.ids.next(),
                revision=before.revision,
                by=core.connection.identity,
                reason=reason,
            )
            appended: Future[None] = Future()
            core.sender.append(record, deadline, lambda error: _end(appended, error))
            appended.result()
            winner = settings.wait_verdict(record.change_id, deadline)
            if winner is None:
                raise DeadlineExceeded("the limits were set, but the settings log is not read")
            if winner.change_id != record.change_id:
                raise Conflict(
                    f"{winner.by or 'somebody'} has set the limits of {task_queue!r} meanwhile"
                    f" ({winner.reason or 'no reason given'}); yours are not in force"
                )
            return settings.limits(side, task_queue, part)

    def purge(self, task_queue: str, *, requires: Sequence[str] = ()) -> int:
        """Drop all tasks that wait, for ever; returns how many. Nobody is told of it: who waits
        for a result waits until a timeout.

        Args:
            requires: Only those that require just these capabilities.

        Raises:
            NotFound: there is no such task queue.
        """
        queues = self.queues_of(task_queue, ACTIVITY_SIDE, requires)
        purge, deadline = self._core.broker.purge, self._core.deadline()
        return sum(
            purge(str(one), deadline) for queue in queues for one in self.waiting(queue, deadline)
        )

    def queues_of(
        self,
        task_queue: str,
        side: str = ACTIVITY_SIDE,
        requires: Sequence[str] = (),
        *,
        every: bool = True,
    ) -> list[QueueName]:
        """The shared queues of one side of a task queue, at least one.

        Args:
            requires: Only the one of the tasks that require just these capabilities.
            every: Also those of tasks that require something; False: only the plain one.

        Raises:
            NotFound: there is none.
        """
        if requires and side != ACTIVITY_SIDE:
            raise InvalidArgument("requires is for activities only")
        if requires:
            needed = check_requires(Requires(tuple(requires))).names
            queue = self._names.capable(check_task_queue(task_queue), needed)
            if self._stats(queue, self._core.deadline()) is None:
                raise NotFound(
                    f"nobody has required {in_words(needed)} of task queue {task_queue!r},"
                    " or its queue was reclaimed"
                )
            return [queue]
        capable = (
            self._capable(task_queue, self.settings()) if every and side == ACTIVITY_SIDE else []
        )
        if capable and not self._is_there(check_task_queue(task_queue), side):
            return capable
        return [self._existing(task_queue, side), *capable]

    def _capable(self, task_queue: str, logged: SettingsLog) -> list[QueueName]:
        """The queues of a task queue's tasks that require something; those that are there."""
        deadline = self._core.deadline()
        queues = (self._names.capable(task_queue, one) for one in logged.capable(task_queue))
        return [queue for queue in queues if self._stats(queue, deadline) is not None]

    def reclaim(self, task_queues: Sequence[str] | None = None, *, grace_s: float) -> list[str]:
        """Remove task queues that are empty and unserved.

        No publisher can lose a task by it: one that comes meanwhile makes the queue anew.

        Args:
            task_queues: ``None`` means all that are empty and unserved now.
            grace_s: How long a task may be on its way inside RabbitMQ; 0 to 60 seconds.

        Returns:
            The names of those that were removed.
        """
        if task_queues is None:
            task_queues = [
                one.task_queue
                for one in self.task_queues()
                if one.exists and not (one.backlog or one.consumers or one.workers or one.pause)
            ]
        for name in task_queues:
            check_task_queue(name)
        if not task_queues or not self.exists():
            return []
        # A worker that shuts down consumes no more, but may still have tasks in hand.
        workers, logged = self.workers(), self.settings()
        served = {name for worker in workers for name in worker.task_queues}
        task_queues = list(dict.fromkeys(task_queues))
        reclaimer = self._core.connection.reclaimer
        queues = [
            queue
            for side in SIDES
            for name in task_queues
            if name not in served and self._is_there(name, side)
            for queue in reclaimer.queues_of(name, side, logged.prioritized)
        ]
        queues += [
            queue
            for name in task_queues
            for queue in self._capable(name, logged)
            if not capable_of(workers, queue)
        ]
        if not queues:
            return []
        gone = reclaimer.reclaim_queues(queues, grace_s=grace_s)
        removed = {one.parts[-1] for one in gone if one.kind not in PLAIN}
        return [name for name in task_queues if name in removed]

    def replay(
        self, keys: Iterable[str] | None, *, task_queue: str | None = None
    ) -> list[ParkedMessage]:
        """Put parked messages back to where they came from, as fresh tasks of the same attempt.

        Each is acknowledged in the parked queue only after its copy is confirmed elsewhere.

        Args:
            keys: `ParkedMessage.key` or ``message_id`` of those; ``None`` means all.
            task_queue: Put them there instead.

        Raises:
            NotFound: a key is not parked, or a message does not tell where it came from.
        """
        if task_queue is not None:
            check_task_queue(task_queue)
        return self._taken(keys, lambda parked: self._replayed(parked, task_queue))

    def drop(self, keys: Iterable[str] | None) -> list[ParkedMessage]:
        """Remove parked messages for ever; ``None`` means all. Raises `NotFound`."""
        return self._taken(keys, lambda parked: None)

    # --- task queues --------------------------------------------------------------------------

    def _queue(self, task_queue: str) -> QueueName:
        return self._names.activity(check_task_queue(task_queue))

    def _is_there(self, task_queue: str, side: str) -> bool:
        queue = self._names.queue(Kind(side), task_queue)
        return self._stats(queue, self._core.deadline()) is not None

    def _existing(self, task_queue: str, side: str = ACTIVITY_SIDE) -> QueueName:
        if side not in SIDES:
            raise InvalidArgument(f"side is {side!r}; it must be one of {', '.join(SIDES)}")
        queue = self._names.queue(Kind(side), check_task_queue(task_queue))
        if self._stats(queue, self._core.deadline()) is None:
            raise NotFound(
                f"there is no task queue {task_queue!r} in namespace"
                f" {self._names.namespace!r}: nobody has used it, or it was reclaimed"
            )
        return queue

    def waiting(self, queue: QueueName, deadline: float) -> dict[QueueName, int]:
        """The queues in which tasks for ``queue`` wait, in the order in which they begin, with
        how many; none if there is no such task queue."""
        queues = [queue]
        if queue.kind in ORDERED:
            queues = [self._names.priority(queue), queue]
        stats = [(one, self._stats(one, deadline)) for one in queues]
        return {one: found.ready for one, found in stats if found is not None}

    def _stats(self, queue: QueueName, deadline: float) -> QueueStats | None:
        return self._core.broker.stats(str(queue), deadline)

    def _pinged(self, wait_s: float) -> Future[list[control.WorkerInfo]]:
        if self.exists():
            return self._core.ping(wait_s)
        nobody: Future[list[control.WorkerInfo]] = Future()
        nobody.set_result([])
        return nobody

    def _waited(
        self, ping: Future[list[control.WorkerInfo]], deadline: float, wait_s: float
    ) -> list[control.WorkerInfo]:
        return ping.result(remaining(self._core.clock, deadline) + wait_s)

    def _logged(self, deadline: float) -> SettingsLog:
        """The settings log, read as far as it goes now."""
        with self._following(deadline) as follower:
            return follower

    @contextmanager
    def _following(self, deadline: float) -> Iterator[SettingsLog]:
        """The settings log, read as far as it goes now and followed inside the block."""
        core, queue = self._core, self._names.queue(Kind.SETTINGS)
        follower = SettingsLog(core.broker, self._names, core.clock)
        if self._stats(queue, deadline) is None:
            yield follower
            return
        core.broker.wait_subscribed([follower.follow()], deadline)
        try:
            follower.catch_up(deadline)
            yield follower
        finally:
            follower.stop()

    def _summary(
        self,
        queue: QueueName,
        workers: Iterable[control.WorkerInfo],
        logged: SettingsLog,
        deadline: float,
    ) -> TaskQueueSummary:
        stats = stats_of(self._core, queue, logged.prioritized, deadline)
        name, side, needed = queue.parts[-1], side_of(queue), requirements(queue)
        served_by = capable_of(workers, queue) if needed else serving(workers, name, side)
        return TaskQueueSummary(
            task_queue=name,
            backlog=stats.ready if stats else 0,
            consumers=stats.consumers if stats else 0,
            # Of workflow tasks a worker does not tell of which task queue they are.
            in_flight=(
                0
                if needed
                else sum(worker.held.get(name, 0) for worker in served_by)
                if side == ACTIVITY_SIDE
                else sum(worker.workflow_tasks for worker in served_by)
            ),
            workers=tuple(worker.identity for worker in served_by),
            exists=stats is not None,
            side=side,
            requires=needed,
            pause=logged.pauses().get((side, name)),
            back_offs=tuple(logged.back_offs(name)) if side == ACTIVITY_SIDE else (),
            prioritized=not needed and (side, name) in logged.prioritized,
        )

    def _private(
        self, task_queue: str, workers: Iterable[control.WorkerInfo], deadline: float
    ) -> tuple[PrivateBacklog, ...]:
        targets = dict.fromkeys(
            target
            for worker in workers
            for target in ((Kind.HOST, worker.host), (Kind.PROCESS, worker.worker_id))
        )
        backlogs = []
        for kind, target in targets:
            stats = self._stats(self._names.queue(kind, target, task_queue), deadline)
            if stats is not None:
                backlogs.append(PrivateBacklog(kind=kind.value, target=target, backlog=stats.ready))
        return tuple(backlogs)

    # --- peeking ------------------------------------------------------------------------------

    def _heads(self, queue: QueueName, count: int, deadline: float) -> list[PeekedTask]:
        tasks: list[PeekedTask] = []
        for one in self.waiting(queue, deadline):
            if len(tasks) < count:
                tasks += self._peeked(one, count - len(tasks), deadline)
        return tasks

    def _peeked(self, queue: QueueName, count: int, deadline: float) -> list[PeekedTask]:
        stats = self._stats(queue, deadline)
        if stats is None or not stats.ready:
            return []
        alone = not stats.consumers and stats.ready <= TURN_ROUND_MAX
        deliveries = self._got(queue, stats.ready if alone else count, deadline)
        now_ms = epoch_ms(self._core.clock)
        tasks = [self._task(delivery, queue, now_ms) for delivery in deliveries[:count]]
        # What was redelivered before must stay so: a fresh copy would run a lost attempt again.
        marked = [delivery for delivery in deliveries if delivery.redelivered]
        unmarked = [delivery for delivery in deliveries if not delivery.redelivered]
        try:
            self._send_round(queue, unmarked, deadline)
        finally:
            _give_back(marked)
        return tasks

    def _got(self, queue: QueueName, count: int, deadline: float) -> list[Delivery]:
        deliveries: list[Delivery] = []
        try:
            while len(deliveries) < count:
                delivery = self._core.broker.get(str(queue), deadline)
                if delivery is None:
                    break
                deliveries.append(delivery)
        except TqBrokerError:
            _give_back(deliveries)
            raise
        return deliveries

    def _send_round(
        self, queue: QueueName, deliveries: Sequence[Delivery], deadline: float
    ) -> None:
        """Put a copy of each at the back, then let go of the originals."""
        exchange = self._names.exchange(Exchange.TASKS)
        ends: list[Future[None]] = [Future() for _ in deliveries]
        self._core.sender.send_many(
            [Publication(exchange, queue.key, fresh(one.message)) for one in deliveries],
            (queue,),
            deadline,
            lambda index, error: _end(ends[index], error),
        )
        problem: BaseException | None = None
        for delivery, end in zip(deliveries, ends, strict=True):
            error = end.exception()
            problem = problem or error
            if error is None:
                delivery.ack()
            else:
                delivery.reject(requeue=True)
        if problem is not None:
            raise problem

    def _task(self, delivery: Delivery, queue: QueueName, now_ms: int) -> PeekedTask:
        message = delivery.message
        if side_of(queue) == WORKFLOW_SIDE:
            return _workflow_task(delivery, now_ms)
        try:
            task = envelope.read_task(message, queue.parts[-1])
        except Malformed as error:
            return PeekedTask(
                type=message.kind or "?",
                id=message.message_id,
                attempt=1,
                age_s=None,
                size_bytes=len(message.body),
                arguments=f"unreadable: {error.reason}",
                redelivered=delivery.redelivered,
                priority=envelope.priority_of(message),
            )
        since_ms = task.attempt_scheduled_ms or task.scheduled_ms
        return PeekedTask(
            type=task.activity_type,
            id=task.activity_id,
            attempt=task.attempt,
            age_s=max(0, now_ms - since_ms) / 1000 if since_ms else None,
            size_bytes=len(message.body),
            arguments=self.preview(task),
            redelivered=delivery.redelivered,
            priority=envelope.priority_of(message),
        )

    def preview(self, task: ActivityTask, chars_max: int = PREVIEW_CHARS) -> str:
        """The JSON of a task's arguments, shortened; or why they cannot be read."""
        try:
            body = envelope.read_task_body(task, self._core.converter)
        except Malformed as error:
            return f"unreadable: {error.reason}"
        text = msgspec.json.encode(body.args).decode()
        return text if len(text) <= chars_max else f"{text[: chars_max - 3]}..."

    # --- parked -------------------------------------------------------------------------------

    def _each_parked(self, limit: int, handle: Callable[[ParkedMessage], bool]) -> None:
        """Show each message to ``handle``; those that it answers with True leave the queue."""
        queue, deadline = self._names.queue(Kind.PARKED), self._core.deadline()
        left = dict(enumerate(self._got(queue, limit, deadline)))
        try:
            for index, delivery in list(left.items()):
                parked = read_parked(delivery.message, self._names.namespace, delivery.routing_key)
                is_done = handle(parked)
                if not is_done and _looks(delivery.message) >= LOOKS_MAX:
                    self._publish(self._park(renewed(parked)), (), self._core.deadline())
                    is_done = True
                if is_done:
                    del left[index]
                    delivery.ack()
        finally:
            _give_back(left.values())

    def _taken(
        self, keys: Iterable[str] | None, take: Callable[[ParkedMessage], None]
    ) -> list[ParkedMessage]:
        wanted = None if keys is None else set(keys)
        if wanted is not None:
            self._check_parked(wanted)
        taken: list[ParkedMessage] = []

        def take_if_wanted(parked: ParkedMessage) -> bool:
            if wanted is not None and wanted.isdisjoint((parked.key, parked.message_id)):
                return False
            take(parked)
            taken.append(parked)
            return True

        self._each_parked(PARKED_MAX, take_if_wanted)
        return taken

    def _check_parked(self, keys: set[str]) -> None:
        found = self.parked(PARKED_MAX)
        known = {parked.key for parked in found} | {parked.message_id for parked in found}
        if missing := sorted(keys - known):
            raise NotFound(f"{missing[0]!r} is not parked here; see: tq-broker parked list")

    def _replayed(self, parked: ParkedMessage, task_queue: str | None) -> None:
        to = task_queue or parked.task_queue
        if to is None:
            raise NotFound(
                f"parked message {parked.key} does not tell where it came from;"
                " name the task queue that it is for"
            )
        message = fresh(parked.message)
        deadline = self._core.deadline()
        try:
            task = envelope.read_task(message, to)
        except Malformed:
            # Perhaps the workers have learnt to read it meanwhile.
            queue = self._queue(to)
            exchange = self._names.exchange(Exchange.TASKS)
            self._publish(Publication(exchange, queue.key, message), (queue,), deadline)
            return
        sent: Future[None] = Future()
        self._core.dispatcher.dispatch(task, message, deadline, lambda error: _end(sent, error))
        sent.result()

    def _park(self, message: Message) -> Publication:
        key = self._names.queue(Kind.PARKED).key
        return Publication(self._names.exchange(Exchange.PARKED), key, message)

    def _publish(
        self, publication: Publication, needs: Sequence[QueueName], deadline: float
    ) -> None:
        sent: Future[None] = Future()
        self._core.sender.send(publication, needs, deadline, lambda error: _end(sent, error))
        sent.result()


def _workflow_task(delivery: Delivery, now_ms: int) -> PeekedTask:
    message = delivery.message
    type_, attempt, age_s, told = message.kind or "?", 1, None, ""
    try:
        task = workflow_tasks.read_task(message)
    except Malformed as error:
        told = f"unreadable: {error.reason}"
    else:
        type_, attempt = task.workflow_type, task.attempt
        if task.scheduled_ms:
            age_s = max(0, now_ms - task.scheduled_ms) / 1000
        told = f"workflow {task.run.workflow_id} run {task.run.run_id}"
    return PeekedTask(
        type=type_,
        id=message.message_id,
        attempt=attempt,
        age_s=age_s,
        size_bytes=len(message.body),
        arguments=told,
        redelivered=delivery.redelivered,
        priority=envelope.priority_of(message),
    )


def _looks(message: Message) -> int:
    count = message.headers.get(DELIVERY_COUNT, 0)
    return count if isinstance(count, int) else 0


def _give_back(deliveries: Iterable[Delivery]) -> None:
    for delivery in deliveries:
        delivery.reject(requeue=True)


def _end(future: Future[None], error: BaseException | None) -> None:
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
