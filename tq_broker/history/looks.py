"""When to look whether a task that nobody has reported as begun is still with the broker. Pure.

A task that was confirmed by a durable queue is lost only by what is done to the queue: it was
purged or deleted, or the broker's disk was lost. No timeout need ever notice that, so history looks
at the queue after a long silence. If nothing is ready there, the task is neither in it nor, as a
worker tells within a second what it is at, begun: it is published once more, as it was.

Publishing it twice does no harm: the second outcome of an attempt changes nothing, and attempts
that must not be run twice are claimed. So the rule may err; it does where a task is held unstarted
or in silence by a worker that is not ours, for longer than RabbitMQ lets it by default.
"""

from __future__ import annotations

FIRST_MS = 2_400_000
"""Longer than RabbitMQ's acknowledgement timeout of 30 minutes: what a silent worker held until
then is in the queue again."""
PAUSE_MAX_MS = 21_600_000
GRAIN_MS = 60_000
"""A first look is at a full minute: so that the tasks of a short run, one after the other, have the
same, and the database's index of what is due need not be changed for each."""


def first_ms(published_ms: int) -> int:
    """When to look first at the queue of a task that was published at ``published_ms``."""
    at_ms = published_ms + FIRST_MS
    return at_ms + -at_ms % GRAIN_MS


def next_ms(published_ms: int, now_ms: int) -> int:
    """When to look again after now: each pause is twice as long as the one before, so that many
    that wait for long cost little."""
    return now_ms + min(max(now_ms - published_ms, FIRST_MS), PAUSE_MAX_MS)
