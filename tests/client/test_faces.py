"""Both faces of the client: the same questions, the same answers."""

from __future__ import annotations

import asyncio
import inspect
import queue
import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from tq_broker import activity
from tq_broker.client import BlockingClient, Client
from tq_broker.common import ActivityIDConflictPolicy, RetryPolicy, Route
from tq_broker.exceptions import (
    ActivityAlreadyStarted,
    ActivityError,
    ApplicationError,
    CancelledError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    TargetGone,
    Unavailable,
)
from tq_broker.model.control import TaskToken
from tq_broker.queues.memory import forget
from tq_broker.worker import Worker

MINUTE = timedelta(minutes=1)
SOON_S = 20.0
ONCE = RetryPolicy(maximum_attempts=1)


@activity.defn(task_queue="q", start_to_close_timeout=MINUTE)
async def double(number: int) -> int:
    return 2 * number


@activity.defn(task_queue="q", start_to_close_timeout=MINUTE)
async def total(*numbers: int) -> int:
    return sum(numbers)


@activity.defn(task_queue="q", start_to_close_timeout=MINUTE, retry_policy=ONCE)
async def fails() -> None:
    raise ValueError("no good")


@activity.defn(task_queue="q", start_to_close_timeout=MINUTE)
async def waits() -> str:
    await activity.wait_for_cancelled()
    raise CancelledError("heeded")


@dataclass
class Face:
    """A kind of client, and the way to its answers."""

    kind: Any
    do: Callable[[Any], Any]
    url: str

    def connect(self, **options: Any) -> Any:
        return self.do(self.kind.connect(self.url, **options))


@pytest.fixture(params=[Client, BlockingClient])
def face(request: pytest.FixtureRequest) -> Iterator[Face]:
    loop = asyncio.new_event_loop()

    def do(answer: Any) -> Any:
        return loop.run_until_complete(answer) if inspect.isawaitable(answer) else answer

    url = f"memory://faces-{secrets.token_hex(4)}"
    yield Face(request.param, do, url)
    loop.close()
    forget(url)


@pytest.fixture
def client(face: Face) -> Iterator[Any]:
    client = face.connect()
    yield client
    face.do(client.close())


@pytest.fixture
def worker(client: Any) -> Iterator[Worker]:
    @activity.defn(task_queue="q", start_to_close_timeout=MINUTE, retry_policy=ONCE)
    async def later() -> str:
        tokens.put_nowait(activity.info().task_token)
        activity.raise_complete_async()

    tokens: queue.Queue[bytes] = queue.Queue()
    worker = Worker(client, task_queue="q", activities=[double, total, fails, waits, later])
    worker.tokens = tokens  # type: ignore[attr-defined]
    with worker:
        yield worker


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"namespace": ""}, "namespace must not be empty"),
        ({"namespace": "x" * 41}, "namespace .* 40"),
        ({"namespace": "a\r"}, "namespace has the control"),
        ({"queue_type": "stream"}, "queue_type must be 'quorum' or 'classic'"),
        ({"data_converter": 3}, "data_converter is 3"),
        ({"timeout": 0}, "timeout must be positive"),
        ({"timeout": None}, "timeout must be positive"),
        ({"timeout": -1}, "timeout is -1"),
        ({"timeout": float("nan")}, "timeout"),
    ],
)
def test_a_wrong_connection_option_is_refused_by_its_name(
    face: Face, options: dict[str, Any], error: str
) -> None:
    with pytest.raises(InvalidArgument, match=error):
        face.connect(**options)


def test_a_wrong_url_is_refused(face: Face) -> None:
    with pytest.raises(InvalidArgument, match="url must begin"):
        face.do(face.kind.connect("redis://localhost"))


def test_a_lazy_client_connects_with_its_first_operation(face: Face) -> None:
    client = face.connect(lazy=True, namespace="n", identity="me", timeout=timedelta(seconds=9))
    assert (client.namespace, client.identity) == ("n", "me")
    assert client.core.timeout_s == 9
    face.do(client.start_activity(double, 1, wait_result=False))
    face.do(client.close())


def test_an_activity_is_executed(face: Face, client: Any, worker: Worker) -> None:
    assert face.do(client.execute_activity(double, 21)) == 42
    assert face.do(client.execute_activity(total, args=[1, 2, 3])) == 6
    assert face.do(client.execute_activity(total)) == 0
    by_name = client.execute_activity(
        "double", 4, task_queue="q", start_to_close_timeout=MINUTE, result_type=float
    )
    assert repr(face.do(by_name)) == "8.0"


def test_a_handle_tells_what_it_stands_for(face: Face, client: Any, worker: Worker) -> None:
    handle = face.do(client.start_activity(double, 1, id="my-id"))
    assert handle.id == "my-id"
    assert "double my-id" in repr(handle)
    for _ in range(2):
        assert face.do(handle.result(timedelta(seconds=SOON_S))) == 2


def test_a_failure_is_raised(face: Face, client: Any, worker: Worker) -> None:
    with pytest.raises(ActivityError, match="no good") as caught:
        face.do(client.execute_activity(fails))
    assert isinstance(caught.value.cause, ApplicationError)
    assert caught.value.cause.type == "ValueError"


def test_many_are_started(face: Face, client: Any, worker: Worker) -> None:
    handles = face.do(client.start_activities(double, [[n] for n in range(30)]))
    assert [face.do(handle.result()) for handle in handles] == [2 * n for n in range(30)]
    assert face.do(client.start_activities(double, [])) == []


def test_many_cannot_have_one_id(face: Face, client: Any) -> None:
    with pytest.raises(InvalidArgument, match="id names one activity"):
        face.do(client.start_activities(double, [[1]], id="x"))


def test_arg_and_args_exclude_each_other(face: Face, client: Any) -> None:
    with pytest.raises(InvalidArgument, match="either arg or args"):
        face.do(client.start_activity(double, 1, args=[1]))


def test_a_wrong_option_is_refused_by_its_name(face: Face, client: Any) -> None:
    with pytest.raises(InvalidArgument, match="priority is 9"):
        face.do(client.start_activity(double, 1, priority=9))
    with pytest.raises(InvalidArgument, match="unknown activity option 'nonsense'"):
        face.do(client.start_activity(double, 1, nonsense=9))
    with pytest.raises(InvalidArgument, match="at most 1 arguments"):
        face.do(client.start_activity(double, args=[1, 2]))
    with pytest.raises(InvalidArgument, match="args is 'x'; it must be a sequence of arguments"):
        face.do(client.start_activity(double, args="x"))
    with pytest.raises(InvalidArgument, match=r"calls\[1\] is 2; it must be a sequence"):
        face.do(client.start_activities(double, [(1,), 2]))
    with pytest.raises(InvalidArgument, match=r"route\.host is 65 bytes long"):
        face.do(client.start_activity(double, 1, route=Route.host("h" * 65)))


def test_waiting_too_long_leaves_the_activity_alone(face: Face, client: Any) -> None:
    handle = face.do(client.start_activity(double, 1))
    for timeout in (0, 0.01, timedelta(milliseconds=10)):
        with pytest.raises(DeadlineExceeded, match="not ended within"):
            face.do(handle.result(timeout))
    with Worker(client, task_queue="q", activities=[double]):
        assert face.do(handle.result(SOON_S)) == 2


@pytest.mark.parametrize("timeout", [-1, timedelta(seconds=-1), float("nan")])
def test_a_timeout_is_not_negative(face: Face, client: Any, timeout: Any) -> None:
    handle = face.do(client.start_activity(double, 1))
    with pytest.raises(InvalidArgument, match="timeout is"):
        face.do(handle.result(timeout))


@pytest.mark.parametrize("options", [{"wait_result": False}, {"reply_to": "tq.default.reply.x"}])
def test_who_did_not_want_the_outcome_cannot_wait_for_it(
    face: Face, client: Any, options: dict[str, Any]
) -> None:
    handle = face.do(client.start_activity(double, 1, **options))
    with pytest.raises(InvalidArgument, match="outcome goes elsewhere"):
        face.do(handle.result())


def test_why_a_start_was_not_taken_is_told(face: Face) -> None:
    """Found: the asynchronous face said "not ended within None s" instead."""
    client = face.connect(timeout=0.2)
    face.do(client.start_activity(double, 1, wait_result=False))
    client.core.broker.break_connection(away_s=30.0)
    with pytest.raises(DeadlineExceeded) as caught:
        face.do(client.start_activity(double, 1, wait_result=False))
    assert "None" not in str(caught.value)
    client.core.broker.kill()


def test_a_target_that_is_gone_is_told(face: Face, client: Any) -> None:
    with pytest.raises(TargetGone, match="host 'nowhere'"):
        face.do(client.start_activity(double, 1, route=Route.host("nowhere")))


def test_a_taken_id_is_joined_or_refused(face: Face, client: Any, worker: Worker) -> None:
    first = face.do(client.start_activity(double, 1, id="x"))
    assert face.do(first.result(SOON_S)) == 2
    joined = face.do(client.start_activity(double, 99, id="x"))
    assert face.do(joined.result(SOON_S)) == 2
    refused = face.do(
        client.start_activity(double, 99, id="x", id_conflict_policy=ActivityIDConflictPolicy.FAIL)
    )
    with pytest.raises(ActivityAlreadyStarted, match="'x'"):
        face.do(refused.result(SOON_S))


def test_an_activity_is_cancelled_by_handle_and_by_id(
    face: Face, client: Any, worker: Worker
) -> None:
    for by_handle in (True, False):
        handle = face.do(client.start_activity(waits))
        face.do(handle.cancel("why") if by_handle else client.cancel_activity(handle.id))
        with pytest.raises(ActivityError) as caught:
            face.do(handle.result(SOON_S))
        assert isinstance(caught.value.cause, CancelledError)


def test_an_attempt_is_completed_by_its_token(face: Face, client: Any, worker: Any) -> None:
    handle = face.do(client.start_activity("later", task_queue="q", start_to_close_timeout=MINUTE))
    token = worker.tokens.get(timeout=SOON_S)
    other = client.get_async_activity_handle(task_token=token)
    face.do(other.heartbeat("half way"))
    face.do(other.complete("done"))
    assert face.do(handle.result(SOON_S)) == "done"
    with pytest.raises(NotFound):
        face.do(other.complete("again"))


@pytest.mark.parametrize(
    ("end", "cause"),
    [
        (lambda handle: handle.fail(ValueError("bad")), ApplicationError),
        (lambda handle: handle.report_cancellation("why"), CancelledError),
    ],
)
def test_an_attempt_is_failed_by_its_token(
    face: Face, client: Any, worker: Any, end: Callable[[Any], Any], cause: type[Exception]
) -> None:
    handle = face.do(
        client.start_activity(
            "later", task_queue="q", start_to_close_timeout=MINUTE, retry_policy=ONCE
        )
    )
    token = worker.tokens.get(timeout=SOON_S)
    face.do(end(client.get_async_activity_handle(task_token=token.decode())))
    with pytest.raises(ActivityError) as caught:
        face.do(handle.result(SOON_S))
    assert isinstance(caught.value.cause, cause)


def test_a_heartbeat_by_token_tells_of_a_cancellation(face: Face, client: Any, worker: Any) -> None:
    handle = face.do(client.start_activity("later", task_queue="q", start_to_close_timeout=MINUTE))
    other = client.get_async_activity_handle(task_token=worker.tokens.get(timeout=SOON_S))
    face.do(handle.cancel())
    # The request reaches the worker by way of the settings log.
    with pytest.raises(CancelledError):
        all(face.do(other.heartbeat()) is None for _ in range(1000))
    face.do(other.report_cancellation())
    with pytest.raises(ActivityError):
        face.do(handle.result(SOON_S))


def test_a_token_of_another_namespace_or_none_at_all_is_refused(face: Face, client: Any) -> None:
    foreign = TaskToken("other", "w", "x", 1).dump()
    with pytest.raises(InvalidArgument, match="namespace 'other'"):
        client.get_async_activity_handle(task_token=foreign)
    with pytest.raises(InvalidArgument, match="task_token"):
        client.get_async_activity_handle(task_token=b"nonsense")


def test_closing_ends_the_waits_and_may_be_repeated(face: Face) -> None:
    client = face.connect()
    handle = face.do(client.start_activity(double, 1))
    face.do(client.close())
    face.do(client.close())
    with pytest.raises(Unavailable, match="closed"):
        face.do(handle.result(SOON_S))
    with pytest.raises(Unavailable):
        face.do(client.start_activity(double, 1))


def test_a_client_closes_with_its_block(face: Face) -> None:
    async def awaited() -> Any:
        async with await Client.connect(face.url) as client:
            return await client.start_activity(double, 1)

    if face.kind is Client:
        handle = face.do(awaited())
    else:
        with BlockingClient.connect(face.url) as client:
            handle = client.start_activity(double, 1)
    with pytest.raises(Unavailable, match="closed"):
        face.do(handle.result(SOON_S))


def test_one_result_may_be_waited_for_by_several(client: Any, face: Face, worker: Worker) -> None:
    handle = face.do(client.start_activity(waits))
    if face.kind is BlockingClient:
        with pytest.raises(DeadlineExceeded):
            handle.result(0.01)
    else:

        async def both() -> None:
            one, two = (asyncio.ensure_future(handle.result()) for _ in range(2))
            await asyncio.sleep(0)
            one.cancel()
            with pytest.raises(asyncio.CancelledError):
                await one
            await handle.cancel()
            with pytest.raises(ActivityError):
                await two

        face.do(both())
        return
    handle.cancel()
    with pytest.raises(ActivityError):
        handle.result(SOON_S)
