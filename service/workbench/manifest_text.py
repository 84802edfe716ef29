"""Changing single keys of a model.toml while its comments and its order stay as people wrote them."""

import re
import tomllib
from collections.abc import Mapping

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
    end = next((at for at in range(start + 1, len(lines)) if lines[at].lstrip().startswith("[")), len(lines))
    for at in range(start + 1, end):
        if re.match(rf"\s*{key}\s*=", lines[at]):
            lines[at] = line
            return
    while end > start + 1 and not lines[end - 1].strip():
        end -= 1
    lines.insert(end, line)
