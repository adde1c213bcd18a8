"""Traffic rules end to end, on the broker in memory: set, followed, brought back, explained."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tests.worker.worlds import MINUTE, NAMES, World
from tq_broker import activity
from tq_broker.client.traffic import TrafficOperations
from tq_broker.common import RetryPolicy
from tq_broker.exceptions import InvalidArgument, NotFound
from tq_broker.model import requests
from tq_broker.model.detours import Detour
from tq_broker.model.rule_table import Facts
from tq_broker.model.rules import TaskKind, TrafficRule
from tq_broker.model.settings import TrafficRuleRemoved, TrafficRuleSet
from tq_broker.worker import Worker

QUICK = 0.2
"""How long workers of these tests may take to answer."""


@activity.defn
def where() -> dict[str, Any]:
    info = activity.info()
    return {
        "worker": info.worker_id,
        "task_queue": info.task_queue,
        "rule": info.traffic_rule,
        "headers": dict(info.headers),
    }


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def traffic(world: World) -> TrafficOperations:
    return world.client.operations.traffic


def rule(id: str = "r", **fields: Any) -> TrafficRule:
    return TrafficRule(**{"id": id, "to_task_queue": "laptop", "task_queue": "q"} | fields)


def in_force(world: World, new: TrafficRule, *workers: Worker, **options: Any) -> None:
    """Set a rule, and wait until everybody knows it."""
    traffic(world).set(new, wait_s=QUICK, **options)
    world.client.connection.traffic.follow()
    followers = [world.client.connection.traffic, *(w._connection.traffic for w in workers)]
    world.eventually(
        lambda: all(new.id in {one.id for one in each.rules.rules} for each in followers)
    )


def servers(world: World) -> tuple[Worker, Worker]:
    return (
        world.worker(where, worker_id="home"),
        world.worker(where, worker_id="laptop", task_queues=["laptop"]),
    )


def test_what_a_rule_matches_goes_to_its_target_and_nothing_else(world: World) -> None:
    in_force(world, rule(headers={"tenant": "acme"}), *servers(world))
    moved = world.run(where, headers={"tenant": "acme", "other": "x"})
    assert moved == {
        "worker": "laptop",
        "task_queue": "q",
        "rule": "r",
        "headers": {"tenant": "acme", "other": "x"},
    }
    assert world.run(where, headers={"tenant": "other"})["worker"] == "home"
    assert world.run(where)["rule"] is None


def test_many_that_are_started_at_once_are_moved_one_by_one(world: World) -> None:
    in_force(world, rule(percent=50.0), *servers(world))
    handles = world.client.start_activities(
        where, [()] * 60, task_queue="q", start_to_close_timeout=MINUTE
    )
    places = [handle.result(20)["worker"] for handle in handles]
    assert 10 < places.count("laptop") < 50


def test_who_does_not_know_the_rules_is_corrected_by_the_worker(world: World) -> None:
    home, laptop = servers(world)
    in_force(world, rule(), home, laptop)
    newcomer = world.make_client("newcomer")
    handle = newcomer.start_activity(where, task_queue="q", start_to_close_timeout=MINUTE)
    assert handle.result(20)["worker"] == "laptop"


def test_when_the_target_has_gone_tasks_stay_at_home(world: World) -> None:
    home, laptop = servers(world)
    in_force(world, rule(), home, laptop)
    assert world.run(where)["worker"] == "laptop"
    laptop.stop()
    for _ in range(3):
        assert world.run(where) == {
            "worker": "home", "task_queue": "q", "rule": None, "headers": {}
        }  # fmt: skip


def test_what_waits_at_a_target_that_dies_comes_back(world: World) -> None:
    home = world.worker(where, worker_id="home")
    laptop = world.worker(where, worker_id="laptop", task_queues=["laptop"])
    in_force(world, rule(take_within_ms=3_600_000), home, laptop)
    world.run(where)
    # It takes no more, as a machine that hangs, and then it is gone.
    queue = Detour(TaskKind.ACTIVITY, "laptop", "", "q", 3_600_000).queue(NAMES)
    for consumers in laptop._poller._consumers.values():
        for consumer in consumers:
            consumer.subscription.cancel_nowait()
    handles = [world.start(where) for _ in range(5)]
    world.eventually(lambda: world.count(queue) == 5)
    world.kill(laptop)
    assert {handle.result(20)["worker"] for handle in handles} == {"home"}


def test_what_is_not_taken_in_time_comes_back(world: World) -> None:
    home, laptop = servers(world)
    in_force(world, rule(take_within_ms=1_000), home, laptop)
    world.run(where)
    for consumers in laptop._poller._consumers.values():
        for consumer in consumers:
            consumer.subscription.cancel_nowait()
    assert world.run(where)["worker"] == "home"


def test_without_fallback_tasks_wait_for_their_target(world: World) -> None:
    home = world.worker(where, worker_id="home")
    in_force(world, rule(fallback=False), home, force=True)
    handle = world.start(where, retry_policy=RetryPolicy(maximum_attempts=1))
    world.eventually(lambda: world.count(NAMES.activity("laptop")) == 1)
    world.worker(where, worker_id="laptop", task_queues=["laptop"])
    assert handle.result(20)["worker"] == "laptop"


def test_what_must_not_run_twice_is_not_lent_out(world: World) -> None:
    in_force(world, rule(), *servers(world))
    assert world.run(where, retry_policy=RetryPolicy(maximum_attempts=1))["worker"] == "home"


def test_a_rule_can_name_a_host(world: World) -> None:
    workers = [world.worker(where, worker_id=name, host=name) for name in ("h1", "h2", "h3")]
    in_force(world, rule(to_task_queue="", to_host="h2"), *workers)
    assert {world.run(where)["worker"] for _ in range(10)} == {"h2"}


def versions(world: World) -> list[Worker]:
    """Workers of two versions, of which "a" is current."""
    made = [world.worker(where, worker_id=name, deployment="shop", build_id=name) for name in "ab"]
    world.client.operations.deployments.set_current("shop", "a", wait_s=QUICK)
    return made


def test_a_rule_can_name_a_version_which_is_not_current(world: World) -> None:
    old, new = versions(world)
    in_force(world, rule(to_task_queue="", to_version="shop.b"), old, new)
    assert {world.run(where)["worker"] for _ in range(10)} == {"b"}
    told = explained(world)
    assert "matches: to their task queue, version 'shop.b'" in told
    assert told.splitlines()[-1] == f"workers that answer there: {new.info().identity}", "only one"
    assert "is current" not in told
    new.stop()
    assert world.run(where)["worker"] == "a"
    assert "so it goes to its own task queue 'q' after all" in explained(world)


def test_an_explanation_names_those_workers_only_whose_version_takes_it(world: World) -> None:
    old, _ = versions(world)
    [*_, said, who] = explained(world).splitlines()
    assert "'shop.a' is current; so it goes to 'shop.a'" in said
    assert who == f"workers that answer there: {old.info().identity}", "not of the other version"


def test_a_version_of_a_paused_task_queue_takes_nothing_from_a_rule(world: World) -> None:
    old, new = versions(world)
    in_force(world, rule(to_task_queue="", to_version="shop.b", take_within_ms=1_000), old, new)
    world.client.pause_task_queue("q")
    queue = NAMES.activity("q")
    world.eventually(lambda: new._settings.pause_of(queue) is not None)
    handle = world.start(where)
    broker, clock = world.client.connection.broker, world.client.connection.clock

    def waiting() -> int:
        stats = broker.stats(str(queue), clock.monotonic() + 5)
        return 0 if stats is None else stats.ready

    world.eventually(lambda: waiting() == 1)
    world.client.resume_task_queue("q")
    assert handle.result(20)["worker"] in ("a", "b")


def test_a_retry_and_a_delayed_task_ask_the_rules_again(world: World) -> None:
    attempts: list[str] = []

    @activity.defn
    def second_time() -> str:
        attempts.append(activity.info().worker_id)
        if activity.info().attempt == 1:
            raise RuntimeError("again")
        return activity.info().worker_id

    home = world.worker(second_time, worker_id="home")
    laptop = world.worker(second_time, worker_id="laptop", task_queues=["laptop"])
    in_force(world, rule(), home, laptop)
    soon = timedelta(milliseconds=100)
    policy = RetryPolicy(initial_interval=soon)
    assert world.run(second_time, retry_policy=policy, start_delay=soon) == "laptop"
    assert attempts == ["laptop", "laptop"]


def test_a_rule_ends_by_itself_and_when_it_is_removed(world: World) -> None:
    home, laptop = servers(world)
    now_ms = int(world.clock.wall() * 1000)
    in_force(world, rule(expires_ms=now_ms + 2_000), home, laptop)
    assert world.run(where)["worker"] == "laptop"
    world.eventually(lambda: world.run(where)["worker"] == "home")
    assert traffic(world).rules() == []
    in_force(world, rule("again"), home, laptop)
    assert world.run(where)["worker"] == "laptop"
    traffic(world).remove("again", reason="enough")
    known = world.client.connection.traffic
    world.eventually(lambda: "again" not in {one.id for one in known.rules.rules})
    assert world.run(where)["worker"] == "home"


def test_the_log_keeps_who_has_changed_what_and_why(world: World) -> None:
    in_force(world, rule(reason="try it", by="ann"), *servers(world))
    traffic(world).remove("r", reason="tried")
    was_set, removed = traffic(world).changes()
    assert isinstance(was_set, TrafficRuleSet)
    assert (was_set.rule.by, was_set.rule.reason) == ("ann", "try it")
    assert was_set.rule.at_ms > 0
    assert isinstance(removed, TrafficRuleRemoved)
    assert (removed.rule_id, removed.by, removed.reason) == ("r", "client", "tried")


@pytest.mark.parametrize(
    ("new", "why"),
    [
        (rule(to_task_queue="nobody"), "no living worker serves task queue 'nobody'"),
        (rule(to_task_queue="", to_host="mars"), "no living worker on host 'mars'"),
        (rule(to_version="shop.9"), "no living worker of version 'shop.9' serves task queue"),
        (rule(type="unknown"), "has registered 'unknown', only: where"),
        (rule(expires_ms=1), "its time is over already"),
    ],
)
def test_a_rule_that_cannot_work_is_refused_with_the_reason(
    world: World, new: TrafficRule, why: str
) -> None:
    servers(world)
    with pytest.raises(InvalidArgument, match=why):
        traffic(world).set(new, wait_s=QUICK)
    assert traffic(world).rules() == []
    assert traffic(world).set(new, wait_s=QUICK, force=True)


def test_a_rule_that_is_not_there_cannot_be_removed(world: World) -> None:
    with pytest.raises(NotFound, match="no traffic rule 'r'; in force: none"):
        traffic(world).remove("r")


def test_a_rehearsal_tells_what_a_rule_would_have_done_and_sets_nothing(world: World) -> None:
    servers(world)
    for tenant in ("acme", "acme", "other"):
        world.run(where, headers={"tenant": tenant})
    told = traffic(world).rehearse(rule(headers={"tenant": "acme"}), wait_s=QUICK)
    assert (told.seen, len(told.moves), told.findings) == (3, 2, ())
    assert told.moves[0].before == "task queue 'q'"
    assert told.moves[0].after == "task queue 'laptop' (rule 'r')"
    assert told.since_ms > 0
    assert traffic(world).rules() == []


def explained(world: World, **facts: Any) -> str:
    known = {"kind": TaskKind.ACTIVITY, "type": "where", "task_queue": "q", "id": "a"}
    return "\n".join(traffic(world).explain(Facts(**known | facts), wait_s=QUICK))


def test_an_explanation_goes_step_by_step(world: World) -> None:
    assert "no traffic rules are in force" in explained(world)
    _, laptop = servers(world)
    in_force(world, rule(headers={"tenant": "acme"}, reason="try it", by="ann"))
    assert "header 'tenant' is missing, not 'acme'" in explained(world)
    told = explained(world, headers={"tenant": "acme"})
    assert "matches: to task queue 'laptop'" in told
    assert "set by ann: try it" in told
    assert "within 10 s, it comes back to 'q'" in told
    assert "after all" not in told
    laptop.stop()
    assert "so it goes to its own task queue 'q' after all" in explained(
        world, headers={"tenant": "acme"}
    )


def test_a_look_at_a_namespace_that_nobody_uses_leaves_no_trace(world: World) -> None:
    assert traffic(world).rules() == []
    assert traffic(world).changes() == []
    assert traffic(world).rehearse(rule(), wait_s=QUICK).seen == 0
    assert not world.client.operations.exists()


def test_a_target_that_is_paused_takes_nothing_and_tasks_come_home(world: World) -> None:
    home, laptop = servers(world)
    in_force(world, rule(take_within_ms=1_000), home, laptop)
    world.client.pause_task_queue("laptop")
    queue = NAMES.activity("laptop")
    world.eventually(lambda: laptop._settings.pause_of(queue) is not None)
    assert world.run(where)["worker"] == "home"


def test_what_a_pinned_run_waits_for_goes_to_its_version(world: World) -> None:
    world.worker(where, deployment="shop", build_id="v1", worker_id="v1")
    run = requests.RunInfo(
        workflow_id="w",
        run_id="r",
        workflow_type="W",
        task_queue="q",
        status=requests.Status.RUNNING,
        start_ms=0,
        deployment_version="shop.v1",
    )
    plain = requests.PendingActivity(
        activity_id="1", activity_type="name", task_queue="q", state="scheduled", attempt=1
    )
    others = [
        msgspec.structs.replace(plain, **fields)
        for fields in ({"task_queue": "other"}, {"auto_upgrade": True})
    ]
    told = ["\n".join(one) for one in traffic(world).explain_pending([plain, *others], run)]
    assert "it goes to queue tq.n.version.activity.shop%2Ev1.q" in told[0]
    assert all(one.endswith("it goes there") for one in told[1:])


def test_a_pending_activity_is_explained_with_its_priority(world: World) -> None:
    in_force(world, rule(priority=1), *servers(world))
    fields = {"workflow_type": "W", "status": requests.Status.RUNNING, "start_ms": 0}
    run = requests.RunInfo(workflow_id="w", run_id="r", task_queue="q", **fields)
    first = requests.PendingActivity(
        activity_id="1", activity_type="name", task_queue="q", state="scheduled", attempt=1,
        priority=1,
    )  # fmt: skip
    usual = msgspec.structs.replace(first, priority=None)
    told = ["\n".join(one) for one in traffic(world).explain_pending([first, usual], run)]
    assert ["matches: to task queue 'laptop'" in one for one in told] == [True, False]


def test_a_rule_may_send_to_a_task_queue_with_priorities(world: World) -> None:
    home, laptop = servers(world)
    assert world.run(where, task_queue="laptop", priority=1)["worker"] == "laptop"
    world.eventually(lambda: bool(laptop._settings.prioritized))
    in_force(world, rule(), home, laptop)
    assert [world.run(where)["worker"] for _ in range(3)] == ["laptop"] * 3
