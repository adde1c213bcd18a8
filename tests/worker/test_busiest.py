"""The sketch keeps its bound, and the keys that have their share are in it."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.worker.busiest import HALVED_EVERY_S, Busiest


def count(keys: list[str], most: int, now: float = 0.0) -> Busiest[list[int]]:
    sketch: Busiest[list[int]] = Busiest(most, lambda: [0], now)
    for key in keys:
        sketch.came(key, now)[0] += 1
    return sketch


@given(st.lists(st.sampled_from("aaaabbbcdefghijklmnop"), max_size=300), st.integers(1, 12))
def test_whoever_has_its_share_is_known(keys: list[str], most: int) -> None:
    sketch = count(keys, most)
    assert len(sketch) == min(most, len(set(keys)))
    for key, times in Counter(keys).items():
        if times > len(keys) / most:
            assert key in dict(sketch)


@given(st.lists(st.text(max_size=2), max_size=100))
def test_what_is_told_of_a_key_is_no_more_than_what_came(keys: list[str]) -> None:
    came = Counter(keys)
    for key, counted in count(keys, 5):
        assert 1 <= counted[0] <= came[key]


def test_with_room_for_all_it_is_exact() -> None:
    assert {key: counted[0] for key, counted in count(list("abcab"), 5)} == {"a": 2, "b": 2, "c": 1}


def test_yesterdays_key_makes_room_for_todays() -> None:
    sketch = count(["old"] * 1000, 2)
    now = 12 * HALVED_EVERY_S
    for key in ("new", "newer", "new", "newer"):
        sketch.came(key, now)
    assert "old" in dict(sketch) or len(sketch) == 2
    for number in range(8):
        sketch.came(f"n{number % 2}", now + 1)
    assert "old" not in dict(sketch)
