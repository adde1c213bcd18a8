"""Local activities of a run: they end within the workflow task, and a marker says how."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec

from tq_broker.common import inherited_headers, to_ms
from tq_broker.exceptions import ActivityError, CancelledError, InvalidArgument, Malformed
from tq_broker.model import payload as payloads
from tq_broker.model.commands import RecordMarker
from tq_broker.model.events import MarkerRecorded
from tq_broker.model.tasks import DEFAULT_RETRY_POLICY, task_fields
from tq_broker.worker.ledger import LOCAL_ACTIVITY
from tq_broker.worker.loop import Timer, WorkflowLoop
from tq_broker.worker.situation import Situation
from tq_broker.worker.turn import LocalActivity, LocalActivityDone
from tq_broker.workflow.calls import ActivityCancellationType, LocalActivityCall
from tq_broker.workflow.errors import NondeterminismError
from tq_broker.workflow.handles import ActivityHandle

_json = msgspec.json.encode


@dataclass(slots=True, eq=False)
class _Local:
    call: LocalActivityCall
    task: LocalActivity
    handle: ActivityHandle[Any]
    backoff: Timer | None = None
    """It waits for its next attempt, which is another local activity by then."""


class ReplayLocal:
    """The local activities that have not ended.

    Attributes:
        to_start, to_cancel: What whoever runs them has not been told yet; `take` them.
    """

    def __init__(self, situation: Situation, loop: WorkflowLoop) -> None:
        self._situation = situation
        self._loop = loop
        self._count = 0
        self._seq = 0
        self._open: dict[str, _Local] = {}
        self._to_start: list[LocalActivity] = []
        self._to_cancel: list[int] = []

    @property
    def awaited(self) -> list[str]:
        """Ids of those that the workflow task has to wait for."""
        return [id for id, local in self._open.items() if local.backoff is None]

    def take(self) -> tuple[list[LocalActivity], list[int]]:
        """Those to start, and the ``seq`` of those to cancel, since the last time."""
        taken = self._to_start, self._to_cancel
        self._to_start, self._to_cancel = [], []
        return taken

    def start(self, call: LocalActivityCall) -> ActivityHandle[Any]:
        """See `tq_broker.workflow.start_local_activity`."""
        self._situation.check("start a local activity")
        self._count += 1
        activity_id = call.activity_id or f"local-{self._count}"
        if activity_id in self._open:
            raise InvalidArgument(f"activity_id {activity_id!r} is that of another open activity")
        fields, options = task_fields(call.options), call.options
        self._seq += 1
        task = LocalActivity(
            seq=self._seq,
            activity_id=activity_id,
            activity_type=call.activity_type,
            arguments=self._situation.conversion.json(list(call.args)),
            scheduled_ms=self._situation.now_ms,
            schedule_to_close_ms=fields["schedule_to_close_ms"],
            schedule_to_start_ms=fields["schedule_to_start_ms"],
            start_to_close_ms=fields["start_to_close_ms"],
            retry_policy=options.retry_policy or DEFAULT_RETRY_POLICY,
            local_retry_threshold_ms=to_ms(call.local_retry_threshold),
            headers=inherited_headers(self._situation.started.headers, options.headers),
        )
        local = _Local(call, task, None)  # type: ignore[arg-type]
        local.handle = ActivityHandle(self._loop, self._loop.place(), partial(self._cancel, local))
        self._open[activity_id] = local
        self._to_start.append(task)
        return local.handle

    # --- their ends -------------------------------------------------------------------------------

    def done(self, done: LocalActivityDone, now_ms: int) -> bool:
        """It has ended here. Returns whether anybody waits for that."""
        for local in self._open.values():
            if local.task.seq == done.seq and local.backoff is None:
                self._end(local, self._marker(local, done, now_ms))
                return True
        return False

    def replayed(self, event: MarkerRecorded) -> None:
        """It has ended so when the history was written."""
        details = event.details
        activity_id = msgspec.json.decode(details.get("activity_id", b'""'))
        local = self._open.get(activity_id)
        if local is None or local.backoff is not None:
            raise NondeterminismError(
                f"event {event.event_id} of the history is MarkerRecorded({LOCAL_ACTIVITY},"
                f" activity_id={activity_id!r}); the code has started no such local activity"
            )
        kind = _json(local.call.activity_type)
        if details.get("activity_type") != kind:
            raise NondeterminismError(
                f"event {event.event_id} of the history is about local activity {activity_id!r} of"
                f" type {details.get('activity_type', b'').decode()}; the code asks for"
                f" {kind.decode()}"
            )
        marker = RecordMarker(marker_name=event.marker_name, details=details, failure=event.failure)
        self._end(local, marker)

    def _marker(self, local: _Local, done: LocalActivityDone, now_ms: int) -> RecordMarker:
        conversion = self._situation.conversion
        details = {
            "activity_id": _json(local.task.activity_id),
            "activity_type": _json(local.task.activity_type),
            "attempt": _json(done.attempt),
            "time_ms": _json(max(now_ms, self._situation.now_ms)),
        }
        if done.failure is None:
            details["result"] = payloads.seal(done.result, conversion.converter)
            return RecordMarker(marker_name=LOCAL_ACTIVITY, details=details)
        if done.backoff_ms is not None:
            details["backoff_ms"] = _json(done.backoff_ms)
        failure = payloads.seal_failure(done.failure, conversion.converter)
        return RecordMarker(marker_name=LOCAL_ACTIVITY, details=details, failure=failure)

    def _end(self, local: _Local, marker: RecordMarker) -> None:
        details, situation = marker.details, self._situation
        situation.ledger.add(marker)
        # The work took time, and that is the one thing that moves time within a workflow task.
        situation.now_ms = _number(details, "time_ms", situation.now_ms)
        attempt = _number(details, "attempt", 1)
        if "backoff_ms" in details:
            pause_s = _number(details, "backoff_ms", 0) / 1000
            local.backoff = self._loop.timer(pause_s, self._again, local, attempt + 1)
            return
        del self._open[local.task.activity_id]
        if marker.failure is not None:
            cause = situation.conversion.exception(marker.failure)
            what = "cancelled" if isinstance(cause, CancelledError) else "failed"
            self._reject(local, f"local activity {what}", cause, attempt)
            return
        try:
            value = situation.conversion.load(details["result"], local.call.result_type)
        except Malformed as error:
            local.handle.reject(error)
        else:
            local.handle.resolve(value)

    def _again(self, local: _Local, attempt: int) -> None:
        self._seq += 1
        local.backoff = None
        local.task = msgspec.structs.replace(local.task, seq=self._seq, attempt=attempt)
        self._to_start.append(local.task)

    def _reject(self, local: _Local, message: str, cause: BaseException, attempt: int) -> None:
        error = ActivityError(
            message,
            activity_id=local.task.activity_id,
            activity_type=local.task.activity_type,
            attempt=attempt,
        )
        error.__cause__ = cause
        local.handle.reject(error)

    def _cancel(self, local: _Local) -> None:
        self._situation.check("cancel a local activity")
        kind, seq = local.call.cancellation_type, local.task.seq
        if local.backoff is not None:
            local.backoff.cancel()
        elif local.task in self._to_start:
            self._to_start.remove(local.task)
        elif kind is ActivityCancellationType.WAIT_CANCELLATION_COMPLETED:
            self._to_cancel.append(seq)
            return
        elif kind is ActivityCancellationType.TRY_CANCEL:
            self._to_cancel.append(seq)
        del self._open[local.task.activity_id]
        self._reject(local, "local activity cancelled", CancelledError(), local.task.attempt)
        local.handle.forget()


def _number(details: dict[str, bytes], key: str, default: int) -> int:
    return msgspec.json.decode(details[key], type=int) if key in details else default
