"""Fixtures for tests on real servers: private nodes of every RabbitMQ version, nothing to set up.

``broker_url`` (and ``broker``, its node): one node per version, shared by all tests of the run; a
test keeps to a namespace of its own, ``namespace``.
``rabbitmq``: a node for one test, of this machine's version, to restart and to crash.
``rabbitmq_each``: the same on every version; ``rabbitmq_of_file``: the same for a whole file.
``client``: a client of both; a file may have one of its own instead.
``postgresql_url``: one server for the run, in which a test makes a database of its own;
``postgresql``: a server for one test, to crash.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NoReturn

import pytest

from integration import postgresql_server, rabbitmq_nodes
from integration.limited_workers import Workers
from integration.postgresql_server import PostgresqlServer
from tq_broker.client import BlockingClient
from tq_broker.testing.local_rabbitmq import LocalRabbitMQ, RabbitMQNotFound

_tested = pytest.StashKey[dict[str, str]]()
_missing = pytest.StashKey[dict[str, str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_tested] = {}
    config.stash[_missing] = {}


def pytest_report_header() -> str:
    labels = rabbitmq_nodes.chosen_versions()
    return "rabbitmq: " + ", ".join(rabbitmq_nodes.describe(label) for label in labels)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    for label, version in config.stash[_tested].items():
        terminalreporter.write_line(f"RabbitMQ {label}: tested on {version}")
    for label, why in config.stash[_missing].items():
        line = f"RabbitMQ {label}: NOT TESTED: {why}"
        terminalreporter.write_line(line, red=True, bold=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With ``-n`` all tests of one version go to one process, which has that node; the others go
    to whichever process is free."""
    for item in items:
        values = getattr(item, "callspec", None) and item.callspec.params.values()
        for label in rabbitmq_nodes.SUITES.keys() & {v for v in values or () if isinstance(v, str)}:
            item.add_marker(pytest.mark.xdist_group(label))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["tested"] = session.config.stash[_tested]
        output["missing"] = session.config.stash[_missing]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """What a process of ``-n`` tested, for the summary; one that crashed tells nothing."""
    output = getattr(node, "workeroutput", {})
    node.config.stash[_tested].update(output.get("tested", {}))
    node.config.stash[_missing].update(output.get("missing", {}))


@pytest.fixture(scope="session", params=rabbitmq_nodes.chosen_versions())
def broker(request: pytest.FixtureRequest) -> Iterator[LocalRabbitMQ]:
    """A running node, one per version for the whole run. Do not restart it: see ``rabbitmq``."""
    yield from _running(request.config, request.param)


@pytest.fixture
def broker_url(broker: LocalRabbitMQ) -> str:
    return broker.url


@pytest.fixture
def rabbitmq(request: pytest.FixtureRequest) -> Iterator[LocalRabbitMQ]:
    """A node for this test only, of the version that this machine has."""
    yield from _running(request.config, rabbitmq_nodes.MACHINE)


@pytest.fixture(params=rabbitmq_nodes.chosen_versions())
def rabbitmq_each(request: pytest.FixtureRequest) -> Iterator[LocalRabbitMQ]:
    """A node for this test only, of every version in turn."""
    yield from _running(request.config, request.param)


@pytest.fixture(scope="module", params=rabbitmq_nodes.chosen_versions())
def rabbitmq_of_file(request: pytest.FixtureRequest) -> Iterator[LocalRabbitMQ]:
    """A node of every version in turn for the tests of one file, each of which may restart and
    crash it, and leaves it running and unblocked."""
    yield from _running(request.config, request.param)


@pytest.fixture
def namespace() -> str:
    """A namespace that no other test uses."""
    return f"t{secrets.token_hex(4)}"


@pytest.fixture
def client(broker_url: str, namespace: str) -> Iterator[BlockingClient]:
    with BlockingClient.connect(broker_url, namespace=namespace) as client:
        yield client


@pytest.fixture
def workers(broker_url: str, namespace: str, tmp_path: Path) -> Iterator[Workers]:
    """Worker processes of a limited task queue."""
    with ExitStack() as stack:
        yield Workers(broker_url, namespace, tmp_path, stack)


@pytest.fixture(scope="session")
def postgresql_url() -> Iterator[str]:
    """A running PostgreSQL for the whole run."""
    with _postgresql() as server:
        yield server.url


@pytest.fixture
def postgresql() -> Iterator[PostgresqlServer]:
    """A PostgreSQL for this test only."""
    with _postgresql() as server:
        yield server


def _postgresql() -> PostgresqlServer:
    try:
        return PostgresqlServer()
    except postgresql_server.NotHere as error:
        _refuse(f"no PostgreSQL here: {error}")


def _running(config: pytest.Config, label: str) -> Iterator[LocalRabbitMQ]:
    try:
        # The answer stays the same for the run; a failed build costs a minute.
        if label in config.stash[_missing]:
            raise rabbitmq_nodes.NotHere(config.stash[_missing][label])
        node = rabbitmq_nodes.node_of(label)
        node.start()
    except (rabbitmq_nodes.NotHere, RabbitMQNotFound) as error:
        config.stash[_missing][label] = str(error)
        _refuse(f"no RabbitMQ {label} here: {error}")
    with node:
        config.stash[_tested][label] = node.version
        yield node


def _refuse(why: str) -> NoReturn:
    """At home one tests what one has; a build server that skips says nothing."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)
