"""Values in Temporal's shapes. That nothing is lost is shown by `test_history_json`."""

from __future__ import annotations

from base64 import b64encode

import pytest

from tq_broker.exceptions import Malformed
from tq_broker.model.failure import Failure, FailureKind
from tq_broker.model.json_shapes import (
    ARGUMENTS,
    DURATION,
    OURS,
    TIME,
    named,
    read_payload,
    write_failure,
)


@pytest.mark.parametrize(("ms", "text"), [(10_000, "10s"), (1, "0.001s"), (61_050, "61.050s")])
def test_durations_are_seconds(ms: int, text: str) -> None:
    assert DURATION.write(ms) == text
    assert DURATION.read(text) == ms


def test_times_are_read_with_any_fraction() -> None:
    assert TIME.read("1970-01-01T00:00:01Z") == 1000
    assert TIME.read("1970-01-01T00:00:01.5Z") == 1500
    assert TIME.read("1970-01-01T00:00:01.123456789Z") == 1123


@pytest.mark.parametrize(("shape", "text"), [(DURATION, "soon"), (TIME, "noon")])
def test_what_is_none_is_named(shape: object, text: str) -> None:
    with pytest.raises(Malformed, match=text):
        shape.read(text)  # type: ignore[attr-defined]


def test_a_name_of_a_later_release_is_kept() -> None:
    shape = named("KIND", {1: "ONE"})
    assert shape.write(1) == "KIND_ONE"
    assert shape.read("KIND_ONE") == 1
    assert shape.read(shape.write(7)) == 7


def test_each_argument_is_a_payload_of_its_own() -> None:
    assert len(ARGUMENTS.write(b'[1,"two",null]')["payloads"]) == 3


def test_an_unknown_encoding_is_refused() -> None:
    encoding = b64encode(b"application/x-pickle").decode()
    with pytest.raises(Malformed, match="x-pickle"):
        read_payload({"metadata": {"encoding": encoding}, "data": ""})


def test_only_what_temporal_has_no_place_for_is_under_our_own_key() -> None:
    plain = Failure(kind=FailureKind.APPLICATION, message="m", type="T", details=[1])
    assert OURS not in write_failure(plain)
    odd = Failure(kind=FailureKind.TERMINATED, message="m", details=[1])
    assert write_failure(odd)[OURS] == {"details": [1]}
