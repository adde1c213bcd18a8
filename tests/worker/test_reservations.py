from __future__ import annotations

import asyncio
import logging
import queue
import threading

import pytest

from tests.worker.worlds import SOON_S
from tq_broker.worker import reservations
from tq_broker.worker.reservations import Reservations
from tq_broker.worker.tuning import (
    CustomSlotSupplier,
    SlotMarkUsedContext,
    SlotPermit,
    SlotReleaseContext,
    SlotReserveContext,
)

CONTEXT = SlotReserveContext("activity", ("q",), "me")


class Supplier(CustomSlotSupplier):
    """Waits until it is let go, if it is told to wait."""

    def __init__(self, *, waits: bool = False, raises: bool = False) -> None:
        self.waits, self.raises = waits, raises
        self.begun = threading.Event()

    async def reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit:
        assert ctx is CONTEXT
        self.begun.set()
        if self.raises:
            raise RuntimeError("broken")
        if self.waits:
            await asyncio.Event().wait()
        return SlotPermit()

    def try_reserve_slot(self, ctx: SlotReserveContext) -> SlotPermit | None:
        raise AssertionError("not asked")

    def mark_slot_used(self, ctx: SlotMarkUsedContext) -> None:
        raise AssertionError("not told")

    def release_slot(self, ctx: SlotReleaseContext) -> None:
        raise AssertionError("not told")


def test_a_slot_that_was_waited_for_is_delivered() -> None:
    waits, come = Reservations(), queue.SimpleQueue[SlotPermit | None]()
    for _ in range(2):
        waits.wait(Supplier(), CONTEXT, come.put)
        assert isinstance(come.get(timeout=SOON_S), SlotPermit)
    waits.close()
    assert not any(thread.name == "tq-slots" for thread in threading.enumerate())


def test_what_is_waited_for_at_the_end_is_cancelled() -> None:
    waits, come = Reservations(), queue.SimpleQueue[SlotPermit | None]()
    supplier = Supplier(waits=True)
    waits.wait(supplier, CONTEXT, come.put)
    assert supplier.begun.wait(SOON_S)
    waits.close()
    assert come.get(timeout=SOON_S) is None
    waits.wait(supplier, CONTEXT, come.put)
    assert come.empty()


def test_without_a_wait_there_is_no_thread() -> None:
    waits = Reservations()
    assert waits._thread is None
    waits.close()


def test_a_supplier_that_raises_is_asked_again_after_a_pause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(reservations, "RETRY_S", 0.0)
    waits, come = Reservations(), queue.SimpleQueue[SlotPermit | None]()
    with caplog.at_level(logging.ERROR):
        waits.wait(Supplier(raises=True), CONTEXT, come.put)
        assert come.get(timeout=SOON_S) is None
    assert "reserve_slot of the activity slots" in caplog.text
    waits.close()
