"""Programs without this library take part: the examples, run as they stand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from kombu import Connection

from integration.journey import wait_until
from tq_broker import ActivityError, BlockingClient, RetryPolicy, kombu_queue
from tq_broker.exceptions import DeadlineExceeded
from tq_broker.model.names import Names
from tq_broker.queues.topology import QueueType

EXAMPLES = Path(__file__).parents[1] / "examples"
SOON = timedelta(seconds=20)
ONCE = RetryPolicy(maximum_attempts=1)


@contextmanager
def example(name: str, *args: str) -> Iterator[subprocess.Popen[str]]:
    """The example ``name``, running."""
    program = subprocess.Popen(
        [sys.executable, str(EXAMPLES / name), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
    )
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def serve(client: BlockingClient, task_queue: str) -> None:
    """Declare ``task_queue`` as the first start of an activity would."""
    core = client.core
    core.sender.ensure((core.names.activity(task_queue),), core.deadline())


def consumed(client: BlockingClient, task_queue: str) -> bool:
    core = client.core
    stats = core.broker.stats(str(core.names.activity(task_queue)), core.deadline())
    return stats is not None and stats.consumers > 0


def pika_url(url: str) -> str:
    return url.removesuffix("//") + "/%2F"


def test_a_plain_kombu_program_serves_a_task_queue(
    broker_url: str, namespace: str, client: BlockingClient
) -> None:
    serve(client, "shouting")
    with example("kombu_worker.py", broker_url, namespace, "shouting"):
        answer = client.execute_activity(
            "shout", "hello", task_queue="shouting", start_to_close_timeout=SOON
        )
        with pytest.raises(ActivityError, match="only has the activity shout"):
            client.execute_activity(
                "whisper",
                task_queue="shouting",
                start_to_close_timeout=SOON,
                retry_policy=ONCE,
            )

    assert answer == "HELLO!"


def test_a_task_that_a_killed_kombu_program_held_is_not_lost(
    broker_url: str, namespace: str, client: BlockingClient
) -> None:
    serve(client, "shouting")
    handles = client.start_activities(
        "shout",
        [(f"n{i}",) for i in range(200)],
        task_queue="shouting",
        start_to_close_timeout=SOON,
    )
    with example("kombu_worker.py", broker_url, namespace, "shouting"):
        handles[0].result(20)
    with example("kombu_worker.py", broker_url, namespace, "shouting"):
        answers = [handle.result(20) for handle in handles]

    assert answers == [f"N{i}!" for i in range(200)]


def test_a_plain_pika_program_starts_an_activity_and_reads_its_outcome(
    broker_url: str, namespace: str, client: BlockingClient
) -> None:
    serve(client, "shouting")
    with ExitStack() as running:
        running.enter_context(example("kombu_worker.py", broker_url, namespace, "shouting"))
        asked = running.enter_context(
            example("pika_client.py", pika_url(broker_url), namespace, "shouting", "shout", "hello")
        )
        output, _ = asked.communicate(timeout=30)

    assert json.loads(output) == "HELLO!"
    assert asked.returncode == 0


def test_a_plain_pika_program_learns_that_nobody_has_the_task_queue(
    broker_url: str, namespace: str, client: BlockingClient
) -> None:
    serve(client, "other")
    arguments = (pika_url(broker_url), namespace, "missing", "shout", "hello")
    with example("pika_client.py", *arguments) as asked:
        output, _ = asked.communicate(timeout=30)

    assert "'missing' does not exist yet" in output
    assert asked.returncode == 1


def test_a_kombu_program_hosts_a_worker(
    broker_url: str, namespace: str, client: BlockingClient
) -> None:
    with example("kombu_host.py", broker_url, namespace, "greetings") as host:
        wait_until(lambda: consumed(client, "greetings"), "the program consumes")
        answer = client.execute_activity(
            "greet", "Ada", task_queue="greetings", start_to_close_timeout=SOON
        )
        handles = client.start_activities(
            "greet",
            [(str(i),) for i in range(500)],
            task_queue="greetings",
            start_to_close_timeout=SOON,
        )
        answers = [handle.result(30) for handle in handles]
        with Connection(broker_url) as connection:
            connection.Producer(serializer="json").publish(
                "rain", exchange=f"{namespace}.news", routing_key=""
            )
        assert host.stdout is not None
        news = host.stdout.readline()

    assert answer == "Hello, Ada!"
    assert answers == [f"Hello, {i}!" for i in range(500)]
    assert news == "news: rain\n"


def test_what_a_paused_task_queue_gives_a_hosted_worker_goes_round_until_it_is_resumed(
    broker_url: str, namespace: str, client: BlockingClient
) -> None:
    with example("kombu_host.py", broker_url, namespace, "greetings"):
        wait_until(lambda: consumed(client, "greetings"), "the program consumes")
        client.pause_task_queue("greetings")
        wait_until(
            lambda: client.describe_task_queue("greetings").workers[0].paused, "it has heard of it"
        )
        handles = client.start_activities(
            "greet",
            [(str(i),) for i in range(20)],
            task_queue="greetings",
            start_to_close_timeout=SOON,
        )
        with pytest.raises(DeadlineExceeded):
            handles[0].result(2.5)
        client.resume_task_queue("greetings")
        answers = [handle.result(30) for handle in handles]

    assert answers == [f"Hello, {i}!" for i in range(20)]


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_kombu_queue_is_the_exact_queue(
    broker_url: str, namespace: str, client: BlockingClient, queue_type: str
) -> None:
    core = client.core
    core.sender.queue_type = QueueType(queue_type)
    serve(client, "exact")
    queue = kombu_queue("exact", namespace=namespace, queue_type=queue_type)

    with Connection(broker_url) as connection:
        queue(connection.default_channel).declare()  # 406 if it were another

    assert queue.name == str(Names(namespace).activity("exact"))
