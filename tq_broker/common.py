"""What a user may set: retry policies, routes, priorities and activity options.

Values only, checked when they are made; the same names and defaults as Temporal's Python SDK
where the concept is the same.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, Literal, Protocol, TypedDict, get_args
from urllib.parse import quote

from tq_broker.exceptions import InvalidArgument

DURATION_MAX = timedelta(days=3650)
"""The longest duration accepted anywhere: ten years, well inside every integer on the wire."""

TIME_MS_MAX = 250_000_000_000_000
"""The latest time (epoch ms), of the year 9892: a `datetime` has hardly more."""

PRIORITY_FIRST, PRIORITY_LAST = 1, 5
PRIORITY_DEFAULT = 3
REQUIRES_MAX = 8
"""Capabilities that one task may require."""
HEADERS_CHARS_MAX = 4_000
"""Bound of all headers of a task together, as JSON."""
ERROR_TYPES_CHARS_MAX = 16_000
"""Bound of all error types of a retry policy together, as JSON in ASCII."""


def check_duration(
    argument: str, value: object, *, minimum: timedelta = timedelta(milliseconds=1)
) -> timedelta:
    """Return ``value`` if it is a `timedelta` from ``minimum`` to ten years.

    Raises:
        InvalidArgument: names ``argument`` and the bound.
    """
    if not isinstance(value, timedelta):
        raise InvalidArgument(f"{argument} must be a timedelta, not {type(value).__name__}")
    if not minimum <= value <= DURATION_MAX:
        raise InvalidArgument(
            f"{argument} is {value}; it must be at least {minimum} and at most {DURATION_MAX}"
        )
    return value


def check_headers(argument: str, value: object) -> Mapping[str, str]:
    """Return ``value`` if it maps names to texts and is not too long.

    Raises:
        InvalidArgument: names ``argument`` and what is wrong.
    """
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and name and isinstance(text, str) for name, text in value.items()
    ):
        raise InvalidArgument(f"{argument} must be strings by name")
    if not value:
        return value
    text = json.dumps(dict(value), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{argument} must be Unicode") from None
    if len(text) > HEADERS_CHARS_MAX:
        raise InvalidArgument(
            f"{argument} are {len(text)} characters long; the bound is {HEADERS_CHARS_MAX}"
        )
    return value


def inherited_headers(
    inherited: Mapping[str, str], said: Mapping[str, str] | None
) -> dict[str, str]:
    """The headers of what a workflow starts: its own, and over them those of the call.

    Raises:
        InvalidArgument: together they are too long.
    """
    if not inherited and not said:
        return {}
    headers = {**inherited, **(said or {})}
    check_headers("headers, with those of the workflow,", headers)
    return headers


def to_ms(value: timedelta) -> int:
    """Whole milliseconds, at least one for a positive duration."""
    return math.ceil(value / timedelta(milliseconds=1))


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a failed attempt is followed by another.

    Attributes:
        initial_interval: Before the second attempt.
        backoff_coefficient: Each further interval is this much longer; at least 1.
        maximum_interval: Bound of one interval; ``None`` means 100 times the initial one.
        maximum_attempts: Including the first; 0 means no bound.
        non_retryable_error_types: `ApplicationError.type` values that end the activity;
            ``TemporalTimeout:StartToClose`` and ``TemporalTimeout:Heartbeat`` name timeouts.
            Together at most `ERROR_TYPES_CHARS_MAX`, as they travel in a header.
    """

    initial_interval: timedelta = timedelta(seconds=1)
    backoff_coefficient: float = 2.0
    maximum_interval: timedelta | None = None
    maximum_attempts: int = 0
    non_retryable_error_types: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_duration("retry_policy.initial_interval", self.initial_interval)
        coefficient = self.backoff_coefficient
        if isinstance(coefficient, bool) or not isinstance(coefficient, (int, float)):
            raise InvalidArgument("retry_policy.backoff_coefficient must be a number")
        if not 1 <= coefficient <= 1000:
            raise InvalidArgument(
                f"retry_policy.backoff_coefficient is {coefficient}; it must be from 1 to 1000"
            )
        if self.maximum_interval is not None:
            check_duration(
                "retry_policy.maximum_interval",
                self.maximum_interval,
                minimum=self.initial_interval,
            )
        attempts = self.maximum_attempts
        if isinstance(attempts, bool) or not isinstance(attempts, int) or attempts < 0:
            raise InvalidArgument(
                f"retry_policy.maximum_attempts is {attempts!r}; it must be 0 (no bound) or more"
            )
        self._check_error_types()

    def _check_error_types(self) -> None:
        names = self.non_retryable_error_types
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise InvalidArgument(
                "retry_policy.non_retryable_error_types must be a sequence of strings"
            )
        size = len(json.dumps(list(names))) if names else 0
        if size > ERROR_TYPES_CHARS_MAX:
            raise InvalidArgument(
                f"retry_policy.non_retryable_error_types are {size} characters long as JSON in"
                f" ASCII; the bound is {ERROR_TYPES_CHARS_MAX}"
            )


class OnGone(enum.Enum):
    """What becomes of a task when the target of its route is gone."""

    FAIL = "fail"
    """The activity fails at once with an error of type ``TargetGone``."""
    FALL_BACK = "fall_back"
    """The plain task queue takes it."""
    WAIT = "wait"
    """It waits for the target to come back, for at most the route's ``wait``."""


class TargetKind(enum.Enum):
    """What a route can name."""

    HOST = "host"
    PROCESS = "process"
    VERSION = "version"


@dataclass(frozen=True, slots=True)
class Route:
    """Where, within its task queue, an activity must run. Made by `host`, `process`, `version`."""

    kind: TargetKind
    target: str
    on_gone: OnGone = OnGone.FAIL
    wait: timedelta | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.kind, TargetKind):
            raise InvalidArgument("route.kind must be a TargetKind")
        if not isinstance(self.target, str) or not self.target:
            raise InvalidArgument(f"route.{self.kind.value} must be a non-empty string")
        if not isinstance(self.on_gone, OnGone):
            raise InvalidArgument("route.on_gone must be an OnGone")
        if self.kind is TargetKind.VERSION:
            WorkerDeploymentVersion.from_canonical_string(self.target)
            if self.on_gone is not OnGone.WAIT or self.wait is not None:
                raise InvalidArgument("a route to a version waits for it: OnGone.WAIT, no bound")
        elif (self.on_gone is OnGone.WAIT) != (self.wait is not None):
            raise InvalidArgument("route.wait is needed with OnGone.WAIT and only then")
        if self.wait is not None:
            check_duration("route.wait", self.wait)

    @classmethod
    def host(
        cls, name: str, *, on_gone: OnGone = OnGone.FAIL, wait: timedelta | None = None
    ) -> Route:
        """Any worker of the task queue on the host ``name`` (see ``activity.info().host``).

        Args:
            on_gone: The answer when no living worker of the task queue is on that host.
            wait: With `OnGone.WAIT`, how long from the start of the activity.
        """
        return cls(TargetKind.HOST, name, on_gone, wait)

    @classmethod
    def process(
        cls, worker_id: str, *, on_gone: OnGone = OnGone.FAIL, wait: timedelta | None = None
    ) -> Route:
        """The one worker process ``worker_id`` (see ``activity.info().worker_id``).

        A process does not come back under the same id unless it was given one, so
        `OnGone.WAIT` is rarely what you want here.
        """
        return cls(TargetKind.PROCESS, worker_id, on_gone, wait)

    @classmethod
    def version(cls, version: WorkerDeploymentVersion | str) -> Route:
        """The workers of one deployment version (``shop.1.4``), be it current or not.

        While none of them lives the task waits; a schedule-to-start timeout bounds that.
        """
        target = version if isinstance(version, str) else version.to_canonical_string()
        return cls(TargetKind.VERSION, target, OnGone.WAIT)


AffinityKind = Literal["host", "process"]
OnLost = Literal["fail", "restart_affinity", "wait"]
AFFINITY_GROUP_BYTES_MAX = 200


@dataclass(frozen=True, slots=True)
class Requires:
    """What a worker must have to get a task, and what becomes of the task if no living one has.

    ``requires={"gpu"}`` is short for ``requires=Requires({"gpu"})``.

    Attributes:
        capabilities: At most 8 names; a worker must have declared them all.
        on_gone: The answer while no living worker of the task queue has them all. `OnGone.WAIT`,
            the default, keeps the task on a queue of its own until one comes, or until
            ``schedule_to_start_timeout``; `OnGone.FALL_BACK` lets any worker of the task queue
            have it, which makes a wish of a requirement.
        wait: With `OnGone.WAIT`, how long from the start of the activity; ``None`` means for ever.
    """

    capabilities: Collection[str]
    on_gone: OnGone = OnGone.WAIT
    wait: timedelta | None = None

    def __post_init__(self) -> None:
        given = self.capabilities
        if isinstance(given, str) or not isinstance(given, Collection):
            raise InvalidArgument('requires must be a set of names, such as {"gpu"}')
        if not all(isinstance(name, str) and name for name in given):
            raise InvalidArgument("requires must have non-empty strings only")
        if len(self.names) > REQUIRES_MAX:
            raise InvalidArgument(
                f"requires has {len(self.names)} capabilities; the bound is {REQUIRES_MAX}"
            )
        if not isinstance(self.on_gone, OnGone):
            raise InvalidArgument("requires.on_gone must be an OnGone")
        if self.wait is not None:
            if self.on_gone is not OnGone.WAIT:
                raise InvalidArgument("requires.wait is for OnGone.WAIT only")
            check_duration("requires.wait", self.wait)

    @property
    def names(self) -> tuple[str, ...]:
        """The capabilities, each once and in order."""
        return tuple(sorted(set(self.capabilities)))

    @property
    def is_patient(self) -> bool:
        """Whether it waits for a capable worker for as long as it takes."""
        return self.on_gone is OnGone.WAIT and self.wait is None

    @classmethod
    def of(cls, value: object) -> Requires | None:
        """What an option says; ``None`` for nothing.

        Raises:
            InvalidArgument: names what is wrong.
        """
        if value is None:
            return None
        said = value if isinstance(value, cls) else cls(value)  # type: ignore[arg-type]
        return said if said.capabilities else None


class Decodes(Protocol):
    """What a `tq_broker.converter.PayloadConverter` does for a `RawValue`."""

    def decoder(self, hint: Any) -> Callable[[bytes | memoryview], Any]:
        """A function from bytes to a value of the type ``hint``."""


class RawValue:
    """An argument of a dynamic activity, workflow or handler, not decoded yet."""

    __slots__ = ("_converter", "data")

    def __init__(self, data: bytes, converter: Decodes) -> None:
        self.data = data
        self._converter = converter

    def decode(self, hint: Any = Any) -> Any:
        """The value as type ``hint``. Raises `Malformed`."""
        return self._converter.decoder(hint)(self.data)


class ActivityIDConflictPolicy(enum.Enum):
    """What a second start with the same ``id`` gets, within the id's retention."""

    USE_EXISTING = "join"
    """The outcome of the first start."""
    FAIL = "refuse"
    """`ActivityAlreadyStarted`."""


class WorkflowIDReusePolicy(enum.IntEnum):
    """Whether an id may be used again after its last run has ended (Temporal's numbers)."""

    ALLOW_DUPLICATE = 1
    ALLOW_DUPLICATE_FAILED_ONLY = 2
    """Only if the last run did not complete."""
    REJECT_DUPLICATE = 3
    TERMINATE_IF_RUNNING = 4
    """Old name of `WorkflowIDConflictPolicy.TERMINATE_EXISTING`, with ALLOW_DUPLICATE."""


class WorkflowIDConflictPolicy(enum.IntEnum):
    """What a start gets while a run with its id is open (Temporal's numbers)."""

    UNSPECIFIED = 0
    """FAIL; USE_EXISTING for signal-with-start and update-with-start."""
    FAIL = 1
    USE_EXISTING = 2
    TERMINATE_EXISTING = 3


class QueryRejectCondition(enum.IntEnum):
    """When a query is not to be answered (Temporal's numbers)."""

    NONE = 1
    NOT_OPEN = 2


class ParentClosePolicy(enum.IntEnum):
    """What becomes of a child when its parent has ended (Temporal's numbers)."""

    TERMINATE = 1
    ABANDON = 2
    REQUEST_CANCEL = 3


KEY_BYTES_MAX = 256


def check_key(argument: str, value: object) -> str:
    """Return ``value`` if it can be a key that limits are kept by, else raise `InvalidArgument`."""
    bounds = f"it must be a text of 1 to {KEY_BYTES_MAX} bytes as UTF-8"
    if not isinstance(value, str):
        raise InvalidArgument(f"{argument} is {value!r:.80}; {bounds}")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{argument} is not Unicode; {bounds}") from None
    if not 1 <= size <= KEY_BYTES_MAX:
        raise InvalidArgument(f"{argument} has {size} bytes; {bounds}")
    return value


FAIRNESS_KEY_BYTES_MAX = 64
FAIRNESS_WEIGHT_MIN = 0.001
FAIRNESS_WEIGHT_MAX = 1000.0


def check_fairness_key(argument: str, value: object) -> str:
    """Return ``value`` if it can be a fairness key, else raise `InvalidArgument`."""
    bounds = (
        f"it must be a text of 1 to {FAIRNESS_KEY_BYTES_MAX} bytes as UTF-8, without control"
        " or invisible characters"
    )
    if not isinstance(value, str):
        raise InvalidArgument(f"{argument} is {value!r:.80}; {bounds}")
    if not all(char == " " or char.isprintable() for char in value):
        raise InvalidArgument(f"{argument} is {value!a:.80}; {bounds}")
    size = len(value.encode())
    if not 1 <= size <= FAIRNESS_KEY_BYTES_MAX:
        raise InvalidArgument(f"{argument} has {size} bytes; {bounds}")
    return value


def check_fairness_weight(argument: str, value: object) -> float:
    """Return ``value`` if it can be a fairness weight, else raise `InvalidArgument`."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Of what is not a number no comparison holds.
    if not is_number or not FAIRNESS_WEIGHT_MIN <= value <= FAIRNESS_WEIGHT_MAX:  # type: ignore[operator]
        raise InvalidArgument(
            f"{argument} is {value!r:.80}; it must be a number"
            f" from {FAIRNESS_WEIGHT_MIN:g} to {FAIRNESS_WEIGHT_MAX:g}"
        )
    return float(value)  # type: ignore[arg-type]


# --- deployment versions --------------------------------------------------------------------------

UNVERSIONED = "__unversioned__"
"""Stands for the workers without a version, where a build id is asked for."""


VERSION_BYTES_MAX = 80
"""Longest deployment version: its name, a dot and its build id. What is neither a letter of ASCII
nor a digit, ``-`` or ``_`` counts as three for each byte of UTF-8."""


class VersioningBehavior(enum.IntEnum):
    """What a new version means for runs of a workflow that are open (Temporal's numbers)."""

    UNSPECIFIED = 0
    PINNED = 1
    """A run stays with the version that has run its first workflow task."""
    AUTO_UPGRADE = 2
    """Its next workflow task goes to the version that is current (or ramping) then."""


class ContinueAsNewVersioningBehavior(enum.IntEnum):
    """Which version the run after a continue-as-new begins with (Temporal's numbers)."""

    UNSPECIFIED = 0
    """A pinned run hands on its version."""
    AUTO_UPGRADE = 1
    """It begins with the version that is current (or ramping) then."""


@dataclass(frozen=True, slots=True)
class WorkerDeploymentVersion:
    """A version of a deployment; as one text ``<deployment name>.<build id>``.

    Attributes:
        deployment_name: What is deployed, such as ``shop``; without a dot.
        build_id: Names what was built: a version, a commit.
    """

    deployment_name: str
    build_id: str

    def __post_init__(self) -> None:
        for name in ("deployment_name", "build_id"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value:
                raise InvalidArgument(f"{name} is {value!r}; it must be a non-empty string")
            if value.startswith("__"):
                raise InvalidArgument(f"{name} is {value!r}; names with a leading __ are reserved")
        if "." in self.deployment_name:
            raise InvalidArgument(
                f"deployment_name is {self.deployment_name!r}; it must be without a dot, which"
                " stands before the build id"
            )
        text = self.to_canonical_string()
        if not text.isprintable():
            raise InvalidArgument(f"version {text!r} has a character that cannot be seen")
        # As names of queues encode it, where quote() leaves these two as they are.
        size = len(quote(text, safe="")) + 2 * (text.count(".") + text.count("~"))
        if size > VERSION_BYTES_MAX:
            raise InvalidArgument(
                f"version {text!r} is {size} bytes long when encoded for RabbitMQ;"
                f" the bound is {VERSION_BYTES_MAX}"
            )

    def to_canonical_string(self) -> str:
        """``<deployment name>.<build id>``."""
        return f"{self.deployment_name}.{self.build_id}"

    @classmethod
    def from_canonical_string(cls, canonical: str) -> WorkerDeploymentVersion:
        """The inverse of `to_canonical_string`. Raises `InvalidArgument`."""
        name, dot, build_id = canonical.partition(".") if isinstance(canonical, str) else ("",) * 3
        if not dot:
            raise InvalidArgument(
                f"version is {canonical!r}; it must be a deployment's name, a dot and a build id,"
                " such as 'shop.1.4'"
            )
        return cls(name, build_id)


@dataclass(frozen=True, slots=True)
class PinnedVersioningOverride:
    """The run is pinned to ``version``, whatever its workflow says."""

    version: WorkerDeploymentVersion

    def __post_init__(self) -> None:
        if not isinstance(self.version, WorkerDeploymentVersion):
            raise InvalidArgument("version must be a WorkerDeploymentVersion")


@dataclass(frozen=True, slots=True)
class AutoUpgradeVersioningOverride:
    """The run follows the current (or ramping) version, whatever its workflow says."""


VersioningOverride = PinnedVersioningOverride | AutoUpgradeVersioningOverride

AUTO_UPGRADE_WORD = "auto_upgrade"
"""Short for `AutoUpgradeVersioningOverride`: no version is without a dot."""


def versioning_override(argument: str, said: object) -> str:
    """A versioning override as one text: a version, ``auto_upgrade``, or "" for ``None``.

    Args:
        argument: Names it in the error.
        said: A `VersioningOverride`; or, short for one, a `WorkerDeploymentVersion` or such a text.

    Raises:
        InvalidArgument: it is none of these, or cannot be a version.
    """
    match said:
        case None:
            return ""
        case AutoUpgradeVersioningOverride():
            return AUTO_UPGRADE_WORD
        case PinnedVersioningOverride(version):
            return version.to_canonical_string()
        case WorkerDeploymentVersion():
            return said.to_canonical_string()
        case str():
            if said == AUTO_UPGRADE_WORD:
                return said
            return WorkerDeploymentVersion.from_canonical_string(said).to_canonical_string()
    raise InvalidArgument(
        f"{argument} is {said!r:.80}; it must be a PinnedVersioningOverride, an"
        " AutoUpgradeVersioningOverride, or a version such as 'shop.1.4'"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivityOptions:
    """Options of one activity; ``None`` means "not said here".

    At the decorator they are defaults, at the call they win.

    Attributes:
        task_queue: The task queue it is put on.
        route: Host or process it must run on.
        version: The deployment version whose workers must run it (``shop.1.4``), be it current or
            not: short for ``route=Route.version(...)``, and not together with a route or an
            affinity. An activity of a pinned run goes to the run's version if it says none; with
            ``auto_upgrade`` it goes to the current (or ramping) one of its task queue all the same.
        requires: Capabilities that its worker must have: ``{"gpu"}``, or a `Requires` that also
            says what becomes of it if nobody has them.
        affinity: It follows, to their host or process, earlier activities of the run with the
            same affinity; the first of them goes to the shared task queue. For activities of
            workflows; not together with a route.
        affinity_group: Tells affinities of one run from each other, when there are several.
        on_lost: What becomes of it when that host or process is gone: it fails at once, its cause
            an `AffinityLostError` ("fail", the default); it goes to the shared task queue, and
            later ones follow it to where it runs ("restart_affinity"); or it waits for the host
            to come back, for as long as its timeouts let it ("wait").
        priority: 1 (first) to 5, default 3: what waits begins strictly in this order. An activity
            of a workflow has the workflow's if it says none.
        retry_policy: `RetryPolicy()` when not said.
        start_to_close_timeout: Bound of one attempt.
        schedule_to_start_timeout: Bound of the wait in the queue, per attempt; never retried.
        schedule_to_close_timeout: Bound of everything, retries included; never retried.
        heartbeat_timeout: Longest silence between heartbeats of a running attempt.
        headers: Texts that travel with it, for traffic rules and the activity's code. An activity
            of a workflow has the workflow's as well; the same name counts at the call first.
        rate_limit_key: What shares a limit with it on its task queue: a tenant, a host that it
            calls. 1 to `KEY_BYTES_MAX` bytes as UTF-8.
        fairness_key: Whose it is: a tenant, a customer. The keys of one task queue and priority
            share what begins by their weights, however many tasks one of them has waiting. 1 to
            `FAIRNESS_KEY_BYTES_MAX` bytes as UTF-8. An activity of a workflow has the workflow's
            if it says none.
        fairness_weight: 0.001 to 1000, default 1.0: a key of weight 2 gets twice as much as one
            of weight 1. Inherited as the key is.
    """

    task_queue: str | None = None
    route: Route | None = None
    requires: Requires | Collection[str] | None = None
    priority: int | None = None
    retry_policy: RetryPolicy | None = None
    start_to_close_timeout: timedelta | None = None
    schedule_to_start_timeout: timedelta | None = None
    schedule_to_close_timeout: timedelta | None = None
    heartbeat_timeout: timedelta | None = None
    headers: Mapping[str, str] | None = None
    rate_limit_key: str | None = None
    fairness_key: str | None = None
    fairness_weight: float | None = None
    affinity: AffinityKind | None = None
    affinity_group: str | None = None
    on_lost: OnLost | None = None
    version: VersioningOverride | WorkerDeploymentVersion | str | None = None

    def __post_init__(self) -> None:
        for name in (
            "start_to_close_timeout",
            "schedule_to_start_timeout",
            "schedule_to_close_timeout",
            "heartbeat_timeout",
        ):
            value = getattr(self, name)
            if value is not None:
                check_duration(name, value)
        if self.retry_policy is not None and not isinstance(self.retry_policy, RetryPolicy):
            raise InvalidArgument("retry_policy must be a RetryPolicy")
        if self.route is not None and not isinstance(self.route, Route):
            raise InvalidArgument("route must be a Route")
        self._check_version()
        Requires.of(self.requires)
        if self.task_queue is not None and not isinstance(self.task_queue, str):
            raise InvalidArgument("task_queue must be a string")
        if self.headers is not None:
            check_headers("headers", self.headers)
        if self.rate_limit_key is not None:
            check_key("rate_limit_key", self.rate_limit_key)
        if self.fairness_key is not None:
            check_fairness_key("fairness_key", self.fairness_key)
        if self.fairness_weight is not None:
            check_fairness_weight("fairness_weight", self.fairness_weight)
        self._check_affinity()
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

    def _check_version(self) -> None:
        if self.version is None:
            return
        versioning_override("version", self.version)
        if self.route is not None or self.affinity is not None:
            raise InvalidArgument("version, route and affinity exclude each other; say one of them")

    @property
    def auto_upgrade(self) -> bool:
        """Whether it is free of its run's version."""
        return versioning_override("version", self.version) == AUTO_UPGRADE_WORD

    @property
    def place(self) -> Route | None:
        """Its route, or that to its version."""
        if self.version is None or self.auto_upgrade:
            return self.route
        return Route.version(versioning_override("version", self.version))

    def _check_affinity(self) -> None:
        if self.affinity is not None:
            _check_word("affinity", self.affinity, get_args(AffinityKind))
            if self.route is not None:
                raise InvalidArgument("route and affinity exclude each other; say one of them")
        if self.on_lost is not None:
            _check_word("on_lost", self.on_lost, get_args(OnLost))
        group = self.affinity_group
        if group is None:
            return
        if not isinstance(group, str) or not group or not group.isprintable():
            raise InvalidArgument("affinity_group must be a non-empty, printable string")
        if len(group.encode()) > AFFINITY_GROUP_BYTES_MAX:
            raise InvalidArgument(
                f"affinity_group is {len(group.encode())} bytes long;"
                f" the bound is {AFFINITY_GROUP_BYTES_MAX}"
            )

    def over(self, defaults: ActivityOptions) -> ActivityOptions:
        """These options, completed by ``defaults`` where they say nothing.

        A route, a version or an affinity (with all that belongs to it) takes the place of whichever
        of them ``defaults`` have.
        """
        if self.route is not None or self.version is not None:
            defaults = replace(
                defaults, route=None, version=None, affinity=None, affinity_group=None, on_lost=None
            )
        elif self.affinity is not None:
            defaults = replace(defaults, route=None, version=None)
        said = {name: v for name in _NAMES if (v := getattr(self, name)) is not None}
        if self.headers and defaults.headers:
            said["headers"] = {**defaults.headers, **self.headers}
        return replace(defaults, **said)


_NAMES = tuple(field.name for field in fields(ActivityOptions))


def _check_word(argument: str, value: object, words: Sequence[str]) -> None:
    if value not in words:
        raise InvalidArgument(f"{argument} is {value!r}; it must be one of: {', '.join(words)}")


class ActivityOptionsDict(TypedDict, total=False):
    """The keywords of `ActivityOptions`, for signatures."""

    task_queue: str | None
    route: Route | None
    requires: Requires | Collection[str] | None
    priority: int | None
    retry_policy: RetryPolicy | None
    start_to_close_timeout: timedelta | None
    schedule_to_start_timeout: timedelta | None
    schedule_to_close_timeout: timedelta | None
    heartbeat_timeout: timedelta | None
    headers: Mapping[str, str] | None
    rate_limit_key: str | None
    fairness_key: str | None
    fairness_weight: float | None
    affinity: AffinityKind | None
    affinity_group: str | None
    on_lost: OnLost | None
    version: VersioningOverride | WorkerDeploymentVersion | str | None


def options_from(keywords: Any) -> ActivityOptions:
    """Make `ActivityOptions` of keywords; an unknown one is an `InvalidArgument`."""
    unknown = sorted(set(keywords).difference(_NAMES))
    if unknown:
        raise InvalidArgument(
            f"unknown activity option {unknown[0]!r}; known are: {', '.join(sorted(_NAMES))}"
        )
    return ActivityOptions(**keywords)
