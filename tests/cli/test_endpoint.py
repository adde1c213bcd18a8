from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator

import pytest

from tests.cli.test_exposition import figures
from tq_broker.cli.endpoint import Endpoint, parse_address
from tq_broker.exceptions import InvalidArgument
from tq_broker.testing.manual_clock import ManualClock


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def endpoint(clock: ManualClock) -> Iterator[Endpoint]:
    endpoint = Endpoint(("127.0.0.1", 0), "n", clock, fresh_s=10.0)
    yield endpoint
    endpoint.close()


def get(endpoint: Endpoint, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(*endpoint.address, timeout=20)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def test_programs_read_what_was_told_last(endpoint: Endpoint) -> None:
    endpoint.tell([figures(backlog=1)])
    endpoint.tell([figures(backlog=2), figures("a/b c")])
    status, kind, body = get(endpoint, "/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert b'task_queue="mail",side="activity"} 2\n' in body
    status, kind, body = get(endpoint, "/figures")
    assert (status, kind) == (200, "application/json")
    assert [one["task_queue"] for one in json.loads(body)] == ["mail", "a/b c"]
    status, _, body = get(endpoint, "/figures/mail?x=1")
    assert (status, json.loads(body)["activity"]["backlog"]) == (200, 2)
    status, _, body = get(endpoint, "/figures/a%2Fb%20c")
    assert (status, json.loads(body)["task_queue"]) == (200, "a/b c")


@pytest.mark.parametrize("path", ["/", "/figures/none", "/metrics/x", "/.."])
def test_other_paths_are_not_there(endpoint: Endpoint, path: str) -> None:
    endpoint.tell([figures()])
    status, kind, body = get(endpoint, path)
    assert (status, kind) == (404, "application/json")
    assert json.loads(body)["error"]


def test_other_methods_are_refused(endpoint: Endpoint) -> None:
    assert get(endpoint, "/figures", "POST")[0] == 501


def test_old_numbers_are_not_told(endpoint: Endpoint, clock: ManualClock) -> None:
    assert get(endpoint, "/metrics")[0] == 503
    endpoint.tell([figures()])
    clock.advance(10.0)
    assert get(endpoint, "/metrics")[0] == 200
    clock.advance(0.1)
    assert get(endpoint, "/figures")[0] == 503
    assert get(endpoint, "/figures/mail")[0] == 503
    assert get(endpoint, "/else")[0] == 404


def test_an_address_in_use_is_refused(endpoint: Endpoint, clock: ManualClock) -> None:
    with pytest.raises(InvalidArgument, match=f"cannot listen at 127.0.0.1:{endpoint.address[1]}"):
        Endpoint(endpoint.address, "n", clock, fresh_s=1.0)


def test_its_thread_ends_with_it(clock: ManualClock) -> None:
    endpoint = Endpoint(("127.0.0.1", 0), "n", clock, fresh_s=10.0)
    assert any(thread.name == "tq-endpoint" for thread in threading.enumerate())
    endpoint.close()
    assert not any(thread.name == "tq-endpoint" for thread in threading.enumerate())


def test_addresses_are_read() -> None:
    assert parse_address("127.0.0.1:9464") == ("127.0.0.1", 9464)
    assert parse_address("[::1]:0") == ("::1", 0)


@pytest.mark.parametrize("text", ["", "9464", ":9464", "host", "host:", "host:x", "host:65536"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="is not an address"):
        parse_address(text)
