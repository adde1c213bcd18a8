"""Who should hold which shard: what the living say of themselves in, a plan out.

Rules of this file:

* everybody who knows the same living members makes the same plan, without talking to anybody;
* shares differ by one at most, and a join or leave moves little more than it must;
* the second of a shard is who will be its first when the first is gone, so that a crash moves
  only what was the dead one's;
* who is alive is told by change: a member whose beat moves on is alive, whatever its clock says.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tq_broker.model.requests import SHARDS
from tq_broker.stores.store import Member

BEAT_S = 1.0
"""How often a member says that it lives."""
DEAD_AFTER_S = 4.0
"""A member that says nothing for so long holds nothing any more."""
FORGET_AFTER_S = 600.0
"""A member that is dead for so long has its row removed."""


@dataclass(frozen=True, slots=True)
class Places:
    """Who comes first for a shard, and who stands by: ``None`` if there is nobody else."""

    first: str
    second: str | None


def places(members: Collection[str]) -> tuple[Places, ...]:
    """The plan for ``members``, by shard; empty without any member."""
    if not members:
        return ()
    firsts = _spread(members)
    without = {
        member: _spread([other for other in members if other != member])
        for member in set(firsts)
        if len(members) > 1
    }
    return tuple(
        Places(first, without[first][shard] if first in without else None)
        for shard, first in enumerate(firsts)
    )


def _spread(members: Collection[str]) -> Sequence[str]:
    """The holder of every shard: its favourite, unless that has its share already."""
    ordered = sorted(members, key=lambda member: _weight(member, "share"))
    low, extra = divmod(SHARDS, len(ordered))
    held: Counter[str] = Counter()
    bounds = {member: low + (index < extra) for index, member in enumerate(ordered)}
    holders = []
    for shard in range(SHARDS):
        free = [member for member in ordered if held[member] < bounds[member]]
        favourite = max(free, key=lambda member: _weight(member, shard))
        held[favourite] += 1
        holders.append(favourite)
    return holders


def _weight(member: str, what: object) -> bytes:
    return hashlib.blake2b(f"{member}\0{what}".encode(), digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a member should do about the shards.

    Attributes:
        serve: Shards to consume: those that it is first or second of, and those it may not leave
            yet because nobody else is there to take them.
        take: Shards that nobody who lives owns: their timers must not wait for a first message.
        release: Shards it owns that are another's, who has been heard of since it owns them.
    """

    serve: frozenset[int]
    take: frozenset[int]
    release: frozenset[int]


class Membership:
    """What one member knows of all. Not thread-safe."""

    def __init__(self, member_id: str) -> None:
        self._me = member_id
        self._beats: dict[str, tuple[int, float]] = {}
        self._held_since: dict[int, float] = {}
        self._plan: tuple[tuple[str, ...], tuple[Places, ...]] = ((), ())

    def observe(self, members: Iterable[Member], now_s: float, now_ms: int) -> Mapping[str, Member]:
        """Take in what all have said; returns the living ones, by id.

        Args:
            now_s: Monotonic seconds.
            now_ms: The time of the epoch: only who is seen for the first time is judged by it.
        """
        known = {member.member_id: member for member in members}
        for member_id in self._beats.keys() - known.keys():
            del self._beats[member_id]
        for member_id, member in known.items():
            before = self._beats.get(member_id)
            if before is None:
                silent_s = min(DEAD_AFTER_S, abs(now_ms - member.seen_ms) / 1000)
                self._beats[member_id] = (member.seen_ms, now_s - silent_s)
            elif before[0] != member.seen_ms:
                self._beats[member_id] = (member.seen_ms, now_s)
        return {
            member_id: member
            for member_id, member in known.items()
            if member_id == self._me or now_s - self._beats[member_id][1] < DEAD_AFTER_S
        }

    def forgotten(self, now_s: float) -> list[str]:
        """Members that are dead for so long that they need not be remembered."""
        return [
            member_id
            for member_id, (_, beat_s) in self._beats.items()
            if member_id != self._me and now_s - beat_s >= FORGET_AFTER_S
        ]

    def wishes(self, living: Mapping[str, Member], owned: Collection[int], now_s: float) -> Wishes:
        """What to do, ``living`` being who lives and ``owned`` what this member owns."""
        self._held_since = {shard: self._held_since.get(shard, now_s) for shard in owned}
        ids = tuple(sorted({*living, self._me}))
        if self._plan[0] != ids:
            self._plan = (ids, places(ids))
        plan = self._plan[1]
        owners = {
            shard
            for member_id, member in living.items()
            if member_id != self._me
            for shard in member.shards
        }
        first = {shard for shard, at in enumerate(plan) if at.first == self._me}
        second = {shard for shard, at in enumerate(plan) if at.second == self._me}
        return Wishes(
            serve=frozenset(first | second),
            take=frozenset(first - owners - set(owned)),
            release=frozenset(
                shard
                for shard in owned
                if shard not in first and self._is_there(plan[shard].first, shard)
            ),
        )

    def _is_there(self, member_id: str, shard: int) -> bool:
        """Whether the first of ``shard`` has said that it lives since the shard is ours.

        It became ours because RabbitMQ knows nobody who comes before us: if the first died a moment
        ago, giving the shard up would bring it back to us, and stop it for a second each time.
        """
        return self._beats[member_id][1] > self._held_since[shard]
