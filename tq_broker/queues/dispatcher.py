"""Putting activity tasks on their queues: asks the router, probes living targets, publishes.

A private queue (host or process) gets a task only after a worker has been asked to serve it:
the request goes through the control exchange, where a worker's bindings vanish with its
connection, so it is returned at once when the target is gone. Who answered lately is not asked
again for `ALIVE_FOR_S`; a target that dies within that time is caught by the queue's
time-to-live, which sends the task to be routed anew.
"""

from __future__ import annotations

from collections.abc import Callable

from tq_broker.clock import Clock, epoch_ms
from tq_broker.exceptions import TargetGone, TqBrokerError
from tq_broker.model import control
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, QueueName
from tq_broker.model.tasks import ActivityTask
from tq_broker.queues import routing
from tq_broker.queues.delay import delayed
from tq_broker.queues.sender import LADDER, Done, NoRoute, Sender

ALIVE_FOR_S = 1.0
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
        to = routing.destination(self._names, task)
        if delay_ms > 0 or not to.private:
            self._send(to.queue, message, deadline, done, delay_ms)
            return
        until = self._alive_until.get(to.queue)
        if until is not None and self._clock.monotonic() < until:
            self._send(to.queue, message, deadline, done, 0)
            return
        self._probe(
            to.queue,
            deadline,
            lambda error: self._probed(error, to.queue, task, message, deadline, done),
        )

    def _send(
        self, queue: QueueName, message: Message, deadline: float, done: Done, delay_ms: int
    ) -> None:
        publication = Publication(self._names.exchange(Exchange.TASKS), queue.key, message)
        if delay_ms <= 0:
            self.sender.send(publication, (queue,), deadline, done)
            return
        # A private queue need not exist: a task for it is looked at again when it is due.
        needs = (LADDER,) if queue.kind in PRIVATE else (queue, LADDER)
        self.sender.send(delayed(publication, self._names, delay_ms), needs, deadline, done)

    def _probe(self, queue: QueueName, deadline: float, done: Done) -> None:
        request = control.message(control.Serve(str(queue)), self.sender.ids.next())
        publication = Publication(self._names.exchange(Exchange.CONTROL), queue.key, request)
        self.sender.send(publication, (), deadline, done)

    def _probed(
        self,
        error: TqBrokerError | None,
        queue: QueueName,
        task: ActivityTask,
        message: Message,
        deadline: float,
        done: Done,
    ) -> None:
        if error is None:
            self._alive_until[queue] = self._clock.monotonic() + ALIVE_FOR_S
            self._send(queue, message, deadline, done, 0)
            return
        if not isinstance(error, NoRoute):
            done(error)
            return
        self._alive_until.pop(queue, None)
        match routing.when_gone(self._names, task, epoch_ms(self._clock)):
            case routing.Fail(why):
                done(TargetGone(why))
            case routing.Destination() as instead:
                self._send(instead.queue, message, deadline, done, 0)
            case routing.LookAgain(delay_ms):
                self._send(queue, message, deadline, done, delay_ms)


