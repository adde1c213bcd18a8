"""The inside of a process for activities, here in threads of this one.

`tests/worker/test_processes.py` has it in its place.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.worker import process_activities as acts
from tests.worker.attempts import attempt_of
from tq_broker import activity
from tq_broker.converter import JSONPayloadConverter
from tq_broker.model.failure import Failure
from tq_broker.worker import child as inside
from tq_broker.worker.child import (
    Awaited,
    Beat,
    Cancel,
    Child,
    Failed,
    Frames,
    Returned,
    Run,
    Setup,
    Shutdown,
    ToChild,
    ToParent,
    frame,
)
from tq_broker.worker.interceptors import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
)


def run_of(fn: Callable[..., Any], *args: Any, number: int = 1) -> Run:
    attempt = attempt_of(fn, *args)
    return Run(
        number=number,
        function=pickle.dumps(fn),
        info=attempt.info,
        args=[bytes(arg) for arg in attempt.body.args],
        heartbeat=[],
        interrupt=True,
    )


def test_a_run_arrives_as_it_was_sent() -> None:
    sent = run_of(acts.double, {"item": "pin", "count": 1})
    (got,) = Frames[ToChild](ToChild).feed(frame(sent))
    assert isinstance(got, Run)
    # A tuple has become a list; the rest, with its times and durations, is the same.
    info = msgspec.structs.asdict(got)["info"]
    assert (
        info.scheduled_time,
        info.start_to_close_timeout,
        info.retry_policy.initial_interval,
    ) == (
        sent.info.scheduled_time,
        sent.info.start_to_close_timeout,
        sent.info.retry_policy.initial_interval,
    )
    assert (got.number, got.function, got.args) == (sent.number, sent.function, sent.args)


messages = st.one_of(
    st.builds(Beat, st.integers(0, 2**31), st.lists(st.binary())),
    st.builds(Returned, st.integers(0, 2**31), st.binary()),
    st.builds(Failed, st.integers(0, 2**31), st.binary()),
    st.builds(Awaited, st.integers(0, 2**31), st.text(st.characters(exclude_categories=["Cs"]))),
)


@given(st.lists(messages), st.integers(1, 50))
def test_frames_are_cut_wherever_the_stream_was(sent: list[ToParent], size: int) -> None:
    stream = b"".join(map(frame, sent))
    frames: Frames[ToParent] = Frames(ToParent)
    got = [
        message
        for start in range(0, len(stream), size)
        for message in frames.feed(stream[start : start + size])
    ]
    assert got == sent


def test_nonsense_is_an_error() -> None:
    with pytest.raises(msgspec.DecodeError):
        Frames[ToParent](ToParent).feed(b"\0\0\0\1x")


class Pair:
    """A child whose queue is filled before it serves, and its parent's end of the pipe."""

    def __init__(self, *, shutdown: bool = False, interceptors: Sequence[Interceptor] = ()) -> None:
        self.parent, ours = socket.socketpair()
        converter = pickle.dumps(JSONPayloadConverter())
        setup = Setup(converter, 30, shutdown, pickle.dumps(interceptors))
        self.child = Child(ours, setup)
        self.ours = ours

    def serve(self, *sent: ToChild) -> list[ToParent]:
        for message in sent:
            self.child.take(message)
        self.child._jobs.put(None)
        self.child.serve()
        self.ours.close()
        stream = b""
        while data := self.parent.recv(inside.RECEIVE_BYTES):
            stream += data
        self.parent.close()
        return Frames[ToParent](ToParent).feed(stream)


def test_what_runs_is_answered_in_turn() -> None:
    sent = [run_of(acts.double, {"item": "a", "count": n}, number=n) for n in (1, 2)]
    assert Pair().serve(*sent) == [
        Returned(1, b'{"item":"a","count":2}'),
        Returned(2, b'{"item":"a","count":4}'),
    ]


def test_heartbeats_come_before_the_end() -> None:
    assert Pair().serve(run_of(acts.beats, number=7)) == [
        Beat(7, [b'"first"', b"1"]),
        Beat(7, [b'"second"', b"2"]),
        Returned(7, b"null"),
    ]


class Counting(ActivityInboundInterceptor):
    async def execute_activity(self, input: ExecuteActivityInput) -> Any:
        activity.heartbeat("begins")
        result = await super().execute_activity(input)
        return [result, input.headers]


class Counts(Interceptor):
    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:
        return Counting(next)


def test_interceptors_stand_around_what_runs_here() -> None:
    sent = run_of(acts.double, {"item": "a", "count": 1}, number=3)
    assert Pair(interceptors=[Counts()]).serve(sent) == [
        Beat(3, [b'"begins"']),
        Returned(3, b'[{"item":"a","count":2},{}]'),
    ]


def test_an_exception_is_a_failure() -> None:
    (end,) = Pair().serve(run_of(acts.fails, "alas"))
    assert isinstance(end, Failed)
    assert msgspec.json.decode(end.failure, type=Failure).type == "Sad"


def test_a_completion_elsewhere_is_told() -> None:
    (end,) = Pair().serve(run_of(acts.is_completed_elsewhere))
    assert isinstance(end, Awaited)


def test_what_is_cancelled_before_it_begins_does_not_run() -> None:
    (end,) = Pair().serve(run_of(acts.beats, number=3), Cancel(3))
    assert isinstance(end, Failed)


def test_a_cancellation_of_what_has_ended_is_for_nobody() -> None:
    ends = Pair().serve(run_of(acts.nothing, number=3), Cancel(2))
    assert ends == [Returned(3, b"null")]


@pytest.mark.parametrize("early", [True, False])
def test_the_shutdown_is_known(early: bool) -> None:
    pair = Pair(shutdown=early)
    sent: list[ToChild] = [] if early else [Shutdown()]
    ends = pair.serve(*sent, run_of(acts.waits_for_shutdown))
    assert ends[-1] == Returned(1, b'"shut down"')


def test_what_cannot_be_unpickled_is_a_failure_of_the_attempt() -> None:
    run = msgspec.structs.replace(run_of(acts.nothing), function=b"cnowhere\nfn\n.")
    (end,) = Pair().serve(run)
    assert isinstance(end, Failed)
    failure = msgspec.json.decode(end.failure, type=Failure)
    assert (failure.type, "nowhere" in failure.message) == ("NotFoundError", True)
