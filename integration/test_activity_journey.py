"""Journey: everything that is promised of activities, one by one, on every RabbitMQ version."""

from __future__ import annotations

import asyncio
import itertools
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pika
import pytest

from integration.journey import ROOT, Site, measured, pika_parameters, site_at, wait_until
from integration.journey_activities import (
    CloseShop,
    Shop,
    climb,
    fail_until,
    hold_in_process,
    hold_in_thread,
    hold_on_loop,
    leave_open,
    linger_once,
    stuck_in_process,
    tell,
    work_in_process,
    work_in_thread,
    work_on_loop,
)
from tq_broker.client import BlockingClient, Client
from tq_broker.common import ActivityIDConflictPolicy, OnGone, RetryPolicy, Route
from tq_broker.exceptions import (
    ActivityAlreadyStarted,
    ActivityError,
    ApplicationError,
    CancelledError,
    NotFound,
    TargetGone,
    TimeoutError,
    TimeoutType,
)
from tq_broker.model.names import Exchange, Kind, Names
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ

S = timedelta(seconds=1)
SOON = RetryPolicy(initial_interval=S / 10, backoff_coefficient=1)
ONCE = RetryPolicy(maximum_attempts=1)


@pytest.fixture(scope="module")
def served(broker: LocalRabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site with one worker, for journeys that leave it as it was."""
    directory = tmp_path_factory.mktemp("served")
    with site_at(broker.url, f"t{secrets.token_hex(4)}", directory) as site:
        site.worker(host="h1", worker_id="w1", cancel_grace=1.0).ready()
        yield site


@pytest.fixture
def site(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    """A site of its own, with no worker yet."""
    with site_at(broker_url, namespace, tmp_path) as site:
        yield site


def cause_of(run: Callable[[], Any]) -> BaseException | None:
    """What the activity error that ``run`` raises is about."""
    with pytest.raises(ActivityError) as caught:
        run()
    return caught.value.cause


def starts(site: Site, key: str) -> list[float]:
    return [event.at for event in site.ledger.events("start", key)]


# --- authoring and client -------------------------------------------------------------------------


def test_every_kind_of_activity_runs(served: Site) -> None:
    run = served.client.execute_activity
    assert run(tell, task_queue="q")["worker"] == "w1"
    assert run(work_in_thread, args=("a", 0.0), task_queue="q") == "a"
    assert run(work_in_process, args=("b", 0.0), task_queue="q") == "b"
    assert run(Shop("other").sell, "tea", task_queue="q") == "corner sells tea"
    assert run(CloseShop("other"), task_queue="q") == "corner is closed"
    options = {"task_queue": "q", "start_to_close_timeout": S}
    assert run("made-up", args=(1, "x"), **options) == "made-up(1, x)"
    assert run("tell", result_type=dict[str, Any], **options)["host"] == "h1"


def test_the_async_client_does_the_same(served: Site) -> None:
    async def journey() -> None:
        async with await Client.connect(served.url, namespace=served.namespace) as client:
            assert await client.execute_activity(work_on_loop, args=("c", 0.0), task_queue="q")
            calls = [(f"many-{number}", 0.0) for number in range(50)]
            handles = await client.start_activities(work_on_loop, calls, task_queue="q")
            results = await asyncio.gather(*(handle.result(20) for handle in handles))
            assert results == [key for key, _ in calls]
            held = await client.start_activity(hold_on_loop, served.key(), task_queue="q")
            await held.cancel()
            with pytest.raises(ActivityError) as caught:
                await held.result(10)
            assert isinstance(caught.value.cause, CancelledError)

    asyncio.run(journey())


def test_a_type_that_a_worker_lacks_is_tried_elsewhere_and_the_error_names_what_it_has(
    site: Site,
) -> None:
    site.worker(activities=["tell"]).ready()
    start = site.client.start_activity
    last = start(work_on_loop, args=("a", 0.0), task_queue="q", retry_policy=ONCE)
    cause = cause_of(lambda: last.result(10))
    assert isinstance(cause, ApplicationError)
    assert "work_on_loop is not registered on this worker, available activities: tell" in str(cause)
    handle = start(work_on_loop, args=("b", 0.0), task_queue="q", retry_policy=SOON)
    site.worker(activities=["work_on_loop"]).ready()
    assert handle.result(20) == "b"


def test_a_plain_pika_program_gets_the_outcome_by_reply_to(served: Site) -> None:
    names = Names(served.namespace)
    mine = str(names.queue(Kind.REPLY, "my-program"))
    connection = pika.BlockingConnection(pika_parameters(served.url))
    channel = connection.channel()
    channel.queue_declare(mine, exclusive=True)
    channel.queue_bind(mine, names.exchange(Exchange.REPLIES), mine)
    handle = served.client.start_activity(
        work_on_loop, args=("d", 0.0), task_queue="q", reply_to=mine
    )
    _, properties, body = next(channel.consume(mine, auto_ack=True, inactivity_timeout=10))
    assert body == b'{"result":"d"}'
    assert properties.correlation_id == handle.id
    assert properties.headers["tq-status"] == "completed"
    connection.close()


def test_a_client_that_left_loses_only_its_own_answer(served: Site) -> None:
    key = served.key()
    with BlockingClient.connect(served.url, namespace=served.namespace) as other:
        other.start_activity(work_on_loop, args=(key, 0.5), task_queue="q")
        reply_queue = str(other.core._reply_queue)
    connection = pika.BlockingConnection(pika_parameters(served.url))
    connection.channel().queue_delete(reply_queue)
    connection.close()
    wait_until(lambda: served.ledger.events("effect", key), "it runs to its end")
    assert served.client.execute_activity(tell, task_queue="q")["attempt"] == 1
    assert len(starts(served, key)) == 1


# --- timeouts, retries, delays --------------------------------------------------------------------


def test_start_to_close_ends_an_attempt_and_is_retried(served: Site) -> None:
    options = {"task_queue": "q", "start_to_close_timeout": S / 2}
    run = served.client.execute_activity
    cause = cause_of(lambda: run(hold_on_loop, served.key(), retry_policy=ONCE, **options))
    assert isinstance(cause, TimeoutError)
    assert cause.type is TimeoutType.START_TO_CLOSE
    assert run(linger_once, args=(served.key(), 30.0), retry_policy=SOON, **options) == 2


def test_schedule_to_start_ends_what_nobody_takes(site: Site) -> None:
    options = {"task_queue": "q", "schedule_to_start_timeout": S / 2}
    early = site.client.start_activity(tell, **options)
    cause = cause_of(lambda: early.result(5))
    assert isinstance(cause, TimeoutError)
    assert cause.type is TimeoutType.SCHEDULE_TO_START
    late = [site.client.start_activity(linger_once, args=(key, 0.0), **options) for key in "ab"]
    time.sleep(0.5)
    site.worker().ready()
    for handle in late:
        cause = cause_of(lambda handle=handle: handle.result(5))
        assert isinstance(cause, TimeoutError)
    assert not site.ledger.count("start"), "and no worker begins it later"
    # What was begun in time has time.
    handle = site.client.start_activity(linger_once, args=("c", 2.5), **options)
    assert handle.result(10) == 1


def test_schedule_to_close_ends_all_retries(served: Site) -> None:
    begun = time.monotonic()
    cause = cause_of(
        lambda: served.client.execute_activity(
            fail_until,
            args=(served.key(), 99),
            task_queue="q",
            retry_policy=SOON,
            schedule_to_close_timeout=S,
        )
    )
    assert isinstance(cause, TimeoutError)
    assert cause.type is TimeoutType.SCHEDULE_TO_CLOSE
    assert isinstance(cause.cause, ApplicationError)
    assert cause.cause.type == "NotYet"
    assert time.monotonic() - begun < 3


def test_a_missing_heartbeat_ends_an_attempt_and_tells_the_last_details(served: Site) -> None:
    cause = cause_of(
        lambda: served.client.execute_activity(
            climb,
            args=(served.key(), 2, 20.0),
            task_queue="q",
            heartbeat_timeout=S / 2,
            retry_policy=ONCE,
        )
    )
    assert isinstance(cause, TimeoutError)
    assert cause.type is TimeoutType.HEARTBEAT
    assert list(cause.last_heartbeat_details) == [1]


def test_retries_wait_their_time_on_the_ladder_to_100_ms_and_are_never_early(
    served: Site,
) -> None:
    lateness = []
    for initial_s, coefficient, attempts in ((0.1, 1.0, 6), (0.2, 2.0, 4)):
        key = served.key()
        policy = RetryPolicy(timedelta(seconds=initial_s), coefficient)
        assert attempts == served.client.execute_activity(
            fail_until, args=(key, attempts), task_queue="q", retry_policy=policy
        )
        times = starts(served, key)
        for number, (one, next_) in enumerate(itertools.pairwise(times)):
            planned_s = initial_s * coefficient**number
            assert next_ - one >= planned_s
            assert next_ - one < planned_s + 1
            lateness.append(next_ - one - planned_s)
    measured("s that a retry is late, median", statistics.median(lateness))


def test_a_delayed_start_is_not_early(served: Site) -> None:
    lateness = []
    for delay_s in (0.1, 0.7, 1.3):
        key, begun = served.key(), time.time()
        served.client.start_activity(
            work_on_loop, args=(key, 0.0), task_queue="q", start_delay=delay_s * S
        ).result(10)
        waited_s = starts(served, key)[0] - begun
        assert delay_s <= waited_s < delay_s + 1
        lateness.append(waited_s - delay_s)
    measured("s that a delayed start is late, median", statistics.median(lateness))


def test_heartbeat_details_reach_the_next_attempt_also_after_a_kill(site: Site) -> None:
    workers = {worker.ready().worker_id: worker for worker in (site.worker(), site.worker())}
    handle = site.client.start_activity(
        climb,
        args=("k", 40, 0.1),
        task_queue="q",
        heartbeat_timeout=S,
        retry_policy=SOON,
    )
    site.wait_begun("k")
    time.sleep(2)
    workers[site.ledger.events("start", "k")[0].worker].kill()
    attempt, first = handle.result(20)
    assert attempt == 2
    assert 5 <= first <= 25, "of about twenty steps, all but those of the last 0.8 s are kept"


# --- cancellation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("activity", [hold_on_loop, hold_in_thread, hold_in_process])
def test_a_cancellation_reaches_a_running_activity_within_a_second(
    served: Site, activity: Any
) -> None:
    waits = []
    for _ in range(3):
        key = served.key()
        handle = served.client.start_activity(activity, key, task_queue="q")
        served.wait_begun(key)
        asked = time.time()
        handle.cancel("changed my mind")
        cause = cause_of(lambda handle=handle: handle.result(5))
        assert isinstance(cause, CancelledError)
        (effect,) = served.ledger.events("effect", key)
        assert effect.note == "cancelled"
        assert effect.at - asked < 1
        waits.append(effect.at - asked)
    measured(f"s until {activity.__name__} is cancelled, median", statistics.median(waits))


def test_stuck_code_in_a_process_is_killed(served: Site) -> None:
    options: dict[str, Any] = {"task_queue": "q", "retry_policy": ONCE}
    key = served.key()
    handle = served.client.start_activity(stuck_in_process, key, **options)
    served.wait_begun(key)
    handle.cancel()
    assert isinstance(cause_of(lambda: handle.result(5)), CancelledError)
    key = served.key()
    late = served.client.start_activity(stuck_in_process, key, start_to_close_timeout=S, **options)
    assert isinstance(cause_of(lambda: late.result(10)), TimeoutError)
    pids = [int(event.note) for event in served.ledger.events("start") if event.note.isdigit()]
    wait_until(lambda: not any(_lives(pid) for pid in pids), "its processes are gone", 10)
    assert served.client.execute_activity(work_in_process, args=("e", 0.0), task_queue="q") == "e"


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- completed elsewhere --------------------------------------------------------------------------


def token_of(site: Site, key: str, attempt: int = 1) -> str:
    """The task token of an attempt of `leave_open`."""
    wait_until(lambda: len(site.ledger.events("start", key)) >= attempt, "the attempt")
    return site.ledger.events("start", key)[attempt - 1].note


def test_an_attempt_is_completed_by_its_token_from_another_process(served: Site) -> None:
    client = served.client
    start = lambda key: client.start_activity(  # noqa: E731
        leave_open, key, task_queue="q", retry_policy=SOON
    )
    by_token = lambda *about: client.get_async_activity_handle(  # noqa: E731
        task_token=token_of(served, *about)
    )
    key = served.key()
    handle = start(key)
    by_token(key).heartbeat("half")
    by_token(key).fail(ApplicationError("again"))
    second = by_token(key, 2)
    with pytest.raises(NotFound):
        by_token(key).complete("too late")
    second.complete({"done": True})
    assert handle.result(5) == {"done": True}
    with pytest.raises(NotFound):
        second.complete("twice")

    key = served.key()
    handle = start(key)
    token = by_token(key)
    handle.cancel()
    with pytest.raises(CancelledError):
        wait_until(lambda: token.heartbeat(), "the heartbeat tells of the cancellation", 5)
    token.report_cancellation("in order")
    assert isinstance(cause_of(lambda: handle.result(5)), CancelledError)


def test_an_open_attempt_takes_no_slot_and_is_retried_when_its_worker_is_killed(
    site: Site,
) -> None:
    victim = site.worker(max_concurrent_activities=1).ready()
    handles = [
        site.client.start_activity(leave_open, f"k{n}", task_queue="q", retry_policy=SOON)
        for n in range(10)
    ]
    tokens = [token_of(site, f"k{n}") for n in range(10)]
    heir = site.worker(max_concurrent_activities=1).ready()
    # Held by leases by now, which come back when the worker is gone.
    time.sleep(0.5)
    victim.kill()
    for number, handle in enumerate(handles):
        again = site.client.get_async_activity_handle(
            task_token=token_of(site, f"k{number}", attempt=2)
        )
        again.complete(number)
        assert handle.result(5) == number
    with pytest.raises(NotFound, match="is gone"):
        site.client.get_async_activity_handle(task_token=tokens[0]).complete("late")
    workers = {e.worker for e in site.ledger.events("start") if e.attempt == 2}
    assert workers == {heir.worker_id}


# --- ids ------------------------------------------------------------------------------------------


def test_starts_with_one_id_run_once_whoever_makes_them(site: Site) -> None:
    for worker in (site.worker(), site.worker()):
        worker.ready()
    ids = [f"id{number}" for number in range(15)]
    results: dict[str, list[Any]] = {id_: [] for id_ in ids}

    def start_all() -> None:
        with BlockingClient.connect(site.url, namespace=site.namespace) as client:
            handles = [
                client.start_activity(work_on_loop, args=(id_, 0.1), id=id_, task_queue="q")
                for id_ in ids
            ]
            for handle in handles:
                results[handle.id].append(handle.result(20))

    threads = [threading.Thread(target=start_all) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {id_: [id_] * 3 for id_ in ids}
    assert all(len(starts(site, id_)) == 1 for id_ in ids)
    refused = site.client.start_activity(
        work_on_loop,
        args=("id0", 0.1),
        id="id0",
        task_queue="q",
        id_conflict_policy=ActivityIDConflictPolicy.FAIL,
    )
    with pytest.raises(ActivityAlreadyStarted, match="id0"):
        refused.result(10)
    again = site.client.start_activity(
        work_on_loop, args=("id0", 0.1), id="id0", task_queue="another"
    )
    site.worker("another").ready()
    assert again.result(10) == "id0", "an id is of one task queue"


@pytest.mark.parametrize("policy", list(ActivityIDConflictPolicy))
def test_a_start_that_its_publisher_sent_twice_runs_once_and_is_answered(
    site: Site, policy: ActivityIDConflictPolicy
) -> None:
    handle = site.client.start_activity(
        work_on_loop, args=("k", 0.3), id="k", task_queue="q", id_conflict_policy=policy
    )
    connection = pika.BlockingConnection(pika_parameters(site.url))
    channel = connection.channel()
    names = Names(site.namespace)
    queue = names.activity("q")
    method, properties, body = channel.basic_get(str(queue))
    for resent in (0, 1, 2):
        copy = pika.BasicProperties(**vars(properties))
        copy.headers = {**properties.headers, **({"tq-resent": resent} if resent else {})}
        channel.basic_publish(names.exchange(Exchange.TASKS), queue.key, body, copy)
    channel.basic_ack(method.delivery_tag)
    connection.close()
    for worker in [site.worker(max_concurrent_activities=1) for _ in range(2)]:
        worker.ready()
    assert handle.result(10) == "k"
    wait_until(lambda: not _waiting(site, "q"), "all copies are dealt with")
    time.sleep(0.5)
    assert len(starts(site, "k")) == 1


def _waiting(site: Site, task_queue: str) -> int:
    core = site.client.core
    stats = core.broker.stats(str(core.names.activity(task_queue)), core.deadline())
    return stats.ready if stats else 0


# --- worker ---------------------------------------------------------------------------------------


def test_a_worker_that_is_told_to_end_finishes_what_runs_and_uses_no_attempt_of_the_rest(
    site: Site,
) -> None:
    leaving = site.worker(max_concurrent_activities=5).ready()
    handles = site.load(work_on_loop, [site.key() for _ in range(10)], 0.7)
    handles |= site.load(work_in_thread, [site.key() for _ in range(10)], 0.7)
    handles |= site.load(work_in_process, [site.key() for _ in range(2)], 0.1)
    wait_until(lambda: site.ledger.count("start") >= 5, "its slots are full")
    leaving.terminate()
    assert leaving.wait() == 0
    ended = site.ledger.count("effect")
    assert ended == site.ledger.count("start"), "what was begun was finished"
    site.worker().ready()
    site.collect(handles)
    found = site.check(once=list(handles))
    assert not found.faults
    assert not found.attempts, "what was given back has used no attempt"


def test_what_does_not_end_in_the_grace_time_is_cancelled_and_retried_elsewhere(
    site: Site,
) -> None:
    leaving = site.worker(graceful_shutdown_timeout=0.3, cancel_grace=1.0).ready()
    site.worker("unrelated").ready()
    handles = site.load(linger_once, [site.key() for _ in range(5)], 30.0, retry_policy=SOON)
    wait_until(lambda: site.ledger.count("start") == 5, "all run")
    leaving.terminate()
    assert leaving.wait(10) == 0
    site.worker().ready()
    assert {handle.result(10) for handle in handles.values()} == {2}


def test_an_idle_worker_gets_what_a_saturated_one_cannot_take(site: Site) -> None:
    full = site.worker(max_concurrent_activities=3).ready()
    site.load(hold_on_loop, [f"first-{n}" for n in range(3)])
    wait_until(lambda: site.ledger.count("start") == 3, "it is full")
    site.load(hold_on_loop, [f"rest-{n}" for n in range(6)])
    idle = site.worker(max_concurrent_activities=50).ready()
    wait_until(lambda: site.ledger.count("start") == 9, "the idle one has the rest")
    by = {event.key: event.worker for event in site.ledger.events("start")}
    assert all(
        worker == (full if key.startswith("first") else idle).worker_id
        for key, worker in by.items()
    ), "the saturated one held nothing back"
    waits = []
    for number in range(20):
        key, asked = f"new-{number}", time.time()
        site.load(work_on_loop, [key], 0.0)
        site.wait_begun(key)
        (event,) = site.ledger.events("start", key)
        assert event.worker == idle.worker_id
        waits.append(event.at - asked)
    measured("s from start to begin beside a saturated worker, median", statistics.median(waits))
    assert statistics.median(waits) < 0.1


@pytest.mark.parametrize(("queues", "slots"), [(50, 5), (5, 50)])
def test_many_task_queues_share_the_slots_of_one_worker_and_no_attempt_is_lost_by_it(
    site: Site, queues: int, slots: int
) -> None:
    names = [f"q{number}" for number in range(queues)]
    site.worker(*names, max_concurrent_activities=slots).ready()
    handles = {}
    for round_ in range(2):
        for name in names:
            some = [f"{round_}-{name}-{number}" for number in range(500 // queues)]
            handles |= site.load(work_on_loop, some, 0.005, task_queue=name, retry_policy=ONCE)
    errors = site.collect(handles)
    # Consumers come and go all the time as slots are handed round, and nothing is lost by that.
    assert not any(errors.values())
    assert not site.check(once=list(handles)).faults
    running = most = 0
    for event in site.ledger.events():
        running += {"start": 1, "effect": -1}.get(event.word, 0)
        most = max(most, running)
    assert most <= slots, "never more than it has slots"


FORKS = """
import multiprocessing, os, sys
from datetime import timedelta
from integration.journey_activities import tell
from tq_broker.client import BlockingClient

def use(client):
    return client.start_activity(tell, task_queue="q").result(20)["attempt"]

def child(client):
    sys.exit(0 if use(client) == use(client) == 1 else 1)

client = BlockingClient.connect(sys.argv[1], namespace=sys.argv[2])
held = client.start_activity(tell, task_queue="q", start_delay=timedelta(seconds=1))
use(client)
pids = []
for _ in range(3):
    pid = os.fork()
    if not pid:
        try:
            code = 0 if use(client) == use(client) == 1 else 1
            client.close()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            code = 2
        os._exit(code)
    pids.append(pid)
    assert use(client) == 1
assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
process = multiprocessing.get_context("fork").Process(target=child, args=(client,))
process.start()
assert use(client) == 1
process.join()
assert process.exitcode == 0, process.exitcode
assert held.result(10)["attempt"] == 1
client.close()
"""


def test_a_client_may_be_made_and_used_before_a_fork(served: Site) -> None:
    program = [sys.executable, "-W", "ignore", "-c", FORKS, served.url, served.namespace]
    subprocess.run(program, cwd=ROOT, check=True, timeout=60)


# --- routes ---------------------------------------------------------------------------------------


def test_activities_run_where_they_are_sent_and_the_answer_is_at_hand_when_it_is_gone(
    site: Site,
) -> None:
    here = site.worker(host="here").ready()
    there = site.worker(host="there").ready()
    run = site.client.execute_activity
    for _ in range(5):
        assert run(tell, task_queue="q", route=Route.host("there"))["host"] == "there"
        found = run(tell, task_queue="q", route=Route.process(here.worker_id))
        assert found["worker"] == here.worker_id
    there.kill()
    time.sleep(1.1)  # For so long one that answered is taken to be alive.
    begun = time.monotonic()
    for route in (Route.host("there"), Route.process(there.worker_id), Route.host("nowhere")):
        with pytest.raises(TargetGone, match=r"no living worker serves task queue 'q'"):
            run(tell, task_queue="q", route=route)
    fall_back = Route.host("there", on_gone=OnGone.FALL_BACK)
    assert run(tell, task_queue="q", route=fall_back)["host"] == "here"
    assert time.monotonic() - begun < 2, "no timeout was waited for"
    short = Route.host("there", on_gone=OnGone.WAIT, wait=S)
    handle = site.client.start_activity(tell, task_queue="q", route=short)
    cause = cause_of(lambda: handle.result(10))
    assert isinstance(cause, ApplicationError)
    assert cause.type == "TargetGone"
    long = Route.host("there", on_gone=OnGone.WAIT, wait=30 * S)
    waiting = site.client.start_activity(tell, task_queue="q", route=long)
    site.again(there).ready()
    assert waiting.result(10)["host"] == "there"


def test_tasks_in_the_queue_of_a_host_that_died_get_their_answer(site: Site) -> None:
    site.worker(host="here").ready()
    there = site.worker(host="there", max_concurrent_activities=1).ready()
    start = site.client.start_activity
    busy = start(linger_once, args=("busy", 60.0), task_queue="q", retry_policy=ONCE,
                 route=Route.host("there"))  # fmt: skip
    site.wait_begun("busy")
    fails = start(work_on_loop, args=("a", 0.0), task_queue="q", route=Route.host("there"))
    falls = start(tell, task_queue="q", route=Route.host("there", on_gone=OnGone.FALL_BACK))
    waits = start(tell, task_queue="q", route=Route.host("there", on_gone=OnGone.WAIT, wait=60 * S))
    there.kill()
    begun = time.monotonic()
    assert falls.result(20)["host"] == "here"
    cause = cause_of(lambda: fails.result(20))
    assert isinstance(cause, ApplicationError)
    assert cause.type == "TargetGone"
    assert isinstance(cause_of(lambda: busy.result(20)), ApplicationError)
    measured("s until tasks in a dead host's queue are answered", time.monotonic() - begun)
    site.again(there).ready()
    assert waits.result(20)["host"] == "there"
    assert not site.begun("a")
