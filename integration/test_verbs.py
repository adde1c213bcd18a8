"""Verbs on whole task queues, on every RabbitMQ version: pause, move, copy, broadcast, reclaim."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from integration.journey import ROOT, Site, backlog, measured, site_at, wait_until
from integration.journey_activities import hold_on_loop, tell, work_on_loop
from tq_broker.client.transfer import Transferred
from tq_broker.common import RetryPolicy, Route
from tq_broker.exceptions import ActivityError, TargetGone
from tq_broker.model.names import Kind, Names

SOON = RetryPolicy(initial_interval=timedelta(seconds=0.1), backoff_coefficient=1)


@pytest.fixture
def site(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Site]:
    with site_at(broker_url, namespace, tmp_path) as site:
        yield site


def keys(count: int) -> list[str]:
    return [f"{number}-{secrets.token_hex(3)}" for number in range(count)]


def waiting(site: Site, task_queue: str, kind: Kind = Kind.ACTIVITY) -> int:
    core = site.client.core
    queue = Names(site.namespace).queue(kind, task_queue)
    return backlog(core, queue)


def at_rest(site: Site, *task_queues: str) -> int:
    """How many tasks wait if it is the same number for a second, else 0."""
    before = [waiting(site, name) for name in task_queues]
    time.sleep(1)
    return sum(before) if before == [waiting(site, name) for name in task_queues] else 0


def consumers(site: Site, task_queue: str) -> int:
    core = site.client.core
    stats = core.broker.stats(str(Names(site.namespace).activity(task_queue)), core.deadline())
    return 0 if stats is None else stats.consumers


def cli(site: Site, *arguments: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tq_broker", "-b", site.url, "--namespace", site.namespace),
        *arguments,
    ]


# --- pausing --------------------------------------------------------------------------------------


def test_a_pause_under_load_stops_within_a_second_and_loses_nothing(site: Site) -> None:
    # Given two workers, one of which will be killed, and a load that is being added
    doomed = site.worker(host="h1", max_concurrent_activities=10).ready()
    site.worker(host="h2", max_concurrent_activities=10).ready()
    names = keys(2000)
    handles = site.load(work_on_loop, names, 0.01, retry_policy=SOON)
    wait_until(lambda: site.ledger.count("effect") > 50, "work goes on")
    # When it is paused
    site.client.pause_task_queue("q", "the database is being moved")
    stopped_s = wait_until(lambda: consumers(site, "q") == 0, "nobody consumes", 5)
    measured("s from a recorded pause to no consumers", stopped_s)
    assert stopped_s < 1
    time.sleep(0.5)  # what was in the slots ends
    done = site.ledger.count("start")
    # Then tasks wait, also those for a host, and also when a worker dies and another one comes
    more = keys(20)
    handles |= site.load(work_on_loop, more, 0.01)
    routed = site.client.start_activity(tell, task_queue="q", route=Route.host("h2"))
    doomed.kill()
    site.again(doomed).ready()
    time.sleep(1)
    assert site.ledger.count("start") == done
    told = site.client.describe_task_queue("q")
    assert told.summary.pause is not None
    assert told.summary.pause.reason == "the database is being moved"
    assert told.summary.backlog > 500
    # Until it is resumed
    begun = time.monotonic()
    site.client.resume_task_queue("q")
    wait_until(lambda: site.ledger.count("start") > done, "work goes on")
    measured("s from the call of resume to the first start", time.monotonic() - begun)
    assert not any(site.collect(handles).values())
    assert routed.result(30)["host"] == "h2"
    assert not site.check().faults


# --- moving ---------------------------------------------------------------------------------------


def test_a_move_that_is_killed_and_done_again_loses_nothing(site: Site) -> None:
    # Given a backlog, and a target that is made by the move
    names = keys(3000)
    handles = site.load(work_on_loop, names, 0.0, retry_policy=SOON)
    command = cli(site, "task-queue", "move", "q", "r", "--create", "-y", "--json")
    mover = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    # When who moves it is killed in between
    wait_until(lambda: waiting(site, "r") >= 300, "it moves")
    mover.kill()
    mover.wait()
    wait_until(lambda: at_rest(site, "q", "r") >= 3000, "what it held comes back")
    # And it is done again, and again for what was given back only now: copies of it may be in the
    # target, so that no number tells that all is back
    rest = waiting(site, "q")
    while rest:
        told = json.loads(subprocess.check_output(command, cwd=ROOT, text=True))
        assert told["done"] == told["waiting"] >= rest
        rest = waiting(site, "q")
    # Then every task runs, and who waits gets its outcome
    site.worker("r", max_concurrent_activities=50).ready()
    assert not any(site.collect(handles).values())
    assert not site.check().faults
    measured("attempts beyond one of each task", site.ledger.count("start") - 3000)


def test_a_move_while_both_sides_work_runs_each_once(site: Site) -> None:
    site.worker("q", max_concurrent_activities=5).ready()
    site.worker("r", max_concurrent_activities=5).ready()
    handles = site.load(work_on_loop, keys(2000), 0.01)
    told = site.client.move_tasks("q", "r")
    assert told.done > 100
    assert not any(site.collect(handles).values())
    assert not site.check(once=list(handles)).faults


def test_one_type_of_a_backlog_of_all_priorities_moves(site: Site) -> None:
    options = {"task_queue": "q", "start_to_close_timeout": timedelta(seconds=9)}
    for priority in (5, 1, 3):
        for type_ in ("go", "stay"):
            calls = [(number,) for number in range(150)]
            site.client.start_activities(
                type_, calls, priority=priority, wait_result=False, **options
            )
    dry = site.client.move_tasks("q", "r", types=["g*"], create=True, dry_run=True)
    assert (dry.done, dry.complete, waiting(site, "q")) == (450, True, 900)
    seen: list[Transferred] = []
    told = site.client.move_tasks("q", "r", types=["g*"], create=True, on_progress=seen.append)
    assert (told.done, told.types, told.complete) == (450, {"go": 450}, True)
    assert [one.done for one in seen] == sorted(one.done for one in seen)
    assert (waiting(site, "q"), waiting(site, "r")) == (450, 450)
    left = site.client.peek_tasks("q", 450)
    assert {(one.type, one.redelivered) for one in left} == {("stay", False)}


def test_a_copy_leaves_the_originals_to_their_callers(site: Site) -> None:
    handles = site.load(work_on_loop, keys(300), 0.0)
    told = site.client.copy_tasks("q", "shadow", create=True)
    again = site.client.copy_tasks("q", "shadow", job=told.job)
    assert (told.done, again.done) == (300, 0)
    assert (waiting(site, "q"), waiting(site, "shadow")) == (300, 300)
    site.worker("shadow", max_concurrent_activities=20).ready()
    wait_until(lambda: site.ledger.count("effect") == 300, "copies run")
    site.worker("q", max_concurrent_activities=20).ready()
    assert not any(site.collect(handles).values())
    assert site.ledger.count("effect") == 600


# --- broadcasting ---------------------------------------------------------------------------------


def test_a_broadcast_reaches_every_worker_and_tells_which_did_not_answer(site: Site) -> None:
    workers = [site.worker(worker_id=f"w{number}").ready() for number in range(3)]
    site.worker(activities=["work_on_loop"], worker_id="other").ready()
    answers = site.client.broadcast_activity(tell, task_queue="q")
    by_id = {one.worker_id: one for one in answers}
    assert [by_id[f"w{n}"].result["worker"] for n in range(3)] == ["w0", "w1", "w2"]
    assert "not registered" in str(by_id["other"].error)
    # One dies while it runs
    found = []
    key = site.key()

    def ask() -> None:
        found.extend(site.client.broadcast_activity(hold_on_loop, key, task_queue="q", timeout=4.0))

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: len(site.ledger.events("start", key)) == 3, "all three hold")
    workers[1].kill()
    asking.join(30)
    assert not asking.is_alive()
    by_id = {one.worker_id: one for one in found}
    assert not any(one.ok for one in found)
    assert isinstance(by_id["w1"].error, (ActivityError, TargetGone))
    output = subprocess.run(
        cli(site, "activity", "broadcast", "tell", "-t", "q", "--json"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    told = {one["worker_id"]: one for one in json.loads(output.stdout)}
    assert (told["w0"]["ok"], told["w2"]["ok"], "w1" in told) == (True, True, False)
    assert output.returncode == 1, "the other worker does not have it"


# --- lists ----------------------------------------------------------------------------------------


def test_both_sides_are_listed_compared_and_reclaimed(site: Site) -> None:
    core, names = site.client.core, Names(site.namespace)
    core.sender.ensure([names.workflow("idle"), names.workflow("busy")], core.deadline())
    core.sender.ensure([names.activity("idle")], core.deadline())
    old = site.worker("q", activities=["tell"], identity="old").ready()
    site.worker("q", activities=["tell", "climb"], identity="new").ready()
    listed = {(one.task_queue, one.side): one for one in site.client.list_task_queues()}
    assert set(listed) == {
        ("busy", "workflow"),
        ("idle", "activity"),
        ("idle", "workflow"),
        ("q", "activity"),
    }
    assert listed["q", "activity"].workers == ("new", "old")
    assert site.client.describe_task_queue("q").mismatches == (("climb", ("old",)),)
    wait_until(lambda: "climb is not registered on old" in old.said(), "the mismatch is logged")
    site.client.pause_task_queue("busy", side="workflow")
    removed = site.client.operations.reclaim(grace_s=0.2)
    assert removed == ["idle"]
    left = {(one.task_queue, one.side) for one in site.client.list_task_queues()}
    assert left == {("busy", "workflow"), ("q", "activity")}
