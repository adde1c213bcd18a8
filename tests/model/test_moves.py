from __future__ import annotations

import pytest

from tq_broker.exceptions import Malformed
from tq_broker.model import envelope, moves
from tq_broker.model.message import Message
from tq_broker.model.moves import Moves, Suspects, Verdict


def task(name: str, attempt: int = 1, moved_by: str = "") -> Message:
    headers = {envelope.ATTEMPT: attempt} | ({envelope.MOVED: moved_by} if moved_by else {})
    return Message(body=b"", message_id=name, kind=envelope.TASK, headers=headers)


def told(
    by: str, number: int, *, dealt: Message | None = None, away: Message | None = None
) -> Moves:
    def of(one: Message | None) -> dict[str, str]:
        return {} if one is None else {moves.mark(one): moves.made_by(one)}

    return Moves(by, number, of(dealt), of(away))


def suspects(*found: Moves) -> Suspects:
    all_ = Suspects()
    for one in found:
        all_.add(one)
    return all_


def test_moves_survive_their_message() -> None:
    one = Moves("m", 2**52, {"1": ""}, {"2": "a", "3": ""})
    assert moves.read(moves.message(one)) == one


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
    assert moves.mark(task("a", moved_by="m")) == moves.mark(task("a"))


def test_an_id_that_is_used_again_is_another_task() -> None:
    def started(**headers: object) -> str:
        return moves.mark(Message(body=b"", message_id="a", kind=envelope.TASK, headers=headers))

    at = [{envelope.SCHEDULED: 1}, {envelope.SCHEDULED: 2}, {envelope.START_TOKEN: "t"}]
    assert len({started(**one) for one in at}) == 3


def test_without_a_death_nothing_is_suspicious() -> None:
    assert Suspects().judge(task("a"), redelivered=True) is Verdict.FINE


def test_what_may_have_been_dealt_is_in_doubt() -> None:
    found = suspects(told("m", 1, dealt=task("a")))
    assert len(found) == 1
    assert found.judge(task("a"), redelivered=True) is Verdict.IN_DOUBT
    assert found.judge(task("b"), redelivered=True) is Verdict.FINE
    assert found.judge(task("a", 2), redelivered=True) is Verdict.FINE
    # Somebody has put it there anew
    assert found.judge(task("a"), redelivered=False) is Verdict.FINE


@pytest.mark.parametrize("is_copy_first", [True, False])
def test_of_a_task_and_its_copy_the_second_is_double(is_copy_first: bool) -> None:
    found = suspects(told("m", 1, away=task("a", moved_by="before")))
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
    found = suspects(told("m", 1, away=task("a")))
    for _ in range(3):
        assert found.judge(task("a"), redelivered=True) is Verdict.FINE


def test_what_dealers_before_have_left_of_a_task_that_went_on_is_double() -> None:
    # Two have died, one after the other: the second had the original back and moved it, too
    first, second = told("a", 1, away=task("t")), told("b", 2, away=task("t"))
    for found in (suspects(first, second), suspects(second, first)):
        assert found.judge(task("t", moved_by="a"), redelivered=False) is Verdict.DOUBLE
        assert found.judge(task("t", moved_by="b"), redelivered=False) is Verdict.FINE
        assert found.judge(task("t"), redelivered=True) is Verdict.DOUBLE
    # or dealt it
    dealt = suspects(first, told("b", 2, dealt=task("t")))
    assert dealt.judge(task("t", moved_by="a"), redelivered=False) is Verdict.DOUBLE
    assert dealt.judge(task("t"), redelivered=True) is Verdict.IN_DOUBT
    # or went on with the copy
    copied = suspects(first, told("b", 2, dealt=task("t", moved_by="a")))
    assert copied.judge(task("t"), redelivered=True) is Verdict.DOUBLE
    assert copied.judge(task("t", moved_by="a"), redelivered=True) is Verdict.IN_DOUBT


def test_moves_of_suspects_are_known() -> None:
    found = suspects(told("a", 1, away=task("t")))
    assert found.are_in(told("b", 2, dealt=task("t", moved_by="a")))
    assert found.are_in(told("b", 2, away=task("t")))
    assert not found.are_in(told("b", 2, dealt=task("u"), away=task("t", 2)))
