from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.worker.meter import WINDOW_S, Meter


@given(
    pauses=st.lists(st.floats(0.0, 20.0), max_size=200),
    start=st.floats(0.0, 1000.0),
)
def test_a_meter_tells_what_happened_lately(pauses: list[float], start: float) -> None:
    meter, now, times = Meter(start), start, []
    for pause in pauses:
        now += pause
        meter.count(now)
        times.append(now)
        assert len(meter._seconds) <= WINDOW_S + 1
        # It keeps whole seconds, so its window is between one second less and the whole of it.
        least = sum(at > now - WINDOW_S + 1 for at in times) / max(1.0, min(WINDOW_S, now - start))
        most = sum(at > now - WINDOW_S for at in times) / max(1.0, min(WINDOW_S - 1.0, now - start))
        assert least - 1e-9 <= meter.per_second(now) <= most + 1e-9
    assert meter.total == len(times)


def test_a_steady_rate_is_told_from_the_first_seconds_on() -> None:
    meter = Meter(100.0)
    for step in range(400):
        meter.count(100.0 + step / 10)
        if step >= 100:
            assert meter.per_second(100.0 + step / 10) == pytest.approx(10.0, rel=0.02)


def test_what_stopped_is_forgotten() -> None:
    meter = Meter(0.0)
    meter.count(1.0)
    assert meter.per_second(2.0) == 0.5
    assert meter.per_second(100.0) == 0.0
    assert meter.total == 1
