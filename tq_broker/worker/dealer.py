"""The dealer of one side of a task queue: gives each fairness key its share of what begins.

Tasks of a task queue with fairness keys wait in its *fair* queue. All workers of the task queue
subscribe to the queue of the *dealers*, which has a single active consumer: RabbitMQ elects the
dealer, and the next one within milliseconds of its death. The dealer takes what waits, in the order
of `tq_broker.model.shares`, and puts it into the priority queue, from which all workers begin;
only so much ahead of them as keeps their slots busy (`tq_broker.worker.lead`).

Rules of this file:

* a task is acknowledged only when RabbitMQ has confirmed it in the next queue, so it is always in
  one. A death may leave it in two: so what is moved is told to the queue of the dealers first,
  where the next dealer reads it (`tq_broker.model.moves`);
* what comes back to the fair queue or a lane nobody has begun: it uses up no attempt;
* at most `IN_HAND_MAX` tasks stay in hand, those whose turn is next. The others go to the *lanes*
  (`tq_broker.model.lanes`), so the dealer sees soon what comes behind ten thousand tasks of
  somebody else, and its memory does not grow with the backlog, nor with the number of keys;
* who is elected knows nothing: the lanes come back once, and turns are counted anew.

Threads: `step` belongs to one thread; the rest may be called from any.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from tq_broker.clock import epoch_ms
from tq_broker.exceptions import Malformed
from tq_broker.model import envelope, moves, passes
from tq_broker.model.lanes import Lanes
from tq_broker.model.message import Message
from tq_broker.model.moves import Moves, Suspects, Verdict
from tq_broker.model.names import LANES, Kind, QueueName
from tq_broker.model.shares import Shares
from tq_broker.model.workflow_tasks import WORKFLOW_TASK
from tq_broker.queues.broker import Delivery, SubscribeOptions, Subscription
from tq_broker.queues.sender import Sender
from tq_broker.worker.inbox import Inbox
from tq_broker.worker.lead import Lead
from tq_broker.worker.reporter import Reporter

log = logging.getLogger(__name__)

IN_HAND_MAX = 2_000
KEEP = IN_HAND_MAX * 3 // 4
"""So many stay when there were more in hand."""
SHORT = IN_HAND_MAX // 4
"""With fewer in hand the nearest lane comes back."""
PREFETCH = IN_HAND_MAX * 3 // 2
"""More than ever stay in hand: who comes is always seen."""
LOOK_EVERY_S = 0.02
"""How often the dealer looks what was taken, while there is no room for what waits."""
GATHER_S = 1.0
"""A new dealer first looks at what waits already, for so long at the most."""
STATS_WITHIN_S = 5.0
CHECK_EVERY_S = 2.0
"""How often lanes are looked at that are taken for empty: RabbitMQ's count of a quorum queue may be
zero although something is there, if the queue does not answer in time."""
CHECK_UNUSED_EVERY_S = 60.0
"""The same where none of them was ever used, as far as this dealer knows."""
SETTLED_S = 2.0
"""Within this acknowledgements have been sent and written. What RabbitMQ keeps back of them is lost
with the connection (`tq_broker.queues.acks`)."""
ACQUIT_S = 20.0
"""What a dead dealer held may come back as late as this after the election of the next one:
RabbitMQ takes back each queue's on its own."""
BATCH = 500
"""Moves that are told together."""

Weight = Callable[[str], float | None]
"""The weight that the settings give a key; ``None``: that of its tasks."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One that waits."""

    delivery: Delivery
    in_doubt: bool = False


@dataclass(frozen=True, slots=True)
class _Move:
    """A task that goes on to ``queue``."""

    task: _Task
    queue: QueueName
    is_dealt: bool


@dataclass(slots=True)
class _Batch:
    """Moves that were told together, and how many are left to be made; ``told`` is what stands for
    them among the dealers."""

    moves: Moves
    left: int
    told: Delivery | None = None


@dataclass(slots=True)
class _Returning:
    """A lane that comes back, and how many are still in it."""

    left: int
    subscription: Subscription | None = None

    def cancel(self) -> None:
        if self.subscription is not None:
            self.subscription.cancel_nowait()


@dataclass(slots=True)
class _Term:
    """The time for which one dealer is elected, and what it has."""

    baton_id: str
    lead: Lead
    baton: Delivery | None = None
    """Only when it is here all has been read that the dealer before has told."""
    shares: Shares[_Task] = field(default_factory=Shares)
    lanes: Lanes = field(default_factory=lambda: Lanes(LANES))
    suspects: Suspects = field(default_factory=Suspects)
    inherited: list[Delivery] = field(default_factory=list)
    """Where they are told."""
    told: int = 0
    """The number of the last moves."""
    batches: dict[str, _Batch] = field(default_factory=dict)
    fair: Subscription | None = None
    returning: _Returning | None = None
    """The lane that comes back now."""
    found: int = 0
    """So many waited when it began,"""
    came: int = 0
    """and so many have come since."""
    gather_until: float = 0.0
    """Before this nothing is dealt as long as few of them have come."""
    acquit_at: float = 0.0
    """Before this the suspects are remembered."""
    looked_at: float = float("-inf")
    checked_at: float = float("-inf")
    has_lanes: bool = False
    """Some lane was used."""
    under_way: Counter[QueueName] = field(default_factory=Counter)
    """What was put into another queue, and is not confirmed yet."""

    def judge(self, delivery: Delivery) -> Verdict:
        """What a task is that has come; one that was moved in this term is what it was then."""
        message = delivery.message
        if moves.made_by(message).startswith(f"{self.baton_id}/"):
            return Verdict.FINE
        return self.suspects.judge(message, redelivered=delivery.redelivered)


class Dealer:
    """See the module.

    Args:
        plain: The plain queue of the task queue, on the side that it works for.
        slots: How many tasks this worker can run at a time.
        weight: What the settings say of a key.
        wake: Called when `step` has something to do.
    """

    def __init__(
        self,
        plain: QueueName,
        sender: Sender,
        reporter: Reporter,
        slots: Callable[[], int],
        weight: Weight,
        wake: Callable[[], None],
    ) -> None:
        names = sender.names
        self.task_queue = plain.parts[0]
        self._sender = sender
        self._reporter = reporter
        self._clock = sender.clock
        self._slots = slots
        self._weight = weight
        self._ordered = names.priority(plain)
        self._fair = names.fair(plain)
        self._lanes = names.lanes(self._fair)
        self._dealers = names.queue(Kind.DEALERS, plain.kind.value, self.task_queue)
        self._inbox = Inbox(wake)
        self._lock = threading.Lock()
        self._election: Subscription | None = None
        self._term: _Term | None = None
        self._aside_until = float("-inf")

    @property
    def is_elected(self) -> bool:
        """Whether this is the dealer."""
        return self._term is not None

    @property
    def in_hand(self) -> int:
        """How many tasks wait here, and not in a queue."""
        term = self._term
        return 0 if term is None else len(term.shares)

    def stand_aside(self, for_s: float) -> None:
        """Leave what waits to RabbitMQ for so long, and deal nothing; 0: do so no more."""
        self._inbox.later(lambda: self._stand_aside(for_s))

    def open(self) -> None:
        """Stand for election."""
        self._election = self._sender.broker.subscribe(
            str(self._dealers),
            lambda deliveries: self._inbox.later(lambda: self._hear(deliveries)),
            SubscribeOptions(
                prefetch=0,
                plan=self._sender.plan(self._dealers),
                on_accepted=self._on_accepted,
                on_lost=lambda: self._inbox.later(self._resign),
            ),
        )

    def close(self) -> None:
        """Leave it to somebody else; after the last `step`."""
        self._inbox.close()
        if self._election is not None:
            self._election.cancel_nowait()
        self._resign()

    # --- on the reading thread --------------------------------------------------------------------

    def _on_accepted(self) -> None:
        # Whoever is elected is told so.
        self._tell(passes.baton_message(self._sender.ids.next()), _nothing)

    def _tell(self, message: Message, done: Callable[[], None]) -> None:
        """Put ``message`` before the dealer."""
        self._reporter.roster.put(self._dealers, message, done)

    # --- the election, on the dealer's thread -----------------------------------------------------

    def step(self) -> float | None:
        """Do what is due; returns when something is due again (monotonic), if it is known."""
        self._inbox.work_off()
        term = self._term
        if term is None or term.baton is None:
            return None
        now = self._clock.monotonic()
        if term.fair is None:
            if now < self._aside_until:
                return self._aside_until
            self._begin(term)
        if len(term.shares) > IN_HAND_MAX:
            spilled = term.shares.spill(KEEP)
            self._move(
                term, [self._away(term, one.item, one.priority, one.distance) for one in spilled]
            )
        self._check_lanes(term, now)
        self._open_lane(term)
        self._acquit(term)
        if term.came < min(KEEP, term.found) and now < term.gather_until:
            return term.gather_until
        if self._deal(term):
            return None
        # Somebody waits for room.
        if now >= term.looked_at + LOOK_EVERY_S:
            self._look(term)
            self._deal(term)
        return term.looked_at + LOOK_EVERY_S

    def _hear(self, deliveries: Sequence[Delivery]) -> None:
        """Who gets these is the dealer."""
        if self._inbox.is_closed:
            for delivery in deliveries:
                delivery.reject(requeue=True)
            return
        term = self._term
        if term is None:
            term = self._term = _Term(self._sender.ids.next(), Lead(2 * self._slots()))
            # What was told before comes before it.
            self._tell(passes.baton_message(term.baton_id), _nothing)
        for delivery in deliveries:
            if delivery.message.kind == moves.MOVES:
                self._hear_moves(term, delivery)
            elif delivery.message.message_id == term.baton_id and term.baton is None:
                term.baton = delivery
                # Later than whatever a dealer before tells only now, having been asleep.
                term.told = max(term.told, epoch_ms(self._clock) * 1000)
                log.info("dealer of %s", self._fair)
            else:
                delivery.ack()

    def _hear_moves(self, term: _Term, delivery: Delivery) -> None:
        batch = term.batches.get(delivery.message.message_id)
        if batch is not None:
            batch.told = delivery
            self._settle(term, delivery.message.message_id)
            return
        try:
            told = moves.read(delivery.message)
        except Malformed as error:
            log.warning("foreign message in %s dropped: %s", self._dealers, error)
            delivery.ack()
            return
        term.told = max(term.told, told.number)
        term.suspects.add(told)
        term.inherited.append(delivery)

    def _begin(self, term: _Term) -> None:
        self._look(term)  # what the dealer before has left
        term.found = self._ready(self._fair)
        now = self._clock.monotonic()
        term.gather_until, term.acquit_at = now + GATHER_S, now + ACQUIT_S
        term.checked_at = float("-inf")
        self._check_lanes(term, self._clock.monotonic())
        term.fair = self._sender.broker.subscribe(
            str(self._fair),
            lambda deliveries: self._inbox.later(lambda: self._arrive(term, deliveries)),
            SubscribeOptions(
                prefetch=PREFETCH,
                plan=self._sender.plan(self._fair),
                on_lost=lambda: self._inbox.later(lambda: self._lose_sight(term)),
            ),
        )

    def _resign(self) -> None:
        """We are not the dealer any more. What is in hand goes back, if RabbitMQ has not taken it.
        What is on its way is acknowledged when it has arrived, if we still can."""
        term, self._term = self._term, None
        if term is None:
            return
        if term.fair is not None:
            term.fair.cancel_nowait()
        self._give_back(term)
        for delivery in (*term.inherited, *([term.baton] if term.baton else ())):
            delivery.reject(requeue=True)

    def _lose_sight(self, term: _Term) -> None:
        """RabbitMQ has taken back what came from one queue. The rest goes back, too, and all of it
        comes again."""
        if self._term is not term:
            return
        self._give_back(term)
        for number in range(LANES):
            term.lanes.inherit(number)

    def _give_back(self, term: _Term) -> None:
        """Have nothing in hand, and no lane on its way back."""
        if term.returning is not None:
            term.returning.cancel()
            term.returning = None
        for one in term.shares.clear():
            one.delivery.reject(requeue=True)

    def _stand_aside(self, for_s: float) -> None:
        self._aside_until = self._clock.monotonic() + for_s
        term = self._term
        if term is not None and term.fair is not None and for_s > 0:
            term.fair.cancel_nowait()
            term.fair, term.lanes, term.came = None, Lanes(LANES), 0
            self._give_back(term)

    # --- tasks ------------------------------------------------------------------------------------

    def _arrive(
        self, term: _Term, deliveries: Sequence[Delivery], lane: _Returning | None = None
    ) -> None:
        if self._term is not term or term.fair is None:
            for delivery in deliveries:
                delivery.reject(requeue=True)
            return
        away = []
        for delivery in deliveries:
            verdict = term.judge(delivery)
            if verdict is Verdict.DOUBLE:
                delivery.ack()
                continue
            key, weight = envelope.share(delivery.message)
            rank = envelope.priority_of(delivery.message)
            task = _Task(delivery, verdict is Verdict.IN_DOUBT)
            far = term.shares.arrive(
                task, key, self._weight(key) or weight, rank, is_back=lane is not None
            )
            if far is not None:
                away.append(self._away(term, task, rank, far.distance))
        self._move(term, away)
        if lane is None:
            term.came += len(deliveries)
            return
        lane.left -= len(deliveries)
        if lane.left <= 0 and term.returning is lane:
            lane.cancel()
            term.returning = None

    def _check_lanes(self, term: _Term, now: float) -> None:
        """Find what is in lanes that were taken for empty."""
        every_s = CHECK_EVERY_S if term.has_lanes else CHECK_UNUSED_EVERY_S
        if term.returning is not None or now < term.checked_at + every_s:
            return
        term.checked_at = now
        for number, lane in enumerate(self._lanes):
            if term.lanes.is_empty(number) and self._ready(lane):
                term.lanes.inherit(number)
                term.has_lanes = True

    def _open_lane(self, term: _Term) -> None:
        """Let a lane come back that is due, if none does already."""
        lanes, turn = term.lanes, term.shares.turn
        if term.returning is not None or lanes.are_empty():
            return
        for number in lanes.due(turn, is_short=len(term.shares) < SHORT):
            queue = self._lanes[number]
            is_awaited = term.under_way[queue] > 0  # before the look: it may arrive after it
            ready = self._ready(queue)
            if ready:
                lanes.take(number, turn)
                term.shares.lane_returns()
                term.returning = self._bring_back(term, queue, ready)
                return
            if not is_awaited:
                lanes.empty(number)
        if lanes.are_empty():
            term.shares.all_are_back()

    def _bring_back(self, term: _Term, queue: QueueName, count: int) -> _Returning:
        lane = _Returning(count)
        lane.subscription = self._sender.broker.subscribe(
            str(queue),
            lambda deliveries: self._inbox.later(lambda: self._arrive(term, deliveries, lane)),
            SubscribeOptions(
                prefetch=PREFETCH,
                plan=self._sender.plan(queue),
                on_lost=lambda: self._inbox.later(lambda: self._lose_sight(term)),
            ),
        )
        return lane

    def _acquit(self, term: _Term) -> None:
        """Forget what the dealer before has told, once all that waited then has come."""
        if not term.inherited or self._clock.monotonic() < term.acquit_at:
            return
        if term.came < term.found or len(term.shares) or not term.lanes.are_empty():
            return
        if not self._ready(self._fair):
            for delivery in term.inherited:
                delivery.ack()
            term.inherited.clear()
            term.suspects = Suspects()

    def _ready(self, queue: QueueName) -> int:
        deadline = self._clock.monotonic() + STATS_WITHIN_S
        stats = self._sender.broker.stats(str(queue), deadline)
        return 0 if stats is None else stats.ready

    def _look(self, term: _Term) -> None:
        under_way = term.under_way[self._ordered]  # before: lest what arrives meanwhile count never
        term.lead.seen(self._ready(self._ordered), under_way)
        term.looked_at = self._clock.monotonic()

    def _deal(self, term: _Term) -> bool:
        """Deal as many as there is room for; False if more wait."""
        shares, lead = term.shares, term.lead
        dealt: list[_Move] = []
        while (best := shares.best) is not None and lead.room(best):
            task = shares.deal()
            assert task is not None, "one of that priority waits"
            lead.dealt(best)
            dealt.append(_Move(task, self._ordered, True))
        self._move(term, dealt)
        return best is None

    def _away(self, term: _Term, task: _Task, priority: int, distance: float) -> _Move:
        term.has_lanes = True
        number = term.lanes.place(priority, distance, term.shares.turn(priority))
        return _Move(task, self._lanes[number], False)

    # --- moves ------------------------------------------------------------------------------------

    def _move(self, term: _Term, batch: Sequence[_Move]) -> None:
        """Put tasks into their next queues, after that was told."""
        for start in range(0, len(batch), BATCH):
            part = batch[start : start + BATCH]
            term.told += 1
            move_id = f"{term.baton_id}/{term.told}"
            told = Moves(move_id, term.told, _marks(part, True), _marks(part, False))
            if term.suspects.are_in(told):
                term.suspects.add(told)
            term.batches[told.id] = _Batch(told, len(part))
            with self._lock:
                term.under_way.update(one.queue for one in part)
            self._tell(moves.message(told), partial(self._go, term, told.id, part))

    def _go(self, term: _Term, batch_id: str, batch: Sequence[_Move]) -> None:
        """They are told; on any thread."""
        for one in batch:
            self._put(term, batch_id, one)

    def _put(self, term: _Term, batch_id: str, one: _Move) -> None:
        task, queue = one.task, one.queue
        delivery = task.delivery
        # Of a workflow task history knows by itself whether somebody has done it.
        begun = task.in_doubt and delivery.message.kind != WORKFLOW_TASK
        if one.is_dealt:
            message = envelope.dealt(delivery.message, may_have_begun=begun)
        else:
            message = envelope.moved(delivery.message, batch_id, may_have_begun=begun)

        def done() -> None:
            delivery.ack()
            with self._lock:
                term.under_way[queue] -= 1
                batch = term.batches[batch_id]
                batch.left -= 1
                left = batch.left
            if not left:
                self._inbox.later(lambda: self._settle(term, batch_id))

        def refused() -> None:
            reason = f"RabbitMQ does not take it into {queue}"
            self._reporter.park(delivery.message, str(self._fair), reason, done)

        self._reporter.roster.put(queue, message, done, refused=refused)

    def _settle(self, term: _Term, batch_id: str) -> None:
        """Nobody need know of these moves any more, if all have been made, and no copy of theirs
        is left that a dealer before may have made."""
        batch = term.batches.get(batch_id)
        if batch is None or batch.left or batch.told is None:
            return
        del term.batches[batch_id]
        if term.suspects.are_in(batch.moves):
            term.inherited.append(batch.told)
        else:
            # Not before the last of the tasks is acknowledged, which takes a moment.
            self._clock.call_at(self._clock.monotonic() + SETTLED_S, batch.told.ack)


def _marks(part: Sequence[_Move], is_dealt: bool) -> dict[str, str]:
    messages = [one.task.delivery.message for one in part if one.is_dealt is is_dealt]
    return {moves.mark(one): moves.made_by(one) for one in messages}


def _nothing() -> None:
    """Whoever gets it does what follows."""
