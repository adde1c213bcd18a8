"""The limits of one worker's task queues: who stands at which queue, as the settings log says.

An unlimited task queue has nothing here. When the log limits one, its shared queue goes from the
poller to a `Turnstile`, and this worker stands for election as the `Bank` of its permits; when the
limit is lifted it goes back. Where types or keys have limits an `Usher` keeps all of them, and this
worker stands for election as that. As long as anything is limited threads run: ``tq-gates`` for the
turnstiles, ``tq-bank`` for the banks, because these wait for confirms, and ``tq-usher``.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tq_broker.clock import Clock
from tq_broker.exceptions import TqBrokerError
from tq_broker.model import control
from tq_broker.model.control import HeldBack
from tq_broker.model.limits import SETTLE_S, UNLIMITED, Limits, Side
from tq_broker.model.message import Publication
from tq_broker.model.names import PLAIN, Exchange, Kind, QueueName
from tq_broker.model.permits import Flavor, issue_of, place_of
from tq_broker.model.tasks import ActivityTask
from tq_broker.queues.sender import Sender
from tq_broker.worker.bank import Bank
from tq_broker.worker.pace import Pace
from tq_broker.worker.passage import Passage
from tq_broker.worker.poller import OnDeliveries, Poller
from tq_broker.worker.turns import LOOK_S, Turns
from tq_broker.worker.turnstile import Turnstile
from tq_broker.worker.usher import Usher

log = logging.getLogger(__name__)

RETRY_S = 0.25
DECLARE_WITHIN_S = 10.0
ASK_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Scope:
    """The one side of a worker that these limits are for.

    Attributes:
        queue_of: The shared queue in which the tasks of a task queue wait now.
        limits_of: What the settings log says of a task queue.
        is_paused: Whether the settings log says that a queue is paused.
        free_slots: Slots that nothing runs in.
        cover: Covers what runs without leave, when a limit comes into force.
        set_ms: When the limits of a task queue were set (epoch ms).
        is_ushered: Whether an usher keeps the limits of a task queue, because parts of it have
            some of their own.
        make_usher: Makes the one of a task queue, which calls what is given when it has to do.
        takes: Whether a queue is for workers of this one's deployment version now.
        cover_parts: Tells the usher of a task queue what runs without its leave.
    """

    side: Side
    queue_of: Callable[[str], QueueName]
    limits_of: Callable[[str], Limits]
    is_paused: Callable[[QueueName], object]
    free_slots: Callable[[], int]
    cover: Callable[[str, Callable[[], Passage]], None]
    set_ms: Callable[[str], int] = lambda task_queue: 0
    is_ushered: Callable[[str], bool] = lambda task_queue: False
    make_usher: Callable[[str, Callable[[], None]], Usher] | None = None
    takes: Callable[[QueueName], bool] = lambda queue: True
    cover_parts: Callable[[str], None] = lambda task_queue: None


def _not_asked(error: TqBrokerError | None) -> None:
    if error is not None:
        log.info("other workers were not asked for permits: %s", error)


class Gates:
    """See the module.

    Args:
        pace: The worker's own limit, if it has one: then every task queue has a turnstile.
    """

    def __init__(
        self,
        scope: Scope,
        sender: Sender,
        clock: Clock,
        poller: Poller,
        on_deliveries: OnDeliveries,
        pace: Pace | None = None,
    ) -> None:
        self._scope = scope
        self._sender = sender
        self._clock = clock
        self._poller = poller
        self._on_deliveries = on_deliveries
        self._pace = pace
        self._ticking = threading.Lock()
        self._lock = threading.Lock()
        self._turnstiles: dict[QueueName, Turnstile] = {}
        self._ushers: dict[str, Usher] = {}
        self._leaving: list[Turnstile] = []
        self._banks: dict[tuple[Flavor, str], Bank] = {}
        self._closed_banks: list[Bank] = []
        self._gates_turn = Turns("tq-gates", self._step_turnstiles)
        self._banks_turn = Turns("tq-bank", self._step_banks)
        self._ushers_turn = Turns("tq-usher", self._step_ushers)
        self._closed = False
        self._has_ticked = False
        """What limits there are from now on were set while this worker ran."""

    # --- facts ------------------------------------------------------------------------------------

    @property
    def in_hand(self) -> int:
        """Deliveries of limited queues that no window counts."""
        with self._lock:
            return sum(one.in_hand for one in (*self._turnstiles.values(), *self._leaving))

    def keeps(self, task_queue: str) -> list[str]:
        """What this worker keeps of the task queue: the banks ``rate`` and ``concurrency``, or
        ``usher``."""
        with self._lock:
            kept = [
                flavor.value
                for (flavor, name), bank in self._banks.items()
                if name == task_queue and bank.is_kept_here
            ]
            usher = self._ushers.get(task_queue)
        return [*kept, "usher"] if usher is not None and usher.is_kept_here else kept

    def waiting(self) -> dict[str, int]:
        """Tasks that wait for limits of their type or key, by task queue whose usher is here."""
        with self._lock:
            ushers = list(self._ushers.values())
        return {one.task_queue: one.waiting for one in ushers if one.is_kept_here}

    def held_back(self) -> list[HeldBack]:
        """The longest lines of those."""
        with self._lock:
            ushers = list(self._ushers.values())
        return [line for one in ushers for line in one.held_back()]

    def find(self, activity_id: str) -> list[ActivityTask]:
        """The tasks of an activity that wait for limits of their type or key, in sight of us."""
        with self._lock:
            ushers = list(self._ushers.values())
        return [task for one in ushers for task in one.find(activity_id)]

    def stand_aside(self, task_queue: str, for_s: float) -> None:
        """Have the usher leave what waits to RabbitMQ for so long, if it is here."""
        with self._lock:
            usher = self._ushers.get(task_queue)
        if usher is not None:
            usher.stand_aside(for_s)

    def give_way(self, task_queue: str) -> None:
        """Another worker has a task of it that only it may run, and no leave to begin it."""
        with self._lock:
            turnstiles = list(self._turnstiles.values())
        for turnstile in turnstiles:
            if turnstile.task_queue == task_queue:
                turnstile.give_way()

    def _ask_way(self, task_queue: str) -> None:
        """Ask the other workers for that; they are asked again if this is lost."""
        request = control.GiveWay(task_queue, self._scope.side)
        names, sender = self._sender.names, self._sender
        message = control.message(request, sender.ids.next())
        publication = Publication(names.exchange(Exchange.CONTROL), control.EVERY_WORKER, message)
        deadline = self._clock.monotonic() + ASK_WITHIN_S
        sender.send(publication, (), deadline, _not_asked)

    # --- from the supervisor ----------------------------------------------------------------------

    def tick(self, task_queues: Sequence[str]) -> None:
        """Put the limits of ``task_queues`` into force, as they are now; done often."""
        with self._ticking:  # the thread that starts the worker, and its supervisor
            if not self._closed:
                self._tick(task_queues)
                self._has_ticked = True

    def _tick(self, task_queues: Sequence[str]) -> None:
        for task_queue in task_queues:
            queue = self._scope.queue_of(task_queue)
            twin = self._sender.names.twin(queue)
            if twin in self._turnstiles:
                self._leave(twin)  # its tasks wait elsewhere now
            if self._scope.is_ushered(task_queue):
                self._open_usher(task_queue)
                self._scope.cover_parts(task_queue)
                for one in (queue, *self._admitted(queue)):
                    self._put_in_force(one, UNLIMITED)
            else:
                self._put_in_force(queue, self._scope.limits_of(task_queue))
        with self._lock:
            self._leaving = [one for one in self._leaving if not one.is_idle]

    def _put_in_force(self, queue: QueueName, limits: Limits) -> None:
        turnstile = self._turnstiles.get(queue)
        if turnstile is None:
            if not limits.is_unlimited or self._pace is not None:
                try:
                    self._enter(queue, limits)
                except TqBrokerError as error:
                    log.warning("limits of %s not in force yet: %s", queue, error)
        elif limits.is_unlimited and self._pace is None:
            self._leave(queue)
        else:
            self._change(turnstile, limits)

    def _admitted(self, queue: QueueName) -> list[QueueName]:
        """Serve whom the usher lets in; ``queue`` is where tasks wait before. Gives the queues."""
        names, task_queue = self._sender.names, queue.parts[-1]
        queues = [names.queue(Kind.ADMITTED, task_queue)]
        if queue.kind in PLAIN:
            queues.append(names.queue(Kind.ADMITTED_PRIORITY, task_queue))
        for one in queues:
            if not self._poller.serves(one):
                self._poller.serve(one)
        return queues

    def _open_usher(self, task_queue: str) -> None:
        """Stand for the usher's election."""
        make = self._scope.make_usher
        if task_queue not in self._ushers and make is not None:
            usher = make(task_queue, self._ushers_turn.wake)
            usher.open()
            with self._lock:
                self._ushers[task_queue] = usher
            self._ushers_turn.start()

    def _change(self, turnstile: Turnstile, limits: Limits) -> None:
        scope = self._scope
        paused = bool(scope.is_paused(turnstile.queue))
        elsewhere = not scope.takes(turnstile.queue)
        if turnstile.limits != limits:
            self._run_banks(turnstile.task_queue, limits)
        now = turnstile.limits, turnstile.is_paused, turnstile.is_elsewhere
        if now != (limits, paused, elsewhere):
            settled_at = self._settled_at(turnstile.task_queue)
            turnstile.limit(limits, paused=paused, elsewhere=elsewhere, settled_at=settled_at)

    def _enter(self, queue: QueueName, limits: Limits) -> None:
        scope, names = self._scope, self._sender.names
        task_queue = queue.parts[-1]
        # A turnstile consumes it only when it has a permit, and others want to publish now.
        self._sender.ensure([queue], self._clock.monotonic() + DECLARE_WITHIN_S)
        turnstile = Turnstile(
            queue,
            self._sender,
            self._clock,
            rates=place_of(names, Flavor.RATE, scope.side, task_queue),
            slots=place_of(names, Flavor.CONCURRENCY, scope.side, task_queue),
            pace=self._pace,
            on_deliveries=self._on_deliveries,
            wake=self._gates_turn.wake,
            ask_way=partial(self._ask_way, task_queue),
        )
        paused = bool(scope.is_paused(queue))
        turnstile.limit(
            limits,
            paused=paused,
            elsewhere=not scope.takes(queue),
            settled_at=self._settled_at(task_queue),
        )
        self._poller.hand_over(queue, turnstile)
        # Also if only the rate is limited: the concurrency may be next.
        scope.cover(task_queue, turnstile.cover)
        self._run_banks(task_queue, limits)
        with self._lock:
            self._turnstiles[queue] = turnstile
        self._gates_turn.start()

    def _settled_at(self, task_queue: str) -> float:
        """When a limit that is news now may be relied on."""
        now = self._clock.monotonic()
        if self._has_ticked:
            return now + SETTLE_S
        set_ago_s = self._clock.wall() - self._scope.set_ms(task_queue) / 1000
        return now + min(SETTLE_S, SETTLE_S - set_ago_s)

    def _leave(self, queue: QueueName) -> None:
        with self._lock:
            turnstile = self._turnstiles.pop(queue)
            self._leaving.append(turnstile)
        turnstile.limit(Limits())
        turnstile.close()
        self._run_banks(turnstile.task_queue, Limits())
        self._poller.take_back(queue)

    def _run_banks(self, task_queue: str, limits: Limits) -> None:
        for flavor in Flavor:
            self._run_bank(flavor, task_queue, limits)

    def _run_bank(self, flavor: Flavor, task_queue: str, limits: Limits) -> None:
        key, issue = (flavor, task_queue), issue_of(flavor, limits)
        bank = self._banks.get(key)
        if bank is not None and issue is not None:
            bank.change(issue)
        elif bank is not None:
            with self._lock:
                del self._banks[key]
                self._closed_banks.append(bank)
            self._banks_turn.wake()
        elif issue is not None:
            place = place_of(self._sender.names, flavor, self._scope.side, task_queue)
            bank = Bank(place, self._sender, self._clock, self._banks_turn.wake)
            bank.open(issue)
            with self._lock:
                self._banks[key] = bank
            self._banks_turn.start()

    # --- end --------------------------------------------------------------------------------------

    def close_intake(self, deadline: float) -> None:
        """Take nothing more, and leave the banks to others; what runs keeps its permits.

        Raises:
            DeadlineExceeded: the broker did not confirm in time.
        """
        with self._ticking:
            self._closed = True
        with self._lock:
            turnstiles = list(self._turnstiles.values())
        for turnstile in turnstiles:
            turnstile.close()
        self._gates_turn.stop()
        try:
            for turnstile in turnstiles:
                subscription = turnstile.open_batch()
                if subscription is not None:
                    subscription.cancel(deadline)
        finally:
            self._close_keepers()

    def _close_keepers(self) -> None:
        """Leave the banks and the ushers to others."""
        with self._lock:
            self._closed_banks += self._banks.values()
            self._banks.clear()
        self._banks_turn.stop()
        self._close_banks()
        self._ushers_turn.stop()
        with self._lock:
            ushers, self._ushers = list(self._ushers.values()), {}
        for usher in ushers:
            usher.close()

    # --- on the threads ---------------------------------------------------------------------------

    def _step_turnstiles(self) -> float:
        now = self._clock.monotonic()
        due = now + LOOK_S
        with self._lock:
            turnstiles = (*self._turnstiles.values(), *self._leaving)
        for turnstile in turnstiles:
            again = turnstile.step(now, self._scope.free_slots())
            due = due if again is None else min(due, again)
        return due - now

    def _step_banks(self) -> float:
        self._close_banks()
        now = self._clock.monotonic()
        due = now + LOOK_S
        with self._lock:
            banks = list(self._banks.values())
        for bank in banks:
            try:
                again = bank.step()
            except TqBrokerError as error:
                log.warning("permits not handed out: %s", error)
                again = now + RETRY_S
            due = due if again is None else min(due, again)
        return due - self._clock.monotonic()

    def _step_ushers(self) -> float:
        now = self._clock.monotonic()
        due = now + LOOK_S
        with self._lock:
            ushers = list(self._ushers.values())
        for usher in ushers:
            again = usher.step()
            due = due if again is None else min(due, again)
        return due - self._clock.monotonic()

    def _close_banks(self) -> None:
        with self._lock:
            banks, self._closed_banks = self._closed_banks, []
        for bank in banks:
            bank.close()
