"""Run by test_wheel in the wheel's own environment: the client at work on the store whose address is given, with torch,
numba and the servers refused."""

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

for name in ("laser_client.client", "laser_client.sync", "ranker.v1.ranker_pb2_grpc"):
    importlib.import_module(name)

client_class = importlib.import_module("laser_client.sync").SyncSeqVaultClient
with client_class(sys.argv[1]) as client:
    columns = {"item_id": [5, 6], "time_ms": [1_600_000_000_000, 1_600_000_000_001], "action": [1, 0]}
    client.append([42], [2], columns)
    history = client.get_history(42)
    assert history.columns["item_id"].tolist() == [5, 6]

print("ok")
