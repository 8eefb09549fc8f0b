"""Imports point one way and never in a circle; read from the sources, nothing is imported."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Folders of the repository, and the names under which their files import each other.
FOLDERS = {"sa_compile": "sa_compile", "passes": "sa_compile.passes", "kernels": "sa_compile.kernels"}
# From below to above: each imports what stands before it. What no line names is product.
BELOW = (
    ("kernels", ("sa_compile.kernels",)),
    (
        "methods",
        (
            *("sa_compile.methods", "sa_compile.config", "sa_compile.profile", "sa_compile.fingerprint"),
            *("sa_compile.prefill", "sa_compile.late"),
        ),
    ),
    ("passes", ("sa_compile.passes",)),
)
LAB = "sa_compile.lab"  # what measures: no part of a model that runs
ORDER = (*(name for name, _ in BELOW), "product", "lab")


def sources(root: Path) -> dict[str, Path]:
    """The files of the three folders by the names of their modules."""
    found = {}
    for folder, package in FOLDERS.items():
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = file
    return found


def statements(tree: ast.AST, when_loaded: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Import statements; with ``when_loaded`` those alone that run when the file is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif when_loaded and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        elif when_loaded and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from (found for part in node.orelse for found in statements(part, when_loaded))
        else:
            yield from statements(node, when_loaded)


def imported(module: str, file: Path, when_loaded: bool) -> list[str]:
    """Full names of what a file imports: ``from .a import b`` in a file of p is ``p.a.b``."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    names = []
    for node in statements(ast.parse(file.read_text()), when_loaded):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
            continue
        base = package[: len(package) - node.level + 1] if node.level else []
        base = [*base, *(node.module.split(".") if node.module else ())]
        names += [".".join((*base, alias.name)) for alias in node.names]
    heads = {folder: package for folder, package in FOLDERS.items() if folder != package}
    return [heads.get(head, head) + dot + rest for head, dot, rest in (name.partition(".") for name in names)]


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def layer(module: str) -> int:
    """Where a module, or what is imported of it, stands: an index into ``ORDER``."""
    if inside(module, LAB):
        return ORDER.index("lab")
    owners = (name for name, packages in BELOW if any(inside(module, package) for package in packages))
    return ORDER.index(next(owners, "product"))


def wrong_ways(root: Path) -> list[str]:
    """Imports of what stands above, also those in functions and for types: 'module: name'."""
    return [
        f"{module}: {name}"
        for module, file in sources(root).items()
        if module != "sa_compile.cli"  # the command line alone starts what measures
        for name in imported(module, file, when_loaded=False)
        if inside(name, "sa_compile") and name != "sa_compile" and layer(name) > layer(module)
    ]


def folder(module: str, files: dict[str, Path]) -> str:
    """The folder of a module; of a file right under passes/ or sa_compile/, the file. ``lab/`` has one a
    subfolder."""
    package = module if files[module].name == "__init__.py" else module.rpartition(".")[0]
    if package in FOLDERS.values():
        return module
    return ".".join(package.split(".")[:3])


def circle_of_folders(root: Path) -> list[str]:
    """Folders of passes/ and sa_compile/ that import each other, first and last the same; none: [].

    A command line (``cli.py``) may start anything and is left out.
    """
    files, graph = sources(root), dict[str, set[str]]()
    for module, file in files.items():
        for name in imported(module, file, when_loaded=False):
            parts = name.split(".")
            above = (".".join(parts[:length]) for length in range(len(parts), 1, -1))
            found = next((x for x in above if x in files), None)
            command = module.endswith(".cli")
            if found is not None and not command and not inside(found, "sa_compile.kernels"):
                graph.setdefault(folder(module, files), set()).add(folder(found, files))
    return _first_circle({name: others - {name} for name, others in graph.items()})


def circle(root: Path) -> list[str]:
    """Modules that import each other when they are loaded, first and last the same; none: []."""
    files = sources(root)
    graph: dict[str, set[str]] = {}
    for module, file in files.items():
        loaded = graph.setdefault(module, set())
        for name in imported(module, file, when_loaded=True):
            # What the name is found in, if it is no module itself, and every package on the way to it.
            parts = name.split(".")
            above = [".".join(parts[:length]) for length in range(1, len(parts) + 1)]
            modules = [x for x in above if x in files]
            loaded.update(x for x in modules[:-1] if not inside(module, x))
            loaded.update(x for x in modules[-1:] if x != module)
    return _first_circle(graph)


def _first_circle(graph: dict[str, set[str]]) -> list[str]:
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def test_imports_point_from_the_lab_down_to_the_kernels():
    assert all(package in sources(ROOT) for _, packages in BELOW for package in packages)
    assert {layer(module) for module in sources(ROOT)} == set(range(len(ORDER)))
    assert wrong_ways(ROOT) == []


def test_no_folders_import_each_other_in_a_circle():
    assert circle_of_folders(ROOT) == []


def test_no_files_import_each_other_in_a_circle():
    assert len(sources(ROOT)) > 100
    assert circle(ROOT) == []


@pytest.mark.parametrize(
    "path, text",
    [
        ("kernels/a.py", "from sa_compile.passes import pipeline"),
        ("kernels/a.py", "from ..config import SampleAttentionConfig"),
        ("kernels/op/__init__.py", "def f():\n    from ... import passes"),
        ("kernels/a.py", "import passes.site"),
        ("passes/a.py", "from sa_compile.lab import bench"),
        ("passes/a.py", "from sa_compile.report import Report"),
        ("sa_compile/methods/a.py", "from sa_compile.passes.site import AttentionSite"),
        ("sa_compile/late/a.py", "def f():\n    from sa_compile import backend"),
        ("sa_compile/report.py", "from sa_compile.lab.eval import run"),
        ("passes/mask/a.py", "if TYPE_CHECKING:\n    from sa_compile.lab.eval.rules import Rule"),
    ],
)
def test_an_import_of_the_wrong_way_is_found(tmp_path, path, text):
    _write(tmp_path, {path: text})
    assert len(wrong_ways(tmp_path)) == 1


@pytest.mark.parametrize(
    "files, is_circle",
    [
        ({"passes/a.py": "from .b import x", "passes/b.py": "from sa_compile.passes import a"}, True),
        ({"kernels/a.py": "from .op.b import x", "kernels/op/__init__.py": "from .. import a"}, True),
        ({"passes/a.py": "from sa_compile.b import x", "sa_compile/b.py": "from .passes.a import y"}, True),
        ({"passes/a.py": "from .b import x", "passes/b.py": "def f():\n    from .a import y"}, False),
        (
            {"passes/a.py": "from .b import x", "passes/b.py": "if TYPE_CHECKING:\n    from .a import y"},
            False,
        ),
        ({"kernels/op/__init__.py": "from . import b", "kernels/op/b.py": "from ..c import x"}, False),
    ],
)
def test_circles_are_found_where_files_load_each_other(tmp_path, files, is_circle):
    _write(tmp_path, {path.split("/")[0] + "/__init__.py": "" for path in files} | files)
    for path in ("kernels/op/b.py", "kernels/c.py"):
        if not (tmp_path / path).exists():
            _write(tmp_path, {path: ""})
    assert bool(circle(tmp_path)) == is_circle


def test_a_circle_of_folders_is_found(tmp_path):
    files = {
        "passes/graph/__init__.py": "",
        "passes/mask/__init__.py": "",
        "passes/graph/a.py": "def f():\n    from ..mask import b",
        "passes/mask/b.py": "",
        "passes/mask/c.py": "from ..graph.a import f",
    }
    _write(tmp_path, files)
    assert circle(tmp_path) == []
    assert set(circle_of_folders(tmp_path)) == {"sa_compile.passes.graph", "sa_compile.passes.mask"}


def _write(root: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
