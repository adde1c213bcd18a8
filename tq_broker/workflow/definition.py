"""What makes a class a workflow: the decorators, and the definition that they leave behind.

Definitions are checked when the class is made, so that a mistake is an error at import and not a
workflow that hangs.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

from tq_broker.common import (
    ActivityOptions,
    AffinityKind,
    OnLost,
    Requires,
    Route,
    VersioningBehavior,
    VersioningOverride,
    WorkerDeploymentVersion,
    versioning_override,
)
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.affinity import affinity_of
from tq_broker.model.names import check_task_queue, check_text
from tq_broker.model.tasks import check_place

NAME_BYTES_MAX = 200
_WORKFLOW = "__tq_broker_workflow__"
_RUN = "__tq_broker_run__"
_INIT = "__tq_broker_init__"
_HANDLER = "__tq_broker_handler__"

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
C = TypeVar("C", bound=type)
F = TypeVar("F", bound=Callable[..., Any])
Kind = Literal["signal", "query", "update"]


class HandlerUnfinishedPolicy(enum.Enum):
    """What it means that a workflow ends while a handler is at work."""

    WARN_AND_ABANDON = 1
    ABANDON = 2


@dataclass(frozen=True)
class Function:
    """A function of the author's, with what its arguments and its result are.

    Attributes:
        bound: How many leading parameters are not arguments: 1 for a method's ``self``.
    """

    fn: Callable[..., Any]
    bound: int = 1

    @cached_property
    def _hints(self) -> dict[str, Any]:
        try:
            return typing.get_type_hints(self.fn)
        except Exception:  # a hint that cannot be resolved is as good as none
            return {}

    @cached_property
    def arg_types(self) -> tuple[Any, ...]:
        """The type hint of each argument; `typing.Any` where there is none."""
        parameters = _parameters(self.fn)[self.bound :]
        return tuple(
            self._hints.get(p.name, Any) for p in parameters if p.kind is not p.VAR_POSITIONAL
        )

    @cached_property
    def result_type(self) -> Any:
        """The return type hint; `typing.Any` without one."""
        return self._hints.get("return", Any)

    @cached_property
    def is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.fn)


@dataclass(frozen=True)
class Handler(Function):
    """A signal, query or update handler.

    Attributes:
        name: ``None`` for the dynamic one, which gets the name and a ``Sequence[RawValue]``.
        validator: Name of the method that looks at an update's arguments before it is accepted;
            or, of a handler that was set at run time, the function itself.
    """

    kind: Kind = "signal"
    name: str | None = None
    description: str = ""
    unfinished_policy: HandlerUnfinishedPolicy = HandlerUnfinishedPolicy.WARN_AND_ABANDON
    validator: Callable[..., None] | None = None


Handlers = Mapping["str | None", Handler]


@dataclass(frozen=True)
class WorkflowDefinition:
    """A class that is a workflow.

    Attributes:
        name: The workflow type; empty for the dynamic one, which serves every type that has no
            workflow of its own.
        init_takes_input: ``__init__`` gets the arguments of the run method.
        failure_exception_types: Exceptions that fail the workflow, beside `FailureError`.
        defaults: Its options for those who start it and say nothing else: see
            `tq_broker.model.precedence`.
        versioning_behavior: What a new deployment version means for open runs.
    """

    name: str
    cls: type
    run: Function
    signals: Handlers
    queries: Handlers
    updates: Handlers
    init_takes_input: bool = False
    sandboxed: bool = True
    dynamic: bool = False
    failure_exception_types: tuple[type[BaseException], ...] = field(default=())
    defaults: Mapping[str, Any] = field(default_factory=dict)
    versioning_behavior: VersioningBehavior = VersioningBehavior.UNSPECIFIED

    @property
    def arg_types(self) -> tuple[Any, ...]:
        return self.run.arg_types

    @property
    def result_type(self) -> Any:
        return self.run.result_type


# --- decorators -------------------------------------------------------------------------------


@overload
def defn(cls: C, /) -> C: ...


@overload
def defn(
    *,
    name: str | None = None,
    sandboxed: bool = True,
    dynamic: bool = False,
    failure_exception_types: Sequence[type[BaseException]] = (),
    task_queue: str | None = None,
    priority: int | None = None,
    fairness_key: str | None = None,
    fairness_weight: float | None = None,
    versioning_behavior: VersioningBehavior = VersioningBehavior.UNSPECIFIED,
    version: VersioningOverride | WorkerDeploymentVersion | str | None = None,
    route: Route | None = None,
    requires: Collection[str] | Requires | None = None,
    affinity: AffinityKind | None = None,
    affinity_group: str | None = None,
    on_lost: OnLost | None = None,
) -> Callable[[C], C]: ...


def defn(
    cls: Any = None,
    /,
    *,
    name: str | None = None,
    sandboxed: bool = True,
    dynamic: bool = False,
    failure_exception_types: Sequence[type[BaseException]] = (),
    task_queue: str | None = None,
    priority: int | None = None,
    fairness_key: str | None = None,
    fairness_weight: float | None = None,
    versioning_behavior: VersioningBehavior = VersioningBehavior.UNSPECIFIED,
    version: VersioningOverride | WorkerDeploymentVersion | str | None = None,
    route: Route | None = None,
    requires: Collection[str] | Requires | None = None,
    affinity: AffinityKind | None = None,
    affinity_group: str | None = None,
    on_lost: OnLost | None = None,
) -> Any:
    """Make a class a workflow.

    Args:
        name: The workflow type; the class's name when not given.
        sandboxed: False lets its code reach for clock, randomness, threads, files and sockets.
        dynamic: Serve every type that has no workflow of its own; the run method takes one
            argument, a ``Sequence[RawValue]``.
        failure_exception_types: Exceptions that fail the workflow. Others, unless they are
            `FailureError`, fail only the workflow task, which is tried again.
        task_queue: Where it goes, when who starts it does not say.
        priority: 1 (first) to 5 of its activities that say none, as ``task_queue``.
        fairness_key, fairness_weight: Whose they are, and its weight, as ``task_queue``.
        versioning_behavior: ``PINNED``: a run stays with the deployment version that it began
            with. ``AUTO_UPGRADE``: it follows the current one. For workers with a deployment.
        version: The deployment version (``shop.1.4``) that its runs are pinned to, when who starts
            them does not say; or ``auto_upgrade``.
        route: The host or process whose workers have its workflow tasks, as ``task_queue``.
        requires: Capabilities that those must have, as ``task_queue``.
        affinity, affinity_group, on_lost: Whom its activities and children follow that do not say
            where they run (see `tq_broker.common.ActivityOptions`), as ``task_queue``.

    Raises:
        InvalidArgument: the class cannot be a workflow; the message says why.
    """

    defaults = _defaults(
        task_queue=task_queue,
        priority=priority,
        fairness_key=fairness_key,
        fairness_weight=fairness_weight,
        version=version,
        route=route,
        requires=requires,
        bond={"affinity": affinity, "affinity_group": affinity_group, "on_lost": on_lost},
    )

    def decorate(target: Any) -> Any:
        if not isinstance(versioning_behavior, VersioningBehavior):
            raise InvalidArgument("versioning_behavior must be a VersioningBehavior")
        definition = dataclasses.replace(
            _define(target, name, sandboxed, dynamic, tuple(failure_exception_types)),
            defaults=defaults,
            versioning_behavior=versioning_behavior,
        )
        setattr(target, _WORKFLOW, definition)
        setattr(definition.run.fn, _WORKFLOW, definition)
        return target

    return decorate if cls is None else decorate(cls)


def _defaults(*, version: object, bond: Mapping[str, Any], **said: Any) -> dict[str, Any]:
    check_place(ActivityOptions(**said))
    affinity_of(ActivityOptions(**bond))
    if said["task_queue"] is not None:
        check_task_queue(said["task_queue"])
    said["version"] = versioning_override("version", version) or None
    return {name: value for name, value in {**said, **bond}.items() if value is not None}


def run(fn: F) -> F:
    """Mark the method that is the workflow. It must be ``async``."""
    if not inspect.iscoroutinefunction(fn):
        raise InvalidArgument(f"@workflow.run: {_name(fn)} must be an async method")
    setattr(fn, _RUN, True)
    return fn


def init(fn: F) -> F:
    """Mark ``__init__`` as taking the run method's arguments."""
    if _name(fn) != "__init__":
        raise InvalidArgument("@workflow.init is for __init__ only")
    setattr(fn, _INIT, True)
    return fn


@overload
def signal(fn: F, /) -> F: ...


@overload
def signal(
    *,
    name: str | None = None,
    dynamic: bool = False,
    unfinished_policy: HandlerUnfinishedPolicy = HandlerUnfinishedPolicy.WARN_AND_ABANDON,
    description: str = "",
) -> Callable[[F], F]: ...


def signal(fn: Any = None, /, **options: Any) -> Any:
    """Make a method a signal handler; it may be ``async``, and returns nothing.

    Args:
        name: The signal; the method's name when not given.
        dynamic: Take every signal that has no handler of its own; the method takes the signal's
            name and a ``Sequence[RawValue]``.
        unfinished_policy: Whether to warn when the workflow ends in the middle of it.
        description: For people who look at the workflow from outside.
    """
    return _handler("signal", fn, options)


@overload
def query(fn: F, /) -> F: ...


@overload
def query(
    *, name: str | None = None, dynamic: bool = False, description: str = ""
) -> Callable[[F], F]: ...


def query(fn: Any = None, /, **options: Any) -> Any:
    """Make a method a query handler: not ``async``, and it must change nothing."""
    return _handler("query", fn, options)


class UpdateMethod(Protocol[P, R_co]):
    """An update handler, which can be given a validator."""

    __name__: str

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...

    def validator(self, fn: Callable[P, None]) -> Callable[P, None]:
        """Make a method its validator: it raises if the update is to be refused, and must change
        nothing."""


class _UpdateDecorator(Protocol):
    def __call__(self, fn: Callable[P, R_co]) -> UpdateMethod[P, R_co]: ...


@overload
def update(fn: Callable[P, R_co], /) -> UpdateMethod[P, R_co]: ...


@overload
def update(
    *,
    name: str | None = None,
    dynamic: bool = False,
    unfinished_policy: HandlerUnfinishedPolicy = HandlerUnfinishedPolicy.WARN_AND_ABANDON,
    description: str = "",
) -> _UpdateDecorator: ...


def update(fn: Any = None, /, **options: Any) -> Any:
    """Make a method an update handler; it may be ``async``. Its result goes to the caller.

    The arguments are those of `signal`. ``@<method>.validator`` adds a validator.
    """

    def decorate(target: Any) -> Any:
        _handler("update", target, options)

        def validator(check: Callable[..., None]) -> Callable[..., None]:
            if inspect.iscoroutinefunction(check):
                raise InvalidArgument(f"validator {_name(check)} must not be async")
            handler = vars(target)[_HANDLER]
            setattr(target, _HANDLER, _with_validator(handler, check))
            return check

        target.validator = validator
        return target

    return decorate if fn is None else decorate(fn)


def _with_validator(handler: Handler, check: Callable[..., None]) -> Handler:
    return Handler(
        handler.fn,
        handler.bound,
        handler.kind,
        handler.name,
        handler.description,
        handler.unfinished_policy,
        check,
    )


# --- checks -----------------------------------------------------------------------------------


def _name(fn: Any) -> str:
    return getattr(fn, "__name__", repr(fn))


def _parameters(fn: Callable[..., Any]) -> list[inspect.Parameter]:
    try:
        return list(inspect.signature(fn).parameters.values())
    except ValueError:  # some functions that are written in C do not say what they take
        return []


def _needs_keywords(fn: Callable[..., Any]) -> bool:
    return any(p.kind is p.KEYWORD_ONLY and p.default is p.empty for p in _parameters(fn))


def _handler(kind: Kind, fn: Any, options: dict[str, Any]) -> Any:
    def decorate(target: Any) -> Any:
        setattr(target, _HANDLER, make_handler(kind, target, **options))
        return target

    return decorate if fn is None else decorate(fn)


def make_handler(
    kind: Kind,
    fn: Callable[..., Any],
    *,
    name: str | None = None,
    dynamic: bool = False,
    bound: int = 1,
    **more: Any,
) -> Handler:
    """A handler out of ``fn``. Raises `InvalidArgument` if it cannot be one."""
    if not callable(fn):
        raise InvalidArgument(f"@workflow.{kind} takes its options by keyword")
    if dynamic and name is not None:
        raise InvalidArgument(f"a dynamic {kind} handler has no name")
    if kind == "query" and inspect.iscoroutinefunction(fn):
        raise InvalidArgument(f"query handler {_name(fn)} must not be async")
    if _needs_keywords(fn):
        raise InvalidArgument(
            f"{kind} handler {_name(fn)} has keyword-only parameters without a default;"
            " arguments are sent by position"
        )
    handler_name = (
        None if dynamic else check_text("name", name or _name(fn), bytes_max=NAME_BYTES_MAX)
    )
    handler = Handler(fn, bound, kind=kind, name=handler_name, **more)
    if dynamic and len(handler.arg_types) != 2:
        raise InvalidArgument(
            f"dynamic {kind} handler {_name(fn)} must take a name and a Sequence[RawValue]"
        )
    return handler


def _members(cls: type) -> Iterator[Any]:
    """What is found on instances of a class: the most derived of each name."""
    for name in dict.fromkeys(name for base in cls.__mro__ for name in vars(base)):
        yield inspect.getattr_static(cls, name)


def _define(
    cls: Any,
    name: str | None,
    sandboxed: bool,
    dynamic: bool,
    failure_exception_types: tuple[type[BaseException], ...],
) -> WorkflowDefinition:
    if not inspect.isclass(cls):
        raise InvalidArgument("@workflow.defn is for classes, and takes its options by keyword")
    if dynamic and name is not None:
        raise InvalidArgument("a dynamic workflow has no name")
    run_method = _run_method(cls)
    init_takes_input = hasattr(cls.__init__, _INIT)
    _check_constructor(cls, run_method, init_takes_input)
    handlers = _handlers(cls)
    if dynamic and len(run_method.arg_types) != 1:
        raise InvalidArgument(
            f"dynamic workflow {cls.__name__}: its run method must take one Sequence[RawValue]"
        )
    type_name = (
        "" if dynamic else check_text("name", name or cls.__name__, bytes_max=NAME_BYTES_MAX)
    )
    return WorkflowDefinition(
        type_name,
        cls,
        run_method,
        handlers["signal"],
        handlers["query"],
        handlers["update"],
        init_takes_input,
        sandboxed,
        dynamic,
        failure_exception_types,
    )


def _run_method(cls: type) -> Function:
    own = [fn for fn in vars(cls).values() if getattr(fn, _RUN, False)]
    if not own and any(getattr(fn, _RUN, False) for b in cls.__mro__ for fn in vars(b).values()):
        raise InvalidArgument(
            f"workflow {cls.__name__} must define its @workflow.run method itself,"
            " also if a base class has one"
        )
    if len(own) != 1:
        raise InvalidArgument(
            f"workflow {cls.__name__} must have one @workflow.run method; it has {len(own)}"
        )
    if _needs_keywords(own[0]):
        raise InvalidArgument(
            f"workflow {cls.__name__}: the run method has keyword-only parameters without a"
            " default; arguments are sent by position"
        )
    return Function(own[0])


def _check_constructor(cls: Any, run_method: Function, takes_input: bool) -> None:
    if takes_input:
        if Function(cls.__init__).arg_types != run_method.arg_types:
            raise InvalidArgument(
                f"workflow {cls.__name__}: @workflow.init must take the arguments of the run method"
            )
        return
    parameters = _parameters(cls.__init__)[1:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(p.default is p.empty and p.kind not in variadic for p in parameters):
        raise InvalidArgument(
            f"workflow {cls.__name__}: __init__ must not need arguments,"
            " unless it is decorated with @workflow.init"
        )


def _handlers(cls: type) -> dict[Kind, dict[str | None, Handler]]:
    found: dict[Kind, dict[str | None, Handler]] = {"signal": {}, "query": {}, "update": {}}
    for fn in _members(cls):
        handler = getattr(fn, _HANDLER, None)
        if not isinstance(handler, Handler):
            continue
        same_kind = found[handler.kind]
        if handler.name in same_kind:
            which = f"named {handler.name}" if handler.name else "that is dynamic"
            raise InvalidArgument(
                f"workflow {cls.__name__} has more than one {handler.kind} handler {which}"
            )
        same_kind[handler.name] = handler
    return found


# --- from the author's objects to definitions ---------------------------------------------------


def definition_of(target: Any) -> WorkflowDefinition:
    """The definition behind a workflow class or its run method.

    Raises:
        InvalidArgument: it is not decorated.
    """
    found = vars(target).get(_WORKFLOW) if inspect.isclass(target) else None
    found = found or getattr(target, _WORKFLOW, None)
    if not isinstance(found, WorkflowDefinition) or (
        inspect.isclass(target) and found.cls is not target
    ):
        raise InvalidArgument(f"{_name(target)} is not a workflow: decorate it with @workflow.defn")
    return found


def handler_of(kind: Kind, target: Any) -> Handler:
    """The handler behind a method.

    Raises:
        InvalidArgument: it is not decorated with ``@workflow.<kind>``, or it is the dynamic one.
    """
    found = getattr(target, _HANDLER, None)
    if not isinstance(found, Handler) or found.kind != kind:
        raise InvalidArgument(f"{_name(target)} is not a {kind}: decorate it with @workflow.{kind}")
    if found.name is None:
        raise InvalidArgument(f"{_name(target)} is a dynamic {kind} handler: give the name instead")
    return found
