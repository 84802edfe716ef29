"""What a search for a manifest tries, and what it measures of it: plain values."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Candidate:
    """The keys of a manifest that are tried."""

    instances: int
    intra_op_threads: int
    max_batch_size: int
    max_queue_delay_ms: float = 0.0

    @property
    def tables(self) -> dict[str, dict[str, int | float | str]]:
        return {
            "batching": {"max_batch_size": self.max_batch_size, "max_queue_delay_ms": self.max_queue_delay_ms},
            "execution": {"instances": self.instances, "intra_op_threads": self.intra_op_threads},
        }

    def __str__(self) -> str:
        delay = f", delay {self.max_queue_delay_ms:g} ms" if self.max_queue_delay_ms else ""
        return f"{self.instances} x {self.intra_op_threads} threads, batch {self.max_batch_size}{delay}"


@dataclass(frozen=True, slots=True)
class Point:
    """One window: `clients` that each wait for their answer."""

    clients: int
    rate: float
    p50_ms: float
    p99_ms: float


@dataclass(slots=True)
class Trial:
    """A candidate and what was measured of it. `best` is within the bound; None where nothing was.

    `windows` says how many `best` is the median of.
    """

    candidate: Candidate
    windows: int = 1
    points: list[Point] = field(default_factory=list)
    best: Point | None = None
    problem: str = ""
