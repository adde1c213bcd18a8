from __future__ import annotations

import ssl

import pytest

from tq_broker.queues.address import Tls
from tq_broker.queues.handshake import client_properties, tls_context


def test_certificates_and_host_names_are_checked_unless_told_not_to() -> None:
    context = tls_context(Tls(server_name="host"))
    assert context.check_hostname
    assert context.verify_mode is ssl.CERT_REQUIRED
    open_to_all = tls_context(Tls(server_name="host", verify=False))
    assert not open_to_all.check_hostname
    assert open_to_all.verify_mode is ssl.CERT_NONE


def test_a_missing_certificate_is_an_error_of_the_system() -> None:
    with pytest.raises(FileNotFoundError):
        tls_context(Tls(server_name="host", ca_file="/missing.pem"))


def test_a_connection_tells_who_it_is() -> None:
    assert client_properties("me") == {"product": "tq_broker", "connection_name": "me"}
