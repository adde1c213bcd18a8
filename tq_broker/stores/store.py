"""The port: what the history service of one namespace asks of a database.

Three adapters keep this contract and are held to it by one suite (``tests/contracts/store.py``):
`tq_broker.stores.memory.MemoryStore`, and `tq_broker.stores.sql.SqlStore` on SQLite and PostgreSQL.

Ownership of a shard is an *epoch*, a number that grows with every owner. `Store.commit` checks the
epochs of all shards that it writes to, in its transaction: an owner that was replaced, even one
that was asleep meanwhile, can commit nothing. Methods block, and may be called from any thread.

Any method may raise `StoreUnavailable`, and one that writes `OutcomeUnknown`. A text with a NUL
character is not for databases: `InvalidArgument`, so a shard refuses such messages before. What the
database takes for a mistake of the program is a `tq_broker.exceptions.Bug`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec

from tq_broker.exceptions import Bug, TqBrokerError, Unavailable
from tq_broker.model.listing import Filter
from tq_broker.model.payload import Payload
from tq_broker.model.requests import Status


class StoreUnavailable(Unavailable):
    """The database cannot be reached, is full or refuses; nothing was changed."""


class StoreRefused(StoreUnavailable):
    """The database does not let us: the login, the database itself, a table or a right is missing.

    Who starts ends with it; who has worked before waits until its operator has mended that.
    """


class OutcomeUnknown(Unavailable):
    """The connection broke during a commit: whether it happened is unknown.

    The only way on is `Store.acquire`: after it, what is read is final.
    """


class Fenced(TqBrokerError):
    """Another owner has taken a shard. Nothing of the batch was written.

    Attributes:
        shards: Those that are not ours any more.
    """

    def __init__(self, shards: Collection[int]) -> None:
        super().__init__(f"shards {sorted(shards)} have another owner")
        self.shards = frozenset(shards)


class Conflict(TqBrokerError):
    """An inbox id or an event of the batch is there already, or a run has another version.

    Nothing of the batch was written. Duplicate inbox ids are found by `Store.seen`; anything else
    means that what the owner has in memory is not what is stored.
    """


class SchemaMismatch(TqBrokerError):
    """The schema is newer than this release, or older and has to be migrated first."""


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """A run as it is stored. Its ids, shard, type, task queue and start never change.

    Attributes:
        version: 1 for a new one; each commit of a run adds one, and replaces the version before.
        is_current: Of all runs with its workflow id at most one is; it is the last started.
        next_ms: When its state machine wants to be woken; ``None`` for not at all.
        state: The state machine; closed runs keep what is asked of them later.
        deployment_version: The one that it is pinned to; "" if to none.
    """

    run_id: str
    workflow_id: str
    shard: int
    version: int
    is_current: bool
    status: Status
    workflow_type: str
    task_queue: str
    start_ms: int
    state: bytes
    next_ms: int | None = None
    close_ms: int = 0
    history_length: int = 0
    history_bytes: int = 0
    first_run_id: str = ""
    parent_id: str = ""
    parent_run_id: str = ""
    memo: dict[str, Payload] = {}
    cron_schedule: str = ""
    static_summary: str = ""
    deployment_version: str = ""


class EventRow(msgspec.Struct, frozen=True):
    """Consecutive events of a run, encoded by `tq_broker.model.events.dump_events`."""

    run_id: str
    first_event_id: int
    count: int
    data: bytes


class InboxRow(msgspec.Struct, frozen=True):
    """A message that was taken in. ``reply`` is what was answered, if anything was."""

    shard: int
    message_id: str
    at_ms: int
    reply: bytes | None = None


class OutboxRow(msgspec.Struct, frozen=True):
    """A message to be published. ``seq`` counts up within a shard, without an end."""

    shard: int
    seq: int
    data: bytes


class Batch(msgspec.Struct):
    """What one transaction writes. Empty parts cost nothing.

    Attributes:
        epochs: The epoch of every shard that is written to.
        runs: New states, at most one of each run. Of a workflow id, the run that was current before
            comes before the one that is now.
        sent: Outbox rows that are not needed any more, as ``(shard, seq)``.
    """

    epochs: dict[int, int]
    inbox: list[InboxRow] = []
    runs: list[RunRow] = []
    events: list[EventRow] = []
    outbox: list[OutboxRow] = []
    sent: list[tuple[int, int]] = []

    def check(self) -> None:
        """Raises `Bug` if a shard is written to whose epoch the batch does not name."""
        written = {row.shard for row in self.inbox}
        written.update(row.shard for row in self.runs)
        written.update(row.shard for row in self.outbox)
        written.update(shard for shard, _ in self.sent)
        if unchecked := written - self.epochs.keys():
            raise Bug(f"a batch writes to shards {sorted(unchecked)} without their epochs")


def seq_before(epoch: int) -> int:
    """What an owner's first outbox number follows.

    Made of the epoch, so that rows need not outlast their sending for numbers to be used once.
    Room for 10¹² messages of one owner and 8 million owners below 2⁶³, and below the 2⁵³ of JSON.
    """
    return epoch << 40


class Owned(msgspec.Struct, frozen=True):
    """A shard that was acquired: its epoch, and a number that no outbox row has exceeded."""

    shard: int
    epoch: int
    last_seq: int


class Member(msgspec.Struct, frozen=True):
    """A history process, as it last said. ``shards`` are those that it owns."""

    member_id: str
    identity: str
    joined_ms: int
    seen_ms: int
    shards: tuple[int, ...] = ()


class ShardRow(msgspec.Struct, frozen=True):
    """A shard, for people: counts are of rows."""

    shard: int
    epoch: int
    owner: str
    open_runs: int
    timers_due: int
    outbox: int


class Store(Protocol):
    """The database of one namespace."""

    @property
    def url(self) -> str:
        """Where it is, without the password."""

    def acquire(self, shards: Collection[int], owner: str, now_ms: int) -> list[Owned]:
        """Become the owner of ``shards``: their epochs grow by one.

        Waits for transactions that are under way: what is read afterwards is all there is.
        """

    def commit(self, batch: Batch) -> None:
        """Write all of ``batch`` or nothing, durably.

        Raises:
            Fenced, Conflict, StoreUnavailable: nothing was written.
            OutcomeUnknown: see there.
        """

    def seen(self, shard: int, message_ids: Collection[str]) -> dict[str, bytes | None]:
        """Those of ``message_ids`` that were taken in before, with what was answered."""

    def runs(self, run_ids: Collection[str]) -> list[RunRow]:
        """The runs with these ids, as far as they exist, in any order."""

    def current(self, workflow_ids: Collection[str]) -> list[RunRow]:
        """The current runs of these workflow ids, as far as there are any, in any order."""

    def events(self, run_id: str, first_event_id: int, bytes_max: int) -> list[EventRow]:
        """Rows from the one that has ``first_event_id``, in order: as many as their data are within
        ``bytes_max``, but at least one, if there is one."""

    def due(self, shards: Collection[int], until_ms: int, limit: int) -> list[tuple[int, int, str]]:
        """``(next_ms, shard, run_id)`` of runs that want to be woken by then, soonest first."""

    def outbox(self, shard: int, after_seq: int, limit: int) -> list[OutboxRow]:
        """Rows that were not marked as sent, in order."""

    def list(self, where: Filter, limit: int, after: tuple[int, str] | None) -> list[RunRow]:
        """Runs of the namespace that match, newest start first, then by run id; ``state`` is empty.

        Args:
            after: ``(start_ms, run_id)`` of the last row of the page before.
        """

    def count(self, where: Filter) -> Mapping[Status, int]:
        """How many runs of the namespace match, by status."""

    def beat(self, member: Member) -> Sequence[Member]:
        """Say that ``member`` lives; returns all members that were ever seen and have not left,
        that one included."""

    def leave(self, member_id: str) -> None:
        """The member lives no more."""

    def prune(self, shard: int, closed_before_ms: int, inbox_before_ms: int, limit: int) -> int:
        """Delete runs that were closed before that time, with their events, and old inbox rows, at
        most about ``limit``; returns how many rows were deleted."""

    def shards(self, now_ms: int) -> Sequence[ShardRow]:
        """All shards that were ever acquired."""

    def close(self) -> None:
        """Let go of the database. Idempotent."""
