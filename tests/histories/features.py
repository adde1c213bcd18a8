"""Workflows that together use every feature, and the journey that has histories of them written.

The JSON files beside this one are such histories, by the release that wrote them. **Code of
workflows in here is never changed**: it has to fit what older releases wrote. A new feature gets a
workflow of its own. ``python -m tests.histories.features`` writes the files that are missing for
the release at hand.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from tq_broker import __version__, activity, workflow
from tq_broker.client import (
    Client,
    WithStartWorkflowOperation,
    WorkflowHandle,
    WorkflowUpdateStage,
)
from tq_broker.common import (
    ParentClosePolicy,
    RetryPolicy,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from tq_broker.exceptions import (
    ActivityError,
    ApplicationError,
    ChildWorkflowError,
    TqBrokerError,
    WorkflowAlreadyStartedError,
)
from tq_broker.model.history_json import WorkflowHistory
from tq_broker.testing import WorkflowEnvironment
from tq_broker.worker import Worker
from tq_broker.workflow import ActivityCancellationType, ChildWorkflowCancellationType

HERE = Path(__file__).parent
QUEUE = "t"
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)
BLINK = timedelta(milliseconds=200)
"""For what has to happen while an activity runs: time is not skipped then."""
BOUND: dict[str, Any] = {"start_to_close_timeout": MINUTE}
ONCE = RetryPolicy(maximum_attempts=1)
TWICE = RetryPolicy(maximum_attempts=2)

stumbles: set[str] = set()
"""Runs whose workflow task has failed once. Of the process that writes; a replay has none."""
is_writing = False

# --- activities -----------------------------------------------------------------------------------


@activity.defn
async def double(number: int) -> int:
    return 2 * number


@activity.defn
async def refuse(text: str) -> None:
    raise ApplicationError(text, {"why": text}, type="Refused", non_retryable=True)


@activity.defn
async def struggle(times: int) -> int:
    """Fails so many times."""
    attempt = activity.info().attempt
    if attempt <= times:
        raise ApplicationError(f"attempt {attempt}")
    return attempt


@activity.defn
async def hang(beats: bool) -> None:
    """Ends when it is cancelled, which is heard with a heartbeat only."""
    if beats:
        activity.heartbeat("began")
    while True:
        await asyncio.sleep(0.05)
        if beats:
            activity.heartbeat("goes on")


ACTIVITIES = [double, refuse, struggle, hang]

# --- workflows ------------------------------------------------------------------------------------


def cause(error: TqBrokerError) -> str:
    return type(error.__cause__ if error.__cause__ is not None else error).__name__


@workflow.defn
class Activities:
    """Each way in which an activity ends."""

    @workflow.run
    async def run(self) -> list[Any]:
        execute, start = workflow.execute_activity, workflow.start_activity
        nobody = {"task_queue": "nobody", **BOUND}
        ended: list[Any] = [
            await execute(double, 21, summary="the first", priority=3, **BOUND),
            await execute("double", 4, result_type=int, activity_id="by-name", **BOUND),
            await execute(struggle, 2, retry_policy=RetryPolicy(maximum_attempts=5), **BOUND),
        ]
        for call in (
            lambda: execute(refuse, "no", **BOUND),
            lambda: execute(struggle, 9, retry_policy=TWICE, **BOUND),
            lambda: execute(double, 1, schedule_to_start_timeout=MINUTE, **nobody),
            lambda: execute(double, 1, schedule_to_close_timeout=MINUTE, task_queue="nobody"),
            lambda: execute(hang, False, start_to_close_timeout=BLINK, retry_policy=ONCE),
            lambda: execute(hang, False, heartbeat_timeout=BLINK, retry_policy=ONCE, **BOUND),
        ):
            try:
                ended.append(await call())
            except ActivityError as error:
                ended.append(cause(error))
        for kind in ActivityCancellationType:
            handle = start(hang, True, cancellation_type=kind, heartbeat_timeout=MINUTE, **BOUND)
            await workflow.sleep(BLINK)
            handle.cancel()
            try:
                await handle
            except ActivityError as error:
                ended.append(cause(error))
        return ended


@workflow.defn
class Crowd:
    """Much at the same time; in which order it ends is chance."""

    @workflow.run
    async def run(self) -> int:
        execute = workflow.execute_activity
        done = await asyncio.gather(*(execute(double, n, **BOUND) for n in range(20)))
        some, _ = await asyncio.wait(
            [workflow.start_activity(double, n, **BOUND) for n in range(3)],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert all(task.result() < 6 for task in some)
        children = [
            workflow.execute_child_workflow(
                Child.run, "return", id=f"{workflow.info().workflow_id}-{n}"
            )
            for n in range(3)
        ]
        return sum(done) + len(await asyncio.gather(*children))


@workflow.defn
class LocalActivities:
    @workflow.run
    async def run(self) -> list[Any]:
        execute = workflow.execute_local_activity
        policy = RetryPolicy(initial_interval=MINUTE, backoff_coefficient=1)
        ended: list[Any] = [
            await execute(double, 21, **BOUND),
            await execute(struggle, 1, **BOUND),
            # Between its attempts there is a timer: longer than the threshold.
            await execute(struggle, 1, retry_policy=policy, local_retry_threshold=SECOND, **BOUND),
        ]
        for call in (
            lambda: execute(refuse, "no", **BOUND),
            lambda: execute(hang, False, start_to_close_timeout=BLINK, retry_policy=ONCE),
        ):
            try:
                ended.append(await call())
            except ActivityError as error:
                ended.append(cause(error))
        return ended


@workflow.defn
class Timers:
    @workflow.run
    async def run(self) -> list[str]:
        seen: list[str] = []

        async def say(what: str, seconds: float) -> str:
            await asyncio.sleep(seconds)
            seen.append(what)
            return what

        await workflow.sleep(MINUTE, summary="a minute")
        await asyncio.gather(say("b", 20), say("a", 10))
        losing = asyncio.create_task(say("never", 1000))
        await workflow.sleep(SECOND)
        losing.cancel()
        await asyncio.gather(losing, return_exceptions=True)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(say("never", 1000), 5)
        with contextlib.suppress(asyncio.TimeoutError):
            await workflow.wait_condition(lambda: False, timeout=5)
        for task in workflow.as_completed([asyncio.create_task(say(str(n), n)) for n in (3, 2, 1)]):
            await task
        done, rest = await workflow.wait(
            [asyncio.create_task(say("x", 1)), asyncio.create_task(say("y", 100))],
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
        await workflow.sleep(0)
        return [*seen, str(len(done))]


@workflow.defn
class Tools:
    """What asyncio has, and what is the same at each replay."""

    @workflow.run
    async def run(self) -> list[Any]:
        lock, event, numbers = asyncio.Lock(), asyncio.Event(), asyncio.Queue[int]()
        order: list[Any] = []

        async def worker(name: int) -> None:
            async with lock:
                await workflow.sleep(SECOND)
                order.append(name)
            numbers.put_nowait(name)
            if len(order) == 3:
                event.set()

        tasks = [asyncio.create_task(worker(n)) for n in range(3)]
        await event.wait()
        await asyncio.gather(*tasks)
        order += [await numbers.get() for _ in tasks]
        # Commands that depend on them: another value in a replay would be found.
        drawn = [
            workflow.random().randrange(1000),
            workflow.uuid4().int % 1000,
            workflow.new_random().randrange(1000),
            int(workflow.time()) % 1000,
            workflow.time_ns() // 1_000_000 % 1000,
            workflow.now().second,
            workflow.info().get_current_history_length(),
        ]
        for number in drawn:
            result = await workflow.execute_activity(double, number, **BOUND)
            assert result == 2 * number
            await workflow.sleep(number + 1, summary=str(number))
        workflow.logger.info("not at a replay")
        return order


@workflow.defn
class Versions:
    @workflow.run
    async def run(self) -> list[bool]:
        found = [workflow.patched("first")]
        await workflow.sleep(SECOND)
        found.append(workflow.patched("first"))
        found.append(workflow.patched("second"))
        workflow.deprecate_patch("third")
        await workflow.sleep(SECOND)
        return found


@workflow.defn
class Child:
    """Ends as it is told: at once, or when it is cancelled or told more."""

    def __init__(self) -> None:
        self.word = ""

    @workflow.run
    async def run(self, how: str) -> str:
        if how == "fail":
            raise ApplicationError("no good", type="Trouble", non_retryable=True)
        if how == "retry" and workflow.info().attempt == 1:
            raise ApplicationError("not at once")
        if how == "again":
            workflow.continue_as_new("return")
        if how == "wait":
            await workflow.wait_condition(lambda: bool(self.word))
            return self.word
        return how

    @workflow.signal
    def tell(self, word: str) -> None:
        self.word = word


@workflow.defn
class Parent:
    """Each way in which a child ends, and talks with it."""

    @workflow.run
    async def run(self) -> list[str]:
        own = workflow.info().workflow_id
        ended: list[str] = []

        async def execute(how: str, **options: Any) -> None:
            try:
                ended.append(
                    await workflow.execute_child_workflow(
                        Child.run, how, id=f"{own}-{len(ended)}", **options
                    )
                )
            except ChildWorkflowError as error:
                ended.append(cause(error))

        await execute("return", memo={"a": 1}, static_summary="s", priority=2)
        await execute("fail")
        await execute("retry", retry_policy=TWICE)
        await execute("again")
        await execute("wait", run_timeout=MINUTE)
        told = await workflow.start_child_workflow(Child.run, "wait", id=f"{own}-told")
        await told.signal(Child.tell, "told")
        ended.append(await told)
        try:
            await workflow.start_child_workflow(
                Child.run,
                "return",
                id=f"{own}-told",
                id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
            )
        except WorkflowAlreadyStartedError:
            ended.append("already started")
        for kind in (
            ChildWorkflowCancellationType.WAIT_CANCELLATION_COMPLETED,
            ChildWorkflowCancellationType.WAIT_CANCELLATION_REQUESTED,
            ChildWorkflowCancellationType.TRY_CANCEL,
        ):
            child = await workflow.start_child_workflow(
                Child.run, "wait", id=f"{own}-{len(ended)}", cancellation_type=kind
            )
            child.cancel()
            try:
                await child
            except ChildWorkflowError as error:
                ended.append(cause(error))
            await workflow.sleep(MINUTE)
        for policy in (ParentClosePolicy.ABANDON, ParentClosePolicy.REQUEST_CANCEL):
            await workflow.start_child_workflow(
                Child.run, "wait", id=f"{own}-{policy.name}", parent_close_policy=policy
            )
        return ended


@workflow.defn
class Bereft:
    """Its child is terminated by others."""

    @workflow.run
    async def run(self) -> str:
        self.child = await workflow.start_child_workflow(
            Child.run, "wait", id=f"{workflow.info().workflow_id}-child"
        )
        try:
            return await self.child
        except ChildWorkflowError as error:
            return cause(error)

    @workflow.query
    def has_child(self) -> bool:
        return hasattr(self, "child")


@workflow.defn
class Caller:
    """Talks to a workflow that is no child of its, and to one that does not exist."""

    @workflow.run
    async def run(self, other: str) -> list[str]:
        ended: list[str] = []
        handle = workflow.get_external_workflow_handle_for(Inbox.run, other)
        await handle.signal(Inbox.tell, "from outside")
        await handle.cancel()
        nobody = workflow.get_external_workflow_handle("nobody")
        for call in (lambda: nobody.signal("tell", "x"), nobody.cancel):
            try:
                await call()
            except TqBrokerError as error:
                ended.append(type(error).__name__)
        return ended


@workflow.defn
class Inbox:
    """Talked to in all ways, until it is cancelled; then it cleans up."""

    @workflow.init
    def __init__(self, name: str) -> None:
        self.name = name
        self.words: list[str] = []

    @workflow.run
    async def run(self, name: str) -> list[str]:
        workflow.upsert_memo({"name": name, "gone": None})
        workflow.set_current_details("listens")

        def late(word: str) -> None:
            self.words.append(f"late {word}")

        try:
            await workflow.wait_condition(lambda: "open" in self.words)
            workflow.set_signal_handler("late", late)
            await workflow.wait_condition(lambda: "fail" in self.words)
            raise ApplicationError("told to fail", self.words, type="Told")
        except asyncio.CancelledError:
            await workflow.execute_activity(double, len(self.words), **BOUND)
            await workflow.wait_condition(workflow.all_handlers_finished)
            return self.words

    @workflow.signal
    def tell(self, word: str) -> None:
        self.words.append(word)

    @workflow.signal
    async def slow(self, word: str) -> None:
        await workflow.execute_activity(double, 1, **BOUND)
        await workflow.sleep(MINUTE)
        self.words.append(f"slow {word}")

    @workflow.signal(dynamic=True)
    def other(self, name: str, args: list[workflow.RawValue]) -> None:
        self.words.append(f"{name}({len(args)})")

    @workflow.query
    def said(self) -> list[str]:
        return self.words

    @workflow.update
    def put(self, word: str) -> int:
        self.words.append(word)
        return len(self.words)

    @workflow.update(name="put-slowly")
    async def put_slowly(self, word: str) -> str:
        await workflow.sleep(MINUTE)
        await workflow.execute_activity(double, 2, **BOUND)
        info = workflow.current_update_info()
        assert info is not None, "an update runs"
        self.words.append(f"put {word}")
        return info.id

    @workflow.update
    async def burn(self, word: str) -> None:
        raise ApplicationError(word, type="Fire")

    @put.validator
    def check(self, word: str) -> None:
        if not word:
            raise ApplicationError("nothing to put")


@workflow.defn
class Chain:
    """Three runs, the last of which fails, is tried again, and then ends."""

    @workflow.run
    async def run(self, left: int) -> int:
        await workflow.sleep(SECOND)
        if left:
            workflow.continue_as_new(left - 1, memo={"left": left}, run_timeout=MINUTE)
        if workflow.info().attempt < 2:
            raise ApplicationError("once more")
        return workflow.info().attempt


@workflow.defn
class Nightly:
    @workflow.run
    async def run(self) -> int:
        return int(workflow.get_last_completion_result(int) or 0) + 1


@workflow.defn
class Sleeper:
    """Does not end by itself."""

    @workflow.run
    async def run(self, heeds: bool) -> None:
        await workflow.execute_activity(double, 1, **BOUND)
        while True:
            try:
                await workflow.sleep(timedelta(days=1000))
            except asyncio.CancelledError:
                if heeds:
                    raise

    @workflow.query
    def ready(self) -> bool:
        return True


@workflow.defn
class Stumbler:
    """Its second workflow task fails once, with what is no failure of the workflow."""

    @workflow.run
    async def run(self) -> int:
        done = await workflow.execute_activity(double, 1, **BOUND)
        run_id = workflow.info().run_id
        with workflow.unsafe.sandbox_unrestricted():
            if is_writing and run_id not in stumbles:
                stumbles.add(run_id)
                raise ValueError("a mistake that is repaired")
        return done


@workflow.defn(dynamic=True)
class Anything:
    @workflow.run
    async def run(self, args: list[workflow.RawValue]) -> str:
        await workflow.sleep(SECOND)
        return f"{workflow.info().workflow_type}({len(args)})"


WORKFLOWS = [
    Activities,
    Crowd,
    LocalActivities,
    Timers,
    Tools,
    Versions,
    Child,
    Parent,
    Bereft,
    Caller,
    Inbox,
    Chain,
    Nightly,
    Sleeper,
    Stumbler,
    Anything,
]

# --- journeys -------------------------------------------------------------------------------------

Journey = Callable[[Client, str], Awaitable[Any]]


async def _handle(client: Client, run: Any, *args: Any, **options: Any) -> WorkflowHandle[Any]:
    return await client.start_workflow(run, args=args, task_queue=QUEUE, **options)


async def _rest(handle: WorkflowHandle[Any]) -> None:
    """Until it waits for time or for somebody: what comes next then always finds it there."""
    while True:
        about = await handle.describe()
        if about.pending_workflow_task is None and not about.pending_activities:
            return


async def _end(handle: WorkflowHandle[Any]) -> None:
    """Its end, whatever it is."""
    with contextlib.suppress(TqBrokerError):
        await handle.result()


def _plain(run: Any, *args: Any, **options: Any) -> Journey:
    """Start it, and wait for its end."""

    async def journey(client: Client, name: str) -> None:
        await _end(await _handle(client, run, *args, id=name, **options))

    return journey


async def _inbox(client: Client, name: str, end: str) -> None:
    handle = await _handle(
        client, Inbox.run, name, id=name, start_signal="tell", start_signal_args=["first"]
    )
    await _rest(handle)
    await handle.signal("late", "came early")
    await _rest(handle)
    await handle.signal(Inbox.tell, "open")
    await _rest(handle)
    assert await handle.query(Inbox.said) == ["first", "late(1)", "open"]
    await handle.signal("unknown", args=[1, 2])
    await _rest(handle)
    assert await handle.execute_update(Inbox.put, "a", id="put") == 5
    await _rest(handle)
    for refused in (handle.execute_update(Inbox.put, ""), handle.execute_update(Inbox.burn, "b")):
        with contextlib.suppress(TqBrokerError):
            await refused
        await _rest(handle)
    if end == "cancel":
        await handle.signal(Inbox.slow, "b")
        await _rest(handle)
        # Time goes on for them when somebody waits for a result.
        await handle.cancel(reason="enough")
    else:
        await handle.signal(Inbox.tell, "fail")
    await _end(handle)


async def _inbox_cancelled(client: Client, name: str) -> None:
    await _inbox(client, name, "cancel")


async def _inbox_failed(client: Client, name: str) -> None:
    await _inbox(client, name, "fail")


async def _update_with_start(client: Client, name: str) -> None:
    operation = WithStartWorkflowOperation(
        Inbox.run,
        name,
        id=name,
        task_queue=QUEUE,
        id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
    )
    await client.execute_update_with_start_workflow(
        Inbox.put, "open", start_workflow_operation=operation
    )
    handle = await operation.workflow_handle()
    slow = await handle.start_update(
        Inbox.put_slowly, "z", id="slow", wait_for_stage=WorkflowUpdateStage.ACCEPTED
    )
    await _rest(handle)
    await handle.cancel()
    await _end(handle)
    with contextlib.suppress(TqBrokerError):
        await slow.result()


async def _caller(client: Client, name: str) -> None:
    other = await _handle(client, Inbox.run, "other", id=f"{name}-other")
    await _rest(other)
    await _end(await _handle(client, Caller.run, other.id, id=name))
    await _end(other)


async def _bereft(client: Client, name: str) -> None:
    handle = await _handle(client, Bereft.run, id=name)
    while not await handle.query(Bereft.has_child):
        continue
    await _rest(handle)
    await client.get_workflow_handle(f"{name}-child").terminate()
    await _end(handle)


async def _nightly(client: Client, name: str) -> None:
    handle = await _handle(client, Nightly.run, id=name, cron_schedule="0 3 * * *")
    first = client.get_workflow_handle(name, run_id=handle.result_run_id)
    for _ in range(2):
        with contextlib.suppress(TqBrokerError):
            await first.result(follow_runs=False)
        history = await first.fetch_history()
        first = client.get_workflow_handle(name, run_id=history.events[-1].new_run_id)
    await handle.terminate("enough", reason="told")


async def _terminated(client: Client, name: str) -> None:
    handle = await _handle(client, Sleeper.run, True, id=name)
    await _rest(handle)
    await handle.terminate("a", 1, reason="enough")
    await _end(handle)


async def _cancelled(client: Client, name: str) -> None:
    handle = await _handle(client, Sleeper.run, True, id=name)
    await _rest(handle)
    await handle.cancel(reason="enough")
    await _end(handle)


JOURNEYS: dict[str, Journey] = {
    "activities": _plain(Activities.run),
    "crowd": _plain(Crowd.run),
    "local-activities": _plain(LocalActivities.run),
    "timers": _plain(Timers.run),
    "tools": _plain(Tools.run),
    "versions": _plain(Versions.run),
    "parent": _plain(Parent.run),
    "bereft": _bereft,
    "caller": _caller,
    "inbox-cancelled": _inbox_cancelled,
    "inbox-failed": _inbox_failed,
    "update-with-start": _update_with_start,
    "chain": _plain(Chain.run, 2, retry_policy=TWICE, memo={"a": 1}),
    "nightly": _nightly,
    "terminated": _terminated,
    "cancelled": _cancelled,
    "timed-out": _plain(Sleeper.run, False, execution_timeout=MINUTE),
    "stumbler": _plain(Stumbler.run),
    "anything": _plain("Whatever", 1, 2),
    "delayed": _plain(Child.run, "return", start_delay=MINUTE),
}


async def histories(
    env: WorkflowEnvironment, names: Iterable[str] = JOURNEYS, **options: Any
) -> dict[str, WorkflowHistory]:
    """The histories of all runs, by workflow id and number of the run, that these journeys lead to
    with a worker of these options."""
    global is_writing
    is_writing = True
    worker = Worker(
        env.client, task_queue=QUEUE, workflows=WORKFLOWS, activities=ACTIVITIES, **options
    )
    try:
        async with env, worker:
            for name in names:
                await JOURNEYS[name](env.client, name)
            return await _all(env.client)
    finally:
        is_writing = False


async def skipping(**options: Any) -> dict[str, WorkflowHistory]:
    """The same of all journeys, with skipped time."""
    return await histories(await WorkflowEnvironment.start_time_skipping(), **options)


async def _all(client: Client) -> dict[str, WorkflowHistory]:
    runs = [run async for run in client.list_workflows()]
    found: dict[str, list[WorkflowHistory]] = {}
    for run in sorted(runs, key=lambda run: run.start_time):
        handle = client.get_workflow_handle(run.id, run_id=run.run_id)
        found.setdefault(run.id, []).append(await handle.fetch_history())
    return {
        f"{name}.{number}": history
        for name, of_runs in found.items()
        for number, history in enumerate(of_runs, 1)
    }


def main() -> None:
    directory = HERE / __version__
    directory.mkdir(exist_ok=True)
    for name, history in asyncio.run(skipping(identity="worker", host="host")).items():
        file = directory / f"{name}.json"
        if not file.exists():
            file.write_text(history.to_json() + "\n")
            print("wrote", file.relative_to(HERE))


if __name__ == "__main__":
    main()
