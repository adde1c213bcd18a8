"""Who decides about an option: the call, over the decorator, over what is inherited."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.common import ActivityOptions
from tq_broker.model.precedence import OPTIONS, completed, settle

said = st.none() | st.integers(1, 5)


@given(said, said, said)
def test_the_call_wins_over_the_decorator_and_that_over_the_workflow(
    call: int | None, decorator: int | None, inherited: int | None
) -> None:
    wanted = next((one for one in (call, decorator, inherited) if one is not None), None)
    assert settle("priority", call, decorator, inherited) == wanted


@pytest.mark.parametrize("option", ["route", "requires", "headers"])
def test_what_is_not_inherited_as_a_whole_is_not_settled_so(option: str) -> None:
    with pytest.raises(AssertionError, match=option):
        settle(option, None, None, None)


def test_a_call_is_completed_by_its_decorator() -> None:
    decorator = {"task_queue": "q", "priority": 2}
    call = {"id": "1", "task_queue": None, "priority": 1}
    assert completed(call, decorator) == {"id": "1", "task_queue": "q", "priority": 1}


def test_an_override_of_the_call_takes_the_place_of_the_decorator_s_version() -> None:
    decorator = {"version": "shop.1", "priority": 2}
    assert completed({"versioning_override": "o"}, decorator) == {
        "versioning_override": "o", "priority": 2,
    }  # fmt: skip
    assert completed({"version": "shop.2"}, decorator)["version"] == "shop.2"
    assert completed({}, decorator)["version"] == "shop.1"


def test_every_row_is_an_option_of_activities() -> None:
    options = {field.name for field in fields(ActivityOptions)}
    for name, row in OPTIONS.items():
        assert (name in options) == row.at_activity_defn, name
