"""Records: rows as tables hold them, one value per column of `tq_broker.stores.schema`.

Pure; what is only shown of a run is one value, ``details``, so that it costs nothing to have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from tq_broker.model.payload import Payload
from tq_broker.model.requests import Status
from tq_broker.stores.store import Batch, EventRow, RunRow

Record = tuple[Any, ...]


class Details(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a run has that no statement asks about."""

    first_run_id: str = ""
    parent_id: str = ""
    parent_run_id: str = ""
    memo: dict[str, Payload] = {}
    cron_schedule: str = ""
    static_summary: str = ""


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Details)
_shards_decoder = msgspec.msgpack.Decoder(tuple[int, ...])


def inbox_records(ns: int, batch: Batch) -> list[Record]:
    return [(ns, row.shard, row.message_id, row.at_ms, row.reply) for row in batch.inbox]


def event_records(ns: int, batch: Batch) -> list[Record]:
    return [(ns, row.run_id, row.first_event_id, row.count, row.data) for row in batch.events]


def outbox_records(ns: int, batch: Batch) -> list[Record]:
    return [(ns, row.shard, row.seq, row.data) for row in batch.outbox]


def new_run_record(ns: int, run: RunRow) -> Record:
    """All columns of a run."""
    return (
        ns,
        run.run_id,
        run.workflow_id,
        run.shard,
        run.workflow_type,
        run.task_queue,
        run.start_ms,
        *changes_of_run(run),
    )


def changes_of_run(run: RunRow) -> Record:
    """The columns of a run that may change, from ``version`` on."""
    details = Details(
        run.first_run_id,
        run.parent_id,
        run.parent_run_id,
        run.memo,
        run.cron_schedule,
        run.static_summary,
    )
    return (
        run.version,
        run.is_current,
        run.status.value,
        run.next_ms,
        run.close_ms,
        run.history_length,
        run.history_bytes,
        _encoder.encode(details),
        run.state,
        run.deployment_version,
    )


def run_of(record: Any) -> RunRow:
    """The run in a result with the columns' names."""
    details = _decoder.decode(record.details)
    return RunRow(
        run_id=record.run_id,
        workflow_id=record.workflow_id,
        shard=record.shard,
        version=record.version,
        is_current=bool(record.is_current),
        status=Status(record.status),
        workflow_type=record.workflow_type,
        task_queue=record.task_queue,
        start_ms=record.start_ms,
        state=record.state,
        next_ms=record.next_ms,
        close_ms=record.close_ms,
        history_length=record.history_length,
        history_bytes=record.history_bytes,
        deployment_version=record.deployment_version,
        **msgspec.structs.asdict(details),
    )


def dump_texts(texts: Collection[str]) -> str:
    """``texts`` as the JSON that a database takes apart."""
    return msgspec.json.encode(texts).decode()


def dump_shards(shards: Sequence[int]) -> bytes:
    """A member's shards as their column holds them."""
    return _encoder.encode(shards)


def load_shards(data: bytes) -> tuple[int, ...]:
    """The inverse of `dump_shards`."""
    return _shards_decoder.decode(data)


def stretches(sent: Iterable[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """``(shard, first, last)`` for every unbroken stretch of numbers in ``sent``.

    What is sent together has consecutive numbers mostly, and a stretch is deleted as one.
    """
    found: list[tuple[int, int, int]] = []
    for shard, seq in sorted(set(sent)):
        if found and found[-1][0] == shard and found[-1][2] == seq - 1:
            found[-1] = (shard, found[-1][1], seq)
        else:
            found.append((shard, seq, seq))
    return found


def within(rows: Iterable[EventRow], bytes_max: int) -> Iterator[EventRow]:
    """The first of ``rows``, and those after it as long as all are within ``bytes_max``."""
    total = 0
    for number, row in enumerate(rows):
        total += len(row.data)
        if number and total > bytes_max:
            return
        yield row
