"""What a reader of the settings log knows, wherever the log begins and however it is read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.model.log_records import records
from tq_broker.exceptions import Malformed
from tq_broker.model import playback
from tq_broker.model.playback import KEPT_MAX, LOST_TOLD_MS, SNAPSHOT_EVERY, Playback, Taken
from tq_broker.model.rules import TrafficRule
from tq_broker.model.settings import (
    BEFORE_ALL,
    ActivityCanceled,
    Record,
    SettingsSnapshot,
    TaskQueueDeclared,
    TaskQueuePaused,
    TaskQueueResumed,
    TrafficRuleSet,
)
from tq_broker.model.snapshot import State, pack, state_of

Entry = tuple[int, str, Record | None]
"""Offset, message id, and a record or something that cannot be read."""

HOUR_MS = 3_600_000


def read(reader: Playback, entries: Sequence[Entry]) -> list[Taken]:
    return [reader.take(offset, id, record, 100) for offset, id, record in entries]


def snapshot_by(writer: Playback, at_ms: int = 5) -> SettingsSnapshot:
    upto, state = writer.snapshot(0)
    return SettingsSnapshot(upto=upto, state=pack(state), at_ms=at_ms, lost_ms=writer.lost_ms)


def entries_of(*told: Record | None, first: int = 0, log: str = "") -> list[Entry]:
    return [(first + n, f"{log}{first + n}", record) for n, record in enumerate(told)]


def paused(task_queue: str, at_ms: int = 1) -> TaskQueuePaused:
    return TaskQueuePaused(task_queue, at_ms, side="activity")


def pauses(reader: Playback) -> list[str]:
    return [task_queue for _, task_queue in reader.settings.paused]


# --- any log, any cut, any reading ----------------------------------------------------------------


class Log:
    """A log with snapshots in it, each some records after what it goes up to, and with gaps
    between the offsets."""

    def __init__(self, told: Sequence[Record | str | int | None]) -> None:
        self.entries: list[Entry] = []
        self.upto: list[int | None] = []
        self.whole = Playback()
        pending: SettingsSnapshot | None = None
        offset = 0
        for one in told:
            record: Record | None
            if one == "take":
                if self.entries:
                    pending = snapshot_by(self.whole)
                continue
            if isinstance(one, int):
                offset += one
                continue
            if one == "write":
                if pending is None:
                    continue
                record, pending = pending, None
            else:
                assert not isinstance(one, str)
                record = one
            if not self.entries:
                offset = 0
            self.entries.append((offset, f"m{offset}", record))
            self.upto.append(record.upto if isinstance(record, SettingsSnapshot) else None)
            read(self.whole, self.entries[-1:])
            offset += 1


told = st.lists(
    records | st.none() | st.sampled_from(["take", "write", "take", "write", 1]), max_size=40
)


@given(told, st.data())
def test_a_reader_with_a_snapshot_knows_what_a_whole_one_knows(
    told: list[Record | str | int | None], data: st.DataObject
) -> None:
    log = Log(told)
    if not log.entries:
        return
    count = len(log.entries)
    cut = data.draw(st.integers(0, count - 1), "cut")
    reader = Playback()
    read_to = cut
    # Readings are broken off, and the log's beginning goes on to be dropped meanwhile.
    for end in data.draw(st.lists(st.integers(0, count), max_size=3), "readings"):
        read(reader, log.entries[cut : max(cut, end)])
        read_to = max(read_to, end)
        reader.begin_again()
        cut = data.draw(st.integers(cut, min(read_to, count - 1)), "cut again")
    read(reader, log.entries[cut:])
    first, _, _ = log.entries[cut]
    is_connected = log.entries[0] == log.entries[cut] or reader.is_whole
    if is_connected:
        assert state_of(reader.settings) == state_of(log.whole.settings)
    if any(upto is not None and upto >= first - 1 for upto in log.upto[cut:]):
        assert reader.is_whole


@given(told, st.data())
def test_a_reader_that_reads_again_applies_nothing_twice(
    told: list[Record | str | int | None], data: st.DataObject
) -> None:
    log = Log(told)
    end = data.draw(st.integers(0, len(log.entries)), "end")
    reader = Playback()
    read(reader, log.entries[:end])
    reader.begin_again()
    assert read(reader, log.entries[:end]) == [Taken.KNOWN] * end
    assert Taken.KNOWN not in read(reader, log.entries[end:])


@given(told, told)
def test_a_log_made_anew_takes_nothing_away(
    told: list[Record | str | int | None], more: list[Record | str | int | None]
) -> None:
    # Given one who has read a log that is deleted
    log = Log(told)
    living, other = Playback(), Playback()
    for one in (living, other):
        read(one, log.entries)
        one.begin_again()
    expected = Playback()
    read(expected, log.entries)
    # When the new one gets records, and what was before
    news = [one for one in more if not isinstance(one, (str, int))]
    fresh = entries_of(*news, first=0, log="new")
    read(living, fresh)
    for _, _, record in fresh:
        if record is not None:
            expected.settings.apply(record)
    if not (log.entries and fresh):
        return
    assert living.is_due
    restoring = (len(fresh), "s", snapshot_by(living))
    # Then all have the same: who had read the old one, and who comes
    newcomer = Playback()
    for one in (other, newcomer):
        read(one, [*fresh, restoring])
    read(living, [restoring])
    for one in (living, other, newcomer):
        assert state_of(one.settings) == state_of(expected.settings)
        assert not one.is_due
        assert not one.fault(0)


# --- cut ------------------------------------------------------------------------------------------


def test_a_cut_log_without_a_snapshot_says_since_when_it_is_known() -> None:
    reader = Playback()
    read(reader, entries_of(None, paused("q", HOUR_MS), first=7))
    assert pauses(reader) == ["q"]
    assert not reader.is_whole
    assert reader.fault(0) == (
        "its beginning was dropped and no snapshot was found: settings from before"
        " 1970-01-01 01:00:00Z are not known"
    )


def test_a_time_that_there_is_not_can_be_told() -> None:
    for at_ms in (-1, 10**30):
        reader = Playback()
        read(reader, entries_of(paused("q", at_ms), first=7))
        assert "its beginning was dropped" in reader.fault(0)


def test_a_snapshot_of_before_what_was_dropped_does_not_help() -> None:
    writer, reader = Playback(), Playback()
    read(writer, entries_of(paused("a")))
    read(reader, [(2, "2", paused("c")), (3, "3", snapshot_by(writer))])
    assert not reader.is_whole
    assert pauses(reader) == ["c"]


def test_what_is_dropped_while_nobody_reads_is_said_and_the_last_settings_hold() -> None:
    writer, reader = Playback(), Playback()
    log = entries_of(paused("a", HOUR_MS), paused("b"), paused("c", 2 * HOUR_MS))
    read(writer, log)
    read(reader, log[:1])
    reader.begin_again()
    read(reader, log[2:])
    assert pauses(reader) == ["a", "c"]
    assert reader.fault(0).endswith(
        "from 1970-01-01 01:00:00Z to 1970-01-01 02:00:00Z are not known"
    )
    assert not reader.is_due
    read(reader, [(3, "3", snapshot_by(writer))])
    assert pauses(reader) == ["a", "b", "c"]
    assert reader.is_whole
    assert not reader.fault(0)


def test_cancellations_and_verdicts_stay_when_a_snapshot_is_taken() -> None:
    writer, reader = Playback(), Playback()
    log = entries_of(ActivityCanceled("x", 1), ActivityCanceled("y", 1))
    read(writer, log)
    read(reader, log[1:])
    assert read(reader, [(2, "2", snapshot_by(writer))]) == [Taken.ADOPTED]
    assert list(reader.settings.cancelled) == ["y"]


def test_what_a_snapshot_goes_up_to_is_not_applied_again() -> None:
    writer, reader = Playback(), Playback()
    rules = [
        TrafficRuleSet(TrafficRule(id=id, to_task_queue="t", at_ms=1)) for id in ("a", "b", "c")
    ]
    log = entries_of(*rules)
    read(writer, log[:2])
    snapshot = snapshot_by(writer)
    read(writer, log[2:])
    read(reader, [*log[1:], (3, "3", snapshot)])
    assert list(reader.settings.rule_changes) == list(writer.settings.rule_changes) == rules


def test_a_snapshot_that_cannot_be_read_is_no_snapshot() -> None:
    writer, reader = Playback(), Playback()
    read(writer, entries_of(paused("a")))
    read(reader, entries_of(paused("b"), first=1))
    for bad in (
        SettingsSnapshot(upto=0, state=b"garbage", at_ms=1),
        SettingsSnapshot(upto=2, state=pack(State()), at_ms=1),
    ):
        with pytest.raises(Malformed):
            reader.take(2, "2", bad, 1)
        reader.begin_again()
        assert read(reader, entries_of(paused("b"), bad, first=1)) == [Taken.KNOWN] * 2
        reader = Playback()
        read(reader, entries_of(paused("b"), first=1))
    read(reader, [(3, "3", snapshot_by(writer))])
    assert reader.is_whole


def test_a_whole_reader_takes_no_snapshot() -> None:
    reader = Playback()
    nonsense = SettingsSnapshot(upto=0, state=b"garbage", at_ms=1)
    assert read(reader, entries_of(paused("a"), nonsense)) == [Taken.APPLIED] * 2
    assert pauses(reader) == ["a"]


def test_a_snapshot_that_comes_too_late_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playback, "KEPT_MAX", 2)
    writer, reader = Playback(), Playback()
    log = entries_of(*map(paused, "abcde"))
    read(writer, log[:2])
    late = snapshot_by(writer)
    read(writer, log[2:])
    read(reader, [*log[1:], (5, "5", late)])
    assert not reader.is_whole, "what came after it is not at hand any more"
    read(reader, [(6, "6", snapshot_by(writer))])
    assert reader.is_whole
    assert sorted(pauses(reader)) == ["a", "b", "c", "d", "e"]
    assert KEPT_MAX < SNAPSHOT_EVERY


def test_the_span_of_a_reading_has_what_rabbitmq_put_between_its_records() -> None:
    reader = Playback()
    assert reader.span == 0
    read(reader, [(0, "0", None), (7, "7", None)])
    assert (reader.span, reader.begins_late) == (8, False)
    reader.begin_again()
    assert (reader.span, reader.begins_late) == (0, False)
    read(reader, [(4, "4", None), (5, "5", None)])
    assert (reader.span, reader.begins_late) == (3, True)


# --- when one is due ------------------------------------------------------------------------------


def test_a_snapshot_is_due_after_so_many_records() -> None:
    reader = Playback()
    assert not reader.is_due
    read(reader, [(SNAPSHOT_EVERY - 2, "x", paused("q"))])
    assert not reader.is_due, "who was cut never writes"
    reader = Playback()
    read(reader, [(0, "x", paused("q")), (SNAPSHOT_EVERY - 2, "x", paused("q"))])
    assert not reader.is_due
    read(reader, [(SNAPSHOT_EVERY - 1, "x", None)])
    assert reader.is_due
    read(reader, [(SNAPSHOT_EVERY + 7, "x", snapshot_by(reader))])
    assert not reader.is_due
    read(reader, [(2 * SNAPSHOT_EVERY - 2, "x", None)])
    assert not reader.is_due, "it counts from what the last one goes up to"
    read(reader, [(2 * SNAPSHOT_EVERY - 1, "x", None)])
    assert reader.is_due


def test_a_snapshot_is_due_after_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playback, "SNAPSHOT_EVERY_BYTES", 300)
    reader = Playback()
    log = entries_of(paused("a"), paused("b"))
    read(reader, log)
    reader.begin_again()
    read(reader, log)
    assert not reader.is_due, "what is read again does not count"
    read(reader, [(2, "2", paused("c"))])
    assert reader.is_due
    read(reader, [(3, "3", snapshot_by(reader))])
    assert not reader.is_due


# --- a log that is not what it was ----------------------------------------------------------------


def deleted(*, new_first: Record, read_before: Sequence[Entry]) -> Playback:
    reader = Playback()
    read(reader, read_before)
    reader.begin_again()
    read(reader, entries_of(new_first, log="new"))
    return reader


def test_a_log_that_was_deleted_is_told_by_its_first_record() -> None:
    reader = deleted(read_before=entries_of(paused("a")), new_first=paused("b"))
    assert pauses(reader) == ["a", "b"]
    assert reader.is_due
    assert reader.fault(0).startswith("it was deleted")
    assert snapshot_by(reader).upto == BEFORE_ALL


def test_a_beginning_that_was_gone_and_is_there_again_is_another_log() -> None:
    writer, reader = Playback(), Playback()
    log = entries_of(*map(paused, "abc"))
    read(writer, log)
    read(reader, [*log[1:], (3, "3", snapshot_by(writer))])
    reader.begin_again()
    read(reader, [(0, "1", TaskQueueResumed("a", 2, side="activity"))])
    assert reader.is_due
    assert sorted(pauses(reader)) == ["b", "c"]
    # Somebody else is faster
    other = deleted(read_before=entries_of(paused("d")), new_first=paused("e"))
    assert read(reader, [(1, "s", snapshot_by(other))]) == [Taken.ADOPTED]
    assert pauses(reader) == ["d"]


def test_records_without_ids_are_not_taken_for_another_log() -> None:
    reader = Playback()
    read(reader, [(0, "", paused("a"))])
    reader.begin_again()
    assert read(reader, [(0, "x", paused("a"))]) == [Taken.KNOWN]
    reader.begin_again()
    assert read(reader, [(0, "", paused("a"))]) == [Taken.KNOWN]


def test_a_log_that_is_empty_suddenly_is_a_new_one() -> None:
    reader = Playback()
    reader.emptied()
    assert not reader.is_due, "it always was"
    read(reader, entries_of(paused("a")))
    reader.emptied()
    assert not reader.is_due, "it reads on"
    reader.begin_again()
    assert reader.is_to_begin_again
    reader.emptied()
    assert reader.is_due
    restoring = (0, "s", snapshot_by(reader))
    newcomer = Playback()
    for one in (reader, newcomer):
        assert read(one, [restoring]) == [Taken.ADOPTED]
        assert pauses(one) == ["a"]
        assert not one.is_due


def test_who_does_not_know_all_restores_nothing_and_takes_what_others_restore() -> None:
    cut = deleted(read_before=entries_of(paused("b"), first=3), new_first=paused("c"))
    assert not cut.is_due
    assert not cut.is_whole
    living = deleted(read_before=entries_of(paused("a"), paused("b")), new_first=paused("c"))
    read(cut, [(1, "s", snapshot_by(living))])
    assert pauses(cut) == ["a", "b", "c"]


def test_who_did_not_know_all_and_learns_it_late_restores_nothing() -> None:
    cut = deleted(read_before=entries_of(paused("b"), first=3), new_first=paused("c"))
    later = Playback()
    read(later, entries_of(paused("c")))
    read(cut, [(1, "s", snapshot_by(later))])
    assert cut.is_whole
    assert not cut.is_due


def test_only_the_first_of_those_who_restore_counts() -> None:
    one = deleted(read_before=entries_of(paused("a")), new_first=paused("c"))
    two = deleted(read_before=entries_of(paused("b")), new_first=paused("c"))
    snapshots = [(1, "1", snapshot_by(one)), (2, "2", snapshot_by(two))]
    newcomer = Playback()
    read(newcomer, entries_of(paused("c"), log="new"))
    for reader in (one, two, newcomer):
        assert read(reader, snapshots) == [Taken.ADOPTED, Taken.APPLIED]
        assert pauses(reader) == ["a", "c"]


# --- what nobody knows any more -------------------------------------------------------------------


def test_what_nobody_knows_is_given_up_and_told_for_a_while() -> None:
    reader = Playback()
    read(reader, entries_of(paused("b", HOUR_MS), first=5))
    reader.give_up()
    assert reader.is_whole
    assert reader.is_due
    other = Playback()
    read(other, [*entries_of(paused("b", HOUR_MS), first=5), (6, "6", snapshot_by(reader))])
    assert other.is_whole
    assert other.fault(HOUR_MS) == "settings from before 1970-01-01 01:00:00Z were lost"
    assert not other.fault(HOUR_MS + LOST_TOLD_MS)
    assert not other.is_due
    read(reader, [(6, "6", snapshot_by(reader))])
    assert not reader.is_due


def test_a_whole_reader_gives_nothing_up() -> None:
    reader = Playback()
    read(reader, entries_of(TaskQueueDeclared("q", HOUR_MS)))
    reader.give_up()
    assert not reader.is_due
    assert not reader.fault(HOUR_MS)


def test_a_record_whose_place_is_not_known_is_new() -> None:
    reader = Playback()
    assert reader.take(None, "0", paused("a"), 1) is Taken.APPLIED
    assert reader.take(None, "1", paused("b"), 1) is Taken.APPLIED
    assert pauses(reader) == ["a", "b"]
