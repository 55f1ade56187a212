"""Figures of the code's structure: rooms, folders, names, dvc.yaml, functions, import contracts.

    python -m benchmarks.structure [ROOT]

ROOT is another checkout, to compare with. Rooms are the folders with Python code at the top level.
tests/test_rooms.py holds today's figures within their bounds.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import subprocess
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
# Folders that are no rooms: tests, benchmarks, documents.
BESIDE = ("tests", "benchmarks", "docs", "notebooks")
NO_CODE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER),
}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Measured:
    """A function's size.

    Attributes:
        name: ``path:function``.
        lines: from its ``def`` to its last line.
        positional: arguments that may be given by position, without ``self`` and ``cls``.
        arguments: number of all named arguments.
    """

    name: str
    lines: int
    positional: int
    arguments: int


def code_files(root: Path) -> list[Path]:
    """Python files of the rooms, as git lists them, relative to ``root``."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=root, capture_output=True, text=True, check=True,
    )  # fmt: skip
    paths = sorted({Path(line) for line in listed.stdout.splitlines()})
    return [path for path in paths if len(path.parts) > 1 and path.parts[0] not in BESIDE and (root / path).is_file()]


def rooms(files: list[Path]) -> list[str]:
    """Folders with code at the top level."""
    return sorted({path.parts[0] for path in files})


def files_by_folder(files: list[Path]) -> Counter[str]:
    """Modules by folder; a folder's ``__init__.py`` counts."""
    return Counter(str(path.parent) for path in files)


def repeating_names(files: list[Path]) -> list[str]:
    """Files whose name repeats a word of a folder above it, or of a folder that its own could be divided into.

    The second kind is a prefix that three and more files of a folder share, such as ``tune_``.
    """
    prefixes = Counter((path.parent, path.stem.split("_")[0]) for path in files)
    found = []
    for path in files:
        words = path.stem.split("_")
        above = {part.removesuffix("s") for part in path.parent.parts}
        shared = len(words) > 1 and prefixes[path.parent, words[0]] > 2
        if above & {word.removesuffix("s") for word in words} or shared:
            found.append(str(path))
    return found


def functions(root: Path, files: list[Path]) -> Iterator[Measured]:
    """Every function and method."""
    for path in files:
        tree = ast.parse((root / path).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, Function):
                positional = [a.arg for a in (*node.args.posonlyargs, *node.args.args) if a.arg not in ("self", "cls")]
                named = len(positional) + len(node.args.kwonlyargs)
                yield Measured(f"{path}:{node.name}", node.end_lineno - node.lineno + 1, len(positional), named)


def arrows(root: Path, files: list[Path]) -> set[tuple[str, str]]:
    """Pairs of different rooms, the first of which imports the second."""
    found = set()
    for path in files:
        text = (root / path).read_text(encoding="utf-8")
        for room in rooms(files):
            if room != path.parts[0] and re.search(rf"^\s*(from|import) {room}\b", text, re.MULTILINE):
                found.add((path.parts[0], room))
    return found


def importers(root: Path, files: list[Path], library: str) -> list[str]:
    """Rooms that import a library."""
    pattern = re.compile(rf"^\s*(from|import) {library}\b", re.MULTILINE)
    return sorted({path.parts[0] for path in files if pattern.search((root / path).read_text(encoding="utf-8"))})


def statement_lines(text: str) -> int:
    """Number of a module's code lines, without docstrings, comments, imports and blank lines."""
    left_out: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out.update(range(node.lineno, node.end_lineno + 1))
        elif isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node) is not None:
            left_out.update(range(body[0].lineno, body[0].end_lineno + 1))
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            found.update(range(token.start[0], token.end[0] + 1))
    return len(found - left_out)


def pipeline_lines(root: Path) -> tuple[int, int]:
    """Number of dependencies in dvc.yaml, and of its lines."""
    text = (root / "dvc.yaml").read_text(encoding="utf-8")
    return sum(len(stage["deps"]) for stage in yaml.safe_load(text)["stages"].values()), text.count("\n")


def main(argv: list[str] | None = None) -> int:
    """Print the figures as a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", nargs="?", type=Path, default=ROOT)
    root = parser.parse_args(argv).root
    files = code_files(root)
    found, pairs = list(functions(root, files)), arrows(root, files)
    (fullest, most), lines = files_by_folder(files).most_common(1)[0], Counter()
    texts = {str(path): (root / path).read_text(encoding="utf-8") for path in files}
    lines.update({path: text.count("\n") for path, text in texts.items()})
    deps, pipeline = pipeline_lines(root)
    longest = max(found, key=lambda f: f.lines)
    widest = max(found, key=lambda f: f.arguments)
    both_ways = sum((b, a) in pairs for a, b in pairs) // 2
    rows = {
        "rooms": len(rooms(files)),
        "files, lines": f"{len(files)}, {lines.total()}",
        "lines of code, without docstrings, comments, imports": sum(map(statement_lines, texts.values())),
        "fullest folder": f"{most} files ({fullest})",
        "files whose name repeats a room": len(repeating_names(files)),
        "files over 300 lines": sum(count > 300 for count in lines.values()),
        "arrows between rooms, of possible ones": f"{len(pairs)} of {len(list(permutations(rooms(files), 2)))}",
        "pairs of rooms that import each other": both_ways,
        "dependencies, lines in dvc.yaml": f"{deps}, {pipeline}",
        "longest function": f"{longest.lines} lines ({longest.name})",
        "functions over 60 lines": sum(f.lines > 60 for f in found),
        "most arguments": f"{widest.arguments} ({widest.name})",
        "functions over 9 arguments, over 5 positional": f"{sum(f.arguments > 9 for f in found)}, "
        f"{sum(f.positional > 5 for f in found)}",
        **{
            f"rooms that import {name}": ", ".join(importers(root, files, name))
            for name in ("mlflow", "optuna", "gradio")
        },
    }
    for name, value in rows.items():
        print(f"| {name} | {value} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
