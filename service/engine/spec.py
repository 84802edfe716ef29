"""ExecutionSpec: where a model may run and with how many threads."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ExecutionSpec:
    """`providers` in order of preference; the list is the permission.

    `instances` executions at once (0 = chosen from cores and provider); `intra_op_threads` inside one (0 = chosen).
    """

    providers: tuple[str, ...] = ("cuda", "cpu")
    device_ids: tuple[int, ...] = (0,)
    instances: int = 0
    intra_op_threads: int = 0
