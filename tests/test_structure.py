"""The house keeps its plan: imports go one way, and the library knows nothing of the worker."""

import ast
from collections import defaultdict
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PROJECT = ("infinitetalk", "schemas", "handler", "tools", "benchmarks", "examples", "tests")
Graph = dict[str, set[str]]


def module_name(file: Path) -> str:
    parts = file.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(file): file
    for top in PROJECT
    for file in ([CHECKOUT / f"{top}.py"] if top == "handler" else sorted((CHECKOUT / top).rglob("*.py")))
}


def imports_of(name: str) -> set[str]:
    """Every module that a module imports, anywhere in its text: the project's in full, others by their first name."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{name} has a relative import"
            within = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= within & MODULES.keys()
            if not within <= MODULES.keys():
                found.add(node.module)
    return {module if module in MODULES else module.split(".")[0] for module in found} - {name}


IMPORTS: Graph = {name: imports_of(name) for name in MODULES}


def cycle_in(graph: Graph) -> list[str]:
    """The members of one cycle, in order; empty where there is none."""
    state: dict[str, bool] = {}
    path: list[str] = []

    def visit(node: str) -> list[str]:
        state[node] = True
        path.append(node)
        for other in sorted(graph.get(node, ())):
            if state.get(other):
                return [*path[path.index(other) :], other]
            if other not in state and (found := visit(other)):
                return found
        path.pop()
        state[node] = False
        return []

    return next((found for node in sorted(graph) if node not in state and (found := visit(node))), [])


def wing_of(module: str, depth: int) -> str:
    """The package that a module is in, at most `depth` folders deep; a module beside packages stands for itself.

    The worker is a package of its own: it stands on the library and on the interface. A `__main__` is a program, which
    lies in a package but is not a part of it.
    """
    parts = module.split(".")
    if parts[:2] == ["infinitetalk", "worker"]:
        depth += 1
    if parts[-1] == "__main__" and parts[0] != "tests":
        return module
    is_package = MODULES[module].name == "__init__.py"
    folders = parts if is_package else parts[:-1]
    return ".".join(folders[:depth]) if len(folders) >= depth else module


def test_a_cycle_is_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}}) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    # The library's face names what it shows; the modules import each other, not it.
    product = {name: others for name, others in IMPORTS.items() if name != "infinitetalk"}
    assert cycle_in(product) == []


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_no_packages_import_each_other_in_a_circle(depth: int) -> None:
    wings: Graph = defaultdict(set)
    for name, others in IMPORTS.items():
        if name == "infinitetalk":
            continue
        wing = wing_of(name, depth)
        wings[wing] |= {wing_of(other, depth) for other in others if other in MODULES and other != "infinitetalk"}
        wings[wing].discard(wing)
    assert cycle_in(wings) == []


def test_the_library_imports_neither_the_worker_nor_its_interface_nor_the_sdk() -> None:
    library = {name for name in MODULES if name.split(".")[0] == "infinitetalk" and ".worker" not in name}
    assert len(library) > 30
    forbidden = ("infinitetalk.worker", "schemas", "handler", "runpod", "boto3", "tools", "tests", "benchmarks")
    for name in sorted(library):
        assert not [other for other in IMPORTS[name] if other.startswith(forbidden)], name


def test_the_product_imports_no_tools_benchmarks_or_tests() -> None:
    for name in MODULES:
        if name.split(".")[0] in ("infinitetalk", "schemas", "handler"):
            assert not IMPORTS[name] & {"tools", "benchmarks", "tests", "examples"}, name
            assert not [other for other in IMPORTS[name] if other.startswith(("tools.", "tests.", "benchmarks."))], name
        if name.startswith(("benchmarks", "tools", "examples")):
            assert not [other for other in IMPORTS[name] if other.startswith("tests")], name
