"""The small language in which runs are listed and counted: text in, a filter out.

::

    type = "Order" and status in ("running", "failed") and start_time > "2026-01-31T00:00:00Z"

Conditions joined by ``and``. Fields: ``type``, ``status``, ``task_queue`` (``=``, ``!=``, ``in``);
``id`` (``=``, ``in``, ``starts_with``); ``start_time``, ``close_time`` (``<``, ``<=``, ``>``, ``>=``,
``=``; ISO 8601 with an offset, or a date). Temporal's field names ``WorkflowType``,
``ExecutionStatus``, ``TaskQueue``, ``WorkflowId``, ``StartTime``, ``CloseTime`` mean the same.
"""

from __future__ import annotations

from tq_broker.model.requests import Status  # noqa: F401

import msgspec


class Condition(msgspec.Struct, frozen=True):
    """``field`` is a `tq_broker.stores.store.RunRow` field; ``op`` one of ``=``, ``!=``, ``in``,
    ``starts_with``, ``<``, ``<=``, ``>``, ``>=``; times are epoch milliseconds."""

    field: str
    op: str
    value: str | int | tuple[str, ...]


class Filter(msgspec.Struct, frozen=True):
    """All of ``conditions`` hold; none means every run."""

    conditions: tuple[Condition, ...] = ()
