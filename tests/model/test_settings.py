"""The settings log: records, and the state that they add up to."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import Malformed
from tq_broker.model import settings
from tq_broker.model.message import Message
from tq_broker.model.settings import (
    ActivityCanceled,
    Record,
    Settings,
    TaskQueueDeclared,
    TaskQueueReclaimed,
    read_record,
    record_message,
)

names = st.sampled_from("abc")
times = st.integers(0, 10**13)
records = (
    st.builds(TaskQueueDeclared, names, times)
    | st.builds(TaskQueueReclaimed, names, times)
    | st.builds(ActivityCanceled, names, times, st.text("xyz"), st.text("xyz"))
)


def folded(log: list[Record]) -> Settings:
    state = Settings()
    for record in log:
        state.apply(record)
    return state


@given(records)
def test_a_record_comes_back_as_it_went(record: Record) -> None:
    message = record_message(record, "1")
    assert message.kind == "setting"
    assert read_record(message) == record


@given(st.lists(records))
def test_the_last_word_on_a_task_queue_counts(log: list[Record]) -> None:
    state = folded(log)
    last = {r.task_queue: r for r in log if not isinstance(r, ActivityCanceled)}
    expected = {q: r.at_ms for q, r in last.items() if isinstance(r, TaskQueueDeclared)}
    assert state.task_queues == expected


@given(st.lists(records))
def test_a_cancellation_stays_and_the_last_one_tells_why(log: list[Record]) -> None:
    cancelled = {r.activity_id: r for r in log if isinstance(r, ActivityCanceled)}
    assert dict(folded(log).cancelled) == cancelled


def test_cancelled_ids_are_bounded_and_the_oldest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "CANCELLED_MAX", 3)
    state = folded([ActivityCanceled(str(number), number) for number in range(5)])
    assert list(state.cancelled) == ["2", "3", "4"]
    state.apply(ActivityCanceled("3", 9))
    assert set(state.cancelled) == {"2", "3", "4"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"type":"of-the-future"}',
        b'{"type":"task-queue-declared"}',
        b"\xff",
        b"[" * 9**6,
    ],
)
def test_what_is_no_record_is_refused(body: bytes) -> None:
    message = Message(body=body, message_id="1", headers={"tq-protocol": 1})
    with pytest.raises(Malformed, match=r"^setting: "):
        read_record(message)


@pytest.mark.parametrize("headers", [{}, {"tq-protocol": 2}, {"tq-protocol": "1"}])
def test_a_record_of_another_protocol_is_refused(headers: dict[str, object]) -> None:
    body = record_message(TaskQueueDeclared("a", 1), "1").body
    with pytest.raises(Malformed, match="protocol"):
        read_record(Message(body=body, message_id="1", headers=headers))
