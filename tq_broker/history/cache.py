"""The runs that a process has in memory: the least recently used go first.

Rules of this file: a run is here as it is stored, or as the turn under way is about to store it;
what was changed and could not be stored is dropped and loaded again. What the turn under way
touches stays, however full it is.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator

from tq_broker.history import describe
from tq_broker.history.state import Execution
from tq_broker.stores.store import RunRow


class Held:
    """A run in memory.

    Attributes:
        version: Of its row in the store; 0 if there is none yet.
        is_current: It is the last started of its workflow id.
        size: About how many bytes it takes.
    """

    __slots__ = ("is_current", "run", "shard", "size", "version")

    def __init__(
        self, run: Execution, shard: int, *, version: int = 0, is_current: bool = True
    ) -> None:
        self.run = run
        self.shard = shard
        self.version = version
        self.is_current = is_current
        self.size = 0

    def row(self, now_ms: int) -> RunRow:
        """Its next row."""
        run, info = self.run, describe.info(self.run)
        state = run.dump()
        return RunRow(
            run_id=info.run_id,
            workflow_id=info.workflow_id,
            shard=self.shard,
            version=self.version + 1,
            is_current=self.is_current,
            status=info.status,
            workflow_type=info.workflow_type,
            task_queue=info.task_queue,
            start_ms=info.start_ms,
            state=state,
            next_ms=run.next_ms(),
            close_ms=info.close_ms,
            history_length=info.history_length,
            history_bytes=info.history_bytes,
            first_run_id=info.first_run_id,
            parent_id=info.parent_id,
            parent_run_id=info.parent_run_id,
            memo=info.memo,
            cron_schedule=info.cron_schedule,
            static_summary=info.static_summary,
            deployment_version=info.deployment_version,
        )


class Cache:
    """Runs by id, and the current ones by workflow id. Not thread-safe, but where it says so."""

    def __init__(self, runs_max: int, bytes_max: int) -> None:
        self._runs_max = runs_max
        self._bytes_max = bytes_max
        self._bytes = 0
        self._held: OrderedDict[str, Held] = OrderedDict()
        self._current: dict[str, str] = {}
        self._counts: Counter[int] = Counter()

    def __len__(self) -> int:
        return len(self._held)

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._held.values()))

    def count(self, shard: int) -> int:
        """How many of a shard there are; from any thread."""
        return self._counts[shard]

    def get(self, run_id: str) -> Held | None:
        """The run, used now; ``None`` if it is not in memory."""
        held = self._held.get(run_id)
        if held is not None:
            self._held.move_to_end(run_id)
        return held

    def current(self, workflow_id: str) -> Held | None:
        """The current run of a workflow id; ``None`` if it is not in memory."""
        run_id = self._current.get(workflow_id)
        return None if run_id is None else self.get(run_id)

    def add(self, held: Held) -> Held:
        """Keep a run; if it is the current one, no other of its workflow id is any more."""
        run = held.run
        self.drop(run.run_id)
        self._held[run.run_id] = held
        self._counts[held.shard] += 1
        self._bytes += held.size
        if held.is_current:
            self._current[run.workflow_id] = run.run_id
        return held

    def load(self, row: RunRow) -> Held:
        """Keep a run as it is stored; one that is here already stays as it is.

        Raises:
            Malformed: its state cannot be read.
        """
        held = self._held.get(row.run_id)
        if held is not None:
            return held
        run = Execution.load(row.state)
        held = Held(run, row.shard, version=row.version, is_current=row.is_current)
        held.size = len(row.state)
        return self.add(held)

    def stored(self, held: Held, size: int) -> None:
        """Its next row was written; it takes ``size`` bytes now."""
        held.version += 1
        self._bytes += size - held.size
        held.size = size

    def shrink(self) -> None:
        """Let go of as many as must be."""
        while self._held and (len(self) > self._runs_max or self._bytes > self._bytes_max):
            self.drop(next(iter(self._held)))

    def drop(self, run_id: str) -> None:
        """Forget a run, if it is here."""
        held = self._held.pop(run_id, None)
        if held is not None:
            self._bytes -= held.size
            self._counts[held.shard] -= 1
            if self._current.get(held.run.workflow_id) == run_id:
                del self._current[held.run.workflow_id]

    def drop_shards(self, shards: Collection[int]) -> None:
        """Forget the runs of ``shards``, which may be another's now."""
        for held in self:
            if held.shard in shards:
                self.drop(held.run.run_id)
