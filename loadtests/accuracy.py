"""`make accuracy`: the 10,000 test images of digits and fashion through HTTP, against what their model cards say.

Fails where a figure differs from its card's by more than 0.05 points, or where any request fails.
"""

import io
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from local_server import local_server
from PIL import Image

from service.client import FoveaClient

_ROOT = Path(__file__).resolve().parent.parent
_IMAGES_A_REQUEST = 16
_REQUESTS_IN_FLIGHT = 8
_TOLERANCE_POINTS = 0.05

sys.path.append(str(_ROOT / "model_repo" / "recipes"))


def card_accuracy(model: str) -> float:
    """The percentage that the model's card gives for its test set."""
    card = (_ROOT / "model_repo" / model / "README.md").read_text(encoding="utf-8")
    found = re.search(r"\| Test accuracy \| ([0-9.]+) ?%", card)
    if found is None:
        raise SystemExit(f"model_repo/{model}/README.md: no line 'Test accuracy'")
    return float(found[1])


def served_accuracy(url: str, model: str, images: np.ndarray, labels: np.ndarray) -> float:
    """Percentage of `images` (n, 28, 28) whose best prediction is the label, each sent as a PNG."""

    def right(places: range) -> int:
        answer = client.classify(model, [(str(place), _png(images[place])) for place in places], top_k=1)
        best = [result.predictions[0].index for result in answer.results]
        return sum(int(index == labels[place]) for index, place in zip(best, places, strict=True))

    with FoveaClient(url) as client, ThreadPoolExecutor(_REQUESTS_IN_FLIGHT) as pool:
        return 100.0 * sum(pool.map(right, _groups(len(images)))) / len(images)


def _groups(count: int) -> list[range]:
    return [range(start, min(start + _IMAGES_A_REQUEST, count)) for start in range(0, count, _IMAGES_A_REQUEST)]


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def main() -> int:
    import idx_datasets  # the recipes' own loader: it knows where the data comes from

    failed = False
    with local_server(["--model-repo", str(_ROOT / "model_repo")]) as server:
        for model, dataset in (("digits", idx_datasets.mnist), ("fashion", idx_datasets.fashion_mnist)):
            test = dataset().test
            started_at = time.perf_counter()
            served, card = served_accuracy(server.url, model, test.images, test.labels), card_accuracy(model)
            seconds = time.perf_counter() - started_at
            good = abs(served - card) <= _TOLERANCE_POINTS
            failed |= not good
            print(f"{model}: {served:.2f} % of {len(test.images):,} through HTTP, card {card:.2f} %, "
                  f"{'ok' if good else 'DIFFERENT'} ({seconds:.1f} s)")  # fmt: skip
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
