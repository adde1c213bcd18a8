from __future__ import annotations

import msgspec
import pytest

from tests.history.test_records import TASK, TO
from tq_broker.common import OnGone, Route
from tq_broker.history import mailing
from tq_broker.history.records import ShardRecord
from tq_broker.model import requests
from tq_broker.model.envelope import share
from tq_broker.model.events import Event, TimerFired, WorkflowExecutionStarted, dump_events
from tq_broker.model.names import Names
from tq_broker.model.requests import Done, Echo, SignalWorkflow, shard_of
from tq_broker.model.tasks import dump_route
from tq_broker.model.workflow_tasks import EventsPage, read_task
from tq_broker.stores.store import EventRow

NAMES = Names("n")
STARTED = WorkflowExecutionStarted(
    event_id=1,
    time_ms=1,
    workflow_type="W",
    task_queue="q",
    workflow_id="w",
    run_id="r",
    first_run_id="r",
    continued_run_id=None,
    priority=2,
    fairness_key="acme",
    fairness_weight=4.0,
)


def events(first: int, last: int) -> list[Event]:
    return [
        TimerFired(event_id=number, time_ms=1, timer_id="t" * 50, started_event_id=1)
        for number in range(first, last + 1)
    ]


def row(first: int, last: int) -> EventRow:
    return EventRow("r", first, last - first + 1, dump_events(events(first, last)))


def test_a_page_is_what_was_asked_for() -> None:
    rows = [row(1, 3), row(4, 6)]
    assert mailing.page(rows, 2, 5) == events(2, 5)
    assert mailing.page([], 1, 9) == []
    assert mailing.events_page(rows, 5, 6).events == events(5, 6)


def test_a_row_that_is_larger_than_a_message_is_given_in_parts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailing, "PAGE_BYTES", 3 * len(dump_events(events(1, 1))))
    rows = [row(1, 9)]
    assert mailing.events_page(rows, 1, 9) == EventsPage(events(1, 3), 9)
    assert mailing.page(rows, 4, 9) == events(4, 6)
    assert mailing.page(rows, 8, 9) == events(8, 9)


def test_as_much_goes_into_a_message_as_fits() -> None:
    size = len(dump_events(events(1, 1)))
    assert mailing.fitting(events(1, 9), 3 * size) == events(1, 3)
    assert mailing.fitting(events(1, 9), 1) == events(1, 1)
    assert mailing.fitting([], 1) == []


def test_an_echo_goes_to_its_own_shard() -> None:
    publication, needs = mailing.echo(NAMES, Echo(epoch=7, sent_ms=5), 3, "m")
    assert publication.routing_key == NAMES.history(3).key
    assert needs == (NAMES.history(3),)
    assert requests.read_request(publication.message) == Echo(epoch=7, sent_ms=5)


def test_a_task_for_everybody() -> None:
    publication, needs = mailing.workflow_task(NAMES, TASK, events(1, 2), "x", STARTED)
    assert publication.routing_key == "workflow.q"
    assert needs == (NAMES.workflow("q"),)
    assert publication.message.message_id == "r/2/1"
    assert read_task(publication.message).events == events(1, 2)
    assert publication.message.priority == 5
    assert share(publication.message) == ("acme", 4.0)


def test_a_task_that_has_fallen_back_is_for_everybody() -> None:
    route = dump_route(Route.host("h", on_gone=OnGone.FALL_BACK))
    started = msgspec.structs.replace(STARTED, route=route)
    fallen = msgspec.structs.replace(TASK, fell_back=["nobody at h"])
    plain = NAMES.workflow("q")
    assert mailing.workflow_task(NAMES, TASK, [], "x", started)[1] != (plain,)
    assert mailing.workflow_task(NAMES, fallen, [], "x", started)[1] == (plain,)


def test_a_task_for_a_sticky_worker() -> None:
    sticky = msgspec.structs.replace(TASK, sticky="w1")
    publication, needs = mailing.workflow_task(NAMES, sticky, [], "x", STARTED)
    assert publication.exchange == "tq.n.sticky"
    assert publication.routing_key == "sticky.w1.3"
    assert needs == ()


def test_queries_have_an_id_of_their_own() -> None:
    query = msgspec.structs.replace(TASK, scheduled_event_id=0)
    publication, _ = mailing.workflow_task(NAMES, query, [], "x", STARTED)
    assert publication.message.message_id == "x"


def test_an_answer() -> None:
    publication, needs = mailing.answer(NAMES, TO, Done(run_id="r"), "x")
    assert (publication.exchange, publication.routing_key) == ("tq.n.replies", TO.reply_to)
    assert publication.message.correlation_id == TO.correlation_id
    assert requests.read_reply(publication.message) == Done(run_id="r")
    assert needs == ()


def test_a_request_to_another_run_is_the_same_when_it_is_sent_again() -> None:
    request = SignalWorkflow(workflow_id="other", signal_name="s")
    record = ShardRecord("other", request)
    first, needs = mailing.to_shard(NAMES, record, 3, 17)
    again, _ = mailing.to_shard(NAMES, record, 3, 17)
    assert first == again
    assert needs == (NAMES.history(shard_of("other")),)
    assert first.routing_key == f"history.{shard_of('other')}"
    assert requests.read_request(first.message) == request
