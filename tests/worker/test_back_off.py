"""What a failure asks of others, and whether everybody must hear it again."""

from __future__ import annotations

from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import ApplicationError, BackOffScope, DownstreamBusy
from tq_broker.model import failure as failures
from tq_broker.model.settings import BackedOff
from tq_broker.model.tasks import ActivityTask
from tq_broker.worker import back_off

PLAIN = ActivityTask(activity_id="a", activity_type="Send", task_queue="mail", body=b"")
KEYED = ActivityTask(
    activity_id="a", activity_type="Send", task_queue="mail", body=b"", rate_limit_key="eu"
)


def busy(scope: BackOffScope = BackOffScope.TASK_QUEUE) -> failures.Failure:
    error = DownstreamBusy("429", retry_after=timedelta(seconds=30), scope=scope)
    return failures.from_exception(error)


def test_a_task_queue_is_backed_off_for_as_long_as_was_asked() -> None:
    assert back_off.asked(KEYED, busy(), 1000, "me") == BackedOff(
        task_queue="mail", until_ms=31_000, at_ms=1000, by="me", reason="Send a: 429"
    )


def test_a_key_is_backed_off_only_if_there_is_one() -> None:
    found = back_off.asked(KEYED, busy(BackOffScope.KEY), 0, "me")
    assert found is not None
    assert found.key == "eu"
    assert back_off.asked(PLAIN, busy(BackOffScope.KEY), 0, "me") is None


def test_other_failures_ask_nothing_of_others() -> None:
    error = ApplicationError("x", next_retry_delay=timedelta(seconds=30))
    assert back_off.asked(PLAIN, failures.from_exception(error), 0, "me") is None


@given(st.integers(1, 1_000), st.integers(-1_000, 1_000))
def test_what_changes_little_is_not_told_again(length_ms: int, later_ms: int) -> None:
    in_force = BackedOff("q", length_ms, 0)
    wanted = BackedOff("q", length_ms + max(later_ms, 1 - length_ms), 0)
    is_news = back_off.is_news(wanted, in_force)
    assert is_news == (wanted.until_ms * (1 - back_off.SLACK) > in_force.until_ms)
    assert back_off.is_news(wanted, None)
