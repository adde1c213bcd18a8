"""An application: what ``-A module[:attr]`` names, as activities, workflows and worker options.

Rules of this file: the current directory is looked in first, as Python does for scripts; what is
wrong is said on one line, with the nearest name that exists.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from tq_broker.activity import ActivityDefinition, definition_of
from tq_broker.converter import DataConverter
from tq_broker.exceptions import InvalidArgument
from tq_broker.worker import WorkerOptions
from tq_broker.workflow.definition import definition_of as workflow_definition_of

_OPTIONS = {f.name for f in fields(WorkerOptions)}
_KEYWORDS = sorted(
    _OPTIONS | {"activities", "workflows", "data_converter", "task_queue", "task_queues"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """What a worker is made of.

    Attributes:
        name: As it was given with ``-A``.
        task_queues: Those that the application names itself, else those that its activities
            name at their decorators.
        options: Fields of `WorkerOptions`.
    """

    name: str
    activities: tuple[Callable[..., Any], ...]
    workflows: tuple[type, ...] = ()
    task_queues: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    data_converter: DataConverter | None = None

    def find(self, activity_type: str) -> Callable[..., Any] | None:
        """The activity of that type, if there is one."""
        for activity in self.activities:
            if definition_of(activity).name == activity_type:
                return activity
        return None

    def find_workflow(self, workflow_type: str) -> type | None:
        """The workflow of that type, if there is one."""
        for workflow in self.workflows:
            if workflow_definition_of(workflow).name == workflow_type:
                return workflow
        return None

    @property
    def types(self) -> tuple[str, ...]:
        """Its activity types; ``*`` for a dynamic one."""
        return tuple(sorted(definition_of(one).name or "*" for one in self.activities))

    @property
    def workflow_types(self) -> tuple[str, ...]:
        """Its workflow types; ``*`` for a dynamic one."""
        return tuple(sorted(workflow_definition_of(one).name or "*" for one in self.workflows))


def load_application(name: str) -> Application:
    """Import what ``name`` says.

    Raises:
        InvalidArgument: it is not there, raises when it is imported, or holds no activities and
            no workflows.
    """
    module_name, _, attribute = name.partition(":")
    if not module_name:
        raise InvalidArgument(f"-A {name!r}: write MODULE or MODULE:ATTR, such as app.tasks")
    module = _import(module_name)
    if not attribute:
        return _checked(name, _application(name, module))
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InvalidArgument(
                f"-A {name}: {module_name} has no {part!r}{_guess(part, dir(found))}"
            )
        found = getattr(found, part)
    return _checked(name, _application(name, found))


def _import(name: str) -> ModuleType:
    if name.endswith(".py") or "/" in name:
        right = name.removesuffix(".py").strip("./").replace("/", ".")
        raise InvalidArgument(f"-A {name}: is a path; write the module's name: -A {right}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if name == missing or name.startswith(f"{missing}."):
            guess = _guess(name, _modules_here())
            raise InvalidArgument(
                f"-A {name}: there is no module {missing!r} here ({here}) or installed{guess}"
            ) from error
        raise InvalidArgument(_failed_import(name, error)) from error
    except Exception as error:  # whatever a user's module does when it is imported
        raise InvalidArgument(_failed_import(name, error)) from error


def _failed_import(name: str, error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    user = [frame for frame in frames if "importlib" not in frame.filename]
    where = f" ({user[-1].filename}, line {user[-1].lineno})" if user[1:] else ""
    return f"-A {name}: cannot be imported: {type(error).__name__}: {error}{where}"


def _application(name: str, found: Any) -> Application:
    if isinstance(found, ModuleType):
        return Application(
            name=name,
            activities=tuple(_activities_of(found)),
            workflows=tuple(_workflows_of(found)),
        )
    if isinstance(found, Mapping):
        return _from_keywords(name, found)
    if isinstance(found, (str, bytes)):
        raise InvalidArgument(f"-A {name}: is a text, not a list of activities")
    if _is_activity(found) or _is_workflow(found):
        found = [found]
    if isinstance(found, Iterable):
        both = list(found)
        return Application(
            name=name,
            activities=tuple(one for one in both if not _is_workflow(one)),
            workflows=tuple(one for one in both if _is_workflow(one)),
        )
    methods = tuple(_methods_of(found))
    if methods:
        return Application(name=name, activities=methods)
    raise InvalidArgument(
        f"-A {name}: is a {type(found).__name__}; it must be a list of activities"
        " and workflows, a dict of Worker keywords, a module, or an object with activity methods"
    )


def _from_keywords(name: str, keywords: Mapping[str, Any]) -> Application:
    for key in keywords:
        if key not in _KEYWORDS:
            raise InvalidArgument(
                f"-A {name}: unknown worker option {key!r}{_guess(str(key), _KEYWORDS)};"
                f" known are: {', '.join(_KEYWORDS)}"
            )
    converter = keywords.get("data_converter")
    if converter is not None and not isinstance(converter, DataConverter):
        raise InvalidArgument(f"-A {name}: data_converter must be a DataConverter")
    one, several = keywords.get("task_queue"), keywords.get("task_queues", ())
    if isinstance(several, str):
        raise InvalidArgument(f"-A {name}: task_queues must be a list of names")
    return Application(
        name=name,
        activities=tuple(keywords.get("activities", ())),
        workflows=tuple(keywords.get("workflows", ())),
        task_queues=(*((one,) if one else ()), *several),
        options={key: value for key, value in keywords.items() if key in _OPTIONS},
        data_converter=converter,
    )


def _checked(name: str, application: Application) -> Application:
    definitions: list[ActivityDefinition] = []
    for activity in application.activities:
        try:
            definitions.append(definition_of(activity))
        except InvalidArgument as error:
            raise InvalidArgument(f"-A {name}: {error}") from None
    for workflow in application.workflows:
        if not _is_workflow(workflow):
            raise InvalidArgument(f"-A {name}: {workflow!r} is not decorated with @workflow.defn")
    if not definitions and not application.workflows:
        raise InvalidArgument(
            f"-A {name}: has no activities and no workflows; decorate functions with"
            " @activity.defn, classes with @workflow.defn"
        )
    if application.task_queues:
        return application
    named = {d.options.task_queue for d in definitions if d.options.task_queue is not None}
    return replace(application, task_queues=tuple(sorted(named)))


def _activities_of(module: ModuleType) -> Sequence[Callable[..., Any]]:
    """Decorated functions and instances of decorated classes, also those imported there."""
    found = {
        id(value): value
        for name, value in vars(module).items()
        if not name.startswith("__") and _is_activity(value)
    }
    return tuple(found.values())


def _workflows_of(module: ModuleType) -> Sequence[type]:
    """Decorated classes, also those imported there."""
    return tuple(dict.fromkeys(value for value in vars(module).values() if _is_workflow(value)))


def _methods_of(instance: object) -> Iterable[Callable[..., Any]]:
    if inspect.isclass(instance):
        return
    for name in dir(type(instance)):
        # Asked of the class first, so that no property is run.
        if _is_activity(getattr(type(instance), name, None)):
            yield getattr(instance, name)


def _is_activity(value: object) -> bool:
    if inspect.isclass(value) or not callable(value):
        return False
    try:
        definition_of(value)
    except InvalidArgument:
        return False
    except Exception:  # an object that answers to every attribute, as mocks do
        return False
    return True


def _is_workflow(value: object) -> bool:
    if not inspect.isclass(value):
        return False
    try:
        workflow_definition_of(value)
    except InvalidArgument:
        return False
    return True


def _modules_here() -> list[str]:
    here = Path.cwd()
    modules = [path.stem for path in here.glob("*.py")]
    packages = [path.parent for path in here.glob("*/__init__.py")]
    inside = [f"{p.name}.{path.stem}" for p in packages for path in p.glob("*.py")]
    return [*modules, *(path.name for path in packages), *inside]


def _guess(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, [word for word in known if word[:2] != "__"], n=1)
    return f", did you mean {near[0]!r}?" if near else ""
