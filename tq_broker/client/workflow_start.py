"""What a start of a workflow asks for: the call's arguments, checked, as one request."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, TypedDict

from tq_broker.common import (
    PRIORITY_FIRST,
    PRIORITY_LAST,
    ActivityOptions,
    AffinityKind,
    OnLost,
    Requires,
    RetryPolicy,
    Route,
    VersioningOverride,
    WorkerDeploymentVersion,
    WorkflowIDConflictPolicy,
    WorkflowIDReusePolicy,
    check_duration,
    check_fairness_key,
    check_fairness_weight,
    check_headers,
    to_ms,
    versioning_override,
)
from tq_broker.converter import DataConverter
from tq_broker.exceptions import InvalidArgument
from tq_broker.model import payload
from tq_broker.model.affinity import AFFINITY_OPTIONS, affinity_of, dump_affinity
from tq_broker.model.deployments import AUTO_UPGRADE, check_version
from tq_broker.model.names import check_task_queue, check_text
from tq_broker.model.payload import Payload
from tq_broker.model.requests import SignalInput, StartWorkflow
from tq_broker.model.tasks import check_place, wire_retry_policy

ID_BYTES_MAX = 1000
"""Longest id of a workflow or update, and longest name of a type, signal, query or update."""
TASK_TIMEOUT_MAX = timedelta(minutes=2)
SUMMARY_BYTES_MAX = 400
DETAILS_BYTES_MAX = 20_000
CRON_BYTES_MAX = 1_000


class StartWorkflowOptionsDict(TypedDict, total=False):
    """The keywords of a start, see `StartWorkflowOptions`."""

    id: str
    task_queue: str
    execution_timeout: timedelta | None
    run_timeout: timedelta | None
    task_timeout: timedelta | None
    id_reuse_policy: WorkflowIDReusePolicy
    id_conflict_policy: WorkflowIDConflictPolicy
    retry_policy: RetryPolicy | None
    cron_schedule: str
    memo: Mapping[str, Any] | None
    static_summary: str | None
    static_details: str | None
    start_delay: timedelta | None
    start_signal: str | None
    start_signal_args: Sequence[Any]
    priority: int | None
    fairness_key: str | None
    fairness_weight: float | None
    headers: Mapping[str, str] | None
    versioning_override: VersioningOverride | None
    version: VersioningOverride | WorkerDeploymentVersion | str | None
    route: Route | None
    requires: Collection[str] | Requires | None
    affinity: AffinityKind | None
    affinity_group: str | None
    on_lost: OnLost | None
    result_type: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class StartWorkflowOptions:
    """How a workflow is started.

    Attributes:
        id: Names the workflow: one run of it is open at a time. At most 1000 bytes.
        task_queue: Where its workers listen; its activities and children go there, too, unless
            they say otherwise.
        execution_timeout: Bound of the whole chain of runs: retries, cron and continue-as-new.
        run_timeout: Bound of one run.
        task_timeout: How long one workflow task may take; 10 seconds if not said, 2 minutes at
            most.
        id_reuse_policy: Whether an id may be used again after its last run has ended.
        id_conflict_policy: What a start gets while a run with its id is open.
        retry_policy: ``None``: a run that fails is not tried again.
        cron_schedule: Five fields, or such as ``@every 5m``: a new run at each of these times.
        memo: JSON-able values by name, told with the run wherever it is described or listed.
        static_summary: One line about this workflow, for people; at most 400 bytes.
        static_details: The same at length; at most 20 000 bytes.
        start_delay: The first workflow task comes only after this pause.
        start_signal: A signal to deliver with the start, and to a run that is open already.
        start_signal_args: Its arguments.
        priority: 1 (first) to 5 of its activities that say none themselves.
        fairness_key: Whose it is, where keys share what begins: see
            `tq_broker.common.ActivityOptions`. Its activities and children have it, too.
        fairness_weight: 0.001 to 1000; 1.0 if nobody says it.
        headers: Texts that travel with the run, and with ``start_signal``, for interceptors and
            routing.
        versioning_override: A deployment version to pin the run to, or that it follows the current
            one, whatever the workflow says.
        version: The same in short: ``"shop.1.4"``, or ``"auto_upgrade"``; also at
            ``@workflow.defn``. Say one of the two.
        route: The host or process whose workers have its workflow tasks
            (`tq_broker.common.Route`), and what becomes of the run when they are gone; its
            activities and children go where they say themselves.
        requires: Capabilities that the workers of its workflow tasks must have: ``{"gpu"}``, or a
            `tq_broker.common.Requires`. With both `OnGone.WAIT` counts from when a workflow task
            was scheduled, and `OnGone.FAIL` fails the run.
        affinity: Its activities on its task queue that do not say where they run follow each other
            to a host or process (`tq_broker.common.ActivityOptions`); its children inherit that.
            The run itself goes anywhere.
        affinity_group, on_lost: Of that affinity.
        result_type: Type hint of the result, when the workflow is given by name.
    """

    id: str
    task_queue: str
    execution_timeout: timedelta | None = None
    run_timeout: timedelta | None = None
    task_timeout: timedelta | None = None
    id_reuse_policy: WorkflowIDReusePolicy = WorkflowIDReusePolicy.ALLOW_DUPLICATE
    id_conflict_policy: WorkflowIDConflictPolicy = WorkflowIDConflictPolicy.UNSPECIFIED
    retry_policy: RetryPolicy | None = None
    cron_schedule: str = ""
    memo: Mapping[str, Any] | None = None
    static_summary: str | None = None
    static_details: str | None = None
    start_delay: timedelta | None = None
    start_signal: str | None = None
    start_signal_args: Sequence[Any] = ()
    priority: int | None = None
    fairness_key: str | None = None
    fairness_weight: float | None = None
    headers: Mapping[str, str] | None = None
    versioning_override: VersioningOverride | None = None
    version: VersioningOverride | WorkerDeploymentVersion | str | None = None
    route: Route | None = None
    requires: Collection[str] | Requires | None = None
    affinity: AffinityKind | None = None
    affinity_group: str | None = None
    on_lost: OnLost | None = None
    result_type: Any = None

    def __post_init__(self) -> None:
        check_id("id", self.id)
        check_task_queue(self.task_queue)
        self._check_durations()
        self._check_policies()
        _check_length("cron_schedule", self.cron_schedule, CRON_BYTES_MAX)
        _check_length("static_summary", self.static_summary or "", SUMMARY_BYTES_MAX)
        _check_length("static_details", self.static_details or "", DETAILS_BYTES_MAX)
        _check_names("memo", self.memo)
        check_headers("headers", self.headers or {})
        _override(self)
        self.place()
        self.bond()
        if self.start_signal is not None:
            check_id("start_signal", self.start_signal)
        elif self.start_signal_args:
            raise InvalidArgument("start_signal_args are given without start_signal")

    def place(self) -> tuple[str | None, str | None]:
        """The route and what is required, as they travel. Raises `InvalidArgument`."""
        return check_place(ActivityOptions(route=self.route, requires=self.requires))

    def bond(self) -> str | None:
        """Its affinity, as it travels. Raises `InvalidArgument`."""
        said = {name: getattr(self, name) for name in AFFINITY_OPTIONS}
        affinity = affinity_of(ActivityOptions(**said))
        return None if affinity is None else dump_affinity(affinity)

    def _check_durations(self) -> None:
        for name in ("execution_timeout", "run_timeout", "task_timeout", "start_delay"):
            value = getattr(self, name)
            if value is not None:
                check_duration(name, value)
        if self.task_timeout is not None and self.task_timeout > TASK_TIMEOUT_MAX:
            raise InvalidArgument(
                f"task_timeout is {self.task_timeout}; the bound is {TASK_TIMEOUT_MAX}"
            )
        if self.start_delay is not None and self.cron_schedule:
            raise InvalidArgument("start_delay cannot be used together with cron_schedule")

    def _check_policies(self) -> None:
        for name, kind in (
            ("id_reuse_policy", WorkflowIDReusePolicy),
            ("id_conflict_policy", WorkflowIDConflictPolicy),
        ):
            if not isinstance(getattr(self, name), kind):
                raise InvalidArgument(f"{name} must be a {kind.__name__}")
        conflict = self.id_conflict_policy
        if (
            self.id_reuse_policy is WorkflowIDReusePolicy.TERMINATE_IF_RUNNING
            and conflict is not WorkflowIDConflictPolicy.UNSPECIFIED
        ):
            raise InvalidArgument(
                "id_conflict_policy cannot be used with id_reuse_policy TERMINATE_IF_RUNNING"
            )
        if (
            self.id_reuse_policy is WorkflowIDReusePolicy.REJECT_DUPLICATE
            and conflict is WorkflowIDConflictPolicy.TERMINATE_EXISTING
        ):
            raise InvalidArgument(
                "id_conflict_policy TERMINATE_EXISTING contradicts id_reuse_policy REJECT_DUPLICATE"
            )
        if self.retry_policy is not None and not isinstance(self.retry_policy, RetryPolicy):
            raise InvalidArgument("retry_policy must be a RetryPolicy")
        if self.fairness_key is not None:
            check_fairness_key("fairness_key", self.fairness_key)
        if self.fairness_weight is not None:
            check_fairness_weight("fairness_weight", self.fairness_weight)
        priority = self.priority
        if priority is not None and (
            isinstance(priority, bool)
            or not isinstance(priority, int)
            or not PRIORITY_FIRST <= priority <= PRIORITY_LAST
        ):
            raise InvalidArgument(
                f"priority is {priority!r};"
                f" it must be from {PRIORITY_FIRST} (first) to {PRIORITY_LAST}"
            )


_KNOWN = {f.name for f in fields(StartWorkflowOptions)}


def make_options(keywords: Mapping[str, Any]) -> StartWorkflowOptions:
    """Check the keywords of a start. Raises `InvalidArgument`."""
    unknown = sorted(set(keywords) - _KNOWN)
    if unknown:
        raise InvalidArgument(
            f"unknown workflow option {unknown[0]!r}; known are: {', '.join(sorted(_KNOWN))}"
        )
    for name, why in (("id", "name the workflow"), ("task_queue", "name its task queue")):
        if keywords.get(name) is None:
            raise InvalidArgument(f"{name} is not set: {why}")
    return StartWorkflowOptions(**keywords)


def make_request(
    workflow_type: str,
    args: Sequence[Any],
    options: StartWorkflowOptions,
    converter: DataConverter,
    identity: str,
) -> StartWorkflow:
    """The request for a start. Raises `InvalidArgument`, `PayloadTooLarge`."""
    retry = options.retry_policy
    signal = options.start_signal
    route, requires = options.place()
    return StartWorkflow(
        workflow_id=options.id,
        workflow_type=check_id("workflow", workflow_type),
        task_queue=options.task_queue,
        input=encode_args(args, converter, f"the input of workflow {options.id!r}"),
        execution_timeout_ms=_ms(options.execution_timeout),
        run_timeout_ms=_ms(options.run_timeout),
        task_timeout_ms=_ms(options.task_timeout) or 10_000,
        id_reuse_policy=int(options.id_reuse_policy),
        id_conflict_policy=int(options.id_conflict_policy),
        retry_policy=None if retry is None else wire_retry_policy(retry),
        cron_schedule=options.cron_schedule,
        memo={name: encode_memo(name, v, converter) for name, v in (options.memo or {}).items()},
        headers=dict(options.headers or {}),
        priority=options.priority,
        fairness_key=options.fairness_key or "",
        fairness_weight=options.fairness_weight,
        start_delay_ms=_ms(options.start_delay),
        static_summary=options.static_summary or "",
        static_details=options.static_details or "",
        identity=identity,
        versioning_override=_override(options),
        route=route,
        requires=requires,
        affinity=options.bond(),
        signal=None
        if signal is None
        else SignalInput(
            signal_name=signal,
            input=encode_args(
                options.start_signal_args, converter, f"the input of signal {signal!r}"
            ),
            headers=dict(options.headers or {}),
        ),
    )


def _override(options: StartWorkflowOptions) -> str:
    """What pins a run, or frees it, as it travels. Raises `InvalidArgument`."""
    override, version = options.versioning_override, options.version
    if override is not None and version is not None:
        raise InvalidArgument("version and versioning_override say the same; say one of them")
    if override is not None and not isinstance(override, VersioningOverride):
        raise InvalidArgument(
            "versioning_override must be a PinnedVersioningOverride or an"
            " AutoUpgradeVersioningOverride"
        )
    said = versioning_override("version", version if override is None else override)
    return said if said in ("", AUTO_UPGRADE) else check_version(said)


def encode_args(args: Sequence[Any], converter: DataConverter, what: str) -> Payload:
    """The payload of a call's arguments. Raises `InvalidArgument`, `PayloadTooLarge`."""
    return payload.check_size(payload.dump_args(args, converter), what)


def encode_memo(name: str, value: Any, converter: DataConverter) -> Payload:
    """The payload of one value of a memo. Raises `InvalidArgument`, `PayloadTooLarge`."""
    return payload.check_size(payload.dump(value, converter), f"memo {name!r}")


def check_id(argument: str, value: object) -> str:
    """Return ``value`` if it can be an id or a name, else raise `InvalidArgument`."""
    _check_length(argument, check_text(argument, value), ID_BYTES_MAX)
    assert isinstance(value, str), "check_text has seen it"
    return value


def _check_length(argument: str, value: object, bytes_max: int) -> None:
    if not isinstance(value, str):
        raise InvalidArgument(f"{argument} must be a string, not {type(value).__name__}")
    size = len(value.encode("utf-8", "replace"))
    if size > bytes_max:
        raise InvalidArgument(f"{argument} is {size} bytes long; the bound is {bytes_max}")


def _check_names(argument: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise InvalidArgument(f"{argument} must be a mapping with strings as names")


def _ms(value: timedelta | None) -> int:
    return 0 if value is None else to_ms(value)
