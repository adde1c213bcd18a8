"""Definitions, and the functions that are called inside activities."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest

from tq_broker import activity, common
from tq_broker.activity import Signal, definition_of
from tq_broker.common import RetryPolicy, Route
from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.testing import ActivityEnvironment

SOON_S = 30.0

# --- definitions --------------------------------------------------------------------------------


def test_a_bare_decorator_takes_the_functions_name() -> None:
    @activity.defn
    def count(text: str) -> int:
        return len(text)

    definition = definition_of(count)
    assert (definition.name, definition.is_async, definition.executor) == ("count", False, "thread")
    assert definition.fn is count
    assert count("abc") == 3


def test_options_of_the_decorator_are_kept() -> None:
    policy = RetryPolicy(maximum_attempts=2)

    @activity.defn(
        name="Count",
        task_queue="words",
        start_to_close_timeout=timedelta(seconds=3),
        retry_policy=policy,
        no_thread_cancel_exception=True,
        executor="process",
    )
    def count() -> None: ...

    definition = definition_of(count)
    assert definition.name == "Count"
    assert definition.options.task_queue == "words"
    assert definition.options.start_to_close_timeout == timedelta(seconds=3)
    assert definition.options.retry_policy == policy
    assert definition.no_thread_cancel_exception
    assert definition.executor == "process"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_to_close": timedelta(seconds=1)}, r"'start_to_close'.*start_to_close_timeout"),
        ({"start_to_close_timeout": 3}, "start_to_close_timeout must be a timedelta, not int"),
        (
            {"heartbeat_timeout": timedelta(0)},
            r"heartbeat_timeout is 0:00:00.*at least 0:00:00.001",
        ),
        ({"schedule_to_close_timeout": timedelta(days=4000)}, "at most 3650 days"),
        ({"priority": 6}, r"priority is 6; it must be from 1 \(first\) to 5"),
        ({"priority": True}, "priority is True"),
        ({"retry_policy": 3}, "retry_policy must be a RetryPolicy"),
        ({"route": "host"}, "route must be a Route"),
        ({"route": Route.host("a\nb")}, r"route.host has the control .* U\+000A"),
        ({"route": Route.process("x" * 65)}, "route.process is 65 bytes long .* bound is 64"),
        ({"task_queue": ""}, "task_queue must not be empty"),
        ({"task_queue": "a\nb"}, r"task_queue has the control .* U\+000A"),
        ({"task_queue": "x" * 101}, "task_queue is 101 bytes long .* the bound is 100"),
        ({"name": ""}, "name must not be empty"),
        ({"name": "x" * 201}, "name is 201 bytes long .* the bound is 200"),
        ({"name": 3}, "name must be a string, not int"),
        ({"name": "x", "dynamic": True}, "a dynamic activity has no name"),
        ({"executor": "fork"}, "executor is 'fork'; it must be 'thread' or 'process'"),
    ],
)
def test_a_wrong_option_is_refused_with_its_name_and_bound(
    options: dict[str, Any], message: str
) -> None:
    def fn() -> None: ...

    with pytest.raises(InvalidArgument, match=message):
        activity.defn(**options)(fn)


def test_options_without_keywords_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="takes its options by keyword"):
        activity.defn("name")  # type: ignore[call-overload]


def test_generators_are_refused() -> None:
    def gives() -> Iterator[int]:
        yield 1

    async def gives_async() -> AsyncIterator[int]:
        yield 1

    for fn in (gives, gives_async):
        with pytest.raises(InvalidArgument, match=f"{fn.__name__} must not be a generator"):
            activity.defn(fn)


def test_keyword_only_parameters_need_a_default() -> None:
    def wants(*, number: int) -> None: ...

    with pytest.raises(InvalidArgument, match="keyword-only parameters without a default"):
        activity.defn(wants)

    @activity.defn
    def offers(first: int, *, number: int = 3) -> int:
        return number

    assert offers(1) == 3


def test_an_async_function_cannot_run_in_a_process() -> None:
    async def fn() -> None: ...

    with pytest.raises(InvalidArgument, match="fn is async; it cannot run in a process"):
        activity.defn(executor="process")(fn)


def test_a_method_is_an_activity_of_its_instance() -> None:
    class Mailer:
        def __init__(self, sender: str) -> None:
            self.sender = sender

        @activity.defn
        async def send(self, to: str, copies: int) -> str:
            return f"{self.sender} to {to}"

    definition = definition_of(Mailer("me").send)
    assert (definition.name, definition.is_async) == ("send", True)
    assert definition.arg_types == (str, int)
    assert asyncio.run(definition.fn("you", 1)) == "me to you"
    unbound = definition_of(Mailer.send)
    assert (unbound.arg_types, unbound.least_arguments, unbound.needs_instance) == (
        (str, int),
        2,
        True,
    )
    assert not definition.needs_instance


def test_an_instance_of_a_callable_class_is_an_activity() -> None:
    @activity.defn
    class Adder:
        def __init__(self, amount: int) -> None:
            self.amount = amount

        def __call__(self, number: int) -> int:
            return number + self.amount

    definition = definition_of(Adder(2))
    assert (definition.name, definition.arg_types, definition.result_type) == ("Adder", (int,), int)
    assert definition.fn(3) == 5
    by_class = definition_of(Adder)
    assert (by_class.arg_types, by_class.result_type) == ((int,), int)
    assert (by_class.needs_instance, definition.needs_instance) == (True, False)


def test_a_class_that_cannot_be_called_is_refused() -> None:
    class Nothing: ...

    with pytest.raises(InvalidArgument, match="class Nothing needs a __call__ method"):
        activity.defn(Nothing)


@dataclasses.dataclass
class Point:
    x: int


def test_type_hints_are_resolved() -> None:
    @activity.defn
    def fn(point: Point, plain, numbers: list[int] = []) -> Point | None:  # type: ignore[no-untyped-def]  # noqa: B006
        return None

    definition = definition_of(fn)
    assert definition.arg_types == (Point, Any, list[int])
    assert definition.result_type == Point | None
    assert not definition.takes_more


def test_hints_that_cannot_be_resolved_are_none() -> None:
    @activity.defn
    def fn(thing: Unheard) -> Unheard:  # type: ignore[name-defined]  # noqa: F821
        return thing

    definition = definition_of(fn)
    assert (definition.arg_types, definition.result_type) == ((Any,), Any)


def test_further_arguments_are_known() -> None:
    @activity.defn
    def fn(first: int, *rest: str) -> None: ...

    definition = definition_of(fn)
    assert definition.arg_types == (int,)
    assert definition.takes_more


def test_a_dynamic_activity_has_no_name() -> None:
    @activity.defn(dynamic=True)
    def anything(args: Sequence[activity.RawValue]) -> None: ...

    definition = definition_of(anything)
    assert definition.dynamic
    assert definition.name == ""


def test_a_wrapper_of_an_activity_is_what_runs() -> None:
    @activity.defn
    def inner() -> str:
        return "inner"

    @functools.wraps(inner)
    def outer() -> str:
        return "outer " + inner()

    assert definition_of(outer).fn() == "outer inner"


def test_what_is_not_decorated_is_no_activity() -> None:
    with pytest.raises(InvalidArgument, match="len is not an activity: decorate it"):
        definition_of(len)
    with pytest.raises(InvalidArgument, match="3 is not an activity"):
        definition_of(3)


# --- inside and outside -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        activity.info,
        activity.heartbeat,
        activity.is_cancelled,
        activity.is_worker_shutdown,
        activity.payload_converter,
        activity.shield_thread_cancel_exception,
        activity.raise_complete_async,
        activity.wait_for_cancelled_sync,
        activity.wait_for_worker_shutdown_sync,
        lambda: asyncio.run(activity.wait_for_cancelled()),
        lambda: asyncio.run(activity.wait_for_worker_shutdown()),
    ],
)
def test_outside_an_activity_there_is_nothing(call: Callable[[], Any]) -> None:
    assert not activity.in_activity()
    with pytest.raises(RuntimeError, match="not in an activity"):
        call()


def test_waits_take_seconds_or_a_duration() -> None:
    env = ActivityEnvironment()
    for timeout in (0.0, timedelta(0)):
        env.run(activity.wait_for_cancelled_sync, timeout)
        env.run(activity.wait_for_worker_shutdown_sync, timeout)
    assert not env.run(activity.is_cancelled)


def test_the_logger_says_which_attempt_speaks(caplog: pytest.LogCaptureFixture) -> None:
    def speaks() -> None:
        activity.logger.warning("it is %s", "late", extra={"mine": 1})

    ActivityEnvironment().run(speaks)
    activity.logger.warning("outside %s", "now")
    inside, outside = caplog.records
    assert inside.getMessage() == "it is late (unknown test #1)"
    assert inside.__dict__["mine"] == 1
    assert inside.__dict__["tq_activity"] == {
        "activity_id": "test",
        "activity_type": "unknown",
        "attempt": 1,
        "task_queue": "test",
    }
    assert outside.getMessage() == "outside now"
    assert "tq_activity" not in outside.__dict__


def test_a_percent_sign_in_the_facts_does_not_break_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    env = ActivityEnvironment()
    env.info = dataclasses.replace(env.info, activity_id="100%s", activity_type="%d")
    env.run(lambda: activity.logger.warning("it is %s", "late"))
    env.run(lambda: activity.logger.warning("plain"))
    assert [record.getMessage() for record in caplog.records] == [
        "it is late (%d 100%s #1)",
        "plain (%d 100%s #1)",
    ]


def test_the_logger_is_an_ordinary_one() -> None:
    assert activity.logger.logger is logging.getLogger("tq_broker.activity")


def test_a_raw_value_is_decoded_on_demand() -> None:
    assert activity.RawValue is common.RawValue
    raw = common.RawValue(b'{"x":3}', ActivityEnvironment().payload_converter)
    assert raw.decode() == {"x": 3}
    assert raw.decode(Point) == Point(3)
    with pytest.raises(Malformed):
        raw.decode(int)


# --- Signal -------------------------------------------------------------------------------------


def test_a_signal_wakes_threads() -> None:
    happened = Signal()
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(happened.wait_sync(SOON_S)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    happened.set()
    for thread in threads:
        thread.join(SOON_S)
    assert results == [True] * 3


def test_a_signal_wakes_coroutines_from_another_thread() -> None:
    happened = Signal()

    async def scenario() -> None:
        waits = [asyncio.ensure_future(happened.wait()) for _ in range(3)]
        await asyncio.sleep(0)
        await asyncio.to_thread(happened.set)
        await asyncio.wait_for(asyncio.gather(*waits), SOON_S)
        await asyncio.wait_for(happened.wait(), SOON_S)

    asyncio.run(scenario())


def test_a_signal_that_did_not_happen_is_waited_for_only_so_long() -> None:
    assert not Signal().wait_sync(0)


def test_callbacks_of_a_signal_are_called_once() -> None:
    happened = Signal()
    calls: list[str] = []
    happened.on_set(lambda: calls.append("before"))
    happened.set()
    happened.set()
    happened.on_set(lambda: calls.append("after"))
    assert calls == ["before", "after"]
    assert happened.is_set()


def test_a_callback_may_use_the_signal() -> None:
    happened = Signal()
    seen: list[bool] = []
    happened.on_set(lambda: happened.on_set(lambda: seen.append(happened.is_set())))
    happened.set()
    assert seen == [True]


def test_a_loop_that_is_closed_does_not_harm_a_signal() -> None:
    happened = Signal()

    async def leaves() -> None:
        task = asyncio.ensure_future(happened.wait())
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leaves())
    happened.set()
    assert happened.is_set()


def test_whoever_gives_up_waiting_is_forgotten() -> None:
    happened = Signal()

    async def impatient() -> None:
        for _ in range(100):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(happened.wait(), 0.000001)

    asyncio.run(impatient())
    assert not happened._callbacks


def test_least_arguments_counts_what_has_no_default() -> None:
    @activity.defn
    def fn(a: int, b: int, /, c: int, d: int = 1, *more: int, e: int = 2) -> None: ...

    assert activity.definition_of(fn).least_arguments == 3
