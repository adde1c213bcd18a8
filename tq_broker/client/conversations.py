"""Conversations with history shards: a request, its answers, and what is asked next.

Rules of this file:

* a request that changes something keeps its ``message_id`` however often it is sent, so that it is
  done once; one that only asks gets a new one each time, so that it is answered each time;
* waits for a result or for the end of an update end only with it, once history has been heard of,
  and are asked again every `LONG_AGAIN_S`; everything else has the client's deadline.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from msgspec.structs import replace

from tq_broker.client.calls import Call
from tq_broker.client.core import ClientCore
from tq_broker.client.waiting import Asked
from tq_broker.exceptions import (
    InvalidArgument,
    NotFound,
    Rejected,
    TqBrokerError,
    WorkflowAlreadyStartedError,
    WorkflowQueryFailedError,
)
from tq_broker.model import requests
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange

log = logging.getLogger(__name__)

LONG_AGAIN_S = 30.0
"""The pause after which a wait without a deadline is asked again."""
SHORT_AGAIN_S = 5.0
"""The same for everything else."""
NO_HISTORY = "no history service answered; start one with tq-broker history"
ADMITTED, ACCEPTED, COMPLETED = 1, 2, 3
"""How far an update has come."""

T = TypeVar("T")
_CHANGING = (
    requests.StartWorkflow,
    requests.SignalWorkflow,
    requests.RequestCancel,
    requests.Terminate,
    requests.UpdateWorkflow,
)


class Conversation:
    """One request and what follows. ``future`` ends with its last answer."""

    def __init__(self, core: ClientCore, request: Any, *, silence: str = NO_HISTORY) -> None:
        """Nothing is sent yet.

        Args:
            request: One of `tq_broker.model.requests.Request` that clients send.
            silence: What to say when nobody has answered before the deadline.
        """
        self.request = self._first = request
        self.future: Future[Any] = Future()
        self._core = core
        call_id = core.new_id()
        # What names no workflow may go to any shard.
        shard = requests.shard_of(getattr(request, "workflow_id", call_id))
        self._queue = core.names.history(shard)
        self.call = Call(
            id=call_id,
            publication=self._publication,
            needs=(self._queue,),
            on_answer=self._on_answer,
            on_failure=self.on_failure,
            deadline=core.deadline(),
            again_s=SHORT_AGAIN_S,
            silence=silence,
        )

    def begin(self, read: Callable[[Any], T]) -> Asked[T]:
        """Send the request. ``read`` makes of the last answer what the caller gets."""
        self._core.calls.begin(self.call)
        return Asked(self.future, read, self._drop)

    def on_reply(self, reply: requests.Reply) -> None:
        """An answer other than a refusal has come."""
        raise NotImplementedError

    def on_failure(self, error: TqBrokerError) -> None:
        """It was refused, or nobody has answered in time."""
        end(self.future, error)

    def answer(self, reply: Any) -> None:
        """``reply`` is the last answer."""
        if self._core.calls.end(self.call):
            end(self.future, None, reply)

    def go_on(self, request: Any, *, now: bool) -> None:
        """Ask for ``request`` from here on, for as long as it takes; at once, or after a pause."""
        self.request = request
        self._core.calls.be_patient(self.call, LONG_AGAIN_S)
        if now:
            self._core.calls.send(self.call)

    def _drop(self) -> None:
        self._core.calls.end(self.call)

    def _publication(self) -> Publication:
        core, request = self._core, self.request
        is_repetition = request is self._first and isinstance(request, _CHANGING)
        message_id = self.call.id if is_repetition else core.new_id()
        message = requests.request_message(
            request, message_id, correlation_id=self.call.id, reply_to=core.reply_to
        )
        return Publication(core.names.exchange(Exchange.HISTORY), self._queue.key, message)

    def _on_answer(self, message: Message) -> None:
        reply = requests.read_reply(message)
        if isinstance(reply, requests.Refused):
            error = refusal(self.request, reply, self._core.names.namespace)
            self._core.calls.fail(self.call, error)
        else:
            self.on_reply(reply)


class OneAnswer(Conversation):
    """A request with one answer, of the type ``expected``."""

    def __init__(
        self,
        core: ClientCore,
        request: Any,
        expected: type[Any],
        *,
        silence: str = NO_HISTORY,
    ) -> None:
        super().__init__(core, request, silence=silence)
        self._expected = expected

    def on_reply(self, reply: requests.Reply) -> None:
        if isinstance(reply, self._expected):
            self.answer(reply)


class ResultWait(Conversation):
    """Waits for a `Closed`; with ``follow``, for that of the last run of the chain.

    It begins with an `AwaitResult`, or with a `StartWorkflow` that wants the result: then history
    must be heard of before the client's deadline.
    """

    def __init__(
        self,
        core: ClientCore,
        request: requests.StartWorkflow | requests.AwaitResult,
        *,
        follow: bool,
    ) -> None:
        super().__init__(core, request)
        self._follow = follow
        self._passed: set[str] = set()
        if isinstance(request, requests.AwaitResult):
            self.call.deadline, self.call.again_s = None, LONG_AGAIN_S

    def on_reply(self, reply: requests.Reply) -> None:
        if isinstance(reply, requests.Started):
            self._await(reply.run_id, now=False)
        elif isinstance(reply, requests.Closed) and reply.run_id not in self._passed:
            if self._follow and reply.next_run_id:
                self._passed.add(reply.run_id)
                self._await(reply.next_run_id, now=True)
            else:
                self.answer(reply)

    def _await(self, run_id: str, *, now: bool) -> None:
        workflow_id = self.request.workflow_id
        self.go_on(requests.AwaitResult(workflow_id=workflow_id, run_id=run_id), now=now)


class UpdateWait(Conversation):
    """Waits for an `UpdateState` that is completed.

    It begins with an `AwaitUpdate`, or with an `UpdateWorkflow` that wants its end. As that may
    come late, it is asked after a while whether the update was admitted: only if nobody answers
    that either has history not been heard of.
    """

    def __init__(
        self, core: ClientCore, request: requests.UpdateWorkflow | requests.AwaitUpdate
    ) -> None:
        super().__init__(core, request)
        if isinstance(request, requests.AwaitUpdate):
            self.call.deadline, self.call.again_s = None, LONG_AGAIN_S
        else:
            self.call.deadline = core.deadline(2 * core.timeout_s)
            self.call.again_s = core.timeout_s

    def _publication(self) -> Publication:
        if self.call.is_confirmed and isinstance(self.request, requests.UpdateWorkflow):
            self.request = replace(self.request, wait=ADMITTED)
        return super()._publication()

    def on_reply(self, reply: requests.Reply) -> None:
        if not isinstance(reply, requests.UpdateState):
            return
        if reply.stage >= COMPLETED:
            self.answer(reply)
        elif isinstance(self.request, requests.UpdateWorkflow):
            known = replace(self.request, run_id=reply.run_id or self.request.run_id)
            self.go_on(await_update(known), now=True)


class StartWithUpdate(Conversation):
    """A start that brings an update; ``started`` ends with the first answer, ``future`` with the
    `UpdateState` that is as far as the request wants it."""

    def __init__(self, core: ClientCore, request: requests.StartWorkflow) -> None:
        super().__init__(core, request)
        self.started: Future[requests.Started] = Future()
        self._start = request

    def on_reply(self, reply: requests.Reply) -> None:
        start = self._start
        if isinstance(reply, requests.Started) and start.update is not None:
            end(self.started, None, reply)
            # A repeated start is answered by `Started` alone, so ask for the update from here on.
            update = requests.UpdateWorkflow(
                workflow_id=start.workflow_id,
                update=start.update,
                run_id=reply.run_id,
                wait=start.update_wait,
            )
            if start.update_wait >= COMPLETED:
                self.go_on(await_update(update), now=False)
            else:
                self.request = update
        elif isinstance(reply, requests.UpdateState) and reply.stage >= start.update_wait:
            self.answer(reply)

    def on_failure(self, error: TqBrokerError) -> None:
        end(self.started, error)
        super().on_failure(error)


def await_update(request: requests.UpdateWorkflow) -> requests.AwaitUpdate:
    """The question for the end of an update that was admitted."""
    return requests.AwaitUpdate(
        workflow_id=request.workflow_id,
        update_id=request.update.update_id,
        run_id=request.run_id,
    )


def refusal(request: Any, refused: requests.Refused, namespace: str) -> TqBrokerError:
    """The error that a refusal of ``request`` stands for."""
    workflow_id = getattr(request, "workflow_id", refused.workflow_id)
    if refused.reason == "not_found":
        return not_found(workflow_id, getattr(request, "run_id", None), namespace, refused.message)
    if refused.reason == "closed":
        return NotFound(f"workflow {workflow_id!r} has ended already")
    if refused.reason == "already_started":
        workflow_type = getattr(request, "workflow_type", "")
        return WorkflowAlreadyStartedError(
            workflow_id, workflow_type, run_id=refused.run_id or None
        )
    kind = _REFUSALS.get(refused.reason, Rejected)
    return kind(refused.message or refused.reason)


_REFUSALS: dict[str, type[TqBrokerError]] = {
    "invalid_argument": InvalidArgument,
    "query_failed": WorkflowQueryFailedError,
}


def not_found(workflow_id: str, run_id: str | None, namespace: str, why: str = "") -> NotFound:
    """There is no such workflow or run; or there is, and ``why`` says what of it there is not."""
    run = f" with run {run_id!r}" if run_id else ""
    which = f"workflow {workflow_id!r}{run} in namespace {namespace!r}"
    return NotFound(f"{which}: {why}" if why else f"there is no {which}")


def end(future: Future[T], error: BaseException | None, value: Any = None) -> None:
    """End ``future`` unless it has ended: the first of several ways to end counts."""
    try:
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)
    except InvalidStateError:
        log.debug("a future had ended before")
