"""The settings log: records, and the state that they add up to."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tq_broker.common import TIME_MS_MAX
from tq_broker.exceptions import Malformed
from tq_broker.model import settings
from tq_broker.model.deployments import VersionServes
from tq_broker.model.limits import Limits, Side
from tq_broker.model.message import Message
from tq_broker.model.names import TASK_QUEUE_BYTES_MAX, Kind, Names
from tq_broker.model.parts import ALL, EACH_KEY, PARTS_MAX, Part, PartKind
from tq_broker.model.rules import TrafficRule
from tq_broker.model.sessions import session_task_queue
from tq_broker.model.settings import (
    CAPABILITIES_MAX,
    SIDES,
    VERDICTS_MAX,
    WEIGHTS_MAX,
    ActivityCanceled,
    BackedOff,
    CapabilitiesDeclared,
    FairnessWeightSet,
    LimitsSet,
    Record,
    Settings,
    SettingsSnapshot,
    TaskQueueDeclared,
    TaskQueueFair,
    TaskQueuePaused,
    TaskQueuePrioritized,
    TaskQueueReclaimed,
    TaskQueueResumed,
    TrafficRuleRemoved,
    TrafficRuleSet,
    read_record,
    record_message,
    record_ms,
)

names = st.sampled_from("abc")
times = st.integers(0, 10**13)
sides = st.sampled_from(SIDES)
either = st.sampled_from(["", *SIDES])
pauses = st.builds(TaskQueuePaused, names, times, st.just("me"), st.text("xyz"), either)
resumes = st.builds(TaskQueueResumed, names, times, st.just("me"), st.text("xyz"), either)
records = (
    st.builds(TaskQueueDeclared, names, times, st.just("me"), sides)
    | st.builds(TaskQueueReclaimed, names, times, st.just(""), sides, st.booleans())
    | st.builds(TaskQueuePrioritized, names, times, st.just("me"), sides)
    | pauses
    | resumes
    | st.builds(ActivityCanceled, names, times, st.text("xyz"), st.text("xyz"))
)


def folded(log: list[Record]) -> Settings:
    state = Settings()
    for record in log:
        state.apply(record)
    return state


@given(records)
def test_a_record_comes_back_as_it_went(record: Record) -> None:
    message = record_message(record, "1")
    assert message.kind == "setting"
    assert read_record(message) == record


def test_a_snapshot_comes_back_as_it_went_and_goes_up_to_a_place() -> None:
    record = SettingsSnapshot(upto=7, state=b"\x00\xff", at_ms=3, by="me", lost_ms=2)
    assert read_record(record_message(record, "1")) == record
    with pytest.raises(Malformed, match="upto is -2; it must be at least -1"):
        read_record(record_message(SettingsSnapshot(upto=-2, state=b"", at_ms=3), "1"))


def test_every_record_tells_when_it_was_made() -> None:
    assert record_ms(TaskQueueDeclared("a", 4)) == 4
    assert record_ms(TrafficRuleSet(a_rule("a", at_ms=5))) == 5


@given(st.lists(records))
def test_the_last_word_on_a_task_queue_counts(log: list[Record]) -> None:
    state = folded(log)
    for side in SIDES:
        about = (TaskQueueDeclared, TaskQueueReclaimed)
        told = [r for r in log if isinstance(r, about) and r.side == side]
        last = {r.task_queue: r for r in told if not getattr(r, "priority", False)}
        expected = {q: r.at_ms for q, r in last.items() if isinstance(r, TaskQueueDeclared)}
        assert state.existing(side) == expected


@given(st.lists(records))
def test_a_queue_is_paused_by_the_last_word_on_its_side(log: list[Record]) -> None:
    state = folded(log)
    names = Names("n")
    for side in SIDES:
        about = (TaskQueuePaused, TaskQueueResumed)
        last = {r.task_queue: r for r in log if isinstance(r, about) and r.side in ("", side)}
        for name in "abc":
            word = last.get(name)
            expected = word if isinstance(word, TaskQueuePaused) else None
            assert state.pause_of(names.queue(Kind(side), name), 0) == expected


def test_private_queues_are_paused_with_the_activities_and_sticky_ones_never() -> None:
    names = Names("n")
    state = folded([TaskQueuePaused("a", 1, side="activity")])
    assert state.pause_of(names.queue(Kind.HOST, "h", "a"), 0)
    assert state.pause_of(names.queue(Kind.PROCESS, "w", "a"), 0)
    assert not state.pause_of(names.workflow("a"), 0)
    assert not state.pause_of(names.sticky("a"), 0)


def test_a_record_of_before_there_were_sides_is_about_activities() -> None:
    body = b'{"type":"task-queue-declared","task_queue":"a","at_ms":1,"by":"me"}'
    message = Message(body=body, message_id="1", headers={"tq-protocol": 1})
    assert read_record(message) == TaskQueueDeclared("a", 1, "me", "activity")


@given(st.lists(records))
def test_a_cancellation_stays_and_the_last_one_tells_why(log: list[Record]) -> None:
    cancelled = {r.activity_id: r for r in log if isinstance(r, ActivityCanceled)}
    assert dict(folded(log).cancelled) == cancelled


def test_cancelled_ids_are_bounded_and_the_oldest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(settings, "CANCELLED_MAX", 3)
    state = folded([ActivityCanceled(str(number), number) for number in range(5)])
    assert list(state.cancelled) == ["2", "3", "4"]
    state.apply(ActivityCanceled("3", 9))
    assert set(state.cancelled) == {"2", "3", "4"}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"type":"of-the-future"}',
        b'{"type":"task-queue-declared"}',
        b"\xff",
        b"[" * 9**6,
    ],
)
def test_what_is_no_record_is_refused(body: bytes) -> None:
    message = Message(body=body, message_id="1", headers={"tq-protocol": 1})
    with pytest.raises(Malformed, match=r"^setting: "):
        read_record(message)


@pytest.mark.parametrize("headers", [{}, {"tq-protocol": 2}, {"tq-protocol": "1"}])
def test_a_record_of_another_protocol_is_refused(headers: dict[str, object]) -> None:
    body = record_message(TaskQueueDeclared("a", 1), "1").body
    with pytest.raises(Malformed, match="protocol"):
        read_record(Message(body=body, message_id="1", headers=headers))


def a_rule(id: str = "r", **fields: object) -> TrafficRule:
    return TrafficRule(**{"id": id, "to_task_queue": "there"} | fields)  # type: ignore[arg-type]


def test_a_rule_is_in_force_until_it_is_removed() -> None:
    first, again = a_rule(), a_rule(percent=5.0, at_ms=1)
    removed = TrafficRuleRemoved("r", 2, "ann", "enough")
    assert folded([TrafficRuleSet(first)]).rules == {"r": first}
    state = folded([TrafficRuleSet(first), TrafficRuleSet(again)])
    assert state.rules == {"r": again}
    state.apply(removed)
    state.apply(removed)
    assert state.rules == {}
    assert list(state.rule_changes) == [TrafficRuleSet(first), TrafficRuleSet(again), removed]


def test_a_rule_that_ran_out_is_forgotten_when_another_is_set_a_day_later() -> None:
    day_ms = settings.RULES_KEPT_MS
    over = TrafficRuleSet(a_rule("over", expires_ms=10))
    assert set(folded([over, TrafficRuleSet(a_rule(at_ms=day_ms + 9))]).rules) == {"over", "r"}
    assert set(folded([over, TrafficRuleSet(a_rule(at_ms=day_ms + 10))]).rules) == {"r"}


def test_whose_clock_is_ahead_takes_no_rule_out_of_force() -> None:
    now_ms = 1_780_000_000_000
    hour_ms = 3_600_000
    short = TrafficRuleSet(a_rule("short", at_ms=now_ms, expires_ms=now_ms + hour_ms))
    ahead = TrafficRuleSet(a_rule(at_ms=now_ms + 2 * hour_ms))
    assert set(folded([short, ahead]).rules) == {"short", "r"}


def test_rules_that_ran_out_make_room_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "RULES_MAX", 2)
    before: list[Record] = [TrafficRuleSet(a_rule(id, expires_ms=10)) for id in "ab"]
    assert set(folded([*before, TrafficRuleSet(a_rule("c", at_ms=9))]).rules) == {"a", "b"}
    assert set(folded([*before, TrafficRuleSet(a_rule("c", at_ms=10))]).rules) == {"c"}


def test_rules_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "RULES_MAX", 2)
    state = folded([TrafficRuleSet(a_rule(id)) for id in "abc"])
    assert set(state.rules) == {"a", "b"}
    state.apply(TrafficRuleSet(a_rule("a", percent=1.0)))
    assert state.rules["a"].percent == 1.0


@pytest.mark.parametrize("percent", ["0", "500", '"x"', "null"])
def test_a_broken_rule_is_malformed_and_not_in_force(percent: str) -> None:
    message = record_message(TrafficRuleSet(a_rule(percent=5.0)), "1")
    broken = message.body.replace(b'"percent":5.0', f'"percent":{percent}'.encode())
    assert broken != message.body
    with pytest.raises(Malformed, match="setting: "):
        read_record(msgspec.structs.replace(message, body=broken))


def limits_set(revision: int, change: str, **fields: object) -> LimitsSet:
    given: dict[str, Any] = {
        "task_queue": "q",
        "side": Side.ACTIVITY,
        "limits": Limits(rate=1.0),
        "at_ms": 1,
        "change_id": change,
        "revision": revision,
    } | fields
    return LimitsSet(**given)


def test_of_two_who_change_a_limit_the_first_in_the_log_wins_and_the_other_is_told() -> None:
    settings = Settings()
    winner = limits_set(0, "one", limits=Limits(rate=2.0))
    settings.apply(winner)
    settings.apply(limits_set(0, "two", limits=Limits(rate=3.0)))
    state = settings.limits[Side.ACTIVITY, "q", ALL]
    assert state.limits == Limits(rate=2.0)
    assert state.revision == 1
    assert settings.verdicts["one"] == settings.verdicts["two"] == winner
    settings.apply(limits_set(1, "three", limits=Limits(rate=4.0)))
    assert settings.limits[Side.ACTIVITY, "q", ALL].limits == Limits(rate=4.0)
    assert (Side.WORKFLOW, "q") not in settings.limits


def test_a_default_is_in_force_as_long_as_nobody_has_set_limits() -> None:
    settings = Settings()
    settings.apply(limits_set(0, "d", is_default=True, limits=Limits(rate=9.0)))
    assert settings.limits[Side.ACTIVITY, "q", ALL].limits == Limits(rate=9.0)
    settings.apply(limits_set(0, "one"))
    assert settings.limits[Side.ACTIVITY, "q", ALL].limits == Limits(rate=1.0)
    settings.apply(limits_set(1, "two", limits=None))
    state = settings.limits[Side.ACTIVITY, "q", ALL]
    assert state.limits == Limits(rate=9.0)
    assert state.revision == 2


def test_a_limit_out_of_bounds_is_no_record() -> None:
    message = record_message(limits_set(0, "one", limits=Limits(rate=-1.0)), "m")
    with pytest.raises(Malformed, match="rate is -1"):
        read_record(message)
    good = limits_set(0, "one", limits=Limits(concurrency=3), reason="why")
    assert read_record(record_message(good, "m")) == good


def test_the_ends_of_changes_are_forgotten_after_a_while() -> None:
    settings = Settings()
    for number in range(VERDICTS_MAX + 5):
        settings.apply(limits_set(number, f"{number}"))
    assert len(settings.verdicts) == VERDICTS_MAX


backed = st.builds(
    BackedOff, names, st.integers(1, 100), st.just(0), key=st.sampled_from(["", "k"])
)


@given(st.lists(backed), times)
def test_the_longest_back_off_counts_and_lifts_itself(log: list[BackedOff], now_ms: int) -> None:
    state = folded(list(log))
    for name in "abc":
        untils = [one.until_ms for one in log if (one.task_queue, one.key) == (name, "")]
        found = state.pause_of(Names("n").activity(name), now_ms)
        assert (found is not None) == any(until > now_ms for until in untils)
        if found is not None:
            assert isinstance(found, BackedOff)
            assert found.until_ms == max(untils)
        assert state.pause_of(Names("n").workflow(name), now_ms) is None


def test_an_operator_may_lift_back_offs() -> None:
    log: list[Record] = [BackedOff("a", 9, 0), BackedOff("a", 9, 0, key="k"), BackedOff("b", 9, 0)]
    state = folded([*log, TaskQueueResumed("a", 1)])
    assert state.back_off("a", "", 1) is None
    assert state.back_off("a", "k", 1) is None
    assert state.back_off("b", "", 1) is not None
    assert folded([*log, TaskQueueResumed("a", 1, side=settings.WORKFLOW_SIDE)]).back_off(
        "a", "", 1
    )


def test_back_offs_have_a_bound_and_the_first_to_end_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "BACK_OFFS_MAX", 2)
    state = folded([BackedOff("a", until, 0, key=str(until)) for until in (30, 10, 20)])
    assert {one.until_ms for one in state.back_offs.values()} == {30, 20}
    state.apply(BackedOff("a", 90, 25, key="x"))
    assert {one.until_ms for one in state.back_offs.values()} == {30, 90}, "20 is over"


@pytest.mark.parametrize("length_ms", [0, -1, settings.BACK_OFF_MAX_MS + 1])
def test_a_back_off_out_of_bounds_is_refused(length_ms: int) -> None:
    with pytest.raises(Malformed, match="back-off of"):
        read_record(record_message(BackedOff("a", length_ms, 0), "1"))


def test_parts_have_limits_and_revisions_of_their_own() -> None:
    state = Settings()
    state.apply(limits_set(0, "all", limits=Limits(rate=9.0)))
    assert not state.part_tables, "an unlimited part costs nothing"
    state.apply(limits_set(0, "each", limits=Limits(rate=1.0), part=EACH_KEY))
    state.apply(limits_set(1, "all again", limits=Limits(rate=8.0)))
    state.apply(limits_set(1, "late", limits=Limits(rate=7.0)))
    assert state.part_tables["q"].limits == {ALL: Limits(rate=8.0), EACH_KEY: Limits(rate=1.0)}
    state.apply(limits_set(1, "back", limits=None, part=EACH_KEY))
    assert state.part_tables["q"].limits == {ALL: Limits(rate=8.0)}, "the usher stays"


def test_a_back_off_of_a_key_needs_an_usher_who_keeps_all_limits() -> None:
    state = Settings()
    state.apply(limits_set(0, "all", limits=Limits(rate=9.0)))
    state.apply(BackedOff("q", 9, 0, key="k"))
    assert state.part_tables["q"].limits == {ALL: Limits(rate=9.0)}


def test_the_parts_that_are_written_down_have_a_bound() -> None:
    state = Settings()
    for number in range(PARTS_MAX + 5):
        part = Part(PartKind.KEY, str(number))
        state.apply(limits_set(0, str(number), limits=Limits(rate=1.0), part=part))
    assert len(state.part_tables["q"].limits) <= PARTS_MAX + 1


def test_a_part_out_of_bounds_is_refused() -> None:
    record = limits_set(0, "x", limits=Limits(rate=1.0), part=Part(PartKind.KEY, "k" * 300))
    with pytest.raises(Malformed, match="1 to 256 bytes"):
        read_record(record_message(record, "1"))


@given(st.lists(records))
def test_a_task_queue_is_prioritized_until_its_priority_queue_is_removed(log: list[Record]) -> None:
    expected: dict[tuple[str, str], bool] = {}
    for record in log:
        if isinstance(record, TaskQueuePrioritized):
            expected[record.side, record.task_queue] = True
        elif isinstance(record, TaskQueueReclaimed) and record.priority:
            expected[record.side, record.task_queue] = False
    assert folded(log).prioritized == {name for name, has in expected.items() if has}


# --- capabilities ---------------------------------------------------------------------------------


def test_sets_are_known_until_their_queue_is_reclaimed() -> None:
    state = folded(
        [
            TaskQueueDeclared("a", 1, requires=("gpu",)),
            TaskQueueDeclared("a", 2, requires=("gpu", "ssd")),
            TaskQueueReclaimed("a", 3, requires=("gpu",)),
        ]
    )
    assert state.capable == {("activity", "a"): {("gpu", "ssd"): 2}}
    assert not state.task_queues, "its plain queue is another matter"


def test_what_a_worker_had_once_stays_known() -> None:
    state = folded(
        [CapabilitiesDeclared("a", ("gpu",), 1), CapabilitiesDeclared("a", ("ssd", "gpu"), 2)]
    )
    assert state.capabilities == {"a": {"gpu", "ssd"}}


def test_no_worker_can_fill_the_memory_with_capabilities() -> None:
    state = folded(
        [CapabilitiesDeclared("a", (f"c{number}",), 1) for number in range(CAPABILITIES_MAX + 9)]
    )
    assert len(state.capabilities["a"]) == CAPABILITIES_MAX


@given(
    st.builds(
        TaskQueueDeclared, names, times, st.just("me"), st.just("activity"),
        st.just(()) | st.just(("gpu", "ssd")),
    )
    | st.builds(CapabilitiesDeclared, names, times.map(lambda at: ("gpu",)), times)
)  # fmt: skip
def test_records_of_capabilities_come_back(record: Record) -> None:
    assert read_record(record_message(record, "1")) == record


@pytest.mark.parametrize(
    "body",
    [
        b'{"type":"task-queue-declared","task_queue":"q","at_ms":1,"requires":["a\\nb"]}',
        b'{"type":"task-queue-declared","task_queue":"q","at_ms":1,"requires":["%s"]}'
        % (b"x" * 99),
        b'{"type":"task-queue-declared","task_queue":"q","at_ms":1,"requires":[1]}',
        b'{"type":"capabilities-declared","task_queue":"q","at_ms":1,"capabilities":[""]}',
        b'{"type":"capabilities-declared","task_queue":"q","at_ms":1}',
    ],
)
def test_sets_that_no_task_can_require_are_not_read(body: bytes) -> None:
    good = record_message(TaskQueueDeclared("q", 1, requires=("gpu",)), "1")
    with pytest.raises(Malformed):
        read_record(msgspec.structs.replace(good, body=body))


# --- fair shares ----------------------------------------------------------------------------------


def test_a_task_queue_gives_fair_shares_until_their_queue_is_reclaimed() -> None:
    log: list[Record] = [TaskQueueFair("a", 1), TaskQueueFair("a", 1, side="workflow")]
    state = folded(log)
    both = {("activity", "a"), ("workflow", "a")}
    assert state.fair == both
    assert state.prioritized == both, "they are dealt to the priority queue"
    state = folded([*log, TaskQueueReclaimed("a", 2, fair=True)])
    assert state.fair == {("workflow", "a")}
    assert state.prioritized == both


def test_weights_of_keys_are_of_one_side_or_both() -> None:
    state = folded(
        [
            FairnessWeightSet("a", "acme", 2.0, 1),
            FairnessWeightSet("a", "acme", 3.0, 2, side="workflow"),
            FairnessWeightSet("a", "other", 5.0, 3),
            FairnessWeightSet("a", "other", None, 4),
        ]
    )
    weights = {
        side: {key: one.weight for key, one in known.items()}
        for (side, _), known in state.fairness_weights.items()
    }
    assert weights == {"activity": {"acme": 2.0}, "workflow": {"acme": 3.0}}


def test_no_more_keys_have_weights_than_there_is_room_for() -> None:
    records = [FairnessWeightSet("a", f"k{n}", 2.0, 1) for n in range(WEIGHTS_MAX + 5)]
    state = folded([*records, FairnessWeightSet("a", "k0", 3.0, 1)])
    known = state.fairness_weights["activity", "a"]
    assert len(known) == WEIGHTS_MAX
    assert known["k0"].weight == 3.0


@pytest.mark.parametrize(("key", "weight"), [("", "1"), ("a\\nb", "1"), ("a", "0"), ("a", "1e9")])
def test_weights_that_nobody_can_have_are_not_read(key: str, weight: str) -> None:
    good = record_message(FairnessWeightSet("q", "k", 1.0, 1), "1")
    assert read_record(good) == FairnessWeightSet("q", "k", 1.0, 1)
    body = good.body.replace(b'"k"', f'"{key}"'.encode()).replace(b"1.0", weight.encode())
    with pytest.raises(Malformed):
        read_record(msgspec.structs.replace(good, body=body))


# --- what nothing can be done with ----------------------------------------------------------------


def foreign(kind: str, **fields: object) -> Message:
    good = record_message(TaskQueueDeclared("q", 1), "1")
    record = {"type": kind, "task_queue": "q", "at_ms": 1} | fields
    return msgspec.structs.replace(good, body=msgspec.json.encode(record))


ONE_SIDED = [f"task-queue-{word}" for word in ("declared", "reclaimed", "prioritized", "fair")]
TWO_SIDED = ["task-queue-paused", "task-queue-resumed", "fairness-weight-set"]
WEIGHT = {"key": "k", "weight": 1.0}


@pytest.mark.parametrize("kind", [*ONE_SIDED, *TWO_SIDED])
@pytest.mark.parametrize("side", ["both", "activities", "host", "Activity"])
def test_a_side_that_there_is_not_is_refused(kind: str, side: str) -> None:
    fields = WEIGHT if kind == "fairness-weight-set" else {}
    for known in SIDES:
        assert read_record(foreign(kind, side=known, **fields))
    with pytest.raises(Malformed, match=f"setting: side is {side!r}; it must be .*activity"):
        read_record(foreign(kind, side=side, **fields))


def test_only_what_people_say_is_about_both_sides() -> None:
    for kind in TWO_SIDED:
        assert read_record(foreign(kind, side="", **WEIGHT))
    for kind in ONE_SIDED:
        with pytest.raises(Malformed, match="side is ''"):
            read_record(foreign(kind, side=""))


@pytest.mark.parametrize("kind", [*ONE_SIDED, *TWO_SIDED, "capabilities-declared", "limits-set"])
@pytest.mark.parametrize("name", ["", "q\n", "\u202eq", "q" * 111, "%" * 37])
def test_a_task_queue_that_no_queue_can_be_named_after_is_refused(kind: str, name: str) -> None:
    more = {
        "fairness-weight-set": WEIGHT,
        "capabilities-declared": {"capabilities": ["gpu"]},
        "limits-set": {"side": "activity", "limits": None, "change_id": "c"},
    }.get(kind, {})
    longest = session_task_queue("q" * TASK_QUEUE_BYTES_MAX)
    assert read_record(foreign(kind, **more | {"task_queue": longest}))
    with pytest.raises(Malformed, match="setting: task_queue "):
        read_record(foreign(kind, **more | {"task_queue": name}))


@pytest.mark.parametrize("at_ms", [-1, TIME_MS_MAX + 1, 1_780_000_000_000_000_000])
def test_a_time_that_no_calendar_has_is_refused(at_ms: int) -> None:
    for record in (
        TaskQueuePaused("q", at_ms),
        ActivityCanceled("a", at_ms),
        TrafficRuleRemoved("r", at_ms),
        limits_set(0, "one", at_ms=at_ms),
        VersionServes("shop", "v1", "activity", "q", at_ms),
        BackedOff("q", at_ms + 1, at_ms),
    ):
        with pytest.raises(Malformed, match=f"setting: at_ms is {at_ms}; it must be from 0 to"):
            read_record(record_message(record, "1"))


def test_the_last_time_of_all_can_be_told() -> None:
    record = BackedOff("q", TIME_MS_MAX + settings.BACK_OFF_MAX_MS, TIME_MS_MAX)
    assert read_record(record_message(record, "1")) == record
    assert datetime.fromtimestamp(record.until_ms / 1000, timezone.utc).year == 9892
