"""Where the demo plays: its workers, each with a host name of its own, in one process or several.

Rules of this file: what was started is ended by ``close``, also when something went wrong; worker
processes end by themselves when the demo is killed, because the pipe of their input ends.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, Protocol

from tq_broker.cli.demo_activities import ACTIVITIES
from tq_broker.cli.demo_workflow import FileWorkflow
from tq_broker.cli.passwords import URL_VARIABLE
from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock, remaining
from tq_broker.exceptions import Unavailable
from tq_broker.queues.memory import MemoryBroker
from tq_broker.worker import Worker

SLOTS = 2
"""Few, so that the files spread over the workers."""
START_S = 60.0
STOP_S = 10.0
READY = b"ready\n"


@dataclass(frozen=True)
class Scene:
    """What all workers of one run have in common. ``url`` may hold a password.

    Attributes:
        has_workflows: The workers serve the workflow, too.
    """

    url: str
    namespace: str
    task_queue: str
    queue_type: str = "quorum"
    has_workflows: bool = False

    def client(self) -> BlockingClient:
        """A connection of one worker."""
        return BlockingClient.connect(
            self.url, namespace=self.namespace, queue_type=self.queue_type
        )

    def worker(self, client: BlockingClient, host: str) -> Worker:
        """A worker that believes to be on ``host``, not started yet."""
        return Worker(
            client,
            task_queue=self.task_queue,
            activities=ACTIVITIES,
            workflows=[FileWorkflow] if self.has_workflows else [],
            host=host,
            max_concurrent_activities=SLOTS,
        )


class Stage(Protocol):
    """The workers of one run."""

    def start(self, hosts: Sequence[str]) -> None:
        """Start a worker on each of ``hosts``; returns when all of them serve.

        Raises:
            TqBrokerError: one does not.
        """

    def kill(self, host: str) -> None:
        """End the worker on ``host`` without a warning."""

    def close(self) -> None:
        """End all the others. Idempotent."""


class EmbeddedStage:
    """Workers in this process, on the broker in memory, each with a connection of its own."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._clients: dict[str, BlockingClient] = {}
        self._workers: dict[str, Worker] = {}

    def start(self, hosts: Sequence[str]) -> None:
        for host in hosts:
            client = self._clients[host] = self._scene.client()
            worker = self._workers[host] = self._scene.worker(client, host)
            worker.start()

    def kill(self, host: str) -> None:
        del self._workers[host]
        broker = self._clients.pop(host).connection.broker
        assert isinstance(broker, MemoryBroker), "the scene's URL is memory://"
        # All that the others notice of a process that is killed: its connection is gone.
        broker.kill()

    def close(self) -> None:
        while self._workers:
            self._workers.popitem()[1].stop(cold=True)
        while self._clients:
            self._clients.popitem()[1].close()


class ProcessStage:
    """Worker processes, on a RabbitMQ."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._clock = SystemClock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._words: dict[str, IO[bytes]] = {}

    def start(self, hosts: Sequence[str]) -> None:
        for host in hosts:
            self._spawn(host)
        deadline = self._clock.monotonic() + START_S
        for host in hosts:
            self._wait_ready(host, deadline)

    def _spawn(self, host: str) -> None:
        scene = self._scene
        # What it has to say is shown when it fails; until then it would tear the display.
        words = self._words[host] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in close)
        self._processes[host] = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "tq_broker.cli.demo_worker",
                host,
                scene.namespace,
                scene.task_queue,
                scene.queue_type,
                *(["--workflow"] if scene.has_workflows else []),
            ],
            # In the environment, where other users cannot see the password.
            env={**os.environ, URL_VARIABLE: scene.url},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            start_new_session=True,  # The terminal's Ctrl-C is for the demo, which ends them.
        )

    def _wait_ready(self, host: str, deadline: float) -> None:
        process = self._processes[host]
        assert process.stdout is not None, "it is a pipe"
        readable, _, _ = select.select([process.stdout], [], [], remaining(self._clock, deadline))
        if not readable or process.stdout.readline() != READY:
            raise Unavailable(f"the worker on {host} does not start: {self._last_words(host)}")

    def _last_words(self, host: str) -> str:
        words = self._words[host]
        words.seek(0)
        lines = words.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it does not say why")

    def kill(self, host: str) -> None:
        process = self._processes.pop(host)
        process.send_signal(signal.SIGKILL)
        self._bury(process)

    def close(self) -> None:
        for process in self._processes.values():
            assert process.stdin is not None, "it is a pipe"
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        while self._processes:
            _, process = self._processes.popitem()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
            self._bury(process)
        while self._words:
            self._words.popitem()[1].close()

    def _bury(self, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def stage_for(scene: Scene) -> Stage:
    """The stage that fits the scene's URL."""
    return EmbeddedStage(scene) if scene.url.startswith("memory:") else ProcessStage(scene)
