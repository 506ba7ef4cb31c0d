"""Imports inside volpatch run one way, heavy optional ones wait, and no room grows too big."""

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from tests.helpers_package import FILES, ROOT, module_name

# What each package may import besides itself. A new package fails until somebody places it here.
MAY = {
    "core": set(),
    "compute": {"core"},
    "storage": {"core"},
    "functions": {"core"},
    "planning": {"core", "compute", "storage", "functions"},
    "sampling": {"core", "compute", "storage", "functions", "planning"},
    "arrays": {"core", "compute", "storage", "functions", "planning"},
    "report": {"core", "compute", "storage", "functions", "planning"},
    "running": {
        *("core", "compute", "storage", "functions", "planning", "sampling", "arrays", "report"),
    },
    "cli": {
        *("core", "compute", "storage", "functions", "planning", "sampling", "arrays", "report"),
        "running",
    },
    "__main__": {"cli"},
}
# Modules of these folders are alternatives to each other, and must not know one another.
SIBLINGS = ("storage.readers", "storage.stores", "running.executors")
MOST_FLOORS = 9
HEAVY = {"torch", "matplotlib", "distributed", "nibabel", "h5py", "pydicom", "scipy"}
ARRAYS = {"numpy", "dask", "zarr", "xarray", "numba"}


@dataclass(frozen=True)
class Import:
    """One imported module (or name of a module), where, and whether it waits for a call."""

    name: str
    line: int
    late: bool


KNOWN = {module_name(file) for file in FILES}


def imports(source: str, module: str, *, package: bool = False) -> list[Import]:
    """All imports of a file, those in functions and under TYPE_CHECKING included."""
    found: list[Import] = []

    def visit(node: ast.AST, late: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = absolute(node, module, package)
            for alias in node.names:
                full = f"{base}.{alias.name}"
                inner = base == "volpatch" or full in KNOWN
                found.append(Import(full if inner else base, node.lineno, late))
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            late = True
        late = late or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, late)

    visit(ast.parse(source), late=False)
    return found


def absolute(node: ast.ImportFrom, module: str, package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + package]
    return ".".join([*base, *([node.module] if node.module else [])])


def imports_of(file: Path) -> list[Import]:
    return imports(file.read_text(), module_name(file), package=file.name == "__init__.py")


def room(module: str) -> str:
    """The package that a module lies in."""
    return module.split(".")[1]


def out_of_order(module: str, found: list[Import]) -> list[str]:
    """What `module` may not import: a room above its own, a sibling, a name of volpatch itself."""
    wrong = []
    for item in found:
        if item.name.split(".")[0] != "volpatch":
            continue
        if item.name not in KNOWN or item.name == "volpatch":
            wrong.append(f"line {item.line}: {item.name} is not a module; name its room")
        elif room(item.name) not in {room(module), *MAY[room(module)]}:
            wrong.append(f"line {item.line}: {room(module)} may not import {item.name}")
    return wrong


def family(module: str) -> tuple[str, str] | None:
    """Folder of alternatives that a module lies in, and its own name there up to a `_`."""
    for folder in SIBLINGS:
        inside = module.removeprefix(f"volpatch.{folder}.")
        if inside != module:
            return folder, inside.split("_")[0]
    return None


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """On which floor each room stands: one above the highest that it imports."""

    @cache
    def floor(name: str) -> int:
        return 1 + max((floor(needs) for needs in graph[name]), default=0)

    return {name: floor(name) for name in graph}


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Modules left when those that import nothing left are taken away, again and again."""
    left = dict(graph)
    while free := [name for name, needs in left.items() if not needs & set(left)]:
        for name in free:
            del left[name]
    return sorted(left)


def test_every_package_has_its_place():
    assert {room(name) for name in KNOWN - {"volpatch"}} == set(MAY)


def test_few_modules_lie_outside_of_a_package():
    assert len([file for file in FILES if file.parent == ROOT]) <= 6


def test_rooms_stand_on_few_floors():
    graph: dict[str, set[str]] = {name: set() for name in MAY}
    for file in FILES:
        if file != ROOT / "__init__.py":
            used = {room(item.name) for item in imports_of(file) if item.name in KNOWN}
            graph[room(module_name(file))] |= used - {room(module_name(file))}
    assert max(floors(graph).values()) <= MOST_FLOORS


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_alternatives_do_not_know_each_other(file):
    mine = family(module_name(file))
    theirs = {family(item.name) for item in imports_of(file)} - {None}
    assert mine is None or theirs <= {mine}


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_room_imports_earlier_rooms_only(file):
    if file != ROOT / "__init__.py":  # it hands out names of every room
        assert out_of_order(module_name(file), imports_of(file)) == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {
        module_name(file): {item.name for item in imports_of(file)} - {module_name(file)}
        for file in FILES
        if file != ROOT / "__init__.py"
    }
    assert circle(graph) == []


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_heavy_optional_packages_are_imported_where_they_are_used(file):
    early = [item for item in imports_of(file) if not item.late]
    assert [item for item in early if item.name.split(".")[0] in HEAVY] == []


@pytest.mark.parametrize("name", ["core/grid", "planning/plan", "planning/pieces"])
def test_integers_need_no_arrays(name):
    file = ROOT / f"{name}.py"
    assert [item for item in imports_of(file) if item.name.split(".")[0] in ARRAYS] == []


@pytest.mark.parametrize("file", FILES, ids=module_name)
def test_a_module_says_what_it_is_and_stays_readable(file):
    source = file.read_text()
    assert ast.get_docstring(ast.parse(source)), "a module begins with its docstring"
    assert source.count("\n") <= 600, "a module this long holds two ideas"


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("from volpatch.planning.job import load", "line 1: functions may not import volpatch.pla"),
        ("def f():\n    import volpatch.cli.demo", "line 2: functions may not import volpatch.cli"),
        ("from ..storage.volume import x", "line 1: functions may not import volpatch.storage.vol"),
        ("from volpatch.cli import main", "line 1: functions may not import volpatch.cli.main"),
        ("from volpatch import __version__", "line 1: volpatch.__version__ is not a module"),
        ("import volpatch", "line 1: volpatch is not a module"),
        ("from volpatch import *", "line 1: volpatch.* is not a module"),
    ],
)
def test_the_order_is_enforced(source, line):
    place = "volpatch.functions.named"
    (wrong,) = out_of_order(place, imports(source, place))
    assert wrong.startswith(line)


def test_the_order_lets_lower_rooms_through():
    source = (
        "from volpatch.core.errors import SettingError\n"
        "from volpatch.functions.registry import get\n"
        "import json"
    )
    place = "volpatch.functions.named"
    assert out_of_order(place, imports(source, place)) == []


def borrowed(source: str) -> list[str]:
    """Test modules that a file imports: what tests share lies in modules of its own."""
    names = [item.name for item in imports(source, "tests.here")]
    return [name for name in names if name.startswith("tests.test_")]


@pytest.mark.parametrize("file", sorted(Path(__file__).parent.glob("*.py")), ids=lambda f: f.stem)
def test_no_test_imports_another(file):
    assert borrowed(file.read_text()) == []


def test_an_import_of_a_test_is_seen():
    assert borrowed("from tests.test_run import store") == ["tests.test_run"]
    assert borrowed("def f():\n    import tests.test_run") == ["tests.test_run"]
    assert borrowed("from tests import strategies") == []


def test_alternatives_are_told_from_parts_of_one():
    assert family("volpatch.storage.readers.tiff_pages") == ("storage.readers", "tiff")
    assert family("volpatch.storage.readers.zarr") == ("storage.readers", "zarr")
    assert family("volpatch.storage.open") is None


def test_floors_are_counted_from_below():
    assert floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == {"a": 3, "b": 2, "c": 1}


def test_a_relative_import_in_a_package_is_its_own():
    (found,) = imports("from .filters import gaussian", "volpatch.functions", package=True)
    assert found.name == "volpatch.functions.filters"


def test_circles_are_seen():
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == ["a", "b", "c", "d"]
    assert circle({"a": {"b", "numpy"}, "b": set()}) == []


def test_imports_that_wait_are_told_from_those_that_do_not():
    source = "if TYPE_CHECKING:\n    import torch\ntry:\n    import scipy\nexcept E: pass"
    assert [(i.name, i.late) for i in imports(source, "m")] == [("torch", True), ("scipy", False)]
