"""Names and openings of modules."""

import ast
import sys
from pathlib import Path

import pytest

SERVICE = Path(__file__).parents[2] / "service"
MODULES = sorted(path.relative_to(SERVICE.parent) for path in SERVICE.rglob("*.py"))
VAGUE = frozenset({"util", "utils", "helper", "helpers", "common", "misc", "tools", "shared"})


def test_no_module_or_folder_has_a_name_that_says_nothing() -> None:
    named = {part.removesuffix(".py") for path in MODULES for part in path.parts}
    assert not named & VAGUE


def test_no_module_shadows_the_standard_library() -> None:
    named = {path.stem for path in MODULES if not path.stem.startswith("__")}
    assert not named & sys.stdlib_module_names


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_a_module_opens_with_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse((SERVICE.parent / path).read_text(encoding="utf-8")))


def test_nothing_is_put_off_without_an_issue() -> None:
    for path in MODULES:
        text = (SERVICE.parent / path).read_text(encoding="utf-8")
        assert "FIXME" not in text, path
        assert "XXX" not in text, path
