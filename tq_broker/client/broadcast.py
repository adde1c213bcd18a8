"""Running an activity once on every worker of a task queue.

Each worker gets a task of its own, on its process queue: so all run it, also those without work,
and what one answers, or that it does not, is told apart from the others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from tq_broker.activity import definition_of
from tq_broker.client.core import ClientCore, Pending
from tq_broker.client.request import make_start
from tq_broker.client.waiting import waited
from tq_broker.clock import remaining
from tq_broker.common import Route
from tq_broker.exceptions import InvalidArgument, NotFound, TqBrokerError, Unavailable
from tq_broker.model.control import WorkerInfo
from tq_broker.model.registrations import serves

GRACE_S = 2.0
"""A timeout is told by the worker; who is not heard of so much later is not waited for."""
PING_WITHIN_S = 5.0
_SET_HERE = ("route", "id", "reply_to", "wait_result", "start_delay")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerResult:
    """What became of a broadcast on one worker.

    Attributes:
        result: What the activity returned there; ``None`` if it did not.
        error: Why it did not: `ActivityError`, `TargetGone` (the worker has gone), `NotFound` (it
            does not have the type), `Unavailable` (the task queue is paused, or no answer came).
    """

    worker_id: str
    identity: str
    host: str
    result: Any = None
    error: TqBrokerError | None = None

    @property
    def ok(self) -> bool:
        """Whether it has run to its end there."""
        return self.error is None


def broadcast(
    core: ClientCore,
    activity: Callable[..., Any] | str,
    args: Sequence[Any],
    options: Mapping[str, Any],
    *,
    timeout_s: float,
    wait_s: float,
) -> list[WorkerResult]:
    """Run ``activity`` on every worker of its task queue; blocks.

    Args:
        options: `ActivityOptions`. Without ``schedule_to_close_timeout`` it is ``timeout_s``.
        timeout_s: How long each worker may take, its wait for a free slot included.
        wait_s: How long workers may take to answer the question who is there.

    Returns:
        One entry for each worker that is there, by identity.

    Raises:
        InvalidArgument: nothing was sent.
    """
    for name in _SET_HERE:
        if options.get(name) is not None:
            raise InvalidArgument(f"{name} cannot be given for a broadcast")
    if not timeout_s > 0:
        raise InvalidArgument(f"timeout is {timeout_s}; it must be positive")
    given = {"schedule_to_close_timeout": timedelta(seconds=timeout_s), **options}
    task_queue = make_start(core.names, activity, given).task_queue  # checks it, too
    workers = core.ping(wait_s).result(wait_s + PING_WITHIN_S)
    there = [worker for worker in workers if task_queue in worker.task_queues]
    deadline = core.clock.monotonic() + timeout_s + GRACE_S
    asked = [_ask(core, worker, task_queue, activity, args, given) for worker in there]
    return [
        _answer(core, worker, wait, deadline) for worker, wait in zip(there, asked, strict=True)
    ]


_Wait = Callable[[float], Any]
"""Waits so many seconds for the result, or raises."""


def _ask(
    core: ClientCore,
    worker: WorkerInfo,
    task_queue: str,
    activity: Callable[..., Any] | str,
    args: Sequence[Any],
    options: Mapping[str, Any],
) -> _Wait:
    name = activity if isinstance(activity, str) else definition_of(activity).name
    problem: TqBrokerError | None = None
    if not serves(worker, name or ""):
        problem = NotFound(f"activity {name!r} is not registered on {worker.identity}")
    elif task_queue in worker.paused:
        problem = Unavailable(f"task queue {task_queue!r} is paused")
    elif worker.shutting_down:
        problem = Unavailable(f"{worker.identity} is shutting down")
    if problem is not None:
        return lambda seconds: _raise(problem)
    start = make_start(core.names, activity, {**options, "route": Route.process(worker.worker_id)})
    accepted = core.start(start, args)

    def wait(seconds: float) -> Any:
        until = core.clock.monotonic() + seconds
        pending: Pending = waited(accepted, seconds)
        return core.value(pending, waited(pending.outcome, remaining(core.clock, until)))

    return wait


def _answer(core: ClientCore, worker: WorkerInfo, wait: _Wait, deadline: float) -> WorkerResult:
    result, problem = None, None
    try:
        result = wait(remaining(core.clock, deadline))
    except TqBrokerError as error:
        problem = error
    return WorkerResult(
        worker_id=worker.worker_id,
        identity=worker.identity,
        host=worker.host,
        result=result,
        error=problem,
    )


def _raise(error: TqBrokerError) -> Any:
    raise error
