"""The owner of shards: acquires them and gives them up, stores what was decided, sends the rest.

Rules of this file: it belongs to the thread of its lane, except where it says not; what it knows of
a shard that was lost is forgotten at once, in memory nothing outlives ownership.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from tq_broker.clock import epoch_ms
from tq_broker.exceptions import Malformed, TqBrokerError
from tq_broker.history import machine, records
from tq_broker.history.cache import Cache
from tq_broker.history.feedback import feedback, instead
from tq_broker.history.flights import Flights, Group
from tq_broker.history.letters import Letter
from tq_broker.history.options import HistoryOptions
from tq_broker.history.outbox import Outbox
from tq_broker.history.patience import Patience
from tq_broker.history.records import ActivityRecord, TaskRecord
from tq_broker.history.transaction import Ownership, Sending, Transaction
from tq_broker.history.wakeups import Wakeups
from tq_broker.model.deployments import Deployments
from tq_broker.model.requests import Echo, ShardInfo
from tq_broker.model.rule_table import RuleTable
from tq_broker.queues import topology
from tq_broker.queues.broker import Delivery, SubscribeOptions, Subscription
from tq_broker.queues.connection import Connection
from tq_broker.queues.dispatcher import TargetAwaited
from tq_broker.queues.sender import Nacked, NoRoute
from tq_broker.stores.store import Batch, EventRow, Fenced, OutboxRow, OutcomeUnknown, Store

log = logging.getLogger(__name__)

AHEAD_MS = 60_000
"""So far ahead the wishes of runs to be woken are kept in memory."""
RELOAD_MS = 1_000
"""So long before that horizon those behind it are read."""
ROWS_MAX = 10_000
"""Wishes, or outbox rows, that are read at a time."""
CHECKED_FOR_S = 2.0
"""For so long after a commit, answers that change nothing are given without asking the store
whether the shard is still ours."""
DOUBTED_AFTER_S = 2.0
"""A shard of which nothing was committed for so long may be another's, without our noticing."""
ECHO_WITHIN_S = 5.0
"""An echo that was taken in by the broker and does not come for so long may be lost; less than the
patience of those who wait for it."""
SENT_MAX = 1_000
SENT_WITHIN_S = 1.0
"""Outbox rows that were sent are removed with the next transaction, or so much later."""
AGAIN_AFTER_S = 1.0
RELEASE_WITHIN_S = 3.0
RECENT_MAX = 20_000


class Consumer:
    """A subscription of a shard's inbox. What still comes after it was closed goes back."""

    __slots__ = ("open", "shard", "subscription")

    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.open = True
        self.subscription: Subscription | None = None


OnDeliveries = Callable[[Consumer, Sequence[Delivery]], None]


class Owner:
    """See the module.

    Args:
        on_deliveries: Gets what comes, on the broker's reading thread.
        ended: Gets the end of each sending, on any thread; it is for `ended` here.
    """

    def __init__(
        self,
        connection: Connection,
        store: Store,
        options: HistoryOptions,
        patience: Patience,
        on_deliveries: OnDeliveries,
        ended: Callable[[Sending, TqBrokerError | None], None],
    ) -> None:
        self._connection = connection
        self._clock = connection.clock
        self._names = connection.names
        self._store = store
        self._options = options
        self._patience = patience
        self._on_deliveries = on_deliveries
        self.cache = Cache(options.max_cached_runs, options.max_cached_bytes)
        self.wakeups = Wakeups()
        self.flights = Flights()
        self.owned: dict[int, Ownership] = {}
        self.consumers: dict[int, Consumer] = {}
        self.releasing: dict[int, float] = {}
        self.recent: OrderedDict[tuple[int, str], bytes | None] = OrderedDict()
        self._outbox = Outbox(connection, self.cache, self._read_events, ended)
        self.held: tuple[int, ...] = ()
        """The shards that are ours; to be read on any thread."""

    def now_ms(self) -> int:
        """From any thread."""
        return epoch_ms(self._clock)

    @property
    def deployments(self) -> Deployments:
        """Which versions there are now; from any thread."""
        return self._connection.traffic.deployments

    @property
    def rules(self) -> RuleTable:
        """The traffic rules in force; likewise."""
        return self._connection.traffic.rules

    def capabilities(self, task_queue: str) -> set[str]:
        """What the workers of a task queue have, or had once; likewise."""
        return self._connection.traffic.capabilities(task_queue)

    def about(self, shard: int) -> ShardInfo:
        """What is known here of a shard; from any thread."""
        ownership = self.owned.get(shard)
        return ShardInfo(
            shard=shard,
            owner=self._options.identity,
            epoch=0 if ownership is None else ownership.epoch,
            cached_runs=self.cache.count(shard),
        )

    # --- shards -----------------------------------------------------------------------------------

    def subscribe(self, shard: int) -> None:
        """Consume the inbox of a shard, or stand by for it: RabbitMQ has one of us active."""
        consumer = self.consumers[shard] = Consumer(shard)
        queue = self._names.history(shard)
        consumer.subscription = self._connection.broker.subscribe(
            str(queue),
            lambda deliveries: self._on_deliveries(consumer, deliveries),
            SubscribeOptions(
                prefetch=self._options.prefetch, plan=topology.history_shard(self._names, queue)
            ),
        )

    def close(self, shards: Iterable[int]) -> None:
        """Consume them no more; somebody else becomes active."""
        for shard in list(shards):
            consumer = self.consumers.pop(shard)
            consumer.open = False
            if consumer.subscription is not None:
                consumer.subscription.cancel_nowait()

    def acquire(self, shards: Collection[int]) -> None:
        """Become the owner of ``shards``, and do what the owner before has left undone."""
        if not shards:
            return
        # After an unknown outcome too: a further epoch does no harm.
        owned = self._patience.insist(
            lambda: self._store.acquire(shards, self._options.identity, self.now_ms()),
            OutcomeUnknown,
        )
        self.cache.drop_shards(shards)
        self.wakeups.drop(shards)
        for one in owned:
            self.owned[one.shard] = Ownership(one.epoch, one.last_seq, self._clock.monotonic())
        self.held = tuple(sorted(self.owned))
        log.info("history: owns shards %s", sorted(shards))
        self.load_wakeups()
        for shard in shards:
            self._replay(shard)

    def _replay(self, shard: int) -> None:
        """Send what was stored and, as far as is known here, not sent."""
        known = self.flights.known(shard)
        after = 0
        while rows := self._read_outbox(shard, after):
            after = rows[-1].seq
            self.send(
                [sending for row in rows if row.seq not in known for sending in _sending(row)]
            )

    def _read_outbox(self, shard: int, after: int) -> Sequence[OutboxRow]:
        return self._patience.insist(lambda: self._store.outbox(shard, after, ROWS_MAX))

    def make_sure(self) -> None:
        """Ask the store about shards for which nothing was committed for a while.

        Who was stopped for some time was replaced meanwhile, and may have been given the shards
        back since: then nobody else wakes their runs, and we know nothing of what the other did.

        Raises:
            Fenced: some have another owner.
        """
        now = self._clock.monotonic()
        doubted = {
            shard: ownership.epoch
            for shard, ownership in self.owned.items()
            if now - ownership.checked_s >= DOUBTED_AFTER_S
        }
        if doubted:
            batch = Batch(doubted)
            self._patience.insist(lambda: self._store.commit(batch), OutcomeUnknown)
            for shard in doubted:
                self.owned[shard].checked_s = now

    def release(self, shards: Collection[int]) -> None:
        """Begin to give ``shards`` up: take nothing more, and wait for what is being sent, so that
        the next owner need not send it again."""
        if shards:
            self.close(self.consumers.keys() & shards)
            self.wakeups.drop(shards)
            until = self._clock.monotonic() + RELEASE_WITHIN_S
            self.releasing.update(dict.fromkeys(shards, until))

    def finish_releases(self) -> None:
        """Give up those for which nothing is being sent any more."""
        now = self._clock.monotonic()
        done = {
            shard
            for shard, until in self.releasing.items()
            if now >= until or not self.flights.is_busy(shard)
        }
        if done:
            self.flush_sent()
            log.info("history: gives up shards %s", sorted(done))
            self.lose(done)

    def lose(self, shards: Collection[int]) -> None:
        """``shards`` are not ours any more: consume them no more, and forget all about them."""
        self.close(self.consumers.keys() & shards)
        self.forget(shards)

    def forget(self, shards: Collection[int]) -> None:
        """``shards`` are another's: forget all about them, but stay where we consume them.

        Who has them may be about to give them up, to us. If RabbitMQ has made us the active
        consumer, the next message makes us the owner again; if we left, it would make him the
        active one, who would give them up again, and so on for as long as messages come.
        """
        lost = frozenset(shards)
        for shard in lost:
            self.owned.pop(shard, None)
            self.releasing.pop(shard, None)
        self.held = tuple(sorted(self.owned))
        self.flights.lose(lost)
        self.cache.drop_shards(lost)
        self.wakeups.drop(lost)

    # --- what is stored ---------------------------------------------------------------------------

    def load(self, run_ids: Iterable[str], workflow_ids: Iterable[str] = ()) -> None:
        """Bring these runs, and the current ones of these workflow ids, into the cache, as far as
        they exist."""
        cache, store = self.cache, self._store
        missing = [run_id for run_id in run_ids if run_id and cache.get(run_id) is None]
        if missing:
            for row in self._patience.insist(lambda: store.runs(missing)):
                cache.load(row)
        unknown = [one for one in workflow_ids if one and cache.current(one) is None]
        if unknown:
            for row in self._patience.insist(lambda: store.current(unknown)):
                cache.load(row)

    def look_up(self, letters: Iterable[Letter]) -> None:
        """Find out which of these were taken in before."""
        asked: dict[int, list[str]] = {}
        for letter in letters:
            asked.setdefault(letter.shard, []).append(letter.message_id)
        for shard, ids in asked.items():
            found = self._patience.insist(partial(self._store.seen, shard, ids))
            self.recent.update(((shard, one), answer) for one, answer in found.items())

    def commit(self, batch: Batch) -> None:
        """Write ``batch``, and which outbox rows are not needed any more.

        Raises as `Store.commit` does, but for `StoreUnavailable`.
        """
        now = self._clock.monotonic()
        writes = bool(batch.inbox or batch.runs or batch.events or batch.outbox)
        is_fresh = all(now - self.owned[one].checked_s < CHECKED_FOR_S for one in batch.epochs)
        if is_fresh and not writes and not self.sent_are_due():
            return
        batch.sent = self.flights.take_sent()
        batch.epochs |= {shard: self.owned[shard].epoch for shard, _ in batch.sent}
        try:
            self._patience.insist(lambda: self._store.commit(batch))
        except BaseException:
            self.flights.put_back(batch.sent)
            raise
        for shard in batch.epochs:
            self.owned[shard].checked_s = now

    def sent_are_due(self) -> bool:
        """Whether rows that were sent should be removed, whatever else there is to write."""
        since, count = self.flights.sent_since, self.flights.sent_count
        return since is not None and (
            count >= SENT_MAX
            or bool(self.releasing)
            or self._clock.monotonic() - since >= SENT_WITHIN_S
        )

    def stored(self, transaction: Transaction, now_ms: int) -> None:
        """The transaction was committed."""
        for held, size in zip(transaction.changed.values(), transaction.sizes, strict=True):
            self.cache.stored(held, size)
        for run_id, held in transaction.touched.items():
            if held.shard not in self.releasing:
                next_ms = held.run.next_ms()
                # Who was only asked something may have become due meanwhile.
                is_idle = run_id in transaction.woken and run_id not in transaction.changed
                if is_idle and next_ms is not None and next_ms <= now_ms:
                    log.error("history: run %s wants to be woken for nothing", run_id)
                    next_ms = now_ms + AHEAD_MS
                self.wakeups.set(held.shard, run_id, next_ms)
        for run in transaction.long:
            log.warning(
                "history: workflow %r has a history of %d events and %d bytes; a run is terminated"
                " at %d and %d: it should continue as new",
                run.workflow_id,
                run.history_length,
                run.history_bytes,
                machine.EVENTS_MAX,
                machine.BYTES_MAX,
            )
        self.recent.update(transaction.taken)
        while len(self.recent) > RECENT_MAX:
            self.recent.popitem(last=False)

    def _read_events(self, run_id: str, first: int, bytes_max: int) -> Sequence[EventRow]:
        return self._patience.insist(lambda: self._store.events(run_id, first, bytes_max))

    # --- what is due ------------------------------------------------------------------------------

    def load_wakeups(self) -> None:
        """Know who is to be woken in the near future."""
        shards = self.owned.keys() - self.releasing.keys()
        horizon_ms = self.now_ms() + AHEAD_MS
        due = (
            self._patience.insist(lambda: self._store.due(shards, horizon_ms, ROWS_MAX))
            if shards
            else []
        )
        if len(due) == ROWS_MAX:
            horizon_ms = due[-1][0] - 1
        self.wakeups.load(horizon_ms, due)

    def take_due(self, limit: int) -> list[tuple[int, str]]:
        """The runs that are to be woken now, as ``(shard, run_id)``."""
        now_ms = self.now_ms()
        found = self.wakeups.due(now_ms, limit)
        if not found and self.owned and now_ms >= self.wakeups.horizon_ms - RELOAD_MS:
            self.load_wakeups()
            found = self.wakeups.due(now_ms, limit)
        return found

    def listen(self, transaction: Transaction) -> None:
        """Find out whether all has been taken in that was sent before the timeouts which wait for
        that: the inbox is a queue, so an echo sent there now comes after it."""
        shards = set()
        for run_id in transaction.woken:
            held = transaction.touched[run_id]
            if held.run.patient_ms and held.shard not in self.releasing:
                self.owned[held.shard].patient.add(run_id)
                shards.add(held.shard)
        now = self._clock.monotonic()
        for shard in shards:
            ownership = self.owned[shard]
            before = ownership.echo
            if before is not None and (
                now < ownership.echo_until_s or self.flights.is_flying(before)
            ):
                continue
            ownership.echo = Sending(Echo(ownership.epoch, self.now_ms()), shard)
            ownership.echo_until_s = now + ECHO_WITHIN_S
            self.send([ownership.echo])

    def heard(self, shard: int, echo: Echo) -> None:
        """``echo`` has come: wake those who wait for it."""
        ownership = self.owned.get(shard)
        if ownership is None or ownership.epoch != echo.epoch or shard in self.releasing:
            return
        ownership.heard_ms = max(ownership.heard_ms, echo.sent_ms)
        ownership.echo = None
        patient, ownership.patient = ownership.patient, set()
        at_ms = min(self.now_ms(), self.wakeups.horizon_ms)
        for run_id in patient:
            self.wakeups.set(shard, run_id, at_ms)

    def due_at(self) -> float | None:
        """The monotonic time when there is something to do."""
        times = list(self.releasing.values())
        if self.flights.due_at is not None:
            times.append(self.flights.due_at)
        if self.flights.sent_since is not None:
            times.append(self.flights.sent_since + SENT_WITHIN_S)
        if self.owned:
            at_ms = self.wakeups.horizon_ms - RELOAD_MS
            next_ms = self.wakeups.next_ms()
            if next_ms is not None:
                at_ms = min(at_ms, next_ms)
            times.append(self._clock.monotonic() + (at_ms - self.now_ms()) / 1000)
        return min(times, default=None)

    # --- what is sent -----------------------------------------------------------------------------

    def send(self, sendings: Sequence[Sending], deliveries: Sequence[Delivery] = ()) -> None:
        """Send these; ``deliveries`` are acknowledged when they have arrived."""
        counted = [sending for sending in sendings if _is_counted(sending)]
        group = Group(deliveries, len(counted)) if deliveries else None
        for sending in sendings:
            self.flights.begin(sending, None)
        for sending in counted:
            self.flights.begin(sending, group)
        self._send(sendings)

    def _send(self, sendings: Sequence[Sending]) -> None:
        if sendings:
            self.load(Outbox.runs_of(sendings))
            self._outbox.send(sendings)

    def ended(self, sending: Sending, error: TqBrokerError | None) -> list[Letter]:
        """A sending has ended; returns what its run has to be told."""
        if not self.flights.is_flying(sending):
            return []  # its shard was lost meanwhile
        letters = (
            [] if error is None else feedback(sending, error, is_gone=isinstance(error, NoRoute))
        )
        now = self._clock.monotonic()
        if letters is None:
            level = logging.DEBUG if isinstance(error, TargetAwaited) else logging.WARNING
            log.log(level, "history: not sent, trying again: %s", error)
            if isinstance(error, Nacked):
                # Its queue is full, perhaps for long; what came with it is for other queues too.
                self.flights.unburden(sending)
            self.flights.postpone(sending, now + AGAIN_AFTER_S)
            return []
        if error is not None:
            is_known = bool(letters) or isinstance(error, NoRoute)
            log.log(logging.DEBUG if is_known else logging.WARNING, "history: not taken: %s", error)
            if (smaller := instead(sending.record, error)) is not None:
                sending.record = smaller
                self.flights.postpone(sending, now + AGAIN_AFTER_S)
                return []
        self.flights.end(sending, now)
        return letters

    def send_again(self) -> None:
        """Send once more what could not be sent before."""
        self._send(self.flights.take_due(self._clock.monotonic()))

    def flush_sent(self) -> None:
        """Remove the outbox rows that were sent, if that can be done now."""
        if self.flights.sent_since is not None:
            try:
                self.commit(Batch({}))
            except Fenced as error:
                self.forget(error.shards)
            except TqBrokerError as error:
                log.warning("history: outbox rows not removed: %s", error)


def _sending(row: OutboxRow) -> list[Sending]:
    try:
        return [Sending(records.load(row.data), row.shard, row.seq)]
    except Malformed as error:
        log.error("history: outbox row %d of shard %d: %s", row.seq, row.shard, error)
        return []


def _is_counted(sending: Sending) -> bool:
    """Whether acknowledging waits for it: not if it may wait for somebody to come back."""
    record = sending.record
    if isinstance(record, TaskRecord):
        return not record.task.is_bound
    return not isinstance(record, ActivityRecord) or (
        record.scheduled is not None
        and record.scheduled.route is None
        and record.scheduled.requires is None
    )
