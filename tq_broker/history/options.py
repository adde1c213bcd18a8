"""What a user may set about a history service, checked when it is made."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from datetime import timedelta

from tq_broker.common import check_duration
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import check_text

PREFETCH_MAX = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class HistoryOptions:
    """Options of a `tq_broker.history.service.HistoryService`.

    Attributes:
        retention: How long a run that has ended can be asked about.
        max_cached_runs: Runs whose state is kept in memory.
        max_cached_bytes: The same by size, of their states and last events together.
        prefetch: Messages of one shard that are in hand at a time, and so in one transaction.
        identity: How the process signs.
    """

    retention: timedelta = timedelta(days=7)
    max_cached_runs: int = 10_000
    max_cached_bytes: int = 256 << 20
    prefetch: int = 500
    identity: str = field(default_factory=lambda: f"{os.getpid()}@{socket.gethostname()}")

    def __post_init__(self) -> None:
        check_duration("retention", self.retention, minimum=timedelta(minutes=1))
        _check_count("max_cached_runs", self.max_cached_runs, 10_000_000)
        _check_count("max_cached_bytes", self.max_cached_bytes, 1 << 40)
        _check_count("prefetch", self.prefetch, PREFETCH_MAX)
        check_text("identity", self.identity)


def _check_count(name: str, value: object, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InvalidArgument(f"{name} is {value!r}; it must be from 1 to {most}")
