"""A run, replayed: the same commands from the cache and from the first event."""

from __future__ import annotations

import asyncio
import gc
import logging
import warnings
import weakref
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from tests.worker.replays import KEY, Run, seen, types
from tq_broker import activity, workflow
from tq_broker.converter import DEFAULT, DataConverter, ZlibCodec
from tq_broker.exceptions import ApplicationError
from tq_broker.model import commands as cmd
from tq_broker.model import events as ev
from tq_broker.model.failure import FailureKind
from tq_broker.model.workflow_tasks import TaskFailedCause
from tq_broker.worker.chronicle import OutOfStep
from tq_broker.worker.replay import Replay
from tq_broker.workflow.definition import definition_of


@activity.defn(start_to_close_timeout=timedelta(seconds=5))
async def double(number: int) -> int:
    return number * 2


@workflow.defn
class Doubling:
    @workflow.run
    async def run(self, number: int) -> int:
        return await workflow.execute_activity(double, number)


def test_a_workflow_of_one_activity() -> None:
    run = Run(Doubling, 21)
    turn = run.task()
    (command,) = turn.commands
    assert isinstance(command, cmd.ScheduleActivity)
    assert (command.activity_id, command.activity_type) == ("1", "double")
    assert (command.task_queue, command.start_to_close_ms) == ("tq", 5000)
    assert command.input == b'{"args":[21]}'
    run.complete("1", 42)
    turn = run.task()
    assert types(turn) == ["CompleteWorkflow"]
    assert turn.closed
    assert run.result() == 42


def test_payloads_go_through_codecs() -> None:
    run = Run(Doubling, 21, converter=DataConverter(codecs=(ZlibCodec(),)))
    (command,) = run.task().commands
    assert command.input.startswith(b"\x00zlib\x00")  # type: ignore[union-attr]
    run.complete("1", 42)
    run.task()
    assert run.result() == 42


@workflow.defn
class Plain:
    """What asyncio has, all at once."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @workflow.run
    async def run(self) -> list[str]:
        lock, event = asyncio.Lock(), asyncio.Event()
        queue: asyncio.Queue[str] = asyncio.Queue()

        async def produce(name: str, pause: float) -> str:
            await asyncio.sleep(pause)
            async with lock:
                await queue.put(name)
                if queue.qsize() == 2:
                    event.set()
            return name

        tasks = [asyncio.create_task(produce(n, p)) for n, p in (("a", 2), ("b", 1), ("c", 60))]
        await event.wait()
        self.log += [await queue.get(), await queue.get()]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert done
        (late,) = pending
        try:
            await asyncio.wait_for(asyncio.shield(late), 5)
        except asyncio.TimeoutError:
            self.log.append("late")
        late.cancel()
        self.log += [str(r) for r in await asyncio.gather(*tasks[:2])]
        for each in asyncio.as_completed([produce("d", 0), produce("e", 0)]):
            self.log.append(await each)
        return self.log


def test_plain_asyncio_works() -> None:
    run = Run(Plain)
    assert types(run.task()) == ["StartTimer"] * 3
    run.fire("2")
    assert types(run.task()) == []
    run.fire("1")
    assert types(run.task()) == ["StartTimer"]
    run.fire("4")
    assert types(run.task()) == ["CancelTimer", "CompleteWorkflow"]
    assert run.result() == ["b", "a", "late", "a", "b", "d", "e"]


@workflow.defn
class Clock:
    @workflow.run
    async def run(self) -> list[Any]:
        before = workflow.now()
        await workflow.sleep(timedelta(hours=1), summary="an hour")
        after = workflow.now()
        return [(after - before).total_seconds(), workflow.time(), workflow.time_ns()]


def test_time_is_that_of_the_workflow_tasks() -> None:
    run = Run(Clock)
    (command,) = run.task(now_ms=5_000_000).commands
    assert command == cmd.StartTimer(timer_id="1", start_to_fire_ms=3_600_000, summary="an hour")
    run.fire("1")
    run.task(now_ms=9_000_000)
    assert run.result() == [4000, 9000, 9_000_000_000_000]


@workflow.defn
class Measuring:
    @workflow.run
    async def run(self) -> float:
        begun = workflow.time()
        await workflow.execute_activity(double, 1)
        return workflow.time() - begun


def test_time_does_not_go_back_where_the_next_host_has_another_clock() -> None:
    run = Run(Measuring)
    run.task(now_ms=5_000_000)
    run.complete("1", 2)
    run.task(now_ms=4_000_000)
    assert run.result() == 0


@workflow.defn
class Chance:
    @workflow.run
    async def run(self) -> list[Any]:
        first = [str(workflow.uuid4()), workflow.random().random(), workflow.new_random().random()]
        await asyncio.sleep(1)
        return [first, str(workflow.uuid4()), workflow.random_seed()]


def test_randomness_is_the_same_at_each_replay() -> None:
    run = Run(Chance)
    run.task()
    run.fire("1")
    run.task()
    (first, then, seed) = run.result()
    assert then != first[0]
    assert isinstance(seed, int)


@workflow.defn
class Broken:
    mended = False

    @workflow.run
    async def run(self) -> str:
        await asyncio.sleep(1)
        if not self.mended:
            raise KeyError("oops")
        return "well"


def test_an_exception_that_is_no_failure_fails_only_the_task() -> None:
    run = Run(Broken)
    run.task()
    run.fire("1")
    turn = run.task()
    assert turn.failure is not None
    assert turn.failure.cause is TaskFailedCause.UNHANDLED_FAILURE
    assert turn.failure.failure.type == "KeyError"
    assert not turn.commands


def test_an_exception_that_is_declared_a_failure_fails_the_workflow() -> None:
    run = Run(Broken, failure_exception_types=[LookupError])
    run.task()
    run.fire("1")
    (command,) = run.task().commands
    assert isinstance(command, cmd.FailWorkflow)
    assert command.failure.type == "KeyError"


@workflow.defn
class Failing:
    @workflow.run
    async def run(self, kind: str) -> None:
        if kind == "timeout":
            await asyncio.wait_for(asyncio.Event().wait(), 0)
        raise ApplicationError("no", {"x": 1}, type="Bad", non_retryable=True)


@pytest.mark.parametrize(("kind", "type_name"), [("own", "Bad"), ("timeout", "TimeoutError")])
def test_a_failure_fails_the_workflow(kind: str, type_name: str) -> None:
    (command,) = Run(Failing, kind).task().commands
    assert isinstance(command, cmd.FailWorkflow)
    assert command.failure.type == type_name


@workflow.defn
class Cleaning:
    @workflow.run
    async def run(self) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            await workflow.execute_activity(double, 1)


def test_a_cancelled_workflow_can_clean_up() -> None:
    run = Run(Cleaning)
    run.task()
    run.cancel("enough")
    assert types(run.task()) == ["CancelTimer", "ScheduleActivity"]
    run.complete("1", 2)
    assert types(run.task()) == ["CancelWorkflow"]


def test_one_that_is_cancelled_before_its_first_task_begins_all_the_same() -> None:
    run = Run(Cleaning)
    run.cancel()
    # The timer that was started and cancelled in the same task has left no trace.
    assert types(run.task()) == ["ScheduleActivity"]
    run.complete("1", 2)
    assert types(run.task()) == ["CancelWorkflow"]


@workflow.defn
class Stubborn:
    @workflow.run
    async def run(self) -> str | None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            return workflow.cancellation_reason()
        return None


def test_a_cancellation_may_be_declined() -> None:
    run = Run(Stubborn)
    run.task()
    run.cancel("enough")
    assert types(run.task()) == ["CancelTimer", "CompleteWorkflow"]
    assert run.result() == "enough"


@workflow.defn
class Counting:
    @workflow.run
    async def run(self, count: int) -> None:
        workflow.continue_as_new(count + 1, task_queue="other", memo={"a": 1})


def test_continue_as_new() -> None:
    (command,) = Run(Counting, 1).task().commands
    assert command == cmd.ContinueAsNew(input=b"[2]", task_queue="other", memo={"a": b"1"})


@workflow.defn
class Init:
    @workflow.init
    def __init__(self, word: str) -> None:
        self.word = workflow.info().workflow_type + word

    @workflow.run
    async def run(self, word: str) -> str:
        return self.word


def test_init_gets_the_arguments_and_may_ask_for_info() -> None:
    run = Run(Init, "!")
    run.task()
    assert run.result() == "Init!"


@workflow.defn(dynamic=True)
class Anything:
    @workflow.run
    async def run(self, args: Sequence[workflow.RawValue]) -> list[Any]:
        return [workflow.info().workflow_type, args[0].decode(int)]


def test_a_dynamic_workflow_serves_any_type() -> None:
    run = Run(Anything, 5)
    run.events[0] = ev.WorkflowExecutionStarted(
        event_id=1,
        time_ms=0,
        workflow_type="Unknown",
        task_queue="tq",
        workflow_id="wf",
        run_id="run",
        first_run_id="run",
        input=b"[5]",
    )
    run.task()
    assert run.result() == ["Unknown", 5]


@workflow.defn
class Waiting:
    """Two wait for the same thing, of which there is one."""

    def __init__(self) -> None:
        self.tokens = 0
        self.taken: list[int] = []

    @workflow.run
    async def run(self) -> list[int]:
        tasks = [asyncio.create_task(self.take(n)) for n in (1, 2)]
        await asyncio.gather(*tasks)
        try:
            await workflow.wait_condition(lambda: self.tokens > 9, timeout=30)
        except asyncio.TimeoutError:
            self.taken.append(-1)
        return self.taken

    async def take(self, who: int) -> None:
        await workflow.wait_condition(lambda: self.tokens > 0)
        self.tokens -= 1
        self.taken.append(who)

    @workflow.signal
    def give(self) -> None:
        self.tokens += 1


def test_a_condition_holds_when_the_wait_for_it_is_over() -> None:
    run = Run(Waiting)
    assert types(run.task()) == []
    run.signal("give")
    assert types(run.task()) == []
    run.signal("give")
    assert types(run.task()) == ["StartTimer"]
    run.fire("1")
    run.task()
    assert run.result() == [1, 2, -1]


@workflow.defn
class Meddling:
    def __init__(self) -> None:
        self.conditions = 0

    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: bool(workflow.start_activity(double, 1)))


def test_a_condition_must_change_nothing() -> None:
    turn = Run(Meddling).task()
    assert turn.failure is not None
    assert isinstance(turn.failure.error, workflow.ReadOnlyContextError)
    assert "wait condition" in turn.failure.failure.message


def test_events_that_do_not_follow_are_refused() -> None:
    run = Run(Doubling, 1)
    run.task()
    replay = run.replay()
    with pytest.raises(OutOfStep):
        replay.activate(run.events[1:], now_ms=0)
    replay.close()


def test_a_task_that_ran_here_and_did_not_count_puts_the_cache_out_of_step() -> None:
    run = Run(Doubling, 1)
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    run.cached.activate(run.events, now_ms=1)
    run.add(ev.WorkflowTaskStarted, scheduled_event_id=2)
    run.add(ev.WorkflowTaskFailed, scheduled_event_id=2, started_event_id=3, cause="deadlock")
    with pytest.raises(OutOfStep):
        run.cached.activate(run.events[2:], now_ms=1)


def test_failed_and_timed_out_tasks_are_passed_over_in_a_replay() -> None:
    run = Run(Doubling, 1)
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    run.add(ev.WorkflowTaskStarted, scheduled_event_id=2)
    run.add(ev.WorkflowTaskFailed, scheduled_event_id=2, started_event_id=3, cause="deadlock")
    run.add(ev.WorkflowTaskScheduled, task_queue="tq", sticky="w1")
    run.add(ev.WorkflowTaskTimedOut, scheduled_event_id=5, timeout_type=2)
    assert types(run.task()) == ["ScheduleActivity"]
    run.complete("1", 2)
    assert types(run.task()) == ["CompleteWorkflow"]


@workflow.defn
class Info:
    @workflow.run
    async def run(self) -> list[Any]:
        about = workflow.info()
        return [
            about.namespace,
            about.workflow_id,
            about.run_id,
            about.task_queue,
            about.attempt,
            about.get_current_history_length(),
            about.get_current_history_size(),
            about.is_continue_as_new_suggested(),
            about.parent.workflow_id if about.parent else None,
            dict(workflow.memo()),
            workflow.memo_value("a", type_hint=int),
            workflow.memo_value("b", 7),
            workflow.has_last_completion_result(),
            workflow.get_last_completion_result(),
            workflow.get_last_failure(),
        ]


def test_info() -> None:
    parent = ev.ParentInfo(workflow_id="mother", run_id="r", initiated_event_id=3)
    run = Run(Info, memo={"a": b"1"}, parent=parent, last_completion_result=b"[3]")
    run.task()
    assert run.result() == [
        *("default", "wf", "run", "tq", 1, 2, 0, False, "mother"),
        *({"a": 1}, 1, 7, True, [3], None),
    ]


def test_history_size_and_suggestion_are_those_of_the_task() -> None:
    @workflow.defn
    class Size:
        @workflow.run
        async def run(self) -> list[Any]:
            about = workflow.info()
            return [about.get_current_history_size(), about.is_continue_as_new_suggested()]

    run = Run(Size)
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    turn = run.cached.activate(
        run.events, now_ms=1, history_bytes=500, continue_as_new_suggested=True
    )
    assert turn.commands == [cmd.CompleteWorkflow(result=b"[500,true]")]


@workflow.defn
class Memo:
    @workflow.run
    async def run(self) -> dict[str, Any]:
        workflow.upsert_memo({"a": 2, "b": None})
        workflow.set_current_details("**well**")
        assert workflow.get_current_details() == "**well**"
        return dict(workflow.memo())


def test_memo_and_details() -> None:
    run = Run(Memo, memo={"a": b"1", "b": b"1", "c": b"3"})
    turn = run.task()
    assert turn.commands[0] == cmd.ModifyProperties(upserted_memo={"a": b"2", "b": None})
    assert turn.current_details == "**well**"
    assert run.result() == {"a": 2, "c": 3}


@workflow.defn
class Chatty:
    @workflow.run
    async def run(self) -> None:
        workflow.logger.warning("begins %s", "now")
        await asyncio.sleep(1)
        assert not workflow.unsafe.is_replaying()
        workflow.logger.warning("ends")


def test_the_logger_says_each_thing_once(caplog: pytest.LogCaptureFixture) -> None:
    run = Run(Chatty)
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    run.cached.activate(run.events, now_ms=1)
    run._write(run.events[-1], [cmd.StartTimer(timer_id="1", start_to_fire_ms=1000)])
    run.fire("1")
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    run.cached.close()
    scratch = run.replay()
    with caplog.at_level(logging.INFO):
        scratch.activate(run.events, now_ms=2)
    assert [r.message for r in caplog.records] == ["begins now (Chatty wf)", "ends (Chatty wf)"]
    assert caplog.records[0].tq_workflow["run_id"] == "run"  # type: ignore[attr-defined]


def test_nothing_works_outside_a_workflow() -> None:
    with pytest.raises(RuntimeError, match="not in a workflow"):
        workflow.now()
    assert not workflow.in_workflow()


def test_the_stack_trace_query_shows_where_the_code_waits() -> None:
    run = Run(Cleaning)
    run.task()
    answer = run.cached.query(_query("__stack_trace"))
    assert b"asyncio.sleep(1000)" in answer.result


def test_the_metadata_query_has_the_shape_that_tools_know() -> None:
    run = Run(Waiting)
    run.task()
    answer = run.cached.query(_query("__temporal_workflow_metadata"))
    assert b'"type":"Waiting"' in answer.result
    assert b'"signalDefinitions":[{"name":"give"}]' in answer.result


@workflow.defn
class Cancelled:
    def __init__(self) -> None:
        self.task = asyncio.ensure_future(asyncio.sleep(100))

    @workflow.run
    async def run(self) -> None:
        await asyncio.sleep(0)
        self.task.cancel()
        await workflow.wait_condition(lambda: False)

    @workflow.query
    def state(self) -> Any:
        return self.task.result()


def test_a_query_that_asks_a_cancelled_task_fails() -> None:
    run = Run(Cancelled)
    run.task()
    answer = run.query("state")
    assert answer.failure is not None
    assert (answer.error, answer.failure.kind) == ("failed", FailureKind.CANCELED)


def _query(name: str) -> Any:
    from tq_broker.model.workflow_tasks import QueryRequest

    return QueryRequest(name, "", "")


# --- nondeterminism -------------------------------------------------------------------------------


def changed(before: type, after: type, *moves: Any) -> Any:
    """The failure of a replay with other code than that which wrote the history."""
    run = Run(before)
    run.task()
    for move in moves:
        move(run)
    replay = Replay(definition_of(after), KEY, namespace="default", converter=DEFAULT)
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    turn = replay.activate(run.events, now_ms=1)
    replay.close()
    return turn.failure


@workflow.defn(name="Same")
class Sleeps:
    @workflow.run
    async def run(self) -> None:
        await asyncio.sleep(1)


@workflow.defn(name="Same")
class Acts:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity(double, 1)


@workflow.defn(name="Same")
class ActsOtherwise:
    @workflow.run
    async def run(self) -> None:
        await workflow.execute_activity("triple", 1, start_to_close_timeout=timedelta(seconds=1))


@workflow.defn(name="Same")
class Ends:
    @workflow.run
    async def run(self) -> None:
        return


@workflow.defn(name="Same")
class DoesNothing:
    @workflow.run
    async def run(self) -> None:
        await asyncio.Event().wait()


@workflow.defn(name="Same")
class DoesMore:
    @workflow.run
    async def run(self) -> None:
        await asyncio.gather(asyncio.sleep(1), workflow.execute_activity(double, 1))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (Sleeps, Acts, r"event 5 .*TimerStarted\(timer_id='1'\).*asks for ScheduleActivity\("),
        (Acts, Sleeps, r"event 5 .*ActivityTaskScheduled.*asks for StartTimer\(timer_id='1'\)"),
        (Acts, ActsOtherwise, r"activity_type='double'\).*activity_type='triple'\)"),
        (Acts, Ends, r"event 5 .*ActivityTaskScheduled.*asks for CompleteWorkflow"),
        (Acts, DoesNothing, r"event 5 .*ActivityTaskScheduled.*the code ends before it"),
        (Sleeps, DoesMore, r"asks for ScheduleActivity.*nothing of the kind after event 4"),
    ],
)
def test_other_code_than_that_of_the_history_is_found_out(
    before: type, after: type, told: str
) -> None:
    failure = changed(before, after)
    assert failure.cause is TaskFailedCause.NON_DETERMINISTIC
    with pytest.raises(workflow.NondeterminismError, match=told):
        raise failure.error


def test_an_answer_to_what_was_not_asked_is_found_out() -> None:
    run = Run(DoesNothing)
    run.task()
    run.add(ev.TimerFired, timer_id="9", started_event_id=5)
    turn = run.task()
    assert turn.failure is not None
    assert "event 5" in turn.failure.failure.message
    assert turn.failure.cause is TaskFailedCause.NON_DETERMINISTIC


def test_a_history_must_begin_at_its_beginning() -> None:
    run = Run(DoesNothing)
    run.events[0] = ev.WorkflowExecutionSignaled(event_id=1, time_ms=0, signal_name="x")
    turn = run.task()
    assert turn.failure is not None
    assert "event 1" in turn.failure.failure.message


def test_an_input_that_does_not_fit_fails_the_task() -> None:
    turn = Run(Doubling, "many").task()
    assert turn.failure is not None
    assert turn.failure.cause is TaskFailedCause.PAYLOAD


# --- the end of a replay --------------------------------------------------------------------------


@workflow.defn
class Untidy:
    side_effects: ClassVar[list[str]] = []

    @workflow.run
    async def run(self) -> None:
        tasks = [asyncio.create_task(self.hold(n)) for n in range(3)]
        try:
            async with asyncio.Lock():
                await asyncio.gather(*tasks)
        except asyncio.CancelledError:
            self.side_effects.append("cancelled")
            raise
        except Exception:
            self.side_effects.append("error")
        finally:
            await workflow.execute_activity(double, 1)
            self.side_effects.append("finally")

    async def hold(self, number: int) -> None:
        handle = workflow.start_activity(double, number)
        try:
            await asyncio.wait_for(handle, 100)
        finally:
            await asyncio.sleep(1)
            self.side_effects.append("held")


def test_an_evicted_run_ends_without_effects_or_complaints() -> None:
    Untidy.side_effects.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = Run(Untidy)
        run.task()
        run.signal("x")
        run.cached.close()
        run.cached.close()
        del run
        gc.collect()
    assert Untidy.side_effects == []


@workflow.defn
class Clinging:
    @workflow.run
    async def run(self) -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except BaseException:
                continue


def test_one_that_refuses_to_end_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    replay = Replay(definition_of(Clinging), KEY, namespace="default", converter=DEFAULT)
    run = Run(Clinging)
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    replay.activate(run.events, now_ms=1)
    replay.close()
    del replay
    gc.collect()
    assert "refuse to end" in caplog.text


def test_a_run_is_let_go_of() -> None:
    import weakref

    run = Run(Cleaning)
    run.task()
    gone = weakref.ref(run.cached)
    run.cached.close()
    del run
    gc.collect()
    assert gone() is None


def test_a_replay_works_within_another_running_loop() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        run = Run(Plain)
        run.task()
        assert asyncio.get_running_loop() is loop
        run.cached.close()

    asyncio.run(main())


def test_turns_say_whether_two_are_the_same() -> None:
    assert seen(Run(Doubling, 1).task()) == seen(Run(Doubling, 1).task())
    assert seen(Run(Doubling, 1).task()) != seen(Run(Doubling, 2).task())


def test_a_further_attempt_sees_the_history_as_its_replay_will() -> None:
    run = Run(Info, memo={"a": b"1"})
    run.add(ev.WorkflowTaskScheduled, task_queue="tq")
    run.add(ev.WorkflowTaskStarted, scheduled_event_id=2)
    run.add(ev.WorkflowTaskFailed, scheduled_event_id=2, started_event_id=3, cause="deadlock")
    # The attempt that follows has no event yet, as long as it may fail.
    turn = run.cached.activate(run.events, now_ms=1)
    (command,) = turn.commands
    scheduled = run.add(ev.WorkflowTaskScheduled, task_queue="tq", attempt=2)
    run._write(scheduled, [command])
    replay = run.replay()
    replay.activate(run.events, now_ms=1, live=False)
    live, replayed = run.cached._situation.size, replay._situation.size
    assert live.events == replayed.events == 5
    replay.close()


def test_one_that_was_closed_leaves_nothing_to_the_garbage_collector() -> None:
    run = Run(Doubling, 21)
    run.task()
    run.complete("1", 42)
    run.task()

    def left() -> int:
        gc.collect()
        gc.disable()
        try:
            replay = run.replay()
            replay.activate(run.events, now_ms=0, live=False)
            replay.close()
            gone = weakref.ref(replay._activities)
            del replay
            assert gone() is None
            return gc.collect()
        finally:
            gc.enable()

    # Threads that other tests have left behind make garbage as well, now and then.
    assert 0 in (left() for _ in range(10))
