"""The tour of the README is true: its examples run, and answer what they say."""

import doctest
from pathlib import Path

README = Path(__file__).parent.parent / "README.rst"


def test_the_tour_runs_as_it_stands():
    results = doctest.testfile(
        str(README),
        module_relative=False,
        optionflags=doctest.ELLIPSIS | doctest.IGNORE_EXCEPTION_DETAIL,
    )

    assert results.attempted > 15
    assert results.failed == 0
