"""The pool of processes, with real ones."""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from tests.worker import process_activities as acts
from tests.worker.attempts import SOON_S, End, FakeOwner, attempt_of, place
from tq_broker import activity
from tq_broker.clock import Clock, SystemClock
from tq_broker.converter import DataConverter, JSONPayloadConverter
from tq_broker.exceptions import ApplicationError, InvalidArgument, Malformed
from tq_broker.model.failure import FailureKind
from tq_broker.testing.manual_clock import ManualClock, ManualTimer
from tq_broker.worker.attempt import Attempt, Place
from tq_broker.worker.processes import PROCESS_LOST, ProcessExecutor, check_runnable

GRACE_S = 5.0


@dataclass
class Pool:
    """An executor and what is needed to look at it."""

    executor: ProcessExecutor
    owner: FakeOwner
    place: Place
    beats: queue.Queue[list[Any]]

    def attempt(self, fn: Callable[..., Any], *args: Any, **fields: Any) -> Attempt:
        def on_heartbeat(attempt: Attempt) -> None:
            self.beats.put([msgspec.json.decode(detail) for detail in attempt.details or ()])

        return attempt_of(fn, *args, at=self.place, on_heartbeat=on_heartbeat, **fields)

    def start(self, fn: Callable[..., Any], *args: Any, **fields: Any) -> Attempt:
        attempt = self.attempt(fn, *args, **fields)
        self.executor.start([attempt])
        return attempt

    def run(self, fn: Callable[..., Any], *args: Any, **fields: Any) -> End:
        attempt = self.start(fn, *args, **fields)
        end = self.owner.next()
        assert end.attempt is attempt
        return end

    def result(self, fn: Callable[..., Any], *args: Any, **fields: Any) -> Any:
        end = self.run(fn, *args, **fields)
        assert end.how == "returned", end
        return msgspec.json.decode(end.value)

    def beat(self) -> list[Any]:
        return self.beats.get(timeout=SOON_S)


@pytest.fixture
def make_pool() -> Iterator[Callable[..., Pool]]:
    made: list[tuple[Pool, Clock]] = []

    def make(
        processes: int = 1, clock: Clock | None = None, converter: DataConverter | None = None
    ) -> Pool:
        clock = clock or SystemClock()
        owner, at = FakeOwner(), place(clock, converter)
        pool = Pool(ProcessExecutor(owner, clock, at, processes, GRACE_S), owner, at, queue.Queue())
        made.append((pool, clock))
        return pool

    yield make
    for pool, clock in made:
        pool.executor.close(clock.monotonic())
    assert not [p for p in multiprocessing.active_children() if p.name == "tq-activities"]


@pytest.fixture
def pool(make_pool: Callable[..., Pool]) -> Pool:
    return make_pool()


def wait_gone(pid: int) -> None:
    """Wait until a process, not necessarily a child of ours, has ended."""
    try:
        sentinel = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([sentinel], [], [], SOON_S)[0], f"process {pid} is still there"
    finally:
        os.close(sentinel)


# --- running ------------------------------------------------------------------------------------


def test_arguments_and_results_are_what_the_hints_say(pool: Pool) -> None:
    assert pool.result(acts.double, {"item": "pin", "count": 3}) == {"item": "pin", "count": 6}


def test_a_result_of_none_is_null(pool: Pool) -> None:
    assert pool.run(acts.nothing).value == b"null"


def test_a_child_is_started_for_the_first_attempt_and_used_again(pool: Pool) -> None:
    assert not multiprocessing.active_children()
    first, second = pool.result(acts.pid), pool.result(acts.pid)
    assert first == second != os.getpid()


def test_many_more_attempts_than_processes_run_in_turn(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(2)
    attempts = [pool.attempt(acts.pid) for _ in range(50)]
    pool.executor.start(attempts)
    ends = [pool.owner.next() for _ in attempts]
    assert {id(end.attempt) for end in ends} == {id(attempt) for attempt in attempts}
    assert len({end.value for end in ends}) == 2


def test_an_exception_travels_as_a_failure(pool: Pool) -> None:
    end = pool.run(acts.fails, "alas")
    assert end.how == "failed"
    failure = end.failure
    assert (failure.kind, failure.type, failure.message) == (
        FailureKind.APPLICATION,
        "Sad",
        "alas",
    )
    assert failure.non_retryable
    assert failure.details == [{"at": 3}]
    assert "process_activities.py" in failure.stack_trace


def test_an_exception_that_is_no_utf8_travels_too(pool: Pool) -> None:
    failure = pool.run(acts.fails_unspeakably).failure
    assert (failure.type, failure.message) == ("ValueError", "?")


def test_sys_exit_fails_the_attempt_and_not_the_process(pool: Pool) -> None:
    before = pool.result(acts.pid)
    assert pool.run(acts.leaves).failure.type == "SystemExit"
    assert pool.result(acts.pid) == before


def test_arguments_that_do_not_fit_fail_the_attempt(pool: Pool) -> None:
    assert pool.run(acts.double, [1]).failure.type == Malformed.__name__


def test_a_result_that_cannot_be_sent_fails_the_attempt(pool: Pool) -> None:
    assert pool.run(acts.returns_a_socket).failure.type == InvalidArgument.__name__


def test_large_arguments_and_results_pass_the_pipe(pool: Pool) -> None:
    assert pool.result(acts.takes, "x" * 5_000_000) == 5_000_000
    assert len(pool.result(acts.gives, 5_000_000)) == 5_000_000


def test_a_bound_method_and_a_callable_instance_run(pool: Pool) -> None:
    assert pool.result(acts.Greeter("hello").greet, "you") == "hello you"
    assert pool.result(acts.Greeter("good-bye").greet, "you") == "good-bye you"
    assert pool.result(acts.Adder(2), 3) == 5


def test_a_dynamic_activity_decodes_its_arguments_itself(pool: Pool) -> None:
    result = pool.result(acts.anything, 1, "two", activity_type="made-up")
    assert result == "made-up [1, 'two']"


def test_an_activity_may_use_multiprocessing_itself(pool: Pool) -> None:
    assert pool.result(acts.has_children_of_its_own) == 3


def test_the_functions_of_the_activity_module_work_inside(pool: Pool) -> None:
    details = [msgspec.Raw(b'"half"'), msgspec.Raw(b"[1,2]")]
    attempt = pool.attempt(acts.tells, heartbeat=details, attempt=3)
    pool.executor.start([attempt])
    told = msgspec.json.decode(pool.owner.next().value)
    assert told == {
        "id": "a-1",
        "type": "tells",
        "attempt": 3,
        "task_queue": "work",
        "host": "here",
        "worker": "worker-1",
        "token": attempt.info.task_token.decode(),
        "details": ["half", [1, 2]],
        "scheduled": "2023-11-14T22:13:20+00:00",
        "timeout_s": 60,
        "attempts": 0,
        "in_activity": True,
        "converter": "JSONPayloadConverter",
        "main_thread": True,
    }


def test_heartbeats_reach_the_attempt(pool: Pool) -> None:
    attempt = pool.start(acts.beats, heartbeat_ms=1000)
    pool.owner.next()
    assert attempt.details == [msgspec.Raw(b'"second"'), msgspec.Raw(b"2")]
    # The attempt was made at 1000.0 on a clock of its own; the deadline is now our clock's.
    assert attempt.heartbeat_at != 1001.0


def test_of_heartbeats_that_come_fast_the_last_one_is_kept(pool: Pool) -> None:
    attempt = pool.start(acts.beats_often, 20_000)
    assert pool.owner.next().how == "returned"
    assert attempt.details == [msgspec.Raw(b"19999")]


def test_completing_elsewhere_reaches_the_owner(pool: Pool) -> None:
    end = pool.run(acts.is_completed_elsewhere)
    assert (end.how, type(end.value)) == ("raised", activity.CompleteAsyncError)


def test_the_workers_shutdown_is_told_inside(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(2)
    pool.start(acts.waits_for_shutdown)
    pool.beat()
    pool.place.shutdown.set()
    assert pool.owner.next().value == b'"shut down"'
    # And to a child that is started afterwards.
    pool.executor.start([pool.attempt(acts.waits_for_shutdown) for _ in range(2)])
    assert {pool.owner.next().value for _ in range(2)} == {b'"shut down"'}


def test_the_level_of_the_root_logger_is_the_childs(
    pool: Pool, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        pool.run(acts.logs)
    assert "spoken inside (logs a-1 #1)" in capfd.readouterr().err


class Shouting(JSONPayloadConverter):
    """A converter with a memory of its own."""

    def __init__(self, ending: str) -> None:
        super().__init__()
        self.ending = ending

    def encode(self, value: Any) -> bytes:
        return super().encode(value.upper() + self.ending if isinstance(value, str) else value)


def test_the_child_has_the_workers_converter(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(converter=DataConverter(payload_converter=Shouting("!")))
    assert pool.result(acts.gives, 2) == "XX!"


# --- stopping -----------------------------------------------------------------------------------


def test_a_cancellation_interrupts_the_code(pool: Pool) -> None:
    before = pool.result(acts.pid)
    attempt = pool.start(acts.spins)
    pool.beat()
    pool.executor.cancel(attempt)
    end = pool.owner.next()
    assert (end.attempt, end.failure.kind) == (attempt, FailureKind.CANCELED)
    assert pool.result(acts.pid) == before


def test_code_may_look_for_its_cancellation(pool: Pool) -> None:
    attempt = pool.start(acts.looks)
    pool.beat()
    pool.executor.cancel(attempt)
    assert pool.owner.next().value == b'"looked"'


def test_code_may_answer_its_cancellation(pool: Pool) -> None:
    attempt = pool.start(acts.heeds)
    pool.beat()
    pool.executor.cancel(attempt)
    assert pool.owner.next().failure.kind is FailureKind.CANCELED


def test_a_shield_puts_the_interruption_off(pool: Pool) -> None:
    attempt = pool.start(acts.shields)
    pool.beat()
    pool.executor.cancel(attempt)
    assert pool.beat() == ["cleaned up"]
    assert pool.owner.next().failure.kind is FailureKind.CANCELED


def test_code_that_ignores_its_cancellation_is_killed_after_the_grace(
    make_pool: Callable[..., Pool],
) -> None:
    clock = ManualClock()
    pool = make_pool(clock=clock)
    before = pool.result(acts.pid)
    attempt = pool.start(acts.ignores)
    pool.beat()
    pool.executor.cancel(attempt)
    assert pool.beat() == ["ignored"]
    clock.advance(GRACE_S - 0.001)
    assert pool.owner.ends.empty()
    clock.advance(0.001)
    end = pool.owner.next()
    assert (end.attempt, end.failure.kind) == (attempt, FailureKind.CANCELED)
    assert pool.result(acts.pid) != before
    wait_gone(before)


def test_the_grace_of_an_attempt_that_has_ended_kills_nobody(
    make_pool: Callable[..., Pool],
) -> None:
    clock = ManualClock()
    pool = make_pool(clock=clock)
    attempt = pool.start(acts.looks)
    pool.beat()
    pool.executor.cancel(attempt)
    pool.owner.next()
    attempt = pool.start(acts.looks)
    pool.beat()
    clock.advance(GRACE_S)
    pool.executor.cancel(attempt)
    assert pool.owner.next().how == "returned"


def test_an_attempt_cancelled_before_it_began_never_runs(pool: Pool) -> None:
    running = pool.start(acts.looks)
    pool.beat()
    waiting = pool.start(acts.nothing)
    pool.executor.cancel(waiting)
    end = pool.owner.next()
    assert (end.attempt, end.failure.kind) == (waiting, FailureKind.CANCELED)
    cancelled = pool.attempt(acts.nothing)
    cancelled.request_cancel()
    pool.executor.start([cancelled])
    end = pool.owner.next()
    assert (end.attempt, end.failure.kind) == (cancelled, FailureKind.CANCELED)
    pool.executor.cancel(running)
    assert pool.owner.next().attempt is running


@pytest.mark.parametrize("fn", [acts.spins, acts.stuck_in_c, acts.ignores])
def test_an_abandoned_attempts_process_is_killed_at_once(
    make_pool: Callable[..., Pool], fn: Callable[..., Any]
) -> None:
    pool = make_pool(clock=ManualClock())
    before = pool.result(acts.pid)
    attempt = pool.start(fn)
    pool.beat()
    pool.executor.abandon(attempt)
    assert pool.owner.next().attempt is attempt
    assert pool.result(acts.pid) != before
    wait_gone(before)


def test_an_abandoned_attempt_that_waits_is_dropped(pool: Pool) -> None:
    running = pool.start(acts.looks)
    pool.beat()
    waiting = pool.start(acts.nothing)
    pool.executor.abandon(waiting)
    assert pool.owner.next().attempt is waiting
    pool.executor.cancel(running)
    assert pool.owner.next().attempt is running


def test_what_an_activity_has_started_is_killed_with_it(pool: Pool) -> None:
    attempt = pool.start(acts.starts_a_program)
    (program,) = pool.beat()
    pool.executor.abandon(attempt)
    pool.owner.next()
    wait_gone(program)


def test_stopping_what_has_ended_does_nothing(pool: Pool) -> None:
    pid = pool.result(acts.pid)
    ended = pool.start(acts.nothing)
    pool.owner.next()
    pool.executor.cancel(ended)
    pool.executor.abandon(ended)
    assert pool.result(acts.pid) == pid


# --- losing processes ---------------------------------------------------------------------------


def test_a_process_that_exits_is_a_lost_attempt_and_is_replaced(pool: Pool) -> None:
    failure = pool.run(acts.dies, 3).failure
    assert (failure.type, failure.non_retryable) == (PROCESS_LOST, False)
    assert "exited with code 3" in failure.message
    assert pool.result(acts.double, {"item": "pin", "count": 1})["count"] == 2


def test_a_segmentation_fault_is_a_lost_attempt_that_names_the_signal(pool: Pool) -> None:
    failure = pool.run(acts.crashes).failure
    assert failure.type == PROCESS_LOST
    assert "SIGSEGV" in failure.message


def test_a_killed_process_is_a_lost_attempt_and_the_others_go_on(
    make_pool: Callable[..., Pool],
) -> None:
    pool = make_pool(2)
    going_on = pool.start(acts.looks)
    pool.beat()
    attempt = pool.start(acts.spins)
    pool.beat()
    pids = {p.pid for p in multiprocessing.active_children() if p.name == "tq-activities"}
    assert len(pids) == 2
    pool.executor.abandon(attempt)
    pool.owner.next()
    victim = pool.start(acts.dies, 9)
    end = pool.owner.next()
    assert (end.attempt, end.failure.type) == (victim, PROCESS_LOST)
    pool.executor.cancel(going_on)
    assert pool.owner.next().value == b'"looked"'


def test_an_idle_process_that_dies_is_replaced(pool: Pool) -> None:
    before = pool.result(acts.pid)
    os.kill(before, signal.SIGKILL)
    wait_gone(before)
    # The pool may hear of it only now; then it is the attempt that is lost.
    end = pool.run(acts.pid)
    if end.how == "failed":
        assert end.failure.type == PROCESS_LOST
        end = pool.run(acts.pid)
    assert int(end.value) != before


def test_a_process_that_closes_its_pipe_is_lost(pool: Pool) -> None:
    assert pool.run(acts.closes_everything).failure.type == PROCESS_LOST


def test_a_death_is_heard_though_the_dead_ones_children_live(pool: Pool) -> None:
    pool.start(acts.leaves_a_child_and_dies)
    (left_behind,) = pool.beat()
    assert "exited with code 7" in pool.owner.next().failure.message
    wait_gone(left_behind)


def test_interrupts_meant_for_the_worker_do_not_end_activities(pool: Pool) -> None:
    pid = pool.result(acts.pid)
    attempt = pool.start(acts.looks)
    pool.beat()
    os.kill(pid, signal.SIGINT)
    os.kill(pid, signal.SIGTERM)
    pool.executor.cancel(attempt)
    assert pool.owner.next().value == b'"looked"'


def test_an_activity_that_cannot_be_loaded_is_a_failure(pool: Pool) -> None:
    failure = pool.run(acts.Unloadable().greet, "you").failure
    assert failure.type == "NotFoundError"
    assert "not here" in failure.message


def test_a_process_that_cannot_start_is_a_failure(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(process: object) -> None:
        raise OSError("no more processes")

    with monkeypatch.context() as patched:
        patched.setattr(multiprocessing.get_context("spawn").Process, "start", start)
        end = pool.run(acts.nothing)
    assert isinstance(end.value, ApplicationError)
    assert (end.value.type, "no more processes" in str(end.value)) == (PROCESS_LOST, True)
    assert pool.run(acts.nothing).how == "returned"


def test_an_owner_that_raises_harms_nobody(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patched:
        told: queue.Queue[None] = queue.Queue()

        def returned(attempt: Attempt, result: bytes) -> None:
            told.put(None)
            raise ValueError("an owner's bug")

        patched.setattr(pool.owner, "returned", returned)
        pool.start(acts.nothing)
        told.get(timeout=SOON_S)
    assert pool.run(acts.nothing).how == "returned"
    assert "an owner's bug" in caplog.text


SCRIPT = """
import sys, queue
sys.path[:0] = {path!r}
from tests.worker import process_activities as acts
from tests.worker.attempts import FakeOwner, attempt_of, place
from tq_broker import activity
from tq_broker.clock import SystemClock
from tq_broker.worker.processes import ProcessExecutor, check_runnable

@activity.defn(executor="process")
def in_main() -> str:
    return "found in " + __name__

def main():
    check_runnable(in_main.__tq_broker_activity__)
    owner, at = FakeOwner(), place()
    executor = ProcessExecutor(owner, at.clock, at, 2, 5.0)
    executor.start([attempt_of(acts.pid, at=at)])
    print(owner.next().value.decode(), flush=True)
    executor.start([attempt_of(in_main, at=at)])
    print(owner.next().value.decode(), flush=True)
    executor.start([attempt_of(acts.spins, at=at)])
    sys.stdin.read()

{guard}main()
"""


def start_script(tmp_path: Any, guard: str = 'if __name__ == "__main__": ') -> Any:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(path=[os.getcwd(), *sys.path], guard=guard))
    return subprocess.Popen(
        [sys.executable, str(script)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("killed", [True, False])
def test_children_end_with_their_parent(tmp_path: Any, killed: bool) -> None:
    with start_script(tmp_path) as parent:
        child = int(parent.stdout.readline())
        # An activity of the main module is found, as multiprocessing finds such functions.
        assert parent.stdout.readline().strip() == '"found in __mp_main__"'
        if killed:
            parent.kill()
        else:
            parent.stdin.close()  # it ends, and has not closed the executor
        parent.wait(SOON_S)
    wait_gone(child)


def test_a_main_module_without_a_guard_is_told_so(tmp_path: Any) -> None:
    with start_script(tmp_path, guard="") as parent:
        _, errors = parent.communicate("", timeout=SOON_S)
    assert "put that under if __name__ == '__main__'" in errors


# --- closing ------------------------------------------------------------------------------------


def test_children_are_gone_after_close(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(3)
    attempts = [pool.attempt(acts.pid) for _ in range(10)]
    pool.executor.start(attempts)
    pids = {int(pool.owner.next().value) for _ in attempts}
    pool.executor.close(pool.place.clock.monotonic() + SOON_S)
    assert not [p for p in multiprocessing.active_children() if p.name == "tq-activities"]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


class NotedClock(ManualClock):
    """Tells when something is booked."""

    def __init__(self) -> None:
        super().__init__()
        self.booked: queue.Queue[float] = queue.Queue()

    def call_at(self, deadline: float, callback: Callable[[], None]) -> ManualTimer:
        timer = super().call_at(deadline, callback)
        self.booked.put(deadline)
        return timer


def test_close_waits_for_what_runs_and_drops_what_waits(make_pool: Callable[..., Pool]) -> None:
    clock = NotedClock()
    pool = make_pool(clock=clock)
    running, waiting = pool.attempt(acts.looks), pool.attempt(acts.nothing)
    pool.executor.start([running, waiting])
    pool.beat()
    closing = threading.Thread(target=pool.executor.close, args=(clock.monotonic() + SOON_S,))
    closing.start()
    clock.booked.get(timeout=SOON_S)
    pool.executor.cancel(running)
    closing.join(SOON_S)
    assert not closing.is_alive()
    end = pool.owner.next()
    assert (end.attempt, end.value) == (running, b'"looked"')
    assert pool.owner.ends.empty()


def test_what_runs_at_the_deadline_is_killed(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool()
    attempt = pool.start(acts.ignores)
    pool.beat()
    pool.executor.close(pool.place.clock.monotonic())
    end = pool.owner.next()
    assert (end.attempt, end.failure.type) == (attempt, PROCESS_LOST)


def test_after_close_nothing_starts(pool: Pool, tmp_path: Any) -> None:
    pool.run(acts.nothing)
    pool.executor.close(0)
    pool.start(acts.touches, str(tmp_path / "touched"))
    pool.executor.close(0)
    assert not list(tmp_path.iterdir())


def test_an_executor_that_was_never_used_closes_and_starts_nothing_after(pool: Pool) -> None:
    pool.executor.close(0)
    attempt = pool.start(acts.nothing)
    pool.executor.cancel(attempt)
    assert not [p for p in multiprocessing.active_children() if p.name == "tq-activities"]


# --- what can run -------------------------------------------------------------------------------


def check(fn: Any) -> None:
    check_runnable(activity.definition_of(fn))


def no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def no_sockets(*args: Any) -> Any:
    raise OSError(errno.EMFILE, "Too many open files")


@pytest.mark.parametrize(
    ("where", "name", "fails"),
    [(threading.Thread, "start", no_thread), (socket, "socketpair", no_sockets)],
)
def test_functions_fail_where_the_system_has_nothing_to_watch_processes_with(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, fails: Any
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fails)
        attempt = pool.start(acts.double, acts.Order("x", 2))
    end = pool.owner.next()
    assert (end.attempt, end.how) == (attempt, "raised")
    assert pool.result(acts.double, acts.Order("x", 2))["count"] == 4


def test_what_can_be_imported_can_run() -> None:
    check(acts.double)
    check(acts.Greeter("hello").greet)
    check(acts.Adder(1))


def test_a_local_function_cannot_run() -> None:
    @activity.defn(executor="process")
    def local() -> None: ...

    with pytest.raises(InvalidArgument, match=r"local cannot run in a process of its own"):
        check(local)


def test_a_method_of_what_cannot_be_pickled_cannot_run() -> None:
    with pytest.raises(InvalidArgument, match=r"greet cannot run in a process of its own.*lock"):
        check(acts.Unpicklable().greet)


def test_activities_for_threads_need_not_be_pickled() -> None:
    @activity.defn
    def local() -> None: ...

    check(local)


def test_a_function_of_a_prompt_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    monkeypatch.setattr(acts.nothing, "__module__", "__main__")
    with pytest.raises(InvalidArgument, match="at a prompt"):
        check(acts.nothing)


def test_a_main_module_that_is_no_file_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "<stdin>", raising=False)
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None)
    with pytest.raises(InvalidArgument, match="cannot import the main module"):
        check(acts.nothing)


def test_a_converter_that_cannot_be_pickled_is_refused(make_pool: Callable[..., Pool]) -> None:
    class Local(JSONPayloadConverter):
        pass

    with pytest.raises(InvalidArgument, match="payload_converter Local cannot be pickled"):
        make_pool(converter=DataConverter(payload_converter=Local()))


def test_a_hook_of_the_converter_reaches_the_child(make_pool: Callable[..., Pool]) -> None:
    pool = make_pool(converter=DataConverter(payload_converter=JSONPayloadConverter(enc_hook=repr)))
    assert "lock" in pool.result(acts.returns_a_socket)
