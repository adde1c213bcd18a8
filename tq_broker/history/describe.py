"""How a run looks from outside."""

from __future__ import annotations

from tq_broker.history import bonds, versions
from tq_broker.history.activities import wire_id
from tq_broker.history.state import Activity, Child, Execution, Task
from tq_broker.model.requests import (
    Description,
    PendingActivity,
    PendingChild,
    PendingTask,
    RunInfo,
)
from tq_broker.model.tasks import dump_route


def info(run: Execution) -> RunInfo:
    """A run as it is listed; the columns of its stored row are the fields of this."""
    started = run.started
    parent = started.parent
    return RunInfo(
        workflow_id=started.workflow_id,
        run_id=started.run_id,
        workflow_type=started.workflow_type,
        task_queue=started.task_queue,
        status=run.status,
        start_ms=run.start_ms,
        close_ms=run.close_ms,
        execution_ms=run.start_ms + started.first_task_backoff_ms,
        history_length=run.history_length,
        history_bytes=run.history_bytes,
        first_run_id=started.first_run_id,
        parent_id="" if parent is None else parent.workflow_id,
        parent_run_id="" if parent is None else parent.run_id,
        memo=run.memo,
        cron_schedule=started.cron_schedule,
        static_summary=started.static_summary,
        deployment_version=versions.pin(run),
    )


def description(run: Execution) -> Description:
    """All about a run."""
    started = run.started
    return Description(
        info=info(run),
        current_details=run.current_details,
        static_details=started.static_details,
        execution_timeout_ms=started.execution_timeout_ms,
        run_timeout_ms=started.run_timeout_ms,
        task_timeout_ms=started.task_timeout_ms,
        sticky_worker=run.sticky_worker,
        pending_task=None if run.task is None else _task(run.task),
        pending_activities=[
            _activity(run, event_id, activity) for event_id, activity in run.activities.items()
        ],
        pending_children=[_child(event_id, child) for event_id, child in run.children.items()],
        pending_timers=len(run.timers),
        pending_updates=list(run.updates),
        cancel_requested=run.cancel_requested,
        identity=started.identity,
        version=run.version,
        versioning_behavior=run.behavior,
        versioning_override=started.versioning_override,
        route=started.route,
        requires=started.requires,
        headers=started.headers,
        fairness_key=started.fairness_key,
        affinity=started.affinity,
        affinity_target=bonds.handed_on(run, started.affinity)["affinity_target"],
    )


def _task(task: Task) -> PendingTask:
    return PendingTask(
        scheduled_ms=task.scheduled_ms,
        attempt=task.attempt,
        started_ms=task.started_ms,
        last_failure=task.last_failure,
        last_cause=task.last_cause,
        next_ms=task.dispatch_ms,
        fell_back="; ".join(task.fell_back),
    )


def _activity(run: Execution, event_id: int, activity: Activity) -> PendingActivity:
    state = "started" if activity.since_ms else "scheduled"
    policy, follows = activity.retry_policy, bonds.following(run, activity)
    return PendingActivity(
        activity_id=activity.activity_id,
        activity_type=activity.activity_type,
        task_queue=activity.task_queue,
        state="cancel_requested" if activity.cancel_event_id else state,
        attempt=activity.attempt,
        maximum_attempts=0 if policy is None else policy.attempts,
        scheduled_ms=activity.scheduled_ms,
        started_ms=activity.started_ms,
        next_ms=activity.attempt_ms if activity.waits else 0,
        last_failure=activity.last_failure,
        heartbeat_details=activity.heartbeat,
        heartbeat_ms=activity.heard_ms if activity.heartbeat is not None else 0,
        identity=activity.identity,
        host=activity.host,
        worker_id=activity.worker_id,
        route=activity.route or (None if follows is None else dump_route(follows)),
        requires=activity.requires,
        headers=run.started.headers if activity.headers is None else activity.headers,
        task_id=wire_id(run.run_id, event_id),
        fairness_key=activity.fairness_key,
        priority=activity.priority,
        auto_upgrade=activity.auto_upgrade,
    )


def _child(event_id: int, child: Child) -> PendingChild:
    return PendingChild(
        workflow_id=child.workflow_id,
        workflow_type=child.workflow_type,
        run_id=child.run_id,
        initiated_event_id=event_id,
        parent_close_policy=child.parent_close_policy,
    )
