"""kill -9 during appends: every acked event is there, none twice, none invented, in order."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast

import grpc
import numpy as np
import pytest

from laser_client.sync import SyncSeqVaultClient
from seqvault.v1 import seqvault_pb2 as pb
from seqvault.v1 import seqvault_pb2_grpc as rpc
from tests.e2e.server_process import ServerProcess, server

CYCLES: Final = 20
LONG_CYCLES: Final = 100
USERS: Final = 40
PRODUCERS: Final = 3
# Small limits, so that flushing, moving and cutting the log go on all the time.
BUSY: Final = {"SEQVAULT_SHARD_LOG_GENERATION_BYTES": "256KiB", "SEQVAULT_SHARD_TAIL_BYTES": "4MiB"}
EPOCH_MS: Final = 1_600_000_000_000


@dataclass
class Producer:
    """Sends numbered events, one call after the other; a call in doubt is sent again, as a real producer does."""

    number: int
    random: np.random.Generator
    sequence: int = 0
    serial: int = 0
    pending: pb.AppendRequest | None = None
    ended_with: grpc.RpcError | None = None
    acked: dict[int, list[int]] = field(default_factory=dict)

    def next_call(self) -> pb.AppendRequest:
        self.sequence += 1
        users = self.random.choice(USERS, 3, replace=False)
        counts = self.random.integers(1, 120, 3)
        total = int(counts.sum())
        serials = np.arange(self.serial, self.serial + total, dtype=np.uint64)
        self.serial += total
        items = serials * np.uint64(PRODUCERS) + np.uint64(self.number)
        columns = {
            "item_id": items,
            "time_ms": (EPOCH_MS + serials.astype(np.int64) * 1000).astype("<i8"),
            "action": np.zeros(total, "u1"),
        }
        return pb.AppendRequest(
            producer_id=1 + self.number,
            sequence=self.sequence,
            user_ids=users.tolist(),
            event_counts=counts.tolist(),
            columns=[pb.Column(name=name, data=values.tobytes()) for name, values in columns.items()],
        )

    def run(self, target: str) -> None:
        """Until the server is gone."""
        with grpc.insecure_channel(target) as channel:
            stub = rpc.SeqVaultStub(channel)
            while True:
                self.pending = self.pending or self.next_call()
                try:
                    stub.Append(self.pending, timeout=10)
                except grpc.RpcError as error:
                    self.ended_with = error
                    return
                self.acknowledge(self.pending)
                self.pending = None

    def acknowledge(self, call: pb.AppendRequest) -> None:
        items = np.frombuffer(call.columns[0].data, np.uint64)
        for user, part in zip(call.user_ids, np.split(items, np.cumsum(call.event_counts)[:-1]), strict=True):
            self.acked.setdefault(user, []).extend(part.tolist())

    def maybe(self, user: int) -> set[int]:
        """Items of the call in doubt."""
        if self.pending is None:
            return set()
        items = np.frombuffer(self.pending.columns[0].data, np.uint64)
        parts = np.split(items, np.cumsum(self.pending.event_counts)[:-1])
        return {
            item
            for one, part in zip(self.pending.user_ids, parts, strict=True)
            if one == user
            for item in part.tolist()
        }


def check(target: str, producers: Sequence[Producer]) -> None:
    with SyncSeqVaultClient(target) as client:
        for user in range(USERS):
            history = client.get_history(user, timeout_s=10)
            items, times = history.columns["item_id"], history.columns["time_ms"]
            got = set(items.tolist())
            assert len(got) == len(items), f"user {user}: an event is there twice"
            assert (np.diff(times) >= 0).all(), f"user {user}: out of order"
            acked = {item for producer in producers for item in producer.acked.get(user, [])}
            assert acked <= got, f"user {user}: {len(acked - got)} acked events are missing"
            invented = got - acked - {item for producer in producers for item in producer.maybe(user)}
            assert not invented, f"user {user}: {len(invented)} events that nobody sent"


def append_until_killed(running: ServerProcess, producers: Sequence[Producer], calls_before_kill: int) -> None:
    threads = [threading.Thread(target=producer.run, args=[running.target]) for producer in producers]
    enough = producers[0].sequence + calls_before_kill
    for thread in threads:
        thread.start()
    with SyncSeqVaultClient(running.target) as client:
        while producers[0].sequence < enough and threads[0].is_alive():
            client.get_history(0, timeout_s=10)  # reads go on beside the appends
    running.kill()
    for thread, producer in zip(threads, producers, strict=True):
        thread.join()
        # An append is never refused; it is acked, or the server is gone.
        error = cast("grpc.Call", producer.ended_with)
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cycles", [CYCLES, pytest.param(LONG_CYCLES, marks=pytest.mark.long)])
def test_acked_events_survive_kills(tmp_path: Path, cycles: int) -> None:
    seed = 20_261_123
    random = np.random.default_rng(seed)
    producers = [Producer(number, np.random.default_rng([seed, number])) for number in range(PRODUCERS)]
    for cycle in range(cycles):
        with server(tmp_path / "data", environ=BUSY) as running:
            check(running.target, producers)
            append_until_killed(running, producers, calls_before_kill=int(random.integers(5, 60)))
        print(f"cycle {cycle}: {sum(producer.serial for producer in producers)} events sent")
    with server(tmp_path / "data", environ=BUSY) as running:
        check(running.target, producers)
        with grpc.insecure_channel(running.target) as channel:
            for producer in producers:
                if producer.pending is not None:  # now without doubt
                    rpc.SeqVaultStub(channel).Append(producer.pending, timeout=10)
                    producer.acknowledge(producer.pending)
                    producer.pending = None
        check(running.target, producers)
        assert running.stop() == 0
