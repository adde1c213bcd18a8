"""History services, and a hand that plays clients and workers, in memory."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from tq_broker.clock import Clock, SystemClock
from tq_broker.converter import DEFAULT
from tq_broker.history.service import HistoryService
from tq_broker.model import envelope, requests, workflow_tasks
from tq_broker.model.commands import Command
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, Names, QueueName
from tq_broker.model.requests import Reply, Request, StartWorkflow, shard_of
from tq_broker.model.tasks import ActivityOutcome, ActivityTask, Status
from tq_broker.model.workflow_tasks import WorkflowTask, WorkflowTaskCompleted
from tq_broker.queues import topology
from tq_broker.queues.broker import Delivery, SubscribeOptions
from tq_broker.queues.connection import Connection
from tq_broker.queues.memory import MemoryBroker, MemoryServer
from tq_broker.queues.topology import Plan
from tq_broker.stores.memory import MemoryDatabase, MemoryStore
from tq_broker.stores.store import Batch, Conflict, OutcomeUnknown, StoreUnavailable
from tq_broker.testing.manual_clock import ManualClock

NAMES = Names("n")
SOON_S = 20.0
T = TypeVar("T")


class World:
    """One server and one database; everybody has a connection of their own."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.clock = clock or SystemClock()
        self.server = MemoryServer()
        self.database = MemoryDatabase()
        self._closers: list[Callable[[], object]] = []
        self.connection = self.connect("hand")
        self.ids = self.connection.sender.ids
        self.reply_queue = NAMES.queue(Kind.REPLY, "hand")
        self.replies: queue.Queue[tuple[str | None, Reply]] = queue.Queue()
        self._inboxes: dict[str, queue.Queue[Delivery]] = {}
        self._listen()

    def connect(self, identity: str) -> Connection:
        broker = MemoryBroker(self.server, self.clock)
        self._closers.append(lambda: broker.close(self.soon()))
        return Connection(broker, NAMES, self.clock, DEFAULT, identity)

    def store(self) -> MemoryStore:
        return MemoryStore(self.database, NAMES.namespace)

    def service(self, store: Any = None, **options: Any) -> HistoryService:
        """A service that runs; stopped with the world."""
        made = HistoryService(self.connect("history"), store or self.store(), **options)
        made.start()
        self._closers.append(made.stop)
        return made

    def soon(self) -> float:
        return self.clock.monotonic() + (1000 if isinstance(self.clock, ManualClock) else SOON_S)

    def close(self) -> None:
        for close in reversed(self._closers):
            close()

    def eventually(self, is_true: Callable[[], bool]) -> None:
        """Wait for what other threads do; fails after `SOON_S`."""
        real = SystemClock()
        deadline = real.monotonic() + SOON_S
        while not is_true():
            assert real.monotonic() < deadline, "it does not happen"
            if isinstance(self.clock, ManualClock):
                self.clock.advance(0.02)
            real.sleep(0.002)

    def _next(self, of: queue.Queue[T]) -> T:
        self.eventually(lambda: not of.empty())
        return of.get()

    # --- a client ---------------------------------------------------------------------------------

    def _listen(self) -> None:
        plan = topology.namespace(NAMES) + topology.reply_queue(NAMES, self.reply_queue)

        def on_deliveries(deliveries: Sequence[Delivery]) -> None:
            for delivery in deliveries:
                message = delivery.message
                self.replies.put((message.correlation_id, requests.read_reply(message)))
                delivery.ack()

        subscription = self.connection.broker.subscribe(
            str(self.reply_queue), on_deliveries, SubscribeOptions(prefetch=100, plan=plan)
        )
        self.connection.broker.wait_subscribed([subscription], self.soon())

    def post(self, message: Message, shard: int) -> None:
        inbox = NAMES.history(shard)
        self.connection.sender.ensure((inbox,), self.soon())
        publication = Publication(NAMES.exchange(Exchange.HISTORY), inbox.key, message)
        self.connection.sender.send(publication, (inbox,), self.soon(), lambda error: None)

    def request(
        self,
        request: Request,
        workflow_id: str = "",
        *,
        message_id: str = "",
        correlation_id: str = "",
        reply_to: str | None = None,
    ) -> None:
        """Send a request; its answer comes to `replies`."""
        name = workflow_id or getattr(request, "workflow_id", "")
        message = requests.request_message(
            request,
            message_id or self.ids.next(),
            reply_to=reply_to or str(self.reply_queue),
            correlation_id=correlation_id or self.ids.next(),
        )
        self.post(message, shard_of(name) if name else 0)

    def ask(self, request: Request, workflow_id: str = "", **properties: str) -> Any:
        """The answer to a request."""
        correlation_id = self.ids.next()
        self.request(request, workflow_id, correlation_id=correlation_id, **properties)
        while True:
            found, reply = self._next(self.replies)
            if found == correlation_id:
                return reply

    def start(self, workflow_id: str = "w", **fields: Any) -> Any:
        wanted = {"workflow_type": "Type", "task_queue": "q"} | fields
        return self.ask(StartWorkflow(workflow_id=workflow_id, **wanted))

    @staticmethod
    def changed(value: Any, **changes: Any) -> Any:
        return msgspec.structs.replace(value, **changes)

    # --- a worker ---------------------------------------------------------------------------------

    def _plan(self, name: QueueName) -> Plan:
        if name.kind is Kind.STICKY:
            return topology.namespace(NAMES) + topology.sticky_queue(NAMES, name, 10_000)
        return topology.namespace(NAMES) + self.connection.sender.plan(name)

    def declare(self, name: QueueName) -> None:
        """Make a queue that nobody consumes."""
        self.connection.broker.apply(self._plan(name), self.soon())

    def listen(self, name: QueueName) -> queue.Queue[Delivery]:
        """Consume a queue."""
        inbox = self._inboxes.get(str(name))
        if inbox is None:
            inbox = self._inboxes[str(name)] = queue.Queue()
            put = inbox.put

            def on_deliveries(deliveries: Sequence[Delivery]) -> None:
                for delivery in deliveries:
                    put(delivery)

            options = SubscribeOptions(prefetch=100, plan=self._plan(name))
            self.connection.broker.subscribe(str(name), on_deliveries, options)
        return inbox

    def take(self, name: QueueName) -> Delivery:
        """The next message of a queue."""
        return self._next(self.listen(name))

    def workflow_task(self, worker_id: str = "") -> WorkflowTask:
        """The next workflow task, of the task queue or of a worker's sticky queue."""
        name = NAMES.sticky(worker_id) if worker_id else NAMES.workflow("q")
        delivery = self.take(name)
        delivery.ack()
        return workflow_tasks.read_task(delivery.message)

    def complete(self, task: WorkflowTask, *commands: Command, sticky: str = "") -> None:
        """Answer a workflow task."""
        answer = WorkflowTaskCompleted(
            run=task.run,
            scheduled_event_id=task.scheduled_event_id,
            attempt=task.attempt,
            commands=list(commands),
            sticky=bool(sticky),
            worker_id=sticky,
        )
        self.post(requests.request_message(answer, self.ids.next()), task.shard)

    def activity_task(self, task_queue: str = "q") -> ActivityTask:
        """The next activity task."""
        delivery = self.take(NAMES.activity(task_queue))
        delivery.ack()
        return envelope.read_task(delivery.message, task_queue)

    def report(
        self,
        task: ActivityTask,
        status: Status = Status.COMPLETED,
        details: Sequence[bytes] | None = None,
        **fields: Any,
    ) -> None:
        """Tell how an attempt of an activity has gone."""
        outcome = ActivityOutcome(
            activity_id=task.activity_id,
            activity_type=task.activity_type,
            status=status,
            attempt=task.attempt,
            **fields,
        )
        message = envelope.report_message(
            outcome, None if details is None else [*map(msgspec.Raw, details)], DEFAULT
        )
        assert task.reply_to is not None
        publication = Publication(NAMES.exchange(Exchange.REPLIES), task.reply_to, message)
        self.connection.sender.send(publication, (), self.soon(), lambda error: None)

    def count(self, name: QueueName) -> int:
        stats = self.connection.broker.stats(str(name), self.soon())
        return 0 if stats is None else stats.ready

    def take_parked(self) -> Message:
        """The next parked message."""
        name = NAMES.queue(Kind.PARKED)
        self.eventually(lambda: self.count(name) > 0)
        delivery = self.connection.broker.get(str(name), self.soon())
        assert delivery is not None
        delivery.ack()
        return delivery.message


class Faulty:
    """A store that fails as it is told: each of ``faults`` is called with the next commit."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store
        self.faults: list[Callable[[Callable[[], None]], None]] = []
        self.commits = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, batch: Batch) -> None:
        self.commits += 1
        if self.faults:
            self.faults.pop(0)(lambda: self._store.commit(batch))
        else:
            self._store.commit(batch)


def unavailable(_commit: Callable[[], None]) -> None:
    raise StoreUnavailable("the database is away")


def lost_before(_commit: Callable[[], None]) -> None:
    raise OutcomeUnknown("the connection broke")


def lost_after(commit: Callable[[], None]) -> None:
    commit()
    raise OutcomeUnknown("the connection broke")


def conflict(_commit: Callable[[], None]) -> None:
    raise Conflict("somebody else was there")
