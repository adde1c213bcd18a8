from __future__ import annotations

import http.client
import json
import signal
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from tests.cli.conftest import Invoke
from tq_broker.cli.endpoint import Endpoint
from tq_broker.cli.signals import Events
from tq_broker.client.observer import Observer
from tq_broker.exceptions import AccessRefused
from tq_broker.model.figures import Figures
from tq_broker.queues.settings_log import SettingsLog

QUICK = ("--wait", "50ms")


@pytest.mark.usefixtures("worker")
def test_figures_are_told_once(invoke: Invoke) -> None:
    line = invoke("task-queue", "figures", *QUICK).stdout
    assert line == "math\tactivity\t0\t0.0s\t0\t0\t1\t0/100\t-\tnone\tno\n"
    (told,) = json.loads(invoke("task-queue", "figures", "math", "--json", *QUICK).stdout)
    assert (told["task_queue"], told["workflow"]) == ("math", None)
    assert (told["activity"]["slots"], told["activity"]["backlog"]) == (100, 0)
    assert json.loads(invoke("task-queue", "figures", "none", "--json", *QUICK).stdout) == []


@pytest.mark.usefixtures("worker")
def test_limits_and_pauses_are_told(invoke: Invoke) -> None:
    invoke("task-queue", "config", "set", "math", "--rate", "2.5", "--concurrency", "3")
    assert "\t2.5/s, 3 at once\tsetting\tno\n" in invoke("task-queue", "figures", *QUICK).stdout
    invoke("task-queue", "pause", "math")
    assert "\tpaused\tsetting\tno\n" in invoke("task-queue", "figures", *QUICK).stdout


@pytest.mark.usefixtures("worker")
def test_what_is_not_known_of_the_settings_is_told(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "settings log" not in invoke("task-queue", "figures", *QUICK).stderr
    monkeypatch.setattr(SettingsLog, "fault", "torn")
    assert "settings log: torn\n" in invoke("task-queue", "figures", *QUICK).stderr
    (told,) = json.loads(invoke("task-queue", "figures", "--json", *QUICK).stdout)
    assert told["activity"]["settings_fault"] == "torn"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--listen", "nowhere"), "is not an address"),
        (("--listen", "127.0.0.1:0", "--every", "10ms"), "must be from 1s to 5m"),
        (("--listen", "127.0.0.1:0", "--every", "6m"), "must be from 1s to 5m"),
        (("--listen", "127.0.0.1:0", "--every", "1s", "--wait", "2s"), "must not be longer"),
    ],
)
@pytest.mark.usefixtures("signals_kept")
def test_bad_options_are_refused(invoke: Invoke, arguments: tuple[str, ...], words: str) -> None:
    answer = invoke("task-queue", "figures", *arguments)
    assert answer.exit_code == 2
    assert words in answer.stderr


@pytest.mark.usefixtures("worker", "signals_kept")
def test_programs_are_told_until_a_signal_comes(
    invoke: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoints: list[Endpoint] = []
    told = Endpoint.tell
    waits: list[float] = []
    read: list[Any] = []

    def tell(self: Endpoint, figures: Sequence[Figures]) -> None:
        told(self, figures)
        endpoints.append(self)

    def following(self: Events, timeout_s: float | None = None) -> Any:
        waits.append(timeout_s or 0.0)
        connection = http.client.HTTPConnection(*endpoints[-1].address, timeout=20)
        connection.request("GET", "/figures/math")
        read.append(json.loads(connection.getresponse().read()))
        connection.close()
        return signal.SIGTERM if len(waits) == 3 else None

    look = Observer.look

    def sometimes(self: Observer, wait_s: float) -> list[Figures]:
        if len(waits) == 1:
            raise AccessRefused("it starts")
        return look(self, wait_s)

    monkeypatch.setattr(Endpoint, "tell", tell)
    monkeypatch.setattr(Events, "next", following)
    monkeypatch.setattr(Observer, "look", sometimes)
    answer = invoke("task-queue", "figures", "--listen", "127.0.0.1:0", "--every", "1s", *QUICK)
    assert answer.exit_code == 0
    assert "figures of default at http://127.0.0.1:" in answer.stderr
    assert [one["activity"]["workers"] for one in read] == [1, 1, 1]
    assert len(endpoints) == 2, "a look that failed tells nothing"
    assert all(0 <= wait <= 1.0 for wait in waits)
    assert not any(thread.name == "tq-endpoint" for thread in threading.enumerate())


@pytest.mark.usefixtures("signals_kept")
def test_who_is_never_let_in_is_told_so(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(self: Observer, wait_s: float) -> list[Figures]:
        raise AccessRefused("not you")

    monkeypatch.setattr(Observer, "look", refused)
    answer = invoke("task-queue", "figures", "--listen", "127.0.0.1:0")
    assert answer.exit_code != 0
    assert "not you" in answer.stderr
