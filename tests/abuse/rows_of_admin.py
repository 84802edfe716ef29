"""Rows 76 to 79: who may change the server, by which path, and with what."""

import json
from collections.abc import Iterator

from tests.abuse.cases import Case
from tests.protocol.tensors.conftest import TOKEN

LOAD = "/v2/repository/models/both/load"
RIGHT = ("Authorization", f"Bearer {TOKEN}")


def who() -> Iterator[Case]:
    for name, headers in {
        "no-token": [],
        "wrong-token": [("Authorization", "Bearer wrong")],
        "token-and-more": [("Authorization", f"Bearer {TOKEN}x")],
        "token-but-its-end": [("Authorization", f"Bearer {TOKEN[:-1]}")],
        "basic": [("Authorization", f"Basic {TOKEN}")],
        "no-scheme": [("Authorization", TOKEN)],
        "bearer-twice": [RIGHT, RIGHT],
        "bearer-bearer": [("Authorization", f"Bearer Bearer {TOKEN}")],
        "empty": [("Authorization", "Bearer ")],
        "other-header": [("X-Authorization", f"Bearer {TOKEN}"), ("Cookie", f"token={TOKEN}")],
    }.items():
        yield Case(76, name, b"", "401", None, LOAD, headers, canary=TOKEN[:-1])
    large = [("Authorization", "Bearer " + "t" * 65_536)]
    yield Case(76, "token-of-64-kib", b"", "431", None, LOAD, large, cpu_seconds=0.05)
    for query in (f"token={TOKEN}", f"access_token={TOKEN}", f"authorization=Bearer%20{TOKEN}"):
        yield Case(76, f"query-{query.split('=')[0]}", b"", "401", None, f"{LOAD}?{query}", canary=TOKEN)
    yield Case(76, "with-a-body", b"x" * 1_000_000, "401", None, LOAD)


def by_which_path() -> Iterator[Case]:
    """Without a token, by every way to write the path; and with one, by those that are no path of ours."""
    for path in (
        "//v2/repository/models/both/load",
        "/v2//repository/models/both/load",
        "/v2/repository/models/both/load/",
        "/v2/repository/models/both/load%2f",
        "/V2/repository/models/both/load",
        "/v2/repository/models/both/LOAD",
        "/v2/../v2/repository/models/both/load",
        "/v2/%2e%2e/v2/repository/models/both/load",
        "/v2/repository/models/both/../both/load",
        "/v2/repository/models/both%2fload",
        "/v2/repository/models/both/load;x",
        "/v2/repository/models/both/load%00",
        "/v2/repository/models/both/load%20",
        "/livez/../v2/repository/models/both/load",
        "/static/../v2/repository/models/both/load",
        "/static/..%2f..%2fv2/repository/models/both/load",
        "/v2/repository/models/both/%6coad",
        "/v2/repository/%6dodels/both/unload",
    ):
        yield Case(77, path, b"", "401 404 405", None, path)
    for name, headers in {
        "method-override": [("X-HTTP-Method-Override", "GET")],
        "original-url": [("X-Original-URL", "/livez"), ("X-Rewrite-URL", "/livez")],
        "forwarded": [("X-Forwarded-For", "127.0.0.1"), ("X-Forwarded-Prefix", "/livez")],
        "host": [("X-Forwarded-Host", "localhost")],
    }.items():
        yield Case(77, name, b"", "401", None, LOAD, headers)


def with_what() -> Iterator[Case]:
    for name, parameters in {
        "config": {"config": "{}"},
        "file": {"file:1/model.onnx": "AAAA"},
        "remote": {"uri": "s3://elsewhere/model"},
        "path": {"path": "/etc"},
        "unknown": {"x": 1},
    }.items():
        content = json.dumps({"parameters": parameters}).encode()
        yield Case(78, name, content, "400 403", None, LOAD, [RIGHT])
    for name in ("..", "%2e%2e%2fetc", "%2fetc%2fpasswd", ".", "_hidden", "a%00b", "x" * 300):
        path = f"/v2/repository/models/{name}/load"
        yield Case(78, f"model-{name[:20]}", b"", "400 403 404", None, path, [RIGHT])
    for name, content, expect in (
        ("250000-deep", b"[" * 250_000, "400 413"),
        ("64-mib", lambda: b" " * (64 * 2**20), "413"),
        ("deep", b"[" * 20_000, "400"),
        ("a-list", b"[]", "400"),
        ("a-text", b'"x"', "400"),
        ("parameters-no-object", b'{"parameters": 5}', "400"),
        ("no-json", b"load it", "400"),
        ("not-utf-8", b'{"\xff": 1}', "400"),
        ("twice", b'{"parameters": {}, "parameters": {}}', "400"),
    ):
        yield Case(79, name, content, expect, None, LOAD, [RIGHT])


CASES = [*who(), *by_which_path(), *with_what()]
