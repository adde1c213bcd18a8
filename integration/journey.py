"""What the journeys have in common: worker processes to be killed, stopped and started again."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pika
from click.testing import CliRunner, Result

from integration.journey_activities import LEDGER, Program
from integration.ledger import SUCCESS, Findings, Ledger, check
from tq_broker.cli.main import cli
from tq_broker.client import BlockingActivityHandle, BlockingClient
from tq_broker.client.core import ClientCore
from tq_broker.exceptions import ActivityError, ApplicationError
from tq_broker.model.names import QueueName

ROOT = Path(__file__).parents[1]
PATIENCE_S = 60.0


def wait_until(is_true: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> float:
    """Wait for it; returns how long that took."""
    begun = time.monotonic()
    while not is_true():
        assert time.monotonic() - begun < seconds, f"not within {seconds:g} s: {what}"
        time.sleep(0.005)
    return time.monotonic() - begun


def backlog(core: ClientCore, plain: QueueName) -> int:
    """What waits in a plain queue, and in the priority queue beside it."""
    queues = [plain, core.names.priority(plain)]
    found = [core.broker.stats(str(queue), core.deadline()) for queue in queues]
    return sum(one.ready for one in found if one is not None)


def measured(what: str, value: float) -> None:
    """Tell a figure; ``pytest -rP`` shows them."""
    print(f"measured: {value:.3g} {what}")


def is_lost(error: BaseException | None) -> bool:
    """Whether the activity ended because its last attempt was lost with its worker."""
    return (
        isinstance(error, ActivityError)
        and isinstance(error.cause, ApplicationError)
        and error.cause.type == "WorkerLost"
    )


def pika_parameters(url: str) -> pika.URLParameters:
    """``url`` as pika reads it, for which ``//`` is an empty vhost."""
    return pika.URLParameters(f"{url.removesuffix('//')}/%2F" if url.endswith("//") else url)


class WorkerProcess:
    """A worker in a process of its own. Made by `Site.worker`."""

    def __init__(self, program: Program, ledger: Ledger, log: Path) -> None:
        self.program = program
        self.log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "integration.journey_activities",
                    json.dumps(dataclasses.asdict(program)),
                ],
                cwd=ROOT,
                env={**os.environ, LEDGER: ledger.path},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                # So that its children go with it when the test ends.
                start_new_session=True,
            )
        self.worker_id = ""

    @property
    def pid(self) -> int:
        return self._process.pid

    def ready(self) -> WorkerProcess:
        """Wait until it serves."""
        if not self.worker_id:
            assert self._process.stdout is not None
            word, _, self.worker_id = self._process.stdout.readline().strip().partition(" ")
            assert word == "ready", f"the worker did not start:\n{self.said()}"
        return self

    def said(self) -> str:
        """What it has logged."""
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """As a machine that hangs."""
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """What a service manager sends; returns at once."""
        self._process.terminate()

    def wait(self, seconds: float = PATIENCE_S) -> int:
        """Wait for its end; returns its exit code."""
        return self._process.wait(seconds)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Site:
    """One namespace on one broker: a client, a ledger, and any number of worker processes."""

    def __init__(self, url: str, namespace: str, directory: Path) -> None:
        self.url = url
        self.namespace = namespace
        self.ledger = Ledger(directory / "ledger.sqlite")
        self.client = BlockingClient.connect(url, namespace=namespace, timeout=60)
        self.workers: list[WorkerProcess] = []
        self._directory = directory
        self._numbers = itertools.count(1)

    def worker(
        self,
        *task_queues: str,
        activities: Sequence[str] = (),
        heartbeat_s: float = 10.0,
        **options: Any,
    ) -> WorkerProcess:
        """A worker process; call `WorkerProcess.ready` before you rely on it."""
        program = Program(
            url=self.url,
            namespace=self.namespace,
            task_queues=list(task_queues or ("q",)),
            activities=list(activities),
            heartbeat_s=heartbeat_s,
            options=options,
        )
        log = self._directory / f"worker-{next(self._numbers)}.log"
        self.workers.append(WorkerProcess(program, self.ledger, log))
        return self.workers[-1]

    def again(self, worker: WorkerProcess) -> WorkerProcess:
        """A new process in place of ``worker``, as a supervisor would start it."""
        self.workers.append(WorkerProcess(worker.program, self.ledger, worker.log))
        return self.workers[-1]

    def invoke(self, *arguments: str, code: int = 0) -> Result:
        """Run a command, which has to end with ``code``."""
        where = ("-b", self.url, "--namespace", self.namespace)
        result = CliRunner().invoke(cli, [*where, *arguments])
        assert result.exit_code == code, result.output + result.stderr
        return result

    def key(self) -> str:
        """A key for the ledger."""
        return f"{next(self._numbers)}-{secrets.token_hex(3)}"

    def load(
        self, activity: Any, keys: Sequence[str], *args: Any, **options: Any
    ) -> dict[str, BlockingActivityHandle[Any]]:
        """Start ``activity(key, *args)`` for every key, with it in the ledger."""
        self.ledger.write("intent", *keys)
        calls = [(key, *args) for key in keys]
        options.setdefault("task_queue", "q")
        handles = self.client.start_activities(activity, calls, **options)
        self.ledger.write("accepted", *keys)
        return dict(zip(keys, handles, strict=True))

    def collect(
        self, handles: dict[str, BlockingActivityHandle[Any]], seconds: float = PATIENCE_S
    ) -> dict[str, BaseException | None]:
        """Wait for every outcome and write it down; returns the errors."""
        deadline = time.monotonic() + seconds
        errors: dict[str, BaseException | None] = {}
        for key, handle in handles.items():
            try:
                handle.result(max(0.0, deadline - time.monotonic()))
            except ActivityError as error:
                errors[key] = error
                self.ledger.write("done", key, note=str(error))
            else:
                errors[key] = None
                self.ledger.write("done", key, note=SUCCESS)
        return errors

    def begun(self, key: str) -> bool:
        """Whether an attempt of ``key`` has begun."""
        return bool(self.ledger.events("start", key))

    def wait_begun(self, key: str) -> None:
        wait_until(lambda: self.begun(key), f"start of {key}")

    def check(self, *, once: Sequence[str] = ()) -> Findings:
        return check(self.ledger.events(), once=once)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.client.close()
        self.ledger.close()


@contextlib.contextmanager
def site_at(url: str, namespace: str, directory: Path) -> Iterator[Site]:
    """A `Site` for a test."""
    site = Site(url, namespace, directory)
    try:
        yield site
    finally:
        site.close()
