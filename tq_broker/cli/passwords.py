"""Passwords on the command line: found, and moved to where only the user can see them. Pure.

Everybody on a machine can read the command lines of all processes (``ps``), and only the user
himself the environment of his. So ``tq-broker -b amqp://user:secret@host`` starts itself anew
with the URL in ``TQ_BROKER_URL``, and with that of a store in ``TQ_BROKER_STORE``. It can be seen
until then, for some milliseconds: better set the variable, or use a profile.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

URL_VARIABLE = "TQ_BROKER_URL"
STORE_VARIABLE = "TQ_BROKER_STORE"
_WITH_PASSWORD = re.compile(r"[a-z][a-z0-9+.-]*://[^/@\s]*:[^/@\s]+@", re.IGNORECASE)
_VARIABLES = {"-b": URL_VARIABLE, "--broker": URL_VARIABLE, "--store": STORE_VARIABLE}


def without_password(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """``arguments`` without the URLs that hold a password, and those by environment variable.

    The last of several URLs for the same counts.
    """
    kept: list[tuple[str | None, list[str]]] = []  # by the variable that says the same
    hidden: dict[str, str] = {}
    rest = iter(arguments)
    for argument in rest:
        name, value = argument, None
        for known in _VARIABLES:
            if argument.startswith(f"{known}="):
                name, value = known, argument.partition("=")[2]
        if argument[:2] == "-b" and len(argument) > 2 and argument[2] != "=":
            name, value = "-b", argument[2:]
        variable = _VARIABLES.get(name)
        if variable is None:
            kept.append((None, [argument]))
            continue
        separate = value is None
        if value is None:
            value = next(rest, None)
        if value is not None and _WITH_PASSWORD.search(value):
            hidden[variable] = value
            # One that is typed wins over the environment: it would win over a later one.
            kept = [one for one in kept if one[0] != variable]
        elif value is None:
            kept.append((None, [argument]))
        else:
            hidden.pop(variable, None)
            kept.append((variable, [argument, value] if separate else [argument]))
    return [word for _, words in kept for word in words], hidden
