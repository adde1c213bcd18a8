"""Passwords on the command line: found, and moved to where only the user can see them. Pure.

Everybody on a machine can read the command lines of all processes (``ps``), and only the user
himself the environment of his. So ``tq-broker -b amqp://user:secret@host`` starts itself anew
with the URL in ``TQ_BROKER_URL``. The URL can be seen until then, for some milliseconds: better
set the variable, or use a profile.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

URL_VARIABLE = "TQ_BROKER_URL"
_WITH_PASSWORD = re.compile(r"amqps?://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)
_NAMES = ("-b", "--broker")


def without_password(arguments: Sequence[str]) -> tuple[list[str], str | None]:
    """``arguments`` without the broker's URL if that holds a password, and the URL.

    ``None`` means that there was none to hide. The last of several URLs counts.
    """
    kept: list[str] = []
    hidden: str | None = None
    rest = iter(arguments)
    for argument in rest:
        name, value = argument, None
        for known in _NAMES:
            if argument.startswith(f"{known}="):
                name, value = known, argument.partition("=")[2]
        if argument[:2] == "-b" and len(argument) > 2 and argument[2] != "=":
            name, value = "-b", argument[2:]
        if name not in _NAMES:
            kept.append(argument)
            continue
        separate = value is None
        if value is None:
            value = next(rest, None)
        if value is not None and _WITH_PASSWORD.search(value):
            hidden = value
        elif value is None:
            kept.append(argument)
        else:
            hidden = None
            kept += [argument, value] if separate else [argument]
    return kept, hidden
