"""The guard around workflow code: it catches reaching for clock, randomness, threads, files,
sockets and processes, which would come out differently at replay.

Functions of the standard library are replaced once, by wrappers that look whether the calling
thread runs workflow code just now: for everybody else nothing changes. What was taken by name
before that (``from time import time``) is not seen; a guard finds mistakes, it is no prison.
"""

from __future__ import annotations

import asyncio
import ctypes
import datetime
import functools
import gc
import importlib
import random
import secrets
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from tq_broker.worker.loop import WorkflowLoop
from tq_broker.workflow.errors import RestrictedWorkflowAccessError
from tq_broker.workflow.unsafe import unrestricted

_TIME = "workflow.now() or workflow.time()"
_RANDOM = "workflow.random()"
_ACTIVITY = "an activity"
_TASK = "asyncio.create_task()"

_FUNCTIONS: dict[str, dict[str, str]] = {
    "time": {
        "time": _TIME,
        "time_ns": "workflow.time_ns()",
        "monotonic": _TIME,
        "monotonic_ns": "workflow.time_ns()",
        "perf_counter": _TIME,
        "perf_counter_ns": "workflow.time_ns()",
        "sleep": "asyncio.sleep() or workflow.sleep()",
    },
    "random": dict.fromkeys(random.__all__, _RANDOM),
    "secrets": dict.fromkeys(secrets.__all__, _RANDOM),
    "uuid": {"uuid1": "workflow.uuid4()", "uuid4": "workflow.uuid4()"},
    "os": dict.fromkeys(["urandom", "getrandom"], _RANDOM)
    | dict.fromkeys(["fork", "open", "posix_spawn", "system"], _ACTIVITY),
    "builtins": {"open": _ACTIVITY},
    "io": {"open": _ACTIVITY},
}
_METHODS: list[tuple[str, str, str, str]] = [
    ("random", "SystemRandom", "random", _RANDOM),
    ("random", "SystemRandom", "getrandbits", _RANDOM),
    ("random", "SystemRandom", "randbytes", _RANDOM),
    ("threading", "Thread", "start", _TASK),
    ("socket", "socket", "__init__", _ACTIVITY),
    ("subprocess", "Popen", "__init__", _ACTIVITY),
]
_CLOCKS = [(datetime.datetime, "now"), (datetime.datetime, "utcnow"), (datetime.date, "today")]

_TRUSTED = frozenset(
    [
        "bdb",
        "copy",
        "importlib",
        "linecache",
        "logging",
        "pdb",
        "pydevd",
        "tokenize",
        "traceback",
        "warnings",
        "weakref",
    ]
)
"""Modules that may do what they like for the code that calls them: it does not see the result."""
_CONVERTERS = frozenset(["tq_broker.converter", "tq_broker.model.payload"])
"""Behind these stand the user's codecs, which are no workflow code: encryption needs randomness."""


class _Place(threading.local):
    engaged = False


_place = _Place()
_lock = threading.Lock()
_installed = False


class Engaged:
    """A block in which this thread runs workflow code, guarded if ``wanted``."""

    __slots__ = ("_before", "_wanted")

    def __init__(self, wanted: bool) -> None:
        self._wanted = wanted

    def __enter__(self) -> None:
        self._before, _place.engaged = _place.engaged, self._wanted

    def __exit__(self, *_exc_info: object) -> None:
        _place.engaged = self._before


def install() -> None:
    """Put the wrappers in place, once in the process."""
    global _installed
    with _lock:
        if _installed:
            return
        _installed = True
        made: dict[Any, _Guarded] = {}  # `open` has two names, and is one
        for module_name, functions in _FUNCTIONS.items():
            module = importlib.import_module(module_name)
            for name, instead in functions.items():
                original = getattr(module, name, None)
                # Not every system has all of them; and classes are seen to by their methods.
                if original is not None and not isinstance(original, type):
                    guarded = made.setdefault(original, _Guarded(original, module_name, instead))
                    setattr(module, name, guarded)
        for module_name, class_name, name, instead in _METHODS:
            owner = getattr(importlib.import_module(module_name), class_name)
            shown = class_name if name == "__init__" else f"{class_name}.{name}"
            setattr(owner, name, _guarded_method(getattr(owner, name), module_name, shown, instead))
        random.Random.seed = _guarded_seed(random.Random.seed)  # type: ignore[method-assign]
        for owner, name in _CLOCKS:
            _guard_clock(owner, name)
        for module in (asyncio, asyncio.tasks):
            module.as_completed = _in_order(module.as_completed)  # type: ignore[attr-defined]


class _Guarded:
    """A function of a module. Not itself a function: in a class body that would become a method,
    which what it stands for does not."""

    def __init__(self, original: Callable[..., Any], module: str, instead: str) -> None:
        functools.update_wrapper(self, original)
        self.__module__ = module
        self._original = original
        self._told = (f"{module}.{original.__name__}", instead)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _place.engaged:
            _check(*self._told)
        return self._original(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)

    def __repr__(self) -> str:
        return repr(self._original)

    def __reduce__(self) -> str:
        return self._original.__name__


def _guarded_method(
    original: Callable[..., Any], module: str, shown: str, instead: str
) -> Callable[..., Any]:
    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if _place.engaged:
            _check(f"{module}.{shown}", instead)
        return original(self, *args, **kwargs)

    return method


def _guarded_seed(original: Callable[..., None]) -> Callable[..., None]:
    """A generator that is made with a seed is deterministic."""

    @functools.wraps(original)
    def seed(self: random.Random, a: Any = None, version: int = 2) -> None:
        if a is None and _place.engaged:
            _check("random.Random without a seed", _RANDOM)
        original(self, a, version)

    return seed


class _GuardedClock:
    """A class method of a class that is written in C."""

    def __init__(self, original: Any, told: str) -> None:
        self._original = original
        self._told = told

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        if _place.engaged:
            _check(self._told, "workflow.now()")
        return self._original.__get__(instance, owner)


def _guard_clock(owner: type, name: str) -> None:
    # The classes cannot be replaced (they are imported by name, and everybody's hints mean them),
    # and refuse to have attributes set: but their namespace is a dict like any other.
    if sys.implementation.name != "cpython":
        return
    namespace = gc.get_referents(vars(owner))[0]
    namespace[name] = _GuardedClock(namespace[name], f"{owner.__module__}.{owner.__name__}.{name}")
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(owner))


def _in_order(original: Callable[..., Any]) -> Callable[..., Any]:
    """`asyncio.as_completed` makes its tasks in the order of a set of coroutines, that of their
    addresses; on a workflow's loop they are made in the order that was given."""

    @functools.wraps(original)
    def as_completed(fs: Any, **options: Any) -> Any:
        if isinstance(asyncio._get_running_loop(), WorkflowLoop):
            fs = [asyncio.ensure_future(each) for each in fs]
        return original(fs, **options)

    return as_completed


def _check(name: str, instead: str) -> None:
    if unrestricted.get() or _is_trusted(sys._getframe(2)):
        return
    raise RestrictedWorkflowAccessError(
        f"{name} was called in workflow code, where it differs at each replay: use {instead}."
        " Or let it through: workflow.unsafe.sandbox_unrestricted(),"
        " @workflow.defn(sandboxed=False)"
    )


def _is_trusted(frame: FrameType | None) -> bool:
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module in _CONVERTERS or module.partition(".")[0] in _TRUSTED:
            return True
        if frame.f_code.co_name == "__del__":  # of anybody's object, whenever it is collected
            return True
        if module == WorkflowLoop.__module__:  # above it there is no workflow code
            return False
        frame = frame.f_back
    return False
