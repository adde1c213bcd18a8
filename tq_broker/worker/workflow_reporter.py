"""Telling history how workflow tasks went, and answering queries.

As for activities, a task is acknowledged (``done`` is called) only when its answer is safe with
the broker, and until then this insists.
"""

from __future__ import annotations

import logging

from tq_broker.exceptions import Malformed, PayloadTooLarge, Rejected, TqBrokerError
from tq_broker.model import envelope
from tq_broker.model import failure as failures
from tq_broker.model import workflow_tasks as answers
from tq_broker.model.commands import check_payloads
from tq_broker.model.failure import Failure
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange, Kind
from tq_broker.model.requests import Request, read_request, reply_message, request_message
from tq_broker.model.workflow_tasks import QueryAnswer, QueryRequest, TaskFailedCause
from tq_broker.queues.broker import Delivery
from tq_broker.queues.sender import Done, Sender
from tq_broker.worker.attempt import Place
from tq_broker.worker.insistence import Insistence, Then

log = logging.getLogger(__name__)

TaskAnswer = answers.WorkflowTaskCompleted | answers.WorkflowTaskFailed


class WorkflowReporter:
    """See the module. Thread-safe."""

    def __init__(self, sender: Sender, place: Place) -> None:
        self._sender = sender
        self._names = sender.names
        self._bytes_max = place.converter.bytes_max
        self._insistence = Insistence(place.clock)

    def close(self) -> None:
        """Insist no more."""
        self._insistence.close()

    def answer(self, shard: int, answer: TaskAnswer, done: Then) -> None:
        """Tell shard ``shard`` how a workflow task went."""

        def refused(error: TqBrokerError) -> None:
            if isinstance(answer, answers.WorkflowTaskFailed):
                log.error("failure of a workflow task of %s not taken: %s", answer.run, error)
                done()
            else:
                log.error("answer to a workflow task of %s not taken: %s", answer.run, error)
                self.answer(shard, _unsendable(answer, error), done)

        try:
            if isinstance(answer, answers.WorkflowTaskCompleted):
                for command in answer.commands:
                    check_payloads(command, answer.run.workflow_id)
            message = self._message(answer)
            self._check_size(message)
            # Types of what workflow code gives are hopes, and history parks what it cannot read.
            read_request(message)
        except (Rejected, Malformed) as error:
            refused(error)
            return
        self._insistence.insist(
            lambda ended: self._send(shard, message, ended), done, refused, gone_is_fine=False
        )

    def _check_size(self, message: Message) -> None:
        size = len(message.body)
        if size > self._bytes_max:
            raise PayloadTooLarge(
                f"the commands are {size} bytes long; the bound is {self._bytes_max}"
            )

    def tell(self, shard: int, notice: Request) -> None:
        """Tell shard ``shard`` something that nothing depends on but speed."""
        self._send(shard, self._message(notice), _sent)

    def _message(self, request: Request) -> Message:
        return request_message(request, self._sender.ids.next())

    def _send(self, shard: int, message: Message, done: Done) -> None:
        queue = self._names.history(shard)
        publication = Publication(self._names.exchange(Exchange.HISTORY), queue.key, message)
        self._sender.send(publication, (queue,), self._insistence.deadline(), done)

    def answer_query(self, query: QueryRequest, answer: QueryAnswer, done: Then) -> None:
        """Tell whoever asked; who has left misses nothing."""
        if not self._names.owns(query.reply_to, Kind.REPLY):
            log.warning("query without a reply queue of this namespace not answered")
            done()
            return
        try:
            message = reply_message(answer, self._sender.ids.next(), query.correlation_id)
        except Rejected as error:
            self.answer_query(query, QueryAnswer(error="failed", failure=_why(error)), done)
            return
        publication = Publication(self._names.exchange(Exchange.REPLIES), query.reply_to, message)

        def refused(error: TqBrokerError) -> None:
            log.error("answer to a query not taken: %s", error)
            done()

        self._insistence.insist(
            lambda ended: self._sender.send(publication, (), self._insistence.deadline(), ended),
            done,
            refused,
        )

    def abandon(self, delivery: Delivery, done: Then) -> None:
        """Give a task from the sticky queue back to its shard."""
        publication = Publication(
            self._names.exchange(Exchange.ABANDONED),
            delivery.routing_key,
            envelope.forwarded(delivery.message),
        )
        self._insistence.insist(
            lambda ended: self._sender.send(publication, (), self._insistence.deadline(), ended),
            done,
            lambda error: log.error("task of the sticky queue not given back: %s", error),
        )


def _unsendable(
    answer: answers.WorkflowTaskCompleted, error: TqBrokerError
) -> answers.WorkflowTaskFailed:
    return answers.WorkflowTaskFailed(
        run=answer.run,
        scheduled_event_id=answer.scheduled_event_id,
        attempt=answer.attempt,
        identity=answer.identity,
        worker_id=answer.worker_id,
        cause=TaskFailedCause.PAYLOAD.value,
        failure=_why(error),
        started_ms=answer.started_ms,
    )


def _why(error: TqBrokerError) -> Failure:
    return failures.application(str(error), type(error).__name__)


def _sent(error: TqBrokerError | None) -> None:
    if error is not None:
        log.warning("history not told: %s", error)
