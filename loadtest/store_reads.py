"""Reading: what a history costs the server and the client, cold and warm, beside the peers. Nothing here prints."""

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from laser_client.decode import decode_history
from loadtest.drive import GET_HISTORY, Cost, call_all, history_requests
from loadtest.generator import EVENT_COLUMNS, Workload
from loadtest.peers.lastn_rocksdb import COSTS_METHOD
from loadtest.peers.null_rpc import LENGTH
from loadtest.peers.null_rpc import METHOD as NULL_METHOD
from loadtest.server_process import ServerProcess, drop_page_cache
from loadtest.store_phases import absent_users
from loadtest.store_plan import NULL, ROWS, STORE, Plan
from seqcore.schema import Schema
from seqvault.v1 import seqvault_pb2 as pb

STORE_PLAIN: Final = "seqvault_plain"
LONG_USER_EVENTS: Final = 10_000
CASES: Final[Mapping[str, int]] = {"read_10k": 0, "get_1k": 1_000, "miss": 0}
"""max_events of each case."""
_DECODE_REPLIES: Final = 16
_DECODE_REPEATS: Final = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdReads:
    """First reads of histories after a restart, nothing in any cache of the server or of the kernel."""

    cost: Cost
    reads_per_hit: float
    """Read calls to files: the store's own count in its replies; for others, /proc/PID/io cold minus the same calls warm."""
    device_bytes_per_hit: float


async def read_cold(server: ServerProcess, users: Sequence[int]) -> ColdReads:
    """Expects a server that was just started."""
    assert server.program.data is not None
    await asyncio.to_thread(drop_page_cache, server.program.data)
    requests = history_requests(users)
    cost, before = Cost(), server.io()
    replies = await call_all(server, GET_HISTORY, requests, in_flight=1, cost=cost)
    cold = server.io()
    if server.name == STORE:
        reads = sum(pb.GetHistoryResponse.FromString(reply).reads for reply in replies)
    else:
        await call_all(server, GET_HISTORY, requests, in_flight=1)
        reads = (cold["syscr"] - before["syscr"]) - (server.io()["syscr"] - cold["syscr"])
    device_bytes = cold["read_bytes"] - before["read_bytes"]
    return ColdReads(cost=cost, reads_per_hit=reads / len(users), device_bytes_per_hit=device_bytes / len(users))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """Costs by (case, target, calls in flight). Targets: the store, the store with PLAIN replies, its peers."""

    cost_of: Mapping[tuple[str, str, int], Cost]
    reads_per_hit: float
    reads_per_miss: float
    decode_us_of: Mapping[tuple[str, str], float]
    """Client CPU from the reply's bytes to numpy columns, by case and target."""


@dataclass(slots=True)
class _Target:
    name: str
    server: ServerProcess
    method: str
    requests_of: dict[str, list[bytes]] = field(default_factory=dict)


async def measure_reads(
    store: ServerProcess,
    rows: ServerProcess,
    null: ServerProcess,
    workload: Workload,
    schema: Schema,
    *,
    plan: Plan,
    step: Callable[[], object],
) -> Reads:
    """Rounds in which every case is sent to every target, first one call at a time, then `plan.in_flight`."""
    users_of = _users_of_cases(workload, plan)
    targets = [
        _Target(STORE, store, GET_HISTORY),
        _Target(STORE_PLAIN, store, GET_HISTORY),
        _Target(ROWS, rows, GET_HISTORY),
        _Target(NULL, null, NULL_METHOD),
    ]
    reads = {"hit": [0, 0], "miss": [0, 0]}
    decode_us_of: dict[tuple[str, str], float] = {}
    for case, users in users_of.items():
        plain = history_requests(users, max_events=CASES[case], encoding=pb.ENCODING_PLAIN)
        blocks = history_requests(users, max_events=CASES[case])
        replies = await call_all(store, GET_HISTORY, blocks, in_flight=1)
        counts = reads["miss" if case == "miss" else "hit"]
        counts[0] += sum(pb.GetHistoryResponse.FromString(reply).reads for reply in replies)
        counts[1] += len(replies)
        null_requests = [LENGTH.pack(len(reply)) for reply in replies]
        for target, requests in zip(targets, (blocks, plain, plain, null_requests), strict=True):
            target.requests_of[case] = requests
        if case != "miss":
            for target in targets[:3]:
                sample = target.requests_of[case][:_DECODE_REPLIES]
                answers = await call_all(target.server, target.method, sample, in_flight=1)
                decode_us_of[case, target.name] = _decode_us(answers, users, schema)
    cost_of: dict[tuple[str, str, int], Cost] = {}
    for round_ in range(plan.read_rounds + 1):
        for case, in_flight in itertools.product(users_of, (1, plan.in_flight)):
            for shift in range(len(targets)):
                # Who comes first changes, so that nobody always follows the same neighbour.
                target = targets[(round_ + shift) % len(targets)]
                cost = cost_of.setdefault((case, target.name, in_flight), Cost()) if round_ else None
                requests = target.requests_of[case]
                await call_all(target.server, target.method, requests, in_flight=in_flight, cost=cost)
                step()
    return Reads(
        cost_of=cost_of,
        reads_per_hit=reads["hit"][0] / reads["hit"][1],
        reads_per_miss=reads["miss"][0] / reads["miss"][1],
        decode_us_of=decode_us_of,
    )


def read_steps(plan: Plan) -> int:
    return (plan.read_rounds + 1) * len(CASES) * 2 * 4


def _users_of_cases(workload: Workload, plan: Plan) -> dict[str, list[int]]:
    rng = np.random.default_rng((plan.seed, 5))
    groups = {
        "read_10k": workload.user_ids[: plan.cohort],
        "get_1k": workload.user_ids[workload.event_counts_U >= LONG_USER_EVENTS],
        "miss": np.array(absent_users(workload, plan.calls_of_case["miss"]), np.uint64),
    }
    return {case: rng.choice(users, plan.calls_of_case[case]).tolist() for case, users in groups.items()}


def _decode_us(replies: Sequence[bytes], users: Sequence[int], schema: Schema) -> float:
    """CPU per reply, the median of repeats over all replies."""
    took = []
    for _ in range(_DECODE_REPEATS):
        began = time.thread_time()
        for user, raw in zip(users, replies, strict=False):
            reply = pb.GetHistoryResponse.FromString(raw)
            decode_history(reply, user_id=user, schema=schema, columns=EVENT_COLUMNS)
        took.append((time.thread_time() - began) / len(replies))
    return float(np.median(took)) * 1e6


async def iterating_share(rows: ServerProcess) -> float:
    """Of the CPU of the peer's GetHistory handler: the share spent in RocksDB's iterator and in making its values `bytes`."""
    reply = (await call_all(rows, COSTS_METHOD, [b""], in_flight=1))[0]
    iterating, other = np.frombuffer(reply, "<f8").tolist()
    return float(iterating / (iterating + other))
