"""The repository under random sequences of what can happen to a folder, with fakes that fail at will."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from service.errors import ConfigurationError, ModelLoadError, ModelNotFound, ModelNotReady
from service.messages import ModelRef
from service.repository.manager import ModelRepository
from service.repository.policy import Latest, wanted
from service.repository.states import ModelState
from tests.support.puppets import PuppetLoader, PuppetModel, PuppetSource, RepositoryLog, turns

NAMES = ("a", "b")
LEGAL = {  # from service/repository/states.py, written down once more
    ("UNKNOWN", "LOADING"),
    ("LOADING", "READY"),
    ("LOADING", "UNAVAILABLE"),
    ("UNAVAILABLE", "LOADING"),
    ("READY", "UNLOADING"),
    ("UNLOADING", "UNKNOWN"),
}
names = st.sampled_from(NAMES)
versions = st.integers(1, 4)
policies = st.sampled_from([Latest(1), Latest(2), "all", (1, 3), (2,), ()])

operations = st.lists(
    st.one_of(
        st.tuples(st.just("put"), names, versions, st.booleans()),
        st.tuples(st.just("put"), names, versions, st.just(True)),
        st.tuples(st.just("remove"), names, versions),
        st.tuples(st.just("vanish"), names),
        st.tuples(st.just("readable"), st.booleans()),
        st.tuples(st.just("manifest"), names, st.booleans()),
        st.tuples(st.just("policy"), names, policies),
        st.tuples(st.just("lease"), names),
        st.tuples(st.just("release")),
        st.tuples(st.just("look")),
        st.tuples(st.just("look")),
        st.tuples(st.just("look")),
    ),
    max_size=40,
)


class Transitions(logging.Handler):
    """Follows every version through the log, and keeps the steps that the table does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.states: dict[tuple[str, int], str] = {}
        self.illegal: list[tuple[str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage() != "model_state_change":
            return
        change: dict[str, Any] = vars(record)
        version, old, new = (change["model"], change["version"]), change["old"], change["new"]
        last = self.states.get(version, old)
        is_new_again = (last, old) == ("UNAVAILABLE", "UNKNOWN")  # its folder was gone meanwhile, and it forgotten
        if (old, new) not in LEGAL or not (last == old or is_new_again):
            self.illegal.append((old, new))
        self.states[version] = new


@contextmanager
def followed() -> Iterator[Transitions]:
    logger = logging.getLogger("service.repository.manager")
    handler = Transitions()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield handler
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


class World:
    """A repository, its fakes, and what has been seen of it so far."""

    def __init__(self) -> None:
        self.source = PuppetSource()
        self.loader = PuppetLoader()
        self.repository: ModelRepository[PuppetModel] = ModelRepository(self.source, self.loader, RepositoryLog())
        self.leases: list[tuple[Any, PuppetModel]] = []
        self.served: set[str] = set()

    async def happen(self, kind: str, *arguments: Any) -> None:
        await getattr(self, kind)(*arguments)
        self.check()

    async def put(self, name: str, version: int, good: bool) -> None:
        self.source.put(name, version)
        self.loader.faults.pop((name, version), None)
        if not good:
            self.loader.faults[name, version] = ModelLoadError("damaged")

    async def remove(self, name: str, version: int) -> None:
        self.source.models.get(name, {}).pop(version, None)

    async def vanish(self, name: str) -> None:
        self.source.models.pop(name, None)

    async def readable(self, readable: bool) -> None:
        self.source.is_readable = readable

    async def manifest(self, name: str, good: bool) -> None:
        self.loader.faults.pop(name, None)
        if not good:
            self.loader.faults[name] = ModelLoadError("a manifest problem")

    async def policy(self, name: str, policy: Any) -> None:
        self.loader.policies[name] = policy

    async def lease(self, name: str) -> None:
        with suppress(ModelNotFound, ModelNotReady):
            lease = self.repository.lease(ModelRef(name))
            _, model = lease.__enter__()
            self.leases.append((lease, model))

    async def release(self) -> None:
        if self.leases:
            self.leases.pop(0)[0].__exit__(None, None, None)
            await turns()

    async def look(self) -> None:
        """Reconcile, while requests go on."""
        looking = asyncio.create_task(self.repository.reconcile())
        while not looking.done():
            self.check()
            await asyncio.sleep(0)
        with suppress(ConfigurationError):
            await looking
        for _ in range(6):
            self.check()
            await asyncio.sleep(0)

    def check(self) -> None:
        """A model that was ready once is ready now, by a version that is open; so are the versions leased."""
        for name in NAMES:
            try:
                with self.repository.lease(ModelRef(name)) as (version, model):
                    assert not model.is_closed
                    assert (model.name, model.version) == (name, version)
                    self.served.add(name)
            except (ModelNotFound, ModelNotReady):
                assert name not in self.served, f"{name} was taken out of service"
        assert not any(model.is_closed for _, model in self.leases)
        table = {(name, int(version)): state for name, version, state in self.repository.states()}
        for status in self.repository.index():
            for version in status.versions:
                assert table[status.name, version.version] == version.state
                assert (version.loaded is not None) == (version.state in ("READY", "UNLOADING"))
            ready = [version.version for version in status.versions if version.state is ModelState.READY]
            assert status.default == max(ready, default=None)

    async def settle(self) -> None:
        """Nothing changes any more and everyone has left: the table comes to what the policies want."""
        while self.leases:
            await self.release()
        self.source.is_readable = True
        for name in NAMES:
            self.loader.faults.pop(name, None)
        for _ in range(4):
            await self.look()
        attempts = list(self.loader.attempts)
        await self.look()
        assert self.loader.attempts == attempts, "it never comes to rest"
        for status in self.repository.index():
            available = self.source.models.get(status.name, {})
            states = {version.version: version.state for version in status.versions}
            failed = {version for version, state in states.items() if state is ModelState.UNAVAILABLE}
            target = set(wanted(self.loader.policies.get(status.name, Latest()), available, failed))
            ready = {version for version, state in states.items() if state is ModelState.READY}
            if target:
                assert ready == target

    async def end(self) -> None:
        while self.leases:
            await self.release()
        await self.repository.close()
        assert all(model.is_closed for model in self.loader.loaded)
        assert self.repository.ready_models == []
        assert all(state in ("UNKNOWN", "UNAVAILABLE") for _, _, state in self.repository.states())


LOOK = ("look",)


@given(happenings=operations)
@example(happenings=[("put", "a", 1, True), LOOK, ("lease", "a"), ("put", "a", 2, True), LOOK, LOOK, ("release",)])
@example(happenings=[("put", "a", 1, False), LOOK, ("vanish", "a"), LOOK, ("put", "a", 1, False)])
@example(happenings=[("put", "a", 2, True), ("put", "a", 1, False), LOOK, ("remove", "a", 2), LOOK, LOOK])
@example(happenings=[("put", "a", 1, True), LOOK, ("put", "a", 1, False), LOOK, LOOK, ("vanish", "a"), LOOK, LOOK])
@settings(max_examples=150, deadline=None)
def test_availability_legality_and_closing_hold_whatever_happens(happenings: list[tuple[Any, ...]]) -> None:
    async def live() -> None:
        world = World()
        for kind, *arguments in happenings:
            await world.happen(kind, *arguments)
        await world.settle()
        await world.end()

    with followed() as transitions:
        asyncio.run(live())
    assert transitions.illegal == []


@given(happenings=operations)
@settings(max_examples=50, deadline=None)
def test_closing_in_the_middle_of_anything_closes_everything(happenings: list[tuple[Any, ...]]) -> None:
    async def live() -> None:
        world = World()
        for kind, *arguments in happenings:
            await world.happen(kind, *arguments)
        await world.end()

    with followed() as transitions:
        asyncio.run(live())
    assert transitions.illegal == []
