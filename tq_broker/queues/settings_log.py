"""Following a namespace's settings log: a stream in RabbitMQ, folded into `Settings`.

Every process that follows it has the same state within milliseconds of each append. A record
that cannot be read is skipped and logged; the last good state stays. What becomes of a log whose
beginning is gone is for `tq_broker.model.playback` to say.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence

from tq_broker.clock import Clock, epoch_ms, remaining
from tq_broker.exceptions import Malformed
from tq_broker.model.composition import Known, Member, members
from tq_broker.model.control import WorkerInfo
from tq_broker.model.deployments import Deployments
from tq_broker.model.limits import Side
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, Names, QueueName
from tq_broker.model.parts import ALL, Part, PartTable
from tq_broker.model.playback import Playback, Taken
from tq_broker.model.rule_table import NO_RULES, RuleTable
from tq_broker.model.settings import (
    ACTIVITY_SIDE,
    ActivityCanceled,
    BackedOff,
    FairnessWeightSet,
    LimitsSet,
    LimitState,
    Record,
    RuleChange,
    SettingsSnapshot,
    TaskQueueFair,
    TaskQueuePaused,
    TaskQueuePrioritized,
    TaskQueueReclaimed,
    TrafficRuleRemoved,
    TrafficRuleSet,
    read_record,
)
from tq_broker.model.snapshot import State
from tq_broker.queues import topology
from tq_broker.queues.broker import Broker, Delivery, SubscribeOptions, Subscription

log = logging.getLogger(__name__)

PREFETCH = 500
SILENCE_S = 0.3
LONG_SILENCE_S = 2.0
REASON_MAX = 200


class SettingsLog:
    """One follower. ``on_record`` is called after each record has been taken into account,
    on the broker's reading thread; of snapshots after those from which something was learned."""

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
        self._skipped = 0
        self._last_skipped = ""
        self.is_behind = False
        """The last look for its end found none in time."""
        self._playback = Playback()
        self._settings = self._playback.settings
        self.keeping_fault = ""
        """Why the settings may be forgotten; its keeper's."""
        self.on_news: Callable[[], None] | None = None
        """Called when there is something for a keeper to do, after each batch; must be short."""
        self._is_accepted = False
        self.rules: RuleTable = NO_RULES
        """The traffic rules in force; replaced as a whole, so any thread may read it."""
        self.prioritized: frozenset[tuple[str, str]] = frozenset()
        """Sides and task queues whose tasks wait in priority queues; replaced as a whole, too."""
        self.fair: frozenset[tuple[str, str]] = frozenset()
        """Those whose tasks get fair shares; the same."""
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
                on_lost=self._on_lost,
                on_accepted=self._on_accepted,
            ),
        )
        return self._subscription

    def stop(self) -> None:
        """Stop following; the state stays as it is."""
        if self._subscription is not None:
            self._subscription.cancel_nowait()
            self._subscription = None

    def wait_read(self, records: int, deadline: float) -> bool:
        """Wait until so many records were read since the reading began, which it does again after
        a lost connection; False if the deadline came first.

        As RabbitMQ counts: its own notes between records count as well.
        """
        with self._changed:
            return self._changed.wait_for(
                lambda: self._read_count >= records, remaining(self._clock, deadline)
            )

    def catch_up(self, deadline: float) -> bool:
        """Wait until what is in the log now has been read; False if the deadline came first.

        RabbitMQ's count of a stream lags behind by up to a second, so its end is where it has
        been silent for a while. It may also count what was dropped meanwhile: then the log has to
        be silent for longer.
        """
        self.is_behind = not self._caught_up(deadline)
        if not self._playback.is_whole:
            log.warning("settings log: %s", self.fault)
        return not self.is_behind

    @property
    def fault(self) -> str:
        """What could not be read; "" if nothing. The last settings that could are in force."""
        faults = []
        if self.is_behind:
            faults.append("it was not read to its end")
        if self._skipped:
            records = "1 record" if self._skipped == 1 else f"{self._skipped} records"
            faults.append(f"{records} skipped, the last one because of: {self._last_skipped}")
        with self._lock:
            told = self._playback.fault(epoch_ms(self._clock))
        return "; ".join([*faults, *filter(None, (told, self.keeping_fault))])

    @property
    def skipped(self) -> int:
        """Records that could not be read."""
        return self._skipped

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing that this follower could still learn."""
        return self._playback.is_whole

    @property
    def is_snapshot_due(self) -> bool:
        """Whether a snapshot is to be written, and this follower knows enough to do so."""
        return self._playback.is_due

    @property
    def is_silent_again(self) -> bool:
        """Whether it reads the log again, and nothing has come so far."""
        return self._is_accepted and self._playback.is_to_begin_again

    def snapshot(self) -> tuple[int, State, int]:
        """What a snapshot is to say: up to where, what, and `Playback.lost_ms`."""
        with self._lock:
            upto, state = self._playback.snapshot(epoch_ms(self._clock))
            return upto, state, self._playback.lost_ms

    def emptied(self) -> None:
        """Somebody has seen that there is nothing in the log; see `Playback.emptied`."""
        with self._lock:
            self._playback.emptied()

    def give_up(self) -> None:
        """Nobody knows more; see `Playback.give_up`."""
        with self._lock:
            self._playback.give_up()

    def _caught_up(self, deadline: float) -> bool:
        stats = self._broker.stats(str(self._names.queue(Kind.SETTINGS)), deadline)
        count = 0 if stats is None else stats.ready
        with self._changed:
            while left_s := remaining(self._clock, deadline):
                read = self._read_count
                if read >= count:
                    wait_s = SILENCE_S
                elif self._playback.begins_late:
                    wait_s = LONG_SILENCE_S
                else:
                    wait_s = left_s
                is_silent = not self._changed.wait_for(lambda: self._read_count > read, wait_s)  # noqa: B023
                if is_silent and wait_s < left_s:
                    return True
        return False

    def is_cancelled(self, activity_id: str, scheduled_ms: int) -> bool:
        """Whether a start of ``activity_id`` at ``scheduled_ms`` (epoch ms) was cancelled.

        A later start of the same id is not meant by an earlier cancellation.
        """
        # One look-up in a dict that only the reading thread changes: atomic without the lock.
        record = self._settings.cancelled.get(activity_id)
        return record is not None and scheduled_ms <= record.at_ms

    def cancellation(self, activity_id: str) -> ActivityCanceled | None:
        """The last request to cancel an activity of this id, as far as it is remembered."""
        return self._settings.cancelled.get(activity_id)

    def task_queues(self, side: str = ACTIVITY_SIDE) -> dict[str, int]:
        """Task queues known to exist, with the time (epoch ms) of their last declaration."""
        with self._lock:
            return dict(self._settings.existing(side))

    def capable(self, task_queue: str, side: str = ACTIVITY_SIDE) -> list[tuple[str, ...]]:
        """The sets of capabilities for which one side of the task queue has queues of their own."""
        with self._lock:
            return sorted(self._settings.capable.get((side, task_queue), ()))

    def capable_queues(self) -> list[QueueName]:
        """All such queues of the namespace."""
        with self._lock:
            return [
                self._names.capable(task_queue, one, Kind(side))
                for (side, task_queue), sets in self._settings.capable.items()
                for one in sets
            ]

    def capabilities(self, task_queue: str) -> set[str]:
        """What the workers of the task queue have, or had once."""
        with self._lock:
            return set(self._settings.capabilities.get(task_queue, ()))

    def unknown(self, task_queue: str, capabilities: Iterable[str]) -> list[str]:
        """Those of ``capabilities`` that no worker of the task queue has ever had."""
        # One look-up in a dict that only the reading thread changes: atomic without the lock.
        known = self._settings.capabilities.get(task_queue, ())
        return [name for name in capabilities if name not in known]

    def pause_of(self, queue: QueueName) -> TaskQueuePaused | BackedOff | None:
        """Who stopped the task queue of ``queue``, when and why: an operator's pause, or a back-off
        that is not over; ``None`` if nobody has."""
        # As above: look-ups.
        return self._settings.pause_of(queue, epoch_ms(self._clock))

    def is_stopped(self, side: str, task_queue: str) -> bool:
        """Whether somebody has, of one side of a task queue."""
        return self.pause_of(self._names.queue(Kind(side), task_queue)) is not None

    def back_off(self, task_queue: str, key: str = "") -> BackedOff | None:
        """The back-off that a task queue, or a key of it, is under now."""
        return self._settings.back_off(task_queue, key, epoch_ms(self._clock))

    def back_offs(self, task_queue: str) -> list[BackedOff]:
        """All that a task queue and its keys are under now; those that end last come first."""
        now_ms = epoch_ms(self._clock)
        with self._lock:
            found = list(self._settings.back_offs.values())
        here = [one for one in found if one.task_queue == task_queue and one.until_ms > now_ms]
        return sorted(here, key=lambda one: -one.until_ms)

    def pauses(self) -> dict[tuple[str, str], TaskQueuePaused]:
        """What is paused, by side and task queue."""
        with self._lock:
            return dict(self._settings.paused)

    def held_keys(self, task_queue: str) -> dict[str, int]:
        """The keys of a task queue that a back-off is for, and until when (epoch ms); some may be
        over."""
        found = self._settings.back_offs
        if not found:
            return {}
        with self._lock:
            held = [one for one in found.values() if one.key and one.task_queue == task_queue]
        return {one.key: one.until_ms for one in held}

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

    def limits(self, side: Side, task_queue: str, part: Part = ALL) -> LimitState:
        """What is known of the limits of one side of a task queue, or of a part of it."""
        with self._lock:
            return self._settings.limits.get((side, task_queue, part)) or LimitState()

    def part_limits(self, task_queue: str) -> list[tuple[Part, LimitState]]:
        """What is known of the limits of parts of an activity task queue, by kind and name."""
        with self._lock:
            found = [
                (part, state)
                for (side, name, part), state in self._settings.limits.items()
                if side is Side.ACTIVITY and name == task_queue and part != ALL
            ]
        return sorted(
            [(part, state) for part, state in found if state.source is not None],
            key=lambda one: (one[0].kind.value, one[0].name),
        )

    def part_table(self, task_queue: str) -> PartTable | None:
        """The limits of the parts of an activity task queue; ``None`` if it has never had any."""
        # One look-up, as above.
        return self._settings.part_tables.get(task_queue)

    def composition(
        self, side: str, task_queue: str, workers: Iterable[WorkerInfo] = ()
    ) -> list[Member]:
        """The queues of one side of a task queue, with those that only ``workers`` tell of."""
        known = Known(
            prioritized=self.prioritized,
            fair=self.fair,
            capable=self.capable(task_queue, side),
            deployments=self.deployments,
            has_parts=self.part_table(task_queue) is not None,
            served=[one for worker in workers for one in worker.serves],
        )
        return members(self._names, side, task_queue, known)

    def fairness_weight(self, plain: QueueName, key: str) -> float | None:
        """The weight that somebody has given a fairness key of the task queue of ``plain``."""
        # Look-ups, as above.
        weights = self._settings.fairness_weights
        found = weights.get((plain.kind.value, plain.parts[0])) if weights else None
        record = found.get(key) if found else None
        return None if record is None else record.weight

    def fairness_weights(self, side: str, task_queue: str) -> list[FairnessWeightSet]:
        """All weights that somebody has given keys of one side of a task queue, by key."""
        found = self._settings.fairness_weights.get((side, task_queue), {})
        return sorted(found.values(), key=lambda one: one.key)

    def wait_default(self, record: LimitsSet, deadline: float) -> bool:
        """Wait until ``record``, a default, was read; False if the deadline came first."""

        def is_read() -> bool:
            state = self._settings.limits.get((record.side, record.task_queue, record.part))
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

    def _on_lost(self) -> None:
        with self._changed:
            self._is_accepted = False
            self._playback.begin_again()
            self._read_count = 0

    def _on_accepted(self) -> None:
        self._is_accepted = True
        self._tell_news()

    def _tell_news(self) -> None:
        playback = self._playback
        is_news = playback.is_due or self.is_silent_again or not playback.is_whole
        if is_news and self.on_news is not None:
            self.on_news()

    def _read(self, deliveries: Sequence[Delivery]) -> None:
        rules_changed = False
        for delivery in deliveries:
            record = self._take(delivery.message)
            if record is not None:
                rules_changed |= isinstance(record, _ON_RULES)
                if isinstance(record, _ON_ORDER):
                    self.prioritized = frozenset(self._settings.prioritized)
                    self.fair = frozenset(self._settings.fair)
                if self._on_record is not None:
                    self._on_record(record)
            delivery.ack()
        if rules_changed:
            self.rules = RuleTable(self._settings.rules.values())
        with self._changed:
            self._read_count = max(self._read_count + len(deliveries), self._playback.span)
            self._changed.notify_all()
        self._tell_news()

    def _take(self, message: Message) -> Record | None:
        """The record in ``message``, taken into account; ``None`` if nothing was new in it."""
        record, unreadable = None, ""
        try:
            record = read_record(message)
        except Malformed as error:
            unreadable = error.reason
        offset = message.headers.get("x-stream-offset")
        place = offset if isinstance(offset, int) else None
        try:
            with self._lock:
                taken = self._playback.take(place, message.message_id, record, len(message.body))
                self._settings = self._playback.settings
        except Malformed as error:
            taken, record, unreadable = Taken.APPLIED, None, error.reason
        if taken is Taken.KNOWN:
            return None
        if unreadable:
            log.warning("settings record skipped, the last settings hold: %s", unreadable)
            self._skipped += 1
            self._last_skipped = unreadable[:REASON_MAX]
        return (
            None if isinstance(record, SettingsSnapshot) and taken is not Taken.ADOPTED else record
        )


_ON_RULES = (TrafficRuleSet, TrafficRuleRemoved, SettingsSnapshot)
_ON_ORDER = (TaskQueuePrioritized, TaskQueueFair, TaskQueueReclaimed, SettingsSnapshot)
