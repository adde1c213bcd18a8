"""The settings of a namespace: records of a log, and the state that they add up to.

Rules of this file: a record is a fact with its time and author; `Settings.apply` folds records
in log order into a state, and every process that has read as far has the same state. A record
that cannot be read is skipped and reported, and the last good state stays.

The log tells which task queues exist, which are paused, which limits they have, which activities
are cancelled, which traffic rules are in force, and which deployment versions there are.

Two who change the same limits at a time: each record says which revision its author had seen, and
the one that comes first in the log is in force. The other one changes nothing, everywhere, and its
author, who reads the log as everybody does, is told who was faster.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

import msgspec

from tq_broker.common import (
    TIME_MS_MAX,
    Requires,
    check_fairness_key,
    check_fairness_weight,
    to_ms,
)
from tq_broker.exceptions import BACK_OFF_MAX, InvalidArgument, Malformed
from tq_broker.model import envelope
from tq_broker.model.capabilities import check_capabilities, check_requires
from tq_broker.model.deployments import (
    NO_DEPLOYMENTS,
    Deployments,
    RoutingSet,
    VersionDeleted,
    VersionServes,
)
from tq_broker.model.limits import UNLIMITED, Limits, Side, check_limits
from tq_broker.model.message import Message
from tq_broker.model.names import TASK_QUEUE_BYTES_MAX, Kind, QueueName, check_text
from tq_broker.model.parts import ALL, PARTS_MAX, Part, PartTable, check_part
from tq_broker.model.rules import TrafficRule
from tq_broker.model.sessions import SUFFIX

CANCELLED_MAX = 100_000
"""Cancelled ids remembered; the oldest is forgotten first, so memory has a bound."""
VERDICTS_MAX = 1_000
"""Changes of limits whose end is remembered, for their authors."""

BACK_OFF_MAX_MS = to_ms(BACK_OFF_MAX)
BACK_OFFS_MAX = 10_000
"""Back-offs in force at a time; the one that ends first is forgotten first."""
RULES_MAX = 1_000
RULES_KEPT_MS = 24 * 3600 * 1000
"""So long a rule that is over stays, if there is room: the clocks of authors may be ahead."""
RULE_CHANGES_MAX = 1_000
"""Changes of rules remembered, for those who ask who did what."""

WEIGHTS_MAX = 1_000
"""Keys of one side of a task queue that have a weight of their own."""
CAPABILITIES_MAX = 1_000
"""Capabilities remembered of one task queue."""

ACTIVITY_SIDE, WORKFLOW_SIDE = Kind.ACTIVITY.value, Kind.WORKFLOW.value
SIDES = (ACTIVITY_SIDE, WORKFLOW_SIDE)
"""A task queue has two sides, each with a shared queue of its own."""


_TASK_QUEUE_BYTES_MAX = TASK_QUEUE_BYTES_MAX + len(SUFFIX)
"""Sessions of a task queue have one of their own, with a longer name."""


class TaskQueueDeclared(msgspec.Struct, frozen=True, omit_defaults=True, tag="task-queue-declared"):
    """Somebody declared the shared queue of a task queue, or, with ``requires``, the one of its
    tasks that require just these capabilities."""

    task_queue: str
    at_ms: int
    by: str = ""
    side: str = ACTIVITY_SIDE
    requires: tuple[str, ...] = ()


class TaskQueueReclaimed(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="task-queue-reclaimed"
):
    """The shared queue of a task queue was idle and empty, and was removed.

    ``priority``: it was its priority queue; the plain one may still be there. ``fair``: it was the
    one in which its tasks wait for their shares; the other two may be.
    """

    task_queue: str
    at_ms: int
    by: str = ""
    side: str = ACTIVITY_SIDE
    priority: bool = False
    fair: bool = False
    requires: tuple[str, ...] = ()


class TaskQueuePrioritized(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="task-queue-prioritized"
):
    """The tasks of one side of a task queue wait in its priority queue from now on.

    Appended, and confirmed, before the first task is put there.
    """

    task_queue: str
    at_ms: int
    by: str = ""
    side: str = ACTIVITY_SIDE


class TaskQueueFair(msgspec.Struct, frozen=True, omit_defaults=True, tag="task-queue-fair"):
    """The tasks of one side of a task queue get fair shares from now on: they are dealt to its
    priority queue.

    Appended, and confirmed, before the first task waits for its share.
    """

    task_queue: str
    at_ms: int
    by: str = ""
    side: str = ACTIVITY_SIDE


class FairnessWeightSet(msgspec.Struct, frozen=True, omit_defaults=True, tag="fairness-weight-set"):
    """A fairness key of one side of a task queue has this weight, whatever its tasks say; ``None``:
    what they say counts again. ``side`` as in `TaskQueuePaused`."""

    task_queue: str
    key: str
    weight: float | None
    at_ms: int
    by: str = ""
    reason: str = ""
    side: str = ""


class CapabilitiesDeclared(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="capabilities-declared"
):
    """A worker of the task queue has these capabilities, or had them once."""

    task_queue: str
    capabilities: tuple[str, ...]
    at_ms: int
    by: str = ""


class TaskQueuePaused(msgspec.Struct, frozen=True, omit_defaults=True, tag="task-queue-paused"):
    """Workers take no more tasks of the task queue, until it is resumed: they wait.

    ``side`` is one of `SIDES`, or empty for both.
    """

    task_queue: str
    at_ms: int
    by: str = ""
    reason: str = ""
    side: str = ""


class TaskQueueResumed(msgspec.Struct, frozen=True, omit_defaults=True, tag="task-queue-resumed"):
    """Workers take tasks of the task queue again. ``side`` as in `TaskQueuePaused`."""

    task_queue: str
    at_ms: int
    by: str = ""
    reason: str = ""
    side: str = ""


class BackedOff(msgspec.Struct, frozen=True, omit_defaults=True, tag="backed-off"):
    """An activity was told that whom it calls wants to be left alone: nothing more of its activity
    task queue, or of one ``key`` of it, begins before ``until_ms``. It lifts itself.
    """

    task_queue: str
    until_ms: int
    at_ms: int
    by: str = ""
    reason: str = ""
    key: str = ""


class ActivityCanceled(msgspec.Struct, frozen=True, tag="activity-canceled"):
    """The activity is not wanted any more: do not start it, stop it if it runs."""

    activity_id: str
    at_ms: int
    by: str = ""
    reason: str = ""


class TrafficRuleSet(msgspec.Struct, frozen=True, tag="traffic-rule-set"):
    """The rule is in force from now on, in place of another of its id."""

    rule: TrafficRule


class TrafficRuleRemoved(msgspec.Struct, frozen=True, tag="traffic-rule-removed"):
    """The rule is not in force any more."""

    rule_id: str
    at_ms: int
    by: str = ""
    reason: str = ""


RuleChange = TrafficRuleSet | TrafficRuleRemoved


class LimitsSet(msgspec.Struct, frozen=True, tag="limits-set", kw_only=True):
    """Somebody set the limits of one side of a task queue.

    Attributes:
        limits: All of them, from now on; ``None`` takes the setting back, so that the default of
            the workers is in force again.
        revision: The `LimitState.revision` that the author had seen. Another one by now: the
            record changes nothing.
        change_id: Names this change, for its author.
        part: Which of its tasks they are for. Only activity task queues have other parts than all.
        is_default: It comes from a worker's options: it is in force only as long as nobody has
            set limits, and is never refused; the last one counts.
    """

    task_queue: str
    side: Side
    limits: Limits | None
    at_ms: int
    change_id: str
    revision: int = 0
    by: str = ""
    reason: str = ""
    is_default: bool = False
    part: Part = ALL


class LimitState(msgspec.Struct, frozen=True):
    """What the log says of the limits of one side of a task queue.

    ``revision`` counts the changes; ``setting`` and ``default`` are the records in force.
    """

    revision: int = 0
    setting: LimitsSet | None = None
    default: LimitsSet | None = None

    @property
    def source(self) -> LimitsSet | None:
        """The record that is in force; ``None`` if nobody has ever limited it."""
        if self.setting is not None and self.setting.limits is not None:
            return self.setting
        return self.default

    @property
    def set_ms(self) -> int:
        """When they were set (epoch ms); 0 if they never were."""
        source = self.source
        return 0 if source is None else source.at_ms

    @property
    def limits(self) -> Limits:
        """The limits in force."""
        source = self.source
        return UNLIMITED if source is None or source.limits is None else source.limits


class SettingsSnapshot(
    msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="settings-snapshot"
):
    """All settings as they were after the record at the offset ``upto`` of the log, for those who
    cannot read what came before (see `tq_broker.model.playback`).

    Attributes:
        upto: `BEFORE_ALL`: they are of a log that is gone, in whose place this one came.
        state: See `tq_broker.model.snapshot`.
        lost_ms: What was set before this time (epoch ms) was lost for whoever took the snapshot;
            0: nothing was.
    """

    upto: int
    state: bytes
    at_ms: int
    by: str = ""
    lost_ms: int = 0


BEFORE_ALL = -1

LimitKey = tuple[Side, str, Part]
"""A side of a task queue, its name, and which of its tasks are meant."""

Record = (
    TaskQueueDeclared
    | TaskQueueReclaimed
    | TaskQueuePrioritized
    | TaskQueueFair
    | FairnessWeightSet
    | CapabilitiesDeclared
    | TaskQueuePaused
    | TaskQueueResumed
    | BackedOff
    | ActivityCanceled
    | TrafficRuleSet
    | TrafficRuleRemoved
    | LimitsSet
    | VersionServes
    | RoutingSet
    | VersionDeleted
    | SettingsSnapshot
)

_decoder = msgspec.json.Decoder(Record)


def record_message(record: Record, message_id: str) -> Message:
    """The message that carries ``record``."""
    return Message(
        body=msgspec.json.encode(record),
        message_id=message_id,
        kind=envelope.SETTING,
        headers={"tq-protocol": envelope.PROTOCOL},
    )


def read_record(message: Message) -> Record:
    """The record in ``message``. Raises `Malformed`."""
    if message.headers.get("tq-protocol") != envelope.PROTOCOL:
        raise Malformed("setting of an unknown protocol version")
    try:
        record: Record = _decoder.decode(message.body)
    except (
        msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidArgument
    ) as error:  # fmt: skip
        raise Malformed(f"setting: {error}") from error
    try:
        _check(record)
    except InvalidArgument as error:
        raise Malformed(f"setting: {error}") from error
    return record


def _check(record: Record) -> None:
    _check_place(record)
    at_ms = record_ms(record)
    if not 0 <= at_ms <= TIME_MS_MAX:
        raise InvalidArgument(f"at_ms is {at_ms}; it must be from 0 to {TIME_MS_MAX}")
    match record:
        case LimitsSet(limits=Limits() as limits):
            check_limits(limits)
            check_part(record.part)
        case BackedOff() if not 0 < record.until_ms - record.at_ms <= BACK_OFF_MAX_MS:
            raise InvalidArgument(f"a back-off of {record.until_ms - record.at_ms} ms")
        case TaskQueueDeclared(requires=requires) if requires:
            check_requires(Requires(requires))
        case FairnessWeightSet(key=key, weight=weight):
            check_fairness_key("key", key)
            if weight is not None:
                check_fairness_weight("weight", weight)
        case CapabilitiesDeclared():
            check_capabilities("capabilities", record.capabilities)
        case SettingsSnapshot(upto=upto) if upto < BEFORE_ALL:
            raise InvalidArgument(f"upto is {upto}; it must be at least {BEFORE_ALL}")


def _check_place(record: Record) -> None:
    """Raise `InvalidArgument` if there can be no queues of what ``record`` is about."""
    task_queue = getattr(record, "task_queue", None)
    if task_queue is not None:
        check_text("task_queue", task_queue, bytes_max=_TASK_QUEUE_BYTES_MAX)
    match record:
        case TaskQueuePaused() | TaskQueueResumed() | FairnessWeightSet():
            known: tuple[str, ...] = ("", *SIDES)
        case TaskQueueDeclared() | TaskQueueReclaimed() | TaskQueuePrioritized() | TaskQueueFair():
            known = SIDES
        case _:
            return
    if record.side not in known:
        words = ", ".join(map(repr, known))
        raise InvalidArgument(f"side is {record.side!r}; it must be one of: {words}")


class Settings:
    """The state that the records read so far add up to. Not thread-safe: it has one owner."""

    def __init__(self) -> None:
        self.task_queues: dict[str, int] = {}
        """Activity task queues that exist, with the time (epoch ms) of their last declaration."""
        self.workflow_task_queues: dict[str, int] = {}
        """The same of workflow task queues."""
        self.prioritized: set[tuple[str, str]] = set()
        """Sides and task queues whose tasks wait in their priority queues."""
        self.fair: set[tuple[str, str]] = set()
        """Those whose tasks wait for their fair shares before."""
        self.fairness_weights: dict[tuple[str, str], dict[str, FairnessWeightSet]] = {}
        """By side and task queue, and then by key."""
        self.capable: dict[tuple[str, str], dict[tuple[str, ...], int]] = {}
        """The sets of capabilities that tasks of a side and task queue require, with the time of
        the last declaration of their queue."""
        self.capabilities: dict[str, set[str]] = {}
        """What the workers of a task queue have, or had once."""
        self.paused: dict[tuple[str, str], TaskQueuePaused] = {}
        """What is paused, by side and task queue."""
        self.back_offs: dict[tuple[str, str], BackedOff] = {}
        """By task queue and key ("" is the whole of it); some may be over meanwhile."""
        self.cancelled: OrderedDict[str, ActivityCanceled] = OrderedDict()
        self.rules: dict[str, TrafficRule] = {}
        """Traffic rules by id; some may have run out meanwhile."""
        self.rule_changes: deque[RuleChange] = deque(maxlen=RULE_CHANGES_MAX)
        self.deployments: Deployments = NO_DEPLOYMENTS
        self.limits: dict[LimitKey, LimitState] = {}
        self.part_tables: dict[str, PartTable] = {}
        """Activity task queues whose parts somebody has spoken of. It stays when all is taken back:
        tasks may still wait for their usher."""
        self.verdicts: OrderedDict[str, LimitsSet] = OrderedDict()
        """Changes of limits by their ids, each with the record that was in force after it: its
        own, or that of whoever was faster."""

    def apply(self, record: Record) -> None:
        """Take one record into account."""
        match record:
            case TaskQueueDeclared(requires=requires) if requires:
                place = record.side, record.task_queue
                self.capable.setdefault(place, {})[requires] = record.at_ms
            case TaskQueueReclaimed(requires=requires) if requires:
                self.capable.get((record.side, record.task_queue), {}).pop(requires, None)
            case FairnessWeightSet():
                self._weigh(record)
            case CapabilitiesDeclared():
                self._has_capabilities(record)
            case TaskQueueDeclared():
                self.existing(record.side)[record.task_queue] = record.at_ms
            case TaskQueueReclaimed(fair=True):
                self.fair.discard((record.side, record.task_queue))
            case TaskQueueReclaimed(priority=True):
                self.prioritized.discard((record.side, record.task_queue))
            case TaskQueuePrioritized():
                self.prioritized.add((record.side, record.task_queue))
            case TaskQueueFair():
                self.fair.add((record.side, record.task_queue))
                self.prioritized.add((record.side, record.task_queue))
            case TaskQueueReclaimed():
                self.existing(record.side).pop(record.task_queue, None)
            case TaskQueuePaused():
                for side in sides_of(record.side):
                    self.paused[side, record.task_queue] = record
            case TaskQueueResumed():
                for side in sides_of(record.side):
                    self.paused.pop((side, record.task_queue), None)
                if ACTIVITY_SIDE in sides_of(record.side):
                    self._drop_back_offs(lambda one: one.task_queue == record.task_queue)
            case BackedOff():
                self._back_off(record)
            case ActivityCanceled():
                self.cancelled[record.activity_id] = record
                if len(self.cancelled) > CANCELLED_MAX:
                    self.cancelled.popitem(last=False)
            case TrafficRuleSet(rule):
                self._make_room_for(rule)
                if rule.id in self.rules or len(self.rules) < RULES_MAX:
                    self.rules[rule.id] = rule
                    self.rule_changes.append(record)
            case TrafficRuleRemoved(rule_id):
                if self.rules.pop(rule_id, None) is not None:
                    self.rule_changes.append(record)
            case LimitsSet():
                self._set_limits(record)
            case VersionServes() | RoutingSet() | VersionDeleted():
                self.deployments = self.deployments.apply(record)

    def _weigh(self, record: FairnessWeightSet) -> None:
        for side in sides_of(record.side):
            known = dict(self.fairness_weights.get((side, record.task_queue), {}))
            known.pop(record.key, None)
            if record.weight is not None and len(known) < WEIGHTS_MAX:
                known[record.key] = record
            # Replaced as a whole: other threads look into it.
            self.fairness_weights[side, record.task_queue] = known

    def _has_capabilities(self, record: CapabilitiesDeclared) -> None:
        known = self.capabilities.setdefault(record.task_queue, set())
        if len(known) < CAPABILITIES_MAX:
            known.update(record.capabilities)

    def _set_limits(self, record: LimitsSet) -> None:
        key = (record.side, record.task_queue, record.part)
        state = self.limits.get(key, LimitState())
        if record.is_default:
            self.limits[key] = msgspec.structs.replace(state, default=record)
            self._enter(record, self.limits[key].limits)
            return
        if record.revision == state.revision:
            state = self.limits[key] = msgspec.structs.replace(
                state, revision=state.revision + 1, setting=record
            )
            self._enter(record, None if state.source is None else state.limits)
        self.verdicts[record.change_id] = state.setting or record
        if len(self.verdicts) > VERDICTS_MAX:
            self.verdicts.popitem(last=False)

    def _enter(self, record: LimitsSet, limits: Limits | None) -> None:
        """Limits of an activity task queue have changed: so does its table, if it needs one."""
        if record.side is not Side.ACTIVITY:
            return
        table = self.part_tables.get(record.task_queue)
        if table is None and record.part == ALL:
            return
        if table is None:
            table = self._table(record.task_queue, record.at_ms)
        changed = table.changed(record.part, limits, record.at_ms)
        if len(changed.limits) <= PARTS_MAX + 1:
            self.part_tables[record.task_queue] = changed

    def _table(self, task_queue: str, at_ms: int) -> PartTable:
        """The table of a task queue whose parts nobody has spoken of so far."""
        whole = self.limits.get((Side.ACTIVITY, task_queue, ALL))
        return PartTable() if whole is None else PartTable().changed(ALL, whole.limits, at_ms)

    def _back_off(self, record: BackedOff) -> None:
        key = (record.task_queue, record.key)
        before = self.back_offs.get(key)
        if before is not None and before.until_ms >= record.until_ms:
            return
        self.back_offs[key] = record
        if record.key and record.task_queue not in self.part_tables:
            self.part_tables[record.task_queue] = self._table(record.task_queue, record.at_ms)
        if len(self.back_offs) > BACK_OFFS_MAX:
            self._drop_back_offs(lambda one: one.until_ms <= record.at_ms)
        if len(self.back_offs) > BACK_OFFS_MAX:
            first = min(self.back_offs.values(), key=lambda one: one.until_ms)
            del self.back_offs[first.task_queue, first.key]

    def _drop_back_offs(self, unwanted: Callable[[BackedOff], bool]) -> None:
        # Replaced as a whole: other threads look into it.
        self.back_offs = {k: one for k, one in self.back_offs.items() if not unwanted(one)}

    def back_off(self, task_queue: str, key: str, now_ms: int) -> BackedOff | None:
        """The back-off that a task queue ("") or a key of it is under."""
        found = self.back_offs.get((task_queue, key))
        return None if found is None or now_ms >= found.until_ms else found

    def existing(self, side: str) -> dict[str, int]:
        """The task queues that exist on one side."""
        return self.workflow_task_queues if side == WORKFLOW_SIDE else self.task_queues

    def pause_of(self, queue: QueueName, now_ms: int) -> TaskQueuePaused | BackedOff | None:
        """What stops ``queue`` now, also that of a host or process: an operator's pause, or a
        back-off of its activities."""
        name = queue.task_queue
        if name is None:
            return None
        side = side_of(queue)
        pause = self.paused.get((side, name))
        if pause is None and side == ACTIVITY_SIDE and self.back_offs:
            return self.back_off(name, "", now_ms)
        return pause

    def _make_room_for(self, rule: TrafficRule) -> None:
        """Forget rules that were over long before ``rule`` was set by its author's clock; if that
        is not enough, all that were over then."""
        self._drop_rules_over(rule.at_ms - RULES_KEPT_MS)
        if len(self.rules) >= RULES_MAX:
            self._drop_rules_over(rule.at_ms)

    def _drop_rules_over(self, now_ms: int) -> None:
        self.rules = {key: rule for key, rule in self.rules.items() if not rule.is_over(now_ms)}


def record_ms(record: Record) -> int:
    """When ``record`` was made (epoch ms)."""
    return record.rule.at_ms if isinstance(record, TrafficRuleSet) else record.at_ms


def sides_of(side: str) -> tuple[str, ...]:
    """The sides that ``side`` of a record means."""
    return (side,) if side else SIDES


def side_of(queue: QueueName) -> str:
    """The side of a task queue that ``queue`` belongs to."""
    if queue.kind in (Kind.VERSION, Kind.RAMPING, Kind.LANE):
        return queue.parts[0]
    return WORKFLOW_SIDE if queue.kind in _OF_WORKFLOWS else ACTIVITY_SIDE


_OF_WORKFLOWS = frozenset(
    {
        Kind.WORKFLOW,
        Kind.WORKFLOW_PRIORITY,
        Kind.WORKFLOW_FAIR,
        Kind.WORKFLOW_CAPABLE,
        Kind.WORKFLOW_NICHE,
    }
)
