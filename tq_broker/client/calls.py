"""Calls: requests that wait for answers in the client's reply queue, and are asked again meanwhile.

A request may get lost with a process that had taken it, and an answer with a broker. So each call
is sent again after a pause, and all of them when the reply queue had to be subscribed to anew; who
answers knows by the ``message_id`` that it is the same request. A call without a deadline waits for
as long as it takes: over restarts of the broker and of whoever answers.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tq_broker.clock import Clock, Timer
from tq_broker.exceptions import DeadlineExceeded, TqBrokerError, Unavailable
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import QueueName
from tq_broker.queues.sender import Sender

log = logging.getLogger(__name__)

LISTEN_AGAIN_S = 1.0
"""Pause of a call without a deadline when the reply queue cannot be opened."""


@dataclass(eq=False, slots=True)
class Call:
    """One request under way.

    Attributes:
        id: The ``correlation_id`` of its answers.
        publication: Makes the message, each time that it is sent.
        needs: What must be declared for it.
        on_answer: Gets each answer, on the thread of the deliveries; ends the call when it expects
            no more. May raise `Malformed`: then the answer is dropped.
        on_failure: Called at most once, and then the call has ended.
        deadline: In monotonic seconds; ``None`` if it waits for as long as it takes. May be
            changed while the call is open.
        again_s: The pause before it is sent again.
        silence: What to say when nobody has answered before the deadline.
    """

    id: str
    publication: Callable[[], Publication]
    needs: Sequence[QueueName]
    on_answer: Callable[[Message], None]
    on_failure: Callable[[TqBrokerError], None]
    deadline: float | None
    again_s: float
    silence: str
    is_sent: bool = field(default=False, init=False)
    is_confirmed: bool = field(default=False, init=False)
    timer: Timer | None = field(default=None, init=False)


class Calls:
    """The calls of one client. Thread-safe; does not cross a fork."""

    def __init__(
        self, sender: Sender, clock: Clock, *, listen: Callable[[float], None], send_s: float
    ) -> None:
        """Nothing is done yet.

        Args:
            listen: Opens the reply queue before the deadline that it is given, or raises.
            send_s: Bound of one sending of a call without a deadline.
        """
        self._sender = sender
        self._clock = clock
        self._listen = listen
        self._send_s = send_s
        self._open: dict[str, Call] = {}
        self._is_listening = False
        self._was_subscribed = False

    @property
    def open_count(self) -> int:
        """How many calls are under way."""
        return len(self._open)

    def begin(self, call: Call) -> None:
        """Ask. Returns at once; declares and listens on a thread of the sender if need be."""
        self._open[call.id] = call
        if self._is_listening:
            self.send(call)
        else:
            self._sender.in_background(lambda: self._listen_and_send(call))

    def end(self, call: Call) -> bool:
        """Nothing more is expected; False if that was so already."""
        if self._open.pop(call.id, None) is None:
            return False
        if call.timer is not None:
            call.timer.cancel()
        return True

    def fail(self, call: Call, error: TqBrokerError) -> None:
        """It ends with ``error``, unless it has ended."""
        if self.end(call):
            call.on_failure(error)

    def answered(self, message: Message) -> None:
        """A message has come into the reply queue. Raises `Malformed`."""
        call = self._open.get(message.correlation_id or "")
        if call is not None:
            call.on_answer(message)

    def send(self, call: Call) -> None:
        """Send it now, for the first time or again."""
        now = self._clock.monotonic()
        until = now + self._send_s if call.deadline is None else call.deadline
        self._book(call, now)
        call.is_sent = True
        try:
            publication = call.publication()
        except TqBrokerError as error:
            self.fail(call, error)
            return
        self._sender.send(publication, call.needs, until, lambda error: self._sent(call, error))

    def be_patient(self, call: Call, again_s: float) -> None:
        """From here on ``call`` waits for as long as it takes."""
        call.deadline, call.again_s = None, again_s
        self._book(call, self._clock.monotonic())

    def subscribed(self) -> None:
        """The reply queue is subscribed to; if it is so anew, what has come may be lost."""
        if not self._was_subscribed:
            self._was_subscribed = True
            return
        for call in list(self._open.values()):
            if call.is_sent:
                self.send(call)

    def forget(self) -> None:
        """After a fork: the calls are the parent's."""
        self._open.clear()

    def close(self) -> None:
        """Give up what is open."""
        for call in list(self._open.values()):
            self.fail(call, Unavailable("the client was closed"))

    def _listen_and_send(self, call: Call) -> None:
        deadline = call.deadline
        try:
            self._listen(self._clock.monotonic() + self._send_s if deadline is None else deadline)
        except Unavailable as error:
            if deadline is not None:
                self.fail(call, error)
            elif call.id in self._open:
                log.info("the reply queue cannot be opened: %s; trying again", error)
                again = self._clock.monotonic() + LISTEN_AGAIN_S
                self._clock.call_at(again, lambda: self.begin(call))
        except TqBrokerError as error:
            self.fail(call, error)
        else:
            self._is_listening = True
            if call.id in self._open:
                self.send(call)

    def _book(self, call: Call, now: float) -> None:
        if call.timer is not None:
            call.timer.cancel()
        due = now + call.again_s
        due = due if call.deadline is None else min(due, call.deadline)
        # Of the id only: the clock keeps what it was given until the time has come.
        call.timer = self._clock.call_at(due, functools.partial(self._due, call.id))

    def _sent(self, call: Call, error: TqBrokerError | None) -> None:
        if error is None:
            call.is_confirmed = True
        elif call.deadline is not None or not isinstance(error, Unavailable):
            self.fail(call, error)

    def _due(self, call_id: str) -> None:
        call = self._open.get(call_id)
        if call is None:
            return
        if call.deadline is None or self._clock.monotonic() < call.deadline:
            self.send(call)
        elif call.is_confirmed:
            # Otherwise the sender says what is wrong: it has the same deadline.
            self.fail(call, DeadlineExceeded(call.silence))
