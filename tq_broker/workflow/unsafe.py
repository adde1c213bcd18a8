"""Ways around the restrictions of workflow code, for those who know that replay will not mind.

The restrictions themselves are kept by `tq_broker.worker.guard`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tq_broker.workflow.runtime import find

unrestricted: ContextVar[bool] = ContextVar("tq_broker_unrestricted", default=False)
"""Whether the current task is in a block of `sandbox_unrestricted`."""


@contextmanager
def sandbox_unrestricted() -> Iterator[None]:
    """A block in which clock, randomness, threads, files and sockets may be used."""
    token = unrestricted.set(True)
    try:
        yield
    finally:
        unrestricted.reset(token)


@contextmanager
def imports_passed_through() -> Iterator[None]:
    """Nothing: modules are never imported anew here. So that Temporal's code can stay as it is."""
    yield


def is_replaying() -> bool:
    """Whether what runs now has run before, on this or another worker."""
    runtime = find()
    return runtime is not None and runtime.replaying


def is_read_only() -> bool:
    """Whether nothing may be changed now: in a query, a validator or a wait condition."""
    runtime = find()
    return runtime is not None and runtime.read_only


__all__ = [
    "imports_passed_through",
    "is_read_only",
    "is_replaying",
    "sandbox_unrestricted",
]
