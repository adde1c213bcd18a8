from __future__ import annotations

import re

import pytest

from tq_broker.cli import diagnosis
from tq_broker.cli.diagnosis import Level
from tq_broker.exceptions import AccessRefused, BrokerUnavailable, TqBrokerError
from tq_broker.model.names import Kind, Names
from tq_broker.queues.address import parse_addresses

HERE = parse_addresses("amqp://app:secret@localhost/orders")[0]
THERE = parse_addresses("amqp://guest:secret@rabbit.example/orders")[0]


def facts(*version: int) -> dict[str, diagnosis.Finding]:
    return {one.subject: one for one in diagnosis.version_facts(version)}


@pytest.mark.parametrize(
    ("version", "level"),
    [
        ((3, 9, 1), Level.WARNING),
        ((3, 10, 8), Level.OK),
        ((3, 13, 0), Level.OK),
        ((4, 3, 6), Level.OK),
        ((4, 4, 0), Level.NOTE),
        ((), Level.WARNING),
    ],
)
def test_versions_are_told_apart(version: tuple[int, ...], level: Level) -> None:
    assert facts(*version)["version"].level is level


def test_what_follows_from_the_version() -> None:
    assert "128 MiB" in facts(3, 13, 7)["message size"].text
    assert "16 MiB" in facts(4, 0, 5)["message size"].text
    levels = [facts(*v)["priorities"].level for v in ((3, 13), (4, 2), (4, 3))]
    assert levels == [Level.NOTE, Level.NOTE, Level.OK]
    assert "classic queue beside" in facts(3, 13)["priorities"].text, "found: not honoured"
    assert "policy" in facts(3, 12)["acknowledgement timeout"].text
    assert "policy" not in facts(3, 10)["acknowledgement timeout"].text
    assert "delivery limit" not in facts(3, 10)
    assert "delivery limit" in facts(4, 0)


@pytest.mark.parametrize(
    ("error", "address", "advice"),
    [
        (BrokerUnavailable("nothing listens there"), HERE, "is RabbitMQ running there"),
        (AccessRefused("check that the vhost exists"), HERE, "rabbitmqctl add_vhost orders"),
        (AccessRefused("login refused"), THERE, "lets guest in from its own host only"),
        (AccessRefused("login refused"), HERE, "rabbitmqctl authenticate_user app"),
    ],
)
def test_no_connection_has_a_remedy(error: TqBrokerError, address: object, advice: str) -> None:
    found = diagnosis.unreachable(error, address)  # type: ignore[arg-type]
    assert found.level is Level.FAULT
    assert advice in found.advice
    assert "secret" not in repr(found)


def test_a_missing_permission_has_a_remedy() -> None:
    found = diagnosis.refused("write", "clients publish", HERE, Names("shop"))
    assert "user 'app' may not write" in found.text
    assert found.advice == (
        r"rabbitmqctl set_permissions -p orders app '^tq\.shop\.' '^tq\.shop\.' '^tq\.shop\.'"
    )


@pytest.mark.parametrize("namespace", ["shop", "my.app", "a b"])
def test_the_permission_is_that_of_the_names(namespace: str) -> None:
    names = Names(namespace)
    advice = diagnosis.refused("write", "clients publish", HERE, names).advice
    (pattern,) = {*advice.split(" ", 5)[5].replace("'", "").split(" ")}
    assert re.search(pattern, str(names.queue(Kind.ACTIVITY, "mail")))
    assert not re.search(pattern, str(Names(f"{namespace}s").queue(Kind.ACTIVITY, "mail")))


@pytest.mark.parametrize(("skew_s", "level"), [(0.9, "ok"), (-2, "ok"), (9, "warning")])
def test_clocks_are_compared(skew_s: float, level: str) -> None:
    assert diagnosis.clock_skew(skew_s).level.value == level


def test_a_skew_has_a_direction() -> None:
    assert "9s ahead of" in diagnosis.clock_skew(9).text
    assert "9s behind" in diagnosis.clock_skew(-9).text


def test_a_settings_log_that_cannot_be_read_is_told() -> None:
    assert diagnosis.settings_log("").level is Level.OK
    found = diagnosis.settings_log("1 record skipped")
    assert found.level is Level.WARNING
    assert "the last settings that could be read are in force" in found.text
