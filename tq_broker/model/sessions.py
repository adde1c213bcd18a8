"""Sessions as they travel: an activity of a type of its own, on a task queue of its own.

Whoever runs that activity holds a slot for the session until it is cancelled, and that it has
started tells which worker that is. It does nothing else.
"""

from __future__ import annotations

SESSION_TYPE = "tq.session"
"""The activity type that stands for a session."""

SUFFIX = "__sessions"


def session_task_queue(task_queue: str) -> str:
    """The task queue on which sessions of ``task_queue`` are created."""
    return f"{task_queue}{SUFFIX}"
