"""From delivery to report: takes deliveries, runs what is to be run, and has the end told.

A delivery's way: the poller hands it over, `intake` decides what becomes of it, an executor runs
it, the `reporter` tells how it ended, and only then is it acknowledged.
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from tq_broker.activity import CompleteAsyncError
from tq_broker.clock import Clock, epoch_ms
from tq_broker.common import ActivityIDConflictPolicy
from tq_broker.exceptions import Malformed, TimeoutType, TqBrokerError
from tq_broker.model import control, envelope
from tq_broker.model import failure as failures
from tq_broker.model.composition import way_of
from tq_broker.model.failure import Failure
from tq_broker.model.limits import Side
from tq_broker.model.names import Kind, Names, QueueName
from tq_broker.model.parts import NO_PARTS, PartTable
from tq_broker.model.passes import What
from tq_broker.model.requests import shard_of
from tq_broker.model.sessions import SESSION_TYPE
from tq_broker.model.tasks import ActivityTask, Status
from tq_broker.model.workflow_tasks import ClaimStart, RunKey, StartGranted
from tq_broker.queues import routing, topology
from tq_broker.queues.broker import Delivery
from tq_broker.queues.sender import Sender
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.worker import back_off, found, intake
from tq_broker.worker.attempt import Attempt, Place
from tq_broker.worker.begins import BeginCounts
from tq_broker.worker.conclusion import claim_token, failure_of, shut_down, twin_tokens
from tq_broker.worker.executors import Executor
from tq_broker.worker.inquiries import Inquiries
from tq_broker.worker.insistence import Then
from tq_broker.worker.intake import Action, Decision, Known, Situation
from tq_broker.worker.keeper import Keeper
from tq_broker.worker.notices import Notices
from tq_broker.worker.passage import FREE, Passage
from tq_broker.worker.poller import Source
from tq_broker.worker.recent import RecentTasks
from tq_broker.worker.registry import Registered, Registry
from tq_broker.worker.reporter import Reporter
from tq_broker.worker.roster import UsheredPassage, covering_mark
from tq_broker.worker.slots import Slots
from tq_broker.worker.table import Held, Key, Table, key_of
from tq_broker.worker.tuning import ActivitySlotInfo
from tq_broker.worker.type_slots import TypePassage, TypeSlots

log = logging.getLogger(__name__)

HOLD_S = 0.05
"""How long a task may wait here for a slot before others get it."""
COVER_S = 10.0
"""How long after limits of parts have changed running attempts are looked for that these do not
count yet: one may be about to begin that was taken before."""
LOST_MAX = 1000
"""Lost attempts that are remembered, in case that limits of parts have come into force at the time
of which this worker had not heard."""
CLAIM_WITHIN_S = 10.0
BACK_OFF_WITHIN_S = 30.0


class Handler:
    """Handles the deliveries of one worker; the `Owner` of what its executors run.

    Thread-safe: deliveries come on the broker's reading thread, ends on the executors' threads,
    deadlines on the worker's supervisor. The parts that call back into it are given to it by
    the worker after they are made.
    """

    keeper: Keeper
    notices: Notices
    inquiries: Inquiries
    settings: SettingsLog
    executors: Mapping[str, Executor]
    home_of: Callable[[QueueName, str], QueueName | None] = staticmethod(lambda queue, id: None)
    """Where a task of a queue is to go instead, by the id that ramps go by."""

    def __init__(
        self,
        registry: Registry,
        table: Table,
        reporter: Reporter,
        sender: Sender,
        place: Place,
        slots: Slots,
        by_type: Mapping[str, int] | None = None,
    ) -> None:
        """``by_type``: how many of a type may run at a time."""
        self.recent = RecentTasks()
        self.begins = BeginCounts(place.clock)
        self._registry = registry
        self._table = table
        self._reporter = reporter
        self._sender = sender
        self._names: Names = sender.names
        self._place = place
        self._clock: Clock = place.clock
        self._slots = slots
        self._types = TypeSlots(by_type or {})
        self._waiting: deque[_Early] = deque()
        self._early: dict[Key, _Early] = {}
        self._lock = threading.Lock()
        # Held from the decision that a slot is free until it is taken.
        self._turn = threading.RLock()
        self._claiming = 0
        self._asking: dict[str, _Early] = {}
        self._limited: dict[_Early, None] = {}
        """Tasks that wait for a limit of their task queue, and are for nobody else."""
        self._covering: dict[str, tuple[PartTable, float]] = {}
        """The limits of parts that are heeded, and until when what runs already is looked for."""
        self._lost_lately: deque[tuple[float, str, ActivityTask]] = deque(maxlen=LOST_MAX)
        self._unreported = 0
        self._closing = False

    @property
    def unreported(self) -> int:
        """Ends and returns that the broker has not confirmed yet, and claims under way."""
        return self._unreported + self._claiming

    @property
    def busy(self) -> bool:
        """Whether code runs, or may be about to because history was asked for leave."""
        return bool(self._table.running() or self._asking)

    @property
    def free_slots(self) -> int:
        """Slots that nothing runs in or waits for, and that tasks may be taken for."""
        return self._types.within(self._unwaited())

    @property
    def withheld(self) -> int:
        """Free slots that no tasks are to be taken for, because of their types."""
        free = self._unwaited()
        return max(0, free - self._types.within(free))

    def _unwaited(self) -> int:
        if not self._types:
            return self._free_slots() - len(self._waiting)
        with self._turn:
            startable = sum(self._types.has_room(one.task.activity_type) for one in self._waiting)
        return self._free_slots() - startable

    def adjust_slots(self) -> None:
        """Ask for more slots, or give some back; done often."""
        with self._turn:
            self._slots.tick(self._claiming + len(self._asking) + len(self._waiting))
        self._start_waiting()

    def close_intake(self) -> None:
        """Begin nothing more: what is waiting and what still comes is given back."""
        self._closing = True
        self.give_back_waiting(all_of_them=True)
        while self._limited:
            self.give_back_limited()

    def cover(self, task_queue: str, make: Callable[[], Passage]) -> None:
        """A limit comes into force: what runs already counts as well."""
        for attempt in self._table.open():
            typed = attempt.passage if isinstance(attempt.passage, TypePassage) else None
            passage = attempt.passage if typed is None else typed.inner
            is_free = passage is FREE and attempt.code_running
            if is_free and attempt.task.task_queue == task_queue:
                if typed is None:
                    attempt.passage = make()
                else:
                    typed.inner = make()
                if not attempt.code_running:  # since we looked
                    attempt.passage.ended()

    def cover_parts(self, task_queue: str) -> None:
        """What runs already counts for limits of its type or key that have come into force; done
        often."""
        table, now = self.settings.part_table(task_queue) or NO_PARTS, self._clock.monotonic()
        heeded, until = self._covering.get(task_queue, (None, now))
        if heeded is not table:
            until = now + COVER_S
            self._covering[task_queue] = table, until
            self._tell_lost(task_queue, now)
        if now > until:
            return
        for attempt in self._table.open():
            if attempt.window.task_queue == task_queue and attempt.code_running:
                self._cover_parts(attempt, table)

    def _tell_lost(self, task_queue: str, now: float) -> None:
        """Whoever had them may have heard of the limits before this worker has."""
        for at, lost_from, task in self._lost_lately.copy():
            if lost_from == task_queue and now < at + COVER_S:
                self._reporter.roster.tell(covering_mark(task, task_queue), What.ENDED, _nothing)

    def _cover_parts(self, attempt: Attempt, table: PartTable) -> None:
        task = attempt.task
        parts = table.parts(task.activity_type, task.rate_limit_key)
        is_counted = any(table.of(part).concurrency is not None for part in parts)
        is_covered = task.pass_mark or isinstance(attempt.passage, UsheredPassage)
        if is_covered or not is_counted or task.activity_type == SESSION_TYPE:
            return
        passage = self._reporter.roster.covering(task, attempt.window.task_queue)
        if not self._table.limit(attempt, passage):
            return
        # Only now: whoever gets the task of somebody who was killed tells of the end.
        self._reporter.roster.write(passage, task, parts)
        if not attempt.code_running:  # since we looked
            passage.ended()

    def find(self, activity_id: str) -> list[control.FoundTask]:
        """What is here of the activity with this id, or was lately."""
        attempts = self._table.with_id(activity_id)
        with self._lock:
            early = [one.task for one in self._early.values()]
        waiting = [task for task in early if task.activity_id == activity_id]
        tasks = [*map(found.open_attempt, attempts), *map(found.in_hand, waiting)]
        return tasks or found.taken(self.recent.of(activity_id))

    # --- taking ---------------------------------------------------------------------------------

    def on_deliveries(self, consumer: Source, deliveries: Sequence[Delivery]) -> None:
        """Deliveries of a task queue have come."""
        begun: dict[str, list[Attempt]] = {}
        now_ms = epoch_ms(self._clock)
        for delivery in deliveries:
            try:
                with self._turn:
                    attempt = self._take(consumer, delivery, now_ms)
            except Malformed as error:
                self._park(consumer, delivery, error.reason)
                continue
            if attempt is not None:
                begun.setdefault(attempt.where, []).append(attempt)
        for where, attempts in begun.items():
            self.executors[where].start(attempts)

    def _take(self, consumer: Source, delivery: Delivery, now_ms: int) -> Attempt | None:
        task = self._read(consumer, delivery)
        self.recent.took(task, now_ms)
        registered = self._registry.find(task.activity_type)
        early = _Early(task, registered, delivery, consumer, self._clock.monotonic())
        if task.pass_mark:
            is_again = self._is_redelivered(early)
            early.passage = self._reporter.roster.passage(task.pass_mark, was_begun=is_again)
        elif self._is_redelivered(early) and self.settings.part_table(consumer.task_queue):
            # Whoever had it may have told its usher that it runs.
            mark = covering_mark(task, consumer.task_queue)
            early.passage = self._reporter.roster.passage(mark, was_begun=True)
        try:
            return self._act(early, self._decide(early, self._known(task), now_ms), now_ms)
        except Malformed as error:
            self._park_early(early, error.reason)
            return None

    def _act(self, early: _Early, decision: Decision, now_ms: int) -> Attempt | None:
        """Act on the first decision about ``early``. Raises `Malformed`."""
        consumer, task = early.window, early.task
        if decision.action is Action.LOST and early.passage is FREE:
            self._lost_lately.append((early.since, consumer.task_queue, task))
        if decision.action in intake.BEGINS:
            passage = consumer.admit(functools.partial(self._admitted, early))
            if passage is None and consumer.waits:
                self._early[key_of(task)] = early
                self._limited[early] = None
                return None
            if passage is None:
                decision = intake.LIMITED
            else:
                early.passage = early.passage.within(passage)
                self._take_type(early, decision)
        if decision.action is Action.RUN:
            return self._begin(early, now_ms)
        self._dispose(decision, early)
        return None

    def _admitted(self, early: _Early, passage: Passage) -> None:
        """A limit allows ``early`` now, which has waited for it; on the limits' thread."""
        begun: Attempt | None = None
        with self._turn:
            early.passage = early.passage.within(passage)
            if early not in self._limited:
                passage.unused()  # given back
                return
            del self._limited[early]
            now_ms = epoch_ms(self._clock)
            decision = self._decide(early, Known.NO, now_ms)
            self._take_type(early, decision)
            try:
                if decision.action is Action.RUN:
                    begun = self._begin(early, now_ms)
                else:
                    self._dispose(decision, early)
            except Malformed as error:
                self._park_early(early, error.reason)
        if begun is not None:
            self.executors[begun.where].start([begun])

    def _take_type(self, early: _Early, decision: Decision) -> None:
        """``early`` is to begin: count it, if its type is limited."""
        if not self._types or decision.action not in intake.STARTS:
            return
        type_ = early.task.activity_type
        with self._lock:
            self._types.began(type_)
        if self._types.is_limited(type_):
            early.passage = TypePassage(early.passage, functools.partial(self._type_ended, type_))

    def _type_ended(self, activity_type: str) -> None:
        with self._lock:
            self._types.ended(activity_type)

    def _slots_for(self, task: ActivityTask) -> int:
        """Free slots, for a task of that type."""
        if self._types.has_room(task.activity_type):
            return self._unwaited()
        self._types.refused()
        return 0

    def _decide(self, early: _Early, known: Known, now_ms: int) -> Decision:
        task = early.task
        return intake.decide(
            task,
            Situation(
                now_ms=now_ms,
                redelivered=self._is_redelivered(early),
                known=known,
                cancelled=self.settings.is_cancelled(task.activity_id, task.scheduled_ms),
                serves=early.registered is not None,
                registered=self._registry.types,
                answerable=self._is_answerable(task),
                closing=self._closing,
                free_slots=self._slots_for(task),
                moved=self._is_moved(early, now_ms),
                apart=self._is_apart(early),
            ),
        )

    @staticmethod
    def _is_redelivered(early: _Early) -> bool:
        delivery = early.delivery
        return delivery.redelivered or envelope.HANDED_OUT in delivery.message.headers

    def _is_apart(self, early: _Early) -> bool:
        """Whether a limit of its type or key holds it back, or one that is kept together with such.

        What a detour brings has none: it is another task queue's. Sessions have their slots, and no
        usher."""
        task, task_queue = early.task, early.window.task_queue
        table = self.settings.part_table(task_queue)
        if table is None or task.pass_mark or task.activity_type == SESSION_TYPE:
            return False
        key = task.rate_limit_key
        return table.is_limited(task.activity_type, key) or (
            bool(key) and self.settings.back_off(task_queue, key) is not None
        )

    @staticmethod
    def _read(consumer: Source, delivery: Delivery) -> ActivityTask:
        task = envelope.read_task(delivery.message, consumer.task_queue)
        if task.rule and task.task_queue == consumer.task_queue:
            # RabbitMQ has brought it home from a detour, and could not write that down.
            return msgspec.structs.replace(task, rule="", fell_back=task.rule)
        return task

    def _is_moved(self, early: _Early, now_ms: int) -> bool:
        """Whether another version or a rule's target is to have the task. History knows the rules
        itself."""
        task, queue = early.task, early.window.queue
        if task.route is None and self.home_of(queue, routing.ramp_id(task)) is not None:
            return True
        rules = self.settings.rules
        if not rules or task.workflow is not None or not routing.may_be_moved(task):
            return False
        return routing.by_rule(self._names, routing.facts(task), rules, now_ms) is not None

    def _is_answerable(self, task: ActivityTask) -> bool:
        if task.workflow is not None:
            return task.reply_to is not None and self._names.owns(task.reply_to, Kind.HISTORY)
        return task.reply_to is None or self._names.owns(task.reply_to, Kind.REPLY)

    def _known(self, task: ActivityTask) -> Known:
        return Known.OPEN if key_of(task) in self._early else self._table.known(task)

    def _free_slots(self) -> int:
        return self._slots.capacity - self._table.running() - self._claiming - len(self._asking)

    def _begin(self, early: _Early, now_ms: int) -> Attempt:
        """The attempt begins: from here on its end will be told."""
        task, registered = early.task, early.registered
        assert registered is not None, "what is not served does not begin"
        body = envelope.read_task_body(task, self._place.converter)
        with self._lock:  # its delivery may be exchanged in this very moment
            attempt = Attempt(
                task,
                body,
                registered,
                early.delivery,
                self._place,
                window=early.window,
                now=self._clock.monotonic(),
                now_ms=now_ms,
                on_heartbeat=(self.keeper if task.workflow is None else self.notices).beat,
            )
            attempt.announced = task.workflow is not None and task.workflow.claim
            attempt.passage = early.passage
            self._table.add(attempt)
            self._slots.take(attempt, ActivitySlotInfo(task.activity_type))
            self._early.pop(key_of(task), None)
        self.begins.begun(
            task.task_queue,
            Side.ACTIVITY,
            since_ms=task.attempt_scheduled_ms or task.scheduled_ms,
            way=way_of(early.window.queue),
            priority=task.priority,
            key=task.rate_limit_key,
        )
        if self.settings.is_cancelled(task.activity_id, task.scheduled_ms):  # since intake looked
            attempt.request_cancel()
        if task.schedule_to_start_ms:
            self.notices.begun(attempt)
        return attempt

    def _dispose(self, decision: Decision, early: _Early) -> None:
        """Act on a decision other than to run it now."""
        match decision.action:
            case Action.HOLD:
                self._early[key_of(early.task)] = early
                self._waiting.append(early)
                if self._closing:  # since intake looked
                    self.give_back_waiting(all_of_them=True)
            case Action.CLAIM:
                self._claim_in_background(early)
            case Action.ASK:
                self._ask(early)
            case Action.GIVE_BACK:
                self._give_back(early)
            case Action.DIVERT:
                self._divert(early)
            case Action.SET_APART:
                self._set_apart(early)
            case Action.ADOPT:
                self._adopt(early)
            case Action.DROP:
                self._let_go(early)
            case Action.LOST if (
                early.task.id_retention_ms
                and early.task.attempt == 1
                and early.task.workflow is None
            ):
                # It may be a second start, which nobody has begun and nobody may begin.
                self._claim_in_background(early, is_lost=True)
            case Action.LOST:
                self._fail(early, intake.lost())
            case Action.END if decision.failure is not None:
                self._fail(early, decision.failure)
            case Action.PARK:
                self._park_early(early, decision.reason)
            case unknown:
                raise AssertionError(f"{unknown} is not for here")

    def _fail(self, early: _Early, failure: Failure) -> None:
        """The attempt ends without having run here."""
        early.passage.unused()
        task = early.task
        body = envelope.read_task_body(task, self._place.converter)
        self._early[key_of(task)] = early

        def told() -> None:
            self._table.note_ended(task)
            self._let_go(early)

        done = self._reported(told)
        self._reporter.failed(task, body, failure, epoch_ms(self._clock), done)

    def _park(self, consumer: Source, delivery: Delivery, reason: str) -> None:
        done = self._reported(Held(delivery, consumer).let_go)
        self._reporter.park(delivery.message, consumer.name, reason, done)

    def _give_back(self, early: _Early) -> None:
        early.passage.unused()
        with self._lock:
            # The fresh copy may come here, and must not be taken for the one in hand.
            self._early.pop(key_of(early.task), None)
        done = self._reported(Held(early.delivery, early.window).let_go)
        message, queue = early.delivery.message, early.window.queue
        if queue.kind is Kind.DETOUR:
            # Its own task queue has it at once, not when it has waited here in vain once more.
            self._reporter.bring_back(message, done)
        else:
            # The fresh copy has no pass: nobody who gets it could tell of this one.
            early.passage.settled(lambda: self._reporter.give_back(message, queue, done))

    def _divert(self, early: _Early) -> None:
        """Send a task to where a traffic rule wants it."""
        done = self._reported(Held(early.delivery, early.window).let_go)
        message = envelope.forwarded(early.delivery.message)
        self._reporter.dispatch(early.task, message, epoch_ms(self._clock), done)

    def _set_apart(self, early: _Early) -> None:
        """Let a task wait where no worker sits on it; its usher sends it on."""
        done = self._reported(Held(early.delivery, early.window).let_go)
        queue = self._names.queue(Kind.ANTEROOM, early.window.task_queue)
        self._reporter.give_back(early.delivery.message, queue, done)

    def _adopt(self, newcomer: _Early) -> None:
        """Another copy of a task in hand: from now on it is held in place of the one before,
        which was lost with its connection, or is superfluous.
        """
        with self._lock:
            early = self._early.get(key_of(newcomer.task))
            if early is not None:
                before: Held | None = Held(early.delivery, early.window)
                early.delivery, early.window = newcomer.delivery, newcomer.window
            else:
                before = self._table.exchange(
                    newcomer.task, newcomer.delivery, newcomer.window, self._clock.monotonic()
                )
        # None: its end has been told in this very moment.
        (before or Held(newcomer.delivery, newcomer.window)).let_go()

    def _claim_in_background(self, early: _Early, *, is_lost: bool = False) -> None:
        self._early[key_of(early.task)] = early
        with self._lock:
            self._claiming += 1
        self._sender.in_background(lambda: self._claim(early, is_lost))

    def _claim(self, early: _Early, is_lost: bool) -> None:
        """Claim the task's id on the broker, and run it or answer for it; blocks."""
        task = early.task
        queue = self._names.claim(task.task_queue, task.activity_id)
        deadline = self._clock.monotonic() + CLAIM_WITHIN_S

        def claim(token: str) -> bool:
            plan = topology.claim_queue(self._names, queue, token, task.id_retention_ms)
            return self._sender.broker.claim(plan, deadline)

        try:
            mine = claim(claim_token(task))
            # Its caller gets the outcome of the copy that has the claim, and no refusal before.
            superfluous = (
                not mine
                and task.attempt == 1
                and task.id_conflict is ActivityIDConflictPolicy.FAIL
                and any(map(claim, twin_tokens(task)))
            )
        except TqBrokerError as error:
            log.warning("id of %s not claimed: %s", task.activity_id, error)
            follows = self._lost if is_lost else self._give_back
        else:
            # Only the holder of a claim makes further attempts, so these need not win it again.
            if superfluous:
                follows = self._let_go
            elif not mine and task.attempt == 1:
                follows = self._refer
            else:
                follows = self._lost if is_lost else self._start
        with self._turn:
            try:
                follows(early)
            except Malformed as error:
                self._park_early(early, error.reason)
            finally:
                with self._lock:
                    self._claiming -= 1
        self._start_waiting()

    def _lost(self, early: _Early) -> None:
        self._fail(early, intake.lost())

    def _refer(self, early: _Early) -> None:
        """Its id was started before: tell the caller where the outcome is, or that it is."""
        early.passage.unused()
        task = early.task
        queue = self._names.claim(task.task_queue, task.activity_id)
        joins = task.id_conflict is ActivityIDConflictPolicy.USE_EXISTING
        status = Status.JOINED if joins else Status.REFUSED
        done = self._reported(lambda: self._let_go(early))
        self._reporter.notice(task, status, done, result=msgspec.json.encode(str(queue)))

    def _start(self, early: _Early) -> None:
        """Run a task that was claimed, or that has waited for a slot. Raises `Malformed`."""
        if self._closing:
            self._give_back(early)
        else:
            self._run(early)

    def _run(self, early: _Early) -> None:
        attempt = self._begin(early, epoch_ms(self._clock))
        self.executors[attempt.where].start([attempt])

    def _park_early(self, early: _Early, reason: str) -> None:
        early.passage.unused()
        with self._lock:
            if self._early.get(key_of(early.task)) is early:
                del self._early[key_of(early.task)]
        window, delivery = early.window, early.delivery
        early.passage.settled(lambda: self._park(window, delivery, reason))

    def _start_waiting(self) -> None:
        """Run what waits for a slot, as far as there are free ones."""
        while self._waiting and not self._closing:
            with self._turn:
                if self._free_slots() <= 0:
                    return
                early = self._next_waiting()
                if early is None:
                    return
                self._start_now(early)

    def _next_waiting(self) -> _Early | None:
        """The first one that may begin, taken out of those that wait."""
        for early in self._waiting:
            if self._types.has_room(early.task.activity_type):
                self._waiting.remove(early)
                return early
        return None  # given back in this very moment, or of types that are full

    def _start_now(self, early: _Early) -> None:
        """There is a slot for what has waited for one."""
        decision = intake.how_to_start(early.task)
        self._take_type(early, decision)
        if decision.action is not Action.RUN:
            self._dispose(decision, early)
            return
        try:
            self._start(early)
        except Malformed as error:
            self._park_early(early, error.reason)

    def _ask(self, early: _Early) -> None:
        """Ask history for leave to run an attempt that must not run more than once."""
        task, place = early.task, self._place
        origin = task.workflow
        assert origin is not None, "only a workflow's activity asks"
        request_id = self._sender.ids.next()
        self._early[key_of(task)] = self._asking[request_id] = early
        self.inquiries.ask(
            shard_of(origin.workflow_id),
            ClaimStart(
                run=RunKey(origin.workflow_id, origin.run_id),
                scheduled_event_id=origin.scheduled_event_id,
                attempt=task.attempt,
                request_id=request_id,
                identity=place.identity,
                host=place.host,
                worker_id=place.worker_id,
            ),
            lambda reply: self._answered(
                request_id, isinstance(reply, StartGranted) and reply.granted
            ),
        )

    def _answered(self, request_id: str, granted: bool) -> None:
        with self._turn:
            early = self._asking.pop(request_id, None)
            if early is None:
                return  # given back
            if not granted:
                self._let_go(early)
            else:
                # Also while the worker shuts down: nobody else would be given leave.
                try:
                    self._run(early)
                except Malformed as error:
                    self._park_early(early, error.reason)
        if not granted:
            self._start_waiting()

    def give_back_asking(self) -> None:
        """Put back on their queue those for which history has given no leave so far."""
        while self._asking:
            with self._turn:
                for early in [self._asking.pop(request_id) for request_id in list(self._asking)]:
                    self._give_back(early)

    def give_back_waiting(self, *, all_of_them: bool = False) -> None:
        """Put tasks that have waited for a slot for too long back on their queue."""
        latest = self._clock.monotonic() - HOLD_S
        while self._waiting:
            with self._turn:
                if not self._waiting or not (all_of_them or self._waiting[0].since <= latest):
                    return
                early = self._waiting.popleft()
            self._give_back(early)

    def give_back_limited(self, held_s: float = 0.0) -> None:
        """Put tasks that wait for a limit, and were held for so long, back on their queue, from
        where they come again at once: RabbitMQ bears with what is held for half an hour only."""
        if not self._limited:
            return
        latest = self._clock.monotonic() - held_s
        with self._turn:
            for early in list(itertools.takewhile(lambda one: one.since <= latest, self._limited)):
                del self._limited[early]
                self._give_back(early)

    # --- ends of code: `tq_broker.worker.executors.Owner` -----------------------------------------

    def returned(self, attempt: Attempt, result: bytes) -> None:
        self._code_stopped(attempt)
        if self._table.end(attempt):
            self._complete(attempt, result)

    def raised(self, attempt: Attempt, error: BaseException) -> None:
        if isinstance(error, CompleteAsyncError):
            self._code_stopped(attempt)
            if self._table.awaits(attempt) and not attempt.windowless:
                self.keeper.keep(attempt)
            return
        failure = failure_of(
            error, cancel_requested=attempt.cancel_requested, closing=self._closing
        )
        self.failed(attempt, failure)

    def failed(self, attempt: Attempt, failure: Failure) -> None:
        self._code_stopped(attempt)
        self.end(attempt, failure)

    def _code_stopped(self, attempt: Attempt) -> None:
        # In this order: what is free is never more than what is reserved.
        self._slots.release(attempt)
        self._table.stopped(attempt)
        attempt.passage.ended()
        self._start_waiting()

    # --- ends of attempts -------------------------------------------------------------------------

    def _complete(self, attempt: Attempt, result: bytes) -> None:
        task = attempt.task
        if task.reply_to is None and not task.id_retention_ms:
            self._release(attempt)
        else:
            done = self._reported(lambda: self._release(attempt))
            self._reporter.completed(task, result, attempt.started_ms, done)

    def end(self, attempt: Attempt, failure: Failure) -> None:
        """``attempt`` has failed, unless it has ended before; its code may still run."""
        if self._table.end(attempt):
            self._back_off(attempt.task, failure)
            self._reporter.failed(
                attempt.task,
                attempt.body,
                failure,
                attempt.started_ms,
                self._reported(lambda: self._release(attempt)),
                heartbeat=attempt.details,
            )

    def _back_off(self, task: ActivityTask, failure: Failure) -> None:
        """Tell everybody, if ``failure`` asks for more than a later attempt."""
        if not failure.back_off:
            return
        wanted = back_off.asked(task, failure, epoch_ms(self._clock), self._place.identity)
        if wanted is None:
            log.warning(
                "%s %s backs off by key, but has no rate_limit_key: nothing else is slowed",
                task.activity_type, task.activity_id,
            )  # fmt: skip
        elif back_off.is_news(wanted, self.settings.back_off(wanted.task_queue, wanted.key)):
            log.warning(
                "%s backs off for %d ms: %s",
                task.task_queue, wanted.until_ms - wanted.at_ms, wanted.reason,
            )  # fmt: skip
            deadline = self._clock.monotonic() + BACK_OFF_WITHIN_S
            self._sender.append(wanted, deadline, _not_told)

    def complete(self, attempt: Attempt, result: bytes) -> None:
        """``attempt`` was completed by its task token."""
        if self._table.end(attempt):
            self._complete(attempt, result)

    def time_out(self, attempt: Attempt, timeout: TimeoutType) -> None:
        """A deadline of ``attempt`` is over."""
        details = [_readable(raw) for raw in attempt.details or ()]
        self.end(attempt, failures.timed_out(timeout, details))
        self._abandon(attempt)

    def leave_behind(self) -> None:
        """End what is still open, because the worker does: it is retried elsewhere."""
        self.give_back_asking()
        for attempt in self._table.open():
            self.end(attempt, shut_down())
            self._abandon(attempt)

    def _abandon(self, attempt: Attempt) -> None:
        if attempt.code_running:
            attempt.request_cancel(self.executors[attempt.where].abandon)

    def request_cancel(self, activity_id: str, at_ms: int) -> None:
        """Cancellation of an activity was requested; of a start before ``at_ms`` (epoch ms)."""
        for attempt in self._table.with_id(activity_id):
            if attempt.task.scheduled_ms <= at_ms:
                attempt.request_cancel(self._interrupt)

    def interrupt_all(self) -> None:
        """Cancel whatever runs, because the worker shuts down."""
        for attempt in self._table.open():
            self._interrupt(attempt)

    def _interrupt(self, attempt: Attempt) -> None:
        if attempt.code_running:
            self.executors[attempt.where].cancel(attempt)

    # --- acknowledging ----------------------------------------------------------------------------

    def _release(self, attempt: Attempt) -> None:
        """What follows from ``attempt`` is safe with the broker."""
        attempt.passage.settled(lambda: self._table.release(attempt).let_go())

    def _let_go(self, early: _Early) -> None:
        """``early`` has been dealt with."""
        early.passage.unused()
        with self._lock:
            if self._early.get(key_of(early.task)) is early:
                del self._early[key_of(early.task)]
            held = Held(early.delivery, early.window)
        early.passage.settled(held.let_go)

    def _reported(self, then: Then) -> Then:
        """``then``, and it is known that this is not reported yet."""
        with self._lock:
            self._unreported += 1

        def done() -> None:
            then()
            with self._lock:
                self._unreported -= 1

        return done


class _Early:
    """A task in hand that does not run, or not yet: it waits for a slot, its id is being
    claimed, or what became of it is being told.
    """

    __slots__ = ("delivery", "passage", "registered", "since", "task", "window")

    def __init__(
        self,
        task: ActivityTask,
        registered: Registered | None,
        delivery: Delivery,
        window: Source,
        since: float,
    ) -> None:
        self.task = task
        self.registered = registered
        self.delivery = delivery
        self.window = window
        self.since = since
        self.passage: Passage = FREE


def _nothing() -> None:
    """Nothing waits for it."""


def _not_told(error: TqBrokerError | None) -> None:
    if error is not None:
        log.warning("other workers do not know of the back-off: %s", error)


def _readable(raw: msgspec.Raw) -> Any:
    """The value of heartbeat details; somebody else may have sent what nobody can read."""
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, RecursionError):
        return bytes(raw)[:80].decode("utf-8", "replace")
