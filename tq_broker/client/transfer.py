"""Moving and copying the tasks that wait in one task queue to another, or looking through them.

Rules of this file:

* a task is never only in our hands: its fresh copy is confirmed where it goes before the original
  is acknowledged. Killed at any point, what was in hand goes back to its queue, and some of it may
  be in both: at least once;
* what RabbitMQ takes back from us is marked ``redelivered``, and to a worker that is a lost
  attempt. So we give nothing back: what stays is put at the back of its queue as a fresh copy,
  marked with the id of the job, so that the job knows it when it comes round;
* a task that was handed out before, to a worker or to a transfer that was killed, keeps that mark:
  as the header ``tq-handed-out``. What only an usher or a dealer has had nobody has begun;
* a task that an usher has let in has a pass, which it does not take elsewhere: the usher's roster
  is told what becomes of it, and has confirmed that, before the task is gone from here;
* a job ends after as many tasks as waited when it began. What comes meanwhile is not its concern,
  and workers may consume on both sides.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import msgspec

from tq_broker.client.core import ClientCore
from tq_broker.exceptions import InvalidArgument, Malformed, TqBrokerError
from tq_broker.model import envelope, passes, workflow_tasks
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import DEALT, Exchange, Kind, QueueName, check_task_queue, check_text
from tq_broker.model.passes import News, What
from tq_broker.queues.broker import Delivery

BATCH = 100
"""Tasks in hand at a time: as many attempts may count as lost when this process is killed."""
HELD_MAX = 2_000
"""Tasks of the job's own that may come round before it gives up to look behind them."""
JOB_BYTES_MAX = 64
JOB = "tq-transfer"
COPY_OF = "tq-copy-of"

_NOT_COPIED = (
    "tq-workflow",
    "tq-start-token",
    "tq-id-retention-ms",
    "tq-id-conflict",
    envelope.RESENT,
    envelope.HANDED_OUT,
    envelope.PASS,
    JOB,
)


class Verb(enum.Enum):
    """What becomes of the tasks that a job is about."""

    MOVE = "move"
    COPY = "copy"
    COUNT = "count"
    DROP = "drop"
    """They go nowhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be done.

    Attributes:
        types: Patterns of types (``*`` and ``?``); empty means all tasks.
        limit: So many tasks at most; ``None`` means all.
        id: What the job's marks say; the same again continues a copy that was interrupted.
    """

    verb: Verb
    source: QueueName
    target: QueueName | None
    types: tuple[str, ...] = ()
    limit: int | None = None
    id: str

    def __post_init__(self) -> None:
        check_text("job", self.id, bytes_max=JOB_BYTES_MAX)
        for pattern in self.types:
            check_text("types", pattern)
        if self.source == self.target:
            raise InvalidArgument("source and target are the same task queue")
        if self.verb is Verb.COPY and self.source.kind is Kind.WORKFLOW:
            raise InvalidArgument(
                "workflow tasks cannot be copied: a run takes one answer to each; move them"
            )
        limit = self.limit
        if limit is not None and (isinstance(limit, bool) or limit < 1):
            raise InvalidArgument(f"limit is {limit!r}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Transferred:
    """How far a job is, or how it ended.

    Attributes:
        job: Its id.
        waiting: Tasks that waited when it began.
        seen: Tasks it has looked at.
        done: Tasks it has moved, copied or counted.
        types: Those by type; unreadable ones as ``?``.
        is_dry: Nothing was moved or copied: it is what would be.
        complete: False if it may not have seen all: so many tasks that stay came round that it
            does not know what is behind them (tasks of a lower priority, if any).
    """

    job: str
    waiting: int
    seen: int = 0
    done: int = 0
    types: dict[str, int] = field(default_factory=dict)
    is_dry: bool = False
    complete: bool = True

    def plus(self, other: Transferred) -> Transferred:
        """Both, for a task queue that has several queues."""
        types = {
            name: self.types.get(name, 0) + other.types.get(name, 0)
            for name in (*self.types, *other.types)
        }
        return replace(
            self,
            waiting=self.waiting + other.waiting,
            seen=self.seen + other.seen,
            done=self.done + other.done,
            types=types,
            complete=self.complete and other.complete,
        )


OnProgress = Callable[[Transferred], None]


def type_of(message: Message) -> str:
    """The activity or workflow type of a task; ``?`` if it cannot be read."""
    if message.kind == workflow_tasks.WORKFLOW_TASK:
        try:
            return workflow_tasks.read_task(message).workflow_type
        except Malformed:
            return "?"
    name = message.headers.get("tq-activity-type")
    return name if isinstance(name, str) and name else "?"


def is_wanted(type_: str, patterns: Sequence[str]) -> bool:
    """Whether a task of that type is meant by ``patterns``."""
    return not patterns or any(fnmatchcase(type_, pattern) for pattern in patterns)


def moved(delivery: Delivery, source: QueueName) -> Message:
    """The task of ``delivery``, from ``source``, as it is put elsewhere."""
    begun = _may_have_begun(delivery, source)
    handed_on = envelope.handed_on(delivery.message, may_have_begun=begun)
    return _without(handed_on, JOB, envelope.PASS)


def stayed(delivery: Delivery, source: QueueName, job: str) -> Message:
    """The same as it goes to the back of its queue."""
    begun = _may_have_begun(delivery, source)
    copy = envelope.handed_on(delivery.message, may_have_begun=begun)
    return envelope.forwarded(copy, headers={JOB: job})


def pass_news(delivery: Delivery) -> tuple[str, News] | None:
    """What is to be told of the pass of a task that is gone from its queue, and of which task queue
    the usher is told; ``None`` if it has no pass."""
    mark = delivery.message.headers.get(envelope.PASS)
    if not isinstance(mark, str):
        return None
    pass_id, task_queue = passes.read_mark(mark)
    try:
        check_task_queue(task_queue)
    except InvalidArgument:
        return None
    return task_queue, News(pass_id, What.ENDED if delivery.redelivered else What.UNUSED)


def copied(message: Message, job: str) -> Message:
    """A task like that of ``message`` that is nobody else's: with an id of its own, without a
    caller, a run or an idempotent id. Its id is the same whenever the job makes it."""
    origin = message.correlation_id or message.message_id
    digest = hashlib.blake2b(f"{job}\0{origin}".encode("utf-8", "replace"), digest_size=12)
    copy_id = f"copy-{digest.hexdigest()}"
    copy = _without(envelope.forwarded(message), *_NOT_COPIED)
    return envelope.forwarded(
        copy,
        message_id=copy_id,
        correlation_id=copy_id,
        reply_to=None,
        headers={COPY_OF: origin[: envelope.TEXT_MAX]},
    )


def _may_have_begun(delivery: Delivery, source: QueueName) -> bool:
    if delivery.message.kind == workflow_tasks.WORKFLOW_TASK:
        return False
    is_redelivered = delivery.redelivered and source.kind not in (Kind.ANTEROOM, *DEALT)
    return is_redelivered or envelope.HANDED_OUT in delivery.message.headers


def _without(message: Message, *names: str) -> Message:
    headers = {name: value for name, value in message.headers.items() if name not in names}
    return msgspec.structs.replace(message, headers=headers)


class Transfer:
    """One job under way. Blocks; used by one thread."""

    def __init__(self, core: ClientCore, job: Job, on_progress: OnProgress | None) -> None:
        self._core = core
        self._job = job
        self._on_progress = on_progress
        self._held: list[Delivery] = []
        self._source = job.source
        self._until = 0
        self._state = Transferred(job=job.id, waiting=0, is_dry=job.verb is Verb.COUNT)

    def run(self, waiting: Mapping[QueueName, int]) -> Transferred:
        """Do it; ``waiting`` is how many tasks wait now in which of the queues of the source.

        Raises what stands in the way: what was done until then is done.
        """
        self._core.sender.ensure((), self._core.deadline())
        self._state = replace(self._state, waiting=sum(waiting.values()))
        for self._source, count in waiting.items():
            self._until = self._state.seen + count
            try:
                while self._goes_on() and self._batch():
                    if self._on_progress is not None:
                        self._on_progress(self._state)
            finally:
                self._let_go()
        return self._state

    def _goes_on(self) -> bool:
        state, limit = self._state, self._job.limit
        if len(self._held) >= HELD_MAX:
            self._state = replace(state, complete=False)
            return False
        return state.seen < self._until and (limit is None or state.done < limit)

    def _batch(self) -> bool:
        """Take and place some tasks; False when no more came."""
        state, limit = self._state, self._job.limit
        most = min(BATCH, self._until - state.seen)
        if limit is not None:
            most = min(most, limit - state.done)
        taken = self._take(most)
        fresh = [one for one in taken if one.message.headers.get(JOB) != self._job.id]
        self._held += [one for one in taken if one.message.headers.get(JOB) == self._job.id]
        self._place(fresh)
        return len(taken) == most

    def _take(self, most: int) -> list[Delivery]:
        taken: list[Delivery] = []
        deadline = self._core.deadline()
        try:
            while len(taken) < most:
                one = self._core.broker.get(str(self._source), deadline)
                if one is None:
                    break
                taken.append(one)
        except TqBrokerError:
            for one in taken:
                one.reject(requeue=True)
            raise
        return taken

    def _place(self, deliveries: Sequence[Delivery]) -> None:
        there: list[tuple[Delivery, Message]] = []
        back: list[tuple[Delivery, Message]] = []
        over: list[Delivery] = []
        job, counts = self._job, dict(self._state.types)
        done = 0
        for one in deliveries:
            type_ = type_of(one.message)
            wanted = is_wanted(type_, job.types)
            if wanted:
                done += 1
                counts[type_] = counts.get(type_, 0) + 1
            if wanted and job.verb in (Verb.MOVE, Verb.DROP):
                over.append(one)
                if job.verb is Verb.MOVE:
                    there.append((one, moved(one, self._source)))
                continue
            if wanted and job.verb is Verb.COPY:
                there.append((one, copied(one.message, job.id)))
            back.append((one, stayed(one, self._source, job.id)))
        self._send(there, back, over)
        self._state = replace(
            self._state,
            seen=self._state.seen + len(deliveries),
            done=self._state.done + done,
            types=counts,
        )

    def _send(
        self,
        there: Sequence[tuple[Delivery, Message]],
        back: Sequence[tuple[Delivery, Message]],
        over: Sequence[Delivery] = (),
    ) -> None:
        """Publish, and let go of each original when all that is made of it is confirmed; ``over``
        are those that are gone from here then."""
        originals: dict[int, Delivery] = {id(one): one for one in over}
        ends: dict[int, list[Future[None]]] = {id(one): [] for one in over}
        for queue, pairs in (*self._targets(there), *self._news(over), (self._source, back)):
            if not pairs:
                continue
            futures: list[Future[None]] = []
            for one, _ in pairs:
                futures.append(Future())
                originals[id(one)] = one
                ends.setdefault(id(one), []).append(futures[-1])
            self._publish(queue, [message for _, message in pairs], futures)
        problem: BaseException | None = None
        for key, futures in ends.items():
            errors = [error for end in futures if (error := end.exception()) is not None]
            if errors:
                problem = problem or errors[0]
                originals[key].reject(requeue=True)
            else:
                originals[key].ack()
        if problem is not None:
            raise problem

    def _news(
        self, over: Sequence[Delivery]
    ) -> Iterable[tuple[QueueName, Sequence[tuple[Delivery, Message]]]]:
        """What the rosters are told of those that are gone."""
        groups: dict[QueueName, list[tuple[Delivery, Message]]] = {}
        for one in over:
            if (found := pass_news(one)) is not None:
                task_queue, news = found
                message = passes.news_message(news, self._core.new_id())
                roster = self._core.names.queue(Kind.ROSTER, task_queue)
                groups.setdefault(roster, []).append((one, message))
        return groups.items()

    def _targets(
        self, there: Sequence[tuple[Delivery, Message]]
    ) -> Iterable[tuple[QueueName, Sequence[tuple[Delivery, Message]]]]:
        """Where each goes so that the target keeps to the order of priorities."""
        target, in_order = self._job.target, self._core.dispatcher.in_order
        if target is None:
            return ()
        groups: dict[QueueName, list[tuple[Delivery, Message]]] = {}
        for one, message in there:
            queue, message = in_order(target, message) or (target, message)
            groups.setdefault(queue, []).append((one, message))
        return groups.items()

    def _publish(
        self, queue: QueueName, messages: Sequence[Message], ends: Sequence[Future[None]]
    ) -> None:
        exchange = self._core.names.exchange(Exchange.TASKS)

        def ended(index: int, error: TqBrokerError | None) -> None:
            if error is None:
                ends[index].set_result(None)
            else:
                ends[index].set_exception(error)

        self._core.sender.send_many(
            [Publication(exchange, queue.key, message) for message in messages],
            (queue,),
            self._core.deadline(),
            ended,
        )

    def _let_go(self) -> None:
        """Put what has come round back on its queue."""
        held, self._held = self._held, []
        for start in range(0, len(held), BATCH):
            some = held[start : start + BATCH]
            self._send((), [(one, stayed(one, self._source, self._job.id)) for one in some])
