from __future__ import annotations

import pytest

from tq_broker.exceptions import Malformed
from tq_broker.model import envelope, moves
from tq_broker.model.message import Message
from tq_broker.model.moves import Moves, Suspects, Verdict


def task(name: str, attempt: int = 1, moved_by: str = "") -> Message:
    headers = {envelope.ATTEMPT: attempt} | ({envelope.MOVED: moved_by} if moved_by else {})
    return Message(body=b"", message_id=name, kind=envelope.TASK, headers=headers)


def suspects(*, dealt: Message | None = None, away: Message | None = None) -> Suspects:
    found = Suspects()
    found.add(
        Moves(
            "m",
            () if dealt is None else (moves.mark(dealt),),
            () if away is None else (moves.mark(away),),
        )
    )
    return found


def test_moves_survive_their_message() -> None:
    told = Moves("m", ("1",), ("2", "3"))
    assert moves.read(moves.message(told)) == told


def test_foreign_messages_are_malformed() -> None:
    with pytest.raises(Malformed, match="'activity-task' tells no moves"):
        moves.read(task("a"))
    with pytest.raises(Malformed, match="moves:"):
        moves.read(Message(body=b"[", message_id="m", kind=moves.MOVES, headers={}))


def test_attempts_are_told_from_each_other() -> None:
    assert moves.mark(task("a")) == moves.mark(
        Message(body=b"", message_id="a", kind=envelope.TASK, headers={})
    )
    assert len({moves.mark(task(name, n)) for name in "ab" for n in (1, 2)}) == 4


def test_without_a_death_nothing_is_suspicious() -> None:
    assert Suspects().judge(task("a"), redelivered=True) is Verdict.FINE


def test_what_may_have_been_dealt_is_in_doubt() -> None:
    found = suspects(dealt=task("a"))
    assert len(found) == 1
    assert found.judge(task("a"), redelivered=True) is Verdict.IN_DOUBT
    assert found.judge(task("b"), redelivered=True) is Verdict.FINE
    assert found.judge(task("a", 2), redelivered=True) is Verdict.FINE
    # Somebody has put it there anew
    assert found.judge(task("a"), redelivered=False) is Verdict.FINE


@pytest.mark.parametrize("is_copy_first", [True, False])
def test_of_a_task_and_its_copy_the_second_is_double(is_copy_first: bool) -> None:
    found = suspects(away=task("a"))
    original = lambda: found.judge(task("a", moved_by="before"), redelivered=True)  # noqa: E731
    copy = lambda: found.judge(task("a", moved_by="m"), redelivered=False)  # noqa: E731
    first, second = (copy, original) if is_copy_first else (original, copy)
    assert first() is Verdict.FINE
    assert second() is Verdict.DOUBLE
    # The one that was kept may come again
    assert first() is Verdict.FINE
    # And what was put there anew is another
    assert found.judge(task("a"), redelivered=False) is Verdict.FINE


def test_one_of_which_there_is_no_copy_is_kept() -> None:
    found = suspects(away=task("a"))
    for _ in range(3):
        assert found.judge(task("a"), redelivered=True) is Verdict.FINE
