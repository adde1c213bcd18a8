"""Commands found again as events, or not."""

from __future__ import annotations

import pytest

from tq_broker.model import commands as cmd
from tq_broker.model import events as ev
from tq_broker.model.failure import application
from tq_broker.worker.ledger import Ledger
from tq_broker.workflow.errors import NondeterminismError

START = cmd.StartTimer(timer_id="1", start_to_fire_ms=1000)
STARTED = ev.TimerStarted(event_id=5, time_ms=0, timer_id="1", start_to_fire_ms=999)
CANCEL = cmd.CancelTimer(timer_id="0")
REJECT = cmd.RejectUpdate(update_id="u", failure=application("no", "Bad"))


def test_a_command_learns_of_its_event() -> None:
    seen: list[ev.Event] = []
    ledger = Ledger()
    entry = ledger.add(START, seen.append)
    assert not entry.sent
    assert ledger.send() == [START]
    assert entry.sent
    ledger.settle([STARTED], 4)
    assert seen == [STARTED]


def test_what_is_withdrawn_is_not_sent() -> None:
    ledger = Ledger()
    ledger.withdraw(ledger.add(START))
    assert ledger.send() == []


def test_some_commands_may_leave_no_event() -> None:
    ledger = Ledger()
    for command in (CANCEL, REJECT, START, CANCEL):
        ledger.add(command)
    ledger.send()
    ledger.settle([STARTED], 4)


def test_differences_are_named() -> None:
    ledger = Ledger()
    ledger.add(cmd.ModifyProperties(upserted_memo={"a": b"1"}))
    ledger.send()
    event = ev.WorkflowPropertiesModified(event_id=5, time_ms=0, upserted_memo={"b": b"1"})
    with pytest.raises(NondeterminismError, match=r"event 5 .*WorkflowPropertiesModified"):
        ledger.settle([event], 4)
    with pytest.raises(NondeterminismError, match="after event 4"):
        ledger.settle([], 4)


def test_sealed_markers_can_be_described() -> None:
    event = ev.MarkerRecorded(
        event_id=5, time_ms=0, marker_name="core_patch", details={"id": b"\x00zlib\x00x"}
    )
    with pytest.raises(NondeterminismError, match=r"core_patch, id=\?"):
        Ledger().settle([event], 4)
