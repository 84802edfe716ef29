"""Rows 1 to 6, 9, 13, 15, 22, 25 to 28, 38 to 60: bodies and parameters of `/api/v1`."""

import codecs
import gzip
import zlib
from collections.abc import Iterator
from functools import partial

from PIL import Image

from tests.abuse.cases import (
    CLOSE,
    DIGITS,
    IN_CHUNKS,
    INVALID_IMAGE,
    INVALID_PARAMETER,
    JSON,
    JSON_OF_SEVEN,
    MALFORMED,
    MIB,
    MISMATCH,
    OPEN,
    PHOTO,
    PICTURE,
    RANDOM,
    SEVEN,
    SOUND,
    TOO_LARGE_AN_IMAGE,
    TOO_MANY_BYTES,
    UNSUPPORTED,
    Case,
    chunked_later,
    each_form,
    form,
    nested,
    one_image,
    padded_photo,
    parts,
    png_with_header,
    raw,
    sound_and,
    text,
)
from tests.support import bodies
from tests.support.bodies import BOUNDARY, JPEG, MULTIPART, PNG, WEBP, image_part, json_body, multipart

BOMB = bodies.png_of_zeros(60_000, 60_000)
GIF = bodies.encoded(bodies.noise(20, 20), "GIF")
SVG = b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'


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

    flipped = bytearray(PICTURE)
    flipped[data + 200] ^= 0xFF
    short = bodies.png_chunk(b"IDAT", zlib.compress(bytes(100)))
    return {
        "truncated": PICTURE[: len(PICTURE) // 2],
        "without-iend": PICTURE[: end - 4],
        "damaged-data": bytes(flipped),
        "bad-crc-of-ihdr": PICTURE[: header + 17] + bytes(4) + PICTURE[header + 21 :],
        "size-zero": png_with_header(PICTURE, 0, 48, 8, 2),
        "impossible-depth": png_with_header(PICTURE, 64, 48, 7, 2),
        "impossible-color-type": png_with_header(PICTURE, 64, 48, 8, 5),
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
    yield raw(25, "nul-in-content-type", PICTURE, "400 415", "image/png; charset=\0")

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
        in_chunks = partial(chunked_later, body)
        yield Case(28, f"{name}-in-chunks", in_chunks, TOO_MANY_BYTES, media_type, headers=IN_CHUNKS)
    for coding in ("gzip", "deflate", "br", "gzip, gzip", "nonsense"):
        headers = [("Content-Encoding", coding)]
        yield raw(38, f"{coding}-raw", gzip.compress(PICTURE), UNSUPPORTED, headers=headers)
        yield text(38, f"{coding}-json", gzip.compress(JSON_OF_SEVEN), UNSUPPORTED, headers=headers)
    bomb = gzip.compress(bytes(20 * MIB))
    yield raw(38, "gzip-bomb", bomb, UNSUPPORTED, headers=[("Content-Encoding", "gzip")])


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
    yield raw(58, "10000-parameters", SEVEN, "400 414", path=f"{DIGITS}?{many}")
    for version in ("7", "0", "01", "-1", "1.0", "latest", "1" + "0" * 30):
        path = f"/api/v1/models/digits/versions/{version}/classify"
        yield raw(59, f"version-{version}", SEVEN, "404 model_not_found", path=path)
    yield raw(59, "unknown-model", SEVEN, "404 model_not_found", path="/api/v1/models/nothing/classify")
    names = ".. ../etc a/../b /etc/passwd digits/ %20.. %2e%2e%2f %252e a%00 con %09 %0a %0d %0c %0b %ff DIGITS"
    more = "digits%20 .digits _other digits%2f..%2fdigits recipes %F0%9F%98%80 digits;x *"
    for name in [*names.split(), *more.split(), "m" * 256]:
        yield raw(60, f"model-{name}", SEVEN, "400 404", path=f"/api/v1/models/{name}/classify")


CASES = [*images(), *types_and_sizes(), *forms(), *documents(), *parameters_and_paths()]
