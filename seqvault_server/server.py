"""A SeqVault process: its settings, and how its parts are put together."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import structlog
import yaml

from seqcore.errors import SchemaError
from seqcore.schema import Schema
from seqvault.v1 import seqvault_pb2 as pb
from seqvault_server.problems import TABLE
from seqvault_server.service import SeqVaultService
from seqvault_server.sideinfo.store import SideInfo
from seqvault_server.storage.shard import Shard, ShardConfig
from seqvault_server.vault import Vault
from seqvault_server.warm_up import warm_up
from servicekit.listen import ListenConfig
from servicekit.metrics import ServerMetrics
from servicekit.runner import Application, Open
from servicekit.service import handlers

_log = structlog.get_logger(__name__)

DEFAULT_PORT: Final = 7070
SERVICE: Final = pb.DESCRIPTOR.services_by_name["SeqVault"]


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Settings of `seqvault serve`."""

    data: Path
    """Data directory; made if it does not exist. One process at a time."""
    schema: Path
    """Schema file (YAML). Must extend the schema that the data was written with."""
    max_items: int = 20_000_000
    """Items with side-info that are held in memory; PutItems is refused above it."""
    listen: ListenConfig = field(default_factory=lambda: ListenConfig(port=DEFAULT_PORT, metrics_port=DEFAULT_PORT + 1))
    shard: ShardConfig = field(default_factory=ShardConfig)


def read_schema(path: Path) -> Schema:
    """Raises: SchemaError, naming the file and the path within it; OSError."""
    try:
        return Schema.from_mapping(yaml.safe_load(path.read_text("utf-8")))
    except yaml.YAMLError as error:
        raise SchemaError(str(path), f"is no YAML: {error}") from error
    except SchemaError as error:
        raise SchemaError(f"{path}: {error.field}", error.problem) from error


def opener(config: ServerConfig) -> Open:
    """What `servicekit.runner` opens: the whole store.

    It raises DataDirectoryError if the directory cannot be used, SchemaError if the schema file is wrong.
    """

    async def open_store(metrics: ServerMetrics) -> Application:
        schema = read_schema(config.schema)
        _log.info("warming up", note="the first start on a machine compiles for half a minute")
        await asyncio.to_thread(warm_up, schema)
        shard = await asyncio.to_thread(Shard.open, config.data, schema, config=config.shard)
        try:
            items = await asyncio.to_thread(SideInfo.open, config.data / "items", schema, max_items=config.max_items)
        except BaseException:
            shard.close()
            raise
        vault = Vault(shard)
        service = SeqVaultService(vault=vault, items=items, schema=schema)
        metrics.export("seqvault", shard.statistics)
        metrics.export("seqvault_items", items.statistics)
        methods = handlers(
            SERVICE, service, errors=TABLE, metrics=metrics, max_request_bytes=config.listen.max_request_bytes
        )
        return Application(services=[SERVICE], handlers=[methods], close=service.close)

    return open_store
