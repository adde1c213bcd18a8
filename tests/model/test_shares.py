"""Shares: over random schedules nothing is lost, priorities are strict, and keys are dealt to by
their weights."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict, deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.model.lanes import Lanes
from tq_broker.model.names import LANES
from tq_broker.model.shares import Far, Shares

EPS = 1e-6
WEIGHTS = {"a": 1.0, "b": 1.0, "c": 2.5, "d": 0.5, "": 1.0}

Item = tuple[str, int, int]
"""Key, priority and number."""

steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(sorted(WEIGHTS)), st.integers(1, 2)),
        st.sampled_from(["deal", "deal", "spill"]),
    ),
    max_size=200,
)


def arrive(shares: Shares[Item], item: Item, *, is_back: bool = False) -> Far[Item] | None:
    key, priority, _ = item
    return shares.arrive(item, key, WEIGHTS.get(key, 1.0), priority, is_back=is_back)


def dealt(shares: Shares[Item], count: int) -> list[Item]:
    found = [shares.deal() for _ in range(count)]
    assert None not in found
    return [item for item in found if item is not None]


@given(steps)
def test_nothing_is_lost_and_those_of_a_key_keep_their_order(steps: list[object]) -> None:
    """What is given away more than once at different times may come back in another one."""
    is_ordered = steps.count("spill") <= 1
    shares: Shares[Item] = Shares()
    away: deque[Item] = deque()
    expected: dict[tuple[str, int], deque[Item]] = defaultdict(deque)
    numbers = itertools.count()
    for step in [*steps, *["back"], *["deal"] * 200]:
        if step == "spill":
            away.extend(far.item for far in shares.spill(5))
        elif step == "back":
            shares.lane_returns()
            while away:
                assert arrive(shares, away.popleft(), is_back=True) is None
        elif step == "deal":
            best = shares.best
            item = shares.deal()
            assert (item is None) == (best is None)
            if item is not None:
                assert item[1] == best
                if is_ordered:
                    assert item == expected[item[:2]][0]
                expected[item[:2]].remove(item)
        else:
            assert isinstance(step, tuple)
            item = (*step, next(numbers))
            expected[item[:2]].append(item)
            far = arrive(shares, item)
            if far is not None:
                assert far.distance >= 0
                away.append(far.item)
    assert not any(expected.values())
    assert len(shares) == 0


@given(
    st.lists(st.floats(0.05, 20.0), min_size=2, max_size=6),
    st.lists(st.integers(0, 5), max_size=100),
)
def test_those_who_have_tasks_waiting_are_dealt_to_by_weight(
    weights: list[float], others: list[int]
) -> None:
    shares: Shares[int] = Shares()
    waiting = 300
    for key, weight in enumerate(weights):
        for _ in range(waiting):
            shares.arrive(key, f"{key}", weight, 3)
    counts: Counter[int] = Counter()
    for n in range(waiting):
        if n < len(others):  # who come and go change nothing between those who stay
            shares.arrive(-1, f"other {others[n]}", 1.0, 3)
        item = shares.deal()
        assert item is not None
        counts[item] += 1
    had = [counts[key] / weight for key, weight in enumerate(weights)]
    if max(counts[key] for key in range(len(weights))) < waiting:
        assert max(had) - min(had) <= 2 / min(weights) + EPS


@given(st.integers(0, 500), st.floats(0.1, 10.0))
def test_who_comes_later_waits_only_for_its_share(dealt_before: int, weight: float) -> None:
    shares: Shares[str] = Shares()
    for _ in range(10_000):
        shares.arrive("flood", "flood", 1.0, 3)
    for _ in range(dealt_before):
        shares.deal()
    for _ in range(10):
        shares.arrive("few", "few", weight, 3)
    begun = list(itertools.takewhile(lambda _: len(shares) > 0, iter(shares.deal, None)))
    last = max(n for n, item in enumerate(begun) if item == "few")
    assert last <= 10 + 10 / weight + 2


def test_who_comes_and_goes_gets_no_more_than_who_stays() -> None:
    shares: Shares[str] = Shares()
    for _ in range(100):
        shares.arrive("stays", "stays", 1.0, 3)
    begun = Counter[str | None]()
    for _ in range(100):
        shares.arrive("goes", "goes", 1.0, 3)
        begun[shares.deal()] += 1
    assert abs(begun["goes"] - begun["stays"]) <= 1


def test_nobody_saves_up() -> None:
    shares: Shares[str] = Shares()
    for _ in range(100):
        shares.arrive("stays", "stays", 1.0, 3)
    for _ in range(50):
        shares.deal()
    for _ in range(50):
        shares.arrive("late", "late", 1.0, 3)
    assert Counter(shares.deal() for _ in range(20)) == {"stays": 10, "late": 10}


@given(st.integers(0, 60), st.lists(st.sampled_from("abcd"), min_size=1, max_size=60))
def test_what_stays_is_what_is_next(keep: int, keys: list[str]) -> None:
    shares: Shares[Item] = Shares()
    for number, key in enumerate(keys):
        arrive(shares, (key, 3, number))
    dealt(shares, len(keys) // 3)
    before, waiting = shares.turn(3), len(shares)
    spilled = shares.spill(keep)
    assert len(shares) == min(keep, waiting)
    assert len(spilled) == waiting - len(shares)
    dealt(shares, len(shares))
    assert all(before + far.distance >= shares.turn(3) - EPS for far in spilled)


def test_worse_priorities_are_given_away_first() -> None:
    shares: Shares[Item] = Shares()
    for number in range(10):
        arrive(shares, ("a", 1 + number % 2 * 4, number))
    assert {far.priority for far in shares.spill(6)} == {5}
    assert {far.priority for far in shares.spill(3)} == {1, 5}
    assert shares.spill(3) == []


def test_memory_does_not_grow_with_the_keys_seen() -> None:
    shares: Shares[int] = Shares(keys_max=100)
    for number in range(5_000):
        shares.arrive(number, f"key {number}", 0.01, 3)
        if number % 2:
            shares.spill(50)
        shares.deal()
        assert shares.keys <= 100 + 100 + len(shares)
    shares.all_are_back()
    assert shares.keys <= 100 + len(shares)
    assert len(shares.clear()) + shares.keys <= 51


class Hand:
    """What a dealer does, with lanes that cost nothing."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.shares: Shares[Item] = Shares()
        self.lanes = Lanes(LANES)
        self.queues: list[deque[Item]] = [deque() for _ in range(LANES)]
        self.moves = 0

    def put(self, item: Item, *, is_back: bool = False) -> None:
        far = arrive(self.shares, item, is_back=is_back)
        if far is not None:
            self._away([far])
        if len(self.shares) > self.most:
            self._away(self.shares.spill(self.most * 3 // 4))

    def _away(self, spilled: list[Far[Item]]) -> None:
        for far in spilled:
            turn = self.shares.turn(far.priority)
            lane = self.lanes.place(far.priority, far.distance, turn)
            self.queues[lane].append(far.item)
            self.moves += 1

    def deal(self) -> Item:
        is_short = len(self.shares) < self.most // 4
        for lane in self.lanes.due(self.shares.turn, is_short=is_short):
            if not self.queues[lane]:
                self.lanes.empty(lane)
                continue
            self.lanes.take(lane, self.shares.turn)
            self.shares.lane_returns()
            for _ in range(len(self.queues[lane])):
                self.put(self.queues[lane].popleft(), is_back=True)
            break
        item = self.shares.deal()
        assert item is not None
        return item


@pytest.mark.parametrize(("keys", "each"), [(2, 5_000), (30, 300), (300, 20)])
def test_shares_hold_far_beyond_what_is_in_hand(keys: int, each: int) -> None:
    hand = Hand(200)
    for key in range(keys):  # one after the other, as they come when somebody starts many
        for number in range(each):
            hand.put((f"key {key}", 3, number))
    for number in range(10):
        hand.put(("few", 3, number))
    rounds = each // 2
    begun = [hand.deal() for _ in range(keys * rounds)]
    counts = Counter(key for key, _, _ in begun)
    assert counts.pop("few") == 10
    # Each of the others has as much as any other, but for a round or two
    assert max(counts.values()) - min(counts[f"key {key}"] for key in range(keys)) <= 2
    last = max(n for n, (key, _, _) in enumerate(begun) if key == "few")
    assert last <= 11 * (keys + 1) + hand.most
    # And each task is moved a few times at the most, and none is lost
    rest = [hand.deal() for _ in range(keys * each + 10 - len(begun))]
    assert len(set(begun) | set(rest)) == keys * each + 10
    assert hand.moves <= 12 * keys * each
