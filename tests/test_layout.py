"""Every module has its tests, where a reader looks for them."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "tq_broker"

# Modules whose tests stand elsewhere: the module, where they are, and why.
ELSEWHERE = [
    (
        "testing/local_rabbitmq.py",
        "integration/test_local_rabbitmq.py",
        "it starts real servers, and does nothing else",
    ),
]

EXEMPT = {"__init__.py", "__main__.py"}


def modules() -> list[str]:
    found = (path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))
    return sorted(path.as_posix() for path in found if path.name not in EXEMPT)


def partner(module: str) -> Path:
    for listed, tests, _why in ELSEWHERE:
        if listed == module:
            return ROOT / tests
    path = Path(module)
    return ROOT / "tests" / path.parent / f"test_{path.name}"


@pytest.mark.parametrize("module", modules())
def test_a_module_has_tests(module: str) -> None:
    tests = partner(module)
    assert tests.exists(), f"tq_broker/{module} needs {tests.relative_to(ROOT)}"


@pytest.mark.parametrize("module", [module for module, _, _ in ELSEWHERE])
def test_the_table_of_exceptions_names_modules_that_exist(module: str) -> None:
    assert (PACKAGE / module).exists()
