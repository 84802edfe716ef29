"""How many images in one execution pay: chosen from timings when a model is loaded.

A batch amortises what an execution costs in itself. For a small network, or on a GPU, that is nearly everything; for a
real network on a CPU it is nearly nothing, and a large batch falls out of the caches: EfficientNet-Lite0 runs a tenth
slower in eights than in twos. Pure: timings in, a size out.
"""

from collections.abc import Mapping

_WORTH_INLINE = 8
_AROUND_SECONDS = 30e-6  # of forming a batch and handing out its answers, beside what the engine takes
_AS_GOOD = 1.08  # times the best for each image: less cannot be told from the machine's moods


def sizes_as_good_as_the_best(seconds_of: Mapping[int, float], inline_seconds: float) -> list[int]:
    """Of the measured batch sizes those that are, by seconds for each image.

    Where batches of `_WORTH_INLINE` take at most `inline_seconds`, only those count that do not take longer: such a
    model runs on the event loop, and gains more by that than by a larger batch.
    """
    if seconds_of.get(_WORTH_INLINE, inline_seconds + 1) <= inline_seconds:
        seconds_of = {size: seconds for size, seconds in seconds_of.items() if seconds <= inline_seconds}
    per_image = {size: (seconds + _AROUND_SECONDS) / size for size, seconds in seconds_of.items()}
    best = min(per_image.values())
    return [size for size, seconds in per_image.items() if seconds <= best * _AS_GOOD]


def paying_batch_size(seconds_of: Mapping[int, float], inline_seconds: float) -> int:
    """The smallest size that is as good as the best, of those that take longer than `inline_seconds`; else the largest.

    A larger batch that gains nothing costs memory, and those in it wait for each other. One that takes no longer spares
    the event loop at no such price.
    """
    as_good = sizes_as_good_as_the_best(seconds_of, inline_seconds)
    return min((size for size in as_good if seconds_of[size] > inline_seconds), default=max(as_good))
