from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from tq_broker.client.workflow_start import (
    StartWorkflowOptions,
    StartWorkflowOptionsDict,
    make_options,
    make_request,
)
from tq_broker.common import (
    AutoUpgradeVersioningOverride,
    PinnedVersioningOverride,
    Requires,
    RetryPolicy,
    Route,
    WorkerDeploymentVersion,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
)
from tq_broker.converter import DEFAULT, DataConverter, ZlibCodec
from tq_broker.exceptions import InvalidArgument, PayloadTooLarge
from tq_broker.model import payload, requests
from tq_broker.model.tasks import WireRetryPolicy, dump_requires, dump_route

WHERE: dict[str, Any] = {"id": "w", "task_queue": "q"}
SECOND = timedelta(seconds=1)


def request(*args: Any, converter: DataConverter = DEFAULT, **options: Any) -> Any:
    return make_request("T", args, make_options({**WHERE, **options}), converter, "me")


def test_what_is_not_said_is_temporal_s_default() -> None:
    assert request(1) == requests.StartWorkflow(
        workflow_id="w", workflow_type="T", task_queue="q", input=b"[1]", identity="me"
    )


def test_everything_that_is_said_is_asked_for() -> None:
    told = request(
        execution_timeout=3 * SECOND,
        run_timeout=2 * SECOND,
        task_timeout=SECOND,
        id_reuse_policy=WorkflowIDReusePolicy.REJECT_DUPLICATE,
        id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
        retry_policy=RetryPolicy(maximum_attempts=3),
        memo={"a": 1},
        static_summary="s",
        static_details="d",
        start_delay=4 * SECOND,
        start_signal="go",
        start_signal_args=[1, 2],
        priority=1,
        headers={"k": "v"},
    )
    assert (told.execution_timeout_ms, told.run_timeout_ms, told.task_timeout_ms) == (
        3000,
        2000,
        1000,
    )
    assert (told.id_reuse_policy, told.id_conflict_policy) == (3, 2)
    assert told.retry_policy == WireRetryPolicy(attempts=3)
    assert (told.memo, told.static_summary, told.static_details) == ({"a": b"1"}, "s", "d")
    assert told.start_delay_ms == 4000
    assert told.signal == requests.SignalInput(signal_name="go", input=b"[1,2]", headers={"k": "v"})
    assert (told.priority, told.headers) == (1, {"k": "v"})
    assert request(cron_schedule="@every 5m").cron_schedule == "@every 5m"


def test_codecs_hide_input_and_memo() -> None:
    coded = DataConverter(codecs=(ZlibCodec(),))
    told = request("secret", converter=coded, memo={"a": "secret"})
    assert b"secret" not in told.input
    assert payload.load(told.input, coded) == ["secret"]
    assert payload.load(told.memo["a"], coded) == "secret"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"id": None}, "id is not set"),
        ({"id": ""}, "id must not be empty"),
        ({"id": 3}, "id must be a string"),
        ({"id": "a\nb"}, "id has the control"),
        ({"id": "ä" * 501}, "id is 1002 bytes long; the bound is 1000"),
        ({"task_queue": None}, "task_queue is not set"),
        ({"task_queue": "x" * 200}, "task_queue is 200 bytes"),
        ({"execution_timeout": 5}, "execution_timeout must be a timedelta"),
        ({"run_timeout": -SECOND}, "run_timeout is"),
        ({"task_timeout": 121 * SECOND}, "task_timeout is 0:02:01; the bound is 0:02:00"),
        ({"start_delay": timedelta(0)}, "start_delay is"),
        ({"start_delay": SECOND, "cron_schedule": "* * * * *"}, "start_delay cannot be used"),
        ({"id_reuse_policy": 1}, "id_reuse_policy must be a WorkflowIDReusePolicy"),
        ({"id_conflict_policy": "FAIL"}, "id_conflict_policy must be a"),
        (
            {
                "id_reuse_policy": WorkflowIDReusePolicy.TERMINATE_IF_RUNNING,
                "id_conflict_policy": WorkflowIDConflictPolicy.FAIL,
            },
            "id_conflict_policy cannot be used with id_reuse_policy TERMINATE_IF_RUNNING",
        ),
        (
            {
                "id_reuse_policy": WorkflowIDReusePolicy.REJECT_DUPLICATE,
                "id_conflict_policy": WorkflowIDConflictPolicy.TERMINATE_EXISTING,
            },
            "contradicts id_reuse_policy",
        ),
        ({"retry_policy": 3}, "retry_policy must be a RetryPolicy"),
        ({"cron_schedule": None}, "cron_schedule must be a string"),
        ({"cron_schedule": "*" * 1001}, "cron_schedule is 1001 bytes long"),
        ({"memo": [1]}, "memo must be a mapping"),
        ({"memo": {1: 2}}, "memo must be a mapping with strings"),
        ({"memo": {"a": object()}}, "cannot be sent as JSON"),
        ({"headers": {"a": 1}}, "headers must be strings by name"),
        ({"static_summary": "x" * 401}, "static_summary is 401 bytes long; the bound is 400"),
        ({"static_details": "x" * 20_001}, "static_details is 20001 bytes"),
        ({"start_signal": ""}, "start_signal must not be empty"),
        ({"start_signal_args": [1]}, "start_signal_args are given without start_signal"),
        ({"priority": 0}, "priority is 0; it must be from 1"),
        ({"priority": True}, "priority is True"),
        ({"nonsense": 1}, "unknown workflow option 'nonsense'; known are: affinity, "),
    ],
)
def test_a_wrong_option_is_refused_by_its_name(options: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidArgument, match=text):
        request(**options)


def test_what_is_too_large_is_named() -> None:
    big = "x" * payload.BYTES_MAX
    with pytest.raises(PayloadTooLarge, match="the input of workflow 'w' is"):
        request(big)
    with pytest.raises(PayloadTooLarge, match="memo 'a' is"):
        request(memo={"a": big})
    with pytest.raises(PayloadTooLarge, match="the input of signal 'go' is"):
        request(start_signal="go", start_signal_args=[big])


def test_signatures_know_every_option() -> None:
    assert set(StartWorkflowOptionsDict.__annotations__) == set(
        StartWorkflowOptions.__dataclass_fields__
    )


def test_a_run_may_be_pinned_or_freed_by_its_start() -> None:
    version = WorkerDeploymentVersion("shop", "1.4")
    for override, text in (
        (PinnedVersioningOverride(version), "shop.1.4"),
        (AutoUpgradeVersioningOverride(), "auto_upgrade"),
        (None, ""),
    ):
        assert request(versioning_override=override).versioning_override == text
    with pytest.raises(InvalidArgument, match="versioning_override must be a Pinned"):
        request(versioning_override="shop.1.4")


def test_a_version_is_short_for_an_override() -> None:
    version = WorkerDeploymentVersion("shop", "1.4")
    for said in (version, "shop.1.4", PinnedVersioningOverride(version)):
        assert request(version=said).versioning_override == "shop.1.4"
    assert request(version="auto_upgrade").versioning_override == "auto_upgrade"
    with pytest.raises(InvalidArgument, match="say the same; say one of them"):
        request(version="shop.1", versioning_override=PinnedVersioningOverride(version))
    with pytest.raises(InvalidArgument, match="version is 1; it must be a Pinned"):
        request(version=1)


def test_whom_its_activities_follow_is_said_by_the_start() -> None:
    assert request().affinity is None
    told = request(affinity="host", affinity_group="g", on_lost="wait", route=Route.host("h"))
    assert told.affinity == '{"kind":"host","group":"g","on-lost":"wait"}'
    for options, text in (
        ({"affinity": "ship"}, "affinity is 'ship'; it must be one of: host, process"),
        ({"affinity": "host", "on_lost": "x"}, "on_lost is 'x'; it must be one of: fail"),
        ({"affinity": "host", "affinity_group": "g" * 201}, "the bound is 200"),
        ({"on_lost": "wait"}, "on_lost and affinity_group need an affinity"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            request(**options)


def test_who_may_have_its_tasks_is_said_by_the_start() -> None:
    told = request(route=Route.host("h"), requires={"gpu"})
    assert (told.route, told.requires) == (
        dump_route(Route.host("h")), dump_requires(Requires({"gpu"}))
    )  # fmt: skip
    assert request(requires=()).requires is None
    for options, text in (
        ({"route": Route.version("a.b")}, "bound to a version by version="),
        ({"route": "h"}, "route must be a Route"),
        ({"route": Route.host("h" * 65)}, "the bound is 64"),
        ({"requires": "gpu"}, "requires must be a set of names"),
        ({"requires": {"x" * 99}}, "the bound is 90"),
    ):
        with pytest.raises(InvalidArgument, match=text):
            request(**options)
