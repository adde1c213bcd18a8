"""The worker: builds its parts from options, and starts, drains and stops them in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from tq_broker.activity import Signal
from tq_broker.clock import epoch_ms, remaining
from tq_broker.exceptions import InvalidArgument, TqBrokerError, Unavailable
from tq_broker.model import control
from tq_broker.model.capabilities import Niche, check_capabilities
from tq_broker.model.detours import Detour
from tq_broker.model.limits import Limits, Side, default_burst
from tq_broker.model.names import Kind, QueueName, check_task_queue
from tq_broker.model.parts import NO_PARTS
from tq_broker.model.rules import TAKE_WITHIN_MS, TaskKind
from tq_broker.model.settings import (
    ACTIVITY_SIDE,
    SIDES,
    WORKFLOW_SIDE,
    ActivityCanceled,
    LimitsSet,
    Record,
    TaskQueueDeclared,
    TaskQueuePaused,
    TaskQueueResumed,
)
from tq_broker.queues import topology
from tq_broker.queues.broker import Subscription
from tq_broker.queues.connection import Connected
from tq_broker.queues.settings_keeper import SettingsKeeper
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.queues.topology import Plan
from tq_broker.worker import found, watch
from tq_broker.worker.activity_chain import of_activities
from tq_broker.worker.allegiance import Allegiance
from tq_broker.worker.attempt import Place
from tq_broker.worker.colleagues import Colleagues
from tq_broker.worker.dealing import Dealing
from tq_broker.worker.desk import Desk, private_queues
from tq_broker.worker.executors import AsyncExecutor, Executor, Owner, ThreadExecutor
from tq_broker.worker.gates import Gates, Scope
from tq_broker.worker.handler import Handler
from tq_broker.worker.hosting import hosted_consumers
from tq_broker.worker.housekeeper import Housekeeper
from tq_broker.worker.inquiries import Inquiries
from tq_broker.worker.interceptors import Interceptor
from tq_broker.worker.keeper import Keeper
from tq_broker.worker.niches import Niches
from tq_broker.worker.notices import Notices
from tq_broker.worker.options import WorkerOptions
from tq_broker.worker.pace import Pace
from tq_broker.worker.poller import Poller
from tq_broker.worker.processes import ProcessExecutor, check_runnable
from tq_broker.worker.registry import Registry
from tq_broker.worker.reporter import Reporter
from tq_broker.worker.rerouting import Rerouter
from tq_broker.worker.session_side import SessionSide
from tq_broker.worker.slot_supply import SlotSupply
from tq_broker.worker.slots import FixedSlots
from tq_broker.worker.sorter import Sorter
from tq_broker.worker.table import Table
from tq_broker.worker.throttle import Throttle
from tq_broker.worker.usher import Usher
from tq_broker.worker.wills import Wills
from tq_broker.worker.workflow_registry import WorkflowRegistry
from tq_broker.worker.workflow_side import WorkflowSide

if TYPE_CHECKING:
    from typing_extensions import Self

log = logging.getLogger(__name__)

T = TypeVar("T")

TICK_S = 0.05
START_WITHIN_S = 60.0
SETTINGS_WITHIN_S = 5.0
"""How long a starting worker waits until it has read what was cancelled before."""
REPORT_WITHIN_S = 10.0
KEEP_EVERY_S = 60.0
"""How often private queues are declared, which expire without a consumer: while they are paused,
or the worker has no slot for them."""
LEASES_WITHIN_S = 2.0
PRIVATE_QUEUES_MAX = 1_000
"""Host's, process's and detour queues of one worker: others can ask for as many as they like."""


class Worker:
    """Runs activities and workflows of one or more task queues.

    Use it as a context manager (``with`` or ``async with``), or call `run`. It works on threads
    of its own; its methods may be called from any other.

    Args:
        client: Whose connection, namespace and converter it uses. It is not closed with it.
        task_queue: The one task queue to serve; or
        task_queues: several, which share the slots.
        activities: Decorated functions, bound methods, or instances of callable classes.
        workflows: Decorated classes.
        **options: `WorkerOptions`.

    Raises:
        InvalidArgument: names the argument and its bound.
    """

    def __init__(
        self,
        client: Connected,
        *,
        activities: Sequence[Callable[..., Any]] = (),
        workflows: Sequence[type] = (),
        task_queue: str | None = None,
        task_queues: Sequence[str] = (),
        **options: Any,
    ) -> None:
        said = _options(options)
        _check_several("activities", activities)
        _check_several("workflows", workflows)
        of_client = [one for one in client.interceptors if isinstance(one, Interceptor)]
        self.options = replace(said, interceptors=(*of_client, *said.interceptors))
        self.task_queues = _task_queues(task_queue, task_queues)
        self._connection = connection = client.connection
        self._clock = connection.clock
        self._registry = Registry(
            activities, connection.converter.payload_converter, self._activity_interceptors
        )
        self._workflows = WorkflowRegistry(workflows)
        if not len(self._registry) and not len(self._workflows):
            raise InvalidArgument("At least one activity or workflow must be specified")
        if self.options.version:
            self._workflows.check_behaviors(self.options.default_versioning_behavior)
        self._place = Place(
            namespace=connection.names.namespace,
            host=self.options.host,
            worker_id=self.options.worker_id or secrets.token_hex(8),
            identity=self.options.identity or f"{os.getpid()}@{self.options.host}",
            clock=connection.clock,
            converter=connection.converter,
            shutdown=Signal(),
        )
        self._table = Table()
        self._build()
        self._started_ms = 0
        self._keep_at = 0.0
        self._is_serving = False
        self._lock = threading.Lock()
        self._starting = threading.Lock()
        """Held while consumers are opened: `stop` closes them all or none."""
        self._stopping = Signal()
        self._hurried = threading.Event()
        self._halted = threading.Event()
        self._stopped = threading.Event()
        self._supervisor: threading.Thread | None = None
        self.fatal_error: BaseException | None = None

    def _build(self) -> None:
        options, place, table = self.options, self._place, self._table
        connection = self._connection
        broker, sender, names = connection.broker, connection.sender, connection.names
        self._supply = supply = SlotSupply(
            options.slot_tuner, self.task_queues, place.identity, self._clock
        )
        throttle = Throttle(
            options.default_heartbeat_throttle_interval, options.max_heartbeat_throttle_interval
        )
        self._reporter = Reporter(connection.dispatcher, names, place)
        self._settings = SettingsLog(broker, names, self._clock, self._on_record)
        self._settings_keeper = SettingsKeeper(
            sender, self._settings, place.identity, random.random()
        )
        self._handler = handler = Handler(
            self._registry,
            table,
            self._reporter,
            sender,
            place,
            supply.activity,
            options.max_concurrent_activities_by_type,
        )
        self._allegiance = Allegiance(options.version, self._settings, names)
        handler.home_of = self._allegiance.home_of
        self._sorter = Sorter(
            sender, self._reporter, self._settings, names.activity, handler.on_deliveries
        )
        self._poller = Poller(
            broker,
            sender,
            0,
            self._sorter.on_deliveries,
            self._allegiance.is_closed,
            self._sorter.is_superseded,
        )
        self._gates = self._make_gates(handler)
        self._dealing = Dealing(
            sender,
            self._reporter,
            self._settings,
            names.activity,
            lambda: supply.activity.capacity,
            place.identity,
        )
        self._niches = Niches(
            sender,
            self._settings,
            self._poller,
            place,
            check_capabilities("capabilities", options.capabilities),
            self.task_queues if self._runs_activities else (),
            options.version,
        )
        lease_after_s = options.lease_after.total_seconds()
        self._keeper = handler.keeper = Keeper(
            broker, sender, names, place, table, throttle, lease_after_s
        )
        self._notices = handler.notices = Notices(self._reporter, place, throttle)
        self._inquiries = handler.inquiries = Inquiries(sender, place)
        handler.settings = self._settings
        self._executors = handler.executors = self._make_executors(handler, supply.activity.most)
        self._private = {
            str(queue): queue
            for queue in private_queues(names, place, self.task_queues)
            if self._runs_activities
        }
        self._sessions = self._make_sessions()
        if self._sessions is not None:
            self._private |= self._sessions.private
        own = list(self._private.values())
        self._side: WorkflowSide | None = None
        self._local_executors: dict[str, Executor] = {}
        if len(self._workflows):
            self._side = side = WorkflowSide(
                connection,
                place,
                options,
                self._workflows,
                self._registry,
                self._reporter,
                self._inquiries,
                self._settings,
                handler.recent,
                supply,
                self._allegiance,
                self.task_queues,
            )
            self._local_executors = self._make_executors(side.local, supply.local_activity.most)
            own += [] if side.sticky is None else [side.sticky]
        self._detours: dict[QueueName, Plan] = {}
        self._served: dict[str, control.Serve] = {}
        """What it was asked to serve, and does."""
        self._detour_keys = self._make_detour_keys()
        self._desk = Desk(
            broker,
            sender,
            names,
            place,
            own,
            self._on_request,
            [*self._detour_keys, *(key for one in self._all_niches for key in one.keys)],
        )
        self._colleagues = Colleagues(sender, self._clock)
        self._rerouter = Rerouter(sender, place, self._reporter)
        self._wills = Wills(sender, place, self._on_will)
        after = options.reclaim_after
        self._housekeeper = (
            None
            if after is None
            else Housekeeper(connection, self._settings, after.total_seconds())
        )

    def _make_sessions(self) -> SessionSide | None:
        if not self.options.max_concurrent_sessions:
            return None
        if not self._runs_activities:
            raise InvalidArgument(
                "max_concurrent_sessions is set, but the worker takes no activities to run in them"
            )
        return SessionSide(
            self._connection,
            self._place,
            self.options,
            self.task_queues,
            self._reporter,
            self._inquiries,
            self._settings,
            self._allegiance,
        )

    def _make_gates(self, handler: Handler) -> Gates:
        connection, rate = self._connection, self.options.max_activities_per_second
        scope = Scope(
            side=Side.ACTIVITY,
            queue_of=self._sorter.queue_of,
            limits_of=lambda task_queue: self._settings.limits(Side.ACTIVITY, task_queue).limits,
            is_paused=self._settings.pause_of,
            free_slots=lambda: handler.free_slots,
            cover=handler.cover,
            set_ms=lambda task_queue: self._settings.limits(Side.ACTIVITY, task_queue).set_ms,
            is_ushered=lambda task_queue: self._settings.part_table(task_queue) is not None,
            make_usher=self._make_usher,
            takes=self._allegiance.takes,
            cover_parts=handler.cover_parts,
        )
        pace = None if rate is None else Pace(rate, default_burst(rate))
        return Gates(
            scope, connection.sender, self._clock, self._poller, self._sorter.on_deliveries, pace
        )

    def _make_usher(self, task_queue: str, wake: Callable[[], None]) -> Usher:
        settings = self._settings
        return Usher(
            task_queue,
            self._connection.dispatcher,
            self._reporter,
            self._clock,
            lambda: (settings.part_table(task_queue) or NO_PARTS, settings.held_keys(task_queue)),
            wake,
        )

    def _make_executors(self, owner: Owner, slots: int) -> dict[str, Executor]:
        options = self.options
        executors: dict[str, Executor] = {
            "async": AsyncExecutor(owner, self._clock),
            "thread": ThreadExecutor(owner, slots, options.activity_executor),
        }
        for definition in self._registry.definitions():
            if definition.executor == "process":
                check_runnable(definition)
                executors.setdefault(
                    "process",
                    ProcessExecutor(
                        owner,
                        self._clock,
                        self._place,
                        options.processes,
                        options.cancel_grace.total_seconds(),
                        self._activity_interceptors,
                    ),
                )
        return executors

    @property
    def _activity_interceptors(self) -> Sequence[Interceptor]:
        return of_activities(self.options.interceptors)

    # --- facts ------------------------------------------------------------------------------

    @property
    def worker_id(self) -> str:
        """The name that `Route.process` knows this worker by."""
        return self._place.worker_id

    @property
    def host(self) -> str:
        """The name that `Route.host` knows its machine by."""
        return self._place.host

    @property
    def identity(self) -> str:
        """How it signs outcomes."""
        return self._place.identity

    @property
    def running(self) -> int:
        """Slots in use now."""
        return self._table.running()

    @property
    def slots_max(self) -> int:
        """Activities that it runs at a time, at the most."""
        return self._supply.activity.most

    @property
    def is_running(self) -> bool:
        """Whether it has been started and does not shut down yet."""
        return self._supervisor is not None and not self._stopping.is_set()

    @property
    def is_shutdown(self) -> bool:
        """Whether it has been stopped for good."""
        return self._stopped.is_set()

    def info(self) -> control.WorkerInfo:
        """What it answers to ``tq-broker worker ping``."""
        side = self._side
        return control.WorkerInfo(
            worker_id=self.worker_id,
            identity=self.identity,
            host=self.host,
            pid=os.getpid(),
            started_ms=self._started_ms,
            task_queues=list(self.task_queues),
            activities=list(self._registry.types),
            workflows=list(self._workflows.types),
            cached_workflows=0 if side is None else side.cached,
            sticky_hits=0 if side is None else side.hits,
            sticky_misses=0 if side is None else side.misses,
            workflow_tasks=0 if side is None else side.running,
            slots=self._supply.activity.capacity,
            running=self._table.running(),
            held=self._table.in_hand(),
            shutting_down=self._stopping.is_set(),
            only_local=not self._runs_activities,
            any_activity=self._registry.has_dynamic,
            paused=sorted(
                queue.parts[0]
                for task_queue in self.task_queues
                if self._settings.pause_of(queue := self._connection.names.activity(task_queue))
            ),
            begins=[*self._handler.begins.told(), *(() if side is None else side.begins)],
            per_second=self.options.max_activities_per_second,
            workflow_slots=0 if side is None else self._supply.workflow.capacity,
            local_slots=0 if side is None else self._supply.local_activity.capacity,
            local_running=0 if side is None else side.local.running,
            sessions=0 if self._sessions is None else self._sessions.open,
            session_slots=self.options.max_concurrent_sessions,
            capabilities=list(self._niches.capabilities),
            unserved=self._niches.unserved,
            unserved_workflows=self._side.niches.unserved if self._side else {},
            deployment_version=self.options.version,
            banks={name: kept for name in self.task_queues if (kept := self._gates.keeps(name))},
            waiting=self._gates.waiting(),
            held_back=self._gates.held_back(),
            serves=list(self._served.values()),
            dealing=self._dealing.in_hand,
            workflow_dealing={} if side is None else side.dealing,
            settings_fault=self._settings.fault,
        )

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """Connect and subscribe; blocks until tasks can come.

        Raises:
            AccessRefused, BrokerUnavailable, DeadlineExceeded: what stands in the way.
            Unavailable: it was stopped meanwhile.
        """
        if self._supervisor is not None or self._stopping.is_set():
            raise InvalidArgument("a worker can be started once")
        try:
            with self._starting:
                self._open(self._clock.monotonic() + START_WITHIN_S)
        except BaseException:
            if self.is_running or self._stopping.is_set():
                self.stop(cold=True)  # some queues may be consumed already
            raise
        self._announce()

    def _open(self, deadline: float) -> None:
        self._start_support(deadline)
        self._check_wanted()
        if self._runs_activities:
            self._allegiance.stand(self._poller, ACTIVITY_SIDE, self.task_queues)
            # Before anything is consumed: not one task is to slip through.
            self._gates.tick(self.task_queues)
            self._sorter.tick(self.task_queues, self._poller)
            self._dealing.tick(self.task_queues)
        self._is_serving = True
        self._niches.tick(self._clock.monotonic())
        self._adjust()
        subscriptions = [
            *self._poller.subscriptions(),
            *self._start_sessions(),
            *self._start_workflows(),
        ]
        self._connection.broker.wait_subscribed(subscriptions, deadline)
        self._check_wanted()

    def _check_wanted(self) -> None:
        if self._stopping.is_set():
            raise Unavailable("the worker was stopped while it started")

    def get_consumers(self, consumer_class: Any, channel: Any) -> list[Any]:
        """The worker's consumers, for a Kombu program to run: call it from
        ``ConsumerMixin.get_consumers`` (again after every reconnect; Kombu does).

        The program's connection delivers and acknowledges the tasks of the task queues. What
        else a worker needs goes over the client's own connection, and is started by the first
        call. The program calls `stop` at its end. A worker with a deployment cannot be hosted.

        Args:
            consumer_class: Kombu's; our consumers have a channel of their own beside it.
            channel: A channel of the program's connection.

        Raises:
            InvalidArgument: its slots are not fixed; these consumers cannot follow others.
        """
        if not isinstance(self._supply.activity, FixedSlots):
            raise InvalidArgument("a worker that a program hosts needs fixed activity slots")
        if self._allegiance.version:
            raise InvalidArgument(
                "a worker with a deployment cannot be hosted: its queues change with the current"
                " version; start it by itself, or leave deployment and build_id out"
            )
        if self._supervisor is None:
            with self._starting:
                self._start_support(self._clock.monotonic() + START_WITHIN_S)
                self._check_wanted()
                self._start_sessions()
                self._start_workflows()
                self._is_serving = True
            self._announce()
        if not self._runs_activities:
            return []
        return hosted_consumers(
            channel,
            [self._connection.names.activity(task_queue) for task_queue in self.task_queues],
            self._connection.sender,
            self._supply.activity.most,
            self._sorter.on_deliveries,
            self._allegiance.is_closed,
        )

    @property
    def _runs_activities(self) -> bool:
        return bool(len(self._registry)) and not self.options.no_remote_activities

    def _start_sessions(self) -> Sequence[Subscription]:
        return () if self._sessions is None else self._sessions.start()

    def _start_workflows(self) -> Sequence[Subscription]:
        if self._side is None:
            return ()
        return self._side.start(self._local_executors, self._wills)

    def _start_support(self, deadline: float) -> None:
        """Start everything but the consumers of the task queues."""
        self._started_ms = epoch_ms(self._clock)
        try:
            self._settings_keeper.start()
            supporting = [self._desk.open(), self._settings.follow(), self._rerouter.open()]
            self._connection.broker.wait_subscribed(supporting, deadline)
            # What was cancelled or limited must be known before the first task comes.
            self._read_settings()
            self._connection.traffic.attach(self._settings)
            self._tell_defaults(deadline)
            for niches in self._all_niches:
                niches.tell(deadline)
            by = self._place.identity
            self._allegiance.register(
                self._connection.sender, self._places, self._clock, by, deadline
            )
        except TqBrokerError:
            self._close_supporting()
            raise
        self._supervisor = threading.Thread(
            target=self._supervise, name="tq-supervisor", daemon=True
        )
        self._supervisor.start()
        if self._housekeeper is not None:
            self._housekeeper.start()

    def _read_settings(self) -> None:
        deadline = self._clock.monotonic() + SETTINGS_WITHIN_S
        if not self._settings.catch_up(deadline):
            log.warning("the settings log was not read to its end in %g s", SETTINGS_WITHIN_S)

    def _tell_defaults(self, deadline: float) -> None:
        """Tell the settings log of the limits in the options, if they are news."""
        rate = self.options.max_task_queue_activities_per_second
        if rate is None or not self._runs_activities:
            return
        wanted = Limits(rate=float(rate))
        for task_queue in self.task_queues:
            default = self._settings.limits(Side.ACTIVITY, task_queue).default
            if default is None or default.limits != wanted:
                record = LimitsSet(
                    task_queue=task_queue,
                    side=Side.ACTIVITY,
                    limits=wanted,
                    at_ms=epoch_ms(self._clock),
                    change_id=self._connection.sender.ids.next(),
                    by=self.identity,
                    reason="max_task_queue_activities_per_second",
                    is_default=True,
                )
                self._connection.sender.append(record, deadline, _ignore)
                self._settings.wait_default(record, deadline)

    def _announce(self) -> None:
        """Tell the settings log of task queues that it does not know."""
        names, sender = self._connection.names, self._connection.sender
        deadline = self._clock.monotonic() + REPORT_WITHIN_S
        known = {side: self._settings.task_queues(side) for side in SIDES}
        for side, task_queue in self._places:
            sender.declared(names.queue(Kind(side), task_queue))
            if task_queue not in known[side]:
                now_ms = epoch_ms(self._clock)
                record = TaskQueueDeclared(task_queue, now_ms, self.identity, side)
                sender.append(record, deadline, _ignore)
        self._colleagues.greet(self.info(), deadline)

    @property
    def _places(self) -> list[tuple[str, str]]:
        """The sides of task queues that it serves; sessions are created on some of their own."""
        activities = self.task_queues if self._runs_activities else ()
        sessions = () if self._sessions is None else self._sessions.task_queues
        workflows = () if self._side is None else self.task_queues
        return [
            *((ACTIVITY_SIDE, name) for name in (*activities, *sessions)),
            *((WORKFLOW_SIDE, name) for name in workflows),
        ]

    def stop(self, *, cold: bool = False) -> None:
        """Shut down: take nothing more, let running activities end, report, close.

        In order: consuming stops; activities are told (``is_worker_shutdown``); they have
        ``graceful_shutdown_timeout`` to end; then they are cancelled, with ``cancel_grace`` to
        heed it; what still runs is reported as failed by ``WorkerShutdown``, to be retried
        elsewhere. Idempotent; a further call waits for the first. One that comes while `start` is
        under way waits for the end of that, which fails.

        Args:
            cold: Cancel at once. A cold call hurries a warm one that is under way.

        Code in threads that heeds nothing is left behind: `running` counts it.
        """
        with self._lock:
            first = not self._stopping.is_set()
            self._stopping.set()
        if first:
            with self._starting, contextlib.ExitStack() as then:
                then.callback(self._stopped.set)
                then.callback(self._finish)
                self._drain(cold)
        else:
            if cold:
                self._hurried.set()
            if threading.current_thread() is not self._supervisor:  # the first call waits for it
                self._stopped.wait()

    def _drain(self, cold: bool) -> None:
        handler, options = self._handler, self.options
        if self._supervisor is None:
            return
        try:
            self._close_intake(self._clock.monotonic() + REPORT_WITHIN_S)
        except Unavailable as error:
            log.warning("consumers not closed properly: %s", error)
        handler.close_intake()
        self._supply.close_intake()
        self._place.shutdown.set()
        if self._side is not None:
            self._side.bequeath(self._wills)
        if not cold:
            graceful_s = options.graceful_shutdown_timeout.total_seconds()
            self._until(lambda: not self._busy or self._hurried.is_set(), graceful_s)
        if self._busy:
            handler.interrupt_all()
            self._until(lambda: not self._busy, options.cancel_grace.total_seconds())
        handler.leave_behind()
        if self._sessions is not None:
            # Not sooner: their activities have had the time to end.
            self._sessions.leave_behind()
            self._until(lambda: not self._session_ends, REPORT_WITHIN_S)
        if self._side is not None:
            self._side.leave_behind()
            self._until(lambda: self._side is None or not self._side.busy, REPORT_WITHIN_S)
        if not self._until(
            lambda: not (handler.unreported or self._sorter.under_way), REPORT_WITHIN_S
        ):
            log.warning("%d ends not reported; RabbitMQ hands those on", handler.unreported)
        # A lease that nobody takes would count as a lost attempt, also of what has ended well.
        self._until(lambda: not self._keeper.under_way, LEASES_WITHIN_S)

    def _close_intake(self, deadline: float) -> None:
        """Take nothing more. Each step is made, also if RabbitMQ did not answer one before."""
        with contextlib.ExitStack() as steps:  # from the last one up
            steps.callback(self._sorter.close_intake, deadline)
            steps.callback(self._poller.stop, deadline)
            if self._sessions is not None:
                steps.callback(self._sessions.close_intake, deadline)
            steps.callback(self._gates.close_intake, deadline)
            steps.callback(self._dealing.close)
            if self._side is not None:
                steps.callback(self._side.close_intake, deadline)

    @property
    def _session_ends(self) -> int:
        return 0 if self._sessions is None else self._sessions.unreported

    @property
    def _busy(self) -> bool:
        return self._handler.busy or (self._side is not None and self._side.busy)

    def _until(self, condition: Callable[[], bool], seconds: float) -> bool:
        deadline = self._clock.monotonic() + seconds
        while not condition():
            if not remaining(self._clock, deadline):
                return False
            self._clock.sleep(0.01)
        return True

    def _finish(self) -> None:
        # Not joined before: code that heeds no cancellation may run for ever.
        self._halted.set()
        if self._supervisor is not None and self._supervisor is not threading.current_thread():
            self._supervisor.join()
        self._close_supporting()
        self._keeper.close()
        if self._sessions is not None:
            self._sessions.close()
        self._reporter.close()
        deadline = self._clock.monotonic() + self.options.cancel_grace.total_seconds()
        if self._side is not None:
            self._side.close()
        for executor in (*self._executors.values(), *self._local_executors.values()):
            executor.close(deadline)

    def _close_supporting(self) -> None:
        if self._housekeeper is not None:
            self._housekeeper.stop()
        self._desk.close(self._clock.monotonic() + REPORT_WITHIN_S)
        self._inquiries.close()
        self._wills.close()
        self._rerouter.close()
        self._supply.close()
        self._connection.traffic.detach(self._settings)
        self._settings_keeper.stop()
        self._settings.stop()

    async def run(self) -> None:
        """Start, and serve until `shutdown` or `stop` is called, or this task is cancelled."""
        async with self:
            await self._stopping.wait()

    async def shutdown(self) -> None:
        """Shut down as `stop` does, without blocking the event loop."""
        await _beside(self.stop)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        try:
            await _beside(self.start)
        except asyncio.CancelledError:
            await self.shutdown()  # what was begun goes on, and nobody else would end it
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.shutdown()

    # --- requests and records ---------------------------------------------------------------------

    def _on_request(self, request: control.Request) -> control.Reply | None:
        match request:
            case control.Ping():
                return self.info()
            case control.Serve(queue):
                if request.detour is not None:
                    self._serve_detour(queue, request.detour)
                elif request.niche is not None:
                    self._serve_niche(queue, request.niche)
                elif queue in self._private and not self._stopping.is_set():
                    self._served[queue] = request
                    self._serve(queue)
                    self._wills.make(queue)
                elif self._side is not None and queue == str(self._side.sticky):
                    self._wills.make(queue)
                return None
            case control.Hello() | control.Present():
                self._colleagues.met(request, self.info())
                return None
            case control.Probe():
                return None
            case control.StandAside(task_queue, for_ms):
                for_ms = min(max(0, for_ms), control.ASIDE_MS_MAX)
                self._gates.stand_aside(task_queue, for_ms / 1000)
                self._dealing.stand_aside(task_queue, for_ms / 1000)
                if self._side is not None:
                    self._side.stand_aside(task_queue, for_ms / 1000)
                return None
            case control.GiveWay(task_queue, side):
                if side is Side.ACTIVITY:
                    self._gates.give_way(task_queue)
                elif self._side is not None:
                    self._side.give_way(task_queue)
                return None
            case control.FindActivity(activity_id):
                return self._found(activity_id)
            case control.AskRecent():
                return self._handler.recent.told(self.worker_id)
            case control.CompleteAttempt():
                return self._on_completion(request)

    def _found(self, activity_id: str) -> control.FoundActivity:
        held_back = [found.held_back(one) for one in self._gates.find(activity_id)]
        tasks = [*self._handler.find(activity_id), *held_back]
        return control.FoundActivity(self.worker_id, self.identity, tasks)

    def _serve(self, queue: str) -> None:
        if self._sessions is not None and queue in self._sessions.private:
            self._sessions.serve(queue)
            return
        self._poller.serve(self._private[queue])
        self._adjust()

    def _serve_detour(self, queue: str, detour: Detour) -> None:
        """Take what a traffic rule brings, if it is for this worker."""
        names = self._connection.names
        try:
            detour.check()
        except InvalidArgument as error:
            log.warning("asked to serve a detour that no rule makes: %s", error)
            return
        is_ours = (
            detour.ask_key in self._detour_keys
            and str(detour.queue(names)) == queue
            and set(detour.capabilities) <= set(self._niches.capabilities)
        )
        if not is_ours or self._stopping.is_set():
            return
        if queue not in self._private and len(self._private) >= PRIVATE_QUEUES_MAX:
            log.warning("%s not served: %d such queues are enough", queue, PRIVATE_QUEUES_MAX)
            return
        self._served[queue] = control.Serve(queue, detour)
        name = self._private[queue] = detour.queue(names)
        plan = self._detours[name] = topology.detour_queue(names, detour)
        if detour.kind is TaskKind.ACTIVITY:
            self._poller.serve(name, plan, detour.target_queue(names))
            self._adjust()
        elif self._side is not None:
            self._side.serve(name, plan, detour.target_queue(names))
        self._wills.make(queue)

    def _serve_niche(self, queue: str, niche: Niche) -> None:
        """Take what is for workers like this one, if it is one of them."""
        name = niche.queue(self._connection.names)
        is_ours = any(one.belongs_to(niche) for one in self._all_niches)
        if not is_ours or str(name) != queue or self._stopping.is_set():
            return
        if queue not in self._private and len(self._private) >= PRIVATE_QUEUES_MAX:
            log.warning("%s not served: %d such queues are enough", queue, PRIVATE_QUEUES_MAX)
            return
        self._served[queue] = control.Serve(queue, niche=niche)
        self._private[queue] = name
        if niche.side == ACTIVITY_SIDE:
            self._poller.serve(name)
            self._adjust()
        elif self._side is not None:
            self._side.serve(name)
        self._wills.make(queue)

    @property
    def _all_niches(self) -> list[Niches]:
        return [self._niches, *([] if self._side is None else [self._side.niches])]

    def _make_detour_keys(self) -> list[str]:
        """The control keys under which it is asked to serve what traffic rules bring."""
        sides = [TaskKind.ACTIVITY] if self._runs_activities else []
        if len(self._workflows):
            sides.append(TaskKind.WORKFLOW)
        places = [("", ""), (self.host, "")]
        if self._allegiance.version:
            places.append(("", self._allegiance.version))
        return [
            Detour(side, queue, host, queue, TAKE_WITHIN_MS, version=version).ask_key
            for side in sides
            for host, version in places
            for queue in self.task_queues
        ]

    def _on_will(self, queue: str) -> None:
        """A private queue is served, and there is a will for it: tasks may come."""
        if queue not in self._private:
            return  # the sticky queue, which nobody is told about
        self._connection.sender.in_background(lambda: self._ready(self._private[queue]))

    def _ready(self, queue: QueueName) -> None:
        deadline = self._clock.monotonic() + REPORT_WITHIN_S
        try:
            # It may be paused, or there may be no slot for it: then no consumer declares it.
            self._declare(queue, deadline)
            self._desk.ready(queue, deadline)
        except TqBrokerError as error:
            log.warning("%s is served, but nobody knows: %s", queue, error)

    def _declare(self, queue: QueueName, deadline: float) -> None:
        """Declare a private queue; blocks."""
        connection = self._connection
        plan = self._detours.get(queue) or connection.sender.plan(queue)
        connection.broker.apply(plan, deadline)

    def _keep_private(self) -> None:
        """Declare what is served for a few again, and so put off its expiry; blocks."""
        for name in list(self._served):
            deadline = self._clock.monotonic() + REPORT_WITHIN_S
            try:
                self._declare(self._private[name], deadline)
            except TqBrokerError as error:
                log.warning("%s may expire: %s", name, error)

    def _on_completion(self, request: control.CompleteAttempt) -> control.Answer:
        for attempt in self._table.with_id(request.activity_id):
            if attempt.task.attempt != request.attempt:
                continue
            if request.heartbeat is not None:
                attempt.beat(request.heartbeat)
            elif request.failure is not None:
                self._handler.end(attempt, request.failure)
            else:
                self._handler.complete(attempt, bytes(request.result))
            return control.Answer(found=True, cancel_requested=attempt.cancel_requested)
        return control.Answer(found=False)

    def _on_record(self, record: Record) -> None:
        for niches in self._all_niches:
            niches.on_record(record)
        if isinstance(record, ActivityCanceled):
            self._handler.request_cancel(record.activity_id, record.at_ms)
            if self._sessions is not None:
                self._sessions.request_cancel(record.activity_id, record.at_ms)
        elif isinstance(record, (TaskQueuePaused, TaskQueueResumed)):
            self._on_pause(record)

    def _on_pause(self, record: TaskQueuePaused | TaskQueueResumed) -> None:
        """The next tick heeds it; this is for who reads the log and wonders why tasks wait."""
        if record.task_queue in self.task_queues:
            verb = "paused" if isinstance(record, TaskQueuePaused) else "resumed"
            log.info(
                "task queue %s %s by %s: %s", record.task_queue, verb, record.by, record.reason
            )

    # --- supervision ----------------------------------------------------------------------------

    def _supervise(self) -> None:
        while not self._halted.is_set():
            try:
                self.tick()
            except Exception as error:  # supervisor: a defect here must end the worker, loudly
                log.exception("the worker cannot go on")
                self.fatal_error = error
                if self.options.on_fatal_error is not None:
                    self.options.on_fatal_error(error)
                self.stop()  # here: there may be no thread to be had for it
                return
            self._halted.wait(TICK_S)

    def tick(self) -> None:
        """Look at deadlines, held tasks, leases and windows; done every `TICK_S`."""
        now = self._clock.monotonic()
        attempts = self._table.open()
        for attempt, timeout in watch.overdue(attempts, now):
            self._handler.time_out(attempt, timeout)
        self._handler.give_back_waiting()
        self._handler.give_back_limited(self.options.lease_after.total_seconds())
        self._keeper.tick(attempts, now)
        self._notices.tick(attempts, now)
        if self._runs_activities and not self._stopping.is_set():
            self._gates.tick(self.task_queues)
            self._sorter.tick(self.task_queues, self._poller)
            self._dealing.tick(self.task_queues)
            self._allegiance.stand(self._poller, ACTIVITY_SIDE, self.task_queues)
            if self._is_serving:
                self._niches.tick(now)
        self._supply.tick()
        self._adjust()
        if now >= self._keep_at:
            self._keep_at = now + KEEP_EVERY_S
            if self._served:
                self._connection.sender.in_background(self._keep_private)
        if self._sessions is not None:
            self._sessions.tick(now)
        if self._side is not None:
            self._side.tick(now)

    def _adjust(self) -> None:
        """Slots first, then windows that are as wide."""
        if not self._stopping.is_set():
            self._handler.adjust_slots()
        # In use without a window that counts them, or not to be used.
        occupied = self._table.occupied() + self._gates.in_hand + self._handler.withheld
        self._poller.adjust(occupied, self._supply.activity.capacity)


async def _beside(call: Callable[[], T]) -> T:
    """Run a call that blocks on a thread of its own: asyncio has few of them for everybody, and
    what they do may wait for this."""
    with contextlib.ExitStack() as after:
        thread = ThreadPoolExecutor(1, "tq-life")
        after.callback(thread.shutdown, wait=False)
        return await asyncio.get_running_loop().run_in_executor(thread, call)


def _options(keywords: dict[str, Any]) -> WorkerOptions:
    known = {field.name for field in fields(WorkerOptions)}
    unknown = sorted(set(keywords) - known)
    if unknown:
        raise InvalidArgument(
            f"unknown worker option {unknown[0]!r}; known are: {', '.join(sorted(known))}"
        )
    return WorkerOptions(**keywords)


def _check_several(name: str, given: object) -> None:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise InvalidArgument(f"{name} is {given!r}; it must be a sequence")


def _task_queues(one: str | None, several: Sequence[str]) -> tuple[str, ...]:
    if isinstance(several, str):
        raise InvalidArgument("task_queues must be a sequence of names; use task_queue for one")
    names = (*(() if one is None else (one,)), *several)
    if not names:
        raise InvalidArgument("task_queue or task_queues must be given")
    for name in names:
        check_task_queue(name)
    return tuple(dict.fromkeys(names))


def _ignore(error: TqBrokerError | None) -> None:
    if error is not None:
        log.debug("task queue not announced: %s", error)
