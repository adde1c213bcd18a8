from __future__ import annotations

from tq_broker.worker.passage import FREE


def test_a_free_passage_costs_and_says_nothing() -> None:
    for told in (FREE.begun, FREE.ended, FREE.unused):
        told()
        told()
