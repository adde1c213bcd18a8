"""Following a namespace's settings log: a stream in RabbitMQ, folded into `Settings`.

Every process that follows it has the same state within milliseconds of each append. A record
that cannot be read is skipped and logged; the last good state stays.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from tq_broker.clock import Clock, remaining
from tq_broker.exceptions import Malformed
from tq_broker.model.deployments import Deployments
from tq_broker.model.limits import Side
from tq_broker.model.names import Kind, Names, QueueName
from tq_broker.model.rule_table import NO_RULES, RuleTable
from tq_broker.model.settings import (
    ACTIVITY_SIDE,
    LimitsSet,
    LimitState,
    Record,
    RuleChange,
    Settings,
    TaskQueuePaused,
    TrafficRuleRemoved,
    TrafficRuleSet,
    read_record,
)
from tq_broker.queues import topology
from tq_broker.queues.broker import Broker, Delivery, SubscribeOptions, Subscription

log = logging.getLogger(__name__)

PREFETCH = 500
SILENCE_S = 0.3


class SettingsLog:
    """One follower. ``on_record`` is called after each record has been taken into account,
    on the broker's reading thread."""

    def __init__(
        self,
        broker: Broker,
        names: Names,
        clock: Clock,
        on_record: Callable[[Record], None] | None = None,
    ) -> None:
        self._clock = clock
        self._broker = broker
        self._names = names
        self._on_record = on_record
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._read_count = 0
        self._settings = Settings()
        self.rules: RuleTable = NO_RULES
        """The traffic rules in force; replaced as a whole, so any thread may read it."""
        self._subscription: Subscription | None = None

    def follow(self) -> Subscription:
        """Read from the start of the log and go on for ever; returns at once."""
        self._subscription = self._broker.subscribe(
            str(self._names.queue(Kind.SETTINGS)),
            self._read,
            SubscribeOptions(
                prefetch=PREFETCH,
                arguments={"x-stream-offset": "first"},
                plan=topology.namespace(self._names) + topology.settings_log(self._names),
            ),
        )
        return self._subscription

    def stop(self) -> None:
        """Stop following; the state stays as it is."""
        if self._subscription is not None:
            self._subscription.cancel_nowait()
            self._subscription = None

    def wait_read(self, records: int, deadline: float) -> bool:
        """Wait until so many records were read; False if the deadline came first."""
        with self._changed:
            return self._changed.wait_for(
                lambda: self._read_count >= records, remaining(self._clock, deadline)
            )

    def catch_up(self, deadline: float) -> bool:
        """Wait until what is in the log now has been read; False if the deadline came first.

        RabbitMQ's count of a stream lags behind by up to a second, so its end is where it has
        been silent for a while.
        """
        stats = self._broker.stats(str(self._names.queue(Kind.SETTINGS)), deadline)
        if stats is not None and not self.wait_read(stats.ready, deadline):
            return False
        with self._changed:
            while remaining(self._clock, deadline):
                read = self._read_count
                if not self._changed.wait_for(lambda: self._read_count > read, SILENCE_S):  # noqa: B023
                    return True
        return False

    def is_cancelled(self, activity_id: str, scheduled_ms: int) -> bool:
        """Whether a start of ``activity_id`` at ``scheduled_ms`` (epoch ms) was cancelled.

        A later start of the same id is not meant by an earlier cancellation.
        """
        # One look-up in a dict that only the reading thread changes: atomic without the lock.
        record = self._settings.cancelled.get(activity_id)
        return record is not None and scheduled_ms <= record.at_ms

    def task_queues(self, side: str = ACTIVITY_SIDE) -> dict[str, int]:
        """Task queues known to exist, with the time (epoch ms) of their last declaration."""
        with self._lock:
            return dict(self._settings.existing(side))

    def pause_of(self, queue: QueueName) -> TaskQueuePaused | None:
        """Who paused the task queue of ``queue``, when and why; ``None`` if it is not paused."""
        # As above: one look-up.
        return self._settings.pause_of(queue)

    def pauses(self) -> dict[tuple[str, str], TaskQueuePaused]:
        """What is paused, by side and task queue."""
        with self._lock:
            return dict(self._settings.paused)

    @property
    def deployments(self) -> Deployments:
        """Deployment versions; replaced as a whole, so any thread may read it."""
        return self._settings.deployments

    def wait_until(self, is_so: Callable[[Deployments], bool], deadline: float) -> bool:
        """Wait until this holds of the deployments; False if the deadline came first."""
        with self._changed:
            return self._changed.wait_for(
                lambda: is_so(self._settings.deployments), remaining(self._clock, deadline)
            )

    def rule_changes(self) -> list[RuleChange]:
        """Who has set and removed traffic rules, oldest first, as far as it is remembered."""
        with self._lock:
            return list(self._settings.rule_changes)

    def limits(self, side: Side, task_queue: str) -> LimitState:
        """What is known of the limits of one side of a task queue."""
        with self._lock:
            return self._settings.limits.get((side, task_queue)) or LimitState()

    def wait_default(self, record: LimitsSet, deadline: float) -> bool:
        """Wait until ``record``, a default, was read; False if the deadline came first."""

        def is_read() -> bool:
            state = self._settings.limits.get((record.side, record.task_queue))
            default = None if state is None else state.default
            return default is not None and default.change_id == record.change_id

        with self._changed:
            return self._changed.wait_for(is_read, remaining(self._clock, deadline))

    def wait_verdict(self, change_id: str, deadline: float) -> LimitsSet | None:
        """Wait until the change ``change_id`` of limits was read: returns what was in force then,
        the change itself or what somebody else had set before it; ``None`` if the deadline came
        first.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: change_id in self._settings.verdicts, remaining(self._clock, deadline)
            )
            return self._settings.verdicts.get(change_id)

    def _read(self, deliveries: Sequence[Delivery]) -> None:
        rules_changed = False
        for delivery in deliveries:
            try:
                record = read_record(delivery.message)
            except Malformed as error:
                log.warning("settings record skipped: %s", error)
            else:
                with self._lock:
                    self._settings.apply(record)
                rules_changed |= isinstance(record, TrafficRuleSet | TrafficRuleRemoved)
                if self._on_record is not None:
                    self._on_record(record)
            delivery.ack()
        if rules_changed:
            self.rules = RuleTable(self._settings.rules.values())
        with self._changed:
            self._read_count += len(deliveries)
            self._changed.notify_all()
