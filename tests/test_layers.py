"""The layers hold: each part of fdpool imports only what the table allows."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import fdpool

PACKAGE = Path(fdpool.__file__).parent

# What each part may import of fdpool, at run time and for types alike. The picture is in docs/design.md.
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "kernel": {"errors"},
    "protocol": {"errors"},
    "transport": {"kernel", "protocol", "errors"},
    "stream": {"kernel", "protocol", "errors"},
    "connection": {"stream", "kernel", "protocol", "errors"},
    "connection_listener": {"connection", "kernel", "errors"},
    "identifying_transport": {"transport", "kernel", "protocol", "errors"},
    "channel": {"identifying_transport", "transport", "kernel", "protocol", "errors"},
    "doorbell": {"kernel", "errors"},
    "background": set(),
    "ancillary": {"kernel", "errors"},
    "memory": {"kernel", "protocol", "errors"},
    "process": {"channel", "transport", "kernel", "protocol", "errors"},
    "joblib": {"executor", "process"},
    "executor": {"executor_thread", "pool", "process", "memory"},
    "executor_thread": {"caller", "calls", "pool", "memory", "errors"},
    "caller": {"calls", "dispatch", "warehouse", "memory", "protocol"},
    "calls": {"process", "memory", "protocol", "transport", "errors"},
    "events": set(),
    "statistics": {"warehouse"},
    "seat": {"calls", "process"},
    "delivery": {"calls", "seat", "warehouse", "memory", "protocol"},
    "dispatch": {
        "calls",
        "delivery",
        "events",
        "seat",
        "statistics",
        "warehouse",
        "process",
        "memory",
        "transport",
        "kernel",
        "protocol",
        "errors",
    },
    "streaming": {"caller", "calls", "dispatch", "warehouse", "memory", "transport", "protocol", "errors"},
    "progress": set(),
    "sources": set(),
    "mapping": {"background", "progress", "sources", "memory"},
    "life": {"process", "transport", "kernel", "protocol", "errors"},
    "supervisor": {"life", "process", "protocol", "errors"},
    "warehouse": {"memory", "process", "transport", "kernel", "protocol", "errors"},
    "pool": {
        "streaming",
        "caller",
        "calls",
        "dispatch",
        "events",
        "mapping",
        "statistics",
        "warehouse",
        "background",
        "supervisor",
        "life",
        "process",
        "memory",
        "transport",
        "kernel",
        "protocol",
        "errors",
    },
    "doctor": {"kernel", "errors"},
    "cli": {"doctor"},
    "__main__": {"cli"},
    "worker": {"transport", "memory", "kernel", "protocol", "errors"},
}
# Parts that a worker loads, where trio may only be imported inside a function.
WITHOUT_TRIO = {"errors", "kernel", "protocol", "transport", "memory", "worker"}
# Loaded by the first async call.
WITH_TRIO_AFTER_ALL = {
    PACKAGE / "worker/async_server.py",
    PACKAGE / "worker/async_stream.py",
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_names(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_from_the_layers_below(path: Path) -> None:
    part = part_of(path)
    used = {name.split(".")[1] for name in imported_names(ast.parse(path.read_text())) if name.startswith("fdpool.")}
    assert used - {part} <= ALLOWED[part]


@pytest.mark.parametrize(
    "path",
    [path for path in modules() if part_of(path) in WITHOUT_TRIO and path not in WITH_TRIO_AFTER_ALL],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_what_a_worker_loads_imports_no_trio_at_the_top(path: Path) -> None:
    top = ast.Module([node for node in ast.parse(path.read_text()).body if not is_for_types(node)], [])
    statements: list[ast.stmt] = [node for node in top.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not any(name.split(".")[0] == "trio" for name in imported_names(ast.Module(statements, [])))


def is_for_types(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def test_the_table_has_no_way_round() -> None:
    def below(part: str, path: tuple[str, ...] = ()) -> None:
        assert part not in path, f"a cycle: {path}"
        for lower in ALLOWED[part]:
            below(lower, (*path, part))

    for part in ALLOWED:
        below(part)
