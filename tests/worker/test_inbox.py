from __future__ import annotations

from functools import partial

from tq_broker.worker.inbox import Inbox


def test_calls_are_made_in_order_and_only_by_the_owner() -> None:
    said: list[str] = []
    inbox = Inbox(lambda: said.append("wake"))
    inbox.later(partial(said.append, "a"))
    inbox.later(partial(said.append, "b"))
    assert said == ["wake", "wake"]
    inbox.work_off()
    assert said == ["wake", "wake", "a", "b"]


def test_what_a_call_asks_for_is_done_in_the_same_go() -> None:
    said: list[str] = []
    inbox = Inbox(lambda: None)
    inbox.later(lambda: inbox.later(partial(said.append, "again")))
    inbox.work_off()
    assert said == ["again"]


def test_nothing_is_left_undone_when_the_owner_has_gone() -> None:
    said: list[str] = []
    inbox = Inbox(lambda: None)
    inbox.later(partial(said.append, "before"))
    inbox.close()
    assert said == ["before"]
    assert inbox.is_closed
    inbox.later(partial(said.append, "after"))
    assert said == ["before", "after"]
