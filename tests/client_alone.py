"""Run by test_wheel in the wheel's own environment: what the client needs, with torch and numba refused."""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class Refuse(MetaPathFinder):
    """Ahead of every other finder, so that a stray install cannot hide an import."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in {"numba", "torch", "servicekit", "seqvault_server"}:
            raise ImportError(f"the client must not need {fullname}")
        return None


sys.meta_path.insert(0, Refuse())

for name in (
    "laser_client",
    "seqcore.schema",
    "seqcore.decode",
    "seqvault.v1.seqvault_pb2_grpc",
    "ranker.v1.ranker_pb2_grpc",
):
    importlib.import_module(name)

print("ok")
