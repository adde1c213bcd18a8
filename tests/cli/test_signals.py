import os
import signal
import sys
import threading

import pytest

from tq_broker.cli import signals
from tq_broker.cli.signals import STOPPING, Events


@pytest.mark.usefixtures("signals_kept")
def test_signals_become_events_in_order() -> None:
    events = Events()
    events.listen((*STOPPING, signal.SIGHUP))
    try:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            os.kill(os.getpid(), number)
        got = [events.next(1.0) for _ in range(3)]
    finally:
        events.unlisten()
    assert got == [signal.SIGTERM, signal.SIGHUP, signal.SIGINT]


@pytest.mark.usefixtures("signals_kept")
def test_a_signal_that_another_thread_gets_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "LOOK_S", 0.01)
    main = threading.get_ident()

    def get_the_signal() -> None:
        while sys._current_frames()[main].f_code is not Events.next.__code__:
            pass
        signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

    events, other = Events(), threading.Thread(target=get_the_signal)
    events.listen(STOPPING)
    try:
        other.start()
        assert events.next(5.0) is signal.SIGTERM
        other.join()
    finally:
        events.unlisten()


def test_others_can_put_events_in() -> None:
    events = Events()
    events.put("x")
    assert events.next() == "x"
    assert events.next(0.001) is None
