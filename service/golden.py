"""golden.json: inputs with the answers a version must give before it serves.

Owns the file's format, the pictures that a seed stands for, and what counts as the same answer. Who runs the model is
somebody else.
"""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from service.errors import ModelLoadError

GOLDEN_NAME = "golden.json"
SEEDS = (1, 2, 3)  # of the pictures that are made where none are given
TOP_K = 5
# The same graph on another CPU differs by 1e-4, quantised to 8 bits by 0.01 (with and without VNNI); another
# preprocessing or other weights by far more.
TOLERANCE = 0.02
_MOST_CASES = 64  # each is an execution of every load


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Expected(_Table):
    """One label of an answer; `label` is for the reader."""

    index: int = Field(ge=0)
    score: float
    label: str = ""


class Case(_Table):
    """One input, a file of the version's folder or a picture by its seed, and its best predictions, best first."""

    file: str | None = Field(None, pattern=r"^[^/\\]+$")
    seed: int | None = Field(None, ge=0, lt=2**32)
    predictions: tuple[Expected, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_input(self) -> "Case":
        if (self.file is None) == (self.seed is None):
            raise ValueError("give either file or seed")
        return self

    @property
    def name(self) -> str:
        return self.file or f"seed {self.seed}"


class Golden(_Table):
    """The whole file."""

    schema_version: int = Field(1, alias="schema", ge=1, le=1)
    tolerance: float = Field(TOLERANCE, ge=0, lt=1)
    cases: tuple[Case, ...] = Field(min_length=1, max_length=_MOST_CASES)


def parse(content: bytes) -> Golden:
    """Raises ModelLoadError that names the field."""
    try:
        return Golden.model_validate_json(content)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in problem["loc"]) or "the file"
        raise ModelLoadError(f"{GOLDEN_NAME}: {field}: {problem['msg']}", gate="golden") from None


def compare(case: Case, scores: npt.NDArray[np.float32], tolerance: float) -> None:
    """Every expected score within the tolerance, and the best still the best, but for a tie within the tolerance.

    Raises ModelLoadError.
    """
    for expected in case.predictions:
        actual = float(scores[expected.index]) if expected.index < len(scores) else float("nan")
        if not abs(actual - expected.score) <= tolerance:
            raise _wrong(case, f"index {expected.index} scores {actual:.4f} instead of {expected.score:.4f}")
    best = int(scores.argmax())
    if scores[best] - scores[case.predictions[0].index] > tolerance:
        raise _wrong(case, f"index {best} is the best instead of {case.predictions[0].index}")


def _wrong(case: Case, what: str) -> ModelLoadError:
    return ModelLoadError(
        f"{GOLDEN_NAME}: {case.name}: {what}; if that is meant, run `fovea check --write-golden`", gate="golden"
    )


def expected(scores: npt.NDArray[np.float32], labels: Sequence[str]) -> tuple[Expected, ...]:
    """The best of one row of scores, as the file has them."""
    best = np.argsort(-scores, kind="stable")[:TOP_K].tolist()
    return tuple(Expected(index=index, score=round(float(scores[index]), 6), label=labels[index]) for index in best)


def picture(seed: int, height: int, width: int) -> bytes:
    """A PNG of random RGB pixels, coarse ones, so that a resampler does not make them gray. The same for ever."""
    random = np.random.RandomState(seed)  # its stream is frozen, a Generator's is not
    coarse = random.randint(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    pixels = coarse.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    rows = np.concatenate((np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)), axis=1)  # filter 0 each
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks))


def _chunk(chunk: tuple[bytes, bytes]) -> bytes:
    kind, content = chunk
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
