"""The wire: what is written is read again, and what cannot be read is refused by name."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.test_tasks import policies, routes
from tq_broker.common import ActivityIDConflictPolicy, OnGone, Requires, RetryPolicy
from tq_broker.converter import DataConverter, ZlibCodec
from tq_broker.exceptions import Malformed, PayloadTooLarge
from tq_broker.model import envelope, failure, payload
from tq_broker.model.envelope import (
    HEARTBEAT_BYTES_MAX,
    read_outcome,
    read_task,
    read_task_body,
    task_message,
)
from tq_broker.model.message import Message
from tq_broker.model.tasks import ActivityOutcome, ActivityTask, Status, TaskBody

PLAIN = DataConverter()
ZIPPED = DataConverter(codecs=[ZlibCodec()])

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
names = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
numbers = st.integers(0, 2**53)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
raws = json_values.map(lambda value: msgspec.Raw(msgspec.json.encode(value)))

requirements = st.builds(
    lambda names, on_gone: Requires(tuple(sorted(names)), on_gone),
    st.sets(st.sampled_from(["gpu", "ssd", "a.b", "é", "+"]), min_size=1),
    st.sampled_from(OnGone),
)
task_values = st.builds(
    ActivityTask,
    activity_id=names,
    activity_type=names,
    task_queue=st.just("q"),
    body=st.binary(max_size=50),
    codecs=st.sampled_from(["", "zlib"]),
    attempt=st.integers(1, 2**53),
    # Whole seconds travel as the AMQP timestamp when they are the header's default.
    scheduled_ms=numbers,
    attempt_scheduled_ms=numbers,
    start_to_close_ms=numbers,
    schedule_to_start_ms=numbers,
    schedule_to_close_ms=numbers,
    heartbeat_ms=numbers,
    retry_policy=policies,
    reply_to=st.none() | names,
    route=st.none() | routes,
    requires=st.none() | requirements,
    priority=st.none() | st.integers(1, 5),
    id_retention_ms=numbers,
    id_conflict=st.sampled_from(ActivityIDConflictPolicy),
    start_token=texts,
    resent=numbers,
    lease=texts,
    headers=st.dictionaries(names, texts, max_size=3),
    fell_back=texts,
    fairness_key=st.sampled_from(["", "acme", "é b"]),
    fairness_weight=st.floats(0.001, 1000.0),
)


def a_task(**fields: Any) -> ActivityTask:
    return ActivityTask(
        **(
            {"activity_id": "a", "activity_type": "t", "task_queue": "q", "body": b'{"args":[]}'}
            | fields
        )
    )


def a_message(**headers: Any) -> Message:
    """A minimal task, with further headers; ``_`` in their names stands for ``-``."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Message(
        body=b'{"args":[]}',
        message_id="m",
        correlation_id="a",
        headers={"tq-activity-type": "t"} | named,
    )


@given(task_values)
def test_a_task_comes_back_as_it_went(task: ActivityTask) -> None:
    assert read_task(task_message(task), "q") == task


@given(task_values)
def test_headers_made_before_give_the_same_message(task: ActivityTask) -> None:
    assert task_message(task, envelope.task_headers(task)) == task_message(task)


def test_only_what_differs_from_its_default_is_sent() -> None:
    assert task_message(a_task()).headers == {"tq-protocol": 1, "tq-activity-type": "t"}


def test_a_bare_message_is_a_task() -> None:
    message = Message(body=b'{"args":[]}', message_id="m", headers={"tq-activity-type": "t"})
    task = read_task(message, "q")
    assert (task.activity_id, task.attempt, task.retry_policy) == ("m", 1, RetryPolicy())


def test_the_correlation_id_wins_over_the_message_id() -> None:
    assert read_task(a_message(), "q").activity_id == "a"


def test_the_amqp_timestamp_stands_in_for_the_time_of_the_start() -> None:
    message = msgspec.structs.replace(a_message(), timestamp=1_700_000_000)
    assert read_task(message, "q").scheduled_ms == 1_700_000_000_000
    exact = msgspec.structs.replace(a_message(tq_scheduled_ms=5), timestamp=1_700_000_000)
    assert read_task(exact, "q").scheduled_ms == 5


@pytest.mark.parametrize("timestamp", [-1, 2**64 - 1])
def test_a_timestamp_of_another_world_is_refused(timestamp: int) -> None:
    """Found: it made the arithmetic of timeouts overflow, and the consumer stopped."""
    message = msgspec.structs.replace(a_message(), timestamp=timestamp)
    with pytest.raises(Malformed, match="timestamp"):
        read_task(message, "q")


@pytest.mark.parametrize(("ours", "amqp"), [(1, 6), (2, 5), (3, 4), (4, 3), (5, 2), (None, None)])
def test_priorities_are_mapped_so_that_the_default_is_that_of_quorum_queues(
    ours: int | None, amqp: int | None
) -> None:
    assert task_message(a_task(priority=ours)).priority == amqp


@pytest.mark.parametrize(("amqp", "ours"), [(0, 5), (1, 5), (6, 1), (7, 1), (255, 1)])
def test_foreign_priorities_are_brought_into_our_range(amqp: int, ours: int) -> None:
    message = msgspec.structs.replace(a_message(), priority=amqp)
    assert read_task(message, "q").priority == ours


NUMBERS = [
    "tq-attempt",
    "tq-scheduled-ms",
    "tq-attempt-scheduled-ms",
    "tq-start-to-close-ms",
    "tq-schedule-to-start-ms",
    "tq-schedule-to-close-ms",
    "tq-heartbeat-ms",
    "tq-id-retention-ms",
    "tq-resent",
]
TEXTS = [
    "tq-activity-type",
    "tq-retry-policy",
    "tq-route",
    "tq-start-token",
    "tq-lease",
    "tq-codecs",
    "tq-workflow",
    "tq-headers",
    "tq-rule",
    "tq-fell-back",
    "tq-rate-limit-key",
    "tq-pass",
]
NO_NUMBERS = [-1, 2**53 + 1, 10**400, True, None, "1", 1.0, b"1", [1], {}, float("nan")]
NO_TEXTS = ["", "x" * 4097, 1, None, b"bytes", ["t"], {"a": 1}, True, "\ud800"]
NO_POLICY = ["", "JOIN", 1, None, [], {}]
NO_BYTES = ["", "text", 1, None, [], {}]


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in NUMBERS for value in NO_NUMBERS]
    + [(name, value) for name in TEXTS for value in NO_TEXTS]
    + [("tq-id-conflict", value) for value in NO_POLICY]
    + [("tq-heartbeat", value) for value in NO_BYTES],
)
def test_a_malformed_header_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(Malformed, match=rf"^header {name}: "):
        read_task(a_message(**{name: value}), "q")


@pytest.mark.parametrize(
    "value",
    [
        *(one for one in NO_TEXTS if one != "x" * 4097),
        "{}",
        '{"capabilities":[]}',
        '{"capabilities":"gpu"}',
        '{"capabilities":[""]}',
        '{"capabilities":["a\\nb"]}',
        '{"capabilities":["gpu"],"on-gone":"maybe"}',
        '{"capabilities":["gpu"],"on-gone":"fail","wait-ms":5}',
        '{"capabilities":["gpu"],"wait-ms":100000000000000000000}',
        '{"capabilities":["1","2","3","4","5","6","7","8","9"]}',
    ],
)
def test_malformed_requirements_are_refused(value: object) -> None:
    with pytest.raises(Malformed, match=r"^header tq-requires: "):
        read_task(a_message(**{"tq-requires": value}), "q")
    with pytest.raises(Malformed, match=r"^header tq-requires: "):
        envelope.required(a_message(**{"tq-requires": value}))


def test_what_a_message_requires_is_read_without_the_rest() -> None:
    message = task_message(a_task(requires=Requires(("gpu", "ssd"))))
    assert envelope.required(message) == ("gpu", "ssd")
    assert envelope.required(a_message()) == ()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tq-fairness-key", ""),
        ("tq-fairness-key", "k" * 65),
        ("tq-fairness-key", "a\nb"),
        ("tq-fairness-key", 1),
        ("tq-fairness-weight", 0.0),
        ("tq-fairness-weight", float("nan")),
        ("tq-fairness-weight", "1"),
    ],
)
def test_malformed_shares_are_refused_and_count_as_none(name: str, value: object) -> None:
    message = a_message(**{"tq-fairness-key": "a", "tq-fairness-weight": 2.0, name: value})
    with pytest.raises(Malformed, match=f"^header {name}: it "):
        read_task(message, "q")
    assert envelope.share(message) == ("", 1.0)


def test_a_share_is_written_and_read_without_the_rest() -> None:
    message = task_message(a_task(fairness_key="acme", fairness_weight=2.5))
    assert envelope.share(message) == ("acme", 2.5)
    assert envelope.share(envelope.with_share(a_message(), "acme", 2.5)) == ("acme", 2.5)
    assert envelope.share(envelope.with_share(a_message(), "acme", 1.0)) == ("acme", 1.0)
    assert envelope.with_share(a_message(), "", 2.0) == a_message()
    assert envelope.share(a_message()) == ("", 1.0)


def test_a_task_that_is_given_away_stays_in_doubt() -> None:
    away = envelope.moved(task_message(a_task()), "m", may_have_begun=True)
    assert envelope.HANDED_OUT in envelope.dealt(away, may_have_begun=False).headers


def test_a_dealt_task_is_as_it_was_but_for_its_rank() -> None:
    message = task_message(a_task(fairness_key="acme"))
    away = envelope.moved(message, "m", may_have_begun=False)
    assert away.headers[envelope.MOVED] == "m"
    assert envelope.HANDED_OUT not in away.headers
    dealt = envelope.dealt(away, may_have_begun=False)
    assert dealt == envelope.ranked(message)
    doubted = envelope.dealt(message, may_have_begun=True)
    assert doubted.headers == {**message.headers, envelope.HANDED_OUT: 1}


def test_every_header_of_a_task_is_among_those_tried_here() -> None:
    others = {"tq-id-conflict", "tq-heartbeat", "tq-requires"}
    others |= {"tq-fairness-key", "tq-fairness-weight"}
    assert {*NUMBERS, *TEXTS, *others} == set(envelope._TASK_HEADERS)


def test_attempt_0_is_read_as_the_first() -> None:
    assert read_task(a_message(tq_attempt=0), "q").attempt == 1


def test_headers_that_are_not_known_are_ignored() -> None:
    task = read_task(a_message(tq_of_the_future="x", lang="py", other=[1, {"a": None}]), "q")
    assert task == a_task()


@pytest.mark.parametrize("version", [0, 2, "1", None, [1], {}])
def test_a_protocol_that_is_not_known_is_refused(version: object) -> None:
    with pytest.raises(Malformed, match=r"^header tq-protocol: "):
        read_task(a_message(tq_protocol=version), "q")


def test_the_type_must_be_said() -> None:
    with pytest.raises(Malformed, match="tq-activity-type is missing"):
        read_task(Message(body=b"", message_id="m"), "q")


def test_an_id_must_be_said() -> None:
    message = Message(body=b"", message_id="", headers={"tq-activity-type": "t"})
    with pytest.raises(Malformed, match="correlation_id nor message_id"):
        read_task(message, "q")


def test_an_id_that_is_not_unicode_is_refused() -> None:
    """Found: py-amqp lets lone surrogates pass, and hashing the id raised far from here."""
    message = msgspec.structs.replace(a_message(), correlation_id="a\udfff")
    with pytest.raises(Malformed, match=r"^correlation_id: "):
        read_task(message, "q")


def test_compression_by_kombu_is_refused() -> None:
    with pytest.raises(Malformed, match="compression"):
        read_task(a_message(compression="application/x-gzip"), "q")


@pytest.mark.parametrize("content_type", ["application/x-python-serialize", "text/plain", ""])
def test_other_content_types_are_refused(content_type: str) -> None:
    message = msgspec.structs.replace(a_message(), content_type=content_type)
    with pytest.raises(Malformed, match="content_type"):
        read_task(message, "q")


def test_codecs_and_content_type_must_agree() -> None:
    with pytest.raises(Malformed, match="content_type"):
        read_task(a_message(tq_codecs="zlib"), "q")
    sealed = msgspec.structs.replace(a_message(), content_type="application/x-tq-encoded")
    with pytest.raises(Malformed, match="content_type"):
        read_task(sealed, "q")


def test_without_a_content_type_it_is_taken_for_ours() -> None:
    message = msgspec.structs.replace(a_message(), content_type=None)
    assert read_task(message, "q") == a_task()


# --- bodies -------------------------------------------------------------------------------------


@given(st.lists(raws, max_size=4), st.lists(raws, max_size=2), st.booleans(), st.booleans())
def test_a_body_comes_back_as_it_went(
    args: list[msgspec.Raw], beat: list[msgspec.Raw], failed: bool, zipped: bool
) -> None:
    converter = ZIPPED if zipped else PLAIN
    body = TaskBody(
        args=args, heartbeat=beat, failure=failure.application("x", "X") if failed else None
    )
    sealed = envelope.task_body(body, converter)
    task = a_task(body=sealed, codecs=converter.codec_names)
    assert read_task_body(task, converter) == body


@given(st.lists(json_values, max_size=4))
def test_the_body_of_a_first_attempt_is_its_arguments(values: list[Any]) -> None:
    sealed = envelope.args_body(msgspec.json.encode(values), PLAIN)
    body = read_task_body(a_task(body=sealed), PLAIN)
    assert [msgspec.json.decode(raw) for raw in body.args] == values
    assert (body.heartbeat, body.failure) == ([], None)


HOSTILE = [
    b"",
    b"{}",
    b"[]",
    b"null",
    b'{"args":null}',
    b'{"args":{}}',
    b'{"args":[NaN]}',
    b'{"args":[Infinity]}',
    b'{"args":["\\ud800"]}',
    b'{"args":[1]',
    b'{"args":[1]}}',
    b'{"args":' + b"[" * 200_000,
    b'{"args":[' + b"[" * 200_000 + b"]" * 200_000 + b"]}",
    b'{"args":[],"failure":{"kind":"of the future","message":""}}',
    b'{"args":[],"failure":' + b'{"kind":"application","message":"","cause":' * 50_000,
    b"\x80\x04\x95\x00",
]


@pytest.mark.parametrize("body", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_body_is_malformed_and_nothing_worse(body: bytes) -> None:
    with pytest.raises(Malformed, match=r"^body: "):
        read_task_body(a_task(body=body), PLAIN)


@pytest.mark.parametrize("value", [b"9" * 5000, b"1e400", b"-1e999", b'"\xff\xfe"'])
def test_a_value_that_does_not_exist_is_malformed_when_it_is_looked_at(value: bytes) -> None:
    body = read_task_body(a_task(body=b'{"args":[' + value + b"]}"), PLAIN)
    for hint in (Any, int, float):
        with pytest.raises(Malformed):
            PLAIN.payload_converter.decoder(hint)(body.args[0])


def test_a_body_that_was_not_unsealed_is_malformed() -> None:
    with pytest.raises(Malformed, match="'zlib' is not configured"):
        read_task_body(a_task(body=b"x", codecs="zlib"), PLAIN)
    with pytest.raises(Malformed, match=r"^body: zlib"):
        read_task_body(a_task(body=b"plain", codecs="zlib"), ZIPPED)


def test_a_body_over_the_bound_is_refused_before_it_is_sent() -> None:
    small = DataConverter(bytes_max=20)
    with pytest.raises(PayloadTooLarge, match="20"):
        envelope.args_body(b'["' + b"x" * 20 + b'"]', small)


# --- outcomes -----------------------------------------------------------------------------------

outcomes = st.builds(
    lambda failed, **fields: ActivityOutcome(
        **fields,
        failure=failure.application("bad", "Bad") if failed else None,
        result=b"null" if failed else fields_result(fields),
    ),
    st.booleans(),
    activity_id=names,
    activity_type=names,
    status=st.sampled_from(Status),
    attempt=st.integers(1, 1000),
    retry_state=st.none() | st.integers(1, 7),
    identity=texts,
    host=texts,
    worker_id=texts,
    started_ms=numbers,
    finished_ms=numbers,
    start_token=texts,
)


def fields_result(fields: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"of": fields["activity_id"]})


@given(outcomes, st.booleans())
def test_an_outcome_comes_back_as_it_went(outcome: ActivityOutcome, zipped: bool) -> None:
    converter = ZIPPED if zipped else PLAIN
    assert read_outcome(envelope.outcome_message(outcome, converter), converter) == outcome


def an_outcome(**headers: Any) -> Message:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Message(
        body=b'{"result":1}',
        message_id="m",
        correlation_id="a",
        headers={"tq-status": "completed"} | named,
    )


def test_a_bare_message_is_an_outcome() -> None:
    outcome = read_outcome(an_outcome(), PLAIN)
    assert (outcome.result, outcome.attempt, outcome.identity) == (b"1", 1, "")


@pytest.mark.parametrize("status", [None, "", "COMPLETED", 1, [], {}])
def test_a_status_that_is_not_known_is_refused(status: object) -> None:
    with pytest.raises(Malformed, match=r"^header tq-status"):
        read_outcome(an_outcome(tq_status=status), PLAIN)


@pytest.mark.parametrize(
    "name", ["tq-attempt", "tq-retry-state", "tq-started-ms", "tq-finished-ms"]
)
@pytest.mark.parametrize("value", [-1, "1", True, 2**60])
def test_a_malformed_header_of_an_outcome_is_refused_by_its_name(name: str, value: object) -> None:
    with pytest.raises(Malformed, match=rf"^header {name}: "):
        read_outcome(an_outcome(**{name: value}), PLAIN)


def test_an_outcome_says_whose_it_is_and_by_which_protocol() -> None:
    with pytest.raises(Malformed, match="correlation_id"):
        read_outcome(msgspec.structs.replace(an_outcome(), correlation_id=None), PLAIN)
    with pytest.raises(Malformed, match="tq-protocol"):
        read_outcome(an_outcome(tq_protocol=2), PLAIN)


@pytest.mark.parametrize("body", [b"", b"[]", b'{"result":NaN}', b'{"result":' + b"[" * 200_000])
def test_a_hostile_outcome_is_malformed(body: bytes) -> None:
    with pytest.raises(Malformed, match=r"^body: "):
        read_outcome(msgspec.structs.replace(an_outcome(), body=body), PLAIN)


def test_a_parked_message_says_why() -> None:
    parked = envelope.parked(an_outcome(), "x" * 9999, queue="q", now_ms=7, by="me")
    assert parked.headers["tq-parked-reason"] == "x" * envelope.TEXT_MAX
    assert parked.headers["tq-parked-from"] == "q"
    assert (parked.headers["tq-parked-ms"], parked.headers["tq-parked-by"]) == (7, "me")
    assert parked.body == an_outcome().body


# --- what a history service is told ---------------------------------------------------------------


@pytest.mark.parametrize("converter", [PLAIN, ZIPPED])
def test_history_can_read_why_an_attempt_failed(converter: DataConverter) -> None:
    failed = failure.application("secret", "Bad", non_retryable=True)
    outcome = ActivityOutcome(
        activity_id="a", activity_type="t", status=Status.FAILED, failure=failed
    )
    message = envelope.report_message(outcome, [msgspec.Raw(b'"half"')], converter)
    told = read_outcome(message, PLAIN).failure
    assert told is not None
    assert (told.type, told.non_retryable) == ("Bad", True)
    assert payload.unseal_failure(told, converter) == failed
    assert (b"secret" in message.body) is not bool(converter.codecs)


def test_details_of_heartbeats_go_beside_the_body_when_codecs_hide_them() -> None:
    outcome = ActivityOutcome(activity_id="a", activity_type="t", status=Status.HEARTBEAT)
    details = [msgspec.Raw(b'"half"')]
    plain = envelope.report_message(outcome, details, PLAIN)
    assert msgspec.json.decode(plain.body) == {"heartbeat": ["half"]}
    zipped = envelope.report_message(outcome, details, ZIPPED)
    assert payload.load_args(zipped.headers["tq-heartbeat"], ZIPPED) == details


def test_sealed_details_that_no_header_can_hold_are_refused() -> None:
    outcome = ActivityOutcome(activity_id="a", activity_type="t", status=Status.HEARTBEAT)
    sealed = DataConverter(codecs=[Same()])
    overhead = len(payload.dump_args([""], sealed))
    for size in (0, HEARTBEAT_BYTES_MAX - overhead):
        message = envelope.report_message(outcome, [msgspec.Raw(b'"%s"' % (b"x" * size))], sealed)
        assert len(message.headers["tq-heartbeat"]) == overhead + size
    large = [msgspec.Raw(b'"%s"' % (b"x" * (size + 1)))]
    with pytest.raises(PayloadTooLarge, match="65537 bytes long when encoded; the bound is 65536"):
        envelope.report_message(outcome, large, sealed)
    plain = envelope.report_message(outcome, large, PLAIN)
    assert len(plain.body) > HEARTBEAT_BYTES_MAX, "a body is another matter"


class Same:
    name = "same"

    def encode(self, data: bytes) -> bytes:
        return data

    def decode(self, data: bytes, bytes_max: int) -> bytes:
        return data


def test_each_heartbeat_is_a_message_of_its_own() -> None:
    ids = {
        envelope.report_message(
            ActivityOutcome(
                activity_id="a", activity_type="t", status=Status.HEARTBEAT, finished_ms=ms
            ),
            [],
            PLAIN,
        ).message_id
        for ms in (1, 2)
    }
    assert len(ids) == 2


@pytest.mark.parametrize("converter", [PLAIN, ZIPPED])
def test_history_is_told_a_result_as_anybody_is(converter: DataConverter) -> None:
    outcome = ActivityOutcome(activity_id="a", activity_type="t", status=Status.COMPLETED)
    message = envelope.report_message(outcome, None, converter)
    assert message == envelope.outcome_message(outcome, converter)


@pytest.mark.parametrize("converter", [PLAIN, ZIPPED])
def test_history_reads_a_report_without_the_codecs(converter: DataConverter) -> None:
    done = ActivityOutcome(
        activity_id="a", activity_type="t", status=Status.COMPLETED, result=b"[1]", attempt=2
    )
    read, body, heartbeat = envelope.read_report(envelope.report_message(done, None, converter))
    assert (read.status, read.attempt, heartbeat) == (Status.COMPLETED, 2, None)
    assert payload.unseal(body, converter) == b'{"result":[1]}'
    lost = ActivityOutcome(
        activity_id="a",
        activity_type="t",
        status=Status.FAILED,
        failure=failure.application("x", "Bad"),
    )
    details = [msgspec.Raw(b'"half"')]
    read, _, heartbeat = envelope.read_report(envelope.report_message(lost, details, converter))
    assert read.failure is not None
    assert read.failure.type == "Bad"
    assert heartbeat is not None
    assert payload.load_args(heartbeat, converter) == details


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"["),
        ({"tq-heartbeat": "text"}, b"{}"),
        ({"tq-codecs": 7}, b"{}"),
        ({"tq-protocol": 2}, b"{}"),
        ({"tq-status": "odd"}, b"{}"),
    ],
)
def test_a_broken_report_is_malformed(headers: dict[str, object], body: bytes) -> None:
    message = envelope.forwarded(an_outcome(), headers=headers, body=body)
    with pytest.raises(Malformed):
        envelope.read_report(message)


def test_details_that_history_could_not_read_come_in_a_header() -> None:
    details = payload.dump_args(["half"], ZIPPED)
    task = ActivityTask(
        activity_id="a",
        activity_type="t",
        task_queue="q",
        body=ZIPPED.seal(b'{"args":[]}'),
        codecs="zlib",
        heartbeat_details=details,
    )
    read = read_task(task_message(task), "q")
    assert read_task_body(read, ZIPPED).heartbeat == [msgspec.Raw(b'"half"')]


# --- wills --------------------------------------------------------------------------------------


def test_a_will_comes_back_as_it_went() -> None:
    message = envelope.will_message("tq.n.host.h.q", "1")
    assert message.kind == envelope.WILL
    assert envelope.read_will(message) == "tq.n.host.h.q"


@pytest.mark.parametrize(
    "headers", [{}, {"tq-will": ""}, {"tq-will": 5}, {"tq-will": "q", "tq-protocol": 2}]
)
def test_a_malformed_will_is_refused(headers: dict[str, Any]) -> None:
    message = Message(body=b"", message_id="1", kind=envelope.WILL, headers=headers)
    with pytest.raises(Malformed, match=r"^header tq-"):
        envelope.read_will(message)


# --- forwarding ---------------------------------------------------------------------------------


def test_what_rabbitmq_added_is_not_sent_on() -> None:
    message = a_message(
        **{
            "x-death": [{"count": 1}],
            "x-first-death-queue": "q",
            "x-first-death-reason": "expired",
            "x-last-death-exchange": "e",
            "x-delivery-count": 2,
            "x-mine": "stays",
        }
    )
    forwarded = envelope.forwarded(message, headers={"tq-parked-reason": "bad"}, priority=3)
    assert forwarded.headers == {
        "tq-activity-type": "t",
        "x-mine": "stays",
        "tq-parked-reason": "bad",
    }
    assert (forwarded.priority, forwarded.body) == (3, message.body)
    assert "x-death" in message.headers, "the original stays as it is"


def test_the_time_left_of_the_largest_numbers_can_be_told() -> None:
    most = 2**53
    task = read_task(a_message(tq_scheduled_ms=most, tq_schedule_to_close_ms=most), "q")
    assert task.left(0) == timedelta(milliseconds=2 * most)


@pytest.mark.parametrize("mark", ["1", "1:", ":q", "1:\x00", "1:" + "x" * 101])
def test_a_pass_that_nobody_gave_is_refused(mark: str) -> None:
    with pytest.raises(Malformed, match=r"^header tq-pass: "):
        read_task(a_message(**{"tq-pass": mark}), "q")
