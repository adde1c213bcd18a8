"""What a user may set about a worker, checked when it is made."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta

from tq_broker import chain
from tq_broker.common import VersioningBehavior, WorkerDeploymentVersion, check_duration
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.capabilities import check_capabilities
from tq_broker.model.deployments import NO_VERSION, check_version
from tq_broker.model.limits import check_rate
from tq_broker.model.names import TARGET_BYTES_MAX, check_text
from tq_broker.worker.interceptors import Interceptor
from tq_broker.worker.tuning import SLOTS_MAX, WorkerTuner, check_count

CACHED_MAX = 100_000
SLOTS_DEFAULT = 100
_SLOTS = (
    "max_concurrent_activities",
    "max_concurrent_workflow_tasks",
    "max_concurrent_local_activities",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """Options of a `Worker`.

    Attributes:
        interceptors: Around its activities and workflows, the first outermost; before them those of
            the client that are for workers, too. See `tq_broker.worker.interceptors`.
        max_cached_workflows: Runs kept between their workflow tasks; 0 keeps none, and every task
            replays the whole history. At most 100 000.
        max_concurrent_workflow_tasks: Workflow tasks in hand at a time, over all task queues; 1 to
            10 000, at least 2 with a cache.
        max_concurrent_local_activities: Slots for local activities; 1 to 10 000.
        sticky_queue_schedule_to_start_timeout: How long a task may wait for this worker, which has
            the run in its cache, before any worker gets it.
        workflow_failure_exception_types: Exceptions that fail a workflow, beside `FailureError`
            and those of its decorator; others fail only the workflow task, which is tried again.
        workflow_deadlock_timeout: Workflow code that does not yield for so long fails its workflow
            task.
        debug_mode: There is no such timeout, so that a debugger can stop in workflow code.
        no_remote_activities: Run activities only as local ones.
        max_concurrent_activities: Slots, shared by all task queues; 1 to 10 000.
        max_concurrent_activities_by_type: How many of an activity type may run at a time in this
            worker, as ``{"type": 2}``; 1 to 10 000 each. Types not named here have no such bound.
        tuner: Supplies the slots of each kind, in place of the three ``max_concurrent_`` options,
            which must not be set then; see `tq_broker.worker.tuning`.
        max_concurrent_sessions: Sessions (`tq_broker.workflow.session`) open at a time, over all
            task queues; their activities take slots as others do. 0, the default, takes none; at
            most 10 000.
        max_activities_per_second: Activities that this worker begins per second.
        max_task_queue_activities_per_second: Activities begun per second on each of its task
            queues, by all workers together, as long as nobody has set limits (``tq-broker
            task-queue config``). Of workers with different ones the last one started counts.
        activity_executor: Its threads run synchronous activities instead of the worker's own.
        max_processes: Processes for activities with ``executor="process"``; the number of
            cores by default.
        graceful_shutdown_timeout: How long running activities may go on when the worker shuts
            down, before they are cancelled.
        cancel_grace: How long a cancelled activity may go on before its process is killed, and
            before a worker that shuts down leaves it behind.
        max_heartbeat_throttle_interval: Heartbeat details are kept at least this often.
        default_heartbeat_throttle_interval: The same without a heartbeat timeout.
        lease_after: A delivery held for so long is exchanged for a fresh one, so that
            RabbitMQ's acknowledgement timeout (30 minutes by default) never ends the channel.
        reclaim_after: Task queues that were empty and unserved for so long are removed;
            ``None`` leaves that to ``tq-broker task-queue reclaim``.
        capabilities: What this worker has: it also gets tasks that require some of these, and they
            only go to such workers. At most 64 names.
        host: The name that `Route.host` knows this machine by.
        worker_id: The name that `Route.process` knows this worker by; made up if ``None``.
        identity: How the worker signs; ``pid@host`` if ``None``.
        on_fatal_error: Called when the worker cannot go on.
        deployment: What its code is a version of, such as ``shop``; with ``build_id``. It then
            takes the tasks that are pinned to its version, and others only while that is current
            or ramping (``tq-broker deployment``).
        build_id: Names the version: a number, a commit.
        default_versioning_behavior: That of workflows whose decorator says none; with a
            deployment each must have one.
    """

    interceptors: Sequence[Interceptor] = ()
    max_cached_workflows: int = 1000
    max_concurrent_workflow_tasks: int = SLOTS_DEFAULT
    max_concurrent_local_activities: int = SLOTS_DEFAULT
    sticky_queue_schedule_to_start_timeout: timedelta = timedelta(seconds=10)
    workflow_failure_exception_types: Sequence[type[BaseException]] = ()
    workflow_deadlock_timeout: timedelta = timedelta(seconds=2)
    debug_mode: bool = False
    no_remote_activities: bool = False
    max_concurrent_activities: int = SLOTS_DEFAULT
    max_concurrent_activities_by_type: Mapping[str, int] = field(default_factory=dict)
    tuner: WorkerTuner | None = None
    max_concurrent_sessions: int = 0
    max_activities_per_second: float | None = None
    max_task_queue_activities_per_second: float | None = None
    activity_executor: Executor | None = None
    max_processes: int | None = None
    graceful_shutdown_timeout: timedelta = timedelta(seconds=30)
    cancel_grace: timedelta = timedelta(seconds=5)
    max_heartbeat_throttle_interval: timedelta = timedelta(seconds=60)
    default_heartbeat_throttle_interval: timedelta = timedelta(seconds=30)
    lease_after: timedelta = timedelta(minutes=10)
    reclaim_after: timedelta | None = timedelta(minutes=10)
    capabilities: Collection[str] = ()
    host: str = field(default_factory=socket.gethostname)
    worker_id: str | None = None
    identity: str | None = None
    on_fatal_error: Callable[[BaseException], None] | None = None
    deployment: str | None = None
    build_id: str | None = None
    default_versioning_behavior: VersioningBehavior = VersioningBehavior.UNSPECIFIED

    def __post_init__(self) -> None:
        self._check_slots()
        chain.check("interceptors", self.interceptors, Interceptor)
        check_count("max_concurrent_sessions", self.max_concurrent_sessions, SLOTS_MAX, least=0)
        check_count("max_cached_workflows", self.max_cached_workflows, CACHED_MAX, least=0)
        if self.max_cached_workflows and self.max_concurrent_workflow_tasks < 2:
            raise InvalidArgument(
                "max_concurrent_workflow_tasks is 1; it must be at least 2 with a cache"
                " (max_cached_workflows), one for new tasks and one for those of cached runs"
            )
        for kind in self.workflow_failure_exception_types:
            if not (isinstance(kind, type) and issubclass(kind, BaseException)):
                raise InvalidArgument(
                    f"workflow_failure_exception_types has {kind!r}, which is no exception type"
                )
        for name in ("max_activities_per_second", "max_task_queue_activities_per_second"):
            if getattr(self, name) is not None:
                check_rate(getattr(self, name), name)
        if self.max_processes is not None:
            check_count("max_processes", self.max_processes, 1000)
        zero = timedelta(0)
        for name, minimum in (
            ("graceful_shutdown_timeout", zero),
            ("cancel_grace", zero),
            ("max_heartbeat_throttle_interval", timedelta(milliseconds=100)),
            ("default_heartbeat_throttle_interval", timedelta(milliseconds=100)),
            ("lease_after", timedelta(milliseconds=100)),
            ("sticky_queue_schedule_to_start_timeout", timedelta(milliseconds=100)),
            ("workflow_deadlock_timeout", timedelta(milliseconds=10)),
        ):
            check_duration(name, getattr(self, name), minimum=minimum)
        if self.reclaim_after is not None:
            check_duration("reclaim_after", self.reclaim_after, minimum=timedelta(seconds=1))
        if self.activity_executor is not None and not isinstance(self.activity_executor, Executor):
            raise InvalidArgument("activity_executor must be a concurrent.futures.Executor")
        if isinstance(self.activity_executor, ProcessPoolExecutor):
            raise InvalidArgument(
                "activity_executor has processes, it must have threads; for processes say"
                ' @activity.defn(executor="process")'
            )
        check_text("host", self.host, bytes_max=TARGET_BYTES_MAX)
        check_capabilities("capabilities", self.capabilities)
        if self.worker_id is not None:
            check_text("worker_id", self.worker_id, bytes_max=TARGET_BYTES_MAX)
        if self.identity is not None:
            check_text("identity", self.identity)
        if (self.deployment is None) != (self.build_id is None):
            raise InvalidArgument("deployment and build_id must be given together")
        if not isinstance(self.default_versioning_behavior, VersioningBehavior):
            raise InvalidArgument("default_versioning_behavior must be a VersioningBehavior")
        if self.version:
            check_version(self.version)

    @property
    def version(self) -> str:
        """``<deployment>.<build id>``; "" without a deployment."""
        if self.deployment is None or self.build_id is None:
            return NO_VERSION
        return WorkerDeploymentVersion(self.deployment, self.build_id).to_canonical_string()

    def _check_slots(self) -> None:
        for name in _SLOTS:
            check_count(name, getattr(self, name), SLOTS_MAX)
        by_type = self.max_concurrent_activities_by_type
        if not isinstance(by_type, Mapping):
            raise InvalidArgument(
                f"max_concurrent_activities_by_type is {by_type!r}; write it as {{'type': 2}}"
            )
        for type_, count in by_type.items():
            check_text("a type in max_concurrent_activities_by_type", type_)
            check_count(f"max_concurrent_activities_by_type[{type_!r}]", count, SLOTS_MAX)
        if self.tuner is None:
            return
        if not isinstance(self.tuner, WorkerTuner):
            raise InvalidArgument(f"tuner is {self.tuner!r}; it must be a WorkerTuner")
        for name in _SLOTS:
            if getattr(self, name) != SLOTS_DEFAULT:
                raise InvalidArgument(f"{name} cannot be set together with tuner")

    @property
    def slot_tuner(self) -> WorkerTuner:
        """Who supplies the slots."""
        return self.tuner or WorkerTuner.create_fixed(
            workflow_slots=self.max_concurrent_workflow_tasks,
            activity_slots=self.max_concurrent_activities,
            local_activity_slots=self.max_concurrent_local_activities,
        )

    @property
    def processes(self) -> int:
        """How many processes there may be."""
        return self.max_processes or os.cpu_count() or 1
