from __future__ import annotations

import json
import signal
import threading
from pathlib import Path

import pytest

from tests.cli.conftest import FullDisk, Invoke, NoThread
from tq_broker.cli import exits
from tq_broker.cli import history as history_module
from tq_broker.cli.signals import Events
from tq_broker.client import BlockingClient
from tq_broker.history.service import HistoryService
from tq_broker.stores.opening import open_store

QUICK = ("--wait", "1s")


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'history.sqlite'}"


@pytest.fixture
def ended_at_once(monkeypatch: pytest.MonkeyPatch, signals_kept: None) -> None:
    """A signal is waiting when the service is ready."""

    class Ended(Events):
        def listen(self, numbers: object) -> None:
            self.put(signal.SIGTERM)

    monkeypatch.setattr(history_module, "Events", Ended)


@pytest.mark.usefixtures("ended_at_once")
@pytest.mark.parametrize("command", [("history",), ("history", "run")])
def test_it_runs_until_a_signal(
    invoke: Invoke, store: str, settled: list[None], command: tuple[str, ...]
) -> None:
    answer = invoke(*command, "--store", store, "--name", "h1")
    assert answer.exit_code == 0, answer.output
    assert len(settled) == 1
    assert answer.stdout.endswith("h1 ready\n")
    assert store in answer.stdout


@pytest.mark.usefixtures("ended_at_once")
def test_options_may_stand_before_the_command(invoke: Invoke, store: str) -> None:
    answer = invoke("history", "--store", store, "-n", "h1", "run", "--json")
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert (told["event"], told["history"], told["store"]) == ("ready", "h1", store)


def test_a_store_is_needed(invoke: Invoke) -> None:
    answer = invoke("history")
    assert answer.exit_code == 2
    assert "TQ_BROKER_STORE" in answer.stderr


def test_a_wrong_store_is_said(invoke: Invoke) -> None:
    answer = invoke("history", "--store", "mysql://x")
    assert answer.exit_code == 2
    assert "store url" in answer.stderr


def test_a_schema_that_is_missing_is_said(invoke: Invoke, store: str) -> None:
    answer = invoke("history", "--store", store, "--no-migrate")
    assert answer.exit_code == exits.USAGE
    assert "migrate" in answer.stderr


def test_a_place_that_is_refused_is_said(invoke: Invoke, tmp_path: Path) -> None:
    nowhere = f"sqlite:///{tmp_path}/no/such/place"
    for command in (("history",), ("history", "migrate")):
        answer = invoke(*command, "--store", nowhere)
        assert answer.exit_code == exits.REFUSED
        assert answer.stderr == f"tq-broker: store {nowhere}: unable to open database file\n"


def test_migrate(invoke: Invoke, store: str) -> None:
    first = json.loads(invoke("history", "migrate", "--store", store, "--json").stdout)
    assert first["before"] == 0 < first["after"]
    answer = invoke("history", "--store", store, "migrate")
    assert "up to date" in answer.stdout


def test_nobody_owns_a_shard(invoke: Invoke) -> None:
    answer = invoke("history", "status", *QUICK)
    assert answer.exit_code == 5
    assert "no answer from the owner of any shard" in answer.stderr


def test_status(invoke: Invoke, client: BlockingClient) -> None:
    store = open_store("memory://", "default")
    with HistoryService(client, store, identity="h1"):
        answer = invoke("history", "status", "--json", "--wait", "20s")
        assert answer.exit_code == 0, answer.output
        told = json.loads(answer.stdout)
        assert [one["owner"] for one in told] == ["h1"] * 16
        assert {one["inbox"] for one in told} == {0}
        lines = invoke("history", "status", "--wait", "20s").stdout.splitlines()
        assert lines[3].split("\t")[:2] == ["3", "h1"]


def test_a_second_signal_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = threading.Event()
    codes: list[int] = []

    class Hanging:
        shards = (1, 2)

        def stop(self) -> None:
            hangs.wait()

    events = Events()
    events.put(signal.SIGTERM)
    events.put(signal.SIGTERM)
    monkeypatch.setattr(history_module.os, "_exit", codes.append)
    history_module._serve(Hanging(), events)  # type: ignore[arg-type]
    hangs.set()
    assert codes == [1]


class Quick:
    """A service that ends at once, in the way that ``error`` says."""

    shards = (1, 2)

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1
        if self.error is not None:
            raise self.error


def serve(service: Quick) -> None:
    events = Events()
    events.put(signal.SIGTERM)
    history_module._serve(service, events)  # type: ignore[arg-type]


def test_it_ends_in_order_when_nobody_can_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found: its database was closed while it was running."""
    monkeypatch.setattr("sys.stderr", FullDisk())
    service = Quick()
    serve(service)
    assert service.stops == 1


def test_it_ends_in_order_without_a_thread_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "Thread", NoThread)
    service = Quick()
    serve(service)
    assert service.stops == 1


def test_it_ends_when_it_cannot_end_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Found: it waited for another signal."""
    told = threading.Event()
    monkeypatch.setattr(threading, "excepthook", lambda _: told.set())
    serve(Quick(ValueError("broken")))
    assert told.wait(5.0)
