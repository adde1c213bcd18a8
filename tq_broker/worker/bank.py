"""The bank of one limit: keeps the permits that nobody may use now, and hands them out in time.

All workers of a task queue subscribe to its bank queue, which has a single active consumer:
RabbitMQ elects the one who keeps the bank, and the next one within milliseconds of its death. A
worker that has used a permit rejects it, which moves it to the bank queue; the bank holds it
unacknowledged until it is time, and rejects it, which moves it back. So permits are neither made
nor lost by a death: those that a dead bank held come back to its queue, and those that a dead
worker held to theirs.

What RabbitMQ does not keep is in the ledger, a queue of one message: which permits were made, and
when the next one is due. It is written *ahead*: nothing is handed out before the ledger says so,
therefore the next bank hands out nothing twice. At high rates it is written for `AHEAD_S` at a
time, which is what a death costs at most.

Threads: `step` belongs to one thread; the rest may be called from any.
"""

from __future__ import annotations

import concurrent.futures
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future

import msgspec

from tq_broker.clock import Clock, remaining
from tq_broker.exceptions import DeadlineExceeded, Malformed, TqBrokerError
from tq_broker.model import permits
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, QueueName
from tq_broker.model.permits import Issue, Ledger, Mint, Permit, Place
from tq_broker.queues import topology
from tq_broker.queues.broker import Delivery, SubscribeOptions, Subscription
from tq_broker.queues.sender import Sender
from tq_broker.worker.reserve import Reserve

log = logging.getLogger(__name__)

AHEAD_S = 0.1
WITHIN_S = 5.0
MAKE_MAX = 1_000
"""Permits that are made at a time: those that are there are to be handed out meanwhile."""
PREFETCH_MAX = 0
"""No bound: the permits that were made are the bound."""


class Bank:
    """See the module. ``wake`` is called when `step` has something to do."""

    def __init__(
        self, place: Place, sender: Sender, clock: Clock, wake: Callable[[], None]
    ) -> None:
        self._place = place
        self._sender = sender
        self._clock = clock
        self._wake = wake
        self._issue = Issue(0)
        self._inbox: deque[Delivery | None] = deque()
        """``None``: what came before is not ours any more."""
        self._subscription: Subscription | None = None
        self._closed = False
        self._baton: Delivery | None = None
        self._ledger: Ledger | None = None
        self._reserve: Reserve[Delivery] | None = None
        self._reserved = float("-inf")
        """As far as the ledger lets permits go out: `Reserve.due`, monotonic."""
        self._writing: tuple[Future[None], Ledger, float] | None = None
        self._unseen: set[int] = set()
        """Ranks that were made by us and have not come yet."""

    @property
    def is_kept_here(self) -> bool:
        """Whether this is the one that hands the permits out."""
        return self._reserve is not None

    def open(self, issue: Issue) -> None:
        """Stand for election, for a limit with the permits of ``issue``."""
        names = self._sender.names
        place = self._place
        self._issue = issue
        plan = topology.namespace(names) + topology.permits(
            names, place.permits, place.bank, place.ledger
        )
        self._subscription = self._sender.broker.subscribe(
            str(place.bank),
            self._on_deliveries,
            SubscribeOptions(
                prefetch=PREFETCH_MAX,
                plan=plan,
                on_accepted=self._on_accepted,
                on_lost=self._on_lost,
            ),
        )

    def change(self, issue: Issue) -> None:
        """The limit is another one from the next `step` on."""
        self._issue = issue
        self._wake()

    def close(self) -> None:
        """Leave the bank to somebody else; after the last `step`."""
        self._closed = True
        if self._subscription is not None:
            self._subscription.cancel_nowait()
        self._forget(give_back=True)

    # --- on the reading thread ---

    def _on_lost(self) -> None:
        self._inbox.append(None)
        self._wake()

    def _on_accepted(self) -> None:
        # Whoever keeps the bank is told that it is the one, also when no permit is there yet.
        self._send(self._place.bank, permits.baton_message(self._sender.ids.next()))

    def _on_deliveries(self, deliveries: Sequence[Delivery]) -> None:
        if self._closed:
            for delivery in deliveries:
                delivery.reject(requeue=True)
            return
        self._inbox.extend(deliveries)
        self._wake()

    # --- on the bank's thread ---

    def step(self) -> float | None:
        """Do what is due; returns when something is due again (monotonic), if it is known.

        Raises:
            TqBrokerError: the broker did not do its part; to be tried again.
        """
        while self._inbox:
            delivery = self._inbox[0]
            if delivery is None:
                self._forget(give_back=False)
            else:
                self._receive(delivery)
            self._inbox.popleft()
        reserve, ledger = self._reserve, self._ledger
        if reserve is None or ledger is None:
            return None
        self._end_write()
        reserve, ledger = self._heed(reserve, ledger)
        if ledger.total < reserve.size:
            self._make(min(reserve.size - ledger.total, MAKE_MAX))
        self._hand_out(reserve)
        # Who waits for a write is woken when it has ended.
        return None if self._writing is not None else reserve.next_due()

    def _heed(self, reserve: Reserve[Delivery], ledger: Ledger) -> tuple[Reserve[Delivery], Ledger]:
        """Put the limit into force as it is now."""
        issue, now = self._issue, self._clock.monotonic()
        if ledger.mints and ledger.units != issue.units:
            # Permits for so many begins are of no use any more: whoever has one sends it back.
            for permit in reserve.empty():
                permit.ack()
            self._unseen.clear()
            self._ledger = ledger = msgspec.structs.replace(ledger, mints=())
            due = now + 1.0 / issue.rate if issue.rate else now
            self._reserve = reserve = Reserve(issue.size, 0, issue.rate, due)
            self._take_in()
        elif (reserve.size, reserve.rate) != (issue.size, issue.rate):
            shrinks = issue.size < reserve.size
            reserve.resize(issue.size, issue.rate, now)
            if shrinks:
                self._take_in()
        return reserve, ledger

    def _forget(self, *, give_back: bool) -> None:
        if give_back:
            held = [] if self._reserve is None else self._reserve.empty()
            held += [one for one in self._inbox if one is not None]
            for delivery in (*held, *([] if self._baton is None else [self._baton])):
                delivery.reject(requeue=True)
            self._inbox.clear()
        self._baton = self._ledger = self._reserve = self._writing = None
        self._reserved = float("-inf")
        self._unseen.clear()

    def _receive(self, delivery: Delivery) -> None:
        """Something has come to the bank's queue, so we are the one who keeps it."""
        if self._reserve is None:
            self._take_over()
        reserve, ledger = self._reserve, self._ledger
        assert reserve is not None, "we have taken over"
        assert ledger is not None, "we have taken over"
        if delivery.message.kind == permits.BATON:
            if self._baton is None:
                self._baton = delivery
            else:
                delivery.ack()
            return
        if delivery.message.kind == permits.REFUND:
            self._refund(reserve, ledger, delivery)
            return
        try:
            permit = permits.read_permit(delivery.message)
        except Malformed as error:
            log.warning("foreign message in %s dropped: %s", self._place.bank, error)
            delivery.ack()
            return
        if not ledger.knows(permit) or permit.rank in reserve:
            delivery.ack()  # made by somebody who died over it
            return
        was_here = delivery.redelivered or permit.rank in self._unseen
        self._unseen.discard(permit.rank)
        reserve.put(permit.rank, delivery, self._clock.monotonic(), was_here=was_here)

    def _refund(self, reserve: Reserve[Delivery], ledger: Ledger, delivery: Delivery) -> None:
        try:
            refund = permits.read_refund(delivery.message)
        except Malformed as error:
            log.warning("foreign message in %s dropped: %s", self._place.bank, error)
        else:
            # One that a bank had before may have counted already.
            if not delivery.redelivered:
                share = min(1.0, refund.units / ledger.units)
                reserve.refund(share, self._clock.monotonic())
        delivery.ack()

    def _take_over(self) -> None:
        deadline = self._clock.monotonic() + WITHIN_S
        found = self._sender.broker.get(str(self._place.ledger), deadline)
        ledger = Ledger()
        if found is not None:
            try:
                ledger = permits.read_ledger(found.message)
            except Malformed as error:
                log.warning("ledger of %s begun anew: %s", self._place.bank, error)
            found.reject(requeue=True)
        now = self._clock.monotonic()
        issue = self._issue
        reserve: Reserve[Delivery] = Reserve(issue.size, ledger.total, issue.rate, now)
        # A new limit begins with an empty bucket: what ran just before was not counted.
        reserve.due = self._monotonic(ledger.due_ms) if ledger.due_ms else now + reserve.interval
        reserve.due = min(reserve.due, now + max(reserve.interval, AHEAD_S))
        if ledger.is_full:
            reserve.due = max(reserve.due, now + reserve.interval)
        self._reserve, self._ledger = reserve, ledger
        log.info("keeping %s: %d permits were made", self._place.bank, ledger.total)

    def _make(self, count: int) -> None:
        """Make permits that there are too few of; the ledger counts them when they are there."""
        assert self._ledger is not None, "we keep the bank"
        ids, first = self._sender.ids, self._ledger.total
        units = self._issue.units
        mint = Mint(ids.next(), first, count, units)
        ranks = range(first, first + count)
        made = [permits.permit_message(Permit(mint.id, rank, units), ids.next()) for rank in ranks]
        self._wait([self._send(self._place.bank, message) for message in made])
        self._write(msgspec.structs.replace(self._ledger, mints=(*self._ledger.mints, mint)))
        self._unseen.update(ranks)
        if self._reserve is not None:
            self._reserve.total = first + count

    def _take_in(self) -> None:
        """The limit has shrunk: what nobody has taken comes back, and goes out anew as it is fit.
        Workers send back what they hold unused."""
        deadline = self._clock.monotonic() + WITHIN_S
        while found := self._sender.broker.get(str(self._place.permits), deadline):
            found.reject(requeue=False)

    def _hand_out(self, reserve: Reserve[Delivery]) -> None:
        now = self._clock.monotonic()
        if reserve.rate is None:
            gone = reserve.take(now)
        else:
            self._write_ahead(reserve, now)
            gone = reserve.take(now, until=self._reserved)
        for permit in gone:
            permit.reject(requeue=False)

    def _write_ahead(self, reserve: Reserve[Delivery], now: float) -> None:
        """Before anything goes out: the next bank must not hand out the same again."""
        if self._writing is not None or self._ledger is None:
            return
        is_fast = reserve.interval < AHEAD_S
        count = reserve.count_due(now)
        due = reserve.due + count * reserve.interval
        is_full = is_fast or reserve.out + count >= reserve.size
        is_news = due > self._reserved or (self._ledger.is_full and not is_full)
        if is_news or (is_fast and due > self._reserved - AHEAD_S / 2):
            self._begin_write(max(due, now) + AHEAD_S if is_fast else due, is_full)

    def _begin_write(self, due: float, is_full: bool) -> None:
        assert self._ledger is not None, "we keep the bank"
        due_ms = self._epoch_ms(due)
        ledger = msgspec.structs.replace(self._ledger, due_ms=due_ms, is_full=is_full)
        message = permits.ledger_message(ledger, self._sender.ids.next())
        written = self._send(self._place.ledger, message)
        self._writing = (written, ledger, due)
        written.add_done_callback(lambda _: self._wake())

    def _end_write(self) -> None:
        """Nobody waits for a write, but nothing goes out that it is for before it has ended."""
        if self._writing is None or not self._writing[0].done():
            return
        (written, ledger, due), self._writing = self._writing, None
        written.result()
        self._ledger, self._reserved = ledger, due

    def _write(self, ledger: Ledger) -> None:
        if self._writing is not None:
            self._wait([self._writing[0]])
            self._end_write()
            assert self._ledger is not None, "we keep the bank"
            due_ms, is_full = self._ledger.due_ms, self._ledger.is_full
            ledger = msgspec.structs.replace(ledger, due_ms=due_ms, is_full=is_full)
        message = permits.ledger_message(ledger, self._sender.ids.next())
        self._wait([self._send(self._place.ledger, message)])
        self._ledger = ledger

    def _send(self, queue: QueueName, message: Message) -> Future[None]:
        ended: Future[None] = Future()

        def done(error: TqBrokerError | None) -> None:
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(error)

        publication = Publication(self._sender.names.exchange(Exchange.TASKS), queue.key, message)
        deadline = self._clock.monotonic() + WITHIN_S
        self._sender.send(publication, (), deadline, done)
        return ended

    def _wait(self, ends: Sequence[Future[None]]) -> None:
        deadline = self._clock.monotonic() + 2 * WITHIN_S
        for end in ends:
            try:
                end.result(remaining(self._clock, deadline))
            except concurrent.futures.TimeoutError:
                raise DeadlineExceeded("permits were not confirmed in time") from None

    def _epoch_ms(self, due: float) -> int:
        return math.ceil((due - self._clock.monotonic() + self._clock.wall()) * 1000)

    def _monotonic(self, epoch_ms: int) -> float:
        return epoch_ms / 1000 - self._clock.wall() + self._clock.monotonic()
