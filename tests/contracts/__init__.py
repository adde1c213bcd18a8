"""Contract suites: one per port, run on each adapter."""

import pytest

pytest.register_assert_rewrite("tests.contracts.broker", "tests.contracts.store")
