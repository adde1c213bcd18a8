"""A turnstile: how one worker takes tasks of a limited task queue.

*The permit first, then the task.* Three ways were weighed:

* take tasks as ever, and let them wait here for their permits: whoever holds a task that it may not
  start keeps it from all others, and if it dies RabbitMQ marks the task as redelivered, so that an
  attempt is used up that never ran. With one task held per worker that is once per worker; with a
  prefetch window it is the window;
* ask for a task by hand (``basic.get``) with a permit in hand: exact, but each costs a round trip
  through the log of a quorum queue, also when nothing waits; a queue with 1 000 tasks per second
  would be slower than without a limit;
* hold a permit, and subscribe for exactly as many tasks as there are permits (``once``): exact as
  well, and it waits without asking. This is what is done here.

So a worker holds no task that it may not start, and a permit is used up in the moment in which the
code of a task begins: what is cancelled, expired, refused or lost costs none. Permits wait here
unused, few of them, and only while slots are free to use them: they can be used up here as well as
anywhere, because every worker takes from the same queue. But for tasks that only one worker may run
(its host's, its version's, those of the runs in its cache): if one of these gets no permit, its
worker asks the others to give way, and who has nothing to do then leaves the line for a moment.

At high rates a permit is for several tasks, its units. It is used up when the last of them is. If
it goes back before, the bank is told how many were not used; if its worker dies over it, whoever
gets it next cannot know, and takes it as used up.

While there is a backlog a subscription for one is followed by one for two, four, ..., as long as
the permits reach; and at high rates permits are gathered for `GATHER_S`. So the price of a
subscription is spread over many tasks at high rates, and nothing waits at low ones. Only a
subscription for one waits for long: a larger one that is not filled at once has met the end of the
backlog, and is given up.

Threads: `step` belongs to one thread; deliveries and permits come on the broker's reading thread;
passages are used on any.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tq_broker.clock import Clock
from tq_broker.exceptions import TqBrokerError
from tq_broker.model import permits
from tq_broker.model.limits import Limits
from tq_broker.model.message import Publication
from tq_broker.model.names import Exchange, Names, QueueName
from tq_broker.model.permits import Flavor, Place, Refund, issue_of
from tq_broker.queues import topology
from tq_broker.queues.broker import Delivery, SubscribeOptions, Subscription
from tq_broker.queues.sender import Sender
from tq_broker.queues.topology import Plan
from tq_broker.worker.pace import Pace
from tq_broker.worker.passage import Passage
from tq_broker.worker.poller import OnDeliveries
from tq_broker.worker.tap import Tap, Token

log = logging.getLogger(__name__)

GATHER_S = 0.1
FAST = 100.0
"""Permits are gathered from this rate on, per second: below a subscription each costs little."""
FILL_WITHIN_S = 0.5
BATCH_MAX = 256
FULL_S = 0.1
"""A worker without free slots keeps its unused permits for so long: the next slot may be near."""
REFUND_WITHIN_S = 5.0
UNUSED_S = 0.2
"""Permits of a rate that a worker may hold unused: what comes in so long, but at least one."""
ASK_AFTER_S = 0.1
"""So long a task that nobody else may run waits for leave before others are asked for theirs."""
ASK_EVERY_S = 1.0
AWAY_S = 0.5
"""Who is asked and has nothing to do is out of the line for so long."""
UNUSED_OF_MANY_S = 0.1
"""The same of permits of several units, which are lost if the worker dies."""


NO_PLAN = Plan(())

Resume = Callable[[Passage], None]
"""Called with the leave that a task has waited for."""


@dataclass(slots=True)
class _Batch:
    """A subscription for ``size`` tasks; ``left`` have not come yet."""

    size: int
    left: int
    opened_at: float
    subscription: Subscription | None = None
    given_up: bool = False
    is_over: bool = False


def _not_refunded(error: TqBrokerError | None) -> None:
    if error is not None:
        log.info("some of the rate is lost: %s", error)


class TokenPassage(Passage):
    """Leave to begin one task, with the permits that it takes."""

    __slots__ = ("_is_over", "_turnstile", "rate", "slot")

    def __init__(self, turnstile: Turnstile, rate: Token | None, slot: Token | None) -> None:
        self._turnstile = turnstile
        self._is_over = False
        self.rate = rate
        self.slot = slot

    @property
    def is_over(self) -> bool:
        """Whether nothing runs under it, nor will."""
        return self._is_over

    def begun(self) -> None:
        self._turnstile.used(self)

    def ended(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._turnstile.left(self)

    def unused(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._turnstile.returned(self)


class Turnstile:
    """Takes the tasks of one queue; the `Source` of what it takes.

    Args:
        queue: The shared queue of the task queue.
        plan: How to declare it.
        rates: Where the permits of its rate are.
        slots: Where those of its concurrency are.
        pace: The worker's own limit.
        wake: Called when `step` has something to do.
        ask_way: Asks other workers to `give_way`; returns at once.
    """

    def __init__(
        self,
        queue: QueueName,
        sender: Sender,
        clock: Clock,
        *,
        rates: Place,
        slots: Place,
        pace: Pace | None,
        on_deliveries: OnDeliveries,
        wake: Callable[[], None],
        ask_way: Callable[[], None],
    ) -> None:
        assert queue.task_queue is not None, "only queues of task queues are limited"
        self.queue = queue
        self.name = str(queue)
        self.task_queue = queue.task_queue
        self._broker = sender.broker
        self._plan = sender.plan(queue)
        self._clock = clock
        self._pace = pace
        self._on_deliveries = on_deliveries
        self._wake = wake
        self._others = ask_way
        self._lock = threading.Lock()
        self.limits = Limits()
        self.is_paused = False
        self._settled_at = float("-inf")
        """Nothing begins before: what runs without a permit comes first."""
        self.is_elsewhere = False
        """Its queue is another version's now; what is pinned to ours is limited all the same."""
        self._is_asked = False
        self._asked_at = float("-inf")
        self._ask_at: float | None = None
        """When others are asked to give way; ``None`` if nothing waits."""
        self._is_urged = False
        self._has_taken = False
        self._taken_at = float("-inf")
        self._away_until = float("-inf")
        self._closed = False
        self._in_hand = 0
        self._batch: _Batch | None = None
        self._boost = 1
        self._is_declared = False
        self._last_opened = float("-inf")
        self._full_since: float | None = None
        self._sender = sender
        self._rates = rates
        self._waiting: deque[Resume] = deque()
        self._rate_tokens: deque[Token] = deque()
        """Those of which some units are left."""
        self._slot_tokens: deque[Token] = deque()
        self._busy: set[TokenPassage] = set()
        self._uncovered: deque[TokenPassage] = deque()
        """They run, and RabbitMQ took their permit back with a connection that broke: the next
        ones that come are theirs."""
        self._comes_first = False
        """Permits for these come before those for new tasks of whichever worker."""
        self._rate_tap = self._tap(sender.names, rates, self._on_rate, self._give_back_rate)
        self._slot_tap = self._tap(sender.names, slots, self._on_slot, Token.put_back)

    def _tap(
        self,
        names: Names,
        place: Place,
        on_token: Callable[[Token], None],
        on_late: Callable[[Token], None],
    ) -> Tap:
        plan = topology.permits(names, place.permits, place.bank, place.ledger)
        return Tap(self._broker, place.permits, plan, on_token, on_late, self._on_lost)

    # --- facts ------------------------------------------------------------------------------------

    @property
    def in_hand(self) -> int:
        """Deliveries that are not acknowledged yet."""
        return self._in_hand

    @property
    def is_idle(self) -> bool:
        """Whether nothing that it let through is left."""
        return not (self._in_hand or self._busy or self._batch)

    # --- `Source` ---------------------------------------------------------------------------------

    def released(self) -> None:
        """See `tq_broker.worker.poller.Source`."""
        with self._lock:
            self._in_hand -= 1

    waits = False

    def admit(self, resume: Resume | None = None) -> Passage | None:
        """See `tq_broker.worker.poller.Source`."""
        with self._lock:
            return self._admit()

    def admit_elsewhere(self, resume: Resume | None) -> Passage | None:
        """Leave for a task that did not come through here: of a queue that is only this worker's
        or host's, where nobody else could run it.

        Args:
            resume: Called with the leave when there is one, if there is none now; ``None`` does
                not wait.
        """
        with self._lock:
            left = 0 if self._batch is None else self._batch.left
            passage = self._admit(spared=left)
            if passage is None and resume is not None:
                self._waiting.append(resume)
            if passage is None:
                self._is_asked = True
        if passage is None:
            self._wake()
        return passage

    def _admit(self, spared: int = 0) -> Passage | None:
        limits = self.limits
        if self.is_paused or self._clock.monotonic() < self._settled_at:
            return None
        has_rate = limits.rate is None or self._rates_left > spared
        has_slot = limits.concurrency is None or len(self._slot_tokens) > spared
        if not (has_rate and has_slot):
            return None
        if self._pace is not None:
            if not self._pace.available(self._clock.monotonic()):
                return None
            self._pace.take()
        passage = TokenPassage(
            self,
            self._lend() if limits.rate is not None else None,
            self._slot_tokens.popleft() if limits.concurrency is not None else None,
        )
        self._busy.add(passage)
        return passage

    @property
    def _rates_left(self) -> int:
        return sum(token.left for token in self._rate_tokens)

    def _lend(self) -> Token:
        token = self._rate_tokens[0]
        token.left -= 1
        token.lent += 1
        if not token.left:
            self._rate_tokens.popleft()
        return token

    def cover(self) -> Passage:
        """For a task that runs already, since before there was a limit: it counts from now on."""
        passage = TokenPassage(self, None, None)
        with self._lock:
            self._busy.add(passage)
            if self.limits.concurrency is not None:
                self._uncovered.append(passage)
        return passage

    # --- passages, on any thread ------------------------------------------------------------------

    def used(self, passage: TokenPassage) -> None:
        """The task of ``passage`` begins."""
        with self._lock:
            token, passage.rate = passage.rate, None
            if token is None:
                return
            token.lent -= 1
            is_spent = token.is_spent
        if is_spent:
            self._let_go(token)

    def left(self, passage: TokenPassage) -> None:
        """The task of ``passage`` has ended."""
        with self._lock:
            self._busy.discard(passage)
            token, passage.slot = passage.slot, None
            if passage in self._uncovered:
                self._uncovered.remove(passage)
            elif token is not None and not token.is_lost and self._uncovered:
                # To what runs here without one; nobody else may begin with it.
                self._uncovered.popleft().slot, token = token, None
            unused, passage.rate = passage.rate, None
            is_spent = unused is not None and self._take_back(unused)
        if token is not None:
            # Not to the next worker at once: should the limit have shrunk, the bank keeps it.
            self._slot_tap.used_up(token)
        if is_spent and unused is not None:
            self._let_go(unused)
        self._wake()

    def returned(self, passage: TokenPassage) -> None:
        """No task has begun with ``passage``: the permits can be used for another."""
        with self._lock:
            self._busy.discard(passage)
            if passage in self._uncovered:
                self._uncovered.remove(passage)
            if self._pace is not None:
                self._pace.give_back()
            rate, passage.rate = passage.rate, None
            slot, passage.slot = passage.slot, None
            is_spent = rate is not None and self._take_back(rate)
            if slot is not None and not slot.is_lost:
                self._slot_tokens.appendleft(slot)
        if is_spent and rate is not None:
            self._let_go(rate)
        self._wake()

    def _take_back(self, token: Token) -> bool:
        """What was lent of ``token`` was not used; whether it is to be let go now."""
        token.lent -= 1
        token.left += 1
        if token.left == 1 and not (token.is_unwanted or token.is_lost):
            self._rate_tokens.appendleft(token)
        return token.is_spent

    def _let_go(self, token: Token) -> None:
        """Nothing of ``token`` will be used here any more."""
        if token.units == 1 and token.left:
            self._rate_tap.put_back(token)
            return
        self._rate_tap.used_up(token)
        if token.left and not token.is_lost:
            self._refund(token.left)

    def _give_back_rate(self, token: Token) -> None:
        """Nothing of ``token`` was used, nor will be."""
        token.is_unwanted = True
        self._let_go(token)

    def _refund(self, units: int) -> None:
        names, bank = self._sender.names, self._rates.bank
        message = permits.refund_message(Refund(units), self._sender.ids.next())
        publication = Publication(names.exchange(Exchange.TASKS), bank.key, message)
        deadline = self._clock.monotonic() + REFUND_WITHIN_S
        self._sender.send(publication, (), deadline, _not_refunded)

    # --- on the reading thread --------------------------------------------------------------------

    def _on_rate(self, token: Token) -> None:
        if token.units > 1 and token.was_held:
            self._rate_tap.used_up(token)
            return
        with self._lock:
            self._rate_tokens.append(token)
        self._wake()

    def _on_slot(self, token: Token) -> None:
        with self._lock:
            while self._uncovered:
                passage = self._uncovered.popleft()
                if passage in self._busy:
                    passage.slot = token
                    return
            self._slot_tokens.append(token)
        self._wake()

    def _on_lost(self, tokens: Sequence[Token]) -> None:
        lost = set(tokens)
        with self._lock:
            self._rate_tokens = deque(t for t in self._rate_tokens if t not in lost)
            self._slot_tokens = deque(t for t in self._slot_tokens if t not in lost)
            for passage in self._busy:
                if passage.slot in lost:
                    passage.slot = None
                    self._uncovered.append(passage)
        self._wake()

    def _on_tasks(self, batch: _Batch, deliveries: Sequence[Delivery]) -> None:
        with self._lock:
            self._has_taken = True
            batch.left -= len(deliveries)
            self._in_hand += len(deliveries)
        self._on_deliveries(self, deliveries)
        self._wake()

    def _on_batch_over(self, batch: _Batch) -> None:
        batch.is_over = True
        self._wake()

    # --- on the turnstiles' thread ----------------------------------------------------------------

    def limit(
        self,
        limits: Limits,
        *,
        paused: bool = False,
        elsewhere: bool = False,
        settled_at: float = float("-inf"),
    ) -> None:
        """These are the limits from now on.

        Args:
            paused: Nothing begins.
            elsewhere: Nothing that comes through here.
            settled_at: When others have taken permits for what runs already (monotonic), should
                the concurrency be limited now and not before.
        """
        self.is_paused = paused
        self.is_elsewhere = elsewhere
        with self._lock:
            before, self.limits = self.limits, limits
            if before.concurrency is None and limits.concurrency is not None:
                self._settled_at = settled_at
                self._uncovered.extend(one for one in self._busy if one.slot is None)
        if before.rate != limits.rate or before.burst_size != limits.burst_size:
            self._close_rates(to_bank=True)
        if before.concurrency != limits.concurrency:
            self._close_slots(to_bank=True)
        self._wake()

    def close(self) -> None:
        """Take no more tasks; what runs keeps its permits until it ends."""
        self._closed = True
        self._give_up()
        self._close_rates()
        self._close_slots()

    def give_way(self) -> None:
        """Another worker has a task that only it may run, and no leave: it may have what is not
        needed here. On any thread."""
        self._is_urged = True
        self._wake()

    def open_batch(self) -> Subscription | None:
        """The subscription that may still bring tasks."""
        batch = self._batch
        return None if batch is None or batch.is_over else batch.subscription

    def step(self, now: float, free_slots: int) -> float | None:
        """Take permits and tasks as far as ``free_slots`` reach; returns when to look again."""
        self._end_batch(now)
        if self._closed:
            return None
        if free_slots > 0:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        if self._is_asked:
            self._is_asked, self._asked_at = False, now
        self._heed_others(now)
        is_idle = self._full_since is not None or (
            self.is_elsewhere and now >= self._asked_at + FULL_S
        )
        self._cover_running()
        if self.is_paused or (is_idle and not self._waiting):
            return self._step_back(now)
        if now < self._away_until:
            self._let_go_unused()
            return self._away_until
        if now >= self._settled_at:
            self._take_permits(max(1, free_slots))
        self._let_wait_go_on()
        if self._waiting:
            return self._ask_way(now)
        self._ask_at = None
        if self.is_elsewhere:
            self._give_up()
            return now + FULL_S
        batch = self._batch
        if batch is not None:
            if batch.size == 1:
                return None
            give_up_at = batch.opened_at + FILL_WITHIN_S
            if now < give_up_at:
                return give_up_at
            self._give_up()
            return None
        return self._open(now, free_slots)

    def _heed_others(self, now: float) -> None:
        """Leave the line if somebody has asked for it, and nothing is to be done here."""
        if self._has_taken:
            self._has_taken, self._taken_at = False, now
        is_urged, self._is_urged = self._is_urged, False
        if self._waiting:
            self._away_until = now
            if is_urged:  # the others have just been asked, perhaps by us
                self._ask_at = now + ASK_EVERY_S
        elif is_urged and now >= self._taken_at + FULL_S:
            self._away_until = now + AWAY_S

    def _ask_way(self, now: float) -> float:
        """What waits has no leave yet: those who hold permits for nothing may have it."""
        if self._ask_at is None:
            self._ask_at = now + ASK_AFTER_S
        elif now >= self._ask_at:
            self._ask_at = now + ASK_EVERY_S
            self._others()
        return self._ask_at

    def _cover_running(self) -> None:
        """Take permits for what runs without one, also while nothing may begin here."""
        tap = self._slot_tap
        if self.limits.concurrency is None or not self._uncovered:
            if self._comes_first:
                self._comes_first = False
                tap.close()
            return
        missing = len(self._uncovered) - (tap.capacity - tap.held)
        if missing > 0:
            self._comes_first = True
            tap.open(missing, first=True)

    def _step_back(self, now: float) -> float | None:
        """Nothing may begin here: let others have the permits."""
        full_until = now if self._full_since is None else self._full_since + FULL_S
        if now < full_until and not self.is_paused:
            return full_until
        self._let_go_unused()
        return None

    def _let_go_unused(self) -> None:
        self._give_up()
        self._close_rates()
        self._close_idle_slots()

    def _let_wait_go_on(self) -> None:
        """Give permits to tasks that wait for them; they come before new ones."""
        while self._waiting:
            with self._lock:
                left = 0 if self._batch is None else self._batch.left
                passage = self._admit(spared=left)
                if passage is None:
                    break
                resume = self._waiting.popleft()
            resume(passage)
        if self._waiting:
            self._give_up()

    def _end_batch(self, now: float) -> None:
        batch = self._batch
        # What is full brings nothing more, also before RabbitMQ has said that it is over.
        if batch is not None and (batch.is_over or not batch.left):
            self._batch = None
            # Declaring takes many steps, so it is done only when there was reason to.
            self._is_declared = batch.left < batch.size or batch.given_up
            was_quick = not batch.left and now - batch.opened_at < FILL_WITHIN_S
            self._boost = min(2 * self._boost, BATCH_MAX) if was_quick else 1

    def _open(self, now: float, free_slots: int) -> float | None:
        """Subscribe for as many tasks as may begin now."""
        count = self._startable(now, free_slots)
        if not count:
            return self._next_pace(now)
        wanted = min(self._boost, free_slots)
        gathered_at = self._last_opened + GATHER_S
        is_fast = (self.limits.rate or 0.0) >= FAST
        has_room = self._rate_tap.held < self._rate_tap.capacity
        if is_fast and has_room and count < wanted and now < gathered_at:
            return gathered_at
        size = min(count, wanted)
        batch = self._batch = _Batch(size, size, now)
        self._last_opened = now
        batch.subscription = self._broker.subscribe(
            self.name,
            lambda deliveries: self._on_tasks(batch, deliveries),
            SubscribeOptions(
                prefetch=size,
                plan=NO_PLAN if self._is_declared else self._plan,
                once=True,
                on_over=lambda: self._on_batch_over(batch),
            ),
        )
        return now + FILL_WITHIN_S if size > 1 else None

    def _startable(self, now: float, free_slots: int) -> int:
        with self._lock:
            limits = self.limits
            if now < self._settled_at:
                return 0
            count = free_slots
            if limits.rate is not None:
                count = min(count, self._rates_left)
            if limits.concurrency is not None:
                count = min(count, len(self._slot_tokens))
            if self._pace is not None:
                count = min(count, self._pace.available(now))
            return count

    def _next_pace(self, now: float) -> float | None:
        with self._lock:
            if self._pace is None or self._pace.available(now):
                return None
            return self._pace.next_at(now)

    def _take_permits(self, free_slots: int) -> None:
        limits = self.limits
        issue = issue_of(Flavor.RATE, limits)
        if issue is not None and issue.rate is not None and not self._rate_tap.capacity:
            unused_s = UNUSED_S if issue.units == 1 else UNUSED_OF_MANY_S
            unused = max(1, math.ceil(issue.rate * unused_s))
            self._rate_tap.open(min(unused, issue.size))
        if limits.concurrency is None:
            return
        capacity = self._slot_tap.capacity
        with self._lock:
            unused_slots, busy = len(self._slot_tokens), len(self._busy)
        if not capacity:
            self._slot_tap.open(1)
        elif not unused_slots and self._slot_tap.held >= capacity:
            # All that it may hold is in use, and there is room for more. Doubled, so that few
            # subscriptions are needed; at most half of them can be unused.
            self._slot_tap.open(min(capacity, free_slots, BATCH_MAX))
        elif unused_slots > 1 and not busy and self._batch is None:
            self._close_slots()
            self._slot_tap.open(1)

    def _give_up(self) -> None:
        batch = self._batch
        if batch is not None and not batch.given_up and batch.subscription is not None:
            batch.given_up = True
            batch.subscription.cancel_nowait()

    def _close_rates(self, *, to_bank: bool = False) -> None:
        self._rate_tap.close()
        with self._lock:
            tokens, self._rate_tokens = self._rate_tokens, deque()
            for token in tokens:
                token.is_unwanted = True
            spent = [token for token in tokens if token.is_spent]
        for token in spent:
            if to_bank:
                self._rate_tap.used_up(token)
            else:
                self._let_go(token)

    def _close_slots(self, *, to_bank: bool = False) -> None:
        self._slot_tap.close()
        with self._lock:
            tokens, self._slot_tokens = self._slot_tokens, deque()
        for token in tokens:
            if to_bank:
                self._slot_tap.used_up(token)
            else:
                self._slot_tap.put_back(token)

    def _close_idle_slots(self) -> None:
        with self._lock:
            has_unused = bool(self._slot_tokens)
            if self._uncovered:
                return
        if has_unused or self._slot_tap.held < self._slot_tap.capacity:
            self._close_slots()
