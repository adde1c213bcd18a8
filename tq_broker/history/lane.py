"""The lane: the one thread of a process that decides and commits, for all shards that it owns.

It takes everything that has come since the last time, decides in memory, writes one transaction,
and only then sends what follows: group commit. A letter is acknowledged when what followed from it
is with the broker. The lane also wakes runs when their time has come.

Rules of this file:

* what could not be stored is dropped from memory and loaded again; nothing of it has been sent;
* a store that cannot be reached is waited for: nothing more is taken, nothing is given back;
* a letter that cannot be dealt with is found by halving the transaction, and parked.
"""

from __future__ import annotations

import logging
import secrets
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import msgspec

from tq_broker.clock import Timer, remaining
from tq_broker.exceptions import Malformed, TqBrokerError
from tq_broker.history import letters
from tq_broker.history.letters import Letter
from tq_broker.history.membership import Wishes
from tq_broker.history.options import HistoryOptions
from tq_broker.history.owner import Consumer, Owner
from tq_broker.history.patience import LOOK_S, Halted, Patience
from tq_broker.history.reading import Reader
from tq_broker.history.records import Parked, ReplyRecord
from tq_broker.history.transaction import Sending, Transaction
from tq_broker.model import envelope
from tq_broker.model.requests import Echo, Reply, ShardInfo
from tq_broker.model.uuids import RANDOM_BITS, version_7
from tq_broker.queues.broker import Delivery, Subscription
from tq_broker.queues.connection import Connection
from tq_broker.stores.store import Conflict, Fenced, OutcomeUnknown, Store

log = logging.getLogger(__name__)

LETTERS_MAX = 250
"""In one transaction, about: what it takes must stay well below what people notice."""
AGAIN_AFTER_S = 1.0
POISONED_MS = 30_000
"""A run that cannot be woken is tried again so much later."""
CONFLICTS_MAX = 2
READERS = 2

Wake = tuple[int, str]
"""A run whose time has come, with its shard."""


class Parcel(msgspec.Struct, frozen=True, eq=False):
    """A letter, and the delivery that it came with, if it did not arise here."""

    letter: Letter
    delivery: Delivery | None


class Lane:
    """See the module. What may be called on other threads says so."""

    def __init__(self, connection: Connection, store: Store, options: HistoryOptions) -> None:
        self._clock = connection.clock
        self._names = connection.names
        self._identity = options.identity
        self._stopping = threading.Event()
        self._patience = Patience(connection.clock, self._stopping)
        self._owner = Owner(
            connection, store, options, self._patience, self._arrive, self._sent_ended
        )
        self._reader = Reader(store, self._about, self._owner.now_ms)
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="tq-history-read")
        self._transaction: Transaction | None = None
        self._taken: list[tuple[Consumer, Sequence[Delivery]]] = []
        self._reading: set[Parcel] = set()
        self._in_hand: list[Parcel] = []
        self._told: list[Letter] = []
        self._lag_s = 0.0
        # Filled by other threads.
        self._arrived: deque[tuple[Consumer, Sequence[Delivery], float]] = deque()
        self._answers: deque[tuple[Parcel, Reply | Exception]] = deque()
        self._receipts: deque[tuple[Sending, TqBrokerError | None]] = deque()
        self._wishes: Wishes | None = None
        self._woken = threading.Event()
        self._consuming = threading.Event()
        self._is_waiting = False
        self._booked: tuple[float, Timer] | None = None
        self._thread = threading.Thread(target=self._run, name="tq-history", daemon=True)

    # --- on any thread ----------------------------------------------------------------------------

    @property
    def held(self) -> tuple[int, ...]:
        """The shards that are ours."""
        return self._owner.held

    @property
    def is_at_rest(self) -> bool:
        """Whether it waits for something to happen, and nothing that it has sent is under way."""
        is_flying = self._owner.flights.is_any_flying()
        return self._is_waiting and not self._woken.is_set() and not is_flying

    def start(self) -> None:
        """Begin; nothing is consumed before the first `wish`."""
        self._thread.start()

    def wish(self, wishes: Wishes) -> None:
        """Which shards to hold from now on."""
        self._wishes = wishes
        self._woken.set()

    def stop(self, within_s: float) -> None:
        """Give the shards up in order, and end; blocks."""
        self._stopping.set()
        self._woken.set()
        if self._thread.is_alive():
            self._thread.join(within_s)

    def subscriptions(self, deadline: float) -> list[Subscription]:
        """Those that the first `wish` has led to; waits for that."""
        while not self._consuming.wait(LOOK_S) and remaining(self._clock, deadline):
            continue
        consumers = list(self._owner.consumers.values())
        return [one.subscription for one in consumers if one.subscription is not None]

    def _arrive(self, consumer: Consumer, deliveries: Sequence[Delivery]) -> None:
        self._arrived.append((consumer, deliveries, self._clock.monotonic()))
        self._woken.set()

    def _sent_ended(self, sending: Sending, error: TqBrokerError | None) -> None:
        self._receipts.append((sending, error))
        self._woken.set()

    def _about(self, shard: int) -> ShardInfo:
        return msgspec.structs.replace(self._owner.about(shard), lag_ms=round(self._lag_s * 1000))

    # --- the thread -------------------------------------------------------------------------------

    def _run(self) -> None:
        owner = self._owner
        while True:
            self._is_waiting = True
            self._woken.wait()
            self._is_waiting = False
            self._woken.clear()
            try:
                while self._go_on():
                    continue
                if self._stopping.is_set() and not owner.held:
                    break
                self._book(owner.due_at())
            except Halted:
                break
            except Exception:  # supervisor of the shards
                log.exception("history: internal error (please report this)")
                owner.lose(owner.owned.keys() | owner.consumers.keys())
                self._give_back()
                self._book(self._clock.monotonic() + AGAIN_AFTER_S)
        owner.lose(owner.owned.keys() | owner.consumers.keys())
        self._give_back()
        self._readers.shutdown(wait=False, cancel_futures=True)

    def _go_on(self) -> bool:
        """Do what there is to do; tells whether there may be more."""
        owner = self._owner
        self._obey()
        while self._receipts:
            self._told += owner.ended(*self._receipts.popleft())
        owner.send_again()
        parcels = self._in_hand = self._collect()
        self._taken = []
        wakes = owner.take_due(LETTERS_MAX)
        if parcels or wakes:
            self._process(parcels, wakes)
            self._in_hand = []
        elif owner.sent_are_due():
            owner.flush_sent()
        owner.finish_releases()
        return bool(parcels or wakes)

    def _book(self, at: float | None) -> None:
        """Have the thread woken at ``at``, if not earlier."""
        if at is None:
            return
        if self._booked is not None:
            before, timer = self._booked
            if self._clock.monotonic() < before <= at:
                return
            timer.cancel()
        self._booked = (at, self._clock.call_at(at, self._woken.set))

    def _obey(self) -> None:
        """Consume, acquire and release as it was wished."""
        owner = self._owner
        wishes, self._wishes = self._wishes, None
        if self._stopping.is_set():
            owner.release(owner.owned.keys() - owner.releasing.keys())
            owner.close(owner.consumers)
        elif wishes is not None:
            owner.release((wishes.release & owner.owned.keys()) - owner.releasing.keys())
            owner.close(owner.consumers.keys() - wishes.serve - owner.owned.keys())
            for shard in wishes.serve - owner.consumers.keys() - owner.releasing.keys():
                owner.subscribe(shard)
            self._consuming.set()
            self._make_sure()
            owner.acquire((wishes.take & owner.consumers.keys()) - owner.owned.keys())

    def _make_sure(self) -> None:
        """Forget what has become another's while we were stopped, or had nothing to commit."""
        try:
            self._owner.make_sure()
        except Fenced as error:
            log.warning("history: %s", error)
            self._owner.forget(error.shards)

    # --- what comes -------------------------------------------------------------------------------

    def _collect(self) -> list[Parcel]:
        """What is to be dealt with now."""
        told, self._told = self._told, []
        parcels = [Parcel(letter, None) for letter in told]
        arrived = self._taken = self._take_arrived()
        # Who gets messages is the active consumer: the owner before is gone, or will be fenced.
        active = {consumer.shard for consumer, _ in arrived if consumer.open}
        self._owner.acquire(active - self._owner.owned.keys())
        for consumer, deliveries in arrived:
            for delivery in deliveries:
                if not consumer.open:
                    delivery.reject(requeue=True)
                elif (parcel := self._read(consumer.shard, delivery)) is not None:
                    parcels.append(parcel)
        while self._answers:
            self._tell(*self._answers.popleft())
        return parcels

    def _take_arrived(self) -> list[tuple[Consumer, Sequence[Delivery]]]:
        taken: list[tuple[Consumer, Sequence[Delivery]]] = []
        count = 0
        while self._arrived and count < LETTERS_MAX:
            consumer, deliveries, since = self._arrived.popleft()
            if not taken:
                self._lag_s = self._clock.monotonic() - since
            taken.append((consumer, deliveries))
            count += len(deliveries)
        return taken

    def _give_back(self) -> None:
        """Nothing is ours any more: somebody else gets what was not dealt with."""
        deliveries = [parcel.delivery for parcel in (*self._in_hand, *self._reading)]
        self._in_hand = []
        self._reading.clear()
        self._told = []
        # Of these some may have been dealt with, or stand above: to give back twice does no harm.
        for _, taken in self._taken:
            deliveries += taken
        self._taken = []
        while self._arrived:
            deliveries += self._arrived.popleft()[1]
        for delivery in deliveries:
            if delivery is not None:
                delivery.reject(requeue=True)

    def _read(self, shard: int, delivery: Delivery) -> Parcel | None:
        """The letter in ``delivery``, unless it goes elsewhere."""
        try:
            letter = letters.read(delivery.message, shard, self._names)
        except Malformed as error:
            self._park(shard, delivery, error.reason)
            return None
        if isinstance(letter.content, Echo):
            # What came before it is dealt with in the same transaction as those that it wakes, or
            # was before.
            self._owner.heard(shard, letter.content)
            delivery.ack()
            return None
        parcel = Parcel(letter, delivery)
        if isinstance(letter.content, letters.OUTSIDE):
            self._ask(parcel)
            return None
        return parcel

    def _ask(self, parcel: Parcel) -> None:
        """Have the readers answer it; here and now where the system has no thread for them."""
        self._reading.add(parcel)
        try:
            self._readers.submit(self._answer, parcel)
        except RuntimeError as error:
            log.warning("history: no thread to read with: %s", error)
            self._answer(parcel)

    def _answer(self, parcel: Parcel) -> None:  # on a thread of the readers, mostly
        answer: Reply | Exception
        try:
            answer = self._patience.insist(lambda: self._reader.answer(parcel.letter))
        except Halted:
            return  # the lane gives it back
        except Exception as error:  # supervisor of the readers: it is parked with its letter
            answer = error
        self._answers.append((parcel, answer))
        self._woken.set()

    def _tell(self, parcel: Parcel, answer: Reply | Exception) -> None:
        if parcel not in self._reading:
            return  # it was answered already, or given back
        self._reading.remove(parcel)
        letter, delivery = parcel.letter, parcel.delivery
        assert delivery is not None, "only what comes from outside is answered from the store"
        if isinstance(answer, Exception):
            self._give_up(parcel, answer)
        elif letter.sender is None:
            delivery.ack()
        else:
            sending = Sending(ReplyRecord(letter.sender, answer), letter.shard)
            self._owner.send([sending], [delivery])

    def _park(self, shard: int, delivery: Delivery, reason: str) -> None:
        queue, message = str(self._names.history(shard)), delivery.message
        log.warning("message %.100r of %s parked: %s", message.message_id, queue, reason)
        parked = envelope.parked(
            message, reason, queue=queue, now_ms=self._owner.now_ms(), by=self._identity
        )
        self._owner.send([Sending(Parked(parked), shard)], [delivery])

    # --- one transaction --------------------------------------------------------------------------

    def _process(self, parcels: list[Parcel], wakes: list[Wake], conflicts: int = 0) -> None:
        """Deal with ``parcels`` and ``wakes``, whatever happens.

        Args:
            conflicts: How often the store has found something in them in conflict.
        """
        owner = self._owner
        try:
            self._carry_out(parcels, wakes, is_suspect=conflicts > 0)
        except Halted:
            raise
        except Fenced as error:
            log.warning("history: %s", error)
            self._undo()
            owner.forget(error.shards)
            self._process_ours(parcels, wakes, conflicts)
        except OutcomeUnknown as error:
            log.warning("history: whether it was stored is not known: %s", error)
            self._process_ours(parcels, self._read_anew(wakes), 1)
        except Conflict as error:
            log.warning("history: %s; reading anew", error)
            if conflicts == CONFLICTS_MAX:
                self._undo()
                self._halve(parcels, wakes, error)
            else:
                wakes = self._read_anew(wakes) if conflicts else wakes
                self._undo()
                self._process_ours(parcels, wakes, conflicts + 1)
        except Exception as error:  # supervisor of the shards
            self._undo()
            self._halve(parcels, wakes, error)

    def _carry_out(self, parcels: list[Parcel], wakes: list[Wake], *, is_suspect: bool) -> None:
        owner, now_ms = self._owner, self._owner.now_ms()
        transaction = self._transaction = Transaction(
            owner.cache,
            owner.owned,
            owner.recent,
            now_ms,
            partial(_new_run_id, now_ms),
            owner.deployments,
            owner.rules,
            owner.capabilities,
        )
        owner.load(
            {parcel.letter.run_id for parcel in parcels} | {run_id for _, run_id in wakes},
            {parcel.letter.workflow_id for parcel in parcels if not parcel.letter.run_id},
        )
        owner.look_up(
            parcel.letter
            for parcel in parcels
            if parcel.letter.once and (is_suspect or _may_be_second(parcel.delivery))
        )
        for parcel in parcels:
            transaction.take(parcel.letter)
        for _, run_id in wakes:
            transaction.wake(run_id)
        owner.commit(transaction.batch())
        owner.stored(transaction, now_ms)
        owner.send(
            transaction.sendings,
            [parcel.delivery for parcel in parcels if parcel.delivery is not None],
        )
        owner.listen(transaction)
        owner.cache.shrink()

    def _undo(self) -> None:
        """Drop what the transaction has changed in memory."""
        assert self._transaction is not None, "there was one"
        for run_id in self._transaction.touched:
            self._owner.cache.drop(run_id)

    def _read_anew(self, wakes: list[Wake]) -> list[Wake]:
        """Take new epochs of the shards of the transaction: what is read then is final.

        Returns those of ``wakes`` that are not read with it.
        """
        assert self._transaction is not None, "there was one"
        self._undo()
        shards = self._transaction.shards & self._owner.owned.keys()
        self._owner.acquire(shards)
        return [wake for wake in wakes if wake[0] not in shards]

    def _process_ours(self, parcels: list[Parcel], wakes: list[Wake], conflicts: int) -> None:
        """The same again for what is of shards that are still ours."""
        owned = self._owner.owned
        kept = [parcel for parcel in parcels if parcel.letter.shard in owned]
        for parcel in parcels:
            if parcel.letter.shard not in owned and parcel.delivery is not None:
                parcel.delivery.reject(requeue=True)
        wakes = [wake for wake in wakes if wake[0] in owned]
        if kept or wakes:
            self._process(kept, wakes, conflicts)

    def _halve(self, parcels: list[Parcel], wakes: list[Wake], error: Exception) -> None:
        """Something in here cannot be done: find it, and do the rest."""
        if len(parcels) + len(wakes) == 1:
            for parcel in parcels:
                self._give_up(parcel, error)
            for shard, run_id in wakes:
                log.error("history: run %s cannot be woken", run_id, exc_info=error)
                self._owner.wakeups.set(shard, run_id, self._owner.now_ms() + POISONED_MS)
            return
        if parcels and wakes:
            parts = [(parcels, []), ([], wakes)]
        else:
            some, few = (len(parcels) + 1) // 2, (len(wakes) + 1) // 2
            parts = [(parcels[:some], wakes[:few]), (parcels[some:], wakes[few:])]
        for half, due in parts:
            self._process_ours(half, due, 0)

    def _give_up(self, parcel: Parcel, error: Exception) -> None:
        log.error("history: internal error (please report this)", exc_info=error)
        if parcel.delivery is not None:
            self._park(parcel.letter.shard, parcel.delivery, f"internal error: {error!r}")


def _new_run_id(now_ms: int) -> str:
    return str(version_7(now_ms, secrets.randbits(RANDOM_BITS)))


def _may_be_second(delivery: Delivery | None) -> bool:
    return delivery is not None and (
        delivery.redelivered or envelope.RESENT in delivery.message.headers
    )
