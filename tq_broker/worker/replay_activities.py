"""Activities of a run, as its code sees them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Union

from tq_broker.common import inherited_headers
from tq_broker.exceptions import (
    ActivityError,
    CancelledError,
    InvalidArgument,
    Malformed,
)
from tq_broker.model import events
from tq_broker.model.affinity import affinity_under, dump_affinity
from tq_broker.model.commands import RequestCancelActivity, ScheduleActivity
from tq_broker.model.failure import retry_state
from tq_broker.model.precedence import settle
from tq_broker.model.tasks import dump_requires, dump_route, task_fields, wire_retry_policy
from tq_broker.worker.ledger import Entry
from tq_broker.worker.loop import WorkflowLoop
from tq_broker.worker.situation import Situation
from tq_broker.workflow.calls import ActivityCall, ActivityCancellationType
from tq_broker.workflow.errors import NondeterminismError
from tq_broker.workflow.handles import ActivityHandle

Ended = Union[  # noqa: UP007 - like the other unions of events
    events.ActivityTaskFailed, events.ActivityTaskTimedOut, events.ActivityTaskCanceled
]


@dataclass(slots=True, eq=False)
class _Activity:
    call: ActivityCall
    activity_id: str
    handle: ActivityHandle[Any]
    entry: Entry
    event_id: int = 0
    attempt: int = 1
    cancel_sent: bool = False


class ReplayActivities:
    """The activities that have not ended."""

    def __init__(self, situation: Situation, loop: WorkflowLoop) -> None:
        self._situation = situation
        self._loop = loop
        self._count = 0
        self._ids: set[str] = set()
        self._by_event: dict[int, _Activity] = {}

    def start(self, call: ActivityCall) -> ActivityHandle[Any]:
        """See `tq_broker.workflow.start_activity`."""
        self._situation.check("start an activity")
        self._count += 1
        activity_id = call.activity_id or str(self._count)
        if activity_id in self._ids:
            raise InvalidArgument(f"activity_id {activity_id!r} is that of another open activity")
        activity = _Activity(call, activity_id, None, None)  # type: ignore[arg-type]
        activity.entry = self._situation.ledger.add(
            self._command(call, activity_id), partial(self._scheduled, activity)
        )
        activity.handle = ActivityHandle(
            self._loop, self._loop.place(), partial(self._cancel, activity)
        )
        self._ids.add(activity_id)
        return activity.handle

    def _command(self, call: ActivityCall, activity_id: str) -> ScheduleActivity:
        run, options = self._situation.started, call.options
        fields = task_fields(options)
        policy, route, requires = options.retry_policy, fields["route"], fields["requires"]
        task_queue = settle("task_queue", options.task_queue, None, run.task_queue)
        affinity = affinity_under(options, self._situation.affinity_on(task_queue))
        return ScheduleActivity(
            activity_id=activity_id,
            activity_type=call.activity_type,
            task_queue=task_queue,
            input=self._situation.conversion.activity_input(call.args),
            schedule_to_close_ms=fields["schedule_to_close_ms"],
            schedule_to_start_ms=fields["schedule_to_start_ms"],
            start_to_close_ms=fields["start_to_close_ms"],
            heartbeat_ms=fields["heartbeat_ms"],
            retry_policy=None if policy is None else wire_retry_policy(policy),
            priority=settle("priority", options.priority, None, run.priority),
            route=None if route is None else dump_route(route),
            requires=None if requires is None else dump_requires(requires),
            headers=inherited_headers(run.headers, options.headers),
            summary=call.summary,
            rate_limit_key=fields["rate_limit_key"],
            fairness_key=settle("fairness_key", options.fairness_key, None, run.fairness_key),
            fairness_weight=settle(
                "fairness_weight", options.fairness_weight, None, run.fairness_weight
            ),
            affinity=None if affinity is None else dump_affinity(affinity),
            announce_start=call.on_started is not None,
            auto_upgrade=options.auto_upgrade,
        )

    # --- events ---------------------------------------------------------------------------------

    def _scheduled(self, activity: _Activity, event: events.ActivityTaskScheduled) -> None:
        activity.event_id = event.event_id
        self._by_event[event.event_id] = activity

    def started(self, event: events.ActivityTaskStarted) -> None:
        activity = self._find(event)
        activity.attempt = event.attempt
        if activity.call.on_started is not None:
            activity.call.on_started(event.host, event.worker_id)

    def completed(self, event: events.ActivityTaskCompleted) -> None:
        activity = self._ended(event)
        try:
            value = self._situation.conversion.activity_result(
                event.result, activity.call.result_type
            )
        except Malformed as error:
            activity.handle.reject(error)
        else:
            activity.handle.resolve(value)

    def failed(self, event: events.ActivityTaskFailed) -> None:
        cause = self._situation.conversion.exception(event.failure)
        self._reject(self._ended(event), "activity failed", cause, event)

    def timed_out(self, event: events.ActivityTaskTimedOut) -> None:
        cause = self._situation.conversion.exception(event.failure)
        self._reject(self._ended(event), "activity timed out", cause, event)

    def canceled(self, event: events.ActivityTaskCanceled) -> None:
        activity = self._ended(event)
        if not activity.handle.done():
            details = self._situation.conversion.load(event.details, list[Any])
            cause = CancelledError("Cancelled", *details)
            self._reject(activity, "activity cancelled", cause, event)

    def _find(
        self, event: events.ActivityTaskStarted | events.ActivityTaskCompleted | Ended
    ) -> _Activity:
        try:
            return self._by_event[event.scheduled_event_id]
        except KeyError:
            raise NondeterminismError(
                f"event {event.event_id} of the history is {type(event).__name__} of event"
                f" {event.scheduled_event_id}; the code has scheduled no such activity"
            ) from None

    def _ended(self, event: events.ActivityTaskCompleted | Ended) -> _Activity:
        activity = self._find(event)
        del self._by_event[event.scheduled_event_id]
        self._ids.discard(activity.activity_id)
        return activity

    def _reject(
        self, activity: _Activity, message: str, cause: BaseException, event: Ended | None = None
    ) -> None:
        error = ActivityError(
            message,
            activity_id=activity.activity_id,
            activity_type=activity.call.activity_type,
            identity=getattr(event, "identity", ""),
            attempt=activity.attempt,
            retry_state=retry_state(getattr(event, "retry_state", 0)),
        )
        error.__cause__ = cause
        activity.handle.reject(error)

    # --- cancellation -----------------------------------------------------------------------------

    def _cancel(self, activity: _Activity) -> None:
        self._situation.check("cancel an activity")
        kind = activity.call.cancellation_type
        if not activity.entry.sent:
            self._situation.ledger.withdraw(activity.entry)
            self._ids.discard(activity.activity_id)
        elif kind is not ActivityCancellationType.ABANDON and not activity.cancel_sent:
            wait = kind is ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
            self._situation.ledger.add(
                RequestCancelActivity(scheduled_event_id=activity.event_id, wait=wait)
            )
            activity.cancel_sent = True
        if (
            not activity.entry.sent
            or kind is not ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
        ):
            self._reject(activity, "activity cancelled", CancelledError())
            activity.handle.forget()
