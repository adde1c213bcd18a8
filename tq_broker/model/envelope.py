"""Tasks and outcomes to AMQP messages and back: the only module that knows header names.

Rules of this file: the wire is described in ``docs/protocol.rst``, for people who write a worker
or a client without this library; change both together. Headers are only sent when they differ
from their default. What cannot be understood raises `Malformed` with the reason; a header that
is not known is ignored, a protocol version that is not known is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from tq_broker.common import (
    PRIORITY_DEFAULT,
    PRIORITY_FIRST,
    PRIORITY_LAST,
    ActivityIDConflictPolicy,
    check_fairness_key,
    check_fairness_weight,
    check_key,
)
from tq_broker.converter import ENCODED, JSON, DataConverter
from tq_broker.exceptions import InvalidArgument, Malformed, PayloadTooLarge
from tq_broker.model import payload, tasks
from tq_broker.model.message import Message
from tq_broker.model.names import check_task_queue
from tq_broker.model.tasks import ActivityOutcome, ActivityTask, OutcomeBody, Status, TaskBody

PROTOCOL = 1
TASK = "activity-task"
OUTCOME = "activity-outcome"
WILL = "will"
CONTROL = "control"
SETTING = "setting"

RESENT = "tq-resent"
HANDED_OUT = "tq-handed-out"
"""The task was put elsewhere as a fresh copy, but had been redelivered before."""
RULE = "tq-rule"
FELL_BACK = "tq-fell-back"
TASK_QUEUE = "tq-task-queue"
PASS = "tq-pass"
HEARTBEAT = "tq-heartbeat"
REQUIRES = "tq-requires"
FAIRNESS_KEY = "tq-fairness-key"
FAIRNESS_WEIGHT = "tq-fairness-weight"
ATTEMPT = "tq-attempt"
SCHEDULED = "tq-scheduled-ms"
START_TOKEN = "tq-start-token"
MOVED = "tq-moved"
"""Which move of a dealer has made this copy."""
NUMBER_MAX = 2**53
TEXT_MAX = 4096
HEARTBEAT_BYTES_MAX = 64 * 1024
"""Of sealed details: all headers of a message have to fit into one frame, of 128 KiB."""

_NOT_SENT_ON = (
    "x-death",
    "x-first-death-",
    "x-last-death-",
    "x-delivery-count",
    "x-acquired-count",
)


def _number(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= NUMBER_MAX:
        raise Malformed(f"header {name}: {value!r:.40} is not a number from 0 to 2**53")
    return value


def _attempt(name: str, value: object) -> int:
    return _number(name, value) or 1


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value or len(value) > TEXT_MAX:
        raise Malformed(f"header {name}: not a text of 1 to {TEXT_MAX} characters")
    return _utf8(f"header {name}", value)


def _long_text(name: str, value: object) -> str:
    """A text that has a bound of its own."""
    if not isinstance(value, str):
        raise Malformed(f"header {name}: not a text")
    return _utf8(f"header {name}", value)


def _utf8(name: str, value: str) -> str:
    """``value``, if it can be sent on: AMQP libraries let lone surrogates pass."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Malformed(f"{name}: {value!a:.40} is not Unicode") from None
    return value


def _label(headers: Mapping[str, Any], name: str) -> str:
    """What a header says for people to read; "" if it is not there."""
    return _utf8(f"header {name}", str(headers.get(name, "")))


def _bytes(name: str, value: object) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise Malformed(f"header {name}: not a byte array")
    return bytes(value)


def _conflict(name: str, value: object) -> ActivityIDConflictPolicy:
    try:
        return ActivityIDConflictPolicy(value)
    except ValueError:
        raise Malformed(f"header {name}: {value!r:.40} is neither 'join' nor 'refuse'") from None


def _mark(name: str, value: object) -> str:
    text = _text(name, value)
    pass_id, _, task_queue = text.partition(":")
    try:
        check_task_queue(task_queue)
    except InvalidArgument as error:
        raise Malformed(f"header {name}: {error}") from error
    if not pass_id:
        raise Malformed(f"header {name}: it names no pass")
    return text


def _key(name: str, value: object) -> str:
    try:
        return check_key("it", value)
    except InvalidArgument as error:
        raise Malformed(f"header {name}: {error}") from error


def _fairness_key(name: str, value: object) -> str:
    try:
        return check_fairness_key("it", value)
    except InvalidArgument as error:
        raise Malformed(f"header {name}: {error}") from error


def _fairness_weight(name: str, value: object) -> float:
    try:
        return check_fairness_weight("it", value)
    except InvalidArgument as error:
        raise Malformed(f"header {name}: {error}") from error


_TASK_HEADERS: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "tq-activity-type": ("activity_type", _text),
    ATTEMPT: ("attempt", _attempt),
    SCHEDULED: ("scheduled_ms", _number),
    "tq-attempt-scheduled-ms": ("attempt_scheduled_ms", _number),
    "tq-start-to-close-ms": ("start_to_close_ms", _number),
    "tq-schedule-to-start-ms": ("schedule_to_start_ms", _number),
    "tq-schedule-to-close-ms": ("schedule_to_close_ms", _number),
    "tq-heartbeat-ms": ("heartbeat_ms", _number),
    "tq-retry-policy": (
        "retry_policy",
        lambda name, v: tasks.load_retry_policy(_long_text(name, v)),
    ),
    "tq-route": ("route", lambda name, v: tasks.load_route(_text(name, v))),
    REQUIRES: ("requires", lambda name, v: tasks.load_requires(_long_text(name, v))),
    "tq-id-retention-ms": ("id_retention_ms", _number),
    "tq-id-conflict": ("id_conflict", _conflict),
    START_TOKEN: ("start_token", _text),
    RESENT: ("resent", _number),
    "tq-lease": ("lease", _text),
    "tq-codecs": ("codecs", _text),
    "tq-workflow": ("workflow", lambda name, v: tasks.load_origin(_text(name, v))),
    HEARTBEAT: ("heartbeat_details", _bytes),
    "tq-headers": ("headers", lambda name, v: tasks.load_headers(_long_text(name, v))),
    RULE: ("rule", _text),
    FELL_BACK: ("fell_back", _text),
    "tq-rate-limit-key": ("rate_limit_key", _key),
    FAIRNESS_KEY: ("fairness_key", _fairness_key),
    FAIRNESS_WEIGHT: ("fairness_weight", _fairness_weight),
    PASS: ("pass_mark", _mark),
}

_DUMP: dict[str, Callable[[Any], Any]] = {
    "retry_policy": tasks.dump_retry_policy,
    "route": tasks.dump_route,
    "requires": tasks.dump_requires,
    "id_conflict": lambda policy: policy.value,
    "workflow": tasks.dump_origin,
    "headers": tasks.dump_headers,
}

_DEFAULTS = dict(
    zip(
        ActivityTask.__struct_fields__[-len(ActivityTask.__struct_defaults__) :],
        ActivityTask.__struct_defaults__,
        strict=True,
    )
)
_DEFAULTS["headers"] = {}  # what msgspec has there makes a dict

_MAX_PRIORITY = 7
"""Our priority 3, the default, becomes RabbitMQ's 4: the default of 4.3's quorum queues."""
AMQP_PRIORITY_DEFAULT = _MAX_PRIORITY - PRIORITY_DEFAULT
AMQP_PRIORITY_MAX = _MAX_PRIORITY - PRIORITY_FIRST


def task_headers(task: ActivityTask) -> dict[str, Any]:
    """The headers of ``task``: what many tasks of one start have in common."""
    headers: dict[str, Any] = {"tq-protocol": PROTOCOL}
    for name, (field, _) in _TASK_HEADERS.items():
        value = getattr(task, field)
        if value != _DEFAULTS.get(field):
            headers[name] = _DUMP[field](value) if field in _DUMP else value
    return headers


def task_message(task: ActivityTask, headers: Mapping[str, Any] | None = None) -> Message:
    """The message that carries ``task``; ``headers`` are its `task_headers` if made before."""
    return Message(
        body=task.body,
        message_id=task.activity_id,
        kind=TASK,
        headers=task_headers(task) if headers is None else headers,
        correlation_id=task.activity_id,
        reply_to=task.reply_to,
        content_type=ENCODED if task.codecs else JSON,
        content_encoding="binary" if task.codecs else "utf-8",
        priority=None if task.priority is None else _MAX_PRIORITY - task.priority,
        timestamp=task.scheduled_ms // 1000,
    )


def read_task(message: Message, task_queue: str) -> ActivityTask:
    """The task in ``message``, which is one of ``task_queue`` unless a traffic rule has brought it
    there. Raises `Malformed`."""
    headers = message.headers
    _check_protocol(headers)
    if "compression" in headers:
        raise Malformed("header compression: Kombu's compression is not accepted here")
    fields: dict[str, Any] = {}
    for name, value in headers.items():
        known = _TASK_HEADERS.get(name)
        if known is not None:
            fields[known[0]] = known[1](name, value)
    if "activity_type" not in fields:
        raise Malformed("header tq-activity-type is missing")
    _check_content_type(message, fields.get("codecs", ""))
    activity_id = message.correlation_id or message.message_id
    if not activity_id:
        raise Malformed("neither correlation_id nor message_id is set")
    _utf8("correlation_id", activity_id)
    if message.priority is not None:
        fields["priority"] = priority_of(message)
    if "scheduled_ms" not in fields and message.timestamp:
        if not 0 <= message.timestamp <= NUMBER_MAX // 1000:
            raise Malformed(f"timestamp: {message.timestamp!r:.40} is not in seconds")
        fields["scheduled_ms"] = message.timestamp * 1000
    task_queue = home(message) or task_queue
    if not task_queue:
        raise Malformed(f"header {TASK_QUEUE} is missing")
    return ActivityTask(
        activity_id=activity_id,
        task_queue=task_queue,
        body=message.body,
        reply_to=message.reply_to,
        **fields,
    )


def with_priority(message: Message, priority: int | None) -> Message:
    """``message`` with a priority of ours; ``None`` leaves it as it is."""
    if priority is None:
        return message
    return msgspec.structs.replace(message, priority=_MAX_PRIORITY - priority)


def priority_of(message: Message) -> int:
    """The priority of ours that ``message`` has, 1 (first) to 5."""
    if message.priority is None:
        return PRIORITY_DEFAULT
    return min(PRIORITY_LAST, max(PRIORITY_FIRST, _MAX_PRIORITY - message.priority))


def with_share(message: Message, key: str, weight: float) -> Message:
    """``message`` as one of a fairness key; "" leaves it as it is."""
    if not key:
        return message
    said = {FAIRNESS_KEY: key} if weight == 1.0 else {FAIRNESS_KEY: key, FAIRNESS_WEIGHT: weight}
    return msgspec.structs.replace(message, headers={**message.headers, **said})


def with_requires(message: Message, requires: str | None) -> Message:
    """``message`` as one of a task that requires what the header value says; ``None``: nothing."""
    if requires is None:
        return message
    return msgspec.structs.replace(message, headers={**message.headers, REQUIRES: requires})


def share(message: Message) -> tuple[str, float]:
    """The fairness key of ``message``, "" if it has none, and its weight. What cannot be read
    counts as not said: whoever reads all of the message refuses it."""
    headers = message.headers
    if FAIRNESS_KEY not in headers:
        return "", 1.0
    try:
        key = _fairness_key(FAIRNESS_KEY, headers[FAIRNESS_KEY])
        return key, _fairness_weight(FAIRNESS_WEIGHT, headers.get(FAIRNESS_WEIGHT, 1.0))
    except Malformed:
        return "", 1.0


def moved(message: Message, move_id: str, *, may_have_begun: bool) -> Message:
    """``message`` as a dealer gives it away."""
    fresh = handed_on(message, may_have_begun=may_have_begun)
    return forwarded(fresh, headers={MOVED: move_id})


def dealt(message: Message, *, may_have_begun: bool) -> Message:
    """``message`` as a dealer deals it."""
    fresh = ranked(handed_on(message, may_have_begun=may_have_begun))
    headers = {name: value for name, value in fresh.headers.items() if name != MOVED}
    return msgspec.structs.replace(fresh, headers=headers)


def ranked(message: Message) -> Message:
    """``message`` for a classic queue with priorities, where having none means the last."""
    if message.priority is not None:
        return message
    return msgspec.structs.replace(message, priority=AMQP_PRIORITY_DEFAULT)


def handed_on(message: Message, *, may_have_begun: bool) -> Message:
    """A fresh copy of ``message``, which does not forget that somebody has had it before."""
    return forwarded(message, headers={HANDED_OUT: 1} if may_have_begun else {})


def diverted(message: Message, rule_id: str, task_queue: str) -> Message:
    """``message`` as a traffic rule sends it elsewhere than to its task queue ``task_queue``."""
    return forwarded(message, headers={RULE: rule_id, TASK_QUEUE: task_queue})


def brought_back(message: Message, rule_id: str) -> Message:
    """``message`` on its own task queue, after the target of the rule did not take it."""
    back = without_route(message)
    return msgspec.structs.replace(back, headers={**back.headers, FELL_BACK: rule_id})


def without_route(message: Message) -> Message:
    """``message`` without what traffic rules have written on it."""
    copy = forwarded(message)
    marks = (RULE, FELL_BACK, TASK_QUEUE)
    headers = {name: value for name, value in copy.headers.items() if name not in marks}
    return msgspec.structs.replace(copy, headers=headers)


def with_pass(message: Message, mark: str) -> Message:
    """``message`` as an usher lets it in."""
    return forwarded(message, headers={PASS: mark})


def without_pass(message: Message) -> Message:
    """``message`` as its usher must see it again before it may begin."""
    if PASS not in message.headers:
        return message
    headers = {name: value for name, value in message.headers.items() if name != PASS}
    return msgspec.structs.replace(message, headers=headers)


def home(message: Message) -> str:
    """The task queue of a message that a traffic rule has sent elsewhere, or is to; "" if none has.
    Raises `Malformed`."""
    headers = message.headers
    if RULE not in headers:
        return ""
    name = _text(TASK_QUEUE, headers.get(TASK_QUEUE))
    try:
        return check_task_queue(name)
    except InvalidArgument as error:
        raise Malformed(f"header {TASK_QUEUE}: {error}") from error


def required(message: Message) -> tuple[str, ...]:
    """The capabilities that a task in ``message`` requires. Raises `Malformed`."""
    if REQUIRES not in message.headers:
        return ()
    return tasks.load_requires(_long_text(REQUIRES, message.headers[REQUIRES])).names


def _check_protocol(headers: Mapping[str, Any]) -> None:
    version = headers.get("tq-protocol", PROTOCOL)
    if version != PROTOCOL:
        raise Malformed(f"header tq-protocol: version {version!r:.40} is not known here")


def _check_content_type(message: Message, codecs: str) -> None:
    wanted = ENCODED if codecs else JSON
    if message.content_type not in (wanted, None):
        raise Malformed(f"content_type {message.content_type!r:.80} is not {wanted}")


_decode_task_body = msgspec.json.Decoder(TaskBody).decode
_decode_outcome_body = msgspec.json.Decoder(OutcomeBody).decode


def read_task_body(task: ActivityTask, converter: DataConverter) -> TaskBody:
    """Arguments and what the attempt before left. Raises `Malformed`."""
    data = converter.unseal(task.body, task.codecs)
    try:
        body = _decode_task_body(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"body: {error}") from error
    if not task.heartbeat_details:
        return body
    details = payload.load_args(task.heartbeat_details, converter)
    return msgspec.structs.replace(body, heartbeat=details)


def task_body(body: TaskBody, converter: DataConverter) -> bytes:
    """The sealed bytes of ``body``. Raises `PayloadTooLarge`."""
    return converter.seal(msgspec.json.encode(body))


def args_body(args: bytes, converter: DataConverter) -> bytes:
    """The sealed body of a first attempt; ``args`` is its JSON list of arguments."""
    return converter.seal(b'{"args":' + args + b"}")


def outcome_message(outcome: ActivityOutcome, converter: DataConverter) -> Message:
    """The message that tells ``outcome``. Raises `PayloadTooLarge`."""
    if outcome.failure is None:
        body = b'{"result":' + outcome.result + b"}"
    else:
        body = msgspec.json.encode(OutcomeBody(failure=outcome.failure))
    return _outcome_message(outcome, converter.seal(body), converter.codec_names)


def report_message(
    outcome: ActivityOutcome, heartbeat: Sequence[msgspec.Raw] | None, converter: DataConverter
) -> Message:
    """The message that tells a history service ``outcome``. Raises `PayloadTooLarge`.

    History has no codecs, and must read why an attempt failed: then the body is plain, and what
    codecs should hide is sealed inside it; the last details go beside it in ``tq-heartbeat``,
    `HEARTBEAT_BYTES_MAX` at most.
    """
    if outcome.failure is None and heartbeat is None:
        return outcome_message(outcome, converter)
    details = None if heartbeat is None else list(heartbeat)
    failed = outcome.failure and payload.seal_failure(outcome.failure, converter)
    if details is None or not converter.codecs:
        body = OutcomeBody(failure=failed, heartbeat=details)
        return _outcome_message(outcome, converter.check(msgspec.json.encode(body)), "")
    sealed = payload.seal(msgspec.json.encode(details), converter)
    if len(sealed) > HEARTBEAT_BYTES_MAX:
        raise PayloadTooLarge(
            f"they are {len(sealed)} bytes long when encoded; the bound is {HEARTBEAT_BYTES_MAX}"
        )
    message = _outcome_message(outcome, msgspec.json.encode(OutcomeBody(failure=failed)), "")
    return forwarded(message, headers={HEARTBEAT: sealed})


def _outcome_message(outcome: ActivityOutcome, body: bytes, codecs: str) -> Message:
    headers: dict[str, Any] = {
        "tq-protocol": PROTOCOL,
        "tq-status": outcome.status.value,
        "tq-activity-type": outcome.activity_type,
        "tq-attempt": outcome.attempt,
        "tq-identity": outcome.identity,
        "tq-host": outcome.host,
        "tq-worker-id": outcome.worker_id,
        "tq-started-ms": outcome.started_ms,
        "tq-finished-ms": outcome.finished_ms,
    }
    if outcome.retry_state is not None:
        headers["tq-retry-state"] = outcome.retry_state
    if outcome.start_token:
        headers[START_TOKEN] = outcome.start_token
    if codecs:
        headers["tq-codecs"] = codecs
    message_id = f"{outcome.activity_id}/{outcome.attempt}/{outcome.status.value}"
    if outcome.status is Status.HEARTBEAT:
        message_id += f"/{outcome.finished_ms}"  # one attempt tells many, and each counts
    return Message(
        body=body,
        message_id=message_id,
        kind=OUTCOME,
        headers=headers,
        correlation_id=outcome.activity_id,
        content_type=ENCODED if codecs else JSON,
        content_encoding="binary" if codecs else "utf-8",
    )


def read_outcome(message: Message, converter: DataConverter) -> ActivityOutcome:
    """The outcome in ``message``. Raises `Malformed`."""
    body = converter.unseal(message.body, str(message.headers.get("tq-codecs", "")))
    return _read_outcome(message, _read_outcome_body(body))


def read_report(
    message: Message,
) -> tuple[ActivityOutcome, payload.Payload, payload.Payload | None]:
    """The outcome in ``message`` for a history service, which has no codecs: see `report_message`.

    Returns it, the payload of its body, and that of the last details, if any came. The result is
    in the payload only, if codecs hide it. Raises `Malformed`.
    """
    codecs = message.headers.get("tq-codecs", "")
    sealed = payload.join(_text("tq-codecs", codecs), message.body) if codecs else message.body
    body = OutcomeBody() if codecs else _read_outcome_body(message.body)
    heartbeat = message.headers.get(HEARTBEAT)
    if heartbeat is not None:
        heartbeat = _bytes(HEARTBEAT, heartbeat)
    elif body.heartbeat is not None:
        heartbeat = msgspec.json.encode(body.heartbeat)
    return _read_outcome(message, body), sealed, heartbeat


def _read_outcome_body(body: bytes) -> OutcomeBody:
    try:
        return _decode_outcome_body(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(f"body: {error}") from error


def _read_outcome(message: Message, body: OutcomeBody) -> ActivityOutcome:
    headers = message.headers
    _check_protocol(headers)
    if not message.correlation_id:
        raise Malformed("correlation_id is not set")
    try:
        status = Status(headers.get("tq-status"))
    except ValueError:
        raise Malformed(f"header tq-status: {headers.get('tq-status')!r:.40}") from None
    retry_state = headers.get("tq-retry-state")
    return ActivityOutcome(
        activity_id=message.correlation_id,
        activity_type=_label(headers, "tq-activity-type"),
        status=status,
        attempt=_attempt("tq-attempt", headers.get("tq-attempt", 1)),
        result=bytes(body.result),
        failure=body.failure,
        retry_state=None if retry_state is None else _number("tq-retry-state", retry_state),
        identity=_label(headers, "tq-identity"),
        host=_label(headers, "tq-host"),
        worker_id=_label(headers, "tq-worker-id"),
        started_ms=_number("tq-started-ms", headers.get("tq-started-ms", 0)),
        finished_ms=_number("tq-finished-ms", headers.get("tq-finished-ms", 0)),
        start_token=_label(headers, START_TOKEN),
    )


def will_message(queue: str, message_id: str) -> Message:
    """The will of a worker that serves the private queue ``queue``."""
    return Message(
        body=b"{}",
        message_id=message_id,
        kind=WILL,
        headers={"tq-protocol": PROTOCOL, "tq-will": queue},
    )


def read_will(message: Message) -> str:
    """The private queue that a will is about. Raises `Malformed`."""
    _check_protocol(message.headers)
    return _text("tq-will", message.headers.get("tq-will"))


def parked(message: Message, reason: str, *, queue: str, now_ms: int, by: str) -> Message:
    """``message`` as it is kept for an operator: why, where it came from, when, and by whom."""
    return forwarded(
        message,
        headers={
            "tq-parked-reason": reason[:TEXT_MAX],
            "tq-parked-from": queue,
            "tq-parked-ms": now_ms,
            "tq-parked-by": by,
        },
    )


def forwarded(message: Message, **changes: Any) -> Message:
    """``message`` as it may be published again.

    Without the headers that RabbitMQ has added: 3.10 takes a message that comes round with those
    of dead-lettering for a cycle, and drops it.
    """
    headers = {
        name: value for name, value in message.headers.items() if not name.startswith(_NOT_SENT_ON)
    }
    return msgspec.structs.replace(message, headers=headers | changes.pop("headers", {}), **changes)
