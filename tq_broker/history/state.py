"""The whole state of one run, as it is stored beside its history.

Rules of this file: it holds data and answers questions about it; what changes it stands in the
modules of the nouns. Everything that is pending is here once, under the id by which its end will
name it. A field may be appended with a default, never removed or moved: states outlive releases.
Large values (inputs of activities, results) stay in the history and out of here.
"""

from __future__ import annotations

import msgspec

from tq_broker.exceptions import Malformed
from tq_broker.history.effects import ReplyTo
from tq_broker.model.affinity import Affinity
from tq_broker.model.events import Event, WorkflowExecutionStarted, WorkflowTaskScheduled
from tq_broker.model.failure import Failure
from tq_broker.model.payload import Payload
from tq_broker.model.requests import Closed, Status
from tq_broker.model.tasks import WireRetryPolicy
from tq_broker.model.workflow_tasks import QueryRequest, UpdateRequest

FORMAT = 1
"""Of the stored state. A state of a later one is refused."""


class Noun(msgspec.Struct, array_like=True, kw_only=True):
    """A part of the state."""


class Task(Noun):
    """The workflow task under way: from its scheduling until it is completed.

    Attributes:
        attempt: 1 and up; failed attempts count, attempts lost by a sticky worker do not.
        scheduled_event_id: While it waits, what the next event's id was when it began to wait.
        written: Its WorkflowTaskScheduled is in the history. Retries that know nothing new are
            not written before they succeed.
        sticky: The worker on whose sticky queue it is, or "".
        dispatch_ms: It waits until then (a backoff, or the delay of the first one); 0: it is out.
        deadline_ms: It times out then; 0: it does not (nobody has said that it has started).
        history_bytes: Size of the history when it was scheduled.
        look_ms: Unless it has a deadline, its queue is looked at then (`tq_broker.history.looks`).
        fell_back: Who of those whom the run asks for was not there, each time that it was found.
    """

    scheduled_event_id: int
    scheduled_ms: int
    attempt: int = 1
    written: bool = True
    sticky: str = ""
    dispatch_ms: int = 0
    deadline_ms: int = 0
    started_ms: int = 0
    history_bytes: int = 0
    last_failure: Failure | None = None
    last_cause: str = ""
    look_ms: int = 0
    fell_back: list[str] = []


class Activity(Noun):
    """An activity that is pending.

    Attributes:
        attempt_ms: When this attempt was put on its queue, or will be.
        waits: This attempt waits for its ``attempt_ms``.
        started_ms: The worker's word that it runs; 0: not heard of.
        since_ms: When we learned that it runs, and ``heard_ms`` when we last heard of it.
        cancel_event_id: Of the ActivityTaskCancelRequested; 0: it is wanted.
        claim: Which request was granted the start of this attempt.
        next_ms: Its next deadline; 0: none.
        look_ms: While it `is_silent` its queue is looked at then (`tq_broker.history.looks`).
        affinity: Whom it follows, if anybody.
        target: The host or process of this attempt because of that; "" for the task queue.
        held: It is not put on a queue before it is known whom to follow.
        moves: Attempts that ended before they began, because there was nobody; they do not count.
        announce_start: ActivityTaskStarted is written when it starts.
        announced: That was done; ``started_event_id`` is 0 until that event has its number.
        headers: If they are not those of the workflow.
        fairness_key, priority, auto_upgrade: As its tasks have them.
    """

    activity_id: str
    activity_type: str
    task_queue: str
    scheduled_ms: int
    schedule_to_close_ms: int = 0
    schedule_to_start_ms: int = 0
    start_to_close_ms: int = 0
    heartbeat_ms: int = 0
    retry_policy: WireRetryPolicy | None = None
    attempt: int = 1
    attempt_ms: int = 0
    waits: bool = False
    started_ms: int = 0
    since_ms: int = 0
    heard_ms: int = 0
    heartbeat: Payload | None = None
    last_failure: Failure | None = None
    cancel_event_id: int = 0
    claim: str = ""
    next_ms: int = 0
    identity: str = ""
    host: str = ""
    worker_id: str = ""
    look_ms: int = 0
    affinity: Affinity | None = None
    target: str = ""
    held: bool = False
    moves: int = 0
    announce_start: bool = False
    announced: bool = False
    started_event_id: int = 0
    route: str | None = None
    requires: str | None = None
    headers: dict[str, str] | None = None
    fairness_key: str = ""
    priority: int | None = None
    auto_upgrade: bool = False

    @property
    def is_silent(self) -> bool:
        """This attempt is out, and nobody has said that it has begun."""
        return not self.waits and not self.held and not self.since_ms

    @property
    def goes_on(self) -> bool:
        """What is due at its ``next_ms`` is its next attempt, and no timeout."""
        return self.waits and self.next_ms == self.attempt_ms


class Bond(Noun):
    """Where the activities of one affinity run.

    Attributes:
        target: The host or process; "" while that is not known.
        finder: The activity that was sent to the task queue to find out; 0 for none.
        firm: One of them has completed there, and what it left there may be needed.
    """

    target: str = ""
    finder: int = 0
    firm: bool = False


class Timer(Noun):
    """A timer that has not fired."""

    started_event_id: int
    fire_ms: int


class Child(Noun):
    """A child that has not ended. ``run_id`` is that of its first run, "" until it has started;
    ``started_event_id`` is 0 until that event has its number."""

    workflow_id: str
    workflow_type: str
    run_id: str = ""
    started_event_id: int = 0
    parent_close_policy: int = 1


class External(Noun):
    """A signal to, or (``cancel``) a cancellation of, another run that was not answered yet."""

    workflow_id: str
    run_id: str | None = None
    cancel: bool = False


class UpdateWaiter(msgspec.Struct, frozen=True, array_like=True):
    """Somebody who waits until an update has come to ``stage``."""

    to: ReplyTo
    stage: int


class Update(Noun):
    """An update in flight.

    Attributes:
        request: Until it is accepted; then the event has it.
        sent: A workflow task has carried it to a worker.
        accepted_event_id: 0: it is only admitted.
    """

    request: UpdateRequest | None
    sent: bool = False
    accepted_event_id: int = 0
    waiters: list[UpdateWaiter] = []


class Live(msgspec.Struct):
    """What is kept in memory only, and is built up again or asked again after a loss.

    Attributes:
        tail: The last events of the history, without a gap. Tasks for a sticky worker need no more.
        tail_bytes: Their size, at most.
        queries: Wait for the end of the workflow task under way.
    """

    tail: list[Event] = []
    tail_bytes: int = 0
    queries: list[QueryRequest] = []


class Execution(Noun):
    """One run. Made by `tq_broker.history.machine.start`, moved by the functions there only.

    Attributes:
        started: The first event; its input only where another run may need it.
        memo: The current one.
        sticky_worker: Has the run in its cache; "" for none.
        seen_event_id: The last event that the sticky worker has seen.
        buffered: Events that came while a workflow task was out. They have no number yet (0).
        buffered_bytes: Their size.
        completed: Ids of updates that are completed, with the ids of those events.
        signals: How many have come.
        closed: The answer to all who ask for the result.
        bonds: By the keys of the affinities that activities have had so far.
        version: Of the deployment of the worker that completed the last workflow task.
        behavior: What that worker said a new version means for the run.
        patient_ms: Timeouts that are over wait until then, for what may have come before them and
            is not read yet; 0: none does.
    """

    started: WorkflowExecutionStarted
    start_ms: int
    status: Status = Status.RUNNING
    next_event_id: int = 1
    history_bytes: int = 0
    memo: dict[str, Payload] = {}
    run_deadline_ms: int = 0
    task: Task | None = None
    sticky_worker: str = ""
    sticky_timeout_ms: int = 0
    seen_event_id: int = 0
    buffered: list[Event] = []
    buffered_bytes: int = 0
    activities: dict[int, Activity] = {}
    timers: dict[str, Timer] = {}
    children: dict[int, Child] = {}
    externals: dict[int, External] = {}
    updates: dict[str, Update] = {}
    completed: dict[str, int] = {}
    signals: int = 0
    cancel_requested: bool = False
    waiters: list[ReplyTo] = []
    current_details: str = ""
    close_ms: int = 0
    closed: Closed | None = None
    live: Live | None = None
    bonds: dict[str, Bond] = {}
    version: str = ""
    behavior: int = 0
    patient_ms: int = 0

    @property
    def workflow_id(self) -> str:
        return self.started.workflow_id

    @property
    def run_id(self) -> str:
        return self.started.run_id

    @property
    def is_out(self) -> bool:
        """A workflow task is with a worker, or on its way: what comes now is not seen by it."""
        return self.task is not None and not self.task.dispatch_ms

    @property
    def is_open(self) -> bool:
        return self.closed is None

    @property
    def history_length(self) -> int:
        """How many events the history has."""
        return self.next_event_id - 1

    def next_ms(self, *, looks: bool = True) -> int | None:
        """When `tq_broker.history.machine.tick` has something to do; ``None`` for never.

        Args:
            looks: False leaves out the looks at queues, which change nothing if all is well.
        """
        if self.closed is not None:
            return None
        times = [timer.fire_ms for timer in self.timers.values()]
        ends = [self.run_deadline_ms, self.started.execution_deadline_ms]
        for activity in self.activities.values():
            (times if activity.goes_on else ends).append(activity.next_ms)
            if looks and activity.is_silent:
                ends.append(activity.look_ms)
        if self.task is not None:
            task = self.task
            times.append(task.dispatch_ms)
            if not task.dispatch_ms:
                ends.append(task.deadline_ms or (task.look_ms if looks else 0))
        times += [max(end_ms, self.patient_ms) for end_ms in ends if end_ms]
        return min(filter(None, times), default=None)

    def events_from(self, first_event_id: int) -> list[Event] | None:
        """The history from ``first_event_id`` to its end, and a workflow task's scheduling that is
        not written down; ``None`` if memory does not reach that far back: ask the store, and
        append `unwritten`."""
        unwritten = self.unwritten()
        if first_event_id >= self.next_event_id:
            return unwritten
        tail = self.live.tail if self.live is not None else []
        if not tail or tail[0].event_id > first_event_id:
            return None
        return tail[first_event_id - tail[0].event_id :] + unwritten

    def unwritten(self) -> list[Event]:
        """What a worker must see after the stored events: the scheduling of an attempt that has
        no event of its own, under the id that it will have."""
        task = self.task
        if task is None or task.written or task.dispatch_ms:
            return []
        return [scheduled_event(self, task)]

    def memory(self) -> Live:
        """What is not stored."""
        if self.live is None:
            self.live = Live()
        return self.live

    def dump(self) -> bytes:
        """The state as it is stored."""
        live, self.live = self.live, None
        try:
            return _encode((FORMAT, self))
        finally:
            self.live = live

    @classmethod
    def load(cls, data: bytes | memoryview) -> Execution:
        """The inverse of `dump`. Raises `Malformed`."""
        try:
            version, run = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise Malformed(f"state of a run: {error}") from error
        if version > FORMAT:
            raise Malformed(f"state of a run: format {version} is of a later release")
        return run


def scheduled_event(run: Execution, task: Task) -> WorkflowTaskScheduled:
    """The event of ``task``'s scheduling."""
    started = run.started
    return WorkflowTaskScheduled(
        event_id=task.scheduled_event_id,
        time_ms=task.scheduled_ms,
        task_queue=started.task_queue,
        start_to_close_ms=started.task_timeout_ms,
        attempt=task.attempt,
        sticky=task.sticky or None,
    )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[int, Execution]).decode
