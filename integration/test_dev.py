"""Journey: ``tq-broker dev`` on a RabbitMQ, while its sources are edited."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from integration.journey import wait_until
from tq_broker.client import BlockingClient

ROOT = Path(__file__).parent.parent
WITHIN_S = 60.0
SOURCE = """
from tq_broker import workflow

@workflow.defn
class Greeting:
    @workflow.run
    async def run(self, name: str) -> str:
        return "Hello, " + name
"""


def test_workers_reload_and_histories_stay(broker_url: str, namespace: str, tmp_path: Path) -> None:
    here = tmp_path
    (here / "flows.py").write_text(SOURCE)
    output = here / "output"
    with output.open("wb") as stream:
        dev = subprocess.Popen(
            [
                *(sys.executable, "-m", "tq_broker", "-A", "flows", "-b", broker_url),
                *("--namespace", namespace, "dev", "-Q", "greetings"),
            ],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
            stdout=stream,
            stderr=subprocess.STDOUT,
        )
    try:
        ready = lambda times: output.read_text().count(" ready\n") >= times  # noqa: E731
        wait_until(lambda: ready(1), "the worker is ready", WITHIN_S)
        with BlockingClient.connect(broker_url, namespace=namespace) as client:
            greet = {"task_queue": "greetings"}
            assert client.execute_workflow("Greeting", "Ada", id="1", **greet) == "Hello, Ada"
            (here / "flows.py").write_text(SOURCE.replace("Hello", "Good evening"))
            wait_until(lambda: ready(2), "the worker is ready again", WITHIN_S)
            answer = client.execute_workflow("Greeting", "Ada", id="2", **greet)
            assert answer == "Good evening, Ada"
            assert client.count_workflows("status = 'completed'").count == 2
        dev.send_signal(signal.SIGTERM)
        assert dev.wait(WITHIN_S) == 0, output.read_text()
        assert (here / "tq-broker-dev.sqlite").exists()
    finally:
        dev.kill()
        dev.wait()
