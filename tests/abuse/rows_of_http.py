"""Rows 26, 29 to 36, 80, 82 to 84: HTTP itself, as it is not meant to be spoken.

What breaks the framing ends the connection, so that nothing behind it is ever taken for a request.
"""

from collections.abc import Iterator
from typing import Any

from tests.abuse.cases import (
    DIGITS,
    INFER,
    NOT_HTTP,
    SEVEN,
    Case,
    bytes_of,
    raw,
)
from tests.support import bodies
from tests.support.bodies import MULTIPART, PNG
from tests.support.raw_http import RawAnswer

SMUGGLED = b"GET /nowhere-smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
MALFORMED_ANYHOW = "400 closed"


def head(*fields: str | bytes, target: str = DIGITS, method: str = "POST", host: str = "Host: a") -> bytes:
    """The head of a request for the golden model, with these fields as they are."""
    lines = [f"{method} {target} HTTP/1.1", *([host] if host else []), *fields]
    return b"\r\n".join(line if isinstance(line, bytes) else line.encode("latin-1") for line in [*lines, "", ""])


def post(*fields: str | bytes, body: bytes = b"") -> bytes:
    return head(f"Content-Type: {PNG}", *fields) + body


def content_types() -> Iterator[Case]:
    for name, parameters in {
        "a": ";a=" * 5000,
        "quotes": ";" + '"' * 15_000,
        "backslashes": ';a="' + "\\" * 15_000,
        "boundary": "; boundary=" + "x" * 15_000,
    }.items():
        yield raw(26, f"long-content-type-{name}", SEVEN, "400 415", MULTIPART + parameters, cpu_seconds=0.05)
    yield raw(26, "content-type-of-64-kib", SEVEN, "431", MULTIPART + ";a=" * 22_000, cpu_seconds=0.05)


def framing() -> Iterator[Case]:
    for name, lengths in {
        "negative": ["-1"],
        "plus": ["+5"],
        "hexadecimal": ["0x5"],
        "no-number": ["five"],
        "empty": [""],
        "two-different": ["5", "6"],
        "two-equal": ["5", "5"],
        "list": ["5, 6"],
        "list-of-equal": ["5, 5"],
        "overflow": [str(2**64)],
        "inner-space": ["1 5"],
        "underscore": ["1_0"],
    }.items():
        fields = [f"Content-Length: {length}" for length in lengths]
        yield bytes_of(29, f"length-{name}", post(*fields, body=b"hello") + SMUGGLED, NOT_HTTP)
    # A length that is too small leaves the rest of the body where the next request should begin.
    yield bytes_of(29, "length-too-small", post("Content-Length: 5", body=SEVEN), "415 422 400")

    good = b"1\r\nx\r\n0\r\n\r\n"
    for name, fields in {
        "length-and-chunked": ["Content-Length: 5", "Transfer-Encoding: chunked"],
        "chunked-and-length": ["Transfer-Encoding: chunked", "Content-Length: 5"],
        "xchunked": ["Transfer-Encoding: xchunked"],
        "chunked-twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
        "chunked-chunked": ["Transfer-Encoding: chunked, chunked"],
        "chunked-not-last": ["Transfer-Encoding: chunked, gzip"],
        "identity": ["Transfer-Encoding: identity"],
        "gzip": ["Transfer-Encoding: gzip"],
        "space-before-colon": ["Transfer-Encoding : chunked"],
        "vertical-tab": ["Transfer-Encoding:\x0bchunked"],
    }.items():
        yield bytes_of(30, f"coding-{name}", post(*fields, body=good) + SMUGGLED, "400 501")
    for name, body in {
        "negative-size": b"-1\r\nx\r\n0\r\n\r\n",
        "plus-size": b"+1\r\nx\r\n0\r\n\r\n",
        "0x-size": b"0x1\r\nx\r\n0\r\n\r\n",
        "size-of-2-64": b"10000000000000000\r\nx\r\n0\r\n\r\n",
        "no-size": b"\r\nx\r\n0\r\n\r\n",
        "no-hexadecimal-size": b"z\r\nx\r\n0\r\n\r\n",
        "data-too-long": b"1\r\nxx\r\n0\r\n\r\n",
        "bare-newline-after-size": b"1\nx\r\n0\r\n\r\n",
        "bare-newline-after-data": b"1\r\nx\n0\r\n\r\n",
        "bare-return": b"1\rx\r\n0\r\n\r\n",
        "garbage-for-a-terminator": b"1\r\nx--0\r\n\r\n",
        "newline-in-extension": b"1;a\nb\r\nx\r\n0\r\n\r\n",
        "nul-in-extension": b"1;\0\r\nx\r\n0\r\n\r\n",
    }.items():
        yield bytes_of(30, f"chunk-{name}", post("Transfer-Encoding: chunked", body=body) + SMUGGLED, "400")
    flood = post("Transfer-Encoding: chunked", body=b"1\r\nx\r\n" * 1_000_000)
    yield bytes_of(31, "1000000-chunks-of-a-byte", flood, "400 413 closed", cpu_seconds=0.25)
    extensions = post("Transfer-Encoding: chunked", body=(b"1;" + b"e" * 8000 + b"\r\nx\r\n") * 200)
    yield bytes_of(31, "200-long-extensions", extensions, "400 413 closed", cpu_seconds=0.25)


def heads() -> Iterator[Case]:
    for name, whole, expect in (
        ("200-fields", head(*["X-A: b"] * 200), "431"),
        ("field-of-17-kib", head("X-A: " + "b" * 17_408), "431"),
        ("name-of-17-kib", head("X" * 17_408 + ": b"), "431"),
        ("cookie-of-64-kib", head("Cookie: " + "c" * 65_536), "431"),
        ("no-host", head(host=""), NOT_HTTP),
        ("two-hosts", head("Host: b"), NOT_HTTP),
        ("empty-host", head(host="Host:"), "400 415"),
        ("host-with-a-path", head(host="Host: a/b?c"), NOT_HTTP),
        ("host-with-a-user", head(host="Host: user@a"), NOT_HTTP),
        ("host-with-spaces", head(host="Host: a b"), NOT_HTTP),
    ):
        yield bytes_of(32, name, whole, expect, cpu_seconds=0.05)
    for name, field in {
        "newline-in-name": b"X-\nA: b",
        "nul-in-name": b"X-\0A: b",
        "8-bit-name": b"X-\xe4: b",
        "space-in-name": b"X A: b",
        "no-name": b": b",
        "no-colon": b"nonsense",
        "folded": b"X-A: b\r\n c",
        "folded-by-tab": b"X-A: b\r\n\tc",
        "nul-in-value": b"X-A: \0b",
        "return-in-value": b"X-A: b\rX-C: d",
    }.items():
        yield bytes_of(33, name, head(field) + SMUGGLED, NOT_HTTP)
    for name, value in {
        "newline": b"a\nX-Injected: 1",
        "8-bit": b"caf\xe9",
        "escape": b"\x1b[31mred",
        "quotes": b'"}{"',
        "long": b"i" * 99,
    }.items():
        whole = head(b"X-Request-ID: " + value, "Content-Length: 0")
        yield bytes_of(33, f"request-id-{name}", whole, "400 415", canary="Injected")


def targets() -> Iterator[Case]:
    def get(target: str | bytes) -> bytes:
        raw = target if isinstance(target, bytes) else target.encode()
        return b"GET " + raw + b" HTTP/1.1\r\nHost: a\r\n\r\n"

    for name, target, expect in (
        ("8-kib", "/" + "a" * 8192, "414"),
        ("8-kib-of-query", "/livez?" + "a" * 8192, "414"),
        ("just-over-4-kib", "/" + "a" * 4096, "414"),
        ("two-slashes", "//livez", "404"),
        ("dots", "/%2e%2e/livez", "404"),
        ("dots-plain", "/../../etc/passwd", "404"),
        ("static-dots", "/static/..%2f..%2fapp.py", "404"),
        ("nul", "/livez%00", "404"),
        ("newline", "/livez%0d%0aX-A:b", "404"),
        ("invalid-utf-8", "/%ff%fe", "404"),
        ("half-a-percent", "/livez%2", "404"),
        ("bytes", b"/\xff\xfe", "400"),
        ("absolute", "http://elsewhere/livez", "400"),
        ("absolute-of-another-scheme", "file:///etc/passwd", "400"),
        ("authority", "elsewhere:80", "400"),
        ("asterisk", "*", "400"),
        ("nothing", "", "400"),
        ("backslash", "\\livez", "400"),
        ("fragment", "/livez#x", "200 400 404"),
    ):
        yield bytes_of(34, name, get(target), expect)
    for method in ("TRACE", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
        yield Case(35, method.lower(), b"", "405", None, DIGITS, method=method)
        yield Case(35, f"{method.lower()}-v2", b"", "405", None, INFER, method=method)
    for method in ("CONNECT", "FOO", "get", "G\0T", "POST" * 5000):
        yield bytes_of(35, f"method-{method[:8]!r}", head(method=method), "400 405 431")
    connect = b"CONNECT elsewhere:80 HTTP/1.1\r\nHost: elsewhere:80\r\n\r\n"
    yield bytes_of(35, "connect-to-elsewhere", connect + SMUGGLED, NOT_HTTP)


def versions() -> Iterator[Case]:
    for name, whole in {
        "http-0.9": b"GET /livez\r\n\r\n",
        "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "http-9.9": b"GET /livez HTTP/9.9\r\nHost: a\r\n\r\n",
        "http-1.99": b"GET /livez HTTP/1.99\r\nHost: a\r\n\r\n",
        "lower-case": b"GET /livez http/1.1\r\nHost: a\r\n\r\n",
        "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "nuls": bytes(1000),
        "ssh": b"SSH-2.0-OpenSSH_9.2\r\n",
    }.items():
        yield bytes_of(36, name, whole, MALFORMED_ANYHOW)
    for protocol in ("websocket", "h2c"):
        fields = ["Connection: Upgrade", f"Upgrade: {protocol}", "Sec-WebSocket-Key: x", "HTTP2-Settings: x"]
        whole = head(*fields, target="/livez", method="GET") + b"\0\0\0\x04\0\0\0\0\0"
        yield bytes_of(36, f"upgrade-to-{protocol}", whole, "200")
        whole = post(*fields, f"Content-Length: {len(SEVEN)}", body=SEVEN)
        yield bytes_of(36, f"upgrade-to-{protocol}-with-a-body", whole, "200", check=_json)


def odds_and_ends() -> Iterator[Case]:
    for origin in ("http://example.org", "null", "http://127.0.0.1"):
        asked = [("Origin", origin), ("Access-Control-Request-Method", "POST")]
        yield Case(80, f"preflight-{origin}", b"", "400 405", None, DIGITS, asked, method="OPTIONS", check=_no_cors)
        yield Case(80, f"get-{origin}", b"", "200", None, "/livez", asked, method="GET", check=_no_cors)
    yield Case(82, "get-with-a-body", b"ignored", "200", None, "/livez", method="GET")
    chunks = [("Transfer-Encoding", "chunked")]
    yield Case(82, "get-with-chunks", b"1\r\nx\r\n0\r\n\r\n", "200", None, "/livez", chunks, method="GET")
    yield bytes_of(82, "post-without-length", post(), "400")
    yield raw(83, "nasty-labels", _RED, "200", path="/api/v1/models/nasty/classify", check=_escaped)
    for name, fields in {
        "if-match": [("If-Match", '"x"')],
        "if-none-match": [("If-None-Match", "*")],
        "if-modified-since": [("If-Modified-Since", "Sat, 29 Oct 1994 19:43:31 GMT")],
        "range": [("Range", "bytes=0-1")],
        "accept-html": [("Accept", "text/html")],
        "accept-image": [("Accept", "image/*")],
        "accept-nothing": [("Accept", "*/*;q=0")],
    }.items():
        yield raw(84, name, SEVEN, "200", path=DIGITS, headers=fields, check=_json)


_RED = bodies.plain_color("red")


def _no_cors(answer: RawAnswer) -> None:
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def _json(answer: RawAnswer) -> None:
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["results"]


def _escaped(answer: RawAnswer) -> None:
    _json(answer)
    assert answer.headers["x-content-type-options"] == "nosniff"
    labels: list[Any] = [one["label"] for one in answer.json()["results"][0]["predictions"]]
    assert labels[0] == '<script>alert("red")</script>'
    assert "b" * 10_000 in labels
    assert b"\n" not in answer.content


CASES = [*content_types(), *framing(), *heads(), *targets(), *versions(), *odds_and_ends()]
