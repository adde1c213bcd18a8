from __future__ import annotations

from tq_broker.client import sampling
from tq_broker.client.peeking import PeekedTask
from tq_broker.client.sampling import sampled


def task(priority: int, key: str = "") -> PeekedTask:
    return PeekedTask(
        type="t",
        id="i",
        attempt=1,
        age_s=None,
        size_bytes=1,
        arguments="[]",
        redelivered=False,
        priority=priority,
        key=key,
    )


def test_priorities_and_keys_are_counted() -> None:
    told = sampled([task(1, "a"), task(3, "b"), task(3, "b"), task(3)], 9)
    assert (told.read, told.waiting, told.is_whole) == (4, 9, False)
    assert told.priorities == ((1, 1), (3, 3))
    assert told.keys == (("b", 2), ("a", 1))
    assert sampled([], 0).is_whole


def test_only_the_top_keys_are_told() -> None:
    tasks = [task(3, f"k{number:03}") for number in range(sampling.KEYS_MAX + 5)]
    told = sampled([*tasks, tasks[-1]], 99)
    assert len(told.keys) == sampling.KEYS_MAX
    assert told.keys[0] == (tasks[-1].key, 2)
