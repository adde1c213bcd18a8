"""What is told of a pass: once each, its end before the task is let go."""

from __future__ import annotations

from collections.abc import Callable

from tq_broker.model.passes import What
from tq_broker.worker.insistence import Then
from tq_broker.worker.passage import Passage
from tq_broker.worker.roster import UsheredPassage


class Told:
    """A roster that takes what is told when it is let."""

    def __init__(self) -> None:
        self.what: list[What] = []
        self.confirm: list[Callable[[], None]] = []

    def tell(self, mark: str, what: What, done: Then) -> None:
        assert mark == "1:q"
        self.what.append(what)
        self.confirm.append(done)


class Inner(Passage):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def begun(self) -> None:
        self.heard.append("begun")

    def ended(self) -> None:
        self.heard.append("ended")

    def unused(self) -> None:
        self.heard.append("unused")


def a_passage(*, was_begun: bool = False) -> tuple[Told, UsheredPassage]:
    told = Told()
    return told, UsheredPassage(told, "1:q", was_begun)  # type: ignore[arg-type]


def test_a_task_is_let_go_when_its_end_is_safe() -> None:
    told, passage = a_passage()
    passage.begun()
    passage.begun()
    passage.ended()
    gone: list[int] = []
    passage.settled(lambda: gone.append(1))
    assert told.what == [What.BEGUN, What.ENDED]
    assert not gone
    told.confirm[1]()
    assert gone == [1]
    passage.settled(lambda: gone.append(2))
    assert gone == [1, 2]


def test_the_end_of_what_ran_before_is_not_told_before_it_is_in_the_roster() -> None:
    told = Told()
    passage = UsheredPassage(told, "1:q", was_begun=True, is_written=False)  # type: ignore[arg-type]
    gone: list[int] = []
    passage.ended()
    passage.settled(lambda: gone.append(1))
    assert not told.what
    passage.written()
    assert told.what == [What.ENDED]
    assert not gone
    told.confirm[0]()
    assert gone == [1]


def test_what_has_not_begun_was_not_used() -> None:
    told, passage = a_passage()
    passage.unused()
    passage.ended()
    assert told.what == [What.UNUSED]


def test_what_somebody_else_may_have_begun_has_ended() -> None:
    told, passage = a_passage(was_begun=True)
    passage.unused()
    assert told.what == [What.ENDED]


def test_an_attempt_that_is_over_gives_its_leave_back_though_its_code_runs_on() -> None:
    told, passage = a_passage()
    passage.begun()
    passage.settled(told.confirm[0])
    assert told.what == [What.BEGUN, What.ENDED]
    passage.ended()
    assert told.what == [What.BEGUN, What.ENDED]


def test_what_else_limits_the_task_is_told_as_well() -> None:
    _, passage = a_passage()
    inner = Inner()
    assert passage.within(inner) is passage
    passage.begun()
    passage.ended()
    passage.unused()
    assert inner.heard == ["begun", "ended", "unused"]
