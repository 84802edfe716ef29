"""Every image that image libraries test themselves with is answered as a slow, careful decoder judges it."""

from collections import Counter
from collections.abc import Iterator
from random import Random

import httpx2
import numpy as np
import pytest

from tests.abuse.standing import Baseline
from tests.corpora import reference
from tests.corpora.conftest import CORPORA
from tests.support import bodies
from tests.support.answers import predictions_of
from tests.support.server_process import ServerProcess

_SCORES_APART = {"exact": 2e-3, "fast": 3e-2}  # fast halves large JPEGs, CMYK ones before they are RGB
_MOST_SECONDS = 5.0
_MOST_BYTES_DAMAGED = 150_000

_OF_REQUESTS = "h2o"
PACKAGES = sorted(place.name for place in CORPORA.glob("[!.]*") if place.name != _OF_REQUESTS)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_image_of_a_package_gets_the_verdict_of_the_reference(
    server: ServerProcess, baseline: Baseline, package: str
) -> None:
    """As it is; and, where it is small, cut short and with bytes changed, when only the status can be compared."""
    verdicts: Counter[int] = Counter()
    wrong: list[str] = []
    with httpx2.Client(base_url=server.url, timeout=30.0) as client:
        for file in sorted((CORPORA / package).iterdir()):
            data = file.read_bytes()
            for how, variant in (("as it is", data), *damaged(data, file.name)):
                expected = reference.judge(variant)
                verdicts[expected.status] += 1
                for model in ("exact", "fast"):
                    if found := _difference(client, model, variant, expected, of_scores=variant is data):
                        wrong.append(f"{file.name}, {how}, {model}: {found}; the reference: {expected.why}")
            baseline.assert_golden()
    baseline.assert_nothing_left()
    print(f"{package}: {verdicts.total()} files, by status {dict(sorted(verdicts.items()))}")
    assert not wrong, f"{len(wrong)} of {verdicts.total()} files:\n" + "\n".join(wrong)


def damaged(data: bytes, seed: str) -> Iterator[tuple[str, bytes]]:
    """The same each time, of each file."""
    if len(data) > _MOST_BYTES_DAMAGED:
        return
    random = Random(seed)  # to repeat, not to guard
    cut = random.randrange(1, len(data) + 1)
    yield f"cut after {cut} bytes", data[:cut]
    for count in (1, 8):
        changed = bytearray(data)
        for _ in range(count):
            changed[random.randrange(len(data))] = random.randrange(256)
        yield f"{count} bytes changed", bytes(changed)


def _difference(
    client: httpx2.Client, model: str, data: bytes, expected: reference.Verdict, *, of_scores: bool
) -> str | None:
    kind = {b"\x89P": bodies.PNG, b"RI": "image/webp"}.get(data[:2], bodies.JPEG)
    answer = client.post(f"/api/v1/models/{model}/classify", content=data, headers={"content-type": kind})
    if answer.status_code != expected.status:
        return f"{answer.status_code} {answer.text[:200]}"
    if answer.elapsed.total_seconds() > _MOST_SECONDS:
        return f"took {answer.elapsed.total_seconds():.1f} s"
    if expected.mean_color is None or not of_scores:
        return None
    scores = {one["label"]: one["score"] for one in predictions_of(answer)}
    exponents = np.exp(4.0 * expected.mean_color)
    apart = np.abs(exponents / exponents.sum() - [scores["red"], scores["green"], scores["blue"]]).max()
    return f"scores differ by {apart:.2g}" if apart > _SCORES_APART[model] else None
