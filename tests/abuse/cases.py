"""One case of the abuse matrix: what is sent, and what may come back. The number of its row stands in its id.

The rows themselves are in `rows_of_*.py`, grouped by what they abuse; `test_matrix.py` sends them all.
"""

import json
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.support import bodies, raw_http
from tests.support.bodies import BOUNDARY, MULTIPART, PNG, image_part, multipart
from tests.support.raw_http import RawAnswer

MIB = 1024 * 1024
IMAGENET = "/api/v1/models/imagenet/classify"
DIGITS = "/api/v1/models/digits/classify"
COLORS = "/api/v1/models/colors/classify"
INFER = "/v2/models/both/infer"
JSON = "application/json"

PHOTO = bodies.encoded(bodies.noise(64, 48), "JPEG", quality=90)
PICTURE = bodies.encoded(bodies.noise(64, 48))
SEVEN = bodies.drawn_digit(7)
RANDOM = np.random.default_rng(3).bytes(10 * 1024)
SOUND = bodies.base64_text(SEVEN)
JSON_OF_SEVEN = bodies.json_body([SEVEN])
OPEN = f"--{BOUNDARY}\r\n".encode()
CLOSE = f"\r\n--{BOUNDARY}--\r\n".encode()
IN_CHUNKS = [("Transfer-Encoding", "chunked")]

Body = bytes | Callable[[], bytes]
Headers = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Case:
    """One request. `expect` is the allowed statuses, and the problem's code where that is fixed; and the word `closed`
    where the end of the connection is an answer, too.

    `body` may be a function, called when the case's turn comes, so that large bodies live one at a time. `whole` is
    sent as it is, instead of a request made of the rest. `check` looks at a 200, and `twin` is an image (its bytes and
    type) that must get the same answer, with scores within `tolerance`.
    """

    row: int
    name: str
    body: Body
    expect: str
    media_type: str | None = PNG
    path: str = IMAGENET
    headers: Headers = ()
    method: str = "POST"
    cpu_seconds: float = 1.0
    canary: str | None = None  # text that must not reach the log
    whole: bytes | None = None
    check: Callable[[RawAnswer], None] | None = None
    twin: tuple[bytes, str] | None = None
    tolerance: float = 1e-4
    thorough: bool = False  # too slow for the default suite

    @property
    def id(self) -> str:
        return f"row{self.row:02}-{self.name}"

    @property
    def statuses(self) -> set[int]:
        return {int(word) for word in self.expect.split() if word.isdigit()}

    @property
    def code(self) -> str | None:
        return next((word for word in self.expect.split() if not word.isdigit() and word != "closed"), None)

    @property
    def may_be_closed(self) -> bool:
        return "closed" in self.expect.split()

    @property
    def is_small(self) -> bool:
        """Whether it may be sent a hundred times."""
        return isinstance(self.body, bytes) and len(self.body) < 64 * 1024

    def request(self, request_id: str) -> bytes:
        if self.whole is not None:
            return self.whole
        body = self.body if isinstance(self.body, bytes) else self.body()
        typed = [] if self.media_type is None else [("Content-Type", self.media_type)]
        return raw_http.request(self.method, self.path, [("X-Request-ID", request_id), *typed, *self.headers], body)


MALFORMED = "400 malformed_request"
UNSUPPORTED = "415 unsupported_media_type"
MISMATCH = "415 media_type_mismatch"
INVALID_IMAGE = "422 invalid_image"
TOO_LARGE_AN_IMAGE = "422 image_too_large"
INVALID_PARAMETER = "422 invalid_parameter"
TOO_MANY_BYTES = "413 payload_too_large"
NOT_HTTP = "400 malformed_http"


def raw(row: int, name: str, body: Body, expect: str, media_type: str | None = PNG, **more: Any) -> Case:
    return Case(row, name, body, expect, media_type, **more)


def parts(row: int, name: str, content: Iterable[bodies.Part] | bytes, expect: str, **more: Any) -> Case:
    """A multipart body: its parts, or the bytes as they are."""
    body = content if isinstance(content, bytes) else multipart(content)
    return Case(row, name, body, expect, MULTIPART, **more)


def text(row: int, name: str, body: bytes, expect: str, **more: Any) -> Case:
    return Case(row, name, body, expect, JSON, **{"path": DIGITS, **more})


def each_form(row: int, name: str, data: bytes, expect: str, media_type: str = PNG, **more: Any) -> Iterator[Case]:
    """The same image raw, as a part, and in base64."""
    yield raw(row, f"{name}-raw", data, expect, media_type, **more)
    yield parts(row, f"{name}-multipart", [image_part(data)], expect, **more)
    yield text(row, f"{name}-json", bodies.json_body([data]), expect, **{"path": IMAGENET, **more})


def bytes_of(row: int, name: str, whole: bytes, expect: str, **more: Any) -> Case:
    """Bytes on a connection of their own, whatever they are."""
    return Case(row, name, b"", expect, whole=whole, **more)


def form(disposition: str, data: bytes, *headers: str) -> bodies.Part:
    """A part whose Content-Disposition says more than `form-data`."""
    return "\r\n".join([f"Content-Disposition: form-data; {disposition}", *headers]), data


def padded_photo(size: int) -> bytes:
    """A JPEG of any size: what comes after its end is ignored."""
    return PHOTO + bytes(size - len(PHOTO))


def chunked(body: bytes, piece: int = 65536) -> bytes:
    pieces = [body[start : start + piece] for start in range(0, len(body), piece)]
    return b"".join(b"%x\r\n%s\r\n" % (len(data), data) for data in pieces) + b"0\r\n\r\n"


def chunked_later(body: Callable[[], bytes]) -> bytes:
    return chunked(body())


def nested(depth: int) -> bytes:
    """JSON of `depth` containers, one in the other."""
    inside = depth - 2
    return b'{"images": [' + b"[" * inside + b"]" * inside + b"]}"


def one_image(**keys: Any) -> bytes:
    return json.dumps({"images": [keys]}).encode()


def sound_and(**keys: Any) -> bytes:
    return json.dumps({"images": [{"b64": SOUND}], **keys}).encode()


def png_with_header(picture: bytes, width: int, height: int, depth: int, color: int) -> bytes:
    """The PNG with another IHDR, whose checksum is right."""
    header = picture.index(b"IHDR")
    fields = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return picture[: header - 4] + bodies.png_chunk(b"IHDR", fields) + picture[header + 21 :]
