from __future__ import annotations

import socket
import ssl

import amqp.exceptions
import pytest

from tq_broker.exceptions import (
    AccessRefused,
    BrokerUnavailable,
    DeadlineExceeded,
    InvalidArgument,
    NotFound,
    TqBrokerError,
)
from tq_broker.queues.errors import code_of, is_fatal, translate


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (amqp.exceptions.AccessRefused("Login was refused"), AccessRefused, "check the user"),
        (amqp.exceptions.NotAllowed("vhost v not found"), AccessRefused, "check that the vhost"),
        (amqp.exceptions.NotFound("no queue 'q'"), NotFound, "no queue 'q'"),
        (amqp.exceptions.ResourceLocked("locked"), AccessRefused, "exclusive to another"),
        (amqp.exceptions.PreconditionFailed("inequivalent"), InvalidArgument, "inequivalent"),
        (amqp.exceptions.ConnectionForced("shutdown"), BrokerUnavailable, "shutdown"),
        (amqp.exceptions.InternalError("vhost is down"), BrokerUnavailable, "vhost is down"),
        (amqp.exceptions.RecoverableConnectionError("x"), BrokerUnavailable, "broke"),
        (socket.gaierror(-2, "Name or service not known"), BrokerUnavailable, "host name"),
        (ConnectionRefusedError(111, "refused"), BrokerUnavailable, "nothing listens"),
        (TimeoutError(), BrokerUnavailable, "no answer in time"),
        (OSError("odd"), BrokerUnavailable, "odd"),
        (ssl.SSLCertVerificationError("self-signed"), AccessRefused, "not trusted"),
    ],
)
def test_foreign_errors_become_ours_in_one_line(
    theirs: Exception, ours: type[TqBrokerError], said: str
) -> None:
    found = translate(theirs)
    assert type(found) is ours
    assert said in str(found)
    assert "\n" not in str(found)
    assert found.__cause__ is theirs


def test_a_taken_queue_is_not_blamed_on_permissions() -> None:
    theirs = amqp.exceptions.AccessRefused("queue 'q' in vhost '/' in exclusive use")
    assert "for itself" in str(translate(theirs))
    assert "permissions" not in str(translate(theirs))


def test_ours_stay_and_the_unexpected_is_not_guessed_at() -> None:
    ours = DeadlineExceeded("late")
    assert translate(ours) is ours
    assert translate(KeyError("a bug")) is None


def test_only_what_ends_a_connection_because_of_a_request_is_fatal() -> None:
    assert is_fatal(amqp.exceptions.AMQPNotImplementedError("no"))
    assert not is_fatal(amqp.exceptions.ConnectionForced("shutdown"))
    assert not is_fatal(amqp.exceptions.NotFound("no queue"))
    assert not is_fatal(OSError())
    assert code_of(OSError(5, "x")) == 0
