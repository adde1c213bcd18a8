"""Dealing: the dealers of one side of a worker, as the settings log says.

A task queue without fairness keys has nothing here. When the log says that one gives fair shares,
this worker stands for election as its `Dealer`, for as long as it lives; then a thread runs,
``tq-dealer``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from tq_broker.clock import epoch_ms
from tq_broker.exceptions import TqBrokerError
from tq_broker.model.names import QueueName
from tq_broker.model.settings import TaskQueueFair
from tq_broker.queues.sender import Sender
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.worker.dealer import Dealer
from tq_broker.worker.reporter import Reporter
from tq_broker.worker.turns import LOOK_S, Turns

log = logging.getLogger(__name__)

TELL_WITHIN_S = 10.0
TELL_EVERY_S = 5.0


class Dealing:
    """See the module. Thread-safe.

    Args:
        plain: The plain queue of a task queue, on the side that it works for.
        slots: How many tasks of that side this worker can run at a time.
    """

    def __init__(
        self,
        sender: Sender,
        reporter: Reporter,
        settings: SettingsLog,
        plain: Callable[[str], QueueName],
        slots: Callable[[], int],
        identity: str,
    ) -> None:
        self._sender = sender
        self._clock = sender.clock
        self._reporter = reporter
        self._settings = settings
        self._plain = plain
        self._slots = slots
        self._identity = identity
        self._lock = threading.Lock()
        self._dealers: dict[QueueName, Dealer] = {}
        self._told_at = float("-inf")
        self._turns = Turns("tq-dealer", self._step)
        self._closed = False

    @property
    def in_hand(self) -> dict[str, int]:
        """Tasks that wait for their share in the hands of this worker, by task queue whose dealer
        is here."""
        with self._lock:
            dealers = list(self._dealers.values())
        return {one.task_queue: one.in_hand for one in dealers if one.is_elected}

    def stand_aside(self, task_queue: str, for_s: float) -> None:
        """Have the dealer leave what waits to RabbitMQ for so long, if it is here."""
        with self._lock:
            dealer = self._dealers.get(self._plain(task_queue))
        if dealer is not None:
            dealer.stand_aside(for_s)

    def tick(self, task_queues: Sequence[str]) -> None:
        """Do what the settings log says of ``task_queues`` now; done often."""
        if not (self._settings.fair or self._dealers):
            return
        with self._lock:
            for plain in map(self._plain, task_queues):
                is_fair = (plain.kind.value, plain.parts[0]) in self._settings.fair
                if is_fair and plain not in self._dealers and not self._closed:
                    self._open(plain)
                elif plain in self._dealers and not is_fair:
                    self._tell(plain)

    def _open(self, plain: QueueName) -> None:
        dealer = self._dealers[plain] = Dealer(
            plain,
            self._sender,
            self._reporter,
            self._slots,
            lambda key: self._settings.fairness_weight(plain, key),
            self._turns.wake,
        )
        dealer.open()
        self._turns.start()

    def _tell(self, plain: QueueName) -> None:
        """Its queues were removed while we came, and are there again, because we are: who puts
        tasks there need not notice, so the log has to say it."""
        now = self._clock.monotonic()
        if now < self._told_at + TELL_EVERY_S:
            return
        self._told_at = now
        at_ms = epoch_ms(self._clock)
        record = TaskQueueFair(plain.parts[0], at_ms, self._identity, plain.kind.value)
        self._sender.append(record, now + TELL_WITHIN_S, _ignore)

    def close(self) -> None:
        """Leave it to others; blocks for the step that is being made."""
        with self._lock:
            self._closed = True
            dealers = list(self._dealers.values())
        self._turns.stop()
        for dealer in dealers:
            dealer.close()

    def _step(self) -> float:
        due = self._clock.monotonic() + LOOK_S
        with self._lock:
            dealers = list(self._dealers.values())
        for dealer in dealers:
            try:
                again = dealer.step()
            except TqBrokerError as error:
                log.warning("nothing dealt of %s: %s", dealer.task_queue, error)
                again = None
            due = due if again is None else min(due, again)
        return due - self._clock.monotonic()


def _ignore(error: TqBrokerError | None) -> None:
    if error is not None:
        log.debug("settings record not appended: %s", error)
