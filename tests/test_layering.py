"""Imports run one way: servers -> {servicekit, seqcore, laser_client} -> proto. Nothing imports loadtest or tests."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.import_graph import ImportGraph, is_stdlib, is_under, read_import_graph

REPOSITORY = Path(__file__).parent.parent
PACKAGES = {
    name: REPOSITORY / folder
    for name, folder in {
        "seqcore": "seqcore",
        "servicekit": "servicekit",
        "laser_client": "clients/python/laser_client",
        "seqvault_server": "seqvault_server",
        "loadtest": "loadtest",
        "tests": "tests",
    }.items()
}
PROTO = frozenset({"seqvault.v1", "ranker.v1"})
PROJECT = frozenset(PACKAGES) | PROTO


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What the modules under a package may import; themselves and the standard library always, unless forbidden."""

    project: frozenset[str] = frozenset()
    foreign: frozenset[str] | None = None
    """Third-party packages; None allows any."""
    forbidden: frozenset[str] = frozenset()
    """Refused although something above would allow it."""


LAYERS = {
    "seqcore": Layer(foreign=frozenset({"numpy", "zstandard", "xxhash"}), forbidden=frozenset({"seqcore.table"})),
    "seqcore.table": Layer(project=frozenset({"seqcore"}), foreign=frozenset({"numpy", "numba"})),
    "servicekit": Layer(forbidden=frozenset({"numba", "torch"})),
    "laser_client": Layer(
        project=PROTO | {"seqcore"},
        foreign=frozenset({"google", "grpc", "numpy", "xxhash", "zstandard"}),
        forbidden=frozenset({"seqcore.table"}),
    ),
    "seqvault_server": Layer(project=PROTO | {"servicekit", "seqcore", "laser_client"}, forbidden=frozenset({"torch"})),
    "seqvault_server.storage": Layer(
        project=frozenset({"seqcore"}), forbidden=frozenset({"asyncio", "google", "grpc", "torch", "uvloop"})
    ),
    "loadtest": Layer(project=PROJECT - {"tests"}),
    "tests": Layer(project=PROJECT),
}


def violations(graph: ImportGraph) -> list[str]:
    """Each broken rule as `module:line imports target`."""
    found = []
    for each in graph.imports:
        package = max((name for name in LAYERS if is_under(each.module, name)), key=len)
        layer = LAYERS[package]
        if any(is_under(each.target, name) for name in PROJECT):
            is_allowed = any(is_under(each.target, name) for name in layer.project | {package})
        else:
            is_allowed = is_stdlib(each.target) or layer.foreign is None or _top(each.target) in layer.foreign
        if not is_allowed or any(is_under(each.target, name) for name in layer.forbidden):
            found.append(str(each))
        if each.is_inside_function:
            found.append(f"{each} inside a function")
    if cycle := graph.cycle():
        found.append("cycle: " + " -> ".join(cycle))
    return found


def _top(module: str) -> str:
    return module.partition(".")[0]


@pytest.fixture(scope="module")
def graph() -> ImportGraph:
    return read_import_graph(PACKAGES)


def test_imports_run_one_way(graph: ImportGraph) -> None:
    assert violations(graph) == []


def test_every_package_on_disk_has_a_layer() -> None:
    folders = {path.parent for root in (REPOSITORY, REPOSITORY / "clients/python") for path in root.glob("*/*.py")}
    assert folders == set(PACKAGES.values())
    assert set(PACKAGES) <= set(LAYERS)


def _graph_of(root: Path, files: Mapping[str, str]) -> ImportGraph:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return read_import_graph({name: root / name for name in PACKAGES})


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"seqcore/a.py": "import grpc"}, ["seqcore.a:1 imports grpc"]),
        ({"seqcore/a.py": "import numba"}, ["seqcore.a:1 imports numba"]),
        ({"seqcore/a.py": "from servicekit import config"}, ["seqcore.a:1 imports servicekit"]),
        (
            {"seqcore/a.py": "from seqcore import table", "seqcore/table.py": "import numba"},
            ["seqcore.a:1 imports seqcore.table"],
        ),
        (
            {"laser_client/a.py": "import os\nfrom seqcore.table import Table", "seqcore/table.py": ""},
            ["laser_client.a:2 imports seqcore.table"],
        ),
        ({"laser_client/a.py": "import torch.nn"}, ["laser_client.a:1 imports torch.nn"]),
        ({"laser_client/a.py": "from servicekit.tls import TLS"}, ["laser_client.a:1 imports servicekit.tls"]),
        ({"servicekit/a.py": "from seqvault.v1 import x_pb2"}, ["servicekit.a:1 imports seqvault.v1"]),
        ({"servicekit/a.py": "import seqcore.schema"}, ["servicekit.a:1 imports seqcore.schema"]),
        ({"seqvault_server/a.py": "import loadtest.peers"}, ["seqvault_server.a:1 imports loadtest.peers"]),
        ({"seqvault_server/a.py": "from tests import x"}, ["seqvault_server.a:1 imports tests"]),
        ({"loadtest/a.py": "from tests import x"}, ["loadtest.a:1 imports tests"]),
        ({"seqvault_server/storage/a.py": "import asyncio"}, ["seqvault_server.storage.a:1 imports asyncio"]),
        ({"seqvault_server/storage/a.py": "import grpc.aio"}, ["seqvault_server.storage.a:1 imports grpc.aio"]),
        (
            {"seqvault_server/storage/a.py": "from ..service import x", "seqvault_server/service.py": ""},
            ["seqvault_server.storage.a:1 imports seqvault_server.service"],
        ),
        (
            {"seqcore/a.py": "def f():\n    if True:\n        import numpy"},
            ["seqcore.a:3 imports numpy inside a function"],
        ),
    ],
)
def test_a_violation_is_found(tmp_path: Path, files: Mapping[str, str], expected: list[str]) -> None:
    assert violations(_graph_of(tmp_path, files)) == expected


def test_a_cycle_is_found(tmp_path: Path) -> None:
    graph = _graph_of(
        tmp_path,
        {"seqcore/__init__.py": "from seqcore import a", "seqcore/a.py": "if TYPE_CHECKING:\n    from . import x"},
    )
    assert len(graph.cycle()) == 3
    assert set(graph.cycle()) == {"seqcore", "seqcore.a"}
    assert len(violations(graph)) == 1


def test_allowed_imports_pass(tmp_path: Path) -> None:
    graph = _graph_of(
        tmp_path,
        {
            "seqcore/__init__.py": "from seqcore.schema import Schema",
            "seqcore/schema.py": "import struct, numpy.typing\nfrom seqcore.errors import SchemaError",
            "seqcore/errors.py": "",
            "seqcore/table.py": "import numba\nimport seqcore.schema",
            "laser_client/client.py": "import asyncio\nimport grpc.aio\nfrom seqvault.v1 import seqvault_pb2",
            "seqvault_server/storage/index.py": "import os\nimport numba\nfrom seqcore.table import Table",
            "seqvault_server/service.py": "import grpc\nfrom seqvault_server.storage import index\nimport laser_client",
            "loadtest/bench.py": "import seqvault_server.storage.index",
            "tests/test_bench.py": "import loadtest.bench",
        },
    )
    assert graph.modules >= {"seqcore", "seqcore.schema", "seqvault_server.storage.index", "tests.test_bench"}
    assert violations(graph) == []
