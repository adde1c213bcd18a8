"""The runtime is found by the running loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tq_broker import workflow
from tq_broker.workflow.runtime import ATTRIBUTE, current, find


def test_outside_there_is_none() -> None:
    assert find() is None
    assert not workflow.in_workflow()
    with pytest.raises(RuntimeError, match="not in a workflow"):
        current()


def test_each_thread_has_its_own() -> None:
    loop = asyncio.new_event_loop()
    setattr(loop, ATTRIBUTE, "runtime")
    seen: list[object] = []

    async def look() -> object:
        thread = threading.Thread(target=lambda: seen.append(find()))
        thread.start()
        thread.join()
        return current()

    try:
        assert loop.run_until_complete(look()) == "runtime"
    finally:
        loop.close()
    assert seen == [None]
