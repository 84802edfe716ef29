"""Faults staged on one machine, each with its figure beside its bound: `make test-faults`."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import bodies
from tests.support.server_process import ServerProcess

Figure = Callable[[str, str, float, float], None]

_FIGURES: list[tuple[str, str, float, float, bool]] = []
_QUEUE = "[batching]\nmax_batch_size = 1\nmax_queue_wait_ms = {wait}\n[execution]\ninstances = 1\n"


@pytest.fixture(scope="session")
def figure() -> Figure:
    """`figure(fault, what, value, bound)`: noted for the table, and held to its bound."""

    def note(fault: str, what: str, value: float, bound: float) -> None:
        _FIGURES.append((fault, what, value, bound, value <= bound))
        assert value <= bound, f"{fault}: {what}: {value:g}, at most {bound:g}"

    return note


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`colors`, quick; `slow`, more than 100 ms an image, one at a time; `crowded`, a third of that, for the overload.

    On a slow machine too, several of the last must fit into the longest wait.
    """
    root = tmp_path_factory.mktemp("faults")
    quick, slow, manifest = bodies.mean_color_model(), bodies.slow_model(), bodies.COLOR_MANIFEST
    bodies.write_model(root / "colors", quick, manifest=manifest, labels=bodies.COLORS)
    patient = manifest + _QUEUE.format(wait=600_000).replace("[execution]", "max_queue_size = 2000\n[execution]")
    bodies.write_model(root / "slow", slow, manifest=patient, labels=bodies.COLORS)
    crowded = bodies.slow_model(products=20)
    bodies.write_model(root / "crowded", crowded, manifest=manifest + _QUEUE.format(wait=1000), labels=bodies.COLORS)
    return root


@pytest.fixture
def server(repository: Path, request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server of its own for each fault; parametrize it indirectly for other settings."""
    settings: tuple[str, ...] = getattr(request, "param", ())
    with ServerProcess(
        repository, "--server.drain-delay-s", "0", "--repository.poll-interval-s", "0", *settings
    ) as one:
        yield one.wait_until_ready()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("faults: figure and bound")
    for fault, what, value, bound, held in _FIGURES:
        terminalreporter.line(f"{fault:<4} {what:<58} {value:>10.3f} <= {bound:<10g} {'' if held else 'BROKEN'}")
