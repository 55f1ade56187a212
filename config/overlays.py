"""Overlays: parameter files that hold only what differs from params.yaml, and their merging into it.

An overlay names the file that it changes, relative to itself: ``base: ../params.yaml``. That may be an overlay too. Its
mappings are merged key by key where the schema has blocks; lists, ranges and other values replace the base's.
So a preset is the project's params.yaml, with the user's changes to it, at another scale.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from config.base import Block
from config.errors import ParamsError

BASE, PRESET = "base", "preset"
# Floats outside are written with an exponent.
SMALL, LARGE = 1.0e-3, 1.0e6


def read_yaml(path: Path) -> Any:
    """Parse a parameter file without its base.

    Raises:
        ParamsError: if the file is missing or is no YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file; expected the project's params.yaml or a preset") from None
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "no UTF-8"
        raise ParamsError(f"{path}: cannot be read ({said}); expected a parameter file") from None
    except yaml.YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None


def layers_of(path: Path) -> list[tuple[Path, Any]]:
    """Path and content of a parameter file and its bases, without ``base``; the complete file (params.yaml) first.

    Raises:
        ParamsError: if one cannot be read, builds on itself, or the complete file already has a preset written in.
    """
    found: list[tuple[Path, Any]] = []
    while True:
        raw = read_yaml(path)
        if not isinstance(raw, dict) or BASE not in raw:
            break
        found.append((path, {key: value for key, value in raw.items() if key != BASE}))
        path = _base_of(path, raw[BASE])
        if any(path.resolve() == other.resolve() for other, _ in found):
            raise ParamsError(f"{found[0][0]}: base: {path} builds on itself; expected params.yaml in the end")
    if found and isinstance(raw, dict) and raw.get(PRESET) is not None:
        if found[0][0].resolve() == (path.parent / str(raw[PRESET])).resolve():
            raise ParamsError(
                f"{found[0][0]}: {path} has it written in already; expected {path.name} itself, "
                f"which needs no --params, or the default, which git checkout {path.name} gives"
            )
        raise ParamsError(
            f"{found[0][0]}: {path} has {raw[PRESET]} written in, and one preset is no base of another; "
            f"expected the default, which git checkout {path.name} gives"
        )
    return [(path, raw), *reversed(found)]


def _base_of(path: Path, base: Any) -> Path:
    if not isinstance(base, str) or not base:
        raise ParamsError(f"{path}: base: got {base!r}, expected the file that it changes, such as ../params.yaml")
    found = Path(os.path.normpath(path.parent / base))
    if not found.is_file():
        raise ParamsError(f"{path}: base: {found}: no such file; expected the project's params.yaml or a preset")
    return found


def merged(base: Any, overlay: Any, block: type[BaseModel]) -> Any:
    """Merge an overlay into the content of a parameter file.

    Args:
        base: nested values.
        overlay: nested values, only those that differ.
        block: the schema's class of both; its nested blocks are merged, all else is replaced.
    """
    if not (isinstance(base, Mapping) and isinstance(overlay, Mapping)):
        return overlay
    result = dict(base)
    for key, value in overlay.items():
        inner = _block_of(block, key)
        result[key] = merged(base[key], value, inner) if inner and key in base else value
    return result


def _block_of(block: type[BaseModel], key: str) -> type[BaseModel] | None:
    field = block.model_fields.get(key)
    kind = field.annotation if field else None
    return kind if isinstance(kind, type) and issubclass(kind, Block) else None


def written_into(text: str, changes: Mapping[str, Any], block: type[BaseModel]) -> str:
    """The text of a parameter file with nested values changed; comments, columns and the order of keys stay.

    Numbers, words and switches are replaced where they stand, and nothing else is touched. Where a list, a mapping or
    a new key is among the changes, ruamel.yaml writes the file anew.

    Args:
        text: of a parameter file.
        changes: nested values, only those that differ.
        block: the schema's class of the file.
    """
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    scalars: list[tuple[yaml.ScalarNode, str]] = []
    larger = _sorted_out(root, changes, block, scalars)
    for node, new in sorted(scalars, key=lambda item: -item[0].start_mark.index):
        start, end = node.start_mark.index, node.end_mark.index
        rest = text[end:]
        room = len(rest) - len(rest.lstrip(" "))
        if rest[room : room + 1] == "#":
            rest = " " * max(1, room + end - start - len(new)) + rest[room:]
        text = text[:start] + new + rest
    return _written_anew(text, larger, block) if larger else text


def _sorted_out(
    node: Any, changes: Mapping[str, Any], block: type[BaseModel], scalars: list[tuple[yaml.ScalarNode, str]]
) -> dict[str, Any]:
    """Add scalars that stand in the file and differ to ``scalars``; returns the other changes, nested."""
    children = {key.value: value for key, value in node.value} if isinstance(node, yaml.MappingNode) else {}
    larger: dict[str, Any] = {}
    for key, value in changes.items():
        child, inner = children.get(key), _block_of(block, key)
        if inner and isinstance(child, yaml.MappingNode):
            if more := _sorted_out(child, value, inner, scalars):
                larger[key] = more
        elif isinstance(child, yaml.ScalarNode) and not isinstance(value, Mapping | list):
            new = yaml_scalar(value)
            if yaml.safe_load(new) != yaml.safe_load(yaml.serialize(child)):
                scalars.append((child, new))
        elif child is None or yaml.safe_load(yaml.serialize(child)) != value:
            larger[key] = value
    return larger


def _written_anew(text: str, changes: Mapping[str, Any], block: type[BaseModel]) -> str:
    editor = YAML()
    editor.width, editor.preserve_quotes = 4096, True
    editor.indent(mapping=2, sequence=4, offset=2)
    for kind, tag in ((type(None), "null"), (float, "float")):
        editor.representer.add_representer(
            kind, lambda into, value, tag=tag: into.represent_scalar(f"tag:yaml.org,2002:{tag}", yaml_scalar(value))
        )
    content = editor.load(text)
    _set(content, changes, block)
    out = io.StringIO()
    editor.dump(content, out)
    return out.getvalue()


def _set(content: Any, changes: Mapping[str, Any], block: type[BaseModel]) -> None:
    for key, value in changes.items():
        inner = _block_of(block, key)
        if inner and key in content:
            _set(content[key], value, inner)
        else:
            content[key] = _in_a_line(value)


def _in_a_line(value: Any, inner: bool = False) -> Any:
    """A list, or a mapping inside another, in YAML's flow style: ``[1, 2]``, ``{low: 0.1, high: 1.0}``."""
    if isinstance(value, Mapping):
        found: Any = CommentedMap({key: _in_a_line(item, inner=True) for key, item in value.items()})
    elif isinstance(value, list):
        found, inner = CommentedSeq(value), True
    else:
        return value
    if inner or not value:
        found.fa.set_flow_style()
    return found


def yaml_scalar(value: Any) -> str:
    """Write a scalar so that YAML 1.1 and 1.2 read the same: a float has a point and all of its digits."""
    if isinstance(value, float):
        if value != 0.0 and not SMALL <= abs(value) < LARGE:
            sign, digits, exponent = Decimal(repr(value)).normalize().as_tuple()
            first, *rest = map(str, digits)
            return f"{'-' * sign}{first}.{''.join(rest) or 0}e{exponent + len(rest):+d}"
        return repr(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
