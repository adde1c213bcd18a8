"""What users may set about a worker."""

from __future__ import annotations

import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest

from tq_broker.exceptions import InvalidArgument
from tq_broker.worker.options import WorkerOptions
from tq_broker.worker.tuning import SLOTS_MAX, WorkerTuner


def test_the_defaults_are_valid() -> None:
    options = WorkerOptions()
    assert options.processes == (os.cpu_count() or 1)
    assert options.host
    assert options.worker_id is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_concurrent_activities": 0}, "max_concurrent_activities is 0; .* from 1 to 10000"),
        ({"max_concurrent_activities": SLOTS_MAX + 1}, "is 10001"),
        ({"max_concurrent_activities": True}, "is True"),
        ({"max_concurrent_activities": 1.5}, "is 1.5"),
        ({"max_concurrent_workflow_tasks": 0}, "max_concurrent_workflow_tasks is 0"),
        ({"max_concurrent_workflow_tasks": 1}, "at least 2 with a cache"),
        ({"max_concurrent_local_activities": 0}, "max_concurrent_local_activities is 0"),
        (
            {"max_concurrent_activities_by_type": {"a": 0}},
            r"by_type\['a'\] is 0; .* from 1 to 10000",
        ),
        ({"max_concurrent_activities_by_type": {"a": True}}, r"by_type\['a'\] is True"),
        ({"max_concurrent_activities_by_type": {"a": float("nan")}}, r"by_type\['a'\] is nan"),
        ({"max_concurrent_activities_by_type": {"": 1}}, "must not be empty"),
        ({"max_concurrent_activities_by_type": [("a", 1)]}, "write it as {'type': 2}"),
        ({"tuner": 5}, "tuner is 5; it must be a WorkerTuner"),
        (
            {"tuner": WorkerTuner(), "max_concurrent_activities": 5},
            "max_concurrent_activities cannot be set together with tuner",
        ),
        ({"max_activities_per_second": -1}, "max_activities_per_second is -1; .* 0.001 to 10000"),
        ({"max_activities_per_second": 0}, "max_activities_per_second is 0"),
        ({"max_activities_per_second": float("nan")}, "max_activities_per_second is nan"),
        ({"max_activities_per_second": 10_001}, "max_activities_per_second is 10001"),
        ({"max_concurrent_sessions": -1}, "max_concurrent_sessions is -1; .* from 0 to 10000"),
        ({"max_cached_workflows": -1}, "max_cached_workflows is -1; it must be from 0 to 100000"),
        ({"workflow_failure_exception_types": ["X"]}, "'X', which is no exception type"),
        ({"workflow_deadlock_timeout": timedelta(0)}, "workflow_deadlock_timeout is 0:00:00"),
        ({"sticky_queue_schedule_to_start_timeout": timedelta(0)}, "sticky_queue_schedule_to_st"),
        ({"max_processes": 0}, "max_processes is 0; it must be from 1 to 1000"),
        ({"graceful_shutdown_timeout": 3}, "graceful_shutdown_timeout must be a timedelta"),
        ({"graceful_shutdown_timeout": timedelta(-1)}, "graceful_shutdown_timeout is -1 day"),
        ({"cancel_grace": timedelta(-1)}, "cancel_grace is -1 day"),
        ({"max_heartbeat_throttle_interval": timedelta(0)}, "max_heartbeat_throttle_interval"),
        ({"default_heartbeat_throttle_interval": timedelta(0)}, "default_heartbeat_throttle_int"),
        ({"lease_after": timedelta(0)}, "lease_after is 0:00:00"),
        ({"reclaim_after": timedelta(milliseconds=999)}, "reclaim_after .* at least 0:00:01"),
        ({"activity_executor": 3}, "activity_executor must be a concurrent.futures.Executor"),
        ({"activity_executor": ProcessPoolExecutor()}, "activity_executor has processes"),
        ({"host": ""}, "host must not be empty"),
        ({"host": "h" * 65}, "host is 65 bytes long .* the bound is 64"),
        ({"worker_id": "a\nb"}, r"worker_id has the control .* U\+000A"),
        ({"worker_id": ""}, "worker_id must not be empty"),
        ({"identity": ""}, "identity must not be empty"),
    ],
)
def test_a_wrong_option_is_refused_with_its_name_and_bound(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        WorkerOptions(**fields)


def test_slots_come_from_the_tuner_or_from_the_three_options() -> None:
    options = WorkerOptions(max_concurrent_activities=3, max_concurrent_local_activities=4)
    assert options.slot_tuner == WorkerTuner.create_fixed(activity_slots=3, local_activity_slots=4)
    tuner = WorkerTuner.create_fixed(activity_slots=9)
    assert WorkerOptions(tuner=tuner).slot_tuner is tuner


def test_nothing_may_be_waited_for_when_shutting_down() -> None:
    zero = timedelta(0)
    options = WorkerOptions(graceful_shutdown_timeout=zero, cancel_grace=zero, reclaim_after=None)
    assert options.cancel_grace == zero


def test_the_bounds_are_the_last_that_pass() -> None:
    with ThreadPoolExecutor(1) as pool:
        options = WorkerOptions(
            max_concurrent_activities=SLOTS_MAX,
            max_processes=1000,
            host="h" * 64,
            activity_executor=pool,
        )
    assert options.processes == 1000
