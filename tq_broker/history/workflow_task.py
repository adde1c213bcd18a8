"""The workflow task of a run: out, completed, failed or timed out; at most one at a time.

::

    (none) ── something new ──> out ── completed ──> (none)
                                 │ ^
      failed, timed out, given   │ │ the backoff is over, or there is none
      back by a sticky queue     v │
                               waits

It counts as in flight from the moment it is published: nobody tells us when a worker takes it up,
unless it takes long. The first attempt and every attempt that knows something new has its
WorkflowTaskScheduled in the history before it is published. Other attempts are written down only
when they succeed; a workflow that fails for days does not fill its history.
"""

from __future__ import annotations

import msgspec

from tq_broker.history import looks, versions
from tq_broker.history.effects import DispatchQuery, DispatchWorkflowTask
from tq_broker.history.state import Execution, Task, scheduled_event
from tq_broker.history.step import Step
from tq_broker.history.turn import Turn
from tq_broker.model import events
from tq_broker.model.failure import Failure
from tq_broker.model.requests import shard_of
from tq_broker.model.workflow_tasks import (
    Answer,
    QueryRequest,
    RunKey,
    StickyEvicted,
    StickyGone,
    TargetMissing,
    TaskFailedCause,
    UpdateRequest,
    WorkflowTask,
    WorkflowTaskCompleted,
    WorkflowTaskFailed,
    WorkflowTaskProgress,
)
from tq_broker.queues import routing

BACKOFF_FIRST_MS = 1_000
BACKOFF_MAX_MS = 600_000

SUGGEST_EVENTS = 4_096
SUGGEST_BYTES = 4 * 1024 * 1024
"""From here on a workflow is told to continue as new."""

BUFFERED_MAX = 256
BUFFERED_BYTES_MAX = 1024 * 1024
"""So many events may be held back before the task is given out anew with them. Held-back events are
stored with each change of the state, so they must have a bound. It doubles with each attempt, or a
busy run would never complete a task."""
_DOUBLINGS_MAX = 5

START_TO_CLOSE, SCHEDULE_TO_START = 1, 2


# --- begin ----------------------------------------------------------------------------------------


def schedule(turn: Turn) -> None:
    """Begin a task at once, because there is something new."""
    run = turn.run
    run.task = Task(scheduled_event_id=run.next_event_id, scheduled_ms=turn.now_ms)
    launch(turn)


def delay(turn: Turn, delay_ms: int) -> None:
    """The first task of a run waits for its time."""
    turn.run.task = Task(
        scheduled_event_id=turn.run.next_event_id,
        scheduled_ms=turn.now_ms,
        written=False,
        dispatch_ms=turn.now_ms + delay_ms,
    )


def launch(turn: Turn) -> None:
    """Publish the task that waits."""
    run = turn.run
    task = run.task
    assert task is not None
    knows_more = run.next_event_id != task.scheduled_event_id
    task.scheduled_event_id = run.next_event_id
    task.scheduled_ms = turn.now_ms
    task.dispatch_ms = 0
    task.started_ms = 0
    if run.sticky_worker and not versions.may_stick(run, turn.deployments, turn.rules, turn.now_ms):
        forget(run)
    task.sticky = run.sticky_worker
    task.deadline_ms = turn.now_ms + run.sticky_timeout_ms if task.sticky else 0
    task.look_ms = looks.first_ms(turn.now_ms)
    task.fell_back = []
    task.written = task.attempt == 1 or knows_more
    if task.written:
        turn.append(scheduled_event(run, task))
    for update in run.updates.values():
        update.sent = True
    turn.changed = turn.publishes = True
    turn.wants_task = False


def hurry(turn: Turn) -> None:
    """Do not wait any longer for the time of the first task."""
    task = turn.run.task
    if task is not None and task.dispatch_ms and task.attempt == 1:
        launch(turn)


# --- the end of a turn ----------------------------------------------------------------------------


def finish(turn: Turn) -> Step:
    """Schedule a task if one is wanted, and give out what has to be published."""
    run = turn.run
    relieve(turn)
    if turn.wants_task and run.is_open:
        if run.task is None:
            schedule(turn)
        elif _may_hurry(run):
            hurry(turn)
    data = turn.seal()
    if turn.publishes and run.task is not None:
        run.task.history_bytes = run.history_bytes
        queries = _waiting(run, turn.now_ms)
        turn.effects.append(DispatchWorkflowTask(_message(run, run.task, queries)))
    elif not run.is_out:
        queries = _waiting(run, turn.now_ms)
        if queries:
            turn.effects.append(query_task(run, queries))
    return turn.step(data)


def _may_hurry(run: Execution) -> bool:
    # What was started to run later (by cron, a retry, a continuation) does so. A start delay ends
    # with the first thing that comes, as in Temporal.
    return run.started.initiator in ("start", "child") and not run.started.cron_schedule


def _message(run: Execution, task: Task, queries: list[QueryRequest]) -> WorkflowTask:
    return WorkflowTask(
        run=RunKey(run.workflow_id, run.run_id),
        workflow_type=run.started.workflow_type,
        task_queue=run.started.task_queue,
        shard=shard_of(run.workflow_id),
        scheduled_event_id=task.scheduled_event_id,
        attempt=task.attempt,
        first_event_id=run.seen_event_id + 1 if task.sticky else 1,
        last_event_id=task.scheduled_event_id,
        scheduled_ms=task.scheduled_ms,
        task_timeout_ms=run.started.task_timeout_ms,
        history_bytes=task.history_bytes,
        continue_as_new_suggested=_suggested(task),
        sticky=task.sticky,
        updates=_admitted(run),
        queries=queries,
        version=versions.pin(run),
        is_bound=run.started.is_bound,
        fell_back=task.fell_back,
    )


def _suggested(task: Task) -> bool:
    return task.scheduled_event_id >= SUGGEST_EVENTS or task.history_bytes >= SUGGEST_BYTES


def _admitted(run: Execution) -> list[UpdateRequest]:
    # Copies of a task are alike: what has come since it was published rides in the next one.
    return [
        update.request
        for update in run.updates.values()
        if update.request is not None and update.sent
    ]


def _waiting(run: Execution, now_ms: int) -> list[QueryRequest]:
    if run.live is None or not run.live.queries:
        return []
    waiting, run.live.queries = run.live.queries, []
    return [query for query in waiting if not query.deadline_ms or query.deadline_ms > now_ms]


def query_task(run: Execution, queries: list[QueryRequest]) -> DispatchQuery:
    """A task with nothing but ``queries``."""
    last = run.history_length
    return DispatchQuery(
        WorkflowTask(
            run=RunKey(run.workflow_id, run.run_id),
            workflow_type=run.started.workflow_type,
            task_queue=run.started.task_queue,
            shard=shard_of(run.workflow_id),
            scheduled_event_id=0,
            first_event_id=last + 1 if run.sticky_worker else 1,
            last_event_id=last,
            history_bytes=run.history_bytes,
            sticky=run.sticky_worker,
            queries=queries,
            version=versions.pin(run),
            is_bound=run.started.is_bound,
        )
    )


# --- the end of a task ----------------------------------------------------------------------------


def answered(run: Execution, answer: Answer) -> Task | None:
    """The task that ``answer`` is about; ``None`` if that one is over."""
    task = run.task
    if (
        task is None
        or task.dispatch_ms
        or task.scheduled_event_id != answer.scheduled_event_id
        or task.attempt != answer.attempt
    ):
        return None
    return task


def complete(turn: Turn, task: Task, answer: WorkflowTaskCompleted, started_ms: int) -> int:
    """Write down that the task was completed; returns the id of that event. The task stays in the
    state until the events of its commands are written."""
    if not task.written:
        turn.append(scheduled_event(turn.run, task))
    started_event_id = _started(turn, task, answer.identity, started_ms)
    turn.run.version, turn.run.behavior = answer.version, answer.versioning_behavior
    return turn.write(
        events.WorkflowTaskCompleted,
        scheduled_event_id=task.scheduled_event_id,
        started_event_id=started_event_id,
        identity=answer.identity,
        worker_id=answer.worker_id,
        version=answer.version,
        versioning_behavior=answer.versioning_behavior,
    )


def _started(turn: Turn, task: Task, identity: str, started_ms: int) -> int:
    return turn.write(
        events.WorkflowTaskStarted,
        time_ms=started_ms or task.started_ms or turn.now_ms,
        scheduled_event_id=task.scheduled_event_id,
        identity=identity,
        history_events=task.scheduled_event_id,
        history_bytes=task.history_bytes,
        continue_as_new_suggested=_suggested(task),
        fell_back="; ".join(task.fell_back),
    )


def failed(turn: Turn, answer: WorkflowTaskFailed) -> None:
    """A worker could not complete the task."""
    task = answered(turn.run, answer)
    if task is not None:
        fail(turn, answer, answer.cause, answer.failure, answer.started_ms)


def fail(
    turn: Turn, answer: Answer, cause: str, failure: Failure | None, started_ms: int = 0
) -> None:
    """The attempt that ``answer`` is about has failed; there will be another."""
    task = turn.run.task
    assert task is not None
    if task.written:
        started_event_id = _started(turn, task, answer.identity, started_ms)
        turn.write(
            events.WorkflowTaskFailed,
            scheduled_event_id=task.scheduled_event_id,
            started_event_id=started_event_id,
            cause=cause,
            failure=failure,
            identity=answer.identity,
        )
    # Where something new is the reason, waiting would not help.
    at_once = cause in (TaskFailedCause.UNHANDLED_COMMAND, TaskFailedCause.TOO_MANY_EVENTS)
    pause_ms = min(BACKOFF_FIRST_MS << min(task.attempt - 1, 20), BACKOFF_MAX_MS)
    again = msgspec.structs.replace(
        task, attempt=task.attempt + 1, last_cause=cause, last_failure=failure
    )
    _again(turn, again, 0 if at_once else pause_ms)


def _again(turn: Turn, task: Task, pause_ms: int) -> None:
    """Go on with ``task`` after ``pause_ms``, on the workflow task queue."""
    run = turn.run
    forget(run)
    task.scheduled_event_id = run.next_event_id
    task.deadline_ms = 0
    task.dispatch_ms = turn.now_ms + pause_ms
    run.task = task
    turn.changed = True
    turn.flush()
    if not pause_ms:
        launch(turn)


def time_out(turn: Turn) -> None:
    """The deadline of the task has passed: its worker is not heard of any more."""
    run = turn.run
    task = run.task
    assert task is not None
    is_sticky = bool(task.sticky) and not task.started_ms
    started_event_id = 0
    if task.written and not is_sticky:
        started_event_id = _started(turn, task, "", task.started_ms)
    if task.written:
        turn.write(
            events.WorkflowTaskTimedOut,
            scheduled_event_id=task.scheduled_event_id,
            started_event_id=started_event_id,
            timeout_type=SCHEDULE_TO_START if is_sticky else START_TO_CLOSE,
        )
    # A worker that has left its queue says nothing about the workflow.
    attempt = task.attempt if is_sticky else task.attempt + 1
    _again(turn, msgspec.structs.replace(task, attempt=attempt), 0)


def relieve(turn: Turn) -> None:
    """Give the task out anew if too many events are held back because of it."""
    run = turn.run
    task = run.task
    if task is None or not run.buffered:
        return
    doublings = min(task.attempt - 1, _DOUBLINGS_MAX)
    if (
        len(run.buffered) < BUFFERED_MAX << doublings
        and run.buffered_bytes < BUFFERED_BYTES_MAX << doublings
    ):
        return
    nobody = Answer(
        run=RunKey(run.workflow_id, run.run_id),
        scheduled_event_id=task.scheduled_event_id,
        attempt=task.attempt,
    )
    fail(turn, nobody, TaskFailedCause.TOO_MANY_EVENTS.value, None)


def progress(turn: Turn, answer: WorkflowTaskProgress) -> None:
    """The worker is still at it."""
    task = answered(turn.run, answer)
    if task is not None:
        task.started_ms = answer.started_ms or turn.now_ms
        task.deadline_ms = turn.now_ms + turn.run.started.task_timeout_ms
        turn.changed = True


def tick(turn: Turn) -> None:
    """Do what is due."""
    task = turn.run.task
    if task is None:
        return
    if task.dispatch_ms:
        if task.dispatch_ms <= turn.now_ms:
            launch(turn)
    elif task.deadline_ms:
        if turn.is_over(task.deadline_ms):
            time_out(turn)
    elif turn.is_over(task.look_ms):
        _look(turn, task)


def _look(turn: Turn, task: Task) -> None:
    """Publish the task again if it is in its queue no more."""
    task.look_ms = looks.next_ms(task.scheduled_ms, turn.now_ms)
    turn.changed = True
    turn.effects.append(DispatchWorkflowTask(_message(turn.run, task, []), if_missing=True))


# --- stickiness -----------------------------------------------------------------------------------


def forget(run: Execution) -> None:
    """No worker has the run in its cache any more."""
    run.sticky_worker = ""
    run.sticky_timeout_ms = 0


def left(turn: Turn, message: StickyEvicted | StickyGone) -> None:
    """A worker has the run no more.

    A worker that is gone takes its sticky queue with it, and perhaps a task that has just got
    there; one that has only let go of the run takes the task, and asks for the history.
    """
    run = turn.run
    if not message.worker_id or message.worker_id != run.sticky_worker:
        return
    forget(run)
    turn.changed = True
    if isinstance(message, StickyGone) and run.task is not None and not run.task.dispatch_ms:
        _redirect(turn, run.task)


def abandoned(turn: Turn, message: WorkflowTask) -> None:
    """The queue of one worker, or of a few, gave a task back: nobody took it in time, or they are
    gone."""
    run = turn.run
    if message.sticky and message.sticky == run.sticky_worker:
        forget(run)
        turn.changed = True
    task = run.task
    if task is not None and is_out(run, message):
        if not message.sticky and not task.sticky:
            # Its workers have changed since: the router knows who may have it now.
            turn.changed = turn.publishes = True
        _redirect(turn, task)
    for query in message.queries:
        wait(run, query)


def falls_back(turn: Turn, message: TargetMissing) -> bool:
    """Nobody lives who may have a workflow task of the run: whether it says that others may then.
    So they get it, and its start will tell why."""
    run, lost = turn.run, message.task
    asked = routing.still_asked(lost, run.started)
    if not isinstance(routing.workflow_gone(lost, asked, turn.now_ms), routing.FallBack):
        return False
    task = run.task
    if task is not None and is_out(run, lost) and task.fell_back == lost.fell_back:
        task.fell_back = [*task.fell_back, message.why]
        turn.changed = turn.publishes = True
    for query in lost.queries:
        wait(run, query)
    return True


def is_out(run: Execution, message: WorkflowTask) -> bool:
    """Whether ``message`` is the task that the run waits for."""
    task = run.task
    return (
        message.scheduled_event_id > 0
        and task is not None
        and not task.dispatch_ms
        and task.scheduled_event_id == message.scheduled_event_id
        and task.attempt == message.attempt
    )


def _redirect(turn: Turn, task: Task) -> None:
    """Put a task that is out on the workflow task queue, if it was put on a sticky one."""
    if task.sticky:
        task.sticky = ""
        task.deadline_ms = 0
        turn.changed = turn.publishes = True


def wait(run: Execution, query: QueryRequest) -> None:
    """``query`` goes out at the end of this turn, or when the task that is out has ended."""
    run.memory().queries.append(query)
