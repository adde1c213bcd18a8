from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.history.runs import NOW_MS, begin
from tq_broker.history import reading
from tq_broker.history.cache import Held
from tq_broker.history.letters import Letter
from tq_broker.history.reading import Reader
from tq_broker.model.requests import (
    Count,
    CountWorkflows,
    Describe,
    FetchHistory,
    Listing,
    ListWorkflows,
    Refused,
    ShardInfo,
    ShardStatus,
)
from tq_broker.model.workflow_tasks import EventsPage, FetchEvents, RunKey
from tq_broker.stores.memory import MemoryDatabase, MemoryStore
from tq_broker.stores.store import Batch, EventRow

SHARD = 3
dump = msgspec.msgpack.encode


@pytest.fixture
def reader() -> Reader:
    store = MemoryStore(MemoryDatabase(), "n")
    epochs = {one.shard: one.epoch for one in store.acquire([SHARD], "me", NOW_MS)}
    batch = Batch(epochs)
    for name in ("a", "b", "c"):
        run, step = begin(name, f"r-{name}")
        batch.runs = [*batch.runs, Held(run, SHARD).row(NOW_MS)]
        batch.events = [
            *batch.events,
            EventRow(f"r-{name}", step.first_event_id, len(step.events), step.data),
        ]
    store.commit(batch)
    about = ShardInfo(shard=SHARD, owner="me", epoch=1, cached_runs=5)
    return Reader(store, lambda _shard: about, lambda: NOW_MS)


def ask(reader: Reader, content: Any, workflow_id: str = "", run_id: str = "") -> Any:
    return reader.answer(
        Letter(
            shard=SHARD,
            message_id="m",
            content=content,
            workflow_id=workflow_id,
            run_id=run_id,
        )
    )


def test_events_by_run_and_by_workflow(reader: Reader) -> None:
    page = ask(reader, FetchEvents(run=RunKey("a", "r-a"), first_event_id=2), "a", "r-a")
    assert isinstance(page, EventsPage)
    assert [event.event_id for event in page.events] == [2]
    assert page.last_event_id == 2
    assert ask(reader, FetchHistory(workflow_id="a"), "a").events[0].event_id == 1
    beyond = FetchHistory(workflow_id="a", first_event_id=9)
    assert ask(reader, beyond, "a") == EventsPage([], 2)


def test_no_such_history(reader: Reader) -> None:
    nobody = FetchEvents(run=RunKey("x", "r-a"))
    assert ask(reader, nobody, "x", "r-a") == EventsPage([], found=False)
    refused = ask(reader, FetchHistory(workflow_id="x"), "x")
    assert isinstance(refused, Refused)
    assert (refused.reason, refused.workflow_id) == ("not_found", "x")


def test_lists_in_pages(reader: Reader) -> None:
    first = ask(reader, ListWorkflows(page_size=2))
    assert isinstance(first, Listing)
    last = ask(reader, ListWorkflows(page_size=2, page_token=first.page_token))
    assert last.page_token == ""
    assert sorted(run.workflow_id for run in first.runs + last.runs) == ["a", "b", "c"]
    assert len(ask(reader, ListWorkflows(page_size=-1)).runs) == 1


def test_a_page_of_a_list_ends_where_its_message_is_full(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(dump(ask(reader, ListWorkflows()).runs[0]))
    for fit, pages in ((2 * size, [2, 1]), (1, [1, 1, 1])):
        monkeypatch.setattr(reading, "PAGE_BYTES", fit)
        found, token = [], ""
        for length in pages:
            page = ask(reader, ListWorkflows(page_token=token))
            assert len(page.runs) == length
            found += [run.workflow_id for run in page.runs]
            token = page.page_token
        assert token == ""
        assert sorted(found) == ["a", "b", "c"]


def test_counts(reader: Reader) -> None:
    assert ask(reader, CountWorkflows()) == Count(count=3)
    parts = ask(reader, CountWorkflows(query="group by status"))
    assert parts == Count(count=3, groups={"running": 3})


def test_a_shard(reader: Reader) -> None:
    info = ask(reader, ShardStatus())
    assert (info.owner, info.cached_runs, info.open_runs) == ("me", 5, 3)


@pytest.mark.parametrize(
    "request_",
    [ListWorkflows(query="?"), CountWorkflows(query="?"), ListWorkflows(page_token="[]")],
)
def test_what_cannot_be_read_is_refused(reader: Reader, request_: Any) -> None:
    assert ask(reader, request_).reason == "invalid_argument"


def test_other_questions_are_not_for_here(reader: Reader) -> None:
    with pytest.raises(AssertionError, match="Describe"):
        ask(reader, Describe(workflow_id="a"))
