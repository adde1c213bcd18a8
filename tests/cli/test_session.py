from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tq_broker.cli import commands
from tq_broker.cli.session import Session, session_of
from tq_broker.converter import DataConverter
from tq_broker.exceptions import InvalidArgument


@pytest.fixture(autouse=True)
def logging_kept() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


def session(**said: object) -> Session:
    ctx = click.Context(commands.Group("test"))
    commands.said(ctx)
    ctx.meta["tq_broker.cli.globals"] = said
    return session_of(ctx)


def test_options_win_over_the_environment_and_that_over_the_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[profile.default]\nurl='amqp://file'\nnamespace='file'\nidentity='file'\n")
    monkeypatch.setenv("TQ_BROKER_CONFIG_FILE", str(file))
    monkeypatch.setenv("TQ_BROKER_NAMESPACE", "env")
    config = session(broker="amqp://typed").config
    assert config == {"url": "amqp://typed", "namespace": "env", "identity": "file"}
    assert session(namespace="typed").namespace == "typed"


def test_without_settings_there_are_defaults() -> None:
    assert session().config == {}
    assert session().namespace == "default"


def test_a_session_does_not_show_its_password() -> None:
    assert "hunter2" not in repr(session(broker="amqp://user:hunter2@host"))


def test_an_operator_signs_unless_the_profile_does(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "ann")
    monkeypatch.setenv("LOGNAME", "ann")
    with session(broker=url).operations() as operations:
        assert operations._core.identity == f"ann@{socket.gethostname()}"
    file = tmp_path / "settings.toml"
    file.write_text("[profile.default]\nidentity='robot'\n")
    monkeypatch.setenv("TQ_BROKER_CONFIG_FILE", str(file))
    with session(broker=url).operations() as operations:
        assert operations._core.identity == "robot"


def test_the_application_must_be_named() -> None:
    with pytest.raises(InvalidArgument, match="-A MODULE"):
        session().application()


def test_a_client_has_the_converter_of_the_application(app: str, tmp_path: Path, url: str) -> None:
    with (tmp_path / f"{app}.py").open("a") as file:
        file.write("from tq_broker.converter import DataConverter\n")
        file.write("own = {'activities': [add], 'data_converter': DataConverter(bytes_max=99)}\n")
    made = session(broker=url, app=f"{app}:own", namespace="some")
    with made.client(made.application(), identity="me") as client:
        assert client.core.converter == DataConverter(
            client.core.converter.payload_converter, bytes_max=99
        )
        assert (client.namespace, client.identity) == ("some", "me")
    with made.operations() as operations:
        assert not operations.exists()


def test_logging_is_quiet_unless_asked() -> None:
    session()
    assert logging.getLogger().level == logging.ERROR
    session(loglevel="DEBUG")
    assert logging.getLogger().level == logging.DEBUG
    session().set_up_logging("INFO")
    assert logging.getLogger().level == logging.INFO
    assert logging.getLogger("pika").level == logging.ERROR
