"""Activities of a run: scheduled, tried, tried again, ended.

::

    scheduled ──> out ── notice or claim ──> started
                  ^ │                           │
     backoff over │ └── attempt failed ── waits <┘        any ──> ended (once)

An attempt is named by the id of its scheduled event and its number. The worker measures the
timeouts of an attempt that it runs, and reports each failed attempt; the retry policy is asked
here. What bounds more than one attempt (schedule-to-close), or an attempt that nobody has
(schedule-to-start), is measured here. For attempts that were reported as started there is a
backstop, should the worker and the broker's word about it both be lost.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec

from tq_broker import retry
from tq_broker.common import Route
from tq_broker.exceptions import AFFINITY_LOST, Malformed, PayloadTooLarge, TimeoutType
from tq_broker.history import bonds, looks, versions
from tq_broker.history.effects import CancelActivity, DispatchActivity, ReplyTo
from tq_broker.history.state import Activity, Execution
from tq_broker.history.turn import BEFORE, JUST_BEFORE, Turn
from tq_broker.model import payload
from tq_broker.model.affinity import load_affinity
from tq_broker.model.commands import RequestCancelActivity, ScheduleActivity
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments
from tq_broker.model.events import (
    NO_ARGS,
    ActivityTaskCanceled,
    ActivityTaskCancelRequested,
    ActivityTaskCompleted,
    ActivityTaskFailed,
    ActivityTaskScheduled,
    ActivityTaskStarted,
    ActivityTaskTimedOut,
)
from tq_broker.model.failure import (
    TARGET_GONE,
    WORKER_LOST,
    Failure,
    FailureKind,
    application,
    storable,
    timed_out,
)
from tq_broker.model.payload import Payload
from tq_broker.model.requests import Outcome
from tq_broker.model.tasks import (
    DEFAULT_RETRY_POLICY,
    ActivityOutcome,
    ActivityTask,
    Status,
    WireRetryPolicy,
    WorkflowOrigin,
    load_requires,
    retry_policy,
)
from tq_broker.model.workflow_tasks import ClaimStart, StartGranted

BACKSTOP_MS = 2_000
"""So much later than the worker would do it, an attempt is timed out here."""


def wire_id(run_id: str, scheduled_event_id: int) -> str:
    """The id by which workers know an activity of a workflow."""
    return f"{run_id}/{scheduled_event_id}"


# --- from the workflow ----------------------------------------------------------------------------


def schedule(turn: Turn, command: ScheduleActivity, completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    event_id = turn.write(
        ActivityTaskScheduled,
        workflow_task_completed_event_id=completed_event_id,
        **msgspec.structs.asdict(command),
    )
    start_to_close_ms, heartbeat_ms = _attempt_bounds(command)
    activity = Activity(
        activity_id=command.activity_id,
        activity_type=command.activity_type,
        task_queue=command.task_queue,
        scheduled_ms=turn.now_ms,
        schedule_to_close_ms=command.schedule_to_close_ms,
        schedule_to_start_ms=command.schedule_to_start_ms,
        start_to_close_ms=start_to_close_ms,
        heartbeat_ms=heartbeat_ms,
        retry_policy=command.retry_policy,
        affinity=None if command.affinity is None else load_affinity(command.affinity),
        announce_start=command.announce_start,
        route=command.route,
        requires=command.requires,
        fairness_key=command.fairness_key,
        priority=command.priority,
        auto_upgrade=command.auto_upgrade,
        headers=None if command.headers == turn.run.started.headers else command.headers,
    )
    turn.run.activities[event_id] = activity
    _dispatch(turn, event_id, activity)


def _attempt_bounds(of: ScheduleActivity | ActivityTaskScheduled) -> tuple[int, int]:
    """Start-to-close and heartbeat timeout, with Temporal's rules for what is not set."""
    close = of.schedule_to_close_ms
    start_to_close = min(of.start_to_close_ms or close, close or of.start_to_close_ms)
    return start_to_close, min(of.heartbeat_ms, start_to_close)


def request_cancel(turn: Turn, command: RequestCancelActivity, completed_event_id: int) -> None:
    """Carry out a command that was checked."""
    event_id = command.scheduled_event_id
    cancel_event_id = turn.write(
        ActivityTaskCancelRequested,
        scheduled_event_id=event_id,
        workflow_task_completed_event_id=completed_event_id,
    )
    activity = turn.run.activities.get(event_id)
    if activity is None:
        return  # its end is known already, but not yet to the workflow
    activity.cancel_event_id = cancel_event_id
    abandon(turn, event_id, activity)
    if not command.wait or activity.waits or activity.held or _is_unclaimed(activity):
        _end(turn, event_id, activity, ActivityTaskCanceled)


def _is_unclaimed(activity: Activity) -> bool:
    """Whether nobody can have begun it, because nobody was allowed to."""
    return _needs_claim(activity.retry_policy) and not activity.claim


def _needs_claim(policy: WireRetryPolicy | None) -> bool:
    return policy is not None and policy.attempts == 1


def abandon(turn: Turn, event_id: int, activity: Activity) -> None:
    """Tell the worker that has the activity, or will get it, that it is not wanted."""
    if not activity.waits and not activity.held:
        turn.effects.append(CancelActivity(wire_id(turn.run.run_id, event_id)))


# --- attempts -------------------------------------------------------------------------------------


def _dispatch(turn: Turn, event_id: int, activity: Activity) -> None:
    activity.waits = False
    activity.attempt_ms = turn.now_ms
    turn.changed = True
    activity.held = not bonds.place(turn.run, event_id, activity)
    if activity.held:
        _watch(activity)
        return
    activity.look_ms = looks.first_ms(turn.now_ms)
    last = turn.events[-1] if turn.events else None
    turn.effects.append(
        DispatchActivity(
            scheduled_event_id=event_id,
            attempt=activity.attempt,
            attempt_scheduled_ms=turn.now_ms,
            scheduled=last if isinstance(last, ActivityTaskScheduled) else None,
            heartbeat=activity.heartbeat,
        )
    )
    _watch(activity)


def task(
    run: Execution,
    scheduled: ActivityTaskScheduled,
    effect: DispatchActivity,
    deployments: Deployments = NO_DEPLOYMENTS,
) -> tuple[ActivityTask, Payload | None]:
    """The task to publish (``reply_to`` is the caller's to fill in), and the heartbeat details that
    go beside its body because codecs hide them."""
    codecs, body = payload.split(scheduled.input)
    heartbeat = effect.heartbeat
    if heartbeat is not None and not codecs and not payload.split(heartbeat)[0]:
        # What a person could read in a task body stays there.
        body, heartbeat = body[:-1] + b',"heartbeat":' + heartbeat + b"}", None
    start_to_close_ms, heartbeat_ms = _attempt_bounds(scheduled)
    policy = scheduled.retry_policy
    task = ActivityTask(
        activity_id=wire_id(run.run_id, scheduled.event_id),
        activity_type=scheduled.activity_type,
        task_queue=scheduled.task_queue,
        body=body,
        codecs=codecs,
        attempt=effect.attempt,
        scheduled_ms=scheduled.time_ms,
        attempt_scheduled_ms=effect.attempt_scheduled_ms,
        start_to_close_ms=start_to_close_ms,
        schedule_to_start_ms=scheduled.schedule_to_start_ms,
        schedule_to_close_ms=scheduled.schedule_to_close_ms,
        heartbeat_ms=heartbeat_ms,
        retry_policy=DEFAULT_RETRY_POLICY if policy is None else retry_policy(policy),
        route=_route(run, scheduled, deployments),
        requires=None if scheduled.requires is None else load_requires(scheduled.requires),
        priority=scheduled.priority,
        headers=scheduled.headers,
        rate_limit_key=scheduled.rate_limit_key,
        fairness_key=scheduled.fairness_key,
        fairness_weight=scheduled.fairness_weight or 1.0,
        workflow=WorkflowOrigin(
            workflow_id=run.workflow_id,
            run_id=run.run_id,
            workflow_type=run.started.workflow_type,
            activity_id=scheduled.activity_id,
            scheduled_event_id=scheduled.event_id,
            claim=_needs_claim(policy),
        ),
    )
    return task, heartbeat


def _route(
    run: Execution, scheduled: ActivityTaskScheduled, deployments: Deployments
) -> Route | None:
    route = bonds.route(run, scheduled)
    if route is not None or scheduled.auto_upgrade:
        return route
    version = versions.of_activities(run, scheduled.task_queue, deployments)
    return Route.version(version) if version else None


def claim(turn: Turn, message: ClaimStart, sender: ReplyTo | None) -> None:
    """Answer whether an attempt may run: to one request yes, to all others no."""
    activity = turn.run.activities.get(message.scheduled_event_id)
    why = _unclaimable(activity, message)
    turn.reply(sender, StartGranted(granted=not why, why=why))
    if activity is None or why or activity.claim:
        return
    activity.claim = message.request_id
    activity.identity, activity.host = message.identity, message.host
    activity.worker_id = message.worker_id
    _begun(turn, message.scheduled_event_id, activity, turn.now_ms)
    if activity.announce_start:
        _announce(turn, message.scheduled_event_id, activity)


def _unclaimable(activity: Activity | None, message: ClaimStart) -> str:
    if activity is None:
        return "the activity is not pending"
    if activity.waits or activity.attempt != message.attempt:
        return f"attempt {activity.attempt} is the current one"
    if activity.claim not in ("", message.request_id):
        return "the attempt was started before"
    return ""


def _begun(turn: Turn, event_id: int, activity: Activity, started_ms: int) -> None:
    turn.changed = True
    activity.heard_ms = turn.now_ms
    if not activity.since_ms:
        activity.since_ms = turn.now_ms
        activity.started_ms = started_ms
    _watch(activity)
    _ran(turn, event_id, activity)


def _ran(turn: Turn, event_id: int, activity: Activity, *, completed: bool = False) -> None:
    """It is known where the activity runs: those that follow it may."""
    for follower_id, follower in bonds.ran(turn.run, event_id, activity, completed=completed):
        _dispatch(turn, follower_id, follower)


def _announce(turn: Turn, event_id: int, activity: Activity) -> None:
    """Write down that it has started, before it ends."""
    turn.learn(ActivityTaskStarted, **_start(event_id, activity, activity.started_ms))
    activity.announced = True


def _start(event_id: int, activity: Activity, started_ms: int) -> dict[str, Any]:
    return {
        "time_ms": started_ms,
        "scheduled_event_id": event_id,
        "identity": activity.identity,
        "host": activity.host,
        "worker_id": activity.worker_id,
        "attempt": activity.attempt,
        "last_failure": activity.last_failure,
    }


# --- from workers ---------------------------------------------------------------------------------


def told(turn: Turn, message: Outcome) -> None:
    """Take in an outcome of an attempt, or a notice about it."""
    activity = turn.run.activities.get(message.scheduled_event_id)
    outcome = message.outcome
    if activity is None or not _counts(activity, outcome):
        return
    if message.heartbeat is not None and _details(message.heartbeat) is not None:
        activity.heartbeat = message.heartbeat
    activity.identity, activity.host = outcome.identity, outcome.host
    activity.worker_id = outcome.worker_id
    _TOLD[outcome.status](turn, message, activity)


def _counts(activity: Activity, outcome: ActivityOutcome) -> bool:
    if outcome.status not in _TOLD:
        return False
    if outcome.attempt == activity.attempt:
        return not activity.waits
    # An attempt that was given up as lost may have gone on: its result is welcome for as long as
    # the next attempt has not begun.
    is_late = activity.waits and outcome.attempt == activity.attempt - 1
    return is_late and outcome.status is Status.COMPLETED


def _noticed(turn: Turn, message: Outcome, activity: Activity) -> None:
    event_id = message.scheduled_event_id
    _begun(turn, event_id, activity, message.outcome.started_ms or turn.now_ms)


def _completed(turn: Turn, message: Outcome, activity: Activity) -> None:
    activity.attempt = message.outcome.attempt
    what = f"the result of activity {activity.activity_id!r} of workflow {turn.run.workflow_id!r}"
    try:
        payload.check_size(message.body, what)
    except PayloadTooLarge as error:
        refused = application(str(error), type(error).__name__, non_retryable=True)
        after_failure(turn, message.scheduled_event_id, activity, refused, message.outcome)
        return
    _ran(turn, message.scheduled_event_id, activity, completed=True)
    _end(turn, message.scheduled_event_id, activity, ActivityTaskCompleted, message.outcome,
         result=message.body)  # fmt: skip


def _canceled(turn: Turn, message: Outcome, activity: Activity) -> None:
    failure = message.outcome.failure
    details = msgspec.json.encode(failure.details) if failure is not None else NO_ARGS
    _end(turn, message.scheduled_event_id, activity, ActivityTaskCanceled, message.outcome,
         details=details)  # fmt: skip


def _failed(turn: Turn, message: Outcome, activity: Activity) -> None:
    failure = message.outcome.failure
    if failure is None:
        failure = Failure(kind=FailureKind.APPLICATION, message="the worker did not say why")
    after_failure(turn, message.scheduled_event_id, activity, failure, message.outcome)


_TOLD: dict[Status, Any] = {
    Status.STARTED: _noticed,
    Status.HEARTBEAT: _noticed,
    Status.COMPLETED: _completed,
    Status.CANCELED: _canceled,
    Status.FAILED: _failed,
    Status.TIMED_OUT: _failed,
}


def after_failure(
    turn: Turn,
    event_id: int,
    activity: Activity,
    failure: Failure,
    outcome: ActivityOutcome | None = None,
) -> None:
    """An attempt has failed: try again, or end."""
    failure = storable(failure)
    if not activity.cancel_event_id and _never_began(activity, failure):
        is_gone = failure.type == TARGET_GONE
        if not activity.target or bonds.lost(turn.run, activity, is_gone=is_gone):
            _next_attempt(turn, activity)
            activity.moves += 1
            _dispatch(turn, event_id, activity)
            return
        failure = application(failure.message, AFFINITY_LOST, non_retryable=True)
    failed = failure.attempt(activity.attempt - activity.moves)
    if activity.cancel_event_id:
        failed = retry.FailedAttempt(attempt=activity.attempt, cancelled=True)
    policy = activity.retry_policy
    decision = retry.decide(
        DEFAULT_RETRY_POLICY if policy is None else retry_policy(policy),
        failed,
        _left(activity, turn.now_ms),
    )
    if isinstance(decision, retry.GiveUp):
        kind: Any = ActivityTaskFailed
        if failure.kind is FailureKind.TIMEOUT:
            kind = ActivityTaskTimedOut
        _end(turn, event_id, activity, kind, outcome, failure=failure,
             retry_state=int(decision.state))  # fmt: skip
        return
    is_first_loss = _is_loss(failure) and not _is_loss(activity.last_failure)
    _next_attempt(turn, activity)
    activity.last_failure = failure
    bonds.failed(turn.run, event_id, activity)
    if activity.affinity is not None and is_first_loss:
        # Whether whom it follows is gone too is to be known at once, not after a backoff.
        _dispatch(turn, event_id, activity)
        return
    activity.attempt_ms = turn.now_ms + round(decision.delay / timedelta(milliseconds=1))
    activity.waits = True
    _watch(activity)


def _next_attempt(turn: Turn, activity: Activity) -> None:
    activity.attempt += 1
    activity.started_ms = activity.since_ms = activity.heard_ms = 0
    activity.claim = ""
    turn.changed = True


def _is_loss(failure: Failure | None) -> bool:
    return failure is not None and failure.type == WORKER_LOST


def _never_began(activity: Activity, failure: Failure) -> bool:
    """Whether the attempt ended because there was nobody to run it: said by those who carry tasks,
    so there is no code that could have raised it."""
    if failure.stack_trace or failure.sealed is not None:
        return False
    if failure.type == TARGET_GONE:
        return bool(activity.target)
    follows = bool(activity.target) or activity.announce_start
    return follows and _is_loss(failure) and _is_unclaimed(activity)


def _left(activity: Activity, now_ms: int) -> timedelta | None:
    if not activity.schedule_to_close_ms:
        return None
    end_ms = activity.scheduled_ms + activity.schedule_to_close_ms
    return timedelta(milliseconds=end_ms - now_ms)


def _end(
    turn: Turn,
    event_id: int,
    activity: Activity,
    kind: Any,
    outcome: ActivityOutcome | None = None,
    **fields: Any,
) -> None:
    """Write down how the activity ended; with its start, if it had one."""
    del turn.run.activities[event_id]
    started_ms = (outcome.started_ms if outcome is not None else 0) or activity.started_ms
    if activity.announced:
        fields["started_event_id"] = activity.started_event_id or BEFORE
    elif outcome is not None or started_ms:
        turn.learn(ActivityTaskStarted, **_start(event_id, activity, started_ms or turn.now_ms))
        fields["started_event_id"] = JUST_BEFORE
    else:
        fields["started_event_id"] = 0
    if kind is not ActivityTaskTimedOut:
        fields["identity"] = activity.identity
    turn.learn(kind, scheduled_event_id=event_id, **fields)
    if activity.announced and not activity.cancel_event_id:
        # What has announced itself is held until it is told to end: it may live, cut off from us.
        turn.effects.append(CancelActivity(wire_id(turn.run.run_id, event_id)))
    for follower_id, follower in bonds.ended(turn.run, event_id, activity):
        _dispatch(turn, follower_id, follower)


# --- time -----------------------------------------------------------------------------------------


def _watch(activity: Activity) -> None:
    times = [at for at, _ in _timeouts(activity)]
    if activity.waits:
        times.append(activity.attempt_ms)
    activity.next_ms = min(times, default=0)


def _timeouts(activity: Activity) -> list[tuple[int, TimeoutType]]:
    """When a timeout is over, and which."""
    found: list[tuple[int, TimeoutType]] = []
    if activity.schedule_to_close_ms:
        end_ms = activity.scheduled_ms + activity.schedule_to_close_ms
        found.append((end_ms, TimeoutType.SCHEDULE_TO_CLOSE))
    if activity.waits:
        return found
    if not activity.since_ms:
        if activity.schedule_to_start_ms:
            end_ms = activity.attempt_ms + activity.schedule_to_start_ms
            found.append((end_ms, TimeoutType.SCHEDULE_TO_START))
    else:
        if activity.start_to_close_ms:
            end_ms = activity.since_ms + activity.start_to_close_ms + BACKSTOP_MS
            found.append((end_ms, TimeoutType.START_TO_CLOSE))
        if activity.heartbeat_ms:
            end_ms = activity.heard_ms + activity.heartbeat_ms + BACKSTOP_MS
            found.append((end_ms, TimeoutType.HEARTBEAT))
    return found


def _first(activity: Activity) -> TimeoutType:
    _, timeout = min(_timeouts(activity), key=lambda timeout: timeout[0])
    return timeout


def tick(turn: Turn) -> None:
    """Do what is due."""
    due = [
        (event_id, activity)
        for event_id, activity in turn.run.activities.items()
        if activity.next_ms and activity.next_ms <= turn.now_ms
    ]
    for event_id, activity in due:
        if activity.next_ms > turn.now_ms:
            continue  # the end of one before it has let it go on
        if activity.goes_on:
            _dispatch(turn, event_id, activity)
        elif turn.is_over(activity.next_ms):
            _timed_out(turn, event_id, activity, _first(activity))
    for event_id, activity in turn.run.activities.items():
        if activity.is_silent and turn.is_over(activity.look_ms):
            _look(turn, event_id, activity)


def _look(turn: Turn, event_id: int, activity: Activity) -> None:
    """Publish the attempt again if it is in its queue no more."""
    activity.look_ms = looks.next_ms(activity.attempt_ms, turn.now_ms)
    turn.effects.append(
        DispatchActivity(
            scheduled_event_id=event_id,
            attempt=activity.attempt,
            attempt_scheduled_ms=activity.attempt_ms,
            heartbeat=activity.heartbeat,
            if_missing=True,
        )
    )
    turn.changed = True


def _timed_out(turn: Turn, event_id: int, activity: Activity, timeout: TimeoutType) -> None:
    failure = msgspec.structs.replace(
        timed_out(timeout, _details(activity.heartbeat or NO_ARGS)), cause=activity.last_failure
    )
    if timeout in (TimeoutType.SCHEDULE_TO_START, TimeoutType.SCHEDULE_TO_CLOSE):
        abandon(turn, event_id, activity)
    after_failure(turn, event_id, activity, failure)


def _details(heartbeat: Payload) -> list[Any] | None:
    """Heartbeat details, as far as they may be read here; ``None`` if they are not details."""
    try:
        codecs, data = payload.split(heartbeat)
        return [] if codecs else _decode_details(data)
    except (Malformed, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


_decode_details = msgspec.json.Decoder(list[Any]).decode
