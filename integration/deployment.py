"""A deployment: history and worker processes of one namespace, a client, and a ledger.

Each process is ``tq-broker`` as users run it, to be killed, frozen and started again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from integration.journey import PATIENCE_S, ROOT, wait_until
from integration.journey_activities import LEDGER
from integration.ledger import Ledger
from tq_broker.client import BlockingClient
from tq_broker.model.events import Event, load_events
from tq_broker.model.listing import parse
from tq_broker.stores.opening import migrate_store, open_store
from tq_broker.stores.store import RunRow, ShardRow, Store

CLIENT_TIMEOUT_S = 90.0
REST_WITHIN_S = 20.0
FAR_MS = 2**53
"""Whatever is to be woken at all, is due by then."""


class RoleProcess:
    """A process of one role; made by `Deployment`."""

    def __init__(self, name: str, command: Sequence[str], env: dict[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tq_broker", *command],
                cwd=ROOT,
                env={**os.environ, **env},
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )

    def ready(self) -> RoleProcess:
        """Wait until it serves."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if json.loads(line).get("event") == "ready":
                return self
        raise AssertionError(f"{self.name} did not start:\n{self.log.read_text()}")

    @property
    def runs(self) -> bool:
        return self._process.poll() is None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`."""
        self._process.kill()
        self._process.wait()

    def wait(self) -> int:
        """Wait for its end; returns its exit code."""
        return self._process.wait(PATIENCE_S)

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Deployment:
    """See the module.

    Args:
        store: URL of an empty database.
        application: Module of the workflows and activities.
    """

    def __init__(
        self, broker_url: str, namespace: str, store: str, directory: Path, application: str
    ) -> None:
        self.namespace = namespace
        self.store = store
        self.directory = directory
        self._application = application
        migrate_store(store)
        self.ledger = Ledger(directory / "ledger.sqlite")
        self._env = {
            "TQ_BROKER_URL": broker_url,
            "TQ_BROKER_NAMESPACE": namespace,
            "TQ_BROKER_STORE": store,
            LEDGER: self.ledger.path,
        }
        self._numbers = itertools.count(1)
        self._started: list[RoleProcess] = []
        self.client = BlockingClient.connect(
            broker_url, namespace=namespace, timeout=CLIENT_TIMEOUT_S
        )

    def history(self) -> RoleProcess:
        """A history process; call `RoleProcess.ready` before you rely on it."""
        return self._start("history", "history")

    def worker(self, *options: str) -> RoleProcess:
        """A worker process of task queue ``q``; likewise."""
        return self._start("worker", "-A", self._application, "worker", "-Q", "q", *options)

    def _start(self, role: str, *command: str) -> RoleProcess:
        name = f"{role}{next(self._numbers)}"
        options = ["--json", "-l", "INFO", *command, "-n", name]
        process = RoleProcess(name, options, self._env, self.directory / f"{name}.log")
        self._started.append(process)
        return process

    def again(self, process: RoleProcess) -> RoleProcess:
        """A new process in place of one that ended, as a supervisor would start it."""
        return self.history() if process.name.startswith("history") else self.worker()

    def owners(self) -> Counter[str | None]:
        """How many shards each history process says that it owns; ``None``: nobody."""
        answer = subprocess.run(
            [sys.executable, "-m", "tq_broker", "history", "status", "--json", "--wait", "1s"],
            env={**os.environ, **self._env},
            capture_output=True,
            check=False,
        )
        return Counter(one["owner"] for one in json.loads(answer.stdout))

    def said(self, text: str) -> list[str]:
        """The lines with ``text`` in all logs."""
        return [
            f"{process.name}: {line}"
            for process in self._started
            for line in process.log.read_text(errors="replace").splitlines()
            if text in line
        ]

    def end(self, processes: Sequence[RoleProcess]) -> None:
        """End them in order, and look that each says so."""
        for process in processes:
            process.send(signal.SIGTERM)
        codes = {process.name: process.wait() for process in processes}
        assert set(codes.values()) <= {0}, codes

    def close(self) -> None:
        for process in self._started:
            process.close()
        self.client.close()
        self.ledger.close()


@contextlib.contextmanager
def deployed(*args: Any) -> Iterator[Deployment]:
    """A `Deployment` for a test."""
    deployment = Deployment(*args)
    try:
        yield deployment
    finally:
        deployment.close()


def stored(url: str, namespace: str) -> list[tuple[RunRow, list[Event]]]:
    """Every run in the store with its events, read beside its service."""
    with contextlib.closing(open_store(url, namespace)) as store:
        rows: list[RunRow] = []
        after = None
        while page := store.list(parse(""), 500, after):
            rows += store.runs([row.run_id for row in page])
            after = (page[-1].start_ms, page[-1].run_id)
        return [(row, list(_events(store, row.run_id))) for row in rows]


def _events(store: Store, run_id: str) -> Iterator[Event]:
    first = 1
    while found := store.events(run_id, first, 1_000_000):
        for row in found:
            yield from load_events(row.data)
            first = row.first_event_id + row.count


def wait_at_rest(url: str, namespace: str) -> None:
    """Until no run is open, nothing is to be woken, and nothing is to be sent."""
    with contextlib.closing(open_store(url, namespace)) as store:

        def busy() -> list[ShardRow]:
            shards = store.shards(FAR_MS)
            return [one for one in shards if one.open_runs or one.timers_due or one.outbox]

        wait_until(lambda: not busy(), "rest", REST_WITHIN_S)
