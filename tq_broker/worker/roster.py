"""The roster of an usher, as those see it who have its tasks: they tell what becomes of passes.

A task with a pass is acknowledged only when the roster has been told that it is over, so the usher
hears of each end, also of a worker that was killed: then from the one who gets the task next.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from tq_broker.exceptions import TqBrokerError
from tq_broker.model import passes
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind, QueueName
from tq_broker.model.parts import Part
from tq_broker.model.passes import News, Pass, What
from tq_broker.model.tasks import ActivityTask
from tq_broker.queues.sender import Done, Sender
from tq_broker.worker.insistence import Insistence, Then
from tq_broker.worker.passage import FREE, Passage

log = logging.getLogger(__name__)


class Roster:
    """Tells rosters what became of passes. Thread-safe."""

    def __init__(self, sender: Sender, insistence: Insistence) -> None:
        self._sender = sender
        self._insistence = insistence

    def tell(self, mark: str, what: What, done: Then) -> None:
        """Tell what became of the pass that a task is marked with; ``done`` when it is safe."""
        pass_id, task_queue = passes.read_mark(mark)
        message = passes.news_message(News(pass_id, what), self._sender.ids.next())
        queue = self._sender.names.queue(Kind.ROSTER, task_queue)
        self.put(queue, message, done, refused=done)

    def put(
        self,
        queue: QueueName,
        message: Message,
        done: Then,
        *,
        is_wanted: Callable[[], bool] = lambda: True,
        refused: Then | None = None,
    ) -> None:
        """Put ``message`` into ``queue``, as long as it ``is_wanted``.

        Args:
            refused: Called if it can never be put there; ``None`` leaves it at that, and what
                waits for ``done`` stays where it is.
        """

        def on_refused(error: TqBrokerError) -> None:
            log.error("nothing put into %s: %s", queue, error)
            if refused is not None:
                refused()

        publication = Publication(self._sender.names.exchange(Exchange.TASKS), queue.key, message)

        def send(ended: Done) -> None:
            if is_wanted():
                deadline = self._insistence.deadline()
                self._sender.send(publication, (queue,), deadline, ended)

        self._insistence.insist(send, done, on_refused, gone_is_fine=False)

    def covering(self, task: ActivityTask, task_queue: str) -> UsheredPassage:
        """Leave for an attempt that runs since before it was limited; `write` it once the attempt
        goes by it."""
        mark = covering_mark(task, task_queue)
        return UsheredPassage(self, mark, was_begun=True, is_written=False)

    def write(self, passage: UsheredPassage, task: ActivityTask, parts: tuple[Part, ...]) -> None:
        """Tell that ``passage`` covers the attempt ``task``, which uses what ``parts`` allow."""
        pass_id, task_queue = passes.read_mark(passage.mark)
        given = Pass(pass_id, parts, task.activity_id, task.attempt, begun=True)
        message = passes.pass_message(given, self._sender.ids.next())
        queue = self._sender.names.queue(Kind.ROSTER, task_queue)
        self.put(queue, message, passage.written, refused=passage.written)

    def passage(self, mark: str, *, was_begun: bool) -> UsheredPassage:
        """Leave to begin the task that is marked so.

        Args:
            was_begun: Somebody may have begun it before.
        """
        return UsheredPassage(self, mark, was_begun)


class UsheredPassage(Passage):
    """Leave that an usher has given; ``inner`` is what else limits the task."""

    __slots__ = (
        *("_begun", "_is_written", "_lock", "_over", "_roster", "_safe", "_waiting"),
        *("inner", "mark"),
    )

    def __init__(self, roster: Roster, mark: str, was_begun: bool, is_written: bool = True) -> None:
        self.inner: Passage = FREE
        self._roster = roster
        self.mark = mark
        self._begun = was_begun
        self._is_written = is_written
        """Whether it is in the roster: its end must not get there before."""
        self._over = self._safe = False
        self._waiting: list[Then] = []
        self._lock = threading.Lock()

    def within(self, inner: Passage) -> Passage:
        self.inner = inner
        return self

    def begun(self) -> None:
        self.inner.begun()
        with self._lock:
            was_begun, self._begun = self._begun, True
        if not was_begun:
            self._roster.tell(self.mark, What.BEGUN, _nothing)

    def ended(self) -> None:
        self.inner.ended()
        self._close()

    def unused(self) -> None:
        self.inner.unused()
        self._close()

    def settled(self, then: Then) -> None:
        self._close()
        with self._lock:
            if not self._safe:
                self._waiting.append(then)
                return
        then()

    def _close(self) -> None:
        with self._lock:
            if self._over:
                return
            self._over = True
            if not self._is_written:
                return
            what = What.ENDED if self._begun else What.UNUSED
        self._roster.tell(self.mark, what, self._told)

    def written(self) -> None:
        """It is in the roster now."""
        with self._lock:
            self._is_written = True
            is_over = self._over
        if is_over:
            self._roster.tell(self.mark, What.ENDED, self._told)

    def _told(self) -> None:
        with self._lock:
            self._safe = True
            waiting, self._waiting = self._waiting, []
        for then in waiting:
            then()


def covering_mark(task: ActivityTask, task_queue: str) -> str:
    """The mark that an attempt without one has, if it ran before there was a limit."""
    pass_id = passes.covering(task.activity_id, task.attempt, task.start_token)
    return passes.mark(pass_id, task_queue)


def _nothing() -> None:
    """Its end is told in any case, and says that it had begun."""
