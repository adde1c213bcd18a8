"""Leave to begin one task: what a limit wants to be told of it.

A task of an unlimited queue goes through `FREE`, which costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable


class Passage:
    """Leave to begin one task; each method may be called again, and then does nothing."""

    __slots__ = ()

    def begun(self) -> None:
        """Its code begins to run."""

    def ended(self) -> None:
        """Its code runs no more."""

    def unused(self) -> None:
        """It does not run after all; nothing is to be used up by it."""

    def within(self, inner: Passage) -> Passage:
        """Leave that needs ``inner`` as well."""
        return inner

    def settled(self, then: Callable[[], None]) -> None:
        """The attempt is over. ``then``, which lets its task go, is called when whoever limits it
        knows; other methods may still be called, if its code runs on."""
        then()


FREE = Passage()
