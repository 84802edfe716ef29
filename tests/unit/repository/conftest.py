"""A repository around a puppet folder and a puppet loader."""

from collections.abc import AsyncIterator

import pytest

from service.messages import ModelRef
from service.repository.manager import ModelRepository
from service.repository.states import ModelState
from tests.support.clock import FakeClock
from tests.support.puppets import PuppetLoader, PuppetModel, PuppetSource, RepositoryLog, turns


class Shelf:
    """One repository and everything around it."""

    def __init__(self) -> None:
        self.source = PuppetSource()
        self.loader = PuppetLoader()
        self.log = RepositoryLog()
        self.clock = FakeClock()
        self.repository: ModelRepository[PuppetModel] = ModelRepository(
            self.source, self.loader, self.log, clock=self.clock
        )

    async def look(self, times: int = 1) -> None:
        """Reconcile, and let unloads that need to wait for nobody end."""
        for _ in range(times):
            await self.repository.reconcile()
            await turns()

    def states(self, name: str) -> dict[int, str]:
        return {int(version): state for model, version, state in self.repository.states() if model == name}

    def ready(self, name: str) -> list[int]:
        return [version for version, state in self.states(name).items() if state == ModelState.READY]

    def default(self, name: str) -> int | None:
        return self.repository.status(name).default

    def reason(self, name: str, version: int) -> str:
        return next(status.reason for status in self.repository.status(name).versions if status.version == version)

    def served(self, name: str, version: int | None = None) -> int:
        """The version that a request would be answered by; it must be open."""
        with self.repository.lease(ModelRef(name, version)) as (number, model):
            assert not model.is_closed
            assert (model.name, model.version) == (name, number)
            return number


@pytest.fixture
async def shelf() -> AsyncIterator[Shelf]:
    shelf = Shelf()
    yield shelf
    await shelf.repository.close()
