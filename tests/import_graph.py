"""Who imports whom: read from source with `ast`, nothing is executed.

Every import counts, under `if TYPE_CHECKING` and inside functions too: a cycle hidden that way is still a cycle.
"""

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Import:
    """One imported name; `target` is a module of the project where one matches, otherwise the module as written."""

    module: str
    target: str
    line: int
    is_inside_function: bool

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.target}"


@dataclass(frozen=True, kw_only=True)
class ImportGraph:
    modules: frozenset[str]
    imports: tuple[Import, ...]

    def cycle(self) -> list[str]:
        """Modules of one cycle, the first repeated at the end; empty if there is none."""
        edges: dict[str, set[str]] = {module: set() for module in self.modules}
        for each in self.imports:
            if each.target in self.modules:
                edges[each.module].add(each.target)
        try:
            TopologicalSorter(edges).prepare()
        except CycleError as error:
            return list(error.args[1])
        return []


def is_under(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def is_stdlib(module: str) -> bool:
    return module.partition(".")[0] in sys.stdlib_module_names


def read_import_graph(packages: Mapping[str, Path]) -> ImportGraph:
    """Reads every module under the folders of `packages` (import name -> folder), generated stubs left out."""
    sources = {}
    for name, folder in packages.items():
        for path in sorted(folder.rglob("*.py")):
            if not path.stem.endswith(("_pb2", "_pb2_grpc")):
                parts = (name, *path.relative_to(folder).with_suffix("").parts)
                sources[".".join(parts).removesuffix(".__init__")] = path
    modules = frozenset(sources)
    imports = tuple(found for module, path in sources.items() for found in _imports_of(module, path, modules))
    return ImportGraph(modules=modules, imports=imports)


def _imports_of(module: str, path: Path, modules: frozenset[str]) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node, is_inside_function in _walk(ast.parse(path.read_bytes(), str(path)), inside_function=False):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            submodules = [f"{source}.{alias.name}" for alias in node.names]
            targets = [name if name in modules else source for name in submodules]
        else:
            continue
        for target in dict.fromkeys(targets):
            yield Import(module=module, target=target, line=node.lineno, is_inside_function=is_inside_function)


def _walk(node: ast.AST, *, inside_function: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        yield child, inside_function
        enters = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _walk(child, inside_function=inside_function or enters)
