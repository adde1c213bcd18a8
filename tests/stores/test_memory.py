"""`MemoryStore` keeps the contract."""

from __future__ import annotations

import pytest

from tests.contracts.store import StoreContract, World
from tq_broker.stores.memory import MemoryDatabase, MemoryStore


class MemoryWorld(World):
    def __init__(self) -> None:
        self._database = MemoryDatabase()

    def make_store(self, namespace: str = "default") -> MemoryStore:
        return MemoryStore(self._database, namespace)


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def world(self) -> MemoryWorld:
        return MemoryWorld()
