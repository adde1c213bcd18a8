"""An endpoint of numbers: figures over HTTP, for Prometheus and for autoscalers.

Three paths: ``/metrics`` in Prometheus's text, ``/figures`` as a list in JSON, and
``/figures/<task queue>`` as one object. Each answers from the last look, so that who asks often
costs RabbitMQ nothing; when the last look is too old, with 503: an autoscaler that is told old
numbers does the wrong thing, and one that is told nothing stays where it is.

Threads: the server has one, ``tq-endpoint``, and one for each request that is being answered. It
says numbers only, has no other paths and takes no other methods; bind it to an address that only
those can reach who may know the names of task queues.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Sequence
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import msgspec

from tq_broker.cli.exposition import CONTENT_TYPE, as_json, prometheus
from tq_broker.clock import Clock
from tq_broker.exceptions import InvalidArgument
from tq_broker.model.figures import Figures

REQUEST_WITHIN_S = 10.0
"""Who is slower with its request is hung up on."""


def parse_address(text: str) -> tuple[str, int]:
    """``HOST:PORT`` or ``[IPV6]:PORT``. Raises `InvalidArgument`."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidArgument(f"{text!r} is not an address; write 127.0.0.1:9464, port 0 to 65535")
    return host, int(port)


class Endpoint:
    """Answers with what it was last told.

    Args:
        fresh_s: For how long a look is told.

    Raises:
        InvalidArgument: the address cannot be listened at.
    """

    def __init__(
        self, address: tuple[str, int], namespace: str, clock: Clock, *, fresh_s: float
    ) -> None:
        self._namespace = namespace
        self._clock = clock
        self._fresh_s = fresh_s
        self._told: tuple[float, Sequence[Figures]] | None = None
        try:
            self._server = _Server(address, self)
        except OSError as error:
            where = f"{address[0]}:{address[1]}"
            raise InvalidArgument(f"cannot listen at {where}: {error.strerror or error}") from error
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="tq-endpoint", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens, with the port that port 0 became."""
        host, port = self._server.server_address[:2]
        return str(host), int(port)

    def tell(self, figures: Sequence[Figures]) -> None:
        """These are the figures now."""
        self._told = self._clock.monotonic(), tuple(figures)

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """Status, content type and body for ``path``."""
        path = unquote(path.partition("?")[0])
        is_known = path in ("/metrics", "/figures") or path.startswith("/figures/")
        if not is_known:
            return _problem(HTTPStatus.NOT_FOUND, "there are /metrics, /figures, /figures/NAME")
        told = self._told
        if told is None or self._clock.monotonic() - told[0] > self._fresh_s:
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, "RabbitMQ could not be asked lately")
        if path == "/metrics":
            text = prometheus(self._namespace, told[1])
            return HTTPStatus.OK, CONTENT_TYPE, text.encode()
        found = as_json(told[1])
        if path == "/figures":
            return _json(HTTPStatus.OK, found)
        name = path.removeprefix("/figures/")
        for one in found:
            if one["task_queue"] == name:
                return _json(HTTPStatus.OK, one)
        return _problem(HTTPStatus.NOT_FOUND, f"there is no task queue {name!r:.300}")


def _json(status: HTTPStatus, value: object) -> tuple[HTTPStatus, str, bytes]:
    return status, "application/json", msgspec.json.encode(value)


def _problem(status: HTTPStatus, text: str) -> tuple[HTTPStatus, str, bytes]:
    return _json(status, {"error": text})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Request)


class _Request(BaseHTTPRequestHandler):
    timeout = REQUEST_WITHIN_S
    server: _Server

    def do_GET(self) -> None:
        status, kind, body = self.server.endpoint.answer(self.path)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", f"{len(body)}")
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        return "tq-broker"

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes come every few seconds, and are no news."""
