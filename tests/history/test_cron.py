"""When a schedule's next time is."""

from __future__ import annotations

from datetime import datetime, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import InvalidArgument
from tq_broker.history import cron


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=timezone.utc).timestamp() * 1000)


@pytest.mark.parametrize(
    ("schedule", "now", "following"),
    [
        ("* * * * *", "2026-01-31 23:59:30", "2026-02-01 00:00:00"),
        ("* * * * *", "2026-01-31 23:58:00", "2026-01-31 23:59:00"),
        ("*/15 * * * *", "2026-01-01 00:16:00", "2026-01-01 00:30:00"),
        ("5/20 * * * *", "2026-01-01 00:26:00", "2026-01-01 00:45:00"),
        ("0 9-17/4 * * *", "2026-01-01 13:00:01", "2026-01-01 17:00:00"),
        ("30 4 1,15 * *", "2026-01-02 00:00:00", "2026-01-15 04:30:00"),
        ("0 0 * * mon", "2026-01-01 00:00:00", "2026-01-05 00:00:00"),
        ("0 0 * * 7", "2026-01-01 00:00:00", "2026-01-04 00:00:00"),
        ("0 0 * * fri-sat", "2026-01-04 00:00:00", "2026-01-09 00:00:00"),
        ("0 0 13 * fri", "2026-01-01 00:00:00", "2026-01-02 00:00:00"),
        ("0 0 13 * fri", "2026-01-10 00:00:00", "2026-01-13 00:00:00"),
        ("0 0 29 feb *", "2096-03-01 00:00:00", "2104-02-29 00:00:00"),
        ("0 0 31 */2 *", "2026-02-01 00:00:00", "2026-03-31 00:00:00"),
        ("@hourly", "2026-01-01 00:00:00", "2026-01-01 01:00:00"),
        ("@daily", "2026-12-31 00:00:01", "2027-01-01 00:00:00"),
        ("@weekly", "2026-01-01 00:00:00", "2026-01-04 00:00:00"),
        ("@monthly", "2026-01-01 00:00:00", "2026-02-01 00:00:00"),
        ("@yearly", "2026-01-01 00:00:00", "2027-01-01 00:00:00"),
    ],
)
def test_the_next_time(schedule: str, now: str, following: str) -> None:
    assert cron.backoff_ms(schedule, 0, ms(now)) == ms(following) - ms(now)


@pytest.mark.parametrize("stepped_back_s", [0, 1, 59, 3600])
def test_a_minute_comes_once_though_the_clock_steps_back(stepped_back_s: int) -> None:
    began, stepped = ms("2026-01-01 03:07"), stepped_back_s * 1000
    assert cron.backoff_ms("7 3 * * *", began, began - stepped) == 24 * 3_600_000 + stepped


@pytest.mark.parametrize(
    ("schedule", "since_ms", "pause_ms"),
    [
        ("@every 90s", 0, 90_000),
        ("@every 90s", 1_000, 89_000),
        ("@every 90s", 90_000, 90_000),
        ("@every 90s", 200_000, 70_000),
        ("@every 1h30m", 0, 5_400_000),
        ("@every 90s", -5, 90_000),
    ],
)
def test_intervals_count_from_the_run_before(schedule: str, since_ms: int, pause_ms: int) -> None:
    assert cron.backoff_ms(schedule, 1_000_000, 1_000_000 + since_ms) == pause_ms


@pytest.mark.parametrize(
    "schedule",
    [
        "",
        "* * * *",
        "* * * * * *",
        "60 * * * *",
        "* 24 * * *",
        "* * 0 * *",
        "* * * 13 *",
        "* * * * 8",
        "5-1 * * * *",
        "*/0 * * * *",
        "*/ * * * *",
        "a * * * *",
        "-1 * * * *",
        "1- * * * *",
        ", * * * *",
        "٣ * * * *",
        "0 0 30 feb *",
        "@never",
        "@every",
        "@every 0s",
        "@every 5",
        "@every 1d",
    ],
)
def test_what_is_no_schedule_is_refused(schedule: str) -> None:
    with pytest.raises(InvalidArgument, match="cron_schedule"):
        cron.read(schedule)


@given(
    st.sampled_from(["* * * * *", "7 3 * * *", "0 0 1 1 *", "@every 17s", "0 0 29 2 *"]),
    st.integers(0, 4_000_000_000_000),
)
def test_the_next_time_is_always_ahead(schedule: str, now_ms: int) -> None:
    pause_ms = cron.backoff_ms(schedule, 0, now_ms)
    assert pause_ms > 0
    if not schedule.startswith("@"):
        assert (now_ms + pause_ms) % 60_000 == 0
