"""What a run of the store's benchmark does, and the servers that it starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from loadtest.server_process import Program

REPOSITORY: Final = Path(__file__).parent.parent
SCHEMA: Final = REPOSITORY / "examples" / "schema.yaml"
STORE: Final = "seqvault"
ROWS: Final = "rocksdb"
"""LastN on RocksDB with side-info inline."""
THIN_ROWS: Final = "rocksdb_thin"
"""The same without side-info."""
NULL: Final = "null_rpc"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of a run."""

    events: int = 6_000_000
    """Of users with lengths by the generator's law."""
    cohort: int = 40
    """Users besides, with exactly 10,000 events each."""
    items: int = 100_000
    seed: int = 1
    events_per_call: int = 1_000
    in_flight: int = 8
    """Appends, and reads under load, under way at a time."""
    read_rounds: int = 10
    """After one that does not count."""
    read_calls: Mapping[str, int] | None = None
    """Of a round, by case; None: DEFAULT_READ_CALLS."""
    append_rounds: int = 3
    append_calls: int = 1_000
    """Of a round; the first one, which does not count, has a quarter."""
    append_log_generation_bytes: int = 8 << 20
    """In the append rounds the store cuts its log this often (default of the server: 64 MiB), so that what it puts off
    is paid while the clock runs."""
    cuts_log: bool = True
    """Waits for the store to empty its log before disk bytes are counted: half a minute, during which peers load."""

    @classmethod
    def quick(cls) -> "Plan":
        """Every phase, nothing long enough to be believed."""
        return cls(
            events=60_000,
            cohort=4,
            items=5_000,
            read_rounds=2,
            read_calls={"read_10k": 8, "get_1k": 12, "miss": 20},
            append_rounds=1,
            append_calls=20,
            append_log_generation_bytes=1 << 20,
            cuts_log=False,
        )

    @property
    def calls_of_case(self) -> Mapping[str, int]:
        return self.read_calls or DEFAULT_READ_CALLS


DEFAULT_READ_CALLS: Final[Mapping[str, int]] = {"read_10k": 100, "get_1k": 300, "miss": 500}


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The servers, with their data under one directory."""

    store: Program
    store_in_appends: Program
    rows: Program
    thin_rows: Program
    null: Program

    @classmethod
    def under(cls, directory: Path, plan: Plan) -> "Programs":
        def store(environment: Mapping[str, str]) -> Program:
            data = directory / STORE
            return Program(
                name=STORE,
                arguments=[
                    *("seqvault_server", "serve", "--data", str(data), "--schema", str(SCHEMA)),
                    *("--port", "0", "--metrics-port", "0"),
                ],
                data=data,
                environment=environment,
            )

        def rows(name: str, *options: str) -> Program:
            data = directory / name
            arguments = ["loadtest.peers.lastn_rocksdb", "--data", str(data), "--schema", str(SCHEMA), *options]
            return Program(name=name, arguments=arguments, data=data)

        return cls(
            store=store({}),
            store_in_appends=store({"SEQVAULT_SHARD_LOG_GENERATION_BYTES": str(plan.append_log_generation_bytes)}),
            rows=rows(ROWS),
            thin_rows=rows(THIN_ROWS, "--without-side-info"),
            null=Program(name=NULL, arguments=["loadtest.peers.null_rpc"], data=None),
        )
