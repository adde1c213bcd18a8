"""Identifiers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tq_broker.queues.ids import IdSource


def test_ids_are_short_printable_and_never_twice() -> None:
    source = IdSource()
    ids = [source.next() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(one.isascii() and one.isprintable() and len(one) <= 24 for one in ids)


def test_sources_do_not_meet() -> None:
    assert IdSource().next() != IdSource().next()


def test_threads_share_a_source() -> None:
    source = IdSource()
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda _: [source.next() for _ in range(500)], range(8)))
    assert len({one for part in parts for one in part}) == 4000
