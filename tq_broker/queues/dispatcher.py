"""Putting activity tasks on their queues: asks the router, probes living targets, publishes.

A private queue (host or process) gets a task only while somebody serves it. That is asked through
the control exchange, where a worker's bindings vanish with its connection, so the question is
returned at once when nobody is there. A worker that serves a queue has a will, which has the queue
emptied and removed when it dies (`tq_broker.worker.rerouting`): what is sent after that is
returned, and what was sent before is routed anew. So who answered lately is not asked again for
`ALIVE_FOR_S`.
"""

from __future__ import annotations

import msgspec

from tq_broker.clock import Clock, epoch_ms
from tq_broker.exceptions import DeadlineExceeded, TargetGone, TqBrokerError
from tq_broker.model import control
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, QueueName
from tq_broker.model.tasks import ActivityTask
from tq_broker.queues import routing
from tq_broker.queues.delay import delayed
from tq_broker.queues.sender import LADDER, Done, Nacked, NoRoute, Sender

ALIVE_FOR_S = 1.0
READY_STEP_S = 0.02
PRIVATE = (Kind.HOST, Kind.PROCESS)


class Dispatcher:
    """Puts tasks where the router says. Thread-safe; across a fork call `after_fork`."""

    def __init__(self, sender: Sender, clock: Clock) -> None:
        self.sender = sender
        self._names = sender.names
        self._clock = clock
        self.after_fork()

    def after_fork(self) -> None:
        """Forget what the parent knew of living targets."""
        self._alive_until: dict[QueueName, float] = {}

    def dispatch(
        self,
        task: ActivityTask,
        message: Message,
        deadline: float,
        done: Done,
        *,
        delay_ms: int = 0,
    ) -> None:
        """Put ``message``, which carries ``task``, on its queue; returns at once.

        Args:
            delay_ms: Put it there only after this pause. A routed task is then looked at again
                when it is due.
            done: Gets `TargetGone` when the target of the task's route is gone and the route
                says to fail.
        """
        sending = _Sending(task, message, deadline, done)
        to = routing.destination(self._names, task)
        if delay_ms > 0:
            self._send_later(to.queue, sending, delay_ms)
        elif not to.private:
            self.sender.send(self._publication(to.queue, message), (to.queue,), deadline, done)
        elif self._clock.monotonic() < self._alive_until.get(to.queue, 0.0):
            self._send_private(to.queue, sending)
        else:
            self._ask(to.queue, sending)

    def _publication(self, queue: QueueName, message: Message) -> Publication:
        return Publication(self._names.exchange(Exchange.TASKS), queue.key, message)

    def _send_later(self, queue: QueueName, sending: _Sending, delay_ms: int) -> None:
        # A private queue need not exist: a task for it is looked at again when it is due.
        needs = (LADDER,) if queue.kind in PRIVATE else (queue, LADDER)
        publication = delayed(self._publication(queue, sending.message), self._names, delay_ms)
        self.sender.send(publication, needs, sending.deadline, sending.done)

    def _send_private(self, queue: QueueName, sending: _Sending) -> None:
        """Send to a private queue whose target has answered lately."""

        def ended(error: TqBrokerError | None) -> None:
            if isinstance(error, (NoRoute, Nacked)):
                # The target has died since, and its will was executed, or is just now.
                self._alive_until.pop(queue, None)
                self._in_a_moment(queue, sending)
            else:
                sending.done(error)

        # Without declaring it on demand: a queue that a dead target left must not come back.
        publication = self._publication(queue, sending.message)
        self.sender.send(publication, (), sending.deadline, ended)

    def _ask(self, queue: QueueName, sending: _Sending) -> None:
        """Send if somebody serves the queue; otherwise ask those who could."""

        def answered(error: TqBrokerError | None) -> None:
            if error is None:
                self._alive_until[queue] = self._clock.monotonic() + ALIVE_FOR_S
                self._send_private(queue, sending)
            elif isinstance(error, NoRoute):
                self._ask_to_serve(queue, sending)
            elif isinstance(error, Nacked):
                # RabbitMQ 4.3 says so of a control queue that ends with its connection.
                self._in_a_moment(queue, sending)
            else:
                sending.done(error)

        self._request(control.ready_key(queue.key), control.Probe(), sending.deadline, answered)

    def _ask_to_serve(self, queue: QueueName, sending: _Sending) -> None:
        def answered(error: TqBrokerError | None) -> None:
            if error is None or isinstance(error, Nacked):
                self._in_a_moment(queue, sending)
            elif isinstance(error, NoRoute):
                self._gone(queue, sending)
            else:
                sending.done(error)

        self._request(queue.key, control.Serve(str(queue)), sending.deadline, answered)

    def _in_a_moment(self, queue: QueueName, sending: _Sending) -> None:
        """Ask again after a pause, in which who was asked to serve gets ready."""
        due = self._clock.monotonic() + READY_STEP_S
        if due >= sending.deadline:
            sending.done(DeadlineExceeded(f"{queue} was not served before the deadline"))
        else:
            self._clock.call_at(due, lambda: self._ask(queue, sending))

    def _request(self, key: str, request: control.Request, deadline: float, done: Done) -> None:
        message = control.message(request, self.sender.ids.next())
        publication = Publication(self._names.exchange(Exchange.CONTROL), key, message)
        self.sender.send(publication, (), deadline, done)

    def _gone(self, queue: QueueName, sending: _Sending) -> None:
        """The target is gone: its route says what becomes of the task."""
        match routing.when_gone(self._names, sending.task, epoch_ms(self._clock)):
            case routing.Fail(why):
                sending.done(TargetGone(why))
            case routing.Destination(instead):
                publication = self._publication(instead, sending.message)
                self.sender.send(publication, (instead,), sending.deadline, sending.done)
            case routing.LookAgain(delay_ms):
                self._send_later(queue, sending, delay_ms)


class _Sending(msgspec.Struct, frozen=True):
    """A task under way, and who waits for it to arrive."""

    task: ActivityTask
    message: Message
    deadline: float
    done: Done
