"""Which of the project's files a module needs, by its imports: what DVC cannot see for itself."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = (
    "stages",
    "experiments",
    "training",
    "evaluation",
    "app",
    "tracking",
    "inference",
    "models",
    "metrics",
    "layers",
    "config",
)


def _file(module: str) -> Path | None:
    path = ROOT / Path(*module.split("."))
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def imported_files(module: str) -> set[str]:
    """Paths of the module and of everything of ours it imports, transitively, packages' __init__ included."""
    found: set[Path] = set()
    open_modules = [module]
    while open_modules:
        name = open_modules.pop()
        path = _file(name)
        if path is None or path in found:
            continue
        found.add(path)
        parts = name.split(".")
        open_modules += [".".join(parts[:i]) for i in range(1, len(parts))]
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            open_modules += [n for n in names if n.split(".")[0] in ROOMS]
    return {str(path.relative_to(ROOT)) for path in found}
