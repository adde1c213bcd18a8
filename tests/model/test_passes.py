from __future__ import annotations

import msgspec
import pytest

from tq_broker.exceptions import Malformed
from tq_broker.model import passes
from tq_broker.model.parts import ALL, Part, PartKind
from tq_broker.model.passes import News, Pass, What


def test_a_pass_and_its_news_survive_their_messages() -> None:
    given = Pass("1", (ALL, Part(PartKind.KEY, "k")), "a", 2)
    assert passes.read(passes.pass_message(given, "m")) == given
    for what in What:
        assert passes.read(passes.news_message(News("1", what), "m")) == News("1", what)


def test_foreign_messages_are_malformed() -> None:
    with pytest.raises(Malformed, match="'baton' is neither"):
        passes.read(passes.baton_message("m"))
    broken = msgspec.structs.replace(passes.news_message(News("1", What.BEGUN), "m"), body=b"[")
    with pytest.raises(Malformed, match="pass-news:"):
        passes.read(broken)


def test_a_task_is_marked_with_its_pass_and_whose_it_is() -> None:
    assert passes.read_mark(passes.mark("1-2", "a:b")) == ("1-2", "a:b")
