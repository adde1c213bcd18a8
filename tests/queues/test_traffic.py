"""The rules as a connection knows them: followed when needed, shared when somebody reads them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.worker.worlds import NAMES, World
from tq_broker.exceptions import DeadlineExceeded
from tq_broker.model.names import Kind
from tq_broker.model.rules import TrafficRule
from tq_broker.model.settings import CapabilitiesDeclared, TrafficRuleSet
from tq_broker.queues.settings_log import SettingsLog
from tq_broker.queues.traffic import Traffic


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.close()


def set_rule(world: World, id: str = "r") -> None:
    sender = world.client.connection.sender
    rule = TrafficRule(id=id, to_task_queue="there")
    sender.append(TrafficRuleSet(rule), world.soon(), lambda error: None)


def ids(traffic: Traffic) -> list[str]:
    return [rule.id for rule in traffic.rules.rules]


def settings_exist(world: World) -> bool:
    queue = str(world.client.connection.names.queue(Kind.SETTINGS))
    return world.broker.stats(queue, world.soon()) is not None


def test_nothing_is_followed_before_there_is_need(world: World) -> None:
    traffic = world.client.connection.traffic
    assert not traffic.rules
    assert not settings_exist(world)


def test_who_follows_knows_what_was_set_and_what_is(world: World) -> None:
    set_rule(world)
    traffic = world.client.connection.traffic
    traffic.follow()
    traffic.follow()
    world.eventually(lambda: ids(traffic) == ["r"])
    set_rule(world, "s")
    world.eventually(lambda: ids(traffic) == ["r", "s"])


def test_what_somebody_else_reads_is_shared_for_as_long_as_he_does(world: World) -> None:
    set_rule(world)
    traffic = world.client.connection.traffic
    log = SettingsLog(world.broker, NAMES, world.clock)
    log.follow()
    world.eventually(lambda: bool(log.rules))
    traffic.attach(log)
    assert ids(traffic) == ["r"]
    traffic.detach(log)
    assert not traffic.rules


def test_a_child_process_begins_anew(world: World) -> None:
    set_rule(world)
    traffic = world.client.connection.traffic
    traffic.follow()
    world.eventually(lambda: bool(traffic.rules))
    traffic.after_fork()
    assert not traffic.rules


def test_a_broker_that_is_closed_is_no_error_here(world: World) -> None:
    traffic = world.client.connection.traffic
    world.client.close()
    traffic.follow()
    assert not traffic.rules


def test_capabilities_are_known_when_the_log_has_been_read(world: World) -> None:
    sender = world.client.connection.sender
    sender.append(CapabilitiesDeclared("q", ("gpu",), 1), world.soon(), lambda error: None)
    traffic = world.client.connection.traffic
    assert traffic.unknown("q", ("gpu",)) == ["gpu"]
    assert traffic.capabilities("q") == set()
    traffic.catch_up(world.soon())
    assert traffic.unknown("q", ("gpu", "ssd")) == ["ssd"]
    assert traffic.capabilities("q") == {"gpu"}


def test_a_log_that_cannot_be_read_in_time_is_an_error(world: World) -> None:
    set_rule(world)
    traffic = world.client.connection.traffic
    world.eventually(lambda: settings_exist(world))
    with pytest.raises(DeadlineExceeded):
        traffic.catch_up(world.clock.monotonic())
