"""Names of sessions."""

from __future__ import annotations

from tq_broker.model.names import Names
from tq_broker.model.sessions import session_task_queue


def test_sessions_have_a_task_queue_of_their_own() -> None:
    names = Names("n")
    assert str(names.activity(session_task_queue("q"))) == "tq.n.activity.q__sessions"
    assert session_task_queue("q") != session_task_queue("q__")
