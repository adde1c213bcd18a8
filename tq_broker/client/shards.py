"""The shards of a history service, as an operator sees them.

A look changes nothing and declares nothing: a namespace without a history service has no inboxes.
"""

from __future__ import annotations

import concurrent.futures
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass

from tq_broker.client.calls import Call
from tq_broker.client.core import ClientCore
from tq_broker.exceptions import TqBrokerError
from tq_broker.model import requests
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Exchange
from tq_broker.model.requests import SHARDS, ShardInfo, ShardStatus


@dataclass(frozen=True, slots=True)
class ShardState:
    """One shard.

    Attributes:
        info: What its owner says; ``None`` if nobody has answered in time.
        waiting: Messages in its inbox that nobody has taken; ``None`` if there is no inbox.
    """

    shard: int
    info: ShardInfo | None
    waiting: int | None


def look(core: ClientCore, wait_s: float) -> list[ShardState]:
    """All shards of the namespace; blocks for ``wait_s`` seconds if one does not answer.

    Raises:
        AccessRefused, BrokerUnavailable, DeadlineExceeded: RabbitMQ does not answer.
    """
    deadline = core.deadline()
    core.listen(deadline)
    asked = [_ask(core, shard, core.clock.monotonic() + wait_s) for shard in range(SHARDS)]
    concurrent.futures.wait(asked)
    found = []
    for shard, answer in enumerate(asked):
        stats = core.broker.stats(str(core.names.history(shard)), deadline)
        waiting = None if stats is None else stats.ready
        found.append(ShardState(shard, answer.result(), waiting))
    return found


def _ask(core: ClientCore, shard: int, deadline: float) -> Future[ShardInfo | None]:
    future: Future[ShardInfo | None] = Future()
    call_id = core.new_id()

    def publication() -> Publication:
        message = requests.request_message(
            ShardStatus(), core.new_id(), correlation_id=call_id, reply_to=core.reply_to
        )
        exchange = core.names.exchange(Exchange.HISTORY)
        return Publication(exchange, core.names.history(shard).key, message)

    def on_answer(message: Message) -> None:
        reply = requests.read_reply(message)
        if isinstance(reply, ShardInfo) and core.calls.end(call):
            _end(future, reply)

    call = Call(
        id=call_id,
        publication=publication,
        needs=(),
        on_answer=on_answer,
        on_failure=lambda _error: _end(future, None),
        deadline=deadline,
        again_s=max(1.0, deadline),
        silence="",
    )
    try:
        core.calls.begin(call)
    except TqBrokerError:
        _end(future, None)
    return future


def _end(future: Future[ShardInfo | None], info: ShardInfo | None) -> None:
    try:
        future.set_result(info)
    except InvalidStateError:  # an answer in the moment of giving up
        return
