"""Putting tasks on their queues: asks the router, probes living targets, publishes.

A private queue (host, process or detour of a traffic rule) gets a task only while somebody serves
it. That is asked through the control exchange, where a worker's bindings vanish with its
connection, so the question is returned at once when nobody is there. A worker that serves a queue
has a will, which has the queue emptied and removed when it dies (`tq_broker.worker.rerouting`):
what is sent after that is returned, and what was sent before is routed anew. So who answered lately
is not asked again for `ALIVE_FOR_S`; and there is one question at a time about a queue, for whose
answer all tasks wait that come meanwhile.

A rule's target that is gone is not asked again for `GONE_FOR_S` either: its tasks have somewhere
else to go meanwhile, and should not pay for it with questions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf

import msgspec

from tq_broker.clock import Clock, epoch_ms
from tq_broker.exceptions import (
    DeadlineExceeded,
    TargetGone,
    TqBrokerError,
    Unavailable,
    UnknownCapability,
    UnknownVersion,
)
from tq_broker.model import control, envelope
from tq_broker.model.capabilities import Niche
from tq_broker.model.detours import Detour
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import NICHES, PLAIN, Exchange, Kind, QueueName
from tq_broker.model.rule_table import NO_MEMO, Facts
from tq_broker.model.rules import TaskKind
from tq_broker.model.tasks import ActivityTask
from tq_broker.model.workflow_tasks import WorkflowTask
from tq_broker.queues import routing
from tq_broker.queues.delay import delayed
from tq_broker.queues.routing import Asked, Destination
from tq_broker.queues.sender import LADDER, Done, IndexedDone, Nacked, NoRoute, Sender
from tq_broker.queues.traffic import Traffic

ALIVE_FOR_S = 1.0
GONE_FOR_S = 0.5
READY_STEP_S = 0.02
READY_WITHIN_S = 2.0
"""A rule's target, or a niche, of which somebody is there but nobody gets ready for so long does
not take the task."""
MEANT = (Kind.DETOUR, *NICHES.values())
"""Private queues whose names do not say what they are for: who asks for one to be served does."""
PRIVATE = (Kind.HOST, Kind.PROCESS, *MEANT)


class TargetAwaited(Unavailable):
    """Nobody serves the target now, and the task waits for somebody."""


class Dispatcher:
    """Puts tasks where the router says. Thread-safe; across a fork call `after_fork`."""

    def __init__(self, sender: Sender, clock: Clock, traffic: Traffic | None = None) -> None:
        self.sender = sender
        self.traffic = traffic or Traffic(sender.broker, sender.names, clock)
        self._names = sender.names
        self._clock = clock
        self.after_fork()

    def after_fork(self) -> None:
        """Forget what the parent knew of living targets and of rules."""
        self.traffic.after_fork()
        self._alive_until: dict[QueueName, float] = {}
        self._gone_until: dict[QueueName, float] = {}
        self._lock = threading.Lock()
        self._asking: dict[QueueName, list[_Sending]] = {}

    def dispatch(
        self,
        task: ActivityTask,
        message: Message,
        deadline: float,
        done: Done,
        *,
        delay_ms: int = 0,
        memo: Mapping[str, bytes] = NO_MEMO,
    ) -> None:
        """Put ``message``, which carries ``task``, on its queue; returns at once.

        Args:
            delay_ms: Put it there only after this pause. A routed task is then looked at again
                when it is due.
            memo: That of the workflow that has scheduled it, for traffic rules.
            done: Gets `TargetGone` when the target of the task's route is gone and the route
                says to fail.
        """
        if self._is_doubtful(task):
            # Perhaps the log was not read yet: rare, and worth a wait elsewhere.
            self.sender.in_background(
                lambda: self._check(task, message, deadline, done, delay_ms, memo)
            )
        else:
            self._dispatch(task, message, deadline, done, delay_ms, memo)

    def dispatch_alike(
        self, task: ActivityTask, messages: Sequence[Message], deadline: float, done: IndexedDone
    ) -> None:
        """Put ``messages`` on their queue, which carry tasks that differ from ``task`` by their ids
        and bodies alone; returns at once. Traffic rules and ramps, which go by ids, are not asked:
        see `moves`."""
        if self._is_doubtful(task):
            for index, message in enumerate(messages):
                self.dispatch(task, message, deadline, partial(done, index))
            return
        to = routing.destination(self._names, task, self.traffic.deployments)
        gone = partial(self._gone, to.queue, task)
        sendings = [
            _Sending(message, deadline, partial(done, index), gone, niche=to.niche)
            for index, message in enumerate(messages)
        ]
        self._put(to, sendings)

    def _is_doubtful(self, task: ActivityTask) -> bool:
        """Whether ``task`` asks for what is not known, as far as the settings log was read."""
        requires = task.requires
        return routing.lacks_version(task, self.traffic.deployments) or (
            requires is not None
            and routing.must_be_known(requires)
            and bool(self.traffic.unknown(task.task_queue, requires.names))
        )

    def _check(
        self,
        task: ActivityTask,
        message: Message,
        deadline: float,
        done: Done,
        delay_ms: int,
        memo: Mapping[str, bytes],
    ) -> None:
        """Dispatch unless ``task`` requires what no worker has ever had, or is bound to a version
        that there never was; blocks."""
        try:
            self.traffic.catch_up(deadline)
        except TqBrokerError as error:
            done(error)
            return
        known = self.traffic.capabilities(task.task_queue)
        if why := routing.refused_version(task, self.traffic.deployments):
            done(UnknownVersion(why))
        elif why := routing.refused_unknown(task.task_queue, task.requires, known):
            done(UnknownCapability(why))
        else:
            self._dispatch(task, message, deadline, done, delay_ms, memo)

    def _dispatch(
        self,
        task: ActivityTask,
        message: Message,
        deadline: float,
        done: Done,
        delay_ms: int,
        memo: Mapping[str, bytes],
    ) -> None:
        to, sending = self._addressed(task, message, deadline, done, memo)
        if delay_ms > 0:
            self._send_later(to.queue, sending, delay_ms)
        else:
            self._put(to, [sending])

    def _addressed(
        self,
        task: ActivityTask,
        message: Message,
        deadline: float,
        done: Done,
        memo: Mapping[str, bytes],
    ) -> tuple[Destination, _Sending]:
        """Where ``task`` goes now, and what is sent there."""
        to = self.destination(task, memo)
        if to.rule is None:
            gone = partial(self._gone, to.queue, task)
            return to, _Sending(message, deadline, done, gone, niche=to.niche)
        message = envelope.diverted(message, to.rule.id, task.task_queue)
        needed = () if task.requires is None else task.requires.names
        home = self._names.shared(task.task_queue, needed)
        return to, _Sending(message, deadline, done, self._back_to(home, to.rule.id), to.detour)

    def destination(self, task: ActivityTask, memo: Mapping[str, bytes] = NO_MEMO) -> Destination:
        """Where ``task`` goes now."""
        rules = self.traffic.rules
        if rules and routing.may_be_moved(task):
            now_ms = epoch_ms(self._clock)
            found = routing.by_rule(self._names, routing.facts(task, memo), rules, now_ms)
            if found is not None:
                return found
        return routing.destination(self._names, task, self.traffic.deployments)

    def in_order(self, queue: QueueName, message: Message) -> tuple[QueueName, Message] | None:
        """Where ``message`` for ``queue`` waits in the order of priorities, and what it is there;
        ``None`` if that is not known before something was published."""
        prioritized, is_ordered = self.traffic.prioritized, self.sender.orders_by_priority
        to = routing.in_order(
            self._names,
            queue,
            message.priority,
            prioritized,
            is_ordered,
            has_key=envelope.FAIRNESS_KEY in message.headers,
            fair=self.traffic.fair,
        )
        if to is None:
            return None
        return to, envelope.ranked(message) if to.kind in PLAIN else message

    def put(self, queue: QueueName, message: Message, deadline: float, done: Done) -> None:
        """Put ``message`` on the shared queue ``queue``, or where its tasks wait in their order;
        returns at once."""
        self._send(queue, _Sending(message, deadline, done, _nobody_asked))

    def by_rule(self, facts: Facts) -> Destination | None:
        """Where a traffic rule sends a task; ``None`` if none does."""
        rules = self.traffic.rules
        if not rules:
            return None
        return routing.by_rule(self._names, facts, rules, epoch_ms(self._clock))

    def doubt(self, queue: QueueName) -> None:
        """Who serves the private queue ``queue`` may be gone: ask before the next task goes there.

        To be called when an attempt was lost there: its queue is being emptied and removed then,
        and what still gets there is looked at only after a while.
        """
        self._alive_until.pop(queue, None)

    def moves(self, activity_type: str, task_queue: str) -> bool:
        """Whether some such activities go elsewhere than to their task queue's own queue, by
        traffic rules or a ramp."""
        traffic = self.traffic
        return (
            traffic.rules.concerns(TaskKind.ACTIVITY, activity_type, task_queue)
            or traffic.deployments.line(Kind.ACTIVITY.value, task_queue).ramping is not None
        )

    def divert(
        self, message: Message, home: QueueName, to: Destination, deadline: float, done: Done
    ) -> None:
        """Put a workflow task where a traffic rule sends it, or ``home`` if nobody is there;
        returns at once."""
        assert to.rule is not None, "only a rule diverts"
        marked = envelope.diverted(message, to.rule.id, home.parts[-1])
        back = self._back_to(home, to.rule.id)
        self._put(to, [_Sending(marked, deadline, done, back, to.detour)])

    def dispatch_workflow(
        self, task: WorkflowTask, asked: Asked, message: Message, deadline: float, done: Done
    ) -> None:
        """Put ``message``, which carries ``task``, where its run asks for; returns at once.

        Args:
            done: Gets `TargetGone` when the target is gone and the run says to fail, or to fall
                back: its history has to know that first, and what carries only queries just does
                it. Gets `TargetAwaited` when it says to wait: then it is to be dispatched again
                soon.
        """
        self._put_bound(task, asked, _Sending(message, deadline, done, _nobody_asked))

    def _put_bound(self, task: WorkflowTask, asked: Asked, sending: _Sending) -> None:
        to = routing.workflow_destination(self._names, task, asked, self.traffic.deployments)
        sending.niche, sending.asked_at = to.niche, 0.0
        sending.gone = partial(self._bound_gone, task, asked)
        self._put(to, [sending])

    def _bound_gone(self, task: WorkflowTask, asked: Asked, sending: _Sending) -> None:
        match routing.workflow_gone(task, asked, epoch_ms(self._clock)):
            case routing.FallBack() if not task.scheduled_event_id:
                self._put_bound(task, asked.fallen, sending)
            case routing.Fail(why) | routing.FallBack(why):
                sending.done(TargetGone(why))
            case routing.LookAgain(_, why):
                sending.done(TargetAwaited(why))

    def _put(self, to: Destination, sendings: list[_Sending]) -> None:
        """``sendings``, at least one, is ours from now on."""
        now = self._clock.monotonic()
        if not to.private:
            for sending in sendings:
                self._send(to.queue, sending)
        elif now < self._alive_until.get(to.queue, 0.0):
            self._send_private(to.queue, sendings)
        elif now < self._gone_until.get(to.queue, 0.0):
            for sending in sendings:
                sending.gone(sending)
        else:
            self._ask(to.queue, sendings)

    def _send(self, queue: QueueName, sending: _Sending) -> None:
        place = self.in_order(queue, sending.message)
        if place is None:
            self._learn(sending, lambda: self._send(queue, sending))
            return
        publication = self._publication(*place)
        self.sender.send(publication, (place[0],), sending.deadline, sending.done)

    def _learn(self, sending: _Sending, go_on: Callable[[], None]) -> None:
        """Learn how this RabbitMQ orders tasks, then go on."""

        def ask() -> None:
            try:
                self.sender.ensure((), sending.deadline)
            except TqBrokerError as error:
                sending.done(error)
            else:
                go_on()

        self.sender.in_background(ask)

    def _publication(self, queue: QueueName, message: Message) -> Publication:
        return Publication(self._names.exchange(Exchange.TASKS), queue.key, message)

    def _send_later(self, home: QueueName, sending: _Sending, delay_ms: int) -> None:
        if home.kind is Kind.RAMPING:
            # A key that ends with that of the plain queue is one for that, too, among due tasks.
            # So it waits for that one, and goes where the ramp takes it then.
            home = self._names.queue(Kind(home.parts[0]), home.parts[1])
        place = self.in_order(home, sending.message)
        if place is None:
            self._learn(sending, lambda: self._send_later(home, sending, delay_ms))
            return
        queue, message = place
        # A private queue need not exist: a task for it is looked at again when it is due.
        needs = (LADDER,) if queue.kind in PRIVATE else (queue, LADDER)
        publication = delayed(self._publication(queue, message), self._names, delay_ms)
        self.sender.send(publication, needs, sending.deadline, sending.done)

    def _send_private(self, queue: QueueName, sendings: Sequence[_Sending]) -> None:
        """Send to a private queue whose target has answered lately."""

        def ended(sending: _Sending, error: TqBrokerError | None) -> None:
            if isinstance(error, (NoRoute, Nacked)):
                # The target has died since, and its will was executed, or is just now.
                self._alive_until.pop(queue, None)
                self._in_a_moment(queue, [sending])
            else:
                sending.done(error)

        # Without declaring it on demand: a queue that a dead target left must not come back.
        publications = [self._publication(queue, one.message) for one in sendings]
        deadline = sendings[0].deadline
        if len(sendings) > 1 and all(one.deadline == deadline for one in sendings):
            self.sender.send_together(
                publications, deadline, lambda index, error: ended(sendings[index], error)
            )
            return
        for one, publication in zip(sendings, publications, strict=True):
            self.sender.send(publication, (), one.deadline, partial(ended, one))

    def _ask(self, queue: QueueName, sendings: list[_Sending]) -> None:
        """Send if somebody serves the queue; otherwise ask those who could.

        ``sendings`` is ours from now on.
        """
        sendings.sort(key=_deadline)  # the first has the earliest, also when others join it
        with self._lock:
            others = self._asking.setdefault(queue, sendings)
            # Nobody waits for the answer to a question that may take longer than he has.
            if others is not sendings and others[0].deadline <= sendings[0].deadline:
                others += sendings
                return

        def answered(error: TqBrokerError | None) -> None:
            if error is None:
                self._alive_until[queue] = self._clock.monotonic() + ALIVE_FOR_S
            with self._lock:
                if self._asking.get(queue) is sendings:
                    del self._asking[queue]
            if error is None:
                self._send_private(queue, sendings)
            elif isinstance(error, NoRoute):
                self._ask_to_serve(queue, sendings)
            elif isinstance(error, Nacked):
                # RabbitMQ 4.3 says so of a control queue that ends with its connection.
                self._in_a_moment(queue, sendings)
            else:
                self._not_asked(queue, sendings, error)

        deadline = sendings[0].deadline
        self._request(control.ready_key(queue.key), control.Probe(), deadline, answered)

    def _ask_to_serve(self, queue: QueueName, sendings: list[_Sending]) -> None:
        def answered(error: TqBrokerError | None) -> None:
            if error is None or isinstance(error, Nacked):
                self._in_a_moment(queue, sendings)
            elif isinstance(error, NoRoute):
                for sending in sendings:
                    self._nobody(queue, sending)
            else:
                self._not_asked(queue, sendings, error)

        first = sendings[0]
        meant = first.detour or first.niche
        key = queue.key if meant is None else meant.ask_key
        request = control.Serve(str(queue), first.detour, first.niche)
        self._request(key, request, first.deadline, answered)

    def _not_asked(self, queue: QueueName, sendings: list[_Sending], error: TqBrokerError) -> None:
        """There is no answer, which ends those whose time is over, or all."""
        late_until = self._clock.monotonic() if isinstance(error, DeadlineExceeded) else inf
        left: list[_Sending] = []
        for sending in sendings:
            if sending is sendings[0] or sending.deadline <= late_until:
                sending.done(error)
            else:
                left.append(sending)
        if left:
            self._ask(queue, left)

    def _in_a_moment(self, queue: QueueName, sendings: Sequence[_Sending]) -> None:
        """Ask again after a pause, in which who was asked to serve gets ready."""
        now = self._clock.monotonic()
        due = now + READY_STEP_S
        left: list[_Sending] = []
        for sending in sendings:
            sending.asked_at = sending.asked_at or now
            ready_by = min(sending.asked_at + READY_WITHIN_S, sending.deadline)
            if queue.kind in MEANT and due >= ready_by:
                self._nobody(queue, sending)
            elif due >= sending.deadline:
                sending.done(DeadlineExceeded(f"{queue} was not served before the deadline"))
            else:
                left.append(sending)
        if left:
            self._clock.call_at(due, lambda: self._ask(queue, left))

    def _request(self, key: str, request: control.Request, deadline: float, done: Done) -> None:
        message = control.message(request, self.sender.ids.next())
        publication = Publication(self._names.exchange(Exchange.CONTROL), key, message)
        self.sender.send(publication, (), deadline, done)

    def _nobody(self, queue: QueueName, sending: _Sending) -> None:
        if queue.kind in MEANT:
            self._gone_until[queue] = self._clock.monotonic() + GONE_FOR_S
        sending.gone(sending)

    def _back_to(self, home: QueueName, rule_id: str) -> Callable[[_Sending], None]:
        """What becomes of a task whose rule's target is gone: its own task queue has it."""

        def gone(sending: _Sending) -> None:
            sending.message = envelope.brought_back(sending.message, rule_id)
            self._send(home, sending)

        return gone

    def _gone(self, queue: QueueName, task: ActivityTask, sending: _Sending) -> None:
        """The target is gone: its route says what becomes of the task."""
        match routing.when_gone(self._names, task, epoch_ms(self._clock)):
            case routing.Fail(why):
                sending.done(TargetGone(why))
            case routing.Destination(instead):
                self._send(instead, sending)
            case routing.LookAgain(delay_ms):
                self._send_later(queue, sending, delay_ms)


def _deadline(sending: _Sending) -> float:
    return sending.deadline


def _nobody_asked(sending: _Sending) -> None:
    raise AssertionError("a shared queue is nobody's: it cannot be gone")


class _Sending(msgspec.Struct):
    """A task under way, who waits for it to arrive, and what is done if its target is gone."""

    message: Message
    deadline: float
    done: Done
    gone: Callable[[_Sending], None]
    detour: Detour | None = None
    niche: Niche | None = None
    asked_at: float = 0.0
