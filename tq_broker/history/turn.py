"""One call of the machine: the run, the time, and what has come of it so far.

Rules of this file: events get their numbers here and nowhere else. What a workflow asks for is
written at once (`Turn.write`). What comes from outside (`Turn.learn`) is held back while a workflow
task is out, because that task does not know of it, and is numbered after the task's end.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tq_broker.history.effects import Effect, Reply, ReplyTo, ToShard
from tq_broker.history.state import Execution
from tq_broker.history.step import NextRun, Step
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments
from tq_broker.model.events import (
    ActivityTaskCanceled,
    ActivityTaskCompleted,
    ActivityTaskFailed,
    ActivityTaskStarted,
    ActivityTaskTimedOut,
    ChildWorkflowExecutionCanceled,
    ChildWorkflowExecutionCompleted,
    ChildWorkflowExecutionFailed,
    ChildWorkflowExecutionStarted,
    ChildWorkflowExecutionTerminated,
    ChildWorkflowExecutionTimedOut,
    Event,
    dump_events,
)
from tq_broker.model.requests import Reply as Answer
from tq_broker.model.requests import Request
from tq_broker.model.rule_table import NO_RULES, RuleTable

JUST_BEFORE = -1
"""As a ``started_event_id``: that event was learned right before this one."""

BEFORE = -2
"""As a ``started_event_id``: that event was learned before this one, but had no number yet."""

TAIL_MAX = 64
"""Events kept in memory for a run that no worker has in its cache: a short history need not be
read again for each task."""

TAIL_BYTES_MAX = 64 * 1024
"""So many bytes of events are kept in memory for a run, whoever has it."""

_ACTIVITY_ENDS = (
    ActivityTaskCompleted,
    ActivityTaskFailed,
    ActivityTaskTimedOut,
    ActivityTaskCanceled,
)
_CHILD_ENDS = (
    ChildWorkflowExecutionCompleted,
    ChildWorkflowExecutionFailed,
    ChildWorkflowExecutionCanceled,
    ChildWorkflowExecutionTimedOut,
    ChildWorkflowExecutionTerminated,
)


class Turn:
    """What the modules of the nouns work on.

    Attributes:
        deployments: Which versions there are now.
        rules: The traffic rules in force.
        changed: The state is another than before.
        wants_task: Something new has to be seen by the workflow.
        publishes: The workflow task has to be published at the end of this turn.
        heard_ms: All that was sent to the run before this time has been taken in.
        is_patient: A timeout is over, but what may have come before it has not been taken in.
    """

    __slots__ = (
        "changed",
        "deployments",
        "effects",
        "events",
        "heard_ms",
        "is_patient",
        "next_run",
        "now_ms",
        "publishes",
        "rules",
        "run",
        "wants_task",
    )

    def __init__(
        self,
        run: Execution,
        now_ms: int,
        deployments: Deployments = NO_DEPLOYMENTS,
        rules: RuleTable = NO_RULES,
    ) -> None:
        self.run = run
        self.rules = rules
        self.deployments = deployments
        self.now_ms = self.heard_ms = now_ms
        self.is_patient = False
        self.events: list[Event] = []
        self.effects: list[Effect] = []
        self.changed = False
        self.wants_task = False
        self.publishes = False
        self.next_run: NextRun | None = None

    # --- events ---------------------------------------------------------------------------------

    def write(self, kind: Any, **fields: Any) -> int:
        """Append an event; returns its id. ``time_ms`` is now if it is not given."""
        fields.setdefault("time_ms", self.now_ms)
        return self.append(kind(event_id=self.run.next_event_id, **fields))

    def append(self, event: Event) -> int:
        """Append an event that has its number already; returns that."""
        run = self.run
        assert event.event_id == run.next_event_id, "event ids have no gaps"
        self.events.append(event)
        run.next_event_id += 1
        self.changed = True
        return event.event_id

    def learn(self, kind: Any, **fields: Any) -> None:
        """Append an event that comes from outside, or hold it back; the workflow must see it."""
        fields.setdefault("time_ms", self.now_ms)
        event: Event = kind(event_id=0, **fields)
        self.changed = True
        run = self.run
        if run.is_out:
            run.buffered.append(event)
            run.buffered_bytes += len(dump_events([event]))
        else:
            self._number(event)

    def flush(self) -> None:
        """Number what was held back. The caller has ended the workflow task."""
        held, self.run.buffered = self.run.buffered, []
        self.run.buffered_bytes = 0
        for event in held:
            self._number(event)

    def _number(self, event: Event) -> None:
        event_id = self.run.next_event_id
        changes: dict[str, Any] = {"event_id": event_id}
        if isinstance(event, _ACTIVITY_ENDS) and event.started_event_id == JUST_BEFORE:
            changes["started_event_id"] = event_id - 1
        elif isinstance(event, _ACTIVITY_ENDS) and event.started_event_id == BEFORE:
            changes["started_event_id"] = self._activity_started(event.scheduled_event_id)
        elif isinstance(event, ActivityTaskStarted):
            activity = self.run.activities.get(event.scheduled_event_id)
            if activity is not None:
                activity.started_event_id = event_id
        elif isinstance(event, _CHILD_ENDS) and event.started_event_id == JUST_BEFORE:
            changes["started_event_id"] = self._child_started(event.initiated_event_id)
        elif isinstance(event, ChildWorkflowExecutionStarted):
            child = self.run.children.get(event.initiated_event_id)
            if child is not None:
                child.started_event_id = event_id
        self.append(msgspec.structs.replace(event, **changes))
        self.wants_task = True

    def _activity_started(self, scheduled_event_id: int) -> int:
        for event in reversed(self.events):
            if (
                isinstance(event, ActivityTaskStarted)
                and event.scheduled_event_id == scheduled_event_id
            ):
                return event.event_id
        raise AssertionError("announced start and end were held back together")

    def _child_started(self, initiated_event_id: int) -> int:
        for event in reversed(self.events):
            if (
                isinstance(event, ChildWorkflowExecutionStarted)
                and event.initiated_event_id == initiated_event_id
            ):
                return event.event_id
        raise AssertionError("start and end of the child were held back together")

    # --- time -----------------------------------------------------------------------------------

    def is_over(self, end_ms: int) -> bool:
        """Whether a timeout that ends at ``end_ms`` (0: never) is to be acted on: not before all
        that was sent until then has been taken in, for it may say that nothing is late."""
        if not 0 < end_ms <= self.now_ms:
            return False
        is_heard = end_ms <= self.heard_ms
        self.is_patient |= not is_heard
        return is_heard

    # --- effects --------------------------------------------------------------------------------

    def reply(self, to: ReplyTo | None, answer: Answer) -> None:
        """Answer ``to``, if somebody waits there."""
        if to is not None:
            self.effects.append(Reply(to, answer))

    def to_shard(self, workflow_id: str, request: Request) -> None:
        """Send ``request`` to the shard of ``workflow_id``."""
        self.effects.append(ToShard(workflow_id, request))

    # --- the end --------------------------------------------------------------------------------

    def seal(self) -> bytes:
        """Encode and count the events of this turn; no more may be written."""
        if not self.events:
            return b""
        data = dump_events(self.events)
        run = self.run
        run.history_bytes += len(data)
        self._remember(len(data))
        return data

    def _remember(self, size: int) -> None:
        """Keep the events of this turn, of ``size`` bytes, in memory for the task to come."""
        run, live = self.run, self.run.memory()
        tail = live.tail
        tail.extend(self.events)
        live.tail_bytes += size
        if run.sticky_worker:
            del tail[: max(0, run.seen_event_id + 1 - tail[0].event_id)]
            if len(tail) <= len(self.events):
                live.tail_bytes = size
        is_long = len(tail) > TAIL_MAX and not run.sticky_worker
        if is_long or live.tail_bytes > TAIL_BYTES_MAX or not run.is_open:
            tail.clear()  # what is not here is read from the store
            live.tail_bytes = 0

    def step(self, data: bytes) -> Step:
        """The result, with the events as `seal` has encoded them."""
        return Step(
            effects=self.effects,
            events=self.events,
            first_event_id=self.events[0].event_id if self.events else 0,
            data=data,
            changed=self.changed,
            next_run=self.next_run,
        )
