"""Answers that are read from the store and from no run in memory.

Blocks, on a thread of its own: a slow list must not delay a workflow.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.history import mailing
from tq_broker.history.letters import Letter
from tq_broker.history.mailing import PAGE_BYTES
from tq_broker.model import listing
from tq_broker.model.requests import (
    Count,
    CountWorkflows,
    FetchHistory,
    Listing,
    ListWorkflows,
    Refused,
    Reply,
    RunInfo,
    ShardInfo,
    ShardStatus,
)
from tq_broker.model.workflow_tasks import EventsPage, FetchEvents
from tq_broker.stores.store import RunRow, Store

PAGE_RUNS_MAX = 1000


class Reader:
    """Answers for one history process. Thread-safe.

    Args:
        about: What the owner of a shard knows of it, without what is counted in the store.
    """

    def __init__(
        self, store: Store, about: Callable[[int], ShardInfo], now_ms: Callable[[], int]
    ) -> None:
        self._store = store
        self._about = about
        self._now_ms = now_ms

    def answer(self, letter: Letter) -> Reply:
        """What ``letter`` asks for; one of `tq_broker.history.letters.OUTSIDE`.

        Raises:
            StoreUnavailable: ask again.
        """
        try:
            return self._answer(letter)
        except (InvalidArgument, Malformed) as error:
            return Refused(reason="invalid_argument", message=str(error))

    def _answer(self, letter: Letter) -> Reply:
        match letter.content:
            case FetchEvents(first_event_id=first):
                return self._events(letter, first) or EventsPage([], found=False)
            case FetchHistory(first_event_id=first):
                return self._events(letter, first) or _not_found(letter)
            case ListWorkflows() as request:
                return self._list(request)
            case CountWorkflows(query):
                return self._count(query)
            case ShardStatus():
                return self._shard(letter.shard)
            case other:
                raise AssertionError(f"{type(other).__name__} is not answered from the store")

    def _events(self, letter: Letter, first_event_id: int) -> EventsPage | None:
        store = self._store
        run_id = letter.run_id
        runs = store.runs([run_id]) if run_id else store.current([letter.workflow_id])
        if not runs or runs[0].workflow_id != letter.workflow_id:
            return None
        rows = store.events(runs[0].run_id, max(1, first_event_id), PAGE_BYTES)
        return mailing.events_page(rows, first_event_id, runs[0].history_length)

    def _list(self, request: ListWorkflows) -> Listing:
        where = listing.parse(request.query)
        limit = min(max(1, request.page_size), PAGE_RUNS_MAX)
        after = _decode_token(request.page_token) if request.page_token else None
        rows = self._store.list(where, limit + 1, after)
        runs = mailing.fitting([_info(row) for row in rows[:limit]], PAGE_BYTES)
        if len(runs) == len(rows):
            return Listing(runs)
        return Listing(runs, _encode_token((runs[-1].start_ms, runs[-1].run_id)))

    def _count(self, query: str) -> Count:
        where = listing.parse(query)
        counts = self._store.count(where)
        groups = {status.value: number for status, number in counts.items()}
        return Count(count=sum(counts.values()), groups=groups if where.by_status else {})

    def _shard(self, shard: int) -> ShardInfo:
        about = self._about(shard)
        for row in self._store.shards(self._now_ms()):
            if row.shard == shard:
                return msgspec.structs.replace(
                    about, open_runs=row.open_runs, timers_due=row.timers_due, outbox=row.outbox
                )
        return about


def _not_found(letter: Letter) -> Refused:
    return Refused(
        reason="not_found", message="", workflow_id=letter.workflow_id, run_id=letter.run_id
    )


def _info(row: RunRow) -> RunInfo:
    return RunInfo(
        workflow_id=row.workflow_id,
        run_id=row.run_id,
        workflow_type=row.workflow_type,
        task_queue=row.task_queue,
        status=row.status,
        start_ms=row.start_ms,
        close_ms=row.close_ms,
        history_length=row.history_length,
        history_bytes=row.history_bytes,
        first_run_id=row.first_run_id,
        parent_id=row.parent_id,
        parent_run_id=row.parent_run_id,
        memo=row.memo,
        cron_schedule=row.cron_schedule,
        static_summary=row.static_summary,
    )


_token_decoder = msgspec.json.Decoder(tuple[int, str])


def _encode_token(after: tuple[int, str]) -> str:
    return msgspec.json.encode(after).decode()


def _decode_token(token: str) -> tuple[int, str]:
    try:
        return _token_decoder.decode(token)
    except msgspec.DecodeError as error:
        raise Malformed(f"page_token: {error}") from error
