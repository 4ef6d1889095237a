"""A whole store in the test's own process and loop, behind real sockets."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import pytest

from laser_client.client import SeqVaultClient
from seqcore.schema import Schema
from seqvault_server.problems import TABLE
from seqvault_server.server import SERVICE, read_schema
from seqvault_server.service import SeqVaultService
from seqvault_server.sideinfo.store import SideInfo
from seqvault_server.storage.files import Files
from seqvault_server.storage.shard import Shard, ShardConfig
from seqvault_server.vault import Vault
from servicekit.listen import ListenConfig
from servicekit.metrics import ServerMetrics
from servicekit.runner import Application, serving
from servicekit.service import handlers

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Store:
    """What a test may look at: the parts, and a client that goes through the socket."""

    schema: Schema
    vault: Vault
    items: SideInfo
    service: SeqVaultService
    client: SeqVaultClient
    target: str


OpenStore: TypeAlias = "Callable[[], AbstractAsyncContextManager[Store]]"


@pytest.fixture
def open_store(tmp_path: Path) -> OpenStore:
    """Opens the store in the test's folder; call it again to restart it."""

    @asynccontextmanager
    async def opened(files: Files | None = None) -> AsyncIterator[Store]:
        schema = read_schema(ROOT / "examples" / "schema.yaml")
        shard = Shard.open(
            tmp_path / "data", schema, config=ShardConfig(max_users=1 << 20, tail_bytes=64 << 20), files=files
        )
        items = SideInfo.open(tmp_path / "data" / "items", schema, max_items=100_000)
        vault = Vault(shard)
        service = SeqVaultService(vault=vault, items=items, schema=schema)

        async def open_application(metrics: ServerMetrics) -> Application:
            methods = handlers(SERVICE, service, errors=TABLE, metrics=metrics, max_request_bytes=1 << 20)
            return Application(services=[SERVICE], handlers=[methods], close=service.close)

        async with serving(open_application, config=ListenConfig()) as ports:
            target = f"127.0.0.1:{ports.port}"
            async with SeqVaultClient(target) as client:
                yield Store(schema, vault, items, service, client, target)

    return opened
