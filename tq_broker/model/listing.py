"""The small language in which runs are listed and counted: text in, a filter out.

::

    type = "Order" and status in ("running", "failed") and start_time > "2026-01-31T00:00:00Z"

Conditions joined by ``and``. Fields: ``type``, ``status``, ``task_queue``, ``version`` (the
deployment version that a run is pinned to, or "") (``=``, ``!=``, ``in``);
``id`` (``=``, ``in``, ``starts_with``); ``start_time``, ``close_time`` (``<``, ``<=``, ``>``,
``>=``, ``=``; ISO 8601 with an offset, or a date: its first moment in UTC). A run that is open has
no close time, so no condition on ``close_time`` holds for it. Temporal's field names
``WorkflowType``, ``ExecutionStatus``, ``TaskQueue``, ``WorkflowId``, ``StartTime``, ``CloseTime``
and its names of statuses mean the same. Texts stand in double or single quotes; a backslash takes
the next character as it is. A last ``group by status`` asks a count for its parts.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from typing import Any, NoReturn

import msgspec

from tq_broker.exceptions import InvalidArgument
from tq_broker.model.names import check_storable
from tq_broker.model.requests import Status

CHARACTERS_MAX = 10_000
CONDITIONS_MAX = 50
"""More would only make a database work for nothing."""


class Condition(msgspec.Struct, frozen=True):
    """``field`` is a `tq_broker.stores.store.RunRow` field; ``op`` one of ``=``, ``!=``, ``in``,
    ``starts_with``, ``<``, ``<=``, ``>``, ``>=``; times are epoch milliseconds."""

    field: str
    op: str
    value: str | int | tuple[str, ...]

    def holds(self, row: Any) -> bool:
        """Whether it holds for ``row``, which has the field as its attribute."""
        value = getattr(row, self.field)
        if self.field == "close_ms" and not value:
            return False
        return _HOLDS[self.op](value, self.value)


class Filter(msgspec.Struct, frozen=True):
    """All of ``conditions`` hold; none means every run. ``by_status``: a count in parts."""

    conditions: tuple[Condition, ...] = ()
    by_status: bool = False

    def matches(self, row: Any) -> bool:
        """Whether ``row``, which has the fields as attributes, is one of those asked for."""
        return all(condition.holds(row) for condition in self.conditions)


def parse(text: str) -> Filter:
    """The filter that ``text`` means; of an empty one, every run.

    Raises:
        InvalidArgument: not of this language; says where, counted in characters from 1. Or no
            database takes it.
    """
    if len(text) > CHARACTERS_MAX:
        raise InvalidArgument(
            f"query has {len(text)} characters; {CHARACTERS_MAX} are the most there can be"
        )
    return _Parser(check_storable("query", text)).filter()


_HOLDS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda value, values: value in values,
    "starts_with": lambda value, prefix: value.startswith(prefix),
}
_CHOICE = ("=", "!=", "in")
_ID = ("=", "in", "starts_with")
_TIME = ("<", "<=", ">", ">=", "=")
_FIELDS = {
    "type": ("workflow_type", _CHOICE),
    "status": ("status", _CHOICE),
    "task_queue": ("task_queue", _CHOICE),
    "version": ("deployment_version", _CHOICE),
    "id": ("workflow_id", _ID),
    "start_time": ("start_ms", _TIME),
    "close_time": ("close_ms", _TIME),
}
_ALIASES = {
    "workflowtype": "type",
    "executionstatus": "status",
    "taskqueue": "task_queue",
    "workflowid": "id",
    "starttime": "start_time",
    "closetime": "close_time",
}
# "TimedOut" and "timed_out" are the same.
_STATUSES = {status.value.replace("_", ""): status.value for status in Status}
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_TOKEN = re.compile(
    r"""\s*(?:
        (?P<word>[A-Za-z_]+)
      | (?P<op><=|>=|!=|[=<>])
      | (?P<mark>[(),])
      | (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<end>\Z)
    )""",
    re.VERBOSE | re.DOTALL,
)


class _Parser:
    """Looks one token ahead: ``kind`` and ``token``, which begins at ``at``."""

    def __init__(self, text: str) -> None:
        self._source = text
        self._next = 0
        self._step()

    def filter(self) -> Filter:
        conditions: list[Condition] = []
        if self._kind != "end" and not self._is_word("group"):
            conditions.append(self._condition())
            while self._is_word("and"):
                self._step()
                if len(conditions) == CONDITIONS_MAX:
                    self._fail(f"no more than {CONDITIONS_MAX} conditions")
                conditions.append(self._condition())
        by_status = self._group()
        if self._kind != "end":
            self._fail("'and' or the end")
        return Filter(tuple(conditions), by_status)

    def _condition(self) -> Condition:
        name = _ALIASES.get(self._token.lower(), self._token.lower())
        if self._kind != "word" or name not in _FIELDS:
            self._fail(f"a field ({', '.join(_FIELDS)})")
        self._step()
        field, ops = _FIELDS[name]
        op = self._token.lower()
        if op not in ops:
            self._fail(f"{' or '.join(ops)} after {name}")
        self._step()
        if op == "in":
            return Condition(field, op, self._values(field))
        return Condition(field, op, self._value(field))

    def _values(self, field: str) -> tuple[str, ...]:
        self._expect("(")
        values = [str(self._value(field))]
        while self._token == ",":
            self._step()
            values.append(str(self._value(field)))
        self._expect(")")
        return tuple(values)

    def _value(self, field: str) -> str | int:
        if self._kind != "text":
            self._fail("a text in quotes")
        text = re.sub(r"\\(.)", r"\1", self._token[1:-1], flags=re.DOTALL)
        value = self._read(field, text)
        self._step()
        return value

    def _read(self, field: str, text: str) -> str | int:
        if field == "status":
            status = _STATUSES.get(text.lower().replace("_", ""))
            return status or self._fail(
                f"a status ({', '.join(status.value for status in Status)})"
            )
        if field.endswith("_ms"):
            moment = _moment_ms(text)
            return self._fail("a time such as 2026-01-31T12:00:00Z") if moment is None else moment
        return text

    def _group(self) -> bool:
        if not self._is_word("group"):
            return False
        for word, names in (("group", ("group",)), ("by", ("by",)), ("status", _BY_STATUS)):
            if self._token.lower() not in names:
                self._fail(f"'{word}' (what can be asked for is 'group by status')")
            self._step()
        return True

    def _is_word(self, word: str) -> bool:
        return self._kind == "word" and self._token.lower() == word

    def _expect(self, mark: str) -> None:
        if self._kind != "mark" or self._token != mark:
            self._fail(f"'{mark}'")
        self._step()

    def _step(self) -> None:
        found = _TOKEN.match(self._source, self._next)
        if found is None:
            rest = self._source[self._next :].lstrip()
            self._at = len(self._source) - len(rest)
            self._token = rest[:20]
            self._fail("a field, an operator or a text that ends with its quote")
        self._kind = str(found.lastgroup)
        self._token = found[self._kind]
        self._at = found.start(self._kind)
        self._next = found.end()

    def _fail(self, expected: str) -> NoReturn:
        found = repr(self._token) if self._token else "the end"
        raise InvalidArgument(f"query, character {self._at + 1}: {expected} expected, not {found}")


_BY_STATUS = ("status", "executionstatus")


def _moment_ms(text: str) -> int | None:
    try:
        # Python 3.10 does not know "Z".
        moment = datetime.fromisoformat(re.sub(r"[Zz]\Z", "+00:00", text))
    except ValueError:
        return None
    if moment.tzinfo is None:
        if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", text):
            return None
        moment = moment.replace(tzinfo=timezone.utc)
    return (moment - _EPOCH) // timedelta(milliseconds=1)
