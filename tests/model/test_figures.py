"""Figures, folded over a queue and workers that are played with plain numbers."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.model import figures
from tq_broker.model.composition import Way
from tq_broker.model.control import Begins, HeldBack, WorkerInfo
from tq_broker.model.figures import Figures, Look, QueueFigures, Series
from tq_broker.model.limits import Limits, Side
from tq_broker.model.parts import EACH_KEY, PartKind
from tq_broker.model.parts import Part as LimitedPart
from tq_broker.model.settings import LimitsSet, LimitState


def begun(total: int, per_second: float = 0.0, **fields: Any) -> Begins:
    named = {"task_queue": "q", "side": Side.ACTIVITY, "shared": total} | fields
    return Begins(total=total, per_second=per_second, **named)


def worker(worker_id: str = "w", *begins: Begins, **fields: Any) -> WorkerInfo:
    named: dict[str, Any] = {
        "identity": worker_id,
        "host": "h",
        "pid": 1,
        "started_ms": 0,
        "task_queues": ["q"],
        "activities": ["work"],
        "slots": 4,
        "running": 0,
    }
    return WorkerInfo(worker_id=worker_id, begins=list(begins), **(named | fields))


def waits(backlog: int, way: Way = Way.SHARED) -> list[QueueFigures]:
    told = {"name": way.value, "kind": way.value, "target": "", "consumers": 0}
    return [QueueFigures(way=way, backlog=backlog, **told)] if backlog else []


def look(at: float, backlog: int = 0, queues: list[QueueFigures] | None = None, **f: Any) -> Look:
    return Look(at=at, queues=waits(backlog) if queues is None else queues, **f)


def limits(default: bool = False, **values: Any) -> LimitState:
    record = LimitsSet(
        task_queue="q",
        side=Side.ACTIVITY,
        limits=Limits(**values),
        at_ms=1,
        change_id="c",
        by="ann",
        is_default=default,
    )
    return LimitState(default=record) if default else LimitState(setting=record)


def test_rates_come_from_what_was_begun_and_what_waits() -> None:
    series = Series("q", Side.ACTIVITY)
    series.begin(0.0, waits(10))
    # With one look at the workers: what they say, and the growth.
    told = series.look(look(at=1.0, backlog=12, workers=[worker("w", begun(50, 5.0))]))
    assert (told.dispatch_rate, told.add_rate, told.begun) == (5.0, 7.0, 50)
    # With more: 40 were begun in 10 s, and 10 fewer wait.
    told = series.look(look(at=11.0, backlog=2, workers=[worker("w", begun(90, 4.0))]))
    assert (told.dispatch_rate, told.add_rate) == (4.0, 3.0)


def test_a_worker_that_died_makes_no_negative_rate() -> None:
    series = Series("q", Side.ACTIVITY)
    series.look(look(at=0.0, backlog=50, workers=[worker("w", begun(50, 5.0))]))
    told = series.look(look(at=5.0, backlog=10))
    assert (told.add_rate, told.dispatch_rate, told.workers) == (0.0, 0.0, 0)
    # It only was slow to answer: what it had begun before does not count twice.
    told = series.look(look(at=10.0, backlog=10, workers=[worker("w", begun(95, 5.0))]))
    assert told.add_rate == pytest.approx(4.5)


def test_other_queues_and_sides_do_not_count() -> None:
    series = Series("q", Side.ACTIVITY)
    others = (begun(9, 9.0, task_queue="r"), begun(9, 9.0, side=Side.WORKFLOW))
    told = series.look(look(at=0.0, backlog=0, workers=[worker("w", *others)]))
    assert (told.dispatch_rate, told.begun, told.last_waited_s) == (0.0, 0, None)


@given(
    steps=st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=60),
    there=st.integers(0, 10),
)
def test_the_oldest_age_is_right_to_within_a_look(steps: list[tuple[int, int]], there: int) -> None:
    """Each step adds tasks, then lets workers begin some; a look follows."""
    waiting = deque([float("-inf")] * there)
    series, total, now = Series("q", Side.ACTIVITY), 7, 0.0
    series.look(look(at=now, backlog=there, workers=[worker("w", begun(total))]))
    for added, taken in steps:
        waiting.extend([now + 0.5] * added)
        for _ in range(min(taken, len(waiting))):
            waiting.popleft()
            total += 1
        now += 1.0
        seen = look(at=now, backlog=len(waiting), workers=[worker("w", begun(total))])
        age_s = series.look(seen).oldest_age_s
        if not waiting:
            assert age_s == 0.0
        elif waiting[0] < 0:
            assert age_s is None
        else:
            assert age_s is not None
            assert age_s <= now - waiting[0] <= age_s + 1.0


def test_what_was_there_before_anybody_looked_is_as_old_as_what_is_begun() -> None:
    series = Series("q", Side.ACTIVITY)
    waited = worker("w", begun(1, 1.0, waited_ms=9000))
    assert series.look(look(at=0.0, backlog=5, workers=[waited])).oldest_age_s == 9.0
    # Nobody has begun any lately: what they say of the last one is no news.
    stale = worker("w", begun(1, 0.0, waited_ms=9000))
    assert series.look(look(at=20.0, backlog=5, workers=[stale])).oldest_age_s is None


def test_memory_does_not_grow_with_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "ARRIVALS_MAX", 20)
    monkeypatch.setattr(figures, "WORKERS_MAX", 5)
    series = Series("q", Side.ACTIVITY)
    told: Figures | None = None
    for number in range(500):
        who = worker(f"w{number}", begun(number))
        told = series.look(look(at=float(number), backlog=number + 1, workers=[who]))
    assert told is not None
    assert len(series._arrivals[Way.SHARED]._times) <= 21
    assert len(series._looks) <= 32
    assert series._begun is not None
    assert len(series._begun) <= 5


@pytest.mark.parametrize(
    ("state", "rate", "source", "by"),
    [
        (LimitState(), None, "none", ""),
        (limits(rate=5.0), 5.0, "setting", "ann"),
        (limits(default=True, rate=5.0), 5.0, "default", "ann"),
        (limits(concurrency=5), None, "setting", "ann"),
    ],
)
def test_the_limit_in_force_and_its_source(
    state: LimitState, rate: float | None, source: str, by: str
) -> None:
    series = Series("q", Side.ACTIVITY)
    limit = series.look(look(at=0.0, backlog=0, workers=[worker()], limits=state)).limit
    assert (limit.rate, limit.source, limit.by) == (rate, source, by)


def test_what_workers_allow_themselves_is_a_limit_if_all_of_them_do() -> None:
    series = Series("q", Side.ACTIVITY)
    own = [worker("a", per_second=2.0), worker("b", per_second=3.0)]
    limit = series.look(look(at=0.0, backlog=0, workers=own)).limit
    assert (limit.rate, limit.source) == (5.0, "workers")
    limit = series.look(look(at=1.0, backlog=0, workers=own, limits=limits(rate=4.0))).limit
    assert (limit.rate, limit.source) == (4.0, "setting")
    limit = series.look(look(at=2.0, backlog=0, workers=[*own, worker("c")])).limit
    assert (limit.rate, limit.source) == (None, "none")


@pytest.mark.parametrize(
    ("state", "paused", "backlog", "running", "limiting"),
    [
        (limits(rate=5.0), False, 5, 1, True),
        (limits(rate=5.0), False, 5, 4, False),  # the slots are what limits
        (limits(rate=5.0), False, 0, 1, False),
        (LimitState(), False, 5, 1, False),
        (LimitState(), True, 5, 1, True),
    ],
)
def test_a_limit_limits_when_tasks_wait_beside_free_slots(
    state: LimitState, paused: bool, backlog: int, running: int, limiting: bool
) -> None:
    series = Series("q", Side.ACTIVITY)
    seen = look(
        at=0.0,
        backlog=backlog,
        workers=[worker("w", running=running)],
        limits=state,
        is_paused=paused,
    )
    assert not series.look(seen).limit.is_limiting, "it may have come in this very moment"
    assert series.look(seen).limit.is_limiting is limiting


def test_the_workflow_side_tells_its_slots_and_the_cache() -> None:
    served = worker(
        workflows=["W"], workflow_slots=9, workflow_tasks=2, sticky_hits=5, sticky_misses=1
    )
    told = Series("q", Side.WORKFLOW).look(look(at=0.0, backlog=0, workers=[served]))
    assert (told.slots, told.slots_used, told.slots_free) == (9, 2, 7)
    assert (told.sticky_hits, told.sticky_misses) == (5, 1)


def test_parts_are_added_up_over_workers_busiest_first() -> None:
    one = worker("a", begun(9, 9.0), begun(4, 1.0, priority=1), begun(2, 2.0, key="k"))
    two = worker("b", begun(5, 5.0), begun(5, 5.0, priority=1))
    told = Series("q", Side.ACTIVITY).look(look(at=0.0, backlog=0, workers=[one, two]))
    assert told.begun == 14
    assert [(p.priority, p.key, p.dispatch_rate, p.begun) for p in told.parts] == [
        (1, None, 6.0, 9),
        (None, "k", 2.0, 2),
    ]


def test_what_no_worker_can_serve_is_counted_once() -> None:
    told = {"q": {"gpu": 2, "gpu, ssd": 1}, "other": {"gpu": 9}}
    served = [worker(unserved=told), worker(unserved={"q": {"gpu": 2}}), worker()]
    seen = look(at=0.0, backlog=0, workers=served)
    assert Series("q", Side.ACTIVITY).look(seen).unserved == 3
    assert Series("q", Side.WORKFLOW).look(seen).unserved == 0


# --- queues, priorities and keys ------------------------------------------------------------------


def held_back(key: str, count: int, age_s: float | None, **fields: Any) -> HeldBack:
    named = {"task_queue": "q", "activity_type": "work", "priority": 3} | fields
    return HeldBack(key=key, count=count, oldest_age_s=age_s, **named)


def keyed(key: str, **values: Any) -> tuple[LimitedPart, LimitState]:
    part = LimitedPart(PartKind.KEY, key) if key else EACH_KEY
    return part, limits(**values)


def test_the_oldest_of_all_queues_counts() -> None:
    series = Series("q", Side.ACTIVITY)
    version = waits(2, Way.VERSION)
    series.look(look(0.0, queues=[]))
    series.look(look(1.0, queues=version))
    # What comes and goes at the side of it does not make it younger.
    for at in range(2, 9):
        ways = {"shared": 10 * at}
        who = worker("w", begun(10 * at, 10.0, ways=ways))
        told = series.look(look(float(at), queues=[*version, *waits(1)], workers=[who]))
    assert (told.backlog, told.oldest_age_s) == (3, 7.0)
    told = series.look(look(9.0, queues=waits(1), workers=[who]))
    assert told.oldest_age_s is not None
    assert told.oldest_age_s <= 7.0


def test_what_only_workers_know_does_not_come_with_the_second_look() -> None:
    series = Series("q", Side.ACTIVITY)
    series.begin(0.0, [*waits(5), *waits(90, Way.LIMITED)])
    told = series.look(look(1.0, queues=[*waits(5), *waits(900, Way.LIMITED)], workers=[worker()]))
    assert (told.backlog, told.add_rate) == (905, 0.0)
    assert told.oldest_age_s is None
    told = series.look(look(2.0, queues=[*waits(5), *waits(910, Way.LIMITED)], workers=[worker()]))
    assert told.add_rate == 10.0


def test_a_key_is_told_with_what_limits_it_and_what_that_holds_back() -> None:
    lines = [held_back("slow", 7, 30.0), held_back("slow", 2, 40.0, activity_type="other")]
    elsewhere = held_back("far", 5, 1.0, task_queue="r")
    who = worker("w", begun(9, 3.0, key="quick"), held_back=[*lines, elsewhere])
    told = Series("q", Side.ACTIVITY).look(
        look(
            0.0,
            queues=waits(20, Way.LIMITED),
            workers=[who],
            part_limits=[keyed("", rate=5.0), keyed("slow", rate=0.5)],
            held_keys=["quick"],
        )
    )
    quick, slow = told.parts
    assert (slow.key, slow.backlog, slow.oldest_age_s, slow.begun) == ("slow", 9, 40.0, 0)
    assert slow.limit is not None
    assert (slow.limit.rate, slow.limit.source, slow.limit.by) == (0.5, "setting", "ann")
    assert slow.limit.is_limiting
    assert (quick.key, quick.backlog, quick.begun, quick.dispatch_rate) == ("quick", 0, 9, 3.0)
    assert quick.limit is not None
    assert (quick.limit.rate, quick.limit.is_paused, quick.limit.is_limiting) == (5.0, True, False)


def test_limits_of_keys_limit_their_task_queue() -> None:
    series = Series("q", Side.ACTIVITY)
    who = worker("w", held_back=[held_back("slow", 7, 30.0)])
    seen = look(0.0, queues=waits(7, Way.LIMITED), workers=[who])
    series.look(seen)
    assert series.look(seen).limit.is_limiting
    busy = look(0.0, queues=waits(7, Way.LIMITED), workers=[worker("w", running=4)])
    assert not series.look(busy).limit.is_limiting


def test_what_rabbitmq_does_not_tell_of_a_part_is_not_known() -> None:
    who = worker("w", begun(4, 1.0, priority=1, waited_ms=500), begun(2, 2.0, key="k"))
    by_key, by_priority = Series("q", Side.ACTIVITY).look(look(0.0, 5, workers=[who])).parts
    assert (by_key.backlog, by_key.oldest_age_s, by_key.limit) == (None, None, None)
    assert (by_priority.backlog, by_priority.last_waited_s) == (None, 0.5)
    # But that nothing waits at all.
    for part in Series("q", Side.ACTIVITY).look(look(0.0, workers=[who])).parts:
        assert (part.backlog, part.oldest_age_s) == (0, 0.0)


def test_the_top_keys_are_told_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "KEYS_MAX", 3)
    lines = [held_back(f"k{number}", number + 1, None) for number in range(9)]
    told = Series("q", Side.ACTIVITY).look(
        look(0.0, 45, workers=[worker("w", begun(1, 1.0, priority=2), held_back=lines)])
    )
    assert {part.key for part in told.parts} == {None, "k8", "k7", "k6"}
