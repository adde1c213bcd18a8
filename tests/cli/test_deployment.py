"""``tq-broker deployment``: words and exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.cli.conftest import Invoke
from tq_broker.cli.application import load_application
from tq_broker.client import BlockingClient
from tq_broker.worker import Worker

QUICK = ("--wait", "0.2s")


@pytest.fixture
def shop(client: BlockingClient, app: str) -> Iterator[None]:
    """Two versions, each with a worker."""
    workers = [
        Worker(
            client,
            task_queues=["math"],
            activities=load_application(app).activities,
            identity=build_id,
            deployment="shop",
            build_id=build_id,
            reclaim_after=None,
        )
        for build_id in ("v1", "v2")
    ]
    for worker in workers:
        worker.start()
    yield
    for worker in workers:
        worker.stop()


def test_nothing_is_listed_where_nothing_is(invoke: Invoke) -> None:
    assert invoke("deployment", "list").stdout == ""
    answer = invoke("deployment", "describe", "shop", *QUICK)
    assert answer.exit_code == 5
    assert "there is no deployment 'shop'" in answer.stderr


@pytest.mark.usefixtures("shop")
def test_a_version_is_set_ramped_and_described(invoke: Invoke) -> None:
    done = invoke("deployment", "set-current", "shop", "v1", "--reason", "first", *QUICK)
    assert done.stdout == "v1 is the current version of shop\n"
    ramped = ("deployment", "set-ramping", "shop", "v2", "--percent", "7.5", *QUICK)
    assert "v2 ramps to 7.5 % of shop" in invoke(*ramped).stdout
    assert "shop\tv1\tv2 7.5 %\t2" in invoke("deployment", "list").stdout
    shown = invoke("deployment", "describe", "shop", *QUICK).stdout
    assert "v1\tcurrent\t1\t0\t0\tmath (activity)" in shown
    assert "v2\tramping 7.5 %\t1" in shown
    told = json.loads(invoke("deployment", "describe", "shop", "--json", *QUICK).stdout)
    assert (told["current"], told["ramping"]) == ("v1", "v2")
    assert {one["state"] for one in told["versions"]} == {"current", "ramping"}
    history = invoke("deployment", "describe", "shop", "--history", *QUICK).stdout
    assert "current v1, ramping v2 7.5 %" in history
    assert "first" in history
    ended = invoke("deployment", "set-ramping", "shop", "--end", *QUICK)
    assert ended.stdout == "no version ramps of shop\n"


@pytest.mark.usefixtures("shop")
def test_what_is_refused_is_told_with_its_reason(invoke: Invoke) -> None:
    for arguments, code, why in (
        (("set-current", "shop", "v9"), 5, "has no version 'v9' (there are: v1, v2)"),
        (("set-current", "shop", "__unversioned__"), 2, "no living worker"),
        (("set-ramping", "shop", "v1"), 2, "say BUILD and --percent, or --end"),
        (("set-ramping", "shop", "v1", "--end"), 2, "say BUILD and --percent, or --end"),
        (("set-ramping", "shop", "v1", "--percent", "101"), 2, "it must be from 0 to 100"),
        (("delete", "shop", "v1"), 2, "has living workers: v1; stop them first"),
    ):
        answer = invoke("deployment", *arguments, *QUICK)
        assert (answer.exit_code, why in answer.stderr) == (code, True), answer.stderr
    forced = invoke(
        "deployment", "set-current", "shop", "__unversioned__", "--force", "--json", *QUICK
    )
    assert "no living worker" in forced.stderr
    assert json.loads(forced.stdout)["findings"][0]["refuses"] is True


def test_a_version_that_nobody_needs_is_deleted(
    invoke: Invoke, client: BlockingClient, app: str
) -> None:
    worker = Worker(
        client,
        task_queue="math",
        activities=load_application(app).activities,
        deployment="shop",
        build_id="v1",
    )
    with worker:
        pass
    done = invoke("deployment", "delete", "shop", "v1", "--json", *QUICK)
    assert json.loads(done.stdout) == {"deployment": "shop", "deleted": "v1", "findings": []}
    assert json.loads(invoke("deployment", "list", "--json").stdout)[0]["versions"] == []
