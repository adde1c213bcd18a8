"""Journey: what clients are promised of workflows, embedded and on every RabbitMQ version."""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from integration.journey import wait_until
from integration.journey_workflows import (
    ACTIVITIES,
    WORKFLOWS,
    Again,
    Beat,
    Cart,
    Count,
    Double,
    Fail,
    Memo,
    Parent,
    Sleep,
    Struggle,
)
from tq_broker.cli.main import cli
from tq_broker.client import (
    BlockingClient,
    BlockingWithStartWorkflowOperation,
    Client,
    QueryRejectCondition,
    WithStartWorkflowOperation,
    WorkflowContinuedAsNewError,
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateStage,
)
from tq_broker.clock import SystemClock
from tq_broker.common import RetryPolicy, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from tq_broker.converter import DEFAULT, DataConverter, ZlibCodec
from tq_broker.exceptions import (
    ActivityError,
    ApplicationError,
    CancelledError,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    PayloadTooLarge,
    TerminatedError,
    TimeoutError,
    WorkflowAlreadyStartedError,
)
from tq_broker.history.service import HistoryService
from tq_broker.model.history_json import WorkflowHistory
from tq_broker.model.payload import BYTES_MAX
from tq_broker.stores.opening import open_store
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ
from tq_broker.worker import Replayer, Worker

S = timedelta(seconds=1)
PATIENCE_S = 60.0
_numbers = itertools.count(1)


class Site:
    """A history service, a worker and a client."""

    def __init__(self, url: str | None, store: str | None, converter: DataConverter = DEFAULT):
        self.namespace = f"t{secrets.token_hex(4)}"
        self.system = EmbeddedSystem(
            SystemClock(), url, store, namespace=self.namespace, data_converter=converter
        )
        self.system.start()
        self.client = BlockingClient(self.system.core)
        self.worker = self.make_worker()

    def make_worker(self) -> Worker:
        worker = Worker(
            self.client,
            task_queue="q",
            workflows=WORKFLOWS,
            activities=ACTIVITIES,
            reclaim_after=None,
        )
        worker.start()
        return worker

    def where(self, **options: Any) -> dict[str, Any]:
        """The options of a start, with an id of its own."""
        return {"id": f"w{next(_numbers)}", "task_queue": "q", **options}

    def close(self) -> None:
        self.worker.stop()
        self.system.close()


def cause_of(run: Callable[[], Any]) -> BaseException | None:
    """What the workflow failure that ``run`` raises is about."""
    with pytest.raises(WorkflowFailureError) as raised:
        run()
    return raised.value.cause


class Journey:
    """The suite. A subclass has a fixture ``site``."""

    # --- results --------------------------------------------------------------------------------

    def test_a_workflow_is_executed(self, site: Site) -> None:
        execute = site.client.execute_workflow
        assert execute(Double.run, 21, **site.where()) == 42
        assert execute("Double", 2, result_type=float, **site.where()) == 4.0
        handle = site.client.start_workflow(Double, 4, **site.where())
        assert handle.result(timeout=PATIENCE_S) == 8
        assert handle.result() == 8  # of one that has ended
        assert site.client.get_workflow_handle_for(Double, handle.id).result() == 8

    def test_many_at_a_time(self, site: Site) -> None:
        with ThreadPoolExecutor(8) as pool:
            futures = [
                pool.submit(site.client.execute_workflow, Double, n, **site.where())
                for n in range(50)
            ]
            assert [f.result(PATIENCE_S) for f in futures] == [2 * n for n in range(50)]

    def test_asyncio_does_the_same(self, site: Site) -> None:
        async def talk() -> None:
            client = Client(site.system.core)
            assert await client.execute_workflow(Double.run, 1, **site.where()) == 2
            handle = await client.start_workflow(Cart.run, **site.where())
            await handle.signal(Cart.add, "a")
            assert await handle.execute_update(Cart.put, "b") == 2
            assert await handle.query(Cart.count) == 2
            assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
            with pytest.raises(DeadlineExceeded):
                await handle.result(timeout=0.01)
            await handle.signal(Cart.close)
            assert await handle.result() == ["a", "b"]
            assert (await handle.fetch_history()).events
            start = WithStartWorkflowOperation(
                Cart.run, id_conflict_policy=WorkflowIDConflictPolicy.FAIL, **site.where()
            )
            put = client.execute_update_with_start_workflow
            assert await put(Cart.put, "x", start_workflow_operation=start) == 1
            started = await start.workflow_handle()
            query = f'id = "{started.id}"'
            assert [run.id async for run in client.list_workflows(query)] == [started.id]
            assert (await client.count_workflows(query)).count == 1
            await started.terminate(reason="enough")

        asyncio.run(asyncio.wait_for(talk(), PATIENCE_S))

    def test_a_failure_has_its_causes(self, site: Site) -> None:
        cause = cause_of(lambda: site.client.execute_workflow(Fail, "here", **site.where()))
        assert isinstance(cause, ApplicationError)
        assert (cause.message, cause.type, list(cause.details)) == (
            "no good",
            "Trouble",
            [{"a": 1}],
        )
        cause = cause_of(lambda: site.client.execute_workflow(Fail, "activity", **site.where()))
        assert isinstance(cause, ActivityError)
        assert cause.activity_type == "refuse"
        assert isinstance(cause.cause, ApplicationError)
        assert (cause.cause.message, cause.cause.type) == ("not so", "Refused")

    def test_cancel_terminate_and_timeouts_end_it(self, site: Site) -> None:
        cancelled = site.client.start_workflow(Sleep, 600.0, **site.where())
        cancelled.cancel(reason="enough")
        assert isinstance(cause_of(cancelled.result), CancelledError)
        ended = site.client.start_workflow(Sleep, 600.0, **site.where())
        ended.terminate("why", reason="enough")
        cause = cause_of(ended.result)
        assert isinstance(cause, TerminatedError)
        assert (cause.message, list(cause.details)) == ("enough", ["why"])
        assert cancelled.describe().status is WorkflowExecutionStatus.CANCELED
        assert ended.describe().status is WorkflowExecutionStatus.TERMINATED
        for bound in ("run_timeout", "execution_timeout"):
            options = site.where(**{bound: S / 2})
            late = site.client.start_workflow(Sleep, 600.0, **options)
            assert isinstance(cause_of(late.result), TimeoutError)
        for handle in (cancelled, ended):
            with pytest.raises(NotFound, match=handle.id):
                handle.signal("add", "x")
            with pytest.raises(NotFound, match=handle.id):
                handle.terminate()

    # --- messages -------------------------------------------------------------------------------

    def test_signals_come_in_order_and_unknown_ones_are_kept(self, site: Site) -> None:
        handle = site.client.start_workflow(Cart, "first", **site.where())
        for number in range(20):
            handle.signal(Cart.add, str(number))
        handle.signal("nobody-knows-me", 1)
        handle.signal(Cart.close)
        assert handle.result() == ["first", *map(str, range(20))]

    def test_signal_with_start(self, site: Site) -> None:
        options = site.where(start_signal="add", start_signal_args=["a"])
        first = site.client.start_workflow(Cart, **options)
        second = site.client.start_workflow(Cart, **options)
        assert first.result_run_id == second.result_run_id
        second.signal(Cart.close)
        assert first.result() == ["a", "a"]

    def test_queries(self, site: Site) -> None:
        handle = site.client.start_workflow(Cart, "a", **site.where())
        assert handle.query(Cart.count) == 1
        handle.signal(Cart.add, "b")
        assert handle.query("count", result_type=int) == 2
        with pytest.raises(WorkflowQueryFailedError, match="nonsense"):
            handle.query("nonsense")
        with pytest.raises(WorkflowQueryFailedError, match="cannot count"):
            handle.query(Cart.broken)
        handle.signal(Cart.close)
        handle.result()
        assert handle.query(Cart.count) == 2
        with pytest.raises(WorkflowQueryRejectedError) as raised:
            handle.query(Cart.count, reject_condition=QueryRejectCondition.NOT_OPEN)
        assert raised.value.status is WorkflowExecutionStatus.COMPLETED

    def test_updates(self, site: Site) -> None:
        handle = site.client.start_workflow(Cart, **site.where())
        assert handle.execute_update(Cart.put, "a", id="same") == 1
        assert handle.execute_update(Cart.put, "a", id="same") == 1
        with pytest.raises(WorkflowUpdateFailedError) as raised:
            handle.execute_update(Cart.put, "")
        assert getattr(raised.value.cause, "type", None) == "Empty"
        with pytest.raises(WorkflowUpdateFailedError, match="burnt"):
            handle.execute_update(Cart.burn)
        with pytest.raises(WorkflowUpdateFailedError, match="nonsense"):
            handle.execute_update("nonsense")
        accepted = WorkflowUpdateStage.ACCEPTED
        update = handle.start_update(Cart.when_closed, wait_for_stage=accepted)
        with pytest.raises(DeadlineExceeded):
            update.result(timeout=0.2)
        with ThreadPoolExecutor() as pool:
            waiting = pool.submit(handle.get_update_handle(update.id).result)
            long = pool.submit(handle.execute_update, Cart.when_closed, id=update.id)
            handle.signal(Cart.close)
            assert [f.result(PATIENCE_S) for f in (waiting, long)] == ["closed", "closed"]
        assert update.result(timeout=PATIENCE_S) == "closed"
        assert handle.result() == ["a"]
        with pytest.raises(NotFound, match=handle.id):
            handle.execute_update(Cart.put, "late")

    def test_update_with_start(self, site: Site) -> None:
        options = site.where(id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING)
        put = site.client.execute_update_with_start_workflow
        for expected in (1, 2):
            start = BlockingWithStartWorkflowOperation(Cart.run, **options)
            assert put(Cart.put, "x", start_workflow_operation=start) == expected
        assert start.workflow_handle().id == options["id"]
        start = BlockingWithStartWorkflowOperation(
            Cart.run, **{**options, "id_conflict_policy": WorkflowIDConflictPolicy.FAIL}
        )
        with pytest.raises(WorkflowAlreadyStartedError):
            put(Cart.put, "x", start_workflow_operation=start)

    # --- ids and chains -------------------------------------------------------------------------

    def test_ids_are_used_as_the_policies_say(self, site: Site) -> None:
        options = site.where()
        start = site.client.start_workflow
        first = start(Cart, **options)
        with pytest.raises(WorkflowAlreadyStartedError) as raised:
            start(Cart, **options)
        assert raised.value.run_id == first.result_run_id
        used = start(Cart, id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING, **options)
        assert used.result_run_id == first.result_run_id
        other = start(
            Cart, id_conflict_policy=WorkflowIDConflictPolicy.TERMINATE_EXISTING, **options
        )
        assert other.result_run_id != first.result_run_id
        assert isinstance(cause_of(first.result), TerminatedError)
        other.signal(Cart.close)
        assert other.result() == []
        for policy in (
            WorkflowIDReusePolicy.REJECT_DUPLICATE,
            WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
        ):
            with pytest.raises(WorkflowAlreadyStartedError):
                start(Cart, id_reuse_policy=policy, **options)
        again = start(Cart, **options)
        again.terminate()
        start(
            Cart, id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY, **options
        ).terminate()

    def test_runs_of_a_chain_are_followed(self, site: Site) -> None:
        handle = site.client.start_workflow(Count, 3, **site.where())
        assert handle.result() == 4
        with pytest.raises(WorkflowContinuedAsNewError):
            handle.result(follow_runs=False)
        retried = site.where(retry_policy=RetryPolicy(initial_interval=S / 20))
        assert site.client.execute_workflow(Again, **retried) == 3
        bounded = site.where(retry_policy=RetryPolicy(initial_interval=S / 20, maximum_attempts=2))
        cause = cause_of(lambda: site.client.execute_workflow(Again, **bounded))
        assert isinstance(cause, ApplicationError)
        assert cause.message == "attempt 2"

    def test_a_delay_and_a_cron_schedule_are_kept(self, site: Site) -> None:
        delayed = site.client.start_workflow(Double, 1, start_delay=S / 2, **site.where())
        told = delayed.describe()
        assert told.status is WorkflowExecutionStatus.RUNNING
        assert delayed.result() == 2
        cron = site.client.start_workflow(Double, 1, cron_schedule="@every 1s", **site.where())
        first = cron.describe().run_id

        def next_run() -> bool:
            return cron.describe().run_id != first

        wait_until(next_run, "the next run of a cron schedule")
        cron.terminate()
        with pytest.raises(InvalidArgument, match="cron"):
            site.client.start_workflow(Double, 1, cron_schedule="nonsense", **site.where())

    def test_children(self, site: Site) -> None:
        options = site.where()
        result = site.client.execute_workflow(Parent, 4, **options)
        assert result == [f"{options['id']}-child", 8]
        child = site.client.get_workflow_handle(result[0]).describe()
        assert child.parent_id == options["id"]

    # --- looking --------------------------------------------------------------------------------

    def test_a_description_tells_what_is_under_way(self, site: Site) -> None:
        handle = site.client.start_workflow(
            Struggle, memo={"a": [1]}, static_summary="one line", **site.where()
        )

        def pending() -> Any:
            found = handle.describe().pending_activities
            return found[0] if found and found[0].heartbeat_details else None

        wait_until(pending, "heartbeat details in the description")
        activity, told = pending(), handle.describe()
        assert (activity.activity_type, activity.attempt, activity.state) == (
            "struggle",
            2,
            "started",
        )
        assert activity.heartbeat_details == ["half", 2]
        assert activity.last_failure.message == "too early"
        assert told.memo() == {"a": [1]}
        assert (told.task_queue, told.static_summary) == ("q", "one line")
        assert told.sticky_worker is not None
        handle.cancel()
        assert handle.result() == "CancelledError of struggle"
        done = handle.describe()
        assert (done.status.name, list(done.pending_activities)) == ("COMPLETED", [])
        assert done.close_time is not None

    def test_lists_and_counts(self, site: Site) -> None:
        prefix = f"list-{secrets.token_hex(3)}"
        for number in range(5):
            site.client.execute_workflow(Double, number, **site.where(id=f"{prefix}-{number}"))
        open_one = site.client.start_workflow(Cart, **site.where(id=f"{prefix}-cart"))
        query = f'id starts_with "{prefix}"'
        listed = [run.id for run in site.client.list_workflows(query, page_size=2)]
        assert listed == [open_one.id, *(f"{prefix}-{n}" for n in (4, 3, 2, 1, 0))]
        assert site.client.count_workflows(query).count == 6
        for more, count in [
            ('status = "running"', 1),
            ('ExecutionStatus = "Completed"', 5),
            ('type = "Cart"', 1),
            ('task_queue = "q"', 6),
            ('task_queue = "other"', 0),
        ]:
            assert site.client.count_workflows(f"{query} and {more}").count == count, more
        assert len(list(site.client.list_workflows(query, limit=4, page_size=3))) == 4
        with pytest.raises(InvalidArgument, match="nonsense"):
            site.client.count_workflows("nonsense = 1")
        open_one.terminate()

    def test_a_history_can_be_exported_and_replayed(self, site: Site) -> None:
        handle = site.client.start_workflow(Cart, **site.where())
        handle.execute_update(Cart.put, "a")
        for _ in range(300):
            handle.signal(Cart.add, "x" * 5000)  # more than one page
        handle.signal(Cart.close)
        handle.result()
        history = handle.fetch_history()
        assert [event.event_id for event in history.events] == list(
            range(1, len(history.events) + 1)
        )
        text = history.to_json()
        assert '"EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED"' in text
        again = WorkflowHistory.from_json(handle.id, text)
        asyncio.run(Replayer(workflows=WORKFLOWS).replay_workflow(again))

    # --- bad input ------------------------------------------------------------------------------

    def test_what_is_not_there_is_named(self, site: Site) -> None:
        handle = site.client.get_workflow_handle("never-started")
        calls: list[Callable[[], Any]] = [
            handle.result,
            lambda: handle.signal("s"),
            lambda: handle.query("q"),
            lambda: handle.execute_update("u"),
            handle.get_update_handle("u").result,
            handle.cancel,
            handle.terminate,
            handle.describe,
            handle.fetch_history,
        ]
        for call in calls:
            with pytest.raises(NotFound, match="never-started"):
                call()
        known = site.client.start_workflow(Cart, **site.where())
        run = site.client.get_workflow_handle(known.id, run_id="no-such-run")
        for call in (run.result, run.describe, run.cancel, lambda: run.signal("s")):
            with pytest.raises(NotFound, match="no-such-run"):
                call()
        with pytest.raises(NotFound, match="no-such-update"):
            known.get_update_handle("no-such-update").result()
        known.terminate()

    def test_what_is_too_large_is_refused(self, site: Site) -> None:
        big = "x" * BYTES_MAX
        handle = site.client.start_workflow(Cart, **site.where())
        for call in (
            lambda: site.client.start_workflow(Cart, big, **site.where()),
            lambda: handle.signal(Cart.add, big),
            lambda: handle.query("count", big),
            lambda: handle.execute_update(Cart.put, big),
        ):
            with pytest.raises(PayloadTooLarge, match=str(BYTES_MAX)):
                call()
        handle.signal(Cart.add, "y" * (BYTES_MAX - 100))
        handle.signal(Cart.close)
        assert len(handle.result()[0]) == BYTES_MAX - 100

    def test_a_task_queue_that_nobody_serves(self, site: Site) -> None:
        handle = site.client.start_workflow(Cart, **site.where(task_queue="empty"))
        site.client.core.timeout_s, before = 1.0, site.client.core.timeout_s
        try:
            with pytest.raises(DeadlineExceeded, match="no worker serves"):
                handle.query(Cart.count)
            admitted = WorkflowUpdateStage.ADMITTED
            assert handle.start_update(Cart.put, "a", wait_for_stage=admitted).id
            with pytest.raises(DeadlineExceeded):
                handle.start_update(Cart.put, "a", wait_for_stage=WorkflowUpdateStage.ACCEPTED)
        finally:
            site.client.core.timeout_s = before
        handle.terminate()


class TestEmbedded(Journey):
    @pytest.fixture(scope="class")
    @classmethod
    def site(cls) -> Iterator[Site]:
        site = Site(None, None)
        yield site
        site.close()


class TestOnRabbitMQ(Journey):
    @pytest.fixture(scope="class")
    @classmethod
    def site(
        cls, broker: LocalRabbitMQ, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Site]:
        directory = tmp_path_factory.mktemp("journey")
        site = Site(broker.url, f"sqlite:///{directory}/history.sqlite")
        yield site
        site.close()

    def test_the_command_line_does_the_same(self, site: Site, broker: LocalRabbitMQ) -> None:
        def invoke(*arguments: str) -> Result:
            where = ["-b", broker.url, "--namespace", site.namespace, "workflow"]
            return CliRunner().invoke(cli, [*where, *arguments])

        prefix = f"cli-{secrets.token_hex(3)}"
        cart = ("Cart", "-t", "q", "--id", f"{prefix}-cart")
        executed = invoke("execute", "Double", "-t", "q", "-i", "21", "--id", f"{prefix}-double")
        assert (executed.output, executed.exit_code) == ("42\n", 0)
        assert invoke("start", *cart, "-i", '"a"').output == f"{prefix}-cart\n"
        assert "already started" in invoke("start", *cart).stderr
        name = cart[-1]
        assert invoke("signal", name, "add", "-i", '"b"').exit_code == 0
        assert invoke("update", name, "put", "-i", '"c"').output == "3\n"
        assert invoke("update", name, "put", "-i", '""').exit_code == 1
        assert invoke("query", name, "count").output == "3\n"
        assert "status\trunning" in invoke("describe", name).output.splitlines()
        query = f'id starts_with "{prefix}"'
        assert len(invoke("list", "-q", query).output.splitlines()) == 2
        assert invoke("count", "-q", query).output == "2\n"
        # One command at a time: two in one process would share the captured output.
        with ThreadPoolExecutor() as pool:
            closing = pool.submit(site.client.get_workflow_handle(name).signal, Cart.close)
            followed = invoke("show", name, "--follow").output.splitlines()
            closing.result(PATIENCE_S)
        assert "\tWorkflowExecutionCompleted\t" in followed[-1]
        assert invoke("result", name).output == '["a","b","c"]\n'
        exported = json.loads(invoke("show", name, "--json").output)
        assert exported["events"][0]["eventType"] == "EVENT_TYPE_WORKFLOW_EXECUTION_STARTED"
        assert invoke("start", *cart).exit_code == 0
        assert invoke("terminate", name).exit_code == 0
        assert invoke("result", name).exit_code == 1
        assert invoke("cancel", "never-started").exit_code == 5


class TestWithCodecs(Journey):
    @pytest.fixture(scope="class")
    @classmethod
    def site(cls) -> Iterator[Site]:
        site = Site(None, None, DataConverter(codecs=(ZlibCodec(),)))
        yield site
        site.close()

    def test_a_history_can_be_exported_and_replayed(self, site: Site) -> None:
        handle = site.client.start_workflow(Cart, **site.where())
        handle.execute_update(Cart.put, "a")
        handle.signal(Cart.close)
        handle.result()
        again = WorkflowHistory.from_json(handle.id, handle.fetch_history().to_json())
        converter = DataConverter(codecs=(ZlibCodec(),))
        replayer = Replayer(workflows=WORKFLOWS, data_converter=converter)
        asyncio.run(replayer.replay_workflow(again))

    def test_what_is_too_large_is_refused(self, site: Site) -> None:
        """What counts is the size after the codecs."""
        assert site.client.execute_workflow(Memo, memo={"a": "x" * BYTES_MAX}, **site.where())


def serve(url: str, namespace: str, directory: Path) -> Callable[[], None]:
    """Start a history service; returns what stops it."""
    store = open_store(f"sqlite:///{directory}/history.sqlite", namespace, migrate=True)
    client = BlockingClient.connect(url, namespace=namespace)
    service = HistoryService(client, store)
    service.start()

    def stop() -> None:
        service.stop()
        client.close()
        store.close()

    return stop


def is_running(handle: Any) -> bool:
    """Whether the one activity of a workflow has reported that it runs."""
    return [one.state for one in handle.describe().pending_activities] == ["started"]


def test_activities_that_report_outlast_the_absence_of_history(
    broker_url: str, namespace: str, tmp_path: Path
) -> None:
    stop = serve(broker_url, namespace, tmp_path)
    with (
        BlockingClient.connect(broker_url, namespace=namespace) as client,
        Worker(client, task_queue="q", workflows=WORKFLOWS, activities=ACTIVITIES),
    ):
        handles = [
            client.start_workflow(Beat, seconds, id=f"w{seconds}", task_queue="q")
            for seconds in (4.0, 9.0)
        ]
        for handle in handles:
            wait_until(partial(is_running, handle), "it runs")
        stop()
        time.sleep(6)
        stop = serve(broker_url, namespace, tmp_path)
        assert [handle.result(timeout=PATIENCE_S) for handle in handles] == [1, 1]
    stop()


def test_a_wait_survives_restarts_of_history_and_broker(
    rabbitmq: LocalRabbitMQ, namespace: str, tmp_path: Path
) -> None:
    with BlockingClient.connect(rabbitmq.url, namespace=namespace) as client:
        stop = serve(rabbitmq.url, namespace, tmp_path)
        with Worker(client, task_queue="q", workflows=WORKFLOWS, activities=ACTIVITIES):
            handle = client.start_workflow(Cart, id="w", task_queue="q")
            # Accepted: so long a client tries for itself, with a deadline.
            accepted = WorkflowUpdateStage.ACCEPTED
            update = handle.start_update(Cart.when_closed, wait_for_stage=accepted)
            results: list[Any] = []
            waiters = [
                threading.Thread(target=lambda: results.append(handle.result())),
                threading.Thread(target=lambda: results.append(update.result())),
            ]
            for waiter in waiters:
                waiter.start()
            wait_until(lambda: handle.query(Cart.count) == 0, "the workflow runs")
            stop()
            rabbitmq.stop()
            rabbitmq.start()
            stop = serve(rabbitmq.url, namespace, tmp_path)
            wait_until(lambda: handle.describe().status is WorkflowExecutionStatus.RUNNING, "back")
            handle.signal(Cart.add, "a")
            handle.signal(Cart.close)
            for waiter in waiters:
                waiter.join(PATIENCE_S)
            assert sorted(map(str, results)) == ["['a']", "closed"]
        stop()


def test_without_history_a_start_says_so(broker_url: str, namespace: str) -> None:
    with BlockingClient.connect(broker_url, namespace=namespace, timeout=1.0) as client:
        with pytest.raises(DeadlineExceeded, match="start one with tq-broker history"):
            client.start_workflow("T", id="w", task_queue="q")
        with pytest.raises(DeadlineExceeded, match="start one with tq-broker history"):
            client.execute_workflow("T", id="w", task_queue="q")
