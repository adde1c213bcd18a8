"""Operations: what an operator asks and does about the task queues of a namespace.

Rules of this file:

* blocking; every method takes one absolute deadline, the client's ``timeout`` from its start;
* a look changes nothing: `task_queues`, `describe`, `workers` and `parked` read counts, the
  settings log, the answers of workers, and the parked queue, which nobody consumes;
* what must read *tasks* says so, because it changes their order: see `tq_broker.client.peeking`;
* which queues a task queue consists of is asked of `tq_broker.model.composition` only;
* nothing is declared in a namespace that nobody uses: a mistyped name leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

from tq_broker.client.backlog import Estate, counted
from tq_broker.client.core import ClientCore
from tq_broker.client.deployments import DeploymentOperations
from tq_broker.client.observer import seen
from tq_broker.client.parked import (
    DELIVERY_COUNT,
    ParkedMessage,
    fresh,
    read_parked,
    renewed,
)
from tq_broker.client.peeking import PeekedTask, give_back, peeked, taken
from tq_broker.client.purging import aside, purged
from tq_broker.client.sampling import Sample, sampled
from tq_broker.client.settings_book import append, followed
from tq_broker.client.traffic import TrafficOperations
from tq_broker.clock import epoch_ms, remaining
from tq_broker.common import Requires
from tq_broker.exceptions import (
    Conflict,
    DeadlineExceeded,
    InvalidArgument,
    Malformed,
    NotFound,
)
from tq_broker.model import control, envelope
from tq_broker.model.capabilities import check_requires, in_words
from tq_broker.model.composition import Way, begin_first
from tq_broker.model.figures import Figures, QueueFigures, Series
from tq_broker.model.limits import Limits, Side, check_limits
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import (
    PLAIN,
    Exchange,
    Kind,
    QueueName,
    check_task_queue,
    requirements,
)
from tq_broker.model.parts import ALL, PARTS_MAX, Part, PartKind, check_part
from tq_broker.model.registrations import capable_of, compare, registered, serving
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
from tq_broker.queues import routing
from tq_broker.queues.broker import QueueStats
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.queues.topology import DELIVERY_LIMIT

PEEK_MAX = 1_000
PARKED_MAX = 10_000
PING_WAIT_S = 1.0
LOOKS_MAX = DELIVERY_LIMIT // 2
"""A parked message that was looked at so often is parked anew: from 4.0 RabbitMQ drops what was
given back more than 20 times, and the parked queue of an older tq_broker may have that bound."""
QUEUES_PER_S = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQueueSummary:
    """A task queue at a glance.

    Attributes:
        backlog: Tasks that wait, in all its queues but those of tasks that require something.
        consumers: Consumers of the shared queue that RabbitMQ counts, frozen ones as well.
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
        queues: Its queues that are there, with what waits in each.
        fair: Its keys have fair shares; the counts include what waits for these.
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
    queues: tuple[QueueFigures, ...] = ()
    fair: bool = False

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits, and nobody is there who takes it."""
        has_consumers = any(one.consumers for one in self.queues)
        return not (self.backlog or has_consumers or self.workers or self.pause)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQueueDescription:
    """All about a task queue.

    Attributes:
        oldest_age_s: How long the task at the head has waited. ``None``: not known without
            reading it, see `Operations.describe`.
        private: What waits for some workers only: of a host, a process or a traffic rule.
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
        waiting: Those of the backlog that limits of their types or keys hold back.
        routes: What sends tasks of it elsewhere, or tasks of others here: traffic rules in force
            and deployment versions, step by step, as the router says it.
        sample: What was found when the first tasks were read; ``None`` if they were not.
    """

    summary: TaskQueueSummary
    oldest_age_s: float | None
    private: tuple[QueueFigures, ...]
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
    routes: tuple[str, ...] = ()
    sample: Sample | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkflowSideDescription:
    """The workflow side of a task queue. ``workflows`` are the types that all its workers have;
    ``mismatches`` those that some lack."""

    summary: TaskQueueSummary
    workers: tuple[control.WorkerInfo, ...]
    workflows: tuple[str, ...]
    mismatches: tuple[tuple[str, tuple[str, ...]], ...]


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
        places = sorted(
            found | {(queue.parts[-1], side_of(queue)) for queue in logged.capable_queues()}
        )
        estates = {place: logged.composition(place[1], place[0], workers) for place in places}
        deadline = self._core.deadline() + sum(map(len, estates.values())) / QUEUES_PER_S
        summaries: list[TaskQueueSummary] = []
        capable: list[TaskQueueSummary] = []
        for place, members in estates.items():
            estate = counted(self._core, members, workers, deadline)
            if place in found:
                summaries.append(_summary(*place, estate, workers, logged))
            capable += _capable(*place, estate, workers, logged)
        summaries += capable
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
        self,
        task_queue: str,
        *,
        read_head: bool = False,
        sample: int = 0,
        wait_s: float = PING_WAIT_S,
    ) -> TaskQueueDescription:
        """All about one task queue.

        Args:
            read_head: Read the task at the head to tell its age, at the price of `peek`: it
                goes to the back. Without it the age is told only when nothing waits.
            sample: Read so many of the first activities, 0 to 1000, at the same price, and count
                their priorities and keys, which RabbitMQ does not tell.

        Raises:
            NotFound: there is no such task queue.
            InvalidArgument: ``sample`` is out of bounds.
        """
        check_task_queue(task_queue)
        if sample:
            _check_count("sample", sample)
        deadline = self._core.deadline()
        logged = self._logged(deadline)
        series = [self._begun(task_queue, side, logged, deadline) for side in Side]
        found = self._waited(self._pinged(wait_s), deadline, wait_s)
        estates = {
            side: counted(self._core, logged.composition(side, task_queue, found), found, deadline)
            for side in SIDES
        }
        if not any(map(_is_there, estates.values())):
            raise self._missing(task_queue)
        estate = estates[ACTIVITY_SIDE]
        workers = serving(found, task_queue, ACTIVITY_SIDE)
        summary = _summary(task_queue, ACTIVITY_SIDE, estate, workers, logged)
        heads: list[PeekedTask] = []
        if summary.backlog and (read_head or sample):
            heads = self._heads(estate, task_queue, max(1, sample), deadline)
        now = self._core.clock.monotonic()
        compared = compare(workers, ACTIVITY_SIDE)
        return TaskQueueDescription(
            summary=summary,
            oldest_age_s=heads[0].age_s if heads else 0.0 if not summary.backlog else None,
            private=tuple(counts for member, counts in estate.items() if member.is_fleeting),
            workers=workers,
            activities=compared.everywhere,
            mismatches=compared.mismatches,
            workflow=(
                _workflow_side(task_queue, estates[WORKFLOW_SIDE], found, logged)
                if _is_there(estates[WORKFLOW_SIDE])
                else None
            ),
            capable=tuple(
                one
                for side in SIDES
                for one in _capable(task_queue, side, estates[side], found, logged)
            ),
            limits=tuple((side, logged.limits(side, task_queue)) for side in Side),
            figures=tuple(
                one.look(
                    seen(
                        logged,
                        (task_queue, one.side),
                        now,
                        estates[one.side.value].values(),
                        found,
                    )
                )
                for one in series
                if _is_there(estates[one.side.value])
            ),
            part_limits=tuple(logged.part_limits(task_queue)),
            waiting=sum(
                counts.backlog
                for member, counts in estate.items()
                if member.queue.kind is Kind.ANTEROOM
            ),
            settings_faults=tuple(
                (who, fault)
                for who, fault in (
                    ("", logged.fault),
                    *((one.identity, one.settings_fault) for one in workers),
                )
                if fault
            ),
            routes=tuple(
                routing.explain_task_queue(
                    task_queue, logged.rules, logged.deployments, epoch_ms(self._core.clock)
                )
            ),
            sample=sampled(heads, summary.backlog) if sample else None,
        )

    def _begun(self, task_queue: str, side: Side, logged: SettingsLog, deadline: float) -> Series:
        """A first look."""
        members = logged.composition(side.value, task_queue)
        series = Series(task_queue, side)
        queues = counted(self._core, members, (), deadline)
        series.begin(self._core.clock.monotonic(), queues.values())
        return series

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
        """The first ``count`` tasks that wait, in order: those that begin first, of all queues of
        the task queue, and after them those of its other queues.

        They go to the back of their queues (see `tq_broker.client.peeking`), as fresh copies which
        no attempt is used up by; but for those that were redelivered already, which keep place and
        mark. A short queue without consumers is turned round as a whole, so that its order
        stays. Should this process be killed meanwhile, each task in its hands comes back as a
        lost attempt, and may run beside its copy. Activities in sight of an usher
        (``docs/throttling.rst``) are not shown.

        Args:
            requires: Only those of the tasks that require just these capabilities.

        Raises:
            NotFound: there is no such task queue.
            InvalidArgument: ``count`` is not from 1 to 1000.
        """
        _check_count("count", count)
        estate = self.estate(task_queue, side, requires)
        return self._heads(estate, task_queue, count, self._core.deadline())

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
        """The limits of one side of a task queue or of a part, who set them, when and why.

        Raises:
            NotFound: there is no such task queue, and nothing was ever set for it.
        """
        return self.settings_of(task_queue, side).limits(side, task_queue, check_part(part))

    def settings_of(self, task_queue: str, side: Side = Side.ACTIVITY) -> SettingsLog:
        """As `settings`, for one who asks for one side of a task queue.

        Raises:
            NotFound: there is no such task queue, and nothing was ever set for it.
        """
        check_task_queue(task_queue)
        settings = self.settings()
        is_set = settings.limits(side, task_queue).revision or settings.part_limits(task_queue)
        if not is_set and task_queue not in settings.task_queues(side.value):
            self._existing(task_queue, side.value)
        return settings

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
                for itself. Whatever was set for the others stays in force beside it. Whether there
                is such a type is not looked at here: see `review_part`.
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
        with followed(core, deadline) as settings:
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
            append(core, record, deadline)
            winner = settings.wait_verdict(record.change_id, deadline)
            if winner is None:
                raise DeadlineExceeded("the limits were set, but the settings log is not read")
            if winner.change_id != record.change_id:
                raise Conflict(
                    f"{winner.by or 'somebody'} has set the limits of {task_queue!r} meanwhile"
                    f" ({winner.reason or 'no reason given'}); yours are not in force"
                )
            return settings.limits(side, task_queue, part)

    def review_part(self, task_queue: str, part: Part, wait_s: float = PING_WAIT_S) -> str:
        """What there is to say against limits for ``part`` of a task queue: "", or that no worker
        answers, so that nobody knows whether there is such an activity type.

        Raises:
            InvalidArgument: workers answer, and none of them registers the type.
        """
        if part.kind is not PartKind.TYPE:
            return ""
        is_known, known = registered(self.workers(wait_s), task_queue, part.name)
        if is_known is None:
            return (
                f"no worker of task queue {task_queue!r} answers: nobody knows whether it has an"
                f" activity type {part.name!r}"
            )
        if not is_known:
            raise InvalidArgument(
                f"no worker of task queue {task_queue!r} registers activity type {part.name!r};"
                f" known there: {', '.join(known) or 'none'}"
            )
        return ""

    def purge(self, task_queue: str, *, requires: Sequence[str] = ()) -> int:
        """Drop all activities that wait, in all queues of the task queue, for ever; returns how
        many. Nobody is told of it: who waits for a result waits until a timeout.

        Args:
            requires: Only those that require just these capabilities.

        Raises:
            NotFound: there is no such task queue.
        """
        estate = self.estate(task_queue, ACTIVITY_SIDE, requires)
        has_usher = self.settings().part_table(task_queue) is not None
        with aside(self._core, task_queue, estate):
            return sum(purged(self._core, one, has_usher=has_usher) for one in estate)

    def estate(
        self, task_queue: str, side: str = ACTIVITY_SIDE, requires: Sequence[str] = ()
    ) -> Estate:
        """The queues of one side of a task queue that are there, with what waits in each.

        Args:
            requires: Only the one of the tasks that require just these capabilities.

        Raises:
            InvalidArgument: there can be no such.
            NotFound: there is none.
        """
        check_task_queue(task_queue)
        if side not in SIDES:
            raise InvalidArgument(f"side is {side!r}; it must be one of {', '.join(SIDES)}")
        needed = check_requires(Requires(tuple(requires))).names if requires else ()
        logged, deadline = self.settings(), self._core.deadline()
        workers = self._waited(self._pinged(PING_WAIT_S), deadline, PING_WAIT_S)
        members = logged.composition(side, task_queue, workers)
        if needed:
            wanted = self._names.capable(task_queue, needed, Kind(side))
            members = [one for one in members if one.queue == wanted]
        estate = counted(self._core, members, workers, deadline)
        if needed and not estate:
            raise NotFound(
                f"nobody has required {in_words(needed)} of task queue {task_queue!r},"
                " or its queue was reclaimed"
            )
        if not _is_there(estate):
            raise self._missing(task_queue)
        return estate

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
                one.task_queue for one in self.task_queues() if one.exists and one.is_idle
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
            for queue in reclaimer.removable(
                logged.composition(side, name, workers),
                self._core.deadline(),
                is_served=name in served,
            )
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

    def _existing(self, task_queue: str, side: str = ACTIVITY_SIDE) -> QueueName:
        if side not in SIDES:
            raise InvalidArgument(f"side is {side!r}; it must be one of {', '.join(SIDES)}")
        queue = self._names.queue(Kind(side), check_task_queue(task_queue))
        if self._stats(queue, self._core.deadline()) is None:
            raise self._missing(task_queue)
        return queue

    def _missing(self, task_queue: str) -> NotFound:
        return NotFound(
            f"there is no task queue {task_queue!r} in namespace"
            f" {self._names.namespace!r}: nobody has used it, or it was reclaimed"
        )

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
        with followed(self._core, deadline) as follower:
            return follower

    def _heads(
        self, estate: Estate, task_queue: str, count: int, deadline: float
    ) -> list[PeekedTask]:
        tasks: list[PeekedTask] = []
        for one in begin_first(estate):
            if len(tasks) < count:
                tasks += peeked(self._core, one, task_queue, count - len(tasks), deadline)
        return tasks

    # --- parked -------------------------------------------------------------------------------

    def _each_parked(self, limit: int, handle: Callable[[ParkedMessage], bool]) -> None:
        """Show each message to ``handle``; those that it answers with True leave the queue."""
        queue, deadline = self._names.queue(Kind.PARKED), self._core.deadline()
        left = dict(enumerate(taken(self._core, queue, limit, deadline)))
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
            give_back(left.values())

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


def _check_count(argument: str, count: object) -> None:
    if isinstance(count, bool) or not isinstance(count, int) or not 1 <= count <= PEEK_MAX:
        raise InvalidArgument(f"{argument} is {count!r}; it must be from 1 to {PEEK_MAX}")


def _is_there(estate: Estate) -> bool:
    """Whether there is a task queue: what its limits were kept with may outlive it."""
    return any(one.way is not Way.LIMITED for one in estate)


def _summary(
    task_queue: str,
    side: str,
    estate: Estate,
    workers: Iterable[control.WorkerInfo],
    logged: SettingsLog,
) -> TaskQueueSummary:
    queues = {one: counts for one, counts in estate.items() if one.way is not Way.CAPABLE}
    shared = [counts for one, counts in queues.items() if one.way is Way.SHARED]
    served_by = serving(workers, task_queue, side)
    return TaskQueueSummary(
        task_queue=task_queue,
        backlog=sum(one.backlog for one in queues.values()),
        # Those of a plain queue only bring its tasks into order, if there is a priority queue.
        consumers=shared[-1].consumers if shared else 0,
        # Of workflow tasks a worker does not tell of which task queue they are.
        in_flight=(
            sum(worker.held.get(task_queue, 0) for worker in served_by)
            if side == ACTIVITY_SIDE
            else sum(worker.workflow_tasks for worker in served_by)
        ),
        workers=tuple(worker.identity for worker in served_by),
        exists=_is_there(queues),
        side=side,
        pause=logged.pauses().get((side, task_queue)),
        back_offs=tuple(logged.back_offs(task_queue)) if side == ACTIVITY_SIDE else (),
        prioritized=(side, task_queue) in logged.prioritized,
        fair=(side, task_queue) in logged.fair,
        queues=tuple(queues.values()),
    )


def _capable(
    task_queue: str,
    side: str,
    estate: Estate,
    workers: Sequence[control.WorkerInfo],
    logged: SettingsLog,
) -> list[TaskQueueSummary]:
    """What waits for workers with certain capabilities; by set."""
    return [
        TaskQueueSummary(
            task_queue=task_queue,
            backlog=counts.backlog,
            consumers=counts.consumers,
            in_flight=0,
            workers=tuple(worker.identity for worker in capable_of(workers, one.queue)),
            side=side,
            requires=requirements(one.queue),
            pause=logged.pauses().get((side, task_queue)),
            back_offs=tuple(logged.back_offs(task_queue)) if side == ACTIVITY_SIDE else (),
            queues=(counts,),
        )
        for one, counts in estate.items()
        if one.way is Way.CAPABLE
    ]


def _workflow_side(
    task_queue: str, estate: Estate, found: Sequence[control.WorkerInfo], logged: SettingsLog
) -> WorkflowSideDescription:
    workers = serving(found, task_queue, WORKFLOW_SIDE)
    compared = compare(workers, WORKFLOW_SIDE)
    return WorkflowSideDescription(
        summary=_summary(task_queue, WORKFLOW_SIDE, estate, workers, logged),
        workers=workers,
        workflows=compared.everywhere,
        mismatches=compared.mismatches,
    )


def _looks(message: Message) -> int:
    count = message.headers.get(DELIVERY_COUNT, 0)
    return count if isinstance(count, int) else 0


def _end(future: Future[None], error: BaseException | None) -> None:
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
