"""The usher of one task queue: lets tasks in whose type or key has limits of its own.

Three queues, see `tq_broker.queues.topology.anteroom`:

* whoever takes a task from a queue of workers that is under such a limit puts it into the
  *anteroom*, and asks nothing. So no worker sits on what it may not start;
* all workers of the task queue subscribe to the *roster*, which has a single active consumer:
  RabbitMQ elects the usher, and the next one within milliseconds of its death. The usher takes what
  is in the anteroom, lets each go as soon as it may, those of the best priority first, to the queue
  of those that are *admitted* (or to the host, version or capable workers that it is for), and
  hears from the roster how it began and ended;
* a pass is in the roster before its task goes on, and stays there, unacknowledged, until its task
  has ended. So the next usher knows what is out. What has saved up in the buckets it does not know,
  and begins with empty ones: a death costs a key what it had saved.

One queue per key would need no usher, but some queues for each key in sight, and a subscription of
each worker to each of them.

Threads: `step` belongs to one thread; the rest may be called from any.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import msgspec

from tq_broker.clock import Clock, epoch_ms
from tq_broker.exceptions import Malformed, TqBrokerError, Unavailable
from tq_broker.model import envelope, passes
from tq_broker.model.control import HeldBack
from tq_broker.model.limits import SETTLE_S
from tq_broker.model.message import Message
from tq_broker.model.names import Kind, QueueName
from tq_broker.model.parts import Part, PartTable
from tq_broker.model.passes import News, Pass, What
from tq_broker.model.settings import ACTIVITY_SIDE
from tq_broker.model.tasks import ActivityTask
from tq_broker.queues.broker import Delivery, SubscribeOptions, Subscription
from tq_broker.queues.dispatcher import Dispatcher
from tq_broker.worker.anteroom import Anteroom
from tq_broker.worker.inbox import Inbox
from tq_broker.worker.insistence import SEND_WITHIN_S
from tq_broker.worker.reporter import Reporter

log = logging.getLogger(__name__)

IN_SIGHT_MAX = 10_000
"""Tasks that the usher looks at, at a time."""
STUCK_S = 0.5
SPILL_MAX = 500
"""If nobody of those in sight may go in for so long, so many of the longest line go to the back of
the queue, and others come in sight."""
TIDY_S = 5.0
AGAIN_S = 1.0
LATE_S = 10.0
"""RabbitMQ reads the connections of one process in any order, also when it was killed: what the
roster is told of a pass may come before the pass does, and a task before the pass of the usher who
died over it. Both are remembered for so long."""
LINES_TOLD = 20
"""Lines that answers to a ping tell of."""

State = tuple[PartTable, Mapping[str, int]]
"""The limits, and which keys are held until when (epoch ms)."""


@dataclass(frozen=True, slots=True)
class _Task:
    """One that waits."""

    task: ActivityTask
    delivery: Delivery


class Usher:
    """See the module.

    Args:
        state: The limits now.
        wake: Called when `step` has something to do.
    """

    def __init__(
        self,
        task_queue: str,
        dispatcher: Dispatcher,
        reporter: Reporter,
        clock: Clock,
        state: Callable[[], State],
        wake: Callable[[], None],
    ) -> None:
        self.task_queue = task_queue
        self._dispatcher = dispatcher
        self._sender = sender = dispatcher.sender
        self._reporter = reporter
        self._clock = clock
        self._state = state
        names = sender.names
        self._anteroom_queue = names.queue(Kind.ANTEROOM, task_queue)
        self._roster_queue = names.queue(Kind.ROSTER, task_queue)
        self._inbox = Inbox(wake)
        self._roster: Subscription | None = None
        self._anteroom: Subscription | None = None
        self._epoch = 0
        self._sight = 0
        """Counts how often what waits was lost from sight."""
        self._aside_until = float("-inf")
        self._room: Anteroom[_Task] | None = None
        self._heeded: State | None = None
        self._settled_at: dict[Part, float] = {}
        self._baton_id = ""
        self._baton: Delivery | None = None
        self._held: dict[str, list[Delivery]] = {}
        """By pass: what stands for it in the roster."""
        self._inherited: dict[tuple[str, int], str] = {}
        """Passes of an usher before, by attempt: it may have died before the task went on."""
        self._overdue: dict[str, tuple[float, Delivery]] = {}
        """Passes that have ended and are not in the roster so far: since when, and the news."""
        self._passed: dict[tuple[str, int], float] = {}
        """Attempts that have come again from an usher before, without a pass: since when."""
        self._moved_at = self._tidied_at = float("-inf")

    @property
    def is_kept_here(self) -> bool:
        """Whether this is the usher."""
        return self._room is not None

    @property
    def waiting(self) -> int:
        """How many tasks in sight wait."""
        room = self._room
        return 0 if room is None else len(room)

    def held_back(self) -> list[HeldBack]:
        """The longest lines of those, as they are in this moment."""
        room, now_ms = self._room, epoch_ms(self._clock)
        lines = [] if room is None else room.longest(LINES_TOLD)
        return [
            HeldBack(
                task_queue=self.task_queue,
                activity_type=type_,
                key=key,
                priority=priority,
                count=count,
                oldest_age_s=_age_s(first.task, now_ms),
            )
            for (type_, key, priority), count, first in lines
        ]

    def find(self, activity_id: str) -> list[ActivityTask]:
        """The tasks of an activity that wait in sight; on any thread."""
        room = self._room
        waiting = [] if room is None else room.all()
        return [one.task for one in waiting if one.task.activity_id == activity_id]

    def stand_aside(self, for_s: float) -> None:
        """Leave what waits to RabbitMQ for so long, and let nobody in; 0: do so no more."""
        self._inbox.later(lambda: self._stand_aside(for_s))

    def open(self) -> None:
        """Stand for election."""
        self._roster = self._sender.broker.subscribe(
            str(self._roster_queue),
            self._on_roster,
            SubscribeOptions(
                prefetch=0,
                plan=self._sender.plan(self._roster_queue),
                on_accepted=self._on_accepted,
                on_lost=lambda: self._inbox.later(self._forget),
            ),
        )

    def close(self) -> None:
        """Leave it to somebody else; after the last `step`."""
        self._inbox.close()
        if self._roster is not None:
            self._roster.cancel_nowait()
        self._forget()

    # --- on the reading thread --------------------------------------------------------------------

    def _on_accepted(self) -> None:
        # Whoever is elected is told so, also when the roster is empty.
        baton = passes.baton_message(self._sender.ids.next())
        self._reporter.roster.put(self._roster_queue, baton, _nothing)

    def _on_roster(self, deliveries: Sequence[Delivery]) -> None:
        self._inbox.later(lambda: self._receive(deliveries))

    def _on_tasks(self, sight: int, deliveries: Sequence[Delivery]) -> None:
        self._inbox.later(lambda: self._arrive(sight, deliveries))

    # --- on the usher's thread --------------------------------------------------------------------

    def step(self) -> float | None:
        """Do what is due; returns when something is due again (monotonic), if it is known."""
        self._inbox.work_off()
        room = self._room
        if room is None or not self._is_read_in:
            return None
        now = self._clock.monotonic()
        if self._anteroom is None:
            if now < self._aside_until:
                return self._aside_until
            self._look()
        self._heed(room, now)
        for admission in room.admit(now):
            self._moved_at = now
            self._admit(admission.item, admission.parts)
        if now >= self._tidied_at + TIDY_S:
            self._tidied_at = now
            room.tidy(now)
            self._tidy(now)
        if len(room) < IN_SIGHT_MAX:
            self._moved_at = max(self._moved_at, now)
        elif now >= self._moved_at + STUCK_S:
            self._moved_at = now
            for one in room.spill(SPILL_MAX):
                self._send_to_back(one)
        return room.next_at()

    def _tidy(self, now: float) -> None:
        """Wait no more for what would have come by now."""
        late = [id for id, (since, _) in self._overdue.items() if now >= since + LATE_S]
        for pass_id in late:
            self._overdue.pop(pass_id)[1].ack()
        self._passed = {k: since for k, since in self._passed.items() if now < since + LATE_S}

    def _heed(self, room: Anteroom[_Task], now: float) -> None:
        """Put what the settings say into force."""
        state = table, holds_ms = self._state()
        if state == self._heeded:
            return
        wall = self._clock.wall()
        self._settle(table, now, wall)
        self._heeded = state
        holds = {key: now + until / 1000 - wall for key, until in holds_ms.items()}
        room.change(table, holds, now, self._settled_at)

    def _settle(self, table: PartTable, now: float, wall: float) -> None:
        """Note when the new limits of concurrency may be relied on."""
        before = None if self._heeded is None else self._heeded[0].counted_ms
        settled_at = {}
        for part, ms in table.counted_ms.items():
            if before is None:  # they may be old: only this usher is new
                settled_at[part] = now + min(SETTLE_S, ms / 1000 + SETTLE_S - wall)
            elif before.get(part) != ms:
                settled_at[part] = now + SETTLE_S
            elif part in self._settled_at:
                settled_at[part] = self._settled_at[part]
        self._settled_at = settled_at

    @property
    def _is_read_in(self) -> bool:
        """Whether all has been read that others have left in the roster."""
        return self._baton is not None

    def _forget(self) -> None:
        """We are not the usher any more. What is held goes back, if RabbitMQ has not taken it."""
        self._epoch += 1
        self._sight += 1
        room, self._room = self._room, None
        if self._anteroom is not None:
            self._anteroom.cancel_nowait()
            self._anteroom = None
        waiting = [] if room is None else [one.delivery for one in room.clear()]
        held = [one for group in self._held.values() for one in group]
        held += [news for _, news in self._overdue.values()]
        for delivery in (*waiting, *held, *([] if self._baton is None else [self._baton])):
            delivery.reject(requeue=True)
        self._held.clear()
        self._inherited.clear()
        self._overdue.clear()
        self._passed.clear()
        self._baton, self._baton_id = None, ""
        self._heeded = None

    def _receive(self, deliveries: Sequence[Delivery]) -> None:
        if self._inbox.is_closed:
            for delivery in deliveries:
                delivery.reject(requeue=True)
            return
        if self._room is None:
            self._take_over()
        for delivery in deliveries:
            if delivery.message.kind == passes.BATON:
                self._take_baton(delivery)
                continue
            try:
                said = passes.read(delivery.message)
            except Malformed as error:
                log.warning("foreign message in %s dropped: %s", self._roster_queue, error)
                delivery.ack()
                continue
            if isinstance(said, Pass):
                self._read_pass(said, delivery)
            else:
                self._hear(said, delivery)

    def _take_over(self) -> None:
        now = self._clock.monotonic()
        table, _ = self._state()
        self._room = Anteroom(table, now)
        self._baton_id = self._sender.ids.next()
        epoch = self._epoch
        # What was in the roster before comes before it.
        self._reporter.roster.put(
            self._roster_queue,
            passes.baton_message(self._baton_id),
            _nothing,
            is_wanted=lambda: self._epoch == epoch,
        )
        log.info("usher of task queue %s", self.task_queue)

    def _take_baton(self, delivery: Delivery) -> None:
        if self._baton is not None or delivery.message.message_id != self._baton_id:
            delivery.ack()
            return
        self._baton = delivery

    def _look(self) -> None:
        """Have in sight what waits."""
        sight = self._sight
        self._anteroom = self._sender.broker.subscribe(
            str(self._anteroom_queue),
            lambda deliveries: self._on_tasks(sight, deliveries),
            SubscribeOptions(
                prefetch=IN_SIGHT_MAX,
                plan=self._sender.plan(self._anteroom_queue),
                on_lost=lambda: self._inbox.later(lambda: self._lose_sight(sight)),
            ),
        )

    def _lose_sight(self, sight: int) -> None:
        """RabbitMQ has taken back what waits; it comes again."""
        if sight == self._sight and self._room is not None:
            self._room.clear()

    def _stand_aside(self, for_s: float) -> None:
        self._aside_until = self._clock.monotonic() + for_s
        if for_s and self._anteroom is not None and self._room is not None:
            self._sight += 1
            self._anteroom.cancel_nowait()
            self._anteroom = None
            for one in self._room.clear():
                one.delivery.reject(requeue=True)

    def _read_pass(self, given: Pass, delivery: Delivery) -> None:
        room = self._room
        assert room is not None, "we have taken over"
        overdue = self._overdue.pop(given.id, None)
        if overdue is not None:
            delivery.ack()
            overdue[1].ack()
            return
        if not room.knows(given.id):
            if (given.activity_id, given.attempt) in self._passed and not given.begun:
                delivery.ack()  # its task goes by another one
                return
            # The usher before has given it.
            now = self._clock.monotonic()
            room.restore(given.id, given.parts, now)
            if given.begun:
                room.begun(given.id, now)
            else:
                self._inherited[given.activity_id, given.attempt] = given.id
        self._held.setdefault(given.id, []).append(delivery)

    def _hear(self, news: News, delivery: Delivery) -> None:
        room, now = self._room, self._clock.monotonic()
        assert room is not None, "we have taken over"
        if not room.knows(news.id):
            if news.what is What.BEGUN or news.id in self._overdue:
                delivery.ack()
            else:
                self._overdue[news.id] = now, delivery
        elif news.what is What.BEGUN:
            room.begun(news.id, now)
            # It stays as long as the pass does, for the next usher.
            self._held.setdefault(news.id, []).append(delivery)
        else:
            (room.ended if news.what is What.ENDED else room.unused)(news.id, now)
            for held in self._held.pop(news.id, []):
                held.ack()
            delivery.ack()

    # --- tasks ------------------------------------------------------------------------------------

    def _arrive(self, sight: int, deliveries: Sequence[Delivery]) -> None:
        room = self._room
        if room is None or sight != self._sight:
            for delivery in deliveries:
                delivery.reject(requeue=True)
            return
        for delivery in deliveries:
            try:
                task = envelope.read_task(delivery.message, self.task_queue)
            except Malformed as error:
                queue = str(self._anteroom_queue)
                self._reporter.park(delivery.message, queue, error.reason, delivery.ack)
                continue
            one = _Task(task, delivery)
            rank = envelope.priority_of(delivery.message)
            inherited = self._inherited.pop((task.activity_id, task.attempt), None)
            if inherited is not None and delivery.redelivered and room.knows(inherited):
                self._send_on(one, inherited, self._epoch)
            else:
                if delivery.redelivered:
                    self._passed[task.activity_id, task.attempt] = self._clock.monotonic()
                key, share = task.rate_limit_key, task.fairness_key
                room.arrive(one, task.activity_type, key, rank, share)

    def _admit(self, one: _Task, parts: tuple[Part, ...]) -> None:
        assert self._room is not None, "only the usher admits"
        ids, epoch = self._sender.ids, self._epoch
        pass_id = ids.next()
        self._room.book(pass_id, parts)
        given = Pass(pass_id, parts, one.task.activity_id, one.task.attempt)
        self._reporter.roster.put(
            self._roster_queue,
            passes.pass_message(given, ids.next()),
            lambda: self._send_on(one, pass_id, epoch),
            is_wanted=lambda: self._epoch == epoch,
        )

    def _send_on(self, one: _Task, pass_id: str, epoch: int) -> None:
        """Its pass is in the roster, so it may go; on any thread."""
        task = msgspec.structs.replace(one.task, pass_mark=passes.mark(pass_id, self.task_queue))
        message = envelope.with_pass(one.delivery.message, task.pass_mark)
        to = self._dispatcher.destination(task).queue
        if to == self._sender.names.activity(self.task_queue):
            self._reporter.roster.put(
                *self._in_order(message),
                one.delivery.ack,
                is_wanted=lambda: self._epoch == epoch,
            )
        else:
            self._dispatch(task, message, one.delivery, epoch)

    def _in_order(self, message: Message) -> tuple[QueueName, Message]:
        """Where tasks wait that were let in, and what ``message`` is there: in the order of their
        priorities, if those of the task queue do."""
        names, prioritized = self._sender.names, self._dispatcher.traffic.prioritized
        if (ACTIVITY_SIDE, self.task_queue) in prioritized:
            queue = names.queue(Kind.ADMITTED_PRIORITY, self.task_queue)
            return queue, envelope.ranked(message)
        return names.queue(Kind.ADMITTED, self.task_queue), message

    def _dispatch(
        self, task: ActivityTask, message: Message, delivery: Delivery, epoch: int
    ) -> None:
        """Send a task to the host, process, version or capable workers that it is for."""
        deadline = self._clock.monotonic() + SEND_WITHIN_S

        def ended(error: TqBrokerError | None) -> None:
            if self._epoch != epoch:
                return
            if error is None:
                delivery.ack()
            elif isinstance(error, Unavailable):
                again_at = self._clock.monotonic() + AGAIN_S
                self._clock.call_at(
                    again_at, lambda: self._dispatch(task, message, delivery, epoch)
                )
            else:
                # Its target is gone, and it does not go elsewhere: it ends, without its pass.
                now_ms = epoch_ms(self._clock)
                bare = msgspec.structs.replace(task, pass_mark="")
                without = envelope.without_pass(message)
                told = lambda: self._reporter.dispatch(bare, without, now_ms, delivery.ack)  # noqa: E731
                self._reporter.roster.tell(task.pass_mark, What.UNUSED, told)

        self._dispatcher.dispatch(task, message, deadline, ended)

    def _send_to_back(self, one: _Task) -> None:
        epoch = self._epoch
        self._reporter.roster.put(
            self._anteroom_queue,
            envelope.forwarded(one.delivery.message),
            one.delivery.ack,
            is_wanted=lambda: self._epoch == epoch,
        )


def _age_s(task: ActivityTask, now_ms: int) -> float | None:
    since_ms = task.attempt_scheduled_ms or task.scheduled_ms
    return max(0, now_ms - since_ms) / 1000 if since_ms else None


def _nothing() -> None:
    """Whoever gets it does what follows."""
