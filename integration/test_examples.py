"""The examples of workflows on RabbitMQ and SQLite: they print what they print embedded."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

import pytest

from tests.examples.test_examples import PRINTED, example

WITHIN_S = 120.0


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_should(
    broker_url: str,
    namespace: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = f"sqlite:///{tmp_path}/history.sqlite"
    main = example(name).main(broker=broker_url, store=store, namespace=namespace)
    asyncio.run(asyncio.wait_for(main, WITHIN_S))
    assert re.fullmatch(PRINTED[name], capsys.readouterr().out)
