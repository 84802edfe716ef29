"""Tokens and what they open: decisions on paths and headers, and files that change."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from service.config import AdminSettings, AuthSettings, Settings
from service.errors import AdminDisabled, ConfigurationError, Forbidden, Unauthorized
from service.metrics import Metrics
from service.rest.credentials import Access, Credentials, Tokens, access_to
from tests.support.clock import FakeClock

ADMIN, INFERENCE = "admin-0123456789abcdef", "caller-0123456789abcdef"
LOAD, CLASSIFY = "/v2/repository/models/x/load", "/api/v1/models/x/classify"


def credentials(admin: str | None = ADMIN, inference: tuple[str, ...] = (INFERENCE,)) -> Credentials:
    settings = Settings(
        admin=AdminSettings(token=SecretStr(admin) if admin else None),
        auth=AuthSettings(tokens=tuple(map(SecretStr, inference))),
    )
    return Credentials(settings, Metrics("test"))


def asked(path: str, *authorization: str, query: bytes = b"") -> dict[str, Any]:
    headers = [(b"authorization", value.encode()) for value in authorization]
    return {"type": "http", "path": path, "root_path": "", "headers": headers, "query_string": query}


@pytest.mark.parametrize(
    ("path", "access"),
    [
        ("/livez", Access.PUBLIC),
        ("/", Access.PUBLIC),
        ("/static/style.css", Access.PUBLIC),
        ("/v2/health/ready", Access.PUBLIC),
        (LOAD, Access.ADMIN),
        ("/v2/repository/models/x/unload", Access.ADMIN),
        ("/api/v1/models/x/rollout", Access.ADMIN),
        ("/v2/repository/index", Access.INFERENCE),
        (CLASSIFY, Access.INFERENCE),
        ("/static", Access.INFERENCE),
        ("/livez/", Access.INFERENCE),
        ("/LIVEZ", Access.INFERENCE),
        ("//livez", Access.INFERENCE),
        ("/nowhere", Access.INFERENCE),
    ],
)
def test_a_path_asks_for(path: str, access: Access) -> None:
    assert access_to(path) is access


@pytest.mark.parametrize("path", ["/livez", "/metrics", "/docs", "/"])
def test_what_is_public_needs_nothing(path: str) -> None:
    credentials().check(asked(path))


@pytest.mark.parametrize("path", [CLASSIFY, LOAD])
@pytest.mark.parametrize(
    "authorization",
    [
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        ["Bearer wrong"],
        [f"Basic {ADMIN}"],
        [ADMIN],
        [f"Bearer {ADMIN}x"],
        [f"Bearer {ADMIN[:-1]}"],
        [f"Bearer {ADMIN}", f"Bearer {ADMIN}"],
        [f"Bearer {ADMIN}, Bearer {ADMIN}"],
        [f"Bearer Bearer {ADMIN}"],
        ["Bearer " + "x" * 65_536],
        ["Bearer \u00e4"],
    ],
)
def test_anything_but_one_right_token_is_unauthorized(path: str, authorization: list[str]) -> None:
    with pytest.raises(Unauthorized):
        credentials().check(asked(path, *authorization))


def test_a_token_in_the_query_is_none() -> None:
    with pytest.raises(Unauthorized):
        credentials().check(asked(LOAD, query=f"token={ADMIN}&access_token={ADMIN}".encode()))


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_a_right_token_opens_its_paths(scheme: str) -> None:
    credentials().check(asked(CLASSIFY, f"{scheme} {INFERENCE}"))
    credentials().check(asked(LOAD, f"{scheme} {ADMIN}"))
    credentials().check(asked(CLASSIFY, f"{scheme} {ADMIN}"))


def test_a_token_for_inference_changes_nothing() -> None:
    with pytest.raises(Forbidden):
        credentials().check(asked(LOAD, f"Bearer {INFERENCE}"))


def test_admin_calls_are_off_without_a_token() -> None:
    with pytest.raises(AdminDisabled):
        credentials(admin=None).check(asked(LOAD, f"Bearer {INFERENCE}"))


def test_inference_is_open_where_no_token_is_configured() -> None:
    one = credentials(inference=())
    assert not one.are_wanted_for_inference
    one.check(asked(CLASSIFY))
    with pytest.raises(Unauthorized):
        one.check(asked(LOAD))


@pytest.mark.parametrize("position", [0, 1, 2])
def test_each_of_several_tokens_is_right(position: int) -> None:
    tokens = [f"{index}-0123456789abcdef" for index in range(3)]
    credentials(inference=tuple(tokens)).check(asked(CLASSIFY, f"Bearer {tokens[position]}"))


def test_refusals_are_counted() -> None:
    one = credentials()
    with pytest.raises(Unauthorized):
        one.check(asked(LOAD))
    count = one._metrics.registry.get_sample_value("fovea_auth_failures_total", {"reason": "unauthorized"})
    assert count == 1


class TestFile:
    def test_tokens_are_lines_but_for_comments_and_blanks(self, tmp_path: Path) -> None:
        file = tmp_path / "tokens"
        file.write_text("# team a\none-0123456789abcdef\n\n  two-0123456789abcdef  \r\n")
        tokens = Tokens("auth.tokens", [], file)
        assert tokens.hold(b"one-0123456789abcdef")
        assert tokens.hold(b"two-0123456789abcdef")
        assert not tokens.hold(b"# team a")
        assert not tokens.hold(b"")

    def test_a_changed_file_counts_after_a_second(self, tmp_path: Path) -> None:
        clock, file = FakeClock(), tmp_path / "tokens"
        file.write_text("old-0123456789abcdef\n")
        tokens = Tokens("auth.tokens", [SecretStr("fixed-0123456789abcdef")], file, clock)
        file.write_text("newer-0123456789abcdef\n")
        assert tokens.hold(b"old-0123456789abcdef")
        clock.advance(1.0)
        assert not tokens.hold(b"old-0123456789abcdef")
        assert tokens.hold(b"newer-0123456789abcdef")
        assert tokens.hold(b"fixed-0123456789abcdef")

    def test_a_file_that_vanishes_leaves_what_it_said(self, tmp_path: Path) -> None:
        clock, file = FakeClock(), tmp_path / "tokens"
        file.write_text("old-0123456789abcdef\n")
        tokens = Tokens("auth.tokens", [], file, clock)
        file.unlink()
        clock.advance(5.0)
        assert tokens.hold(b"old-0123456789abcdef")
        file.write_text("back-0123456789abcdef\n")
        clock.advance(5.0)
        assert tokens.hold(b"back-0123456789abcdef")

    def test_an_empty_file_opens_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "tokens").write_text("# nobody yet\n")
        one = Tokens("auth.tokens", [], tmp_path / "tokens")
        assert one.are_wanted
        assert not one.hold(b"")

    def test_a_file_that_is_not_there_stops_the_start(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"auth\.tokens_file: .*nowhere: No such file"):
            Tokens("auth.tokens", [], tmp_path / "nowhere")


def test_tokens_are_not_kept(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"{INFERENCE}\n")
    tokens = Tokens("auth.tokens", [SecretStr(ADMIN)], tmp_path / "tokens")
    assert INFERENCE not in repr(vars(tokens))
    assert ADMIN not in repr(vars(tokens))


def test_a_weak_token_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    Tokens("admin.token", [SecretStr("hunter2")], None)
    assert [record.message for record in caplog.records] == ["weak_token"]
    assert "hunter2" not in caplog.text
