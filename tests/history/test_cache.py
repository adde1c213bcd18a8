from __future__ import annotations

from tests.history.runs import NOW_MS, begin
from tq_broker.history.cache import Cache, Held


def held(workflow_id: str = "w", run_id: str = "r", shard: int = 0) -> Held:
    return Held(begin(workflow_id, run_id)[0], shard)


def test_a_run_is_found_by_its_id_and_by_its_workflow_s() -> None:
    cache = Cache(10, 10_000)
    one = cache.add(held())
    assert cache.get("r") is one
    assert cache.current("w") is one
    assert cache.get("x") is cache.current("x") is None


def test_the_last_run_is_the_current_one() -> None:
    cache = Cache(10, 10_000)
    first = cache.add(held())
    first.is_current = False
    second = cache.add(held(run_id="r2"))
    assert cache.current("w") is second
    cache.drop("r")
    assert cache.current("w") is second
    cache.drop("r2")
    assert cache.current("w") is None


def test_a_row_and_back() -> None:
    one = held()
    row = one.row(NOW_MS)
    assert (row.version, row.is_current, row.workflow_id) == (1, True, "w")
    cache = Cache(10, 10_000)
    loaded = cache.load(row)
    assert loaded.version == 1
    assert loaded.run.started == one.run.started
    assert loaded.row(NOW_MS).version == 2
    assert cache.load(row) is loaded


def test_the_least_recently_used_go_first() -> None:
    cache = Cache(2, 10_000)
    for name in "abc":
        cache.add(held(name, name))
    cache.get("a")
    cache.shrink()
    assert {one.run.run_id for one in cache} == {"a", "c"}


def test_size_is_bounded_too() -> None:
    cache = Cache(100, 1_000)
    for name in "abc":
        cache.stored(cache.add(held(name, name)), 400)
    cache.shrink()
    assert {one.run.run_id for one in cache} == {"b", "c"}
    one = cache.get("b")
    assert one is not None
    assert one.version == 1
    cache.stored(one, 900)
    cache.shrink()
    assert [one.run.run_id for one in cache] == ["b"]


def test_a_shard_takes_its_runs_along() -> None:
    cache = Cache(100, 1_000)
    cache.add(held("a", "a", 1))
    cache.add(held("b", "b", 2))
    assert (cache.count(1), cache.count(9)) == (1, 0)
    cache.drop_shards({1})
    assert cache.count(1) == 0
    assert [one.run.run_id for one in cache] == ["b"]
