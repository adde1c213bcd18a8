"""From workflow task to answer: takes deliveries, has workflow code run, and tells what it wants.

A delivery's way: the poller hands it over; it waits until no other task of its run is at work; the
run's replay comes from the cache or is made of the whole history, as far as it came along or has to
be asked for; a turn of it gives commands, perhaps after local activities; the answer is told to
history, and then the delivery is acknowledged.

Rules of this file: what touches a replay runs on a thread of the `WorkflowRunner`, under its watch;
one task of a run at a time, until its answer is confirmed; a task that failed leaves no replay
behind.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import msgspec

from tq_broker.clock import epoch_ms
from tq_broker.exceptions import Malformed
from tq_broker.model import failure as failures
from tq_broker.model import workflow_tasks as answers
from tq_broker.model.composition import way_of
from tq_broker.model.events import Event, WorkflowTaskScheduled
from tq_broker.model.failure import Failure
from tq_broker.model.limits import Side
from tq_broker.model.names import Kind, QueueName
from tq_broker.model.requests import SHARDS, Reply
from tq_broker.model.tasks import WorkflowOrigin
from tq_broker.model.workflow_tasks import (
    EventsPage,
    FetchEvents,
    QueryAnswer,
    QueryRequest,
    RunKey,
    StickyEvicted,
    TaskFailedCause,
    WorkflowTask,
    WorkflowTaskProgress,
    read_task,
)
from tq_broker.queues.broker import Delivery
from tq_broker.worker.attempt import Place
from tq_broker.worker.begins import BeginCounts
from tq_broker.worker.inquiries import Inquiries
from tq_broker.worker.local_activities import LocalActivities
from tq_broker.worker.options import WorkerOptions
from tq_broker.worker.passage import FREE, Passage
from tq_broker.worker.poller import Gate, Source
from tq_broker.worker.recent import RecentTasks
from tq_broker.worker.registry import Registry
from tq_broker.worker.replay import OutOfStep, Replay
from tq_broker.worker.reporter import Reporter
from tq_broker.worker.slots import Slots
from tq_broker.worker.sticky_cache import StickyCache
from tq_broker.worker.tuning import WorkflowSlotInfo
from tq_broker.worker.turn import LocalActivity, LocalActivityDone, Turn
from tq_broker.worker.workflow_chain import WorkflowInterception
from tq_broker.worker.workflow_registry import WorkflowRegistry
from tq_broker.worker.workflow_reporter import WorkflowReporter
from tq_broker.worker.workflow_runner import Abandoned, Seat, WorkflowRunner

log = logging.getLogger(__name__)

T = TypeVar("T")

PROGRESS_AFTER_S = 0.5
"""A task that takes longer is told about, and again in half of its timeout."""
REPLAY_S_PER_EVENT = 0.001
"""What replaying takes at most, beside the limit for code that blocks."""


class WorkflowHandler:
    """Handles the workflow tasks of one worker. Thread-safe.

    Attributes:
        is_paused: Whether a task queue is paused.
        home_of: Where a task of a queue is to go instead, by its workflow's id.
    """

    is_paused: Callable[[str], bool] = staticmethod(lambda task_queue: False)
    home_of: Callable[[QueueName, str], QueueName | None] = staticmethod(lambda queue, id: None)

    def __init__(
        self,
        workflows: WorkflowRegistry,
        activities: Registry,
        local: LocalActivities,
        runner: WorkflowRunner,
        reporter: WorkflowReporter,
        returns: Reporter,
        inquiries: Inquiries,
        place: Place,
        options: WorkerOptions,
        recent: RecentTasks,
        slots: Slots,
    ) -> None:
        self._slots = slots
        self._recent = recent
        self.begins = BeginCounts(place.clock)
        self._workflows = workflows
        self._activities = activities
        self._local = local
        self._runner = runner
        self._reporter = reporter
        self._returns = returns
        self._inquiries = inquiries
        self._place = place
        self._clock = place.clock
        self._sticky_ms = round(
            options.sticky_queue_schedule_to_start_timeout.total_seconds() * 1000
        )
        self._limit_s = (
            None if options.debug_mode else options.workflow_deadlock_timeout.total_seconds()
        )
        self._failure_types = options.workflow_failure_exception_types
        self._version = options.version
        self._default_behavior = options.default_versioning_behavior
        self._interception = WorkflowInterception.of(options.interceptors)
        self.cache: StickyCache[Kept] = StickyCache(options.max_cached_workflows)
        self._lock = threading.Lock()
        self._held: dict[InHand, None] = {}
        self._runs: dict[str, deque[InHand]] = {}
        """Runs with a task at work, and what waits for it to end."""
        self._homeless: deque[InHand] = deque()
        """Tasks that wait for room in the cache."""
        self._asking: dict[InHand, None] = {}
        """Tasks that wait for leave of a limit."""
        self._closing = False
        self.gates: Mapping[str, Gate] = {}
        """The limited task queues."""

    @property
    def busy(self) -> bool:
        """Whether a task is in hand."""
        return bool(self._held)

    @property
    def running(self) -> int:
        """How many tasks are in hand."""
        return len(self._held)

    # --- taking ---------------------------------------------------------------------------------

    def on_deliveries(self, source: Source, deliveries: Sequence[Delivery]) -> None:
        """Deliveries of a workflow task queue, or of the sticky queue, have come."""
        now = self._clock.monotonic()
        for delivery in deliveries:
            held = InHand(delivery, source, now)
            self._held[held] = None
            is_sticky = source.queue.kind is Kind.STICKY
            info = WorkflowSlotInfo(answers.type_of(delivery.message), is_sticky)
            self._slots.take(held, info)
            self._runner.submit(partial(self._take, held))

    def _take(self, held: InHand, seat: Seat) -> None:
        try:
            task = read_task(held.delivery.message)
            if not 0 <= task.shard < SHARDS:
                raise Malformed(f"workflow task of shard {task.shard}, which there is not")
        except Malformed as error:
            self._end(held)
            done = partial(self._finish, held)
            self._returns.park(held.delivery.message, held.source.name, error.reason, done)
            return
        held.task = task
        self._recent.took_workflow(task, epoch_ms(self._clock))
        with self._lock:
            waiting = self._runs.get(task.run.run_id)
            if waiting is not None:
                waiting.append(held)
                return
            self._runs[task.run.run_id] = deque()
        self._step(held, self._begin, seat)

    def _begin(self, held: InHand, seat: Seat) -> None:
        """No other task of its run is at work."""
        home = self.home_of(held.source.queue, held.run.workflow_id)
        if home is not None:
            self._give_back(held, home)
        elif self._closing or self._must_wait(held):
            self._give_back(held)
        else:
            self._ask_leave(held, seat)

    def _must_wait(self, held: InHand) -> bool:
        """A task of the sticky queue, which serves all task queues, is of one that is paused.

        History then puts it on the workflow task queue, where it waits.
        """
        task = held.the_task
        is_sticky = held.source.queue.kind is Kind.STICKY
        return is_sticky and bool(task.scheduled_event_id) and self.is_paused(task.task_queue)

    def _ask_leave(self, held: InHand, seat: Seat) -> None:
        """Begin it if a limit of the task queue allows that now; what only asks is not limited.

        What came through the sticky queue and may not begin goes back to history, which puts it
        on the shared queue: there the limit decides who gets it, and when. What only a few workers
        may have waits here, as the same queue would only give it to them again.
        """
        task, source = held.the_task, held.source
        if not task.scheduled_event_id:
            self._step(held, self._find, seat)
            return
        passage: Passage | None
        if source.queue.kind is Kind.STICKY:
            gate = self.gates.get(task.task_queue)
            passage = FREE if gate is None else gate.admit_elsewhere(None)
        elif source.waits:
            self._asking[held] = None
            passage = source.admit(partial(self._has_leave, held))
        else:
            passage = source.admit()
        if passage is not None:
            self._asking.pop(held, None)
            self._let_begin(held, passage, seat)
        elif not source.waits or source.queue.kind is Kind.STICKY:
            self._give_back(held)

    def _has_leave(self, held: InHand, passage: Passage) -> None:  # on a thread of the limit
        self._runner.submit(partial(self._with_leave, held, passage))

    def _with_leave(self, held: InHand, passage: Passage, seat: Seat) -> None:
        """It has waited for its leave."""
        with self._lock:
            waits = held in self._asking
            self._asking.pop(held, None)
        if waits:
            self._let_begin(held, passage, seat)
        else:
            passage.unused()  # it was given back meanwhile

    def _let_begin(self, held: InHand, passage: Passage, seat: Seat) -> None:
        task = held.the_task
        held.passage = passage
        passage.begun()
        way = way_of(held.source.queue)
        self.begins.begun(task.task_queue, Side.WORKFLOW, since_ms=task.scheduled_ms, way=way)
        self._step(held, self._find, seat)

    def cover(self, task_queue: str, make: Callable[[], Passage]) -> None:
        """A limit comes into force: what is at work already counts as well."""
        for held in list(self._held):
            task = held.task
            if task is None or task.task_queue != task_queue or held.passage is not FREE:
                continue
            if held in self._asking:
                continue
            held.passage = make()
            if held.ended:
                held.passage.ended()

    def _step(self, held: InHand, step: Callable[[InHand, Seat], None], seat: Seat) -> None:
        if held.ended:
            return
        try:
            step(held, seat)
        except Abandoned:
            raise
        except BaseException as error:
            # Supervisor: whatever is wrong with one run must not harm the others.
            log.exception("workflow task of %s: a defect", held.run)
            cause = TaskFailedCause.UNHANDLED_FAILURE
            self._fail(held, cause, failures.storable(failures.from_exception(error)))

    # --- from a task to a replay ----------------------------------------------------------------

    def _find(self, held: InHand, seat: Seat) -> None:
        """Find the run in the cache, if it is there and as far as the task takes it to be."""
        task = held.the_task
        if self._workflows.find(task.workflow_type) is None:
            self._fail(held, TaskFailedCause.UNKNOWN_TYPE, self._unknown(task))
            return
        if self.cache.capacity:
            with self._lock:
                held.kept = self.cache.take(task.run.run_id, expected=bool(task.sticky))
            held.admitted = held.kept is not None
        kept = held.kept
        if kept is not None and not self._fits(task, kept):
            self._throw_away(held)
        elif kept is not None and kept.answered == task_id(task):
            self._end(held)  # it has come a second time, after its answer was confirmed
            self._finish(held)
            return
        self._gather(held, seat)

    def _fits(self, task: WorkflowTask, kept: Kept) -> bool:
        only_asks = not task.scheduled_event_id
        following = kept.replay.last_event_id + 1
        if only_asks and (not task.events or task.last_event_id < following):
            return True  # whatever is here is as new as it needs to be
        if kept.answered == task_id(task) and not only_asks:
            return True
        if kept.answered is not None:
            return task.first_event_id == following
        # What was made for a query has had no turn of its own, and may be further than history
        # takes it to be.
        return task.first_event_id <= following and (only_asks or task.first_event_id > 1)

    def _unknown(self, task: WorkflowTask) -> Failure:
        names = ", ".join(self._workflows.types) or "none"
        return failures.application(
            f"Workflow class {task.workflow_type} is not registered on this worker,"
            f" available workflows: {names}",
            "NotFoundError",
        )

    def _gather(self, held: InHand, seat: Seat) -> None:
        """Take the events that came along, and ask for those that did not."""
        task = held.the_task
        following = held.next_event_id
        if task.events and task.first_event_id <= following:
            held.events += task.events[following - task.first_event_id :]
            following = held.next_event_id
        if task.scheduled_event_id == following:
            # A repeated attempt has no such event in the stored history.
            held.events.append(_scheduling(task))
            following += 1
        last = task.last_event_id or held.last_event_id
        if held.kept is not None and not task.scheduled_event_id and not task.events:
            last = 0  # queries only, from the cache
        elif not last:
            last = following  # how far the history goes will be known with its first page
        if following > last:
            self._activate(held, seat)
            return
        question = FetchEvents(run=task.run, first_event_id=following)
        self._inquiries.ask(
            task.shard,
            question,
            lambda reply: self._runner.submit(
                partial(self._step, held, partial(self._on_page, reply))
            ),
        )

    def _on_page(self, reply: Reply | Malformed, held: InHand, seat: Seat) -> None:
        if isinstance(reply, Malformed):
            self._fail(held, TaskFailedCause.PAYLOAD, failures.from_exception(reply))
            return
        following = held.next_event_id
        events = (
            [event for event in reply.events if event.event_id >= following]
            if isinstance(reply, EventsPage)
            else []
        )
        if not isinstance(reply, EventsPage) or not events:
            # It was removed, or what we have been told is of another time.
            log.warning("history of %s has no event %d: task dropped", held.run, following)
            self._drop(held, failures.application("no such run", "NotFoundError"))
            return
        held.events += events
        held.last_event_id = reply.last_event_id
        last = held.the_task.last_event_id
        while last and held.events[-1].event_id > last:
            held.events.pop()
        self._gather(held, seat)

    def _activate(self, held: InHand, seat: Seat) -> None:
        if held.kept is None:
            held.kept = self._make(held.the_task)
        if not held.admitted and self.cache.capacity and not self._admit(held, seat):
            return
        self._take_turn(held, seat)

    def _make(self, task: WorkflowTask) -> Kept:
        definition = self._workflows.find(task.workflow_type)
        assert definition is not None, "it was there before"
        replay = Replay(
            definition,
            task.run,
            namespace=self._place.namespace,
            converter=self._place.converter,
            failure_exception_types=self._failure_types,
            interception=self._interception,
        )
        return Kept(task.run, task.shard, replay)

    def _admit(self, held: InHand, seat: Seat) -> bool:
        """Keep the run; False: no room now.

        History sends further tasks of it here, unless it was only asked about. Who asks once will
        often ask again, but for that no run has to go that tasks are known to come of.
        """
        task = held.the_task
        if self._closing:
            return True
        assert held.kept is not None, "it was made"
        is_known = bool(task.scheduled_event_id or task.sticky)
        with self._lock:
            if not is_known and self.cache.is_full:
                return True
            gone = self.cache.admit(task.run.run_id, held.kept)
            if gone is None:
                self._homeless.append(held)
                return False
        held.admitted = True
        for kept in gone:
            self._evict(kept)
        return True

    def _evict(self, kept: Kept) -> None:
        if not kept.closed:
            notice = StickyEvicted(run=kept.run, worker_id=self._place.worker_id)
            self._reporter.tell(kept.shard, notice)
        self._close(kept)

    # --- turns ----------------------------------------------------------------------------------

    def _take_turn(self, held: InHand, seat: Seat) -> None:
        task, events = held.the_task, held.events
        held.events = []
        held.started_ms = epoch_ms(self._clock)
        if not task.scheduled_event_id and not events:
            self._answer_queries(held, seat)
            return

        def work(replay: Replay) -> Turn:
            return replay.activate(
                events,
                now_ms=held.started_ms,
                updates=task.updates,
                live=bool(task.scheduled_event_id),
                history_bytes=task.history_bytes,
                continue_as_new_suggested=task.continue_as_new_suggested,
            )

        try:
            turn = self._at_work(held, seat, work, len(events))
        except OutOfStep as error:
            self._out_of_step(held, error, seat)
        else:
            self._after(held, turn, seat)

    def _at_work(self, held: InHand, seat: Seat, work: Callable[[Replay], T], events: int = 0) -> T:
        """Have the replay of ``held`` do ``work``, watched."""
        kept = held.the_kept
        try:
            with self._watched(held, seat, events):
                return work(kept.replay)
        except Abandoned:
            # Nobody else has it any more, and its code is back. Left to the garbage collector, its
            # ``finally`` blocks would run in the turn of another run, and in that one's name.
            self._close(kept)
            raise

    def _watched(self, held: InHand, seat: Seat, events: int) -> AbstractContextManager[None]:
        limit_s = self._limit_s
        if limit_s is not None:
            limit_s += REPLAY_S_PER_EVENT * events
        return seat.watched(limit_s, partial(self._on_stuck, held))

    def _out_of_step(self, held: InHand, error: OutOfStep, seat: Seat) -> None:
        """What was in the cache does not fit the history: begin anew, once."""
        if held.rebuilt:
            cause = TaskFailedCause.NON_DETERMINISTIC
            self._fail(held, cause, failures.from_exception(error))
            return
        log.warning("cached run %s is out of step, replaying it: %s", held.run, error)
        held.rebuilt = True
        self._throw_away(held)
        self._gather(held, seat)

    def _after(self, held: InHand, turn: Turn, seat: Seat) -> None:
        run_id = held.run.run_id
        for seq in turn.canceled_local:
            self._local.cancel(run_id, seq)
        if turn.failure is not None:
            self._fail(held, turn.failure.cause, turn.failure.failure)
            return
        for local in turn.local_activities:
            if self._activities.find(local.activity_type) is None:
                cause = TaskFailedCause.UNHANDLED_FAILURE
                self._fail(held, cause, self._unknown_local(local))
                return
            self._start_local(held, local)
        if turn.complete:
            self._complete(held, turn, seat)

    def _unknown_local(self, local: LocalActivity) -> Failure:
        names = ", ".join(self._activities.types) or "none"
        return failures.application(
            f"Activity function {local.activity_type} is not registered on this worker,"
            f" available activities: {names}",
            "NotFoundError",
        )

    def _start_local(self, held: InHand, local: LocalActivity) -> None:
        task = held.the_task
        origin = WorkflowOrigin(
            workflow_id=task.run.workflow_id,
            run_id=task.run.run_id,
            workflow_type=task.workflow_type,
            activity_id=local.activity_id,
            scheduled_event_id=0,
        )

        def ended(done: LocalActivityDone) -> None:
            go_on = partial(self._on_local_done, done)
            self._runner.submit(partial(self._step, held, go_on))

        self._local.start(local, origin, task.task_queue, ended)

    def _on_local_done(self, done: LocalActivityDone, held: InHand, seat: Seat) -> None:
        now_ms = epoch_ms(self._clock)
        turn = self._at_work(
            held, seat, lambda replay: replay.local_activity_done(done, now_ms=now_ms)
        )
        self._after(held, turn, seat)

    # --- answers --------------------------------------------------------------------------------

    def _complete(self, held: InHand, turn: Turn, seat: Seat) -> None:
        task, kept, place = held.the_task, held.kept, self._place
        assert kept is not None, "it has just had a turn"
        kept.closed = turn.closed
        if not task.scheduled_event_id:
            self._answer_queries(held, seat)
            return
        queries = self._query(held, seat)
        self._local.drop(task.run.run_id)
        if not self._end(held, 1 + len(queries)):
            return
        self._tell_queries(held, queries)
        kept.answered = task_id(task)
        answer = answers.WorkflowTaskCompleted(
            run=task.run,
            scheduled_event_id=task.scheduled_event_id,
            attempt=task.attempt,
            identity=place.identity,
            worker_id=place.worker_id,
            commands=turn.commands,
            started_ms=held.started_ms,
            sticky=held.admitted and not self._closing,
            sticky_timeout_ms=self._sticky_ms,
            current_details=turn.current_details,
            version=self._version,
            versioning_behavior=self._behavior(task.workflow_type),
        )
        if not held.admitted:
            self._close(kept)
        self._reporter.answer(task.shard, answer, partial(self._finish, held))

    def _behavior(self, workflow_type: str) -> int:
        """What a new version means for runs of ``workflow_type``, of a worker that has one."""
        definition = self._workflows.find(workflow_type)
        if not self._version or definition is None:
            return 0
        return int(definition.versioning_behavior or self._default_behavior)

    def _answer_queries(self, held: InHand, seat: Seat) -> None:
        """End a task that is only about queries."""
        queries = self._query(held, seat)
        if not self._end(held, 1 + len(queries)):
            return
        self._tell_queries(held, queries)
        if held.kept is not None and not held.admitted:
            self._close(held.kept)
        self._finish(held)

    def _query(self, held: InHand, seat: Seat) -> list[tuple[QueryRequest, QueryAnswer]]:
        queries = held.the_task.queries
        if not queries:
            return []
        now_ms = epoch_ms(self._clock)
        found = []
        for query in queries:
            if 0 < query.deadline_ms < now_ms:
                continue  # nobody waits for it any more
            answer = self._at_work(held, seat, partial(Replay.query, request=query))
            found.append((query, answer))
        return found

    def _tell_queries(
        self, held: InHand, queries: Sequence[tuple[QueryRequest, QueryAnswer]]
    ) -> None:
        for query, answer in queries:
            self._reporter.answer_query(query, answer, partial(self._finish, held))

    def _drop(self, held: InHand, failure: Failure) -> None:
        """End a task without an answer to history."""
        if self._end(held, 1 + len(held.the_task.queries)):
            self._throw_away(held)
            self._refuse_queries(held, failure)
            self._finish(held)

    def _refuse_queries(self, held: InHand, failure: Failure) -> None:
        for query in held.the_task.queries:
            answer = QueryAnswer(error="failed", failure=failure)
            self._reporter.answer_query(query, answer, partial(self._finish, held))

    def _fail(
        self, held: InHand, cause: TaskFailedCause, failure: Failure, *, stuck: bool = False
    ) -> None:
        """The workflow task has failed. ``stuck``: the replay is still at work."""
        task, place = held.the_task, self._place
        log.error(
            "workflow task of %s %s (attempt %d) failed, %s: %s\n%s",
            task.workflow_type,
            task.run.workflow_id,
            task.attempt,
            cause.value,
            failure.message,
            failure.stack_trace,
        )
        if not self._end(held, 1 + len(task.queries)):
            return
        self._throw_away(held, stuck=stuck)
        self._refuse_queries(held, failure)
        if not task.scheduled_event_id:
            self._finish(held)
            return
        answer = answers.WorkflowTaskFailed(
            run=task.run,
            scheduled_event_id=task.scheduled_event_id,
            attempt=task.attempt,
            identity=place.identity,
            worker_id=place.worker_id,
            cause=cause.value,
            failure=failure,
            started_ms=held.started_ms,
        )
        self._reporter.answer(task.shard, answer, partial(self._finish, held))

    def _on_stuck(self, held: InHand, stack: str) -> None:
        """Workflow code has not come back, and its thread was given up."""
        failure = failures.application(
            "Potential deadlock detected: workflow didn't yield within"
            f" {self._limit_s or 0:g} second(s)",
            "DeadlockError",
        )
        failure = msgspec.structs.replace(failure, stack_trace=stack[-failures.TEXT_MAX :])
        self._fail(held, TaskFailedCause.DEADLOCK, failure, stuck=True)

    # --- ends -----------------------------------------------------------------------------------

    def _end(self, held: InHand, parts: int = 1) -> bool:
        """``held`` is over when `_finish` was called ``parts`` times; False if it was ended."""
        with self._lock:
            if held.ended:
                return False
            held.ended = True
            held.untold = parts
        held.passage.ended()
        return True

    def _finish(self, held: InHand) -> None:
        """A part of what follows from ``held`` is safe with the broker."""
        with self._lock:
            held.untold -= 1
            if held.untold:
                return
            self._held.pop(held, None)
            self._slots.release(held)
            following = None if held.task is None else self._leave(held)
            homeless = self._homeless.popleft() if self._homeless else None
        held.delivery.ack()
        held.source.released()
        if following is not None:
            self._runner.submit(partial(self._step, following, self._begin))
        if homeless is not None:
            self._runner.submit(partial(self._step, homeless, self._activate))

    def _leave(self, held: InHand) -> InHand | None:
        """The run is free for its next task, which is returned if it is here."""
        run_id = held.run.run_id
        if held.admitted and held.kept is not None:
            self.cache.put_back(run_id, closed=held.kept.closed)
        waiting = self._runs[run_id]
        if waiting:
            return waiting.popleft()
        del self._runs[run_id]
        return None

    def _throw_away(self, held: InHand, *, stuck: bool = False) -> None:
        """The replay of ``held`` is of no use any more."""
        kept, held.kept = held.kept, None
        self._local.drop(held.run.run_id)
        if held.admitted:
            held.admitted = False
            with self._lock:
                self.cache.remove(held.run.run_id)
        if kept is not None and not stuck:
            self._close(kept)

    def _close(self, kept: Kept) -> None:
        """Close a replay that is no more at work: by itself, because it may get stuck, too."""

        def on_stuck(stack: str) -> None:
            log.error("workflow %s does not let itself be closed:\n%s", kept.run, stack)

        def close(seat: Seat) -> None:
            with seat.watched(self._limit_s, on_stuck):
                kept.replay.close()

        self._runner.submit(close)

    def _give_back(self, held: InHand, to: QueueName | None = None) -> None:
        """Let somebody else do it; ``to``: not where it came from, but there."""
        self._asking.pop(held, None)
        if not self._end(held):
            return
        self._throw_away(held)
        done = partial(self._finish, held)
        queue = held.source.queue
        if queue.kind is Kind.STICKY:
            self._reporter.abandon(held.delivery, done)
        elif queue.kind is Kind.DETOUR:
            self._returns.bring_back(held.delivery.message, done)
        else:
            self._returns.give_back(held.delivery.message, to or queue, done)

    # --- life -----------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Tell history of tasks that take long; watch over threads and local activities."""
        for held in list(self._held):
            task = held.task
            if task is None or held.ended or not task.scheduled_event_id or now < held.progress_at:
                continue
            held.progress_at = now + task.task_timeout_ms / 2000
            self._reporter.tell(
                task.shard,
                WorkflowTaskProgress(
                    run=task.run,
                    scheduled_event_id=task.scheduled_event_id,
                    attempt=task.attempt,
                    identity=self._place.identity,
                    worker_id=self._place.worker_id,
                    started_ms=held.started_ms or epoch_ms(self._clock),
                ),
            )
        self._local.tick(now)
        self._runner.tick(now)

    def close_intake(self) -> None:
        """Begin nothing more: what waits and what still comes is given back."""
        self._closing = True
        with self._lock:
            homeless = list(self._homeless)
            self._homeless.clear()
        for held in (*homeless, *list(self._asking)):
            self._give_back(held)

    def leave_behind(self) -> None:
        """Give back what is still in hand, because the worker ends."""
        for held in list(self._held):
            if held.task is not None:
                self._local.drop(held.run.run_id)
                self._give_back(held)

    def close(self) -> None:
        """Throw all replays away."""
        with self._lock:
            gone = self.cache.clear()
        for kept in gone:
            self._close(kept)


class Kept:
    """A run in the cache.

    Attributes:
        answered: The last task that was answered, see `task_id`.
        closed: The run has ended.
    """

    __slots__ = ("answered", "closed", "replay", "run", "shard")

    def __init__(self, run: RunKey, shard: int, replay: Replay) -> None:
        self.run = run
        self.shard = shard
        self.replay = replay
        self.answered: tuple[int, int] | None = None
        self.closed = False


def task_id(task: WorkflowTask) -> tuple[int, int]:
    """What tells a run's tasks apart."""
    return task.scheduled_event_id, task.attempt


def _scheduling(task: WorkflowTask) -> Event:
    """The event that scheduled ``task``."""
    return WorkflowTaskScheduled(
        event_id=task.scheduled_event_id,
        time_ms=task.scheduled_ms,
        task_queue=task.task_queue,
        start_to_close_ms=task.task_timeout_ms,
        attempt=task.attempt,
    )


class InHand:
    """A workflow task in this worker's hands, from its delivery to its acknowledgement.

    Attributes:
        kept: The run's replay; ``None`` while there is none.
        admitted: It is in the cache.
        rebuilt: What was in the cache did not fit, and was replayed anew.
        events: Those gathered so far for the next turn.
        last_event_id: The last of the history, as far as it had to be asked for.
        ended: What becomes of it is decided, and is being told.
        untold: How many parts of that are not confirmed.
    """

    __slots__ = (
        "admitted",
        "delivery",
        "ended",
        "events",
        "kept",
        "last_event_id",
        "passage",
        "progress_at",
        "rebuilt",
        "source",
        "started_ms",
        "task",
        "untold",
    )

    def __init__(self, delivery: Delivery, source: Source, now: float) -> None:
        self.delivery = delivery
        self.source = source
        self.task: WorkflowTask | None = None
        self.kept: Kept | None = None
        self.admitted = False
        self.rebuilt = False
        self.events: list[Event] = []
        self.last_event_id = 0
        self.started_ms = 0
        self.progress_at = now + PROGRESS_AFTER_S
        self.ended = False
        self.untold = 0
        self.passage = FREE

    @property
    def the_task(self) -> WorkflowTask:
        """The task, which has been read."""
        assert self.task is not None, "it has been read"
        return self.task

    @property
    def run(self) -> RunKey:
        """The run that it is about."""
        return self.the_task.run

    @property
    def the_kept(self) -> Kept:
        """The run's replay, which has been made."""
        assert self.kept is not None, "it has been made"
        return self.kept

    @property
    def next_event_id(self) -> int:
        """The event after those that the replay and this task have."""
        if self.events:
            return self.events[-1].event_id + 1
        return 1 if self.kept is None else self.kept.replay.last_event_id + 1
