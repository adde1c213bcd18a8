"""What users may set."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.common import (
    DURATION_MAX,
    ActivityOptions,
    ActivityOptionsDict,
    AutoUpgradeVersioningOverride,
    OnGone,
    PinnedVersioningOverride,
    Requires,
    RetryPolicy,
    Route,
    TargetKind,
    WorkerDeploymentVersion,
    check_duration,
    inherited_headers,
    options_from,
    to_ms,
    versioning_override,
)
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import encode_part

durations = st.timedeltas(timedelta(milliseconds=1), DURATION_MAX)


@given(durations)
def test_a_duration_within_its_bounds_is_accepted_and_never_rounded_to_nothing(
    value: timedelta,
) -> None:
    assert check_duration("it", value) == value
    assert to_ms(value) >= 1
    assert timedelta(0) <= timedelta(milliseconds=to_ms(value)) - value < timedelta(milliseconds=1)


@pytest.mark.parametrize("value", [timedelta(0), timedelta(seconds=-1), timedelta(microseconds=9)])
def test_a_duration_below_its_bound_is_refused(value: timedelta) -> None:
    with pytest.raises(InvalidArgument, match=r"it is .* at least 0:00:00.001000 and at most 3650"):
        check_duration("it", value)


@pytest.mark.parametrize("value", [3, 3.0, "3s", None])
def test_a_number_is_no_duration(value: object) -> None:
    with pytest.raises(InvalidArgument, match="it must be a timedelta"):
        check_duration("it", value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"initial_interval": timedelta(0)}, "initial_interval"),
        ({"initial_interval": 1}, "initial_interval must be a timedelta"),
        ({"backoff_coefficient": 0.9}, "backoff_coefficient is 0.9; it must be from 1 to 1000"),
        ({"backoff_coefficient": float("nan")}, "backoff_coefficient is nan"),
        ({"backoff_coefficient": float("inf")}, "backoff_coefficient is inf"),
        ({"backoff_coefficient": True}, "backoff_coefficient must be a number"),
        ({"backoff_coefficient": "2"}, "backoff_coefficient must be a number"),
        ({"maximum_interval": timedelta(milliseconds=999)}, "maximum_interval .* at least 0:00:01"),
        ({"maximum_attempts": -1}, r"maximum_attempts is -1; it must be 0 \(no bound\) or more"),
        ({"maximum_attempts": True}, "maximum_attempts is True"),
        ({"maximum_attempts": 1.5}, "maximum_attempts is 1.5"),
        ({"non_retryable_error_types": "ValueError"}, "must be a sequence of strings"),
        ({"non_retryable_error_types": [ValueError]}, "must be a sequence of strings"),
        ({"non_retryable_error_types": ["E" * 15_997]}, "16001 characters .* bound is 16000"),
        ({"non_retryable_error_types": [""] * 5_000}, "20000 characters .* bound is 16000"),
    ],
)
def test_a_wrong_retry_policy_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        RetryPolicy(**fields)


def test_the_defaults_of_a_retry_policy_are_temporals() -> None:
    policy = RetryPolicy()
    assert policy.initial_interval == timedelta(seconds=1)
    assert policy.backoff_coefficient == 2
    assert (policy.maximum_interval, policy.maximum_attempts) == (None, 0)


def test_a_route_names_a_host_or_a_process() -> None:
    assert Route.host("h") == Route(TargetKind.HOST, "h", OnGone.FAIL, None)
    waits = Route.process("p", on_gone=OnGone.WAIT, wait=timedelta(seconds=1))
    assert (waits.kind, waits.wait) == (TargetKind.PROCESS, timedelta(seconds=1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host", "h"), "route.kind must be a TargetKind"),
        ((TargetKind.HOST, ""), "route.host must be a non-empty string"),
        ((TargetKind.PROCESS, 3), "route.process must be a non-empty string"),
        ((TargetKind.HOST, "h", "fail"), "route.on_gone must be an OnGone"),
        ((TargetKind.HOST, "h", OnGone.WAIT), "route.wait is needed with OnGone.WAIT and only"),
        ((TargetKind.HOST, "h", OnGone.FAIL, timedelta(1)), "route.wait is needed with"),
        ((TargetKind.HOST, "h", OnGone.WAIT, timedelta(0)), "route.wait is 0:00:00"),
    ],
)
def test_a_wrong_route_is_refused(arguments: Any, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Route(*arguments)


def test_headers_of_the_call_are_laid_over_those_of_the_decorator() -> None:
    call = ActivityOptions(headers={"a": "1", "b": "2"})
    assert call.over(ActivityOptions(headers={"b": "0", "c": "3"})).headers == {
        "a": "1", "b": "2", "c": "3"
    }  # fmt: skip
    assert ActivityOptions().over(call).headers == call.headers
    assert inherited_headers({"a": "0", "d": "4"}, call.headers) == {"a": "1", "b": "2", "d": "4"}
    assert inherited_headers({}, None) == {}


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {"": "a"}, "a=b", {"a": "x" * 4_000}])
def test_headers_are_short_texts_by_name(headers: Any) -> None:
    with pytest.raises(InvalidArgument, match="headers"):
        ActivityOptions(headers=headers)


def test_an_unknown_option_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        InvalidArgument, match=r"option 'timeout'; known are: affinity, affinity_group, .*"
    ):
        options_from({"timeout": 3})


options = st.builds(
    ActivityOptions,
    task_queue=st.none() | st.text(),
    priority=st.none() | st.integers(1, 5),
    start_to_close_timeout=st.none() | durations,
    heartbeat_timeout=st.none() | durations,
    retry_policy=st.none() | st.just(RetryPolicy(maximum_attempts=3)),
)


@given(options, options)
def test_what_is_said_wins_and_the_rest_comes_from_the_defaults(
    said: ActivityOptions, defaults: ActivityOptions
) -> None:
    both = said.over(defaults)
    for name in ActivityOptionsDict.__annotations__:
        mine = getattr(said, name)
        assert getattr(both, name) == (getattr(defaults, name) if mine is None else mine)


@given(options)
def test_saying_nothing_changes_nothing(defaults: ActivityOptions) -> None:
    assert ActivityOptions().over(defaults) == defaults
    assert defaults.over(ActivityOptions()) == defaults


def test_the_keywords_are_the_options() -> None:
    assert set(ActivityOptionsDict.__annotations__) == set(ActivityOptions.__dataclass_fields__)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"affinity": "planet"}, "affinity is 'planet'; it must be one of: host, process"),
        ({"on_lost": "cry"}, "on_lost is 'cry'; it must be one of: fail, restart_affinity, wait"),
        ({"affinity_group": ""}, "affinity_group must be a non-empty"),
        ({"affinity_group": 3}, "affinity_group must be a non-empty"),
        ({"affinity_group": "é" * 101}, "affinity_group is 202 bytes long; the bound is 200"),
        ({"affinity": "host", "route": Route.host("h")}, "route and affinity exclude each other"),
    ],
)
def test_an_affinity_is_checked(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        ActivityOptions(**options)


def test_a_route_takes_the_place_of_an_affinity_and_the_other_way_round() -> None:
    route = ActivityOptions(route=Route.host("h"), priority=1)
    affinity = ActivityOptions(affinity="host", affinity_group="g", on_lost="wait", priority=2)
    assert route.over(affinity) == route
    assert affinity.over(route) == affinity
    assert ActivityOptions(on_lost="fail").over(affinity).affinity == "host"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"version": 4}, "version is 4; it must be a PinnedVersioningOverride, an"),
        ({"version": "shop"}, "must be a deployment's name, a dot and a build id"),
        ({"version": "a.1", "route": Route.host("h")}, "version, route and affinity exclude each"),
        ({"version": "a.1", "affinity": "host"}, "version, route and affinity exclude each other"),
        ({"version": "auto_upgrade", "route": Route.host("h")}, "exclude each other"),
    ],
)
def test_a_version_is_checked(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InvalidArgument, match=complaint):
        ActivityOptions(**options)


def test_a_version_is_a_route_and_takes_the_place_of_any_other() -> None:
    version = ActivityOptions(version=WorkerDeploymentVersion("a", "1"))
    assert version.place == Route.version("a.1") == ActivityOptions(version="a.1").place
    route, affinity = ActivityOptions(route=Route.host("h")), ActivityOptions(affinity="host")
    for other in (route, affinity):
        assert version.over(other) == version
        assert other.over(version) == other
    assert ActivityOptions(version="a.2").over(version).place == Route.version("a.2")
    assert ActivityOptions().over(version).place == Route.version("a.1")


def test_an_activity_is_free_of_versions_by_what_is_said_last() -> None:
    free = ActivityOptions(version="auto_upgrade")
    assert free.auto_upgrade
    assert free.place is None
    assert ActivityOptions(version=AutoUpgradeVersioningOverride()).auto_upgrade
    bound = [ActivityOptions(version="a.1"), ActivityOptions(route=Route.host("h"))]
    for other in (*bound, ActivityOptions(affinity="host", affinity_group="g")):
        assert free.over(other) == free
        assert not other.over(free).auto_upgrade
    assert ActivityOptions().over(free).auto_upgrade
    pinned = ActivityOptions(version=PinnedVersioningOverride(WorkerDeploymentVersion("a", "1")))
    assert pinned.place == Route.version("a.1")


@pytest.mark.parametrize(
    ("said", "text"),
    [
        (None, ""),
        ("shop.1.4", "shop.1.4"),
        ("auto_upgrade", "auto_upgrade"),
        (WorkerDeploymentVersion("shop", "2"), "shop.2"),
        (PinnedVersioningOverride(WorkerDeploymentVersion("shop", "2")), "shop.2"),
        (AutoUpgradeVersioningOverride(), "auto_upgrade"),
    ],
)
def test_an_override_is_one_text(said: object, text: str) -> None:
    assert versioning_override("version", said) == text


@pytest.mark.parametrize(
    ("said", "why"), [(3, "version is 3; it must be a Pinned"), ("shop", "a dot and a build id")]
)
def test_what_overrides_nothing_is_refused(said: object, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        versioning_override("version", said)


# --- what is required -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "why"),
    [
        ({"requires": "gpu"}, "requires must be a set of names"),
        ({"requires": 1}, "requires must be a set of names"),
        ({"requires": [""]}, "non-empty strings only"),
        ({"requires": {1}}, "non-empty strings only"),
        ({"requires": [str(number) for number in range(9)]}, "9 capabilities; the bound is 8"),
    ],
)
def test_bad_requirements_are_refused(keywords: Any, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        ActivityOptions(**keywords)


def test_the_answer_to_a_requirement_is_checked() -> None:
    with pytest.raises(InvalidArgument, match=r"requires\.on_gone must be an OnGone"):
        Requires({"gpu"}, "fail")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"requires\.wait is for OnGone\.WAIT only"):
        Requires({"gpu"}, OnGone.FAIL, timedelta(seconds=1))
    with pytest.raises(InvalidArgument, match=r"requires\.wait"):
        Requires({"gpu"}, wait=timedelta(0))


def test_a_set_is_short_for_waiting_for_ever() -> None:
    said = Requires.of(["ssd", "gpu", "gpu"])
    assert said is not None
    assert (said.names, said.is_patient) == (("gpu", "ssd"), True)
    assert Requires.of(said) is said
    assert Requires.of(None) is None
    assert Requires.of(set()) is None
    assert not Requires({"gpu"}, OnGone.FAIL).is_patient
    assert not Requires({"gpu"}, wait=timedelta(seconds=1)).is_patient


def test_the_call_may_take_a_requirement_back() -> None:
    decorator = ActivityOptions(requires={"gpu"})
    assert ActivityOptions().over(decorator).requires == {"gpu"}
    assert ActivityOptions(requires=()).over(decorator).requires == ()


# --- deployment versions --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "build_id", "why"),
    [
        ("shop", "", "build_id is ''; it must be a non-empty string"),
        ("", "1", "deployment_name is ''"),
        ("a.b", "1", "must be without a dot"),
        ("shop", "__unversioned__", "are reserved"),
        ("shop", "1" * 80, "is 87 bytes long when encoded"),
        ("shop", "\ud800", "cannot be seen"),
        ("shop", 3, "must be a non-empty string"),
    ],
)
def test_a_version_is_checked_when_it_is_made(name: str, build_id: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        WorkerDeploymentVersion(name, build_id)


def test_a_version_is_one_text_and_comes_back_as_it_was() -> None:
    version = WorkerDeploymentVersion("shop", "1.4~rc.1")
    assert version.to_canonical_string() == "shop.1.4~rc.1"
    assert WorkerDeploymentVersion.from_canonical_string("shop.1.4~rc.1") == version
    assert Route.version(version) == Route.version("shop.1.4~rc.1")
    size = len(encode_part("shop." + "1." * 18 + "~"))
    with pytest.raises(InvalidArgument, match=f"is {size} bytes long"):
        WorkerDeploymentVersion("shop", "1." * 18 + "~")
    for wrong in ("shop", "", ".1"):
        with pytest.raises(InvalidArgument):
            Route.version(wrong)
    with pytest.raises(InvalidArgument, match=r"waits for it: OnGone\.WAIT, no bound"):
        Route(TargetKind.VERSION, "shop.1")
    with pytest.raises(InvalidArgument, match="must be a WorkerDeploymentVersion"):
        PinnedVersioningOverride("shop.1")  # type: ignore[arg-type]
