"""The declarer: takes the steps of a plan on the administration channel.

A plan is first sent as a whole, with one answer awaited at its end. When RabbitMQ objects, it
closes the channel and ignores what follows; then the steps are taken one by one, to find out
which it was, and to go on when it does no harm.

Rules of this file: runs on the reader's thread; holds no state but the reader's.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from typing import Any

import amqp.exceptions

from tq_broker.exceptions import BrokerUnavailable
from tq_broker.queues.errors import Locked, RpcTimeout
from tq_broker.queues.reader import Reader
from tq_broker.queues.topology import (
    BindExchange,
    BindQueue,
    DeclareExchange,
    DeclareQueue,
    DeleteQueue,
    Plan,
    Step,
    UnbindQueue,
)

log = logging.getLogger(__name__)

LOCK_ARGUMENTS = {"x-queue-type": "classic"}


class Inequivalent(Exception):
    """A queue exists with other arguments, and the caller wants to know."""


def take_plan(reader: Reader, plan: Plan, deadline: float, *, strict: bool = False) -> None:
    """Take the steps of ``plan`` once.

    Args:
        strict: Raise `Inequivalent` for a queue that exists with other arguments, instead of a
            warning.

    Raises:
        Locked: somebody else holds its lock.
        Inequivalent: see ``strict``.
        amqp.exceptions.ChannelError: RabbitMQ's objection.
    """
    lock = plan.lock
    if lock in reader.held_locks:
        raise Locked(f"another thread holds {lock}")
    if not plan.steps:
        return
    if lock is None:
        _take(reader, plan.steps, deadline, strict)
        return
    held = (DeclareQueue(lock, LOCK_ARGUMENTS, exclusive=True), *plan.steps, DeleteQueue(lock))
    try:
        _take(reader, held, deadline, strict)
    except amqp.exceptions.ResourceLocked as error:
        if f"'{lock}'" not in str(error.reply_text):
            _let_go(reader, lock)
            raise
        raise Locked(f"another connection holds {lock}") from error
    except Exception:
        _let_go(reader, lock)
        raise


def take_lock(reader: Reader, name: str, deadline: float) -> int:
    """Take the lock ``name``; returns the epoch under which it is held.

    Raises:
        Locked: somebody holds it.
    """
    if name in reader.held_locks:
        raise Locked(f"another thread holds {name}")
    try:
        reader.rpc(lambda ch: _declare_lock(ch, name), deadline)
    except amqp.exceptions.ResourceLocked as error:
        raise Locked(f"another connection holds {name}") from error
    reader.held_locks.add(name)
    return reader.epoch


def release_lock(reader: Reader, name: str, epoch: int, deadline: float) -> None:
    """Let go of the lock ``name`` unless its connection was lost since."""
    if epoch != reader.epoch or name not in reader.held_locks:
        return
    try:
        reader.rpc(lambda ch: ch.queue_delete(name, nowait=True), deadline)
    except RpcTimeout:  # There was not even a channel for it.
        reader.post(lambda later: release_lock(reader, name, epoch, later))
    else:
        reader.held_locks.discard(name)


def _declare_lock(channel: Any, name: str) -> None:
    try:
        _declare_queue(channel, DeclareQueue(name, LOCK_ARGUMENTS, exclusive=True), nowait=False)
    except RpcTimeout:
        # RabbitMQ may declare it yet, for the connection: it takes this after that.
        channel.queue_delete(name, nowait=True)
        raise


def _let_go(reader: Reader, lock: str) -> None:
    """The lock of a plan that has failed, which is held or not: release it, not by the deadline of
    the plan, which may be over."""
    epoch = reader.epoch
    reader.held_locks.add(lock)
    with contextlib.suppress(BrokerUnavailable):  # Closing frees it.
        reader.post(lambda deadline: release_lock(reader, lock, epoch, deadline))


def _take(reader: Reader, steps: Sequence[Step], deadline: float, strict: bool) -> None:
    try:
        reader.rpc(lambda ch: _send(ch, steps), deadline)
    except (amqp.exceptions.PreconditionFailed, amqp.exceptions.NotFound):
        for step in steps:
            _take_one(reader, step, deadline, strict)


def _send(channel: Any, steps: Sequence[Step]) -> None:
    for step in steps[:-1]:
        _SENDERS[type(step)](channel, step, True)
    _SENDERS[type(steps[-1])](channel, steps[-1], False)


def _take_one(reader: Reader, step: Step, deadline: float, strict: bool) -> None:
    try:
        reader.rpc(lambda ch: _SENDERS[type(step)](ch, step, False), deadline)
    except amqp.exceptions.NotFound:
        if not isinstance(step, (UnbindQueue, DeleteQueue)):
            raise
    except amqp.exceptions.PreconditionFailed as error:
        if isinstance(step, DeleteQueue) and step.only_idle:
            return
        if not isinstance(step, (DeclareQueue, DeclareExchange)):
            raise
        _accept_drift(reader, step, error, deadline, strict)


def _accept_drift(
    reader: Reader,
    step: DeclareQueue | DeclareExchange,
    error: amqp.exceptions.PreconditionFailed,
    deadline: float,
    strict: bool,
) -> None:
    """Use what exists as it is; if nothing exists, the arguments themselves are wrong."""
    try:
        if isinstance(step, DeclareQueue):
            reader.rpc(lambda ch: ch.queue_declare(step.name, passive=True), deadline)
        else:
            reader.rpc(lambda ch: ch.exchange_declare(step.name, step.type, passive=True), deadline)
    except amqp.exceptions.NotFound:
        raise error from None
    if strict and isinstance(step, DeclareQueue):
        raise Inequivalent
    if step.name not in reader.warned:
        reader.warned.add(step.name)
        log.warning(
            "%s exists with other arguments and is used as it is: %s", step.name, error.reply_text
        )


def _declare_exchange(channel: Any, step: DeclareExchange, nowait: bool) -> None:
    channel.exchange_declare(
        step.name,
        step.type,
        durable=True,
        auto_delete=False,
        nowait=nowait,
        arguments=dict(step.arguments),
    )


def _declare_queue(channel: Any, step: DeclareQueue, nowait: bool) -> None:
    channel.queue_declare(
        step.name,
        durable=not step.exclusive,
        exclusive=step.exclusive,
        auto_delete=False,
        nowait=nowait,
        arguments=dict(step.arguments),
    )


def _bind_queue(channel: Any, step: BindQueue, nowait: bool) -> None:
    channel.queue_bind(step.queue, step.exchange, step.routing_key, nowait=nowait)


def _bind_exchange(channel: Any, step: BindExchange, nowait: bool) -> None:
    channel.exchange_bind(step.destination, step.source, step.routing_key, nowait=nowait)


def _unbind_queue(channel: Any, step: UnbindQueue, _nowait: bool) -> None:
    channel.queue_unbind(step.queue, step.exchange, step.routing_key)  # AMQP has no nowait here


def _delete_queue(channel: Any, step: DeleteQueue, nowait: bool) -> None:
    idle = step.only_idle
    channel.queue_delete(step.queue, if_unused=idle, if_empty=idle, nowait=nowait)


_SENDERS: dict[type[Step], Callable[[Any, Any, bool], None]] = {
    DeclareExchange: _declare_exchange,
    DeclareQueue: _declare_queue,
    BindQueue: _bind_queue,
    BindExchange: _bind_exchange,
    UnbindQueue: _unbind_queue,
    DeleteQueue: _delete_queue,
}
