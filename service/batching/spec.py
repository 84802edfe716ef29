"""BatchingSpec: the knobs of one model's queue, with Triton's names."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class BatchingSpec:
    """`max_queue_delay_ms` 0 means that a batch leaves as soon as something is free to run it.

    `max_queue_size` counts entries. `max_queue_wait_ms` bounds how long one waits: what would wait longer by the
    measured rate is refused at once, what did wait longer is dropped when its batch forms.
    """

    max_batch_size: int = 8
    max_queue_delay_ms: float = 0.0
    preferred_batch_sizes: tuple[int, ...] = ()
    max_queue_size: int = 256
    max_queue_wait_ms: float = 1000.0
