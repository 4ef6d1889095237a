"""Calls to servers, prepared before the clock starts, and what they cost.

Messages travel as bytes here: what a client pays for parsing and decoding is measured apart.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import grpc.aio
import numpy as np

from loadtest.catalogue import Catalogue
from loadtest.generator import Batch
from loadtest.server_process import ServerError, ServerProcess
from seqvault.v1 import seqvault_pb2 as pb

APPEND: Final = "seqvault.v1.SeqVault/Append"
PUT_ITEMS: Final = "seqvault.v1.SeqVault/PutItems"
GET_HISTORY: Final = "seqvault.v1.SeqVault/GetHistory"
CALL_TIMEOUT_S: Final = 120.0
PUT_ITEMS_ROWS: Final = 8_192


@dataclass(slots=True)
class Cost:
    """What a number of calls took. Costs add up over rounds."""

    cpu_s_of_rounds: list[float] = field(default_factory=list)
    """Server CPU per call, one value a round."""
    latency_s: list[float] = field(default_factory=list)
    """One value a call."""
    reply_bytes: int = 0

    @property
    def cpu_us(self) -> float:
        """Of a call: the median of the rounds."""
        return float(np.median(self.cpu_s_of_rounds)) * 1e6

    def latency_us(self, percentile: float) -> float:
        return float(np.percentile(self.latency_s, percentile)) * 1e6


async def call_all(
    server: ServerProcess,
    method: str,
    requests: Sequence[bytes],
    *,
    in_flight: int,
    cost: Cost | None = None,
    done: Callable[[], object] | None = None,
) -> list[bytes]:
    """Sends all requests in order, `in_flight` under way at a time; the replies in that order. Adds to `cost`, and calls
    `done` after each reply.

    Raises: ServerError if a call fails; the others are cancelled.
    """
    send: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = server.channel.unary_unary(f"/{method}")
    replies: list[bytes] = [b""] * len(requests)
    latencies: list[float] = [0.0] * len(requests)
    queue: Iterator[tuple[int, bytes]] = iter(enumerate(requests))

    async def worker() -> None:
        for number, request in queue:
            began = time.perf_counter()
            replies[number] = await send(request, timeout=CALL_TIMEOUT_S)
            latencies[number] = time.perf_counter() - began
            if done is not None:
                done()

    cpu_s = server.cpu_s()
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(worker())
    except* grpc.aio.AioRpcError as failed:
        first = failed.exceptions[0]
        raise ServerError(f"{server.name} failed in {method}: {first}") from failed
    if cost is not None:
        cost.cpu_s_of_rounds.append((server.cpu_s() - cpu_s) / len(requests))
        cost.latency_s += latencies
        cost.reply_bytes += sum(map(len, replies))
    return replies


def append_request(batch: Batch, *, producer: int, sequence: int) -> bytes:
    return pb.AppendRequest(
        producer_id=producer,
        sequence=sequence,
        user_ids=batch.user_ids_U.tolist(),
        event_counts=batch.event_counts_U.tolist(),
        columns=[pb.Column(name=name, data=values.tobytes()) for name, values in batch.columns.items()],
    ).SerializeToString()


def put_items_requests(catalogue: Catalogue) -> list[bytes]:
    """The whole catalogue, in calls that stay under the server's limits."""
    ids, side_info = catalogue.item_ids, catalogue.side_info
    return [
        pb.PutItemsRequest(
            item_ids=ids[begin : begin + PUT_ITEMS_ROWS].tobytes(),
            columns=[
                pb.Column(name=name, data=values[begin : begin + PUT_ITEMS_ROWS].tobytes())
                for name, values in side_info.items()
            ],
        ).SerializeToString()
        for begin in range(0, len(ids), PUT_ITEMS_ROWS)
    ]


def history_requests(
    users: Sequence[int], *, max_events: int = 0, encoding: pb.Encoding.ValueType = pb.ENCODING_BLOCKS
) -> list[bytes]:
    query = pb.Query(max_events=max_events, encoding=encoding)
    return [pb.GetHistoryRequest(user_id=user, query=query).SerializeToString() for user in users]
