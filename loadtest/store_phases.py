"""Loading, settling, checking and appending: the phases of the store's benchmark that change data. None prints."""

import asyncio
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from laser_client.decode import decode_history
from loadtest.drive import (
    APPEND,
    GET_HISTORY,
    PUT_ITEMS,
    append_request,
    call_all,
    history_requests,
    put_items_requests,
)
from loadtest.generator import EVENT_COLUMNS, Batch, Workload
from loadtest.peers.lastn_rocksdb import SETTLE_METHOD
from loadtest.server_process import ServerError, ServerProcess, disk_bytes
from loadtest.store_plan import Plan
from seqcore.schema import Schema
from seqvault.v1 import seqvault_pb2 as pb

PRODUCER: Final = 0x5E9BE7C4
_CUT_TIMEOUT_S: Final = 90.0

Step = Callable[[], object]
"""Called after each call of a phase, for progress."""


class WrongAnswer(RuntimeError):
    """A server's answer is not what was appended: nothing measured on it means anything."""


class Producer:
    """Numbers the appends to one server."""

    def __init__(self) -> None:
        self._sequences = itertools.count(1)

    def requests(self, batches: Sequence[Batch]) -> list[bytes]:
        return [append_request(batch, producer=PRODUCER, sequence=next(self._sequences)) for batch in batches]


async def load(
    server: ServerProcess, workload: Workload, batches: Sequence[Batch], *, producer: Producer, plan: Plan, step: Step
) -> float:
    """All items and all events, in global time order. Returns events a second, until the server rests."""
    await call_all(server, PUT_ITEMS, put_items_requests(workload.catalogue), in_flight=1)
    requests = producer.requests(batches)
    began = time.monotonic()
    await call_all(server, APPEND, requests, in_flight=plan.in_flight, done=step)
    return workload.event_count / (await server.idle() - began)


async def settle_rows(server: ServerProcess) -> None:
    """Memtable written out, all levels compacted into one."""
    await call_all(server, SETTLE_METHOD, [b""], in_flight=1)
    await server.idle()


async def settle_store(server: ServerProcess, workload: Workload, *, producer: Producer) -> None:
    """Every tail of 16 rows or more in blocks, the log cut: what the store does by itself half a minute after a
    deletion, so a user who is nobody else is appended and deleted.

    Raises: ServerError if the log's old generations do not go.
    """
    assert server.program.data is not None
    log = server.program.data / "log"
    old = _names(log)
    stranger = absent_users(workload, 1)[0]
    row = Batch(
        user_ids_U=np.array([stranger], np.uint64),
        event_counts_U=np.array([1], np.uint32),
        columns={name: values[:1] for name, values in next(workload.chunks()).columns.items()},
    )
    await call_all(server, APPEND, producer.requests([row]), in_flight=1)
    request = pb.DeleteUserRequest(user_id=stranger).SerializeToString()
    await call_all(server, "seqvault.v1.SeqVault/DeleteUser", [request], in_flight=1)
    give_up = time.monotonic() + _CUT_TIMEOUT_S
    while _names(log) & old and time.monotonic() < give_up:  # noqa: ASYNC110 - another process's files
        await asyncio.sleep(0.2)
    if _names(log) & old:
        raise ServerError(f"{server.name} did not cut its log within {_CUT_TIMEOUT_S:.0f} s")
    await server.idle()


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def absent_users(workload: Workload, count: int) -> list[int]:
    """Ids next to existing ones that nobody has."""
    absent: list[int] = np.setdiff1d(workload.user_ids + np.uint64(1), workload.user_ids)[:count].tolist()
    return absent


def disk_of(server: ServerProcess) -> dict[str, int]:
    assert server.program.data is not None
    os.sync()
    return disk_bytes(server.program.data)


async def check_answers(server: ServerProcess, workload: Workload, schema: Schema, users: Sequence[int]) -> None:
    """Raises: WrongAnswer unless the server returns exactly what was generated for the users."""
    wanted = set(users)
    replies = await call_all(server, GET_HISTORY, history_requests(users), in_flight=1)
    reply_of = dict(zip(users, replies, strict=True))
    for user, columns in workload.histories():
        if user not in wanted:
            continue
        reply = pb.GetHistoryResponse.FromString(reply_of[user])
        history = decode_history(reply, user_id=user, schema=schema, columns=EVENT_COLUMNS)
        if not all(np.array_equal(history.columns[name], columns[name]) for name in EVENT_COLUMNS):
            raise WrongAnswer(f"{server.name} does not return the history of user {user} as it was appended")
        wanted.discard(user)
        if not wanted:
            return


@dataclass(frozen=True, slots=True, kw_only=True)
class Appends:
    """By server, one value a round. CPU is the server's, per event."""

    events_per_s_of: Mapping[str, list[float]]
    """Until the server rests."""
    acked_per_s_of: Mapping[str, list[float]]
    """Until the last reply."""
    cpu_us_of: Mapping[str, list[float]]
    written_bytes_of: Mapping[str, list[float]]
    """Bytes sent to the device per event."""


async def measure_appends(
    servers: Sequence[tuple[ServerProcess, Producer]], live: Iterator[Batch], *, plan: Plan, step: Step
) -> Appends:
    """Rounds of new events, 50 users a call, the same for all servers; the clock runs until a server has nothing left to
    do by itself: its flushes and compactions count."""
    names = [server.name for server, _ in servers]
    found = Appends(
        events_per_s_of={name: [] for name in names},
        acked_per_s_of={name: [] for name in names},
        cpu_us_of={name: [] for name in names},
        written_bytes_of={name: [] for name in names},
    )
    for round_ in range(plan.append_rounds + 1):
        batches = list(itertools.islice(live, _calls_of_round(round_, plan)))
        events = sum(batch.event_count for batch in batches)
        for shift in range(len(servers)):
            server, producer = servers[(round_ + shift) % len(servers)]
            requests = producer.requests(batches)
            cpu_s, io, began = server.cpu_s(), server.io(), time.monotonic()
            await call_all(server, APPEND, requests, in_flight=plan.in_flight, done=step)
            acked_s = time.monotonic() - began
            took_s = await server.idle() - began
            if round_:
                found.events_per_s_of[server.name].append(events / took_s)
                found.acked_per_s_of[server.name].append(events / acked_s)
                found.cpu_us_of[server.name].append((server.cpu_s() - cpu_s) / events * 1e6)
                written = server.io()["write_bytes"] - io["write_bytes"]
                found.written_bytes_of[server.name].append(written / events)
    return found


def append_steps(plan: Plan) -> int:
    return 2 * sum(_calls_of_round(round_, plan) for round_ in range(plan.append_rounds + 1))


def _calls_of_round(round_: int, plan: Plan) -> int:
    return plan.append_calls if round_ else plan.append_calls // 4
