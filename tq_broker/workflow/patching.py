"""Changing the code of workflows that are under way."""

from __future__ import annotations

from tq_broker.model.names import check_text
from tq_broker.workflow.definition import NAME_BYTES_MAX
from tq_broker.workflow.runtime import current


def patched(id: str) -> bool:
    """Whether to take the new way: ``if patched("x"): new() else: old()``.

    True for runs that come here for the first time; False when a history is replayed that was
    written by the old code. The answer stays the same for the whole run.
    """
    _check(id)
    return current().patched(id, deprecated=False)


def deprecate_patch(id: str) -> None:
    """Call instead of `patched` when no run of the old code is open any more; to be removed when
    none is open that has seen `patched`."""
    _check(id)
    current().patched(id, deprecated=True)


def _check(id: str) -> None:
    check_text("id", id, bytes_max=NAME_BYTES_MAX)
