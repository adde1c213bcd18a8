import os
import signal

import pytest

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


def test_others_can_put_events_in() -> None:
    events = Events()
    events.put("x")
    assert events.next() == "x"
    assert events.next(0.001) is None
