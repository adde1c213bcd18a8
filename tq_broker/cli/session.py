"""A session: what the global options, the environment and the profile say, as one value.

In this order: what was typed, ``TQ_BROKER_*`` variables, the profile of the configuration file.
"""

from __future__ import annotations

import contextlib
import getpass
import logging
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click

from tq_broker.cli import commands
from tq_broker.cli.application import Application, load_application
from tq_broker.cli.output import Output
from tq_broker.client import BlockingClient
from tq_broker.client.operations import Operations
from tq_broker.envconfig import ClientConfig, ClientConnectConfig
from tq_broker.exceptions import InvalidArgument, TqBrokerError

DEFAULT_URL = "amqp://localhost"
_FORMAT = "[%(asctime)s: %(levelname)s/%(process)d] %(name)s: %(message)s"


@dataclass(frozen=True, slots=True)
class Session:
    """What a command works with.

    ``config`` holds the URL and perhaps a password: it is not printed.
    """

    config: ClientConnectConfig
    app: str | None
    output: Output
    loglevel: str | None
    arguments: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Session {self.namespace}>"

    @property
    def namespace(self) -> str:
        return self.config.get("namespace", "default")

    def set_up_logging(self, level: str = "ERROR") -> None:
        """Log to stderr: as asked for, else from ``level`` on.

        A command that only asks something says itself what is wrong, on one line.
        """
        wanted = self.loglevel or level
        logging.basicConfig(stream=sys.stderr, format=_FORMAT, level=wanted, force=True)
        if wanted != "DEBUG":
            # What they have to say is said by us, in our words.
            for library in ("amqp", "kombu", "pika"):
                logging.getLogger(library).setLevel(logging.ERROR)

    def application(self) -> Application:
        """The application that ``-A`` names.

        Raises:
            InvalidArgument: there is none, or it cannot be loaded.
        """
        if self.app is None:
            raise InvalidArgument("no application: say where the activities are, -A MODULE[:ATTR]")
        return load_application(self.app)

    @contextlib.contextmanager
    def client(
        self, application: Application | None = None, *, identity: str | None = None
    ) -> Iterator[BlockingClient]:
        """A connected client, closed at the end of the block."""
        keywords: dict[str, Any] = {"url": DEFAULT_URL, **self.config}
        if identity is not None:
            keywords["identity"] = identity
        if application is not None and application.data_converter is not None:
            keywords["data_converter"] = application.data_converter
        client = BlockingClient.connect(**keywords)
        try:
            yield client
        finally:
            with contextlib.suppress(TqBrokerError):
                client.close()

    @contextlib.contextmanager
    def operator(self) -> Iterator[BlockingClient]:
        """A client that is signed by a person, unless the profile says otherwise. With ``-A``,
        arguments are read by the app's converter."""
        application = self.application() if self.app else None
        identity = None if "identity" in self.config else _operator()
        with self.client(application, identity=identity) as client:
            yield client

    @contextlib.contextmanager
    def operations(self) -> Iterator[Operations]:
        """What an operator may do; see `operator`."""
        with self.operator() as client:
            yield Operations(client.core)


def _operator() -> str | None:
    """Who changes something, for those who see it later: ``user@host``."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # a user without a name
        return None


def session_of(ctx: click.Context) -> Session:
    """The session of a command. Raises `InvalidArgument` for a wrong configuration."""
    said = commands.said(ctx)
    config = ClientConfig.load_client_connect_config(said.get("profile"))
    if url := said.get("broker"):
        config["url"] = url
    if namespace := said.get("namespace"):
        config["namespace"] = namespace
    session = Session(
        config=config,
        app=said.get("app"),
        output=Output.detect(as_json=bool(said.get("json")), no_color=bool(said.get("no_color"))),
        loglevel=said.get("loglevel"),
        arguments=tuple(commands.arguments(ctx)),
    )
    session.set_up_logging()
    return session
