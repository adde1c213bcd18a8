"""Telling how attempts ended: outcomes, next attempts, tasks given back or parked.

A delivery is acknowledged (``done`` is called) only when what follows from it is safe with the
broker; until then this insists, over broken connections and blocked brokers, for as long as the
worker lives. If it does not live that long the broker gives the delivery to somebody else.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import msgspec

from tq_broker.clock import epoch_ms
from tq_broker.exceptions import (
    Malformed,
    PayloadTooLarge,
    RetryState,
    TqBrokerError,
)
from tq_broker.model import envelope, failure, workflow_tasks
from tq_broker.model.failure import Failure
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import ADMITTED, Exchange, Kind, Names, QueueName
from tq_broker.model.passes import What
from tq_broker.model.requests import SHARDS
from tq_broker.model.tasks import ActivityOutcome, ActivityTask, Status, TaskBody
from tq_broker.model.workflow_tasks import WORKFLOW_TASK
from tq_broker.queues.dispatcher import Dispatcher
from tq_broker.queues.sender import Done
from tq_broker.worker.attempt import Place
from tq_broker.worker.conclusion import Final, Retry, after_failure
from tq_broker.worker.insistence import Insistence, Then
from tq_broker.worker.roster import Roster

log = logging.getLogger(__name__)


_IN_PASSING = (Status.STARTED, Status.HEARTBEAT)
"""Notices about an attempt that goes on without them."""


class Reporter:
    """See the module. Thread-safe."""

    def __init__(self, dispatcher: Dispatcher, names: Names, place: Place) -> None:
        self._dispatcher = dispatcher
        self._sender = dispatcher.sender
        self._names = names
        self._place = place
        self._shards = {str(queue): queue for queue in map(names.history, range(SHARDS))}
        self._insistence = Insistence(place.clock)
        self.roster = Roster(self._sender, self._insistence)
        """Where it is told what becomes of tasks that an usher has let in."""

    def close(self) -> None:
        """Insist no more."""
        self._insistence.close()

    # --- ends ----------------------------------------------------------------------------------

    def completed(self, task: ActivityTask, result: bytes, started_ms: int, done: Then) -> None:
        """The activity has a result."""
        if task.reply_to is None and not task.id_retention_ms:
            done()
            return
        outcome = self._outcome(task, Status.COMPLETED, started_ms, result=result)
        self._tell(task, outcome, done)

    def failed(
        self,
        task: ActivityTask,
        body: TaskBody,
        failed: Failure,
        started_ms: int,
        done: Then,
        *,
        heartbeat: Sequence[msgspec.Raw] | None = None,
    ) -> None:
        """The attempt has no result: another follows, or the activity has failed."""
        now_ms = epoch_ms(self._place.clock)
        match after_failure(task, body, failed, heartbeat, now_ms):
            case Retry() as retry:
                log.info(
                    "attempt %d of %s %s failed (%s); next in %d ms",
                    task.attempt, task.activity_type, task.activity_id, failed.message,
                    retry.delay_ms,
                )  # fmt: skip
                self._retry(retry, started_ms, done)
            case Final(status, told, None):
                log.info(
                    "attempt %d of %s %s failed (%s); its workflow is told",
                    task.attempt, task.activity_type, task.activity_id, told.message,
                )  # fmt: skip
                outcome = self._outcome(task, status, started_ms, failure=told)
                self._tell(task, outcome, done, heartbeat)
            case Final(status, told, RetryState() as state):
                benign = failed.category == 1
                log.log(
                    logging.DEBUG if benign else logging.WARNING,
                    "%s %s ended: %s (%s)%s",
                    task.activity_type, task.activity_id, told.message, state.name,
                    f"\n{failed.stack_trace}".rstrip(),
                )  # fmt: skip
                outcome = self._outcome(
                    task, status, started_ms, failure=told, retry_state=int(state)
                )
                self._tell(task, outcome, done)

    def _retry(self, retry: Retry, started_ms: int, done: Then) -> None:
        converter = self._place.converter
        try:
            body = envelope.task_body(retry.body, converter)
        except PayloadTooLarge:
            # The arguments fitted before: it is what the attempt left behind that does not.
            body = envelope.task_body(TaskBody(args=retry.body.args), converter)
        task = msgspec.structs.replace(retry.task, body=body, codecs=converter.codec_names)
        self.dispatch(task, envelope.task_message(task), started_ms, done, retry.delay_ms)

    def dispatch(
        self, task: ActivityTask, message: Message, started_ms: int, done: Then, delay_ms: int = 0
    ) -> None:
        """Put a task on its queue, wherever the router says; if it says fail, the task fails."""

        def send(ended: Done) -> None:
            self._dispatcher.dispatch(
                task, message, self._insistence.deadline(), ended, delay_ms=delay_ms
            )

        def refused(error: TqBrokerError) -> None:
            kind = type(error).__name__
            outcome = self._outcome(
                task,
                Status.FAILED,
                started_ms,
                failure=failure.application(str(error), kind, non_retryable=True),
            )
            self._tell(task, outcome, self.over(task, What.UNUSED, done))

        self._insistence.insist(send, done, refused)

    def over(self, task: ActivityTask, what: What, done: Then) -> Then:
        """``done``, after the usher of ``task`` knows what became of its pass, if it has one."""
        if not task.pass_mark:
            return done
        return lambda: self.roster.tell(task.pass_mark, what, done)

    def notice(
        self,
        task: ActivityTask,
        status: Status,
        done: Then,
        *,
        result: bytes = b"null",
        started_ms: int = 0,
        heartbeat: Sequence[msgspec.Raw] | None = None,
    ) -> None:
        """Tell the caller something that is not the end."""
        if task.reply_to is None:
            done()
            return
        outcome = self._outcome(task, status, started_ms, result=result)
        self._send_outcome(task.reply_to, outcome, done, heartbeat)

    def _outcome(
        self,
        task: ActivityTask,
        status: Status,
        started_ms: int,
        *,
        result: bytes = b"null",
        failure: Failure | None = None,
        retry_state: int | None = None,
    ) -> ActivityOutcome:
        place = self._place
        return ActivityOutcome(
            activity_id=task.activity_id,
            activity_type=task.activity_type,
            status=status,
            attempt=task.attempt,
            result=result,
            failure=failure,
            retry_state=retry_state,
            identity=place.identity,
            host=place.host,
            worker_id=place.worker_id,
            started_ms=started_ms,
            finished_ms=epoch_ms(place.clock),
            start_token=task.start_token,
        )

    def _tell(
        self,
        task: ActivityTask,
        outcome: ActivityOutcome,
        done: Then,
        heartbeat: Sequence[msgspec.Raw] | None = None,
    ) -> None:
        """Send ``outcome`` to whoever waits for it; who has left loses only its own answer."""
        listeners = [] if task.reply_to is None else [task.reply_to]
        if task.id_retention_ms:
            claim = self._names.claim(task.task_queue, task.activity_id)
            listeners.append(str(claim))
        if not listeners:
            done()
            return
        left = len(listeners)

        def one_done() -> None:
            nonlocal left
            left -= 1  # all receipts come on the publisher's one thread
            if not left:
                done()

        for listener in listeners:
            self._send_outcome(listener, outcome, one_done, heartbeat)

    def _send_outcome(
        self,
        listener: str,
        outcome: ActivityOutcome,
        done: Then,
        heartbeat: Sequence[msgspec.Raw] | None = None,
    ) -> None:
        shard = self._shards.get(listener)
        needs = () if shard is None else (shard,)
        message = self._message(outcome, heartbeat, for_history=shard is not None)
        publication = Publication(self._names.exchange(Exchange.REPLIES), listener, message)

        def refused(error: TqBrokerError) -> None:
            if outcome.status in _IN_PASSING:
                log.warning(
                    "notice %r of %s not taken: %s",
                    outcome.status.value, outcome.activity_id, error,
                )  # fmt: skip
                done()
                return
            if outcome.failure is not None and outcome.failure.type == "ResultRefused":
                log.error("outcome of %s not taken: %s", outcome.activity_id, error)
                done()
                return
            failed = failure.application(str(error), "ResultRefused", non_retryable=True)
            instead = msgspec.structs.replace(outcome, status=Status.FAILED, failure=failed)
            self._send_outcome(listener, instead, done)

        self._insistence.insist(
            lambda ended: self._send(publication, needs, ended),
            done,
            refused,
        )

    def _message(
        self,
        outcome: ActivityOutcome,
        heartbeat: Sequence[msgspec.Raw] | None,
        *,
        for_history: bool,
    ) -> Message:
        converter = self._place.converter
        try:
            if for_history:
                return envelope.report_message(outcome, heartbeat, converter)
            return envelope.outcome_message(outcome, converter)
        except PayloadTooLarge as error:
            if heartbeat is not None:
                log.warning("heartbeat details of %s not told: %s", outcome.activity_id, error)
                return self._message(outcome, None, for_history=for_history)
            failed = failure.application(str(error), "PayloadTooLarge", non_retryable=True)
            smaller = msgspec.structs.replace(
                outcome, status=Status.FAILED, result=b"null", failure=failed
            )
            return self._message(smaller, None, for_history=for_history)

    # --- not run --------------------------------------------------------------------------------

    def give_back(self, message: Message, queue: QueueName, done: Then) -> None:
        """Put ``message`` on ``queue`` again as a fresh copy, which no attempt is used up by."""
        fresh = envelope.without_pass(envelope.forwarded(message))
        if queue.kind in ADMITTED:
            queue = self._names.plain(queue)
        publication = Publication(self._names.exchange(Exchange.TASKS), queue.key, fresh)
        self._insistence.insist(
            lambda ended: self._send(publication, (queue,), ended),
            done,
            lambda error: log.error("%s not given back: %s", queue, error),
        )

    def bring_back(self, message: Message, done: Then) -> None:
        """Put ``message``, which the target of a traffic rule does not take, on its own task queue.
        Raises `Malformed`."""
        home = envelope.home(message)
        if not home:
            raise Malformed(f"header {envelope.RULE} is missing")
        side = Kind.WORKFLOW if message.kind == WORKFLOW_TASK else Kind.ACTIVITY
        queue = self._names.shared(home, envelope.required(message), side)
        rule_id = str(message.headers[envelope.RULE])
        self.give_back(envelope.brought_back(message, rule_id), queue, done)

    def hand_in(self, message: Message, done: Then) -> None:
        """Give the workflow task in ``message``, whose few workers are gone, back to its shard of
        history, which knows what becomes of it. Raises `Malformed`."""
        shard = workflow_tasks.read_task(message).shard
        if not 0 <= shard < SHARDS:
            raise Malformed(f"workflow task of shard {shard}, which there is not")
        queue = self._names.history(shard)
        exchange = self._names.exchange(Exchange.HISTORY)
        publication = Publication(exchange, queue.key, envelope.forwarded(message))
        self._insistence.insist(
            lambda ended: self._send(publication, (queue,), ended),
            done,
            lambda error: log.error("workflow task not given back to history: %s", error),
        )

    def park(self, message: Message, queue: str, reason: str, done: Then) -> None:
        """Keep ``message`` for an operator, with the reason, where it came from, and when."""
        log.warning("message %.100r of %s parked: %s", message.message_id, queue, reason)
        parked = envelope.forwarded(
            envelope.without_pass(message),
            headers={
                "tq-parked-reason": reason[: envelope.TEXT_MAX],
                "tq-parked-from": queue,
                "tq-parked-ms": epoch_ms(self._place.clock),
                "tq-parked-by": self._place.identity,
            },
        )
        key = self._names.queue(Kind.PARKED).key
        publication = Publication(self._names.exchange(Exchange.PARKED), key, parked)
        self._insistence.insist(
            lambda ended: self._send(publication, (), ended),
            done,
            lambda error: log.error("message of %s not parked: %s", queue, error),
            gone_is_fine=False,
        )

    def _send(self, publication: Publication, needs: Sequence[QueueName], ended: Done) -> None:
        self._sender.send(publication, needs, self._insistence.deadline(), ended)
