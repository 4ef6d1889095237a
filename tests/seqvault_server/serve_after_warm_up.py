"""Run in a process of its own: serves all kinds of requests after the warm-up and prints the kernels compiled by them."""

import asyncio
import gc
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba.core.dispatcher import Dispatcher

from laser_client.client import SeqVaultClient
from laser_client.query import Encoding, Query
from seqvault_server.server import ServerConfig, opener
from seqvault_server.storage.shard import ShardConfig
from servicekit.listen import ListenConfig
from servicekit.logs import configure
from servicekit.runner import serving


def signatures() -> dict[str, int]:
    """Kernels of the project, and how many argument types each is compiled for."""
    kernels = [each for each in gc.get_objects() if isinstance(each, Dispatcher)]
    names = {f"{kernel.py_func.__module__}.{kernel.py_func.__name__}": len(kernel.signatures) for kernel in kernels}
    return {name: count for name, count in names.items() if name.startswith("seq")}


async def work(client: SeqVaultClient) -> None:
    """Every method, on small, long and late histories."""
    random = np.random.default_rng(1)
    for step in range(8):
        users = np.arange(1, 61, dtype=np.uint64)
        count = int(users.size) * 100
        columns: dict[str, npt.NDArray[np.generic]] = {
            "item_id": random.integers(0, 100, count).astype(np.uint64),
            "time_ms": 1_600_000_000_000 + np.sort(random.integers(0, 10**9, count)) - step % 3 * 10**10,
            "action": random.integers(0, 4, count).astype(np.uint8),
        }
        await client.append(users, np.full(60, 100), columns)
        await client.append([1000 + step], [1], {name: values[:1] for name, values in columns.items()})
    ids = np.arange(50, dtype=np.uint64)
    await client.put_items(ids, {"category": ids.astype("u4"), "author": ids, "price": ids.astype("f4")})
    await client.get_items(ids)
    for encoding in Encoding.BLOCKS, Encoding.PLAIN:
        for user in (1, 1000, 99):
            for query in Query(encoding=encoding), Query(view="search_purchases", encoding=encoding, max_events=3):
                await client.get_history(user, query)
    async for _ in client.batch_get_history([1, 2, 3]):
        pass
    await client.delete_user(1)


async def main(data: Path) -> None:
    config = ServerConfig(
        data=data,
        schema=Path(__file__).parents[2] / "examples" / "schema.yaml",
        listen=ListenConfig(),
        shard=ShardConfig(max_users=1 << 16, tail_bytes=1 << 20, log_generation_bytes=1 << 16),
    )
    for _ in range(2):  # the second time with something to recover
        async with (
            serving(opener(config), config=config.listen) as ports,
            SeqVaultClient(f"127.0.0.1:{ports.port}") as client,
        ):
            warm = signatures()
            await work(client)
        compiled = {name for name, count in signatures().items() if count != warm.get(name)}
        sys.stdout.write("".join(f"{name}\n" for name in sorted(compiled)))


configure()
asyncio.run(main(Path(sys.argv[1])))
