"""Steps are values."""

from __future__ import annotations

from tq_broker.history.step import Step


def test_a_step_of_nothing_has_nothing_to_store() -> None:
    step = Step()
    assert not step.changed
    assert (step.events, step.data, step.effects, step.next_run) == ([], b"", [], None)
