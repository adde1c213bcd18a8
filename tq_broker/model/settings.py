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

import msgspec

from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model import envelope
from tq_broker.model.deployments import (
    NO_DEPLOYMENTS,
    Deployments,
    RoutingSet,
    VersionDeleted,
    VersionServes,
)
from tq_broker.model.limits import UNLIMITED, Limits, Side, check_limits
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, QueueName
from tq_broker.model.rules import TrafficRule

CANCELLED_MAX = 100_000
"""Cancelled ids remembered; the oldest is forgotten first, so memory has a bound."""
VERDICTS_MAX = 1_000
"""Changes of limits whose end is remembered, for their authors."""

RULES_MAX = 1_000
RULE_CHANGES_MAX = 1_000
"""Changes of rules remembered, for those who ask who did what."""


ACTIVITY_SIDE, WORKFLOW_SIDE = Kind.ACTIVITY.value, Kind.WORKFLOW.value
SIDES = (ACTIVITY_SIDE, WORKFLOW_SIDE)
"""A task queue has two sides, each with a shared queue of its own."""


class TaskQueueDeclared(msgspec.Struct, frozen=True, omit_defaults=True, tag="task-queue-declared"):
    """Somebody declared the shared queue of a task queue."""

    task_queue: str
    at_ms: int
    by: str = ""
    side: str = ACTIVITY_SIDE


class TaskQueueReclaimed(
    msgspec.Struct, frozen=True, omit_defaults=True, tag="task-queue-reclaimed"
):
    """The shared queue of a task queue was idle and empty, and was removed."""

    task_queue: str
    at_ms: int
    by: str = ""
    side: str = ACTIVITY_SIDE


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
    def limits(self) -> Limits:
        """The limits in force."""
        source = self.source
        return UNLIMITED if source is None or source.limits is None else source.limits


LimitKey = tuple[Side, str]
"""A side of a task queue, and its name."""

Record = (
    TaskQueueDeclared
    | TaskQueueReclaimed
    | TaskQueuePaused
    | TaskQueueResumed
    | ActivityCanceled
    | TrafficRuleSet
    | TrafficRuleRemoved
    | LimitsSet
    | VersionServes
    | RoutingSet
    | VersionDeleted
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
    if isinstance(record, LimitsSet) and record.limits is not None:
        try:
            check_limits(record.limits)
        except InvalidArgument as error:
            raise Malformed(f"setting: {error}") from error
    return record


class Settings:
    """The state that the records read so far add up to. Not thread-safe: it has one owner."""

    def __init__(self) -> None:
        self.task_queues: dict[str, int] = {}
        """Activity task queues that exist, with the time (epoch ms) of their last declaration."""
        self.workflow_task_queues: dict[str, int] = {}
        """The same of workflow task queues."""
        self.paused: dict[tuple[str, str], TaskQueuePaused] = {}
        """What is paused, by side and task queue."""
        self.cancelled: OrderedDict[str, ActivityCanceled] = OrderedDict()
        self.rules: dict[str, TrafficRule] = {}
        """Traffic rules by id; some may have run out meanwhile."""
        self.rule_changes: deque[RuleChange] = deque(maxlen=RULE_CHANGES_MAX)
        self.deployments: Deployments = NO_DEPLOYMENTS
        self.limits: dict[LimitKey, LimitState] = {}
        self.verdicts: OrderedDict[str, LimitsSet] = OrderedDict()
        """Changes of limits by their ids, each with the record that was in force after it: its
        own, or that of whoever was faster."""

    def apply(self, record: Record) -> None:
        """Take one record into account."""
        match record:
            case TaskQueueDeclared():
                self.existing(record.side)[record.task_queue] = record.at_ms
            case TaskQueueReclaimed():
                self.existing(record.side).pop(record.task_queue, None)
            case TaskQueuePaused():
                for side in sides_of(record.side):
                    self.paused[side, record.task_queue] = record
            case TaskQueueResumed():
                for side in sides_of(record.side):
                    self.paused.pop((side, record.task_queue), None)
            case ActivityCanceled():
                self.cancelled[record.activity_id] = record
                if len(self.cancelled) > CANCELLED_MAX:
                    self.cancelled.popitem(last=False)
            case TrafficRuleSet(rule):
                self._drop_rules_over(rule.at_ms)
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

    def _set_limits(self, record: LimitsSet) -> None:
        key = (record.side, record.task_queue)
        state = self.limits.get(key, LimitState())
        if record.is_default:
            self.limits[key] = msgspec.structs.replace(state, default=record)
            return
        if record.revision == state.revision:
            state = self.limits[key] = msgspec.structs.replace(
                state, revision=state.revision + 1, setting=record
            )
        self.verdicts[record.change_id] = state.setting or record
        if len(self.verdicts) > VERDICTS_MAX:
            self.verdicts.popitem(last=False)

    def existing(self, side: str) -> dict[str, int]:
        """The task queues that exist on one side."""
        return self.workflow_task_queues if side == WORKFLOW_SIDE else self.task_queues

    def pause_of(self, queue: QueueName) -> TaskQueuePaused | None:
        """The pause that ``queue`` is under: also that of a host or process."""
        if queue.task_queue is None:
            return None
        return self.paused.get((side_of(queue), queue.task_queue))

    def _drop_rules_over(self, now_ms: int) -> None:
        self.rules = {key: rule for key, rule in self.rules.items() if not rule.is_over(now_ms)}


def sides_of(side: str) -> tuple[str, ...]:
    """The sides that ``side`` of a record means."""
    return (side,) if side else SIDES


def side_of(queue: QueueName) -> str:
    """The side of a task queue that ``queue`` belongs to."""
    if queue.kind in (Kind.VERSION, Kind.RAMPING):
        return queue.parts[0]
    return WORKFLOW_SIDE if queue.kind is Kind.WORKFLOW else ACTIVITY_SIDE
