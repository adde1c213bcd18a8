"""The handshake: what both of our connections, pika's and py-amqp's, bring to it.

Rules of this file: reads the certificate files that the address names, and nothing else.
"""

from __future__ import annotations

import ssl
from typing import Any

from tq_broker.queues.address import Tls


def tls_context(tls: Tls) -> ssl.SSLContext:
    """The settings of ``tls``: certificate and host name are checked unless it says not."""
    context = ssl.create_default_context(cafile=tls.ca_file)
    if not tls.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if tls.cert_file:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


def client_properties(name: str) -> dict[str, Any]:
    """How a connection introduces itself to RabbitMQ."""
    return {"product": "tq_broker", "connection_name": name}
