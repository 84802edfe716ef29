"""`make shape`: the longest functions and the largest files of service/, to be looked at."""

import ast
from pathlib import Path


def main() -> None:
    """Print both lists."""
    functions: list[tuple[int, str]] = []
    files: list[tuple[int, str]] = []
    for path in Path("service").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        files.append((source.count("\n"), str(path)))
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append(
                    ((node.end_lineno or node.lineno) - node.lineno + 1, f"{path}:{node.lineno} {node.name}")
                )
    for title, rows in (("lines in a function", functions), ("lines in a file", files)):
        print(title)
        for length, place in sorted(rows, reverse=True)[:12]:
            print(f"{length:6d}  {place}")


if __name__ == "__main__":
    main()
