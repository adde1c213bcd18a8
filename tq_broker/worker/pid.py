"""A PID controller: how far a measured value may still grow towards its target. Pure.

The output is positive below the target. Growth damps it, so that it turns negative *before* a value
that rises fast has reached its target; that is what a bare comparison cannot do.
"""

from __future__ import annotations

PROPORTIONAL = 5.0
INTEGRAL = 0.0
DIFFERENTIAL = 1.0
"""Gains as in Temporal's SDK: no integral part, because a value that stays below its target for
hours, for lack of work, must not be allowed to overshoot afterwards."""


class Pid:
    """One controlled value.

    Args:
        target: Where it is to come to.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self._sum = 0.0
        self._last: float | None = None

    def output(self, measured: float) -> float:
        """What follows from a further measurement."""
        error = self.target - measured
        self._sum += error
        growth = 0.0 if self._last is None else measured - self._last
        self._last = measured
        return PROPORTIONAL * error + INTEGRAL * self._sum - DIFFERENTIAL * growth
