"""An embedded system: what it starts, when it rests, and that nothing of it stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta

import pytest

from tq_broker.client import BlockingClient
from tq_broker.clock import SystemClock
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.message import Message, Publication
from tq_broker.model.names import Kind
from tq_broker.queues.memory import server_for
from tq_broker.queues.topology import DeclareQueue, Plan
from tq_broker.testing.embedded import EmbeddedSystem
from tq_broker.testing.skipping_clock import SkippingClock

DAY = timedelta(days=1)


@pytest.fixture
def system() -> Iterator[EmbeddedSystem]:
    with EmbeddedSystem(SkippingClock()) as system:
        yield system


def at_rest(system: EmbeddedSystem) -> float:
    """What comes next, when all has been done that was asked for."""
    while (due := system.next_due()) is None:
        continue
    return due


def test_a_client_of_it_is_served(system: EmbeddedSystem) -> None:
    handle = BlockingClient(system.core).start_workflow("Any", id="w", task_queue="t")
    assert handle.describe().workflow_type == "Any"


def test_nothing_comes_next_in_an_empty_one(system: EmbeddedSystem) -> None:
    assert at_rest(system) == float("inf")


def test_what_comes_next_is_the_next_time_that_history_waits_for(system: EmbeddedSystem) -> None:
    client = BlockingClient(system.core)
    now = system.core.clock.monotonic()
    for name, timeout in (("late", 5 * DAY), ("early", DAY)):
        client.start_workflow("Any", id=name, task_queue="t", execution_timeout=timeout)
    # No worker takes the workflow tasks, so they are not under way.
    assert at_rest(system) == pytest.approx(now + 86400, abs=60)


def test_a_message_that_waits_for_its_time_comes_next(system: EmbeddedSystem) -> None:
    client = BlockingClient(system.core)
    now = system.core.clock.monotonic()
    client.start_activity(
        "any", task_queue="t", start_to_close_timeout=DAY, start_delay=timedelta(hours=1)
    )
    assert now < at_rest(system) <= now + 3600.2


def test_a_message_that_is_held_is_under_way(system: EmbeddedSystem) -> None:
    core = system.core
    client = BlockingClient(core)
    client.start_activity("any", task_queue="t", start_to_close_timeout=DAY)
    at_rest(system)
    held = core.broker.get(str(core.names.activity("t")), core.deadline())
    assert held is not None
    assert system.next_due() is None
    held.ack()
    assert at_rest(system) == float("inf")


def test_a_will_may_be_held_for_ever(system: EmbeddedSystem) -> None:
    core = system.core
    will = core.names.queue(Kind.WILL, "w1")
    core.broker.apply(Plan((DeclareQueue(str(will)),)), core.deadline())
    with server_for(core.broker.url).changed:
        vhost = server_for(core.broker.url).vhost
        vhost.publish(Publication("", str(will), Message(body=b"", message_id="m")), 0.0)
    held = core.broker.get(str(will), core.deadline())
    assert held is not None
    assert at_rest(system) == float("inf")


def test_nothing_of_it_stays() -> None:
    before = set(threading.enumerate())
    with EmbeddedSystem(SystemClock()) as system:
        url = system.core.broker.url
        server = server_for(url)
    assert server_for(url) is not server
    for thread in set(threading.enumerate()) - before:
        if thread.name.startswith(("tq-history", "tq-memory")):
            thread.join(10)
            assert not thread.is_alive()


def test_a_store_that_cannot_be_opened_leaves_nothing_either() -> None:
    system = EmbeddedSystem(SystemClock(), None, "nonsense://")
    url = system.core.broker.url
    server = server_for(url)
    with pytest.raises(InvalidArgument, match="store url"):
        system.start()
    assert server_for(url) is not server


def test_looks_at_queues_are_nothing_to_come(system: EmbeddedSystem) -> None:
    """Or a clock that is put forward to them would be put forward for ever."""
    BlockingClient(system.core).start_workflow("Any", id="w", task_queue="t")
    assert at_rest(system) == float("inf")
