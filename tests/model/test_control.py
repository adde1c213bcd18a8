"""Control messages and task tokens."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import InvalidArgument, Malformed
from tq_broker.model import control, failure
from tq_broker.model.control import Answer, CompleteAttempt, Ping, Serve, TaskToken, WorkerInfo
from tq_broker.model.message import Message

texts = st.text(st.characters(exclude_categories=["Cs"]))
INFO = WorkerInfo(
    worker_id="w",
    identity="1@h",
    host="h",
    pid=1,
    started_ms=5,
    task_queues=["a"],
    activities=["t"],
    slots=3,
    running=1,
    held={"a": 1},
)


@pytest.mark.parametrize(
    "request_",
    [
        Ping(),
        Serve("tq.n.host.h.q"),
        CompleteAttempt("a", 2, result=msgspec.Raw(b'{"x":[1]}')),
        CompleteAttempt("a", 2, failure=failure.application("bad", "Bad")),
        CompleteAttempt("a", 2, heartbeat=[msgspec.Raw(b"1"), msgspec.Raw(b'"two"')]),
    ],
)
def test_a_request_comes_back_as_it_went(request_: control.Request) -> None:
    message = control.message(request_, "1", correlation_id="c", reply_to="r")
    assert (message.kind, message.message_id, message.correlation_id) == ("control", "1", "c")
    assert not message.persistent, "it is for who lives now"
    assert control.read_request(message) == request_


@pytest.mark.parametrize("reply", [INFO, Answer(found=True, cancel_requested=True)])
def test_a_reply_comes_back_as_it_went(reply: control.Reply) -> None:
    assert control.read_reply(control.message(reply, "1")) == reply


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'{"type":"format-disk"}',
        b'{"type":"serve"}',
        b'{"type":"serve","queue":5}',
        b'{"type":"complete","activity_id":"a","attempt":"1"}',
        b'{"type":"complete","activity_id":"a","attempt":1,"heartbeat":[NaN]}',
        b'{"type":"serve","queue":"\\ud800"}',
        b'{"type":"serve","queue":"\xff"}',
        b'{"type":"complete","activity_id":"a","attempt":1,"result":' + b"[" * 100_000,
        b'{"type":"complete","activity_id":"a","attempt":1,"result":'
        + b"[" * 100_000
        + b"]" * 100_000
        + b"}",
    ],
)
def test_what_is_no_request_is_refused(body: bytes) -> None:
    with pytest.raises(Malformed, match=r"^control message: "):
        control.read_request(Message(body=body, message_id="1"))


def test_a_request_is_no_reply() -> None:
    with pytest.raises(Malformed):
        control.read_reply(control.message(Ping(), "1"))
    with pytest.raises(Malformed):
        control.read_request(control.message(INFO, "1"))


def test_the_key_of_a_worker_is_no_other_key() -> None:
    assert control.worker_key("a") == "worker.a"
    assert control.worker_key("a.b#*") == "worker.a%2Eb%23%2A"
    assert control.worker_key("a") != control.EVERY_WORKER


@given(texts, texts, texts, st.integers(1, 10**6))
def test_a_task_token_comes_back_as_it_went(
    namespace: str, worker: str, activity: str, attempt: int
) -> None:
    token = TaskToken(namespace, worker, activity, attempt)
    dumped = token.dump()
    assert dumped.isascii()
    assert TaskToken.load(dumped) == token
    assert TaskToken.load(dumped.decode()) == token


@pytest.mark.parametrize(
    "token",
    [b"", b"!!!", "no", "é", b"e30=", b"WyJhIl0=", b"WzEsMiwzLDRd", None, 5, b"gASVAA=="],
)
def test_what_is_no_token_of_ours_is_refused(token: object) -> None:
    with pytest.raises(InvalidArgument, match="task_token"):
        TaskToken.load(token)  # type: ignore[arg-type]
