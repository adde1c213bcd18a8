"""What workflow code must not reach for, and who may all the same."""

from __future__ import annotations

import asyncio
import builtins
import copy
import datetime
import gc
import io
import logging
import os
import pickle
import random
import secrets
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.worker.replays import Run, types
from tq_broker import workflow
from tq_broker.converter import DataConverter
from tq_broker.model.events import WorkflowTaskScheduled
from tq_broker.model.workflow_tasks import TaskFailedCause
from tq_broker.worker import guard

ENTROPY = random.SystemRandom()
CALLS: dict[str, tuple[Callable[[], Any], str]] = {
    "time.time": (lambda: time.time(), "workflow.time()"),
    "time.time_ns": (lambda: time.time_ns(), "workflow.time_ns()"),
    "time.monotonic": (lambda: time.monotonic(), "workflow.time()"),
    "time.sleep": (lambda: time.sleep(0), "asyncio.sleep()"),
    "datetime.datetime.now": (lambda: datetime.datetime.now(), "workflow.now()"),  # noqa: DTZ005
    "datetime.datetime.utcnow": (lambda: datetime.datetime.utcnow(), "workflow.now()"),  # noqa: DTZ003
    "datetime.date.today": (lambda: datetime.date.today(), "workflow.now()"),  # noqa: DTZ011
    "random.random": (lambda: random.random(), "workflow.random()"),
    "random.choice": (lambda: random.choice([1]), "workflow.random()"),
    "random.Random without a seed": (lambda: random.Random(), "workflow.random()"),
    "random.SystemRandom.random": (lambda: ENTROPY.random(), "workflow.random()"),
    "random.SystemRandom.getrandbits": (lambda: ENTROPY.randrange(9), "workflow.random()"),
    "uuid.uuid4": (lambda: uuid.uuid4(), "workflow.uuid4()"),
    "uuid.uuid1": (lambda: uuid.uuid1(), "workflow.uuid4()"),
    "os.urandom": (lambda: os.urandom(1), "workflow.random()"),
    "secrets.token_hex": (lambda: secrets.token_hex(), "workflow.random()"),
    "threading.Thread.start": (
        lambda: threading.Thread(target=int).start(),
        "asyncio.create_task()",
    ),
    "socket.socket": (lambda: socket.socket(), "an activity"),
    "subprocess.Popen": (lambda: subprocess.run(["true"], check=True), "an activity"),
    "builtins.open": (lambda: open(os.devnull), "an activity"),  # noqa: SIM115
    "io.open": (lambda: io.open(os.devnull), "an activity"),  # noqa: SIM115, UP020
}


@workflow.defn
class Reaching:
    @workflow.run
    async def run(self, name: str) -> None:
        CALLS[name][0]()


@workflow.defn(sandboxed=False)
class Free:
    @workflow.run
    async def run(self, name: str) -> None:
        close(CALLS[name][0]())


@workflow.defn
class LetThrough:
    @workflow.run
    async def run(self, name: str) -> None:
        with workflow.unsafe.sandbox_unrestricted(), workflow.unsafe.imports_passed_through():
            close(CALLS[name][0]())


def close(result: Any) -> None:
    if hasattr(result, "close"):
        result.close()


@pytest.mark.parametrize("name", CALLS)
def test_what_differs_at_each_replay_is_caught(name: str) -> None:
    turn = Run(Reaching, name).task()
    assert turn.failure is not None
    assert turn.failure.cause is TaskFailedCause.NON_DETERMINISTIC
    assert isinstance(turn.failure.error, workflow.RestrictedWorkflowAccessError)
    message = turn.failure.failure.message
    assert name.replace("io.", "builtins.") in message
    assert CALLS[name][1] in message


@pytest.mark.parametrize("name", [n for n in CALLS if "utcnow" not in n])
@pytest.mark.parametrize("cls", [Free, LetThrough])
def test_it_can_be_let_through(cls: type, name: str) -> None:
    assert types(Run(cls, name).task()) == ["CompleteWorkflow"]


@pytest.mark.parametrize("name", [n for n in CALLS if "utcnow" not in n])
def test_for_everybody_else_nothing_changes(name: str) -> None:
    guard.install()
    guard.install()
    close(CALLS[name][0]())


def test_other_threads_are_untouched_while_workflow_code_runs() -> None:
    guard.install()
    told: list[float] = []
    thread = threading.Thread(target=lambda: told.append(time.time()))
    with guard.Engaged(True):
        pass
    thread.start()
    thread.join()
    assert told


def test_what_stands_in_is_hard_to_tell_from_what_it_stands_for() -> None:
    guard.install()

    class Limiter:
        clock = time.monotonic

    assert Limiter().clock() > 0
    assert pickle.loads(pickle.dumps(time.time)) is time.time
    assert pickle.loads(pickle.dumps(os.urandom)) is os.urandom
    assert time.time.__name__ == "time"
    assert io.open is builtins.open
    assert "built-in" in repr(builtins.open)
    assert datetime.datetime.now(datetime.timezone.utc).tzinfo is datetime.timezone.utc


@workflow.defn
class Seeded:
    @workflow.run
    async def run(self) -> bool:
        twin = copy.deepcopy(workflow.random())
        return random.Random(5).random() == random.Random(5).random() and twin.random() < 1


def test_a_generator_with_a_seed_is_deterministic() -> None:
    run = Run(Seeded)
    run.task()
    assert run.result() is True


class Subclass(datetime.datetime):
    pass


def test_subclasses_of_datetime_get_their_own() -> None:
    guard.install()
    assert type(Subclass.now(datetime.timezone.utc)) is Subclass


@workflow.defn
class Talking:
    @workflow.run
    async def run(self) -> str:
        logging.getLogger("anywhere").warning("said")
        workflow.logger.warning("said too")
        try:
            raise KeyError("x")
        except KeyError:
            workflow.logger.exception("with its trace")
        return datetime.datetime.fromtimestamp(0, datetime.timezone.utc).isoformat()


def test_logging_works(caplog: pytest.LogCaptureFixture, tmp_path: Any) -> None:
    handler = logging.FileHandler(tmp_path / "log", delay=True)
    logging.getLogger().addHandler(handler)
    try:
        assert types(Run(Talking).task()) == ["CompleteWorkflow"]
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
    assert "with its trace" in caplog.text
    assert "said too" in (tmp_path / "log").read_text()


class Salted:
    """Adds something random, as encryption does."""

    name = "salted"

    def encode(self, data: bytes) -> bytes:
        return os.urandom(4) + data

    def decode(self, data: bytes, bytes_max: int) -> bytes:
        return data[4:]


@workflow.defn
class Answering:
    @workflow.run
    async def run(self) -> int:
        return 5


def test_codecs_may_use_randomness() -> None:
    run = Run(Answering, converter=DataConverter(codecs=(Salted(),)))
    run.add(WorkflowTaskScheduled, task_queue="tq")
    turn = run.cached.activate(run.events, now_ms=1)
    assert types(turn) == ["CompleteWorkflow"]


@workflow.defn
class Collecting:
    @workflow.run
    async def run(self) -> None:
        gc.collect()


class Closing:
    """Somebody else's, left to the garbage collector; it uses files at its end."""

    def __init__(self) -> None:
        self.itself = self
        self.directory = tempfile.TemporaryDirectory()

    def __del__(self) -> None:
        open(os.devnull).close()
        self.directory.cleanup()


class Leaving:
    def __init__(self) -> None:
        self.itself = self
        self.directory = tempfile.TemporaryDirectory()


@pytest.mark.parametrize("cls", [Closing, Leaving])
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_what_is_collected_during_a_turn_may_end_as_it_likes(cls: type) -> None:
    run = Run(Collecting)
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        name = cls().directory.name
        assert types(run.task()) == ["CompleteWorkflow"]
        assert not os.path.exists(name)
    finally:
        if was_enabled:
            gc.enable()


@workflow.defn
class Completing:
    @workflow.run
    async def run(self) -> list[int]:
        async def give(number: int) -> int:
            return number

        found = [await each for each in asyncio.as_completed([give(n) for n in range(50)])]
        found += [await each for each in workflow.as_completed([give(n) for n in range(3)])]
        done, pending = await workflow.wait([give(n) for n in range(50)])
        return found + [task.result() for task in done] + [len(pending)]


def test_as_completed_keeps_the_order() -> None:
    run = Run(Completing)
    run.task()
    assert run.result() == [*range(50), *range(3), *range(50), 0]


def test_a_query_is_guarded_too() -> None:
    @workflow.defn
    class Asking:
        @workflow.run
        async def run(self) -> None:
            await asyncio.Event().wait()

        @workflow.query
        def when(self) -> float:
            return time.time()

    run = Run(Asking)
    run.task()
    answer = run.query("when")
    assert answer.failure is not None
    assert answer.failure.type == "RestrictedWorkflowAccessError"


def test_the_loop_has_no_threads_files_or_sockets() -> None:
    @workflow.defn
    class Threading:
        @workflow.run
        async def run(self) -> None:
            await asyncio.to_thread(int)

    turn = Run(Threading).task()
    assert turn.failure is not None
    assert "run_in_executor" in turn.failure.failure.message
