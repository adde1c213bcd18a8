"""The workflow side of a worker: its parts, and how they are started, drained and stopped."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence

from tq_broker.exceptions import TqBrokerError
from tq_broker.model.capabilities import check_capabilities
from tq_broker.model.control import Begins
from tq_broker.model.limits import Side
from tq_broker.model.names import QueueName
from tq_broker.model.settings import WORKFLOW_SIDE
from tq_broker.queues import topology
from tq_broker.queues.broker import Subscription
from tq_broker.queues.connection import Connection
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.queues.sticky_estate import StickyEstate
from tq_broker.queues.topology import Plan
from tq_broker.worker.allegiance import Allegiance
from tq_broker.worker.attempt import Place
from tq_broker.worker.dealing import Dealing
from tq_broker.worker.executors import Executor
from tq_broker.worker.gates import Gates, Scope
from tq_broker.worker.inquiries import Inquiries
from tq_broker.worker.local_activities import LocalActivities
from tq_broker.worker.niches import Niches
from tq_broker.worker.options import WorkerOptions
from tq_broker.worker.poller import Poller
from tq_broker.worker.recent import RecentTasks
from tq_broker.worker.registry import Registry
from tq_broker.worker.reporter import Reporter
from tq_broker.worker.slot_supply import SlotSupply
from tq_broker.worker.sorter import Sorter
from tq_broker.worker.wills import Wills
from tq_broker.worker.workflow_handler import WorkflowHandler
from tq_broker.worker.workflow_registry import WorkflowRegistry
from tq_broker.worker.workflow_reporter import WorkflowReporter
from tq_broker.worker.workflow_runner import WorkflowRunner

log = logging.getLogger(__name__)

SETTLE_WITHIN_S = 5.0


class WorkflowSide:
    """Takes and answers the workflow tasks of one worker.

    Attributes:
        sticky: The worker's sticky queue; ``None`` without a cache.
        local: The `Owner` of its local activities, whose executors it is given by the worker.
        niches: What it serves because of its capabilities, its host and its process.
    """

    def __init__(
        self,
        connection: Connection,
        place: Place,
        options: WorkerOptions,
        workflows: WorkflowRegistry,
        activities: Registry,
        returns: Reporter,
        inquiries: Inquiries,
        settings: SettingsLog,
        recent: RecentTasks,
        supply: SlotSupply,
        allegiance: Allegiance,
        task_queues: Sequence[str],
    ) -> None:
        sender, clock = connection.sender, connection.clock
        self._slots = slots = supply.workflow
        self._connection = connection
        self._options = options
        self.types = workflows.types
        self.sticky: QueueName | None = None
        if options.max_cached_workflows:
            self.sticky = connection.names.sticky(place.worker_id)
        self.local = LocalActivities(activities, place, supply.local_activity)
        self._runner = WorkflowRunner(clock, slots.most)
        self._reporter = WorkflowReporter(sender, place)
        self._handler = WorkflowHandler(
            workflows,
            activities,
            self.local,
            self._runner,
            self._reporter,
            returns,
            inquiries,
            place,
            options,
            recent,
            slots,
        )
        self._handler.is_paused = lambda task_queue: bool(
            settings.pause_of(connection.names.workflow(task_queue))
        )
        self._allegiance = allegiance
        self._handler.home_of = allegiance.home_of
        self._sorter = Sorter(
            sender, returns, settings, connection.names.workflow, self._handler.on_deliveries
        )
        self._poller = Poller(
            connection.broker,
            sender,
            0,
            self._sorter.on_deliveries,
            allegiance.is_closed,
            self._sorter.is_superseded,
        )
        self._handler.gates = self._poller.gates
        self.niches = Niches(
            sender,
            settings,
            self._poller,
            place,
            check_capabilities("capabilities", options.capabilities),
            task_queues,
            options.version,
            WORKFLOW_SIDE,
        )
        scope = Scope(
            side=Side.WORKFLOW,
            queue_of=self._sorter.queue_of,
            limits_of=lambda task_queue: settings.limits(Side.WORKFLOW, task_queue).limits,
            is_paused=settings.pause_of,
            free_slots=lambda: slots.capacity - self._handler.running,
            cover=self._handler.cover,
            takes=allegiance.takes,
        )
        self._gates = Gates(scope, sender, clock, self._poller, self._sorter.on_deliveries)
        self._dealing = Dealing(
            sender,
            returns,
            settings,
            connection.names.workflow,
            lambda: slots.capacity,
            place.identity,
        )
        self._task_queues = task_queues
        self._is_serving = False
        """It was started: before that it could not run what it took."""

    # --- facts ------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a workflow task is in hand."""
        return self._handler.busy or bool(self._sorter.under_way)

    @property
    def running(self) -> int:
        """Workflow tasks in hand."""
        return self._handler.running

    @property
    def cached(self) -> int:
        """Runs in the cache."""
        return len(self._handler.cache)

    @property
    def hits(self) -> int:
        """Tasks from the sticky queue whose run was in the cache."""
        return self._handler.cache.hits

    @property
    def misses(self) -> int:
        """Tasks from the sticky queue whose run was not."""
        return self._handler.cache.misses

    @property
    def begins(self) -> list[Begins]:
        """What it has begun, for who asks."""
        return self._handler.begins.told()

    @property
    def dealing(self) -> dict[str, int]:
        """Workflow tasks in hand that wait for their share, by task queue whose dealer is here."""
        return self._dealing.in_hand

    def stand_aside(self, task_queue: str, for_s: float) -> None:
        """See `Dealing.stand_aside`."""
        self._dealing.stand_aside(task_queue, for_s)

    def give_way(self, task_queue: str) -> None:
        """See `Gates.give_way`."""
        self._gates.give_way(task_queue)

    # --- life -------------------------------------------------------------------------------------

    def start(self, executors: Mapping[str, Executor], wills: Wills) -> Sequence[Subscription]:
        """Begin to take tasks; returns at once, with what is being subscribed to."""
        names, task_queues = self._connection.names, self._task_queues
        self.local.executors = executors
        self._allegiance.stand(self._poller, WORKFLOW_SIDE, task_queues)
        self._gates.tick(task_queues)
        self._sorter.tick(task_queues, self._poller)
        self._dealing.tick(task_queues)
        if self.sticky is not None:
            wait = self._options.sticky_queue_schedule_to_start_timeout
            ttl_ms = round(wait.total_seconds() * 1000)
            self._poller.serve(self.sticky, topology.sticky_queue(names, self.sticky, ttl_ms))
            wills.make(str(self.sticky))
        self.niches.tick(self._connection.clock.monotonic())
        self._is_serving = True
        self._adjust()
        return self._poller.subscriptions()

    def _adjust(self) -> None:
        self._slots.tick()
        self._poller.adjust(self._gates.in_hand, self._slots.capacity)

    def serve(
        self, queue: QueueName, plan: Plan | None = None, of: QueueName | None = None
    ) -> None:
        """Take tasks of ``queue`` as well: a niche's, or (with a ``plan``) what a traffic rule
        brings to the task queue ``of``."""
        self._poller.serve(queue, plan, of)
        if self._is_serving:
            self._adjust()

    def tick(self, now: float) -> None:
        """Look at what takes long, and at windows; done often."""
        if not self._is_serving:
            return
        self._handler.tick(now)
        self._gates.tick(self._task_queues)
        self._sorter.tick(self._task_queues, self._poller)
        self._dealing.tick(self._task_queues)
        self._allegiance.stand(self._poller, WORKFLOW_SIDE, self._task_queues)
        self.niches.tick(now)
        self._adjust()

    def close_intake(self, deadline: float) -> None:
        """Take nothing more; tasks that have not begun go to others; blocks."""
        with contextlib.ExitStack() as steps:  # from the last one up, each of them
            steps.callback(self._handler.close_intake)
            steps.callback(self._sorter.close_intake, deadline)
            steps.callback(self._poller.stop, deadline)
            steps.callback(self._gates.close_intake, deadline)
            steps.callback(self._dealing.close)

    def bequeath(self, wills: Wills) -> None:
        """Let history know that cached runs have no home here any more; blocks."""
        if self.sticky is None:
            return
        deadline = self._connection.clock.monotonic() + SETTLE_WITHIN_S
        try:
            StickyEstate(self._connection.sender, self.sticky).settle(deadline)
        except TqBrokerError as error:
            log.warning("sticky queue left to another worker: %s", error)
        else:
            wills.revoke(str(self.sticky))

    def leave_behind(self) -> None:
        """Give back what is still in hand: the worker ends."""
        self._handler.leave_behind()

    def close(self) -> None:
        """Throw the cache away; insist no more."""
        self._handler.close()
        self._runner.close()
        self._reporter.close()
