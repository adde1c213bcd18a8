"""A transaction: what has come, as one change of the store and what is to be sent after it. Pure.

Rules of this file: every run that a letter is about is in the cache before the letter is taken, if
it exists; one that could not be stored leaves runs behind that must be dropped from the cache
(`Transaction.touched`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec

from tq_broker.history import admission, machine, records
from tq_broker.history.cache import Cache, Held
from tq_broker.history.effects import (
    DispatchQuery,
    Effect,
    Reply,
    ReplyFromEvent,
    ReplyTo,
)
from tq_broker.history.letters import Letter
from tq_broker.history.machine import Message
from tq_broker.history.state import Execution
from tq_broker.history.step import Step
from tq_broker.model.deployments import NO_DEPLOYMENTS, Deployments
from tq_broker.model.requests import Reply as Answer
from tq_broker.model.requests import StartWorkflow
from tq_broker.model.rule_table import NO_RULES, RuleTable
from tq_broker.model.workflow_tasks import StickyGone
from tq_broker.stores.store import Batch, EventRow, InboxRow, OutboxRow

Seen = Mapping[tuple[int, str], bytes | None]
"""Messages that were taken in before, by shard and message id, with what was answered."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Answer).decode


class Ownership:
    """A shard that is ours.

    Attributes:
        seq: The last number given to an outbox row.
        checked_s: Monotonic time when the store last agreed that it is ours.
        heard_ms: All that was sent to it before this time has been taken in.
        patient: Runs of which a timeout waits for that.
        echo: What is to tell it, if something is: on its way, or in the inbox.
        echo_until_s: Monotonic time until when it is waited for.
    """

    __slots__ = ("checked_s", "echo", "echo_until_s", "epoch", "heard_ms", "patient", "seq")

    def __init__(self, epoch: int, seq: int, checked_s: float) -> None:
        self.epoch = epoch
        self.seq = seq
        self.checked_s = checked_s
        self.heard_ms = 0
        self.patient: set[str] = set()
        self.echo: Sending | None = None
        self.echo_until_s = 0.0


class Sending:
    """Something to be sent once that is stored. ``seq`` is that of its outbox row, or 0."""

    __slots__ = ("record", "seq", "shard")

    def __init__(self, record: Any, shard: int, seq: int = 0) -> None:
        self.record = record
        self.shard = shard
        self.seq = seq


class Transaction:
    """Takes letters and times, and gathers what comes of them.

    Args:
        new_run_id: Makes an id for a run that is started.
        deployments: Which versions there are now.
        rules: The traffic rules in force.
        capabilities: What the workers of a task queue have; ``None``: that is not asked.
    """

    def __init__(
        self,
        cache: Cache,
        owned: Mapping[int, Ownership],
        seen: Seen,
        now_ms: int,
        new_run_id: Callable[[], str],
        deployments: Deployments = NO_DEPLOYMENTS,
        rules: RuleTable = NO_RULES,
        capabilities: admission.Capabilities | None = None,
    ) -> None:
        self._cache = cache
        self._owned = owned
        self._seen = seen
        self._now_ms = now_ms
        self._new_run_id = new_run_id
        self._deployments = deployments
        self._rules = rules
        self._capabilities = capabilities
        self._events: list[EventRow] = []
        self._outbox: list[OutboxRow] = []
        self.sizes: list[int] = []
        self.taken: dict[tuple[int, str], bytes | None] = {}
        self.touched: dict[str, Held] = {}
        self.woken: set[str] = set()
        self.changed: dict[str, Held] = {}
        self.shards: set[int] = set()
        self.long: list[Execution] = []
        """Runs whose history has come near its bound."""
        self.sendings: list[Sending] = []

    def take(self, letter: Letter) -> None:
        """Do what ``letter`` asks."""
        self.shards.add(letter.shard)
        if not letter.once:
            self._deliver(letter)
            return
        key = (letter.shard, letter.message_id)
        for taken in (self.taken, self._seen):
            if key in taken:
                self._answer_again(letter, taken[key])
                return
        self.taken[key] = None
        self._deliver(letter)

    def _answer_again(self, letter: Letter, answer: bytes | None) -> None:
        if answer is not None and letter.sender is not None:
            self._send(records.ReplyRecord(letter.sender, _decode(answer)), letter.shard)

    def _deliver(self, letter: Letter) -> None:
        content = letter.content
        if isinstance(content, StartWorkflow):
            self._start(letter, content)
        elif isinstance(content, StickyGone):
            self._sticky_gone(letter, content)
        else:
            held = self._find(letter)
            if held is None:
                effects = machine.missing(content, letter.sender)
                self._carry_out(effects, letter.run_id, letter.shard, letter)
            else:
                self._touch(held)
                step = self._handled(held, content, letter.sender)
                self._note(held, step, letter)

    def _handled(self, held: Held, message: Message, sender: ReplyTo | None = None) -> Step:
        return machine.handle(
            held.run, message, self._now_ms, sender, self._deployments, self._rules
        )

    def _find(self, letter: Letter) -> Held | None:
        if letter.run_id:
            held = self._cache.get(letter.run_id)
        else:
            held = self._cache.current(letter.workflow_id)
        # Whoever forges a letter may mix the ids of two runs.
        if held is None or held.shard != letter.shard:
            return None
        if letter.workflow_id and held.run.workflow_id != letter.workflow_id:
            return None
        return held

    def _start(self, letter: Letter, request: StartWorkflow) -> None:
        held = self._cache.current(request.workflow_id)
        current = None if held is None else held.run
        if held is not None:
            self._touch(held)
        admitted = admission.admit(
            current,
            request,
            self._now_ms,
            letter.sender,
            self._deployments,
            self._rules,
            self._capabilities,
        )
        if held is not None:
            self._note(held, admitted.step, letter)
        else:
            self._carry_out(admitted.step.effects, "", letter.shard, letter)
        if admitted.begin:
            run, step = machine.start(
                request,
                run_id=self._new_run_id(),
                now_ms=self._now_ms,
                sender=letter.sender,
                deployments=self._deployments,
            )
            self._begin(held, Held(run, letter.shard), step, letter)

    def _begin(self, before: Held | None, held: Held, step: Step, letter: Letter | None) -> None:
        """``held`` is the current run of its workflow id now, instead of ``before``."""
        if before is not None and before.is_current:
            before.is_current = False
            self._change(before)
        self._cache.add(held)
        self._touch(held)
        self._change(held)
        self._note(held, step, letter)

    def _sticky_gone(self, letter: Letter, gone: StickyGone) -> None:
        for held in self._cache:
            if held.shard == letter.shard and held.run.sticky_worker == gone.worker_id:
                self._touch(held)
                self._note(held, self._handled(held, gone), letter)

    def wake(self, run_id: str) -> None:
        """The time has come that a run wanted to be woken at."""
        held = self._cache.get(run_id)
        if held is not None:
            self.shards.add(held.shard)
            self.woken.add(run_id)
            self._touch(held)
            heard_ms = self._owned[held.shard].heard_ms
            step = machine.tick(held.run, self._now_ms, self._deployments, self._rules, heard_ms)
            self._note(held, step, None)

    # --- what has come of it ----------------------------------------------------------------------

    def _touch(self, held: Held) -> None:
        self.touched[held.run.run_id] = held

    def _change(self, held: Held) -> None:
        self.changed[held.run.run_id] = held

    def _note(self, held: Held, step: Step, letter: Letter | None) -> None:
        run_id = held.run.run_id
        if step.changed:
            self._change(held)
        if step.data:
            row = EventRow(run_id, step.first_event_id, len(step.events), step.data)
            self._events.append(row)
            if machine.has_grown_long(held.run, step):
                self.long.append(held.run)
        self._carry_out(step.effects, run_id, held.shard, letter)
        if step.next_run is not None:
            following = Held(step.next_run.run, held.shard)
            self._begin(held, following, step.next_run.step, letter)

    def _carry_out(
        self, effects: Iterable[Effect], run_id: str, shard: int, letter: Letter | None
    ) -> None:
        sender = None if letter is None else letter.sender
        for effect in effects:
            record = records.record(effect, run_id)
            if isinstance(effect, DispatchQuery) or _is_answer(effect, sender):
                # Whoever asked will ask again, or the letter comes again: until it is sent the
                # letter is not acknowledged.
                if letter is not None and letter.once and isinstance(effect, Reply):
                    self._keep(letter, effect.answer)
                self._send(record, shard)
            else:
                self._store(record, shard)

    def _keep(self, letter: Letter, answer: Answer) -> None:
        key = (letter.shard, letter.message_id)
        if self.taken.get(key) is None:
            self.taken[key] = _encode(answer)

    def _send(self, record: records.Record, shard: int) -> None:
        self.sendings.append(Sending(record, shard))

    def _store(self, record: records.Record, shard: int) -> None:
        ownership = self._owned[shard]
        ownership.seq += 1
        self._outbox.append(OutboxRow(shard, ownership.seq, records.dump(record)))
        self.sendings.append(Sending(record, shard, ownership.seq))

    def batch(self) -> Batch:
        """The transaction; it may be empty. `sizes` are those of its runs in memory, in order."""
        now_ms = self._now_ms
        runs = [held.row(now_ms) for held in self.changed.values()]
        self.sizes = [
            len(row.state) + held.run.memory().tail_bytes
            for row, held in zip(runs, self.changed.values(), strict=True)
        ]
        inbox = [
            InboxRow(shard, message_id, now_ms, answer)
            for (shard, message_id), answer in self.taken.items()
        ]
        epochs = {shard: self._owned[shard].epoch for shard in self.shards}
        return Batch(
            epochs=epochs, inbox=inbox, runs=runs, events=self._events, outbox=self._outbox
        )


def _is_answer(effect: Effect, sender: ReplyTo | None) -> bool:
    """Whether ``effect`` answers the letter at hand, rather than somebody who waits."""
    return sender is not None and isinstance(effect, Reply | ReplyFromEvent) and effect.to == sender
