from __future__ import annotations

import threading

import pytest

from tq_broker.worker import turns
from tq_broker.worker.turns import Turns

SOON_S = 20.0


def test_a_turn_is_taken_when_somebody_wakes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "LOOK_S", SOON_S)
    taken = threading.Semaphore(0)

    def turn() -> float:
        taken.release()
        return SOON_S

    turner = Turns("t", turn)
    turner.start()
    turner.start()
    assert taken.acquire(timeout=SOON_S)
    turner.wake()
    assert taken.acquire(timeout=SOON_S)
    turner.stop()
    assert not any(thread.name == "t" for thread in threading.enumerate())
    turner.start()  # not after its end
    assert not any(thread.name == "t" for thread in threading.enumerate())


def test_a_defect_does_not_stop_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(turns, "RETRY_S", 0.0)
    again = threading.Event()

    def turn() -> float:
        if "a defect" not in caplog.text:
            raise RuntimeError("no")
        again.set()
        return SOON_S

    turner = Turns("t", turn)
    turner.start()
    assert again.wait(SOON_S)
    turner.stop()
