"""Troubles: what an error of a database asks for, and of whom.

Rules of this file: it decides by what the database says, its code or its words; nothing is waited
for that waiting cannot mend, and of what is not known it is supposed that waiting can.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection


class Trouble(enum.Enum):
    """Who must do something about it."""

    AWAY = "away"
    """Time: out of reach, full, read-only, busy, locked; the same may be asked again."""
    REFUSED = "refused"
    """Its operator: no such login, database, table, column or file, or no right to it."""
    DATA = "data"
    """Whoever has sent such data."""
    OURS = "ours"
    """Who wrote the program: the same will go wrong as often as it is asked."""


# By the Python names of DB-API's classes, the first that an error is of.
_KINDS = {
    "DataError": Trouble.DATA,
    "IntegrityError": Trouble.OURS,
    "ProgrammingError": Trouble.OURS,
    "NotSupportedError": Trouble.OURS,
}


def of_kind(kinds: Collection[str]) -> Trouble:
    """Of an error that is known by its classes only.

    Args:
        kinds: Their names, the class itself first.
    """
    return next((_KINDS[kind] for kind in kinds if kind in _KINDS), Trouble.AWAY)


_SQLITE = (
    (
        Trouble.REFUSED,
        "no such (table|column)|has no column|unable to open|not a database|image is malformed"
        "|denied",
    ),
    (
        Trouble.OURS,
        "no such |syntax error|unrecognized token|incomplete input|ambiguous column"
        "|too many |wrong number of|binding parameter|misuse|malformed JSON|within a transaction"
        "|no transaction is active|values were supplied",
    ),
)


def of_sqlite(kinds: Collection[str], text: str) -> Trouble:
    """Of an error of `sqlite3`, whose codes not all Pythons tell.

    Args:
        kinds: As of `of_kind`.
        text: What it says.
    """
    if (found := of_kind(kinds)) is Trouble.AWAY:
        return next((one for one, words in _SQLITE if re.search(words, text)), found)
    return found


# By SQLSTATE, or its first two characters: the class.
_STATES = {
    "0A": Trouble.OURS,
    "0A000": Trouble.AWAY,  # a plan that a migration has made stale is made anew
    "21": Trouble.OURS,
    "22": Trouble.DATA,
    "23": Trouble.OURS,
    "26": Trouble.AWAY,  # a pooler stands between, which had us change servers
    "28": Trouble.REFUSED,
    "3D": Trouble.REFUSED,
    "3F": Trouble.REFUSED,
    "42": Trouble.OURS,
    "42501": Trouble.REFUSED,  # no right to it
    "42P01": Trouble.REFUSED,  # no such table, as when an old copy was restored
    "42703": Trouble.REFUSED,  # no such column, likewise
    "42P05": Trouble.AWAY,  # as 26
}
# Who is not let in is told in words only.
_NOT_LET_IN = (
    "authentication failed|no password supplied|no pg_hba.conf entry|permission denied"
    "|(database|role) .* does not exist"
)


def of_postgresql(kinds: Collection[str], state: str | None, text: str) -> Trouble:
    """Of an error of psycopg.

    Args:
        kinds: As of `of_kind`.
        state: Its SQLSTATE, if the server has sent one.
        text: What it says.
    """
    if state:
        return _STATES.get(state) or _STATES.get(state[:2], Trouble.AWAY)
    if (found := of_kind(kinds)) is Trouble.AWAY and re.search(_NOT_LET_IN, text):
        return Trouble.REFUSED
    return found
