"""What strangers send: the rows of the abuse matrix that concern `/api/v1`, one table. The number of the row stands in
each test's id.

Whatever came, it is answered with a status of the row, never a 5xx, at a bounded price in CPU, logged in one line; the
error gives nothing of ours away; and straight after it the server lives and gives the golden answer.
"""

import codecs
import gzip
import json
import socket
import struct
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from tests.support import bodies, raw_http
from tests.support.answers import assert_gives_nothing_away, problem_of
from tests.support.bodies import BOUNDARY, JPEG, MULTIPART, PNG, WEBP, image_part, json_body, multipart
from tests.support.scrape import Scrape
from tests.support.server_process import ServerProcess, poll

MIB = 1024 * 1024
IMAGENET = "/api/v1/models/imagenet/classify"
DIGITS = "/api/v1/models/digits/classify"
JSON = "application/json"

PHOTO = bodies.encoded(bodies.noise(64, 48), "JPEG", quality=90)
PICTURE = bodies.encoded(bodies.noise(64, 48))
SEVEN = bodies.drawn_digit(7)
RANDOM = np.random.default_rng(3).bytes(10 * 1024)
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


@dataclass(frozen=True)
class Case:
    """One bad request. `expect` is the allowed statuses, and the problem's code where that is fixed.

    `body` may be a function, called when the case's turn comes, so that large bodies live one at a time.
    """

    row: int
    name: str
    body: bytes | Callable[[], bytes]
    expect: str
    media_type: str | None = PNG
    path: str = IMAGENET
    headers: Sequence[tuple[str, str]] = ()
    cpu_seconds: float = 1.0
    unlogged: bool = False  # refused by the HTTP parser, before there is a request
    canary: str | None = None  # text that must not reach the log

    @property
    def id(self) -> str:
        return f"row{self.row:02}-{self.name}"

    @property
    def statuses(self) -> set[int]:
        return {int(word) for word in self.expect.split() if word.isdigit()}

    @property
    def code(self) -> str | None:
        return next((word for word in self.expect.split() if not word.isdigit()), None)


MALFORMED = "400 malformed_request"
UNSUPPORTED = "415 unsupported_media_type"
MISMATCH = "415 media_type_mismatch"
INVALID_IMAGE = "422 invalid_image"
TOO_LARGE_AN_IMAGE = "422 image_too_large"
INVALID_PARAMETER = "422 invalid_parameter"
TOO_MANY_BYTES = "413 payload_too_large"


def raw(row: int, name: str, body: bytes, expect: str, media_type: str | None = PNG, **more: Any) -> Case:
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
    yield text(row, f"{name}-json", json_body([data]), expect, **{"path": IMAGENET, **more})


def form(disposition: str, data: bytes, *headers: str) -> bodies.Part:
    """A part whose Content-Disposition says more than `form-data`."""
    return "\r\n".join([f"Content-Disposition: form-data; {disposition}", *headers]), data


def padded_photo(size: int) -> bytes:
    """A JPEG of any size: what comes after its end is ignored."""
    return PHOTO + bytes(size - len(PHOTO))


def chunked(body: bytes, piece: int = 65536) -> bytes:
    pieces = [body[start : start + piece] for start in range(0, len(body), piece)]
    return b"".join(b"%x\r\n%s\r\n" % (len(data), data) for data in pieces) + b"0\r\n\r\n"


def nested(depth: int) -> bytes:
    """JSON of `depth` containers, one in the other."""
    inside = depth - 2
    return b'{"images": [' + b"[" * inside + b"]" * inside + b"]}"


def one_image(**keys: Any) -> bytes:
    return json.dumps({"images": [keys]}).encode()


def sound_and(**keys: Any) -> bytes:
    return json.dumps({"images": [{"b64": SOUND}], **keys}).encode()


SOUND = bodies.base64_text(SEVEN)
JSON_OF_SEVEN = json_body([SEVEN])
OPEN = f"--{BOUNDARY}\r\n".encode()
CLOSE = f"\r\n--{BOUNDARY}--\r\n".encode()
GIF = bodies.encoded(bodies.noise(20, 20), "GIF")
IN_CHUNKS = [("Transfer-Encoding", "chunked")]


def images() -> Iterator[Case]:
    """Rows 1 to 22: bytes that are no image, half an image, or too much of one."""
    yield raw(1, "no-bytes", b"", "400 empty_body")
    yield raw(1, "no-bytes-of-a-jpeg", b"", "400 empty_body", JPEG)
    yield from each_form(2, "magic-only", b"\xff\xd8\xff", INVALID_IMAGE, JPEG)
    yield from each_form(2, "magic-only-png", b"\x89PNG\r\n\x1a\n", INVALID_IMAGE)
    yield from each_form(2, "one-byte", b"\xff", "415 422", JPEG)
    yield from each_form(3, "random-bytes", RANDOM, UNSUPPORTED, JPEG)
    yield from each_form(4, "text", b"This is no image at all, really.", UNSUPPORTED)
    yield from each_form(4, "html", b"<!doctype html><script>alert(1)</script>", UNSUPPORTED)
    yield from each_form(4, "svg", SVG, UNSUPPORTED)
    yield raw(4, "svg-declared", SVG, UNSUPPORTED, "image/svg+xml")
    yield from each_form(5, "half-a-jpeg", PHOTO[: len(PHOTO) // 2], INVALID_IMAGE, JPEG)
    yield from each_form(5, "jpeg-but-for-the-end", PHOTO[: len(PHOTO) * 99 // 100], INVALID_IMAGE, JPEG)
    for name, png in damaged_pngs().items():
        yield raw(6, name, png, INVALID_IMAGE)
    for name, bomb in {"bomb": BOMB, "bomb-of-short-sides": bodies.png_of_zeros(16_000, 16_000)}.items():
        yield from each_form(9, name, bomb, TOO_LARGE_AN_IMAGE, cpu_seconds=0.25)
    yield raw(13, "long-strip", bodies.encoded(Image.new("L", (20_000, 2))), TOO_LARGE_AN_IMAGE)
    yield raw(13, "high-strip", bodies.encoded(Image.new("L", (2, 20_000))), TOO_LARGE_AN_IMAGE)
    yield raw(15, "gif", GIF, UNSUPPORTED, "image/gif")
    yield raw(15, "gif-as-png", GIF, UNSUPPORTED)
    yield parts(15, "gif-multipart", [image_part(GIF, media_type="image/gif")], UNSUPPORTED)
    yield text(15, "gif-json", json_body([GIF]), UNSUPPORTED)
    yield raw(22, "png-as-jpeg", PICTURE, MISMATCH, JPEG)
    yield raw(22, "jpeg-as-webp", PHOTO, MISMATCH, WEBP)
    yield parts(22, "png-as-jpeg-multipart", [image_part(PICTURE, media_type=JPEG)], MISMATCH)


def damaged_pngs() -> dict[str, bytes]:
    header, data, end = (PICTURE.index(name) for name in (b"IHDR", b"IDAT", b"IEND"))

    def with_header(width: int, height: int, depth: int, color: int) -> bytes:
        fields = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
        return PICTURE[: header - 4] + bodies.png_chunk(b"IHDR", fields) + PICTURE[header + 21 :]

    flipped = bytearray(PICTURE)
    flipped[data + 200] ^= 0xFF
    short = bodies.png_chunk(b"IDAT", zlib.compress(bytes(100)))
    return {
        "truncated": PICTURE[: len(PICTURE) // 2],
        "without-iend": PICTURE[: end - 4],
        "damaged-data": bytes(flipped),
        "bad-crc-of-ihdr": PICTURE[: header + 17] + bytes(4) + PICTURE[header + 21 :],
        "size-zero": with_header(0, 48, 8, 2),
        "impossible-depth": with_header(64, 48, 7, 2),
        "impossible-color-type": with_header(64, 48, 8, 5),
        "size-that-does-not-fit-the-data": PICTURE[: data - 4] + short + PICTURE[end - 4 :],
    }


def types_and_sizes() -> Iterator[Case]:
    """Rows 25 to 38: what the headers say, and how many bytes there are."""
    for name, media_type in {
        "no-content-type": None,
        "text-plain": "text/plain",
        "any-image": "image/*",
        "octet-stream": "application/octet-stream",
        "empty-content-type": "",
        "slash": "/",
    }.items():
        yield raw(25, name, PICTURE, UNSUPPORTED, media_type)
    yield raw(25, "two-content-types", PICTURE, UNSUPPORTED, PNG, headers=[("Content-Type", JPEG)])
    yield raw(25, "nul-in-content-type", PICTURE, "400 415", "image/png; charset=\0", unlogged=True)

    def over() -> bytes:
        return padded_photo(20 * MIB + 1)

    def over_as_part() -> bytes:
        return multipart([image_part(padded_photo(20 * MIB))])

    def over_as_json() -> bytes:
        return b" " * (28 * MIB + 1)

    for name, body, media_type in (
        ("over-the-limit", over, JPEG),
        ("over-the-limit-multipart", over_as_part, MULTIPART),
        ("over-the-limit-json", over_as_json, JSON),
    ):
        yield Case(27, name, body, TOO_MANY_BYTES, media_type)
        in_chunks = partial(_chunked_later, body)
        yield Case(28, f"{name}-in-chunks", in_chunks, TOO_MANY_BYTES, media_type, headers=IN_CHUNKS)
    for coding in ("gzip", "deflate", "br", "gzip, gzip", "nonsense"):
        headers = [("Content-Encoding", coding)]
        yield raw(38, f"{coding}-raw", gzip.compress(PICTURE), UNSUPPORTED, headers=headers)
        yield text(38, f"{coding}-json", gzip.compress(JSON_OF_SEVEN), UNSUPPORTED, headers=headers)
    bomb = gzip.compress(bytes(20 * MIB))
    yield raw(38, "gzip-bomb", bomb, UNSUPPORTED, headers=[("Content-Encoding", "gzip")])


def _chunked_later(body: Callable[[], bytes]) -> bytes:
    return chunked(body())


def forms() -> Iterator[Case]:
    """Rows 39 to 47: multipart, and the form that it is not."""
    for name, boundary, declared in (
        ("no-boundary", BOUNDARY, "multipart/form-data"),
        ("empty-boundary", "", "multipart/form-data; boundary="),
        ("quoted-empty-boundary", "", 'multipart/form-data; boundary=""'),
        ("boundary-of-71", "b" * 71, f"multipart/form-data; boundary={'b' * 71}"),
        ("boundary-of-257", "b" * 257, f"multipart/form-data; boundary={'b' * 257}"),
        ("other-boundary", BOUNDARY, "multipart/form-data; boundary=other"),
    ):
        yield raw(39, name, multipart([image_part(SEVEN)], boundary), MALFORMED, declared)
    one = [image_part(SEVEN)]
    whole = multipart(one)
    yield parts(40, "no-part-named-image", [form("name=picture", b"x")], INVALID_PARAMETER)
    yield parts(40, "part-without-a-name", [("Content-Disposition: form-data", SEVEN)], INVALID_PARAMETER)
    yield parts(40, "no-part", CLOSE[2:], INVALID_PARAMETER)
    yield parts(40, "same-text-field-twice", [*one, *[form("name=top_k", b"3")] * 2], INVALID_PARAMETER)
    yield parts(40, "seventeen-parts", one * 17, TOO_MANY_BYTES)
    yield parts(41, "1001-parts", one * 1001, "400 413", cpu_seconds=0.1)
    yield parts(41, "10000-empty-fields", [form("name=x", b"")] * 10_000, "400 413", cpu_seconds=0.1)
    # A part of another name is refused at any size (row 40), so that 422 is right for the first of these, too.
    yield parts(42, "text-field-of-2-mb", [form("name=text", b"x" * 2_000_000)], "400 413 422")
    yield parts(42, "text-of-2-mb-named-image", [form("name=image", b"x" * 2_000_000)], "413 415")
    line_breaks = b"\r\n" * 5_000_000
    yield parts(43, "10-mb-of-line-breaks-before", line_breaks + whole, "400 413", cpu_seconds=0.1)
    yield parts(43, "10-mb-of-line-breaks-after", whole + line_breaks, "400 413", cpu_seconds=0.1)
    yield parts(43, "10-mb-of-returns-after", whole + b"\r" * 10_000_000, "400 413", cpu_seconds=0.1)
    yield parts(44, "part-header-of-1-mb", [(f"X-Long: {'a' * 1_000_000}", b"x")], MALFORMED)
    yield parts(44, "10000-part-headers", [("\r\n".join(["X-A: b"] * 10_000), b"x")], MALFORMED)
    yield parts(44, "part-that-does-not-end", whole[: -len(CLOSE) - 20], MALFORMED)
    yield parts(44, "without-the-last-two-dashes", whole.removesuffix(b"--\r\n"), MALFORMED)
    yield parts(44, "headers-that-do-not-end", OPEN + b"Content-Disposition: form-data; name=image", MALFORMED)
    yield parts(44, "header-without-a-colon", [("nonsense", SEVEN)], MALFORMED)
    for name, parameter in {
        "up": 'filename="../../etc/CANARY"',
        "absolute": 'filename="/etc/CANARY"',
        "windows": 'filename="C:\\CANARY"',
        "1-kib": f'filename="{"CANARY" * 170}"',
        "10-kib": f'filename="{"CANARY" * 1700}"',
        "right-to-left": 'filename="CANARY\u202egnp.exe"',
        "nul": 'filename="CANARY\0.png"',
        "extended": "filename*=UTF-8''..%2f..%2fetc%2fCANARY",
        "extended-broken": "filename*=nonsense''%ff%00CANARY",
        "twice": 'filename="CANARY"; filename="CANARY2"',
    }.items():
        expect = "200 400 422" if name in ("10-kib", "nul") else "200 422"
        yield parts(
            45, f"file-name-{name}", [form(f"name=image; {parameter}", SEVEN)], expect, path=DIGITS, canary="CANARY"
        )
    in_base64 = form("name=image", SOUND.encode(), "Content-Transfer-Encoding: base64")
    yield parts(46, "base64-transfer-encoding", [in_base64], "400 415", path=DIGITS)
    inner = b"--in\r\n\r\n" + SEVEN + b"\r\n--in--\r\n"
    nested_form = form("name=image", inner, "Content-Type: multipart/mixed; boundary=in")
    yield parts(46, "nested-multipart", [nested_form], "400 415", path=DIGITS)
    million = b"a=b&" * 1_000_000
    yield raw(47, "form-of-a-million-fields", million, UNSUPPORTED, "application/x-www-form-urlencoded")


def documents() -> Iterator[Case]:
    """Rows 48 to 55: JSON, base64, and what they may hold."""
    yield text(48, "invalid-utf-8", b'{"images": [{"b64": "\xff\xfe"}]}', MALFORMED)
    yield text(48, "byte-order-mark", codecs.BOM_UTF8 + JSON_OF_SEVEN, MALFORMED)
    yield text(48, "utf-16", JSON_OF_SEVEN.decode().encode("utf-16"), MALFORMED)
    yield text(48, "empty", b"", "400 empty_body")
    yield text(48, "a-mb-of-spaces", b" " * MIB, MALFORMED)
    for name, body in {
        "null": b"null",
        "list": b"[]",
        "string": b'"x"',
        "number": b"5",
        "empty-object": b"{}",
        "images-null": b'{"images": null}',
        "images-object": b'{"images": {}}',
        "image-string": b'{"images": ["x"]}',
        "b64-number": one_image(b64=5),
        "b64-null": one_image(b64=None),
        "name-number": one_image(b64=SOUND, name=5),
        "name-of-256": one_image(b64=SOUND, name="n" * 256),
    }.items():
        yield text(48, f"json-{name}", body, INVALID_PARAMETER)
    for name, body in {
        "trailing-garbage": JSON_OF_SEVEN + b"x",
        "two-documents": JSON_OF_SEVEN * 2,
        "duplicate-key": JSON_OF_SEVEN[:-1] + b', "images": []}',
        "duplicate-key-inside": b'{"images": [{"b64": "", "b64": "' + SOUND.encode() + b'"}]}',
        "comment": b"/* hello */" + JSON_OF_SEVEN,
        "single-quotes": JSON_OF_SEVEN.replace(b'"', b"'"),
        "trailing-comma": JSON_OF_SEVEN[:-1] + b",}",
        "nan": JSON_OF_SEVEN[:-1] + b', "threshold": NaN}',
        "infinity": JSON_OF_SEVEN[:-1] + b', "threshold": -Infinity}',
    }.items():
        yield text(49, name, body, MALFORMED)
    for depth in (33, 34, 1000, 100_000):
        yield text(50, f"depth-{depth}", nested(depth), MALFORMED)
    yield text(50, "depth-1000-of-objects", b'{"images":' * 1000 + b"1" + b"}" * 1000, MALFORMED)
    for name, body in {
        "lone-surrogate-in-base64": b'{"images": [{"b64": "\\ud800"}]}',
        "nul-in-base64": b'{"images": [{"b64": "\\u0000"}]}',
        "lone-surrogate-in-a-name": one_image(b64=SOUND, name="\ud800"),
        "lone-surrogate-in-a-key": b'{"images": [], "\\udfff": 1}',
    }.items():
        yield text(52, name, body, "400 422")
    for name, base64 in {
        "bad-alphabet": "!" + SOUND[1:],
        "no-padding": bodies.base64_text(b"\xff\xd8\xff\xe0").rstrip("="),
        "too-much-padding": SOUND + "====",
        "padding-inside": "AA==" + SOUND,
        "line-breaks": SOUND[:40] + "\n" + SOUND[40:],
        "space-before": " " + SOUND,
        "url-safe": bodies.base64_text(b"\xff\xd8\xff\xfb\xef\xbe").replace("/", "_").replace("+", "-"),
        "data-uri": "data:image/png;base64," + SOUND,
        "one-character": "A",
        "nothing": "",
    }.items():
        yield text(53, name, one_image(b64=base64), MALFORMED)
    yield text(53, "more-than-the-limit", one_image(b64="/9j/" * (20 * MIB // 3 + 10)), TOO_MANY_BYTES)
    for name in ("url", "image_url"):
        yield text(54, f"{name}-alone", one_image(**{name: "http://169.254.169.254/latest"}), INVALID_PARAMETER)
        yield text(54, f"{name}-beside", one_image(b64=SOUND, **{name: "file:///etc/passwd"}), INVALID_PARAMETER)
        yield text(54, f"{name}-outside", sound_and(**{name: "gopher://127.0.0.1:25/"}), INVALID_PARAMETER)
        yield parts(54, f"{name}-multipart", [form(f"name={name}", b"http://127.0.0.1/")], INVALID_PARAMETER)
    yield text(55, "no-images", b'{"images": []}', INVALID_PARAMETER)
    yield text(55, "seventeen-images", json_body([SEVEN] * 17), TOO_MANY_BYTES)


def parameters_and_paths() -> Iterator[Case]:
    """Rows 56 to 60: the query, and whom the request is for."""
    for value in ("0", "-1", "1.5", "true", "null", "1000000000", str(2**63)):
        path = f"{DIGITS}?top_k={value}"
        yield raw(56, f"top-k-{value}-raw", SEVEN, INVALID_PARAMETER, path=path)
        yield parts(56, f"top-k-{value}-multipart", [image_part(SEVEN)], INVALID_PARAMETER, path=path)
    for number in (0, -1, 1.5, "5", True, None, 10**9, 2**63):
        yield text(56, f"top-k-{number!r}-json", sound_and(top_k=number), INVALID_PARAMETER)
    yield raw(57, "more-than-there-are-classes", SEVEN, "200", path=f"{DIGITS}?top_k=100")
    yield raw(58, "parameter-twice", SEVEN, "200 422", path=f"{DIGITS}?top_k=1&top_k=2")
    yield raw(58, "unknown-parameter", SEVEN, "200 422", path=f"{DIGITS}?tip_k=1")
    many = "&".join(f"p{index}=1" for index in range(10_000))
    yield raw(58, "10000-parameters", SEVEN, "400 414", path=f"{DIGITS}?{many}", unlogged=True)
    for version in ("7", "0", "01", "-1", "1.0", "latest", "1" + "0" * 30):
        path = f"/api/v1/models/digits/versions/{version}/classify"
        yield raw(59, f"version-{version}", SEVEN, "404 model_not_found", path=path)
    yield raw(59, "unknown-model", SEVEN, "404 model_not_found", path="/api/v1/models/nothing/classify")
    names = ".. ../etc a/../b /etc/passwd digits/ %20.. %2e%2e%2f %252e a%00 con %09 %0a %0d %0c %0b %ff DIGITS"
    more = "digits%20 .digits _other digits%2f..%2fdigits recipes %F0%9F%98%80 digits;x *"
    for name in [*names.split(), *more.split(), "m" * 256]:
        yield raw(60, f"model-{name}", SEVEN, "400 404", path=f"/api/v1/models/{name}/classify")


BOMB = bodies.png_of_zeros(60_000, 60_000)
CASES = [*images(), *types_and_sizes(), *forms(), *documents(), *parameters_and_paths()]


@pytest.mark.parametrize("case", [pytest.param(case, id=case.id) for case in CASES])
def test_bad_body_is_refused_and_costs_nothing_else(
    server: ServerProcess, assert_serves_on: Callable[[], None], case: Case
) -> None:
    request_id = uuid.uuid4().hex
    body = case.body if isinstance(case.body, bytes) else case.body()
    typed = [] if case.media_type is None else [("Content-Type", case.media_type)]
    request = raw_http.request("POST", case.path, [("X-Request-ID", request_id), *typed, *case.headers], body)
    process = psutil.Process(server.pid)
    before = process.cpu_times()

    answer = raw_http.exchange(server.port, request)

    after = process.cpu_times()
    spent = after.user + after.system - before.user - before.system
    assert answer.status_code in case.statuses, answer.content[:500]
    if answer.status_code == 200:
        assert answer.json()["request_id"] == request_id
    elif answer.headers["content-type"] == "application/problem+json":
        problem = problem_of(answer, answer.status_code, case.code)
        assert problem["request_id"] == request_id
        assert len(answer.content) < 4096
    else:
        assert case.unlogged
        assert answer.closes
        assert_gives_nothing_away(answer)
    assert_serves_on()
    assert spent <= case.cpu_seconds + 0.05, f"{spent:.2f} s of CPU"
    if not case.unlogged:
        line = server.wait_for_line(lambda line: line.get("request_id") == request_id, f"the line of {request_id}")
        assert [line] == [entry for entry in server.lines if entry.get("request_id") == request_id]
        assert (line["event"], line["status"]) == ("request", answer.status_code)
        assert len(json.dumps(line)) < 2048
        assert case.canary is None or case.canary not in json.dumps(line)


def test_every_row_of_the_matrix_that_concerns_images_over_http_is_here() -> None:
    """The rows of pixels, of HTTP framing, of tensors and of admin calls are other suites' business."""
    wanted = {*range(1, 7), 9, 13, 15, 22, 25, 27, 28, *range(38, 51), *range(53, 61)}
    assert wanted <= {case.row for case in CASES}


@pytest.mark.parametrize("size", [20 * MIB - 1, 20 * MIB])
def test_row27_body_up_to_the_limit_is_taken(server: ServerProcess, size: int) -> None:
    """The trailer behind a JPEG's end is ignored, so that padding makes the size."""
    request = raw_http.request("POST", IMAGENET, {"Content-Type": JPEG}, padded_photo(size))
    assert raw_http.exchange(server.port, request).json()["results"][0]["image"]["width"] == 64


def test_row28_upload_without_an_end_is_cut_off_near_the_limit(
    server: ServerProcess, assert_serves_on: Callable[[], None]
) -> None:
    piece = b"%x\r\n%s\r\n" % (MIB // 4, bytes(MIB // 4))
    head = raw_http.request("POST", IMAGENET, {"Content-Type": JPEG, "Transfer-Encoding": "chunked"})
    with socket.create_connection(("127.0.0.1", server.port), 10.0) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MIB)
        connection.sendall(head)
        sent = 0
        while sent < 60 * MIB and not _answered(connection):
            connection.sendall(piece)
            sent += MIB // 4
        answer = raw_http.read_answer(connection)
    problem_of(answer, 413, "payload_too_large")
    assert sent <= 32 * MIB  # the limit, and what lies in the buffers of two sockets
    assert_serves_on()


def test_row27_declared_length_over_the_limit_is_refused_before_the_body(server: ServerProcess) -> None:
    head = raw_http.request("POST", IMAGENET, {"Content-Type": JPEG, "Content-Length": str(20 * MIB + 1)})
    problem_of(raw_http.exchange(server.port, head), 413, "payload_too_large")


def test_row37_over_limit_length_is_refused_without_asking_for_the_body(server: ServerProcess) -> None:
    headers = {"Content-Type": JPEG, "Content-Length": str(20 * MIB + 1), "Expect": "100-continue"}
    problem_of(raw_http.exchange(server.port, raw_http.request("POST", IMAGENET, headers)), 413)


def test_row47_form_is_refused_before_its_body(server: ServerProcess) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": "4000000"}
    problem_of(raw_http.exchange(server.port, raw_http.request("POST", IMAGENET, headers)), 415)


def test_row09_bombs_are_never_unpacked(server: ServerProcess) -> None:
    request = raw_http.request("POST", IMAGENET, {"Content-Type": PNG}, BOMB)
    process = psutil.Process(server.pid)
    raw_http.exchange(server.port, request)
    before = process.memory_info().rss
    for _ in range(20):
        assert raw_http.exchange(server.port, request).status_code == 422
    assert process.memory_info().rss - before < 16 * MIB


def test_row45_names_of_files_come_back_cut_to_255_characters(server: ServerProcess) -> None:
    part = image_part(SEVEN, file_name="n" * 1000)
    request = raw_http.request("POST", DIGITS, {"Content-Type": MULTIPART}, multipart([part]))
    assert raw_http.exchange(server.port, request).json()["results"][0]["name"] == "n" * 255


def test_row50_deepest_allowed_nesting_is_read(server: ServerProcess) -> None:
    request = raw_http.request("POST", DIGITS, {"Content-Type": JSON}, nested(32))
    problem_of(raw_http.exchange(server.port, request), 422, "invalid_parameter")


def test_row54_addresses_in_a_request_are_never_visited(server: ServerProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0)
        address = f"http://127.0.0.1:{trap.getsockname()[1]}/cat.jpg"
        for value in (
            {"images": [{"url": address}]},
            {"images": [{"b64": address}]},
            {"images": [], "image_url": address},
        ):
            request = raw_http.request("POST", DIGITS, {"Content-Type": JSON}, json.dumps(value).encode())
            assert raw_http.exchange(server.port, request).status_code in (400, 422)
        with pytest.raises(BlockingIOError):
            trap.accept()


def test_row60_names_of_models_make_no_series(server: ServerProcess, scrape: Callable[[], Scrape]) -> None:
    def ask(name: str) -> None:
        path = f"/api/v1/models/{name}/classify"
        assert (
            raw_http.exchange(server.port, raw_http.request("POST", path, {"Content-Type": PNG}, SEVEN)).status_code
            == 404
        )

    ask("unknown-0")
    before = scrape()
    for index in range(1, 100):
        ask(f"unknown-{index}")
    after = scrape()
    assert after.samples.keys() == before.samples.keys()
    other = {"model": "_other", "version": "_other", "protocol": "native", "outcome": "client_error"}
    assert after.grown(before, "fovea_requests_total", **other) == 99


def test_row58_parameters_that_nobody_knows_do_not_change_the_answer(server: ServerProcess) -> None:
    plain, more = (
        raw_http.exchange(
            server.port, raw_http.request("POST", f"{DIGITS}{query}", {"Content-Type": PNG}, SEVEN)
        ).json()
        for query in ("", "?utm_source=x&top-k=1")
    )
    assert plain["results"] == more["results"]


def test_bad_bodies_leave_neither_files_nor_open_descriptors_behind(
    server: ServerProcess, assert_serves_on: Callable[[], None]
) -> None:
    process = psutil.Process(server.pid)
    assert_serves_on()
    before = process.num_fds()
    for case in (case for case in CASES if isinstance(case.body, bytes) and len(case.body) < MIB):
        typed = [] if case.media_type is None else [("Content-Type", case.media_type)]
        raw_http.exchange(server.port, raw_http.request("POST", case.path, [*typed, *case.headers], case.body))
    poll(lambda: process.num_fds() <= before + 2, "file descriptors are back")
    assert not [file for file in process.open_files() if "/tmp" in file.path and "pytest" not in file.path]


def _answered(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        return bool(connection.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False
    finally:
        connection.settimeout(10.0)
