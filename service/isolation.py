"""Who is at fault when a batch fails: found in as few further runs as can be, while everyone else is answered.

Pure: knows no engine and no entry, only what may be run again.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

ItemT = TypeVar("ItemT")


def isolate(failed: Sequence[ItemT], run: Callable[[Sequence[ItemT]], bool]) -> list[ItemT]:
    """The items of a failed batch that are at fault. `run` answers those it is given, or says that they failed too.

    One bad item among n costs at most log2(n) + 1 runs (rounded up): a half that runs well is done with; where it
    fails, the other half waits, and all that waited run together at the end. Where those fail too there is more than
    one: then each runs alone.
    """
    suspects, waiting = list(failed), list[ItemT]()
    while len(suspects) > 1:
        half = len(suspects) // 2
        if run(suspects[:half]):
            suspects = suspects[half:]
        else:
            waiting = suspects[half:] + waiting
            suspects = suspects[:half]
    if not waiting:  # all others ran well: this one was never tried alone
        return [] if len(failed) > 1 and run(suspects) else suspects
    if run(waiting):
        return suspects
    return suspects + [item for item in waiting if len(waiting) == 1 or not run([item])]
