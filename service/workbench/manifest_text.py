"""Changing single keys of a model.toml while its comments and its order stay as people wrote them."""

import re
import tomllib
from collections.abc import Mapping
from contextlib import suppress

Value = int | float | str
_TABLE = re.compile(r"\s*\[([^\[\]]+)\]\s*(#.*)?$")


def with_keys(text: str, tables: Mapping[str, Mapping[str, Value]]) -> str:
    """`text` with these keys set: in their place where they stand already, else at the end of their table."""
    lines = text.splitlines()
    for table, keys in tables.items():
        for key, value in keys.items():
            _set(lines, table, key, f"{key} = {_written(value)}")
    result = "\n".join(lines) + "\n"
    tomllib.loads(result)  # a file that people wrote in a way not foreseen here is left alone, loudly
    return result


def _written(value: Value) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _set(lines: list[str], table: str, key: str, line: str) -> None:
    start = next(
        (at for at, text in enumerate(lines) if (found := _TABLE.match(text)) and found[1].strip() == table), -1
    )
    if start < 0:
        lines += ["", f"[{table}]", line] if lines else [f"[{table}]", line]
        return
    at = end = start + 1
    while at < len(lines) and not lines[at].lstrip().startswith("["):
        after = _after_statement(lines, at)
        if re.match(rf"\s*{key}\s*=", lines[at]):
            lines[at:after] = [line]
            return
        if lines[at].strip():
            end = after
        at = after
    lines.insert(end, line)


def _after_statement(lines: list[str], start: int) -> int:
    """Where what begins at `start` has ended: a value may go over several lines."""
    for after in range(start + 1, len(lines) + 1):
        with suppress(tomllib.TOMLDecodeError):
            tomllib.loads("\n".join(lines[start:after]))
            return after
    return start + 1
