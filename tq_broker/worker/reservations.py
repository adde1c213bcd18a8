"""Reservations: waits for the slots of custom suppliers, whose ``reserve_slot`` is a coroutine.

They run on one event loop in a daemon thread, ``tq-slots``, which belongs to the worker, starts
with the first wait, and is ended by `Reservations.close`.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable

from tq_broker.worker.tuning import CustomSlotSupplier, SlotPermit, SlotReserveContext

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""The pause after a supplier has raised."""

Deliver = Callable[[SlotPermit | None], None]


class Reservations:
    """Waits for slots. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def wait(
        self, supplier: CustomSlotSupplier, context: SlotReserveContext, deliver: Deliver
    ) -> None:
        """See `tq_broker.worker.slots.Waiting`; returns at once."""
        with self._lock:
            if self._is_closed:
                return
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._serve, name="tq-slots", daemon=True)
                self._thread.start()
            asyncio.run_coroutine_threadsafe(_reserve(supplier, context, deliver), self._loop)

    def close(self) -> None:
        """Cancel what is waited for, and end the thread."""
        with self._lock:
            self._is_closed = True
            loop, thread = self._loop, self._thread
        if loop is not None and thread is not None:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()

    def _serve(self) -> None:
        loop = self._loop
        assert loop is not None, "it was made before the thread"
        asyncio.set_event_loop(loop)
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()


async def _reserve(
    supplier: CustomSlotSupplier, context: SlotReserveContext, deliver: Deliver
) -> None:
    permit: SlotPermit | None = None
    try:
        permit = await supplier.reserve_slot(context)
    except Exception:  # the author's code
        log.exception("reserve_slot of the %s slots", context.slot_type)
        await asyncio.sleep(RETRY_S)
    finally:
        deliver(permit)
