"""The examples of workflows, as they stand. On a RabbitMQ: ``integration/test_examples.py``."""

from __future__ import annotations

import asyncio
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tq_broker.client import WorkflowHandle
from tq_broker.testing import WorkflowEnvironment
from tq_broker.worker import Replayer

EXAMPLES = Path(__file__).parents[2] / "examples"
PRINTED = {
    "child_workflows": "parcel with a lamp\nvoucher instead of a unicorn\nparcel with a chair\n",
    "file_processing": "Affinity: one host, verified: True\nSession: one host, verified: True\n"
    "HostRoute: one host, verified: True\nPlain: (one host|several hosts), verified: True\n",
    "hello_workflow": "Hello, Ada!\n",
    "long_loop": "total 780, 3 runs\n",
    "messages": "total: 4\ntotal: 11\nrefused: we do not sell gunpowder\n"
    "contents: \\['tea', 'honey'\\]\nto pay: 11\n",
    "saga": "cancelled: flight for Iceland\ncancelled: hotel for Iceland\n"
    "no trip: the volcano is closed\n",
    "updatable_timer": "reminded after 0:00:00.200000\n",
}


def run(journey: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(journey, 60))


def example(name: str) -> Any:
    return importlib.import_module(f"examples.{name}")


def test_every_example_of_a_workflow_is_tried() -> None:
    found = {path.stem for path in EXAMPLES.glob("*.py") if "@workflow" in path.read_text()}
    assert found == PRINTED.keys()


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_should(
    name: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    run(example(name).main())
    assert re.fullmatch(PRINTED[name], capsys.readouterr().out)


def test_an_example_is_a_program_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "hello_workflow.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (PRINTED["hello_workflow"], "", 0)


def skipping(
    name: str, workflow: str, *args: Any, steps: Any = None
) -> tuple[Any, timedelta, WorkflowHandle[Any]]:
    """The result of an example's workflow where time is skipped, and the time that it took.

    Its history is replayed as well.
    """
    module = example(name)
    flow = getattr(module, workflow)

    async def journey() -> tuple[Any, timedelta, WorkflowHandle[Any]]:
        async with (
            await WorkflowEnvironment.start_time_skipping() as env,
            module.worker(env.client),
        ):
            began = await env.get_current_time()
            handle = await env.client.start_workflow(
                flow.run, args=args, id="w", task_queue=module.TASK_QUEUE
            )
            if steps is not None:
                await steps(env, module, handle)
            result = await handle.result()
            passed = await env.get_current_time() - began
            history = await handle.fetch_history()
            await Replayer(workflows=[flow]).replay_workflow(history)
            return result, passed, handle

    done: tuple[Any, timedelta, WorkflowHandle[Any]] = run(journey())
    return done


def test_a_loop_of_two_months_takes_no_time() -> None:
    meter = example("long_loop").Meter(rounds_left=12)
    result, passed, _ = skipping("long_loop", "MeterWorkflow", meter, timedelta(days=5))
    assert (result.rounds_left, result.total, result.runs) == (0, 780, 3)
    assert timedelta(days=60) <= passed < timedelta(days=60, minutes=1)


def test_a_reminder_is_put_off_on_its_last_day() -> None:
    async def put_off(env: WorkflowEnvironment, module: Any, handle: WorkflowHandle[Any]) -> None:
        await env.sleep(timedelta(days=29))
        later = await env.get_current_time() + timedelta(days=30)
        await handle.signal(module.ReminderWorkflow.put_off, later)
        assert await handle.query(module.ReminderWorkflow.due) == later

    async def now() -> Any:
        async with await WorkflowEnvironment.start_time_skipping() as env:
            return await env.get_current_time()

    first = run(now()) + timedelta(days=30)
    _, passed, _ = skipping("updatable_timer", "ReminderWorkflow", first, steps=put_off)
    assert timedelta(days=59) <= passed < timedelta(days=59, minutes=1)
