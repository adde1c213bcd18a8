"""The grammar of names: build and parse are inverses, and nothing gets out of bounds."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.exceptions import InvalidArgument
from tq_broker.model import names
from tq_broker.model.names import (
    Exchange,
    Kind,
    Names,
    QueueName,
    check_namespace,
    check_task_queue,
    check_text,
    decode_part,
    encode_part,
)

SHORT_STRING_MAX = 255
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
hostile = st.text(st.sampled_from("#*.%/\\:~ \r\n\0\u202eéß漢😀aZ09_-"), min_size=1)


@given(texts | hostile)
def test_a_part_is_decoded_to_what_was_encoded(text: str) -> None:
    part = encode_part(text)
    assert decode_part(part) == text
    assert re.fullmatch(r"[A-Za-z0-9_%-]+", part)


@given(st.text() | st.from_regex(r"(%[0-9A-Fa-f]{2}|[a-z.~])+"))
def test_what_decodes_is_the_one_encoding(part: str) -> None:
    try:
        text = decode_part(part)
    except InvalidArgument:
        return
    assert encode_part(text) == part


@pytest.mark.parametrize(
    "part", ["", "a.b", "a b", "%", "%4", "%4g", "%41", "%e9", "%C3", "%2e", "a\n", "%ED%A0%80"]
)
def test_a_part_that_encoding_cannot_have_made_is_refused(part: str) -> None:
    with pytest.raises(InvalidArgument):
        decode_part(part)


@st.composite
def queue_names(draw: st.DrawFn) -> QueueName:
    kind = draw(st.sampled_from(Kind))
    arity = names._ARITY[kind]
    parts = draw(st.lists(texts | hostile, min_size=arity, max_size=arity))
    return QueueName(draw(texts | hostile), kind, tuple(parts))


@given(queue_names())
def test_a_name_parses_to_what_it_was_built_of(name: QueueName) -> None:
    assert QueueName.parse(str(name)) == name
    assert QueueName.from_key(name.namespace, name.key) == name
    assert str(name).endswith("." + name.key)


@given(queue_names(), queue_names())
def test_different_queues_have_different_names(one: QueueName, other: QueueName) -> None:
    assert (one == other) == (str(one) == str(other))


@given(st.text() | st.from_regex(r"tq\.[a-z%.0-9]*"))
def test_what_parses_is_a_name_that_builds_to_itself(text: str) -> None:
    try:
        name = QueueName.parse(text)
    except InvalidArgument:
        return
    assert str(name) == text


@given(queue_names())
def test_a_name_has_nothing_that_means_something_to_rabbitmq(name: QueueName) -> None:
    assert re.fullmatch(r"tq(\.[A-Za-z0-9_%-]+)+", str(name))


visible = st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), min_size=1)


def cut(text: str, bytes_max: int) -> str:
    """``text`` again and again, as often as fits; ``"x"`` if it does not fit at all."""
    return text * (bytes_max // len(encode_part(text))) or "x"


@given(visible, visible, visible)
def test_names_of_checked_parts_fit_an_amqp_short_string(
    namespace: str, task_queue: str, target: str
) -> None:
    namespace = check_namespace(cut(namespace, names.NAMESPACE_BYTES_MAX))
    task_queue = check_task_queue(cut(task_queue, names.TASK_QUEUE_BYTES_MAX))
    target = cut(target, names.TARGET_BYTES_MAX)
    check_text("target", target, bytes_max=names.TARGET_BYTES_MAX)
    all_names = Names(namespace)
    for kind in (Kind.HOST, Kind.PROCESS):
        queue = all_names.queue(kind, target, task_queue)
        assert len(str(queue).encode()) <= SHORT_STRING_MAX
    assert len(all_names.delay_exchange(99).encode()) <= SHORT_STRING_MAX


def test_the_longest_names_fit_too() -> None:
    all_names = Names("n" * names.NAMESPACE_BYTES_MAX)
    queue = all_names.queue(
        Kind.PROCESS, "t" * names.TARGET_BYTES_MAX, "q" * names.TASK_QUEUE_BYTES_MAX
    )
    assert len(str(queue)) <= SHORT_STRING_MAX


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "name must be a string, not int"),
        (None, "name must be a string, not NoneType"),
        (b"x", "name must be a string, not bytes"),
        ("", "name must not be empty"),
        ("a\rb", r"U\+000D"),
        ("a\0", r"U\+0000"),
        ("\u202e", r"U\+202E"),
        ("\ud800", r"U\+D800"),
        ("\u2028", r"U\+2028"),
        ("\u200b", r"U\+200B"),
        ("\x7f", r"U\+007F"),
        ("éé", "name is 12 bytes long when encoded for RabbitMQ; the bound is 10"),
    ],
)
def test_a_text_that_cannot_be_a_name_is_refused_with_the_reason(
    value: object, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        check_text("name", value, bytes_max=10)


@pytest.mark.parametrize("value", ["a", "a b", "é", "漢", "a.b", "#", "*", "é" * 1])
def test_a_visible_text_is_accepted(value: str) -> None:
    assert check_text("name", value) == value


def test_the_bounds_are_the_last_that_pass() -> None:
    assert check_namespace("n" * 40)
    assert check_task_queue("q" * 100)
    with pytest.raises(InvalidArgument, match="namespace is 41 bytes"):
        Names("n" * 41)
    with pytest.raises(InvalidArgument, match="task_queue is 101 bytes"):
        check_task_queue("q" * 101)


@pytest.mark.parametrize("parts", [(), ("a", "b")])
def test_a_wrong_number_of_parts_is_refused(parts: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match=r"a activity queue has 1 name part\(s\), not"):
        QueueName("n", Kind.ACTIVITY, parts)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "tq",
        "tq.n",
        "tq.n.",
        "tq..parked",
        "other.n.parked",
        "TQ.n.parked",
        "tq.n.unheard.x",
        "tq.n.activity",
        "tq.n.activity.a.b",
        "tq.n.activity.",
        "tq.n.parked.x",
        "celery",
        "amq.gen-x",
    ],
)
def test_names_that_are_not_ours_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument):
        QueueName.parse(name)


def test_a_queue_knows_its_task_queue() -> None:
    all_names = Names("n")
    assert all_names.activity("q").task_queue == "q"
    assert all_names.queue(Kind.HOST, "h", "q").task_queue == "q"
    assert all_names.queue(Kind.REPLY, "c").task_queue is None


def test_a_namespace_owns_its_queues_only() -> None:
    mine, other = Names("mine"), Names("mine2")
    reply = str(mine.queue(Kind.REPLY, "c"))
    assert mine.owns(reply)
    assert mine.owns(reply, Kind.REPLY)
    assert not mine.owns(reply, Kind.ACTIVITY, Kind.PARKED)
    assert not other.owns(reply)
    assert not mine.owns("celery")


def test_each_exchange_has_its_own_name() -> None:
    all_names = Names("a.b")
    found = {all_names.exchange(exchange) for exchange in Exchange}
    assert len(found) == len(Exchange)
    assert all(name.startswith("tq.a%2Eb.") for name in found)


# --- sets of capabilities -------------------------------------------------------------------------


@given(st.sets(texts | hostile, min_size=1, max_size=4), st.sets(texts | hostile, min_size=1))
def test_a_set_is_a_part_of_its_own_and_comes_back(one: set[str], other: set[str]) -> None:
    queue = Names("n").capable("q", sorted(one))
    assert names.requirements(queue) == tuple(sorted(one))
    assert queue.task_queue == "q"
    assert (queue == Names("n").capable("q", sorted(other))) == (one == other)


def test_no_set_is_mistaken_for_a_word_of_ours() -> None:
    for kind in Kind:
        assert f".{kind.value}." not in Names("n").capable("q", [kind.value]).key


@pytest.mark.parametrize("part", ["", "gpu", "gpu+ssd", "+%", "+gpu+"])
def test_what_is_no_set_is_refused(part: str) -> None:
    with pytest.raises(InvalidArgument):
        names.read_set(part)


def test_without_requirements_the_shared_queue_is_the_plain_one() -> None:
    assert Names("n").shared("q") == Names("n").activity("q")
    assert names.requirements(Names("n").activity("q")) == ()
    assert str(Names("n").shared("q", ["ssd", "gpu"])) == "tq.n.capable.%2Bgpu%2Bssd.q"
