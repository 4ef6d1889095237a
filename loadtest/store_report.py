"""What the store's benchmark found, as flat metrics, and as tables of them for a terminal and for Markdown.

Both tables are made from the JSON document alone, so an old result can be shown again.
"""

import json
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.table import Table

from loadtest.catalogue import SIDE_INFO_BYTES
from loadtest.generator import EVENT_BYTES
from loadtest.store_phases import Appends
from loadtest.store_plan import NULL, ROWS, STORE, THIN_ROWS, Plan
from loadtest.store_reads import ColdReads, Reads

Metrics = dict[str, float]
PACKAGES: Final = ("grpcio", "numpy", "protobuf", "rocksdict", "uvloop", "zstandard")


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """A ratio, what it compares, and how good it should be."""

    metric: str
    text: str
    bound: float
    is_upper: bool = True

    def is_met(self, value: float) -> bool:
        return value <= self.bound if self.is_upper else value >= self.bound


AIMS: Final = (
    Aim(metric="reads_per_hit", text="reads of files per hit", bound=1.0),
    Aim(metric="reads_per_miss", text="reads of files per miss", bound=0.0),
    Aim(metric="read_10k_cpu_ratio_vs_rocksdb", text="server CPU of a 10k read / LastN on RocksDB", bound=0.15),
    Aim(metric="get_1k_cpu_ratio_vs_null_rpc", text="server CPU of the newest 1,000 / null handler", bound=1.4),
    Aim(metric="disk_ratio_vs_fat_rows", text="disk bytes / fat rows", bound=0.15),
    Aim(
        metric="append_ratio_vs_rocksdb_rows", text="appends a second / synced RocksDB rows", bound=2.5, is_upper=False
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """Of a whole run."""

    events: int
    load_events_per_s_of: Mapping[str, float]
    disk_of: Mapping[str, Mapping[str, int]]
    """Bytes by server, then by entry of its data directory."""
    restart_s_of: Mapping[str, float]
    cold_of: Mapping[str, ColdReads]
    reads: Reads
    iterating_share: float
    appends: Appends


def metrics_of(findings: Findings, plan: Plan) -> Metrics:
    """Flat keys; those of a target begin with its name after the case: `read_10k_rocksdb_c1_cpu_us`, c1 and cN being the
    calls in flight."""
    loaded = plan.in_flight
    metrics: Metrics = {
        "reads_per_hit": findings.reads.reads_per_hit,
        "reads_per_miss": findings.reads.reads_per_miss,
        "rocksdb_iterating_share_of_read_cpu": findings.iterating_share,
    }
    _add_disk(metrics, findings)
    for (case, target, in_flight), cost in findings.reads.cost_of.items():
        name = f"{case}_{target}_c{in_flight}"
        metrics[f"{name}_cpu_us"] = cost.cpu_us
        metrics[f"{name}_p50_us"] = cost.latency_us(50)
        metrics[f"{name}_p99_us"] = cost.latency_us(99)
        metrics[f"{case}_{target}_reply_bytes"] = cost.reply_bytes / len(cost.latency_s)
    for (case, target), decode_us in findings.reads.decode_us_of.items():
        metrics[f"{case}_{target}_decode_us"] = decode_us
    for case in ("read_10k", "get_1k", "miss"):
        for peer in (ROWS, NULL):
            ratio = f"{case}_cpu_ratio_vs_{peer}"
            metrics[ratio] = _ratio(metrics, f"{case}_%s_c{loaded}_cpu_us", peer)
            metrics[f"{ratio}_c1"] = _ratio(metrics, f"{case}_%s_c1_cpu_us", peer)
            metrics[f"{case}_p99_ratio_vs_{peer}"] = _ratio(metrics, f"{case}_%s_c1_p99_us", peer)
    for server, cold in findings.cold_of.items():
        metrics[f"cold_{server}_reads_per_hit"] = cold.reads_per_hit
        metrics[f"cold_{server}_device_bytes_per_hit"] = cold.device_bytes_per_hit
        metrics[f"cold_{server}_p50_us"] = cold.cost.latency_us(50)
        metrics[f"cold_{server}_p99_us"] = cold.cost.latency_us(99)
        metrics[f"{server}_restart_s"] = findings.restart_s_of[server]
    for server, speed in findings.load_events_per_s_of.items():
        metrics[f"load_{server}_events_per_s"] = speed
    appends = findings.appends
    for server in appends.events_per_s_of:
        metrics[f"append_{server}_events_per_s"] = float(np.median(appends.events_per_s_of[server]))
        metrics[f"append_{server}_acked_events_per_s"] = float(np.median(appends.acked_per_s_of[server]))
        metrics[f"append_{server}_cpu_us_per_event"] = float(np.median(appends.cpu_us_of[server]))
        metrics[f"append_{server}_device_bytes_per_event"] = float(np.median(appends.written_bytes_of[server]))
    metrics["append_ratio_vs_rocksdb_rows"] = _ratio(metrics, "append_%s_events_per_s", ROWS)
    return metrics


def _add_disk(metrics: Metrics, findings: Findings) -> None:
    per_event = {server: sum(sizes.values()) / findings.events for server, sizes in findings.disk_of.items()}
    metrics["disk_bytes_per_event"] = per_event[STORE]
    for entry, size in findings.disk_of[STORE].items():
        metrics[f"disk_{entry or 'other'}_bytes_per_event"] = size / findings.events
    metrics["disk_fat_rows_bytes_per_event"] = per_event[ROWS]
    metrics["disk_thin_rows_bytes_per_event"] = per_event[THIN_ROWS]
    metrics["disk_ratio_vs_fat_rows"] = per_event[STORE] / per_event[ROWS]
    metrics["disk_ratio_vs_thin_rows"] = per_event[STORE] / per_event[THIN_ROWS]


def _ratio(metrics: Metrics, pattern: str, peer: str) -> float:
    return metrics[pattern % STORE] / metrics[pattern % peer]


def setup_of(plan: Plan, *, events: int, users: int, load_average: float) -> dict[str, object]:
    """Machine, versions and sizes. `load_average` as it was before the run: above 0.5, others were using the machine."""
    cpu = next(
        (line.partition(": ")[2] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.machine(),
    )
    return {
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
        "load_average_before": load_average,
        "loaded_events": events,
        "loaded_users": users,
        "event_bytes": EVENT_BYTES,
        "side_info_bytes": SIDE_INFO_BYTES,
        "plan": {name: value for name, value in asdict(plan).items() if value is not None},
    }


def write(path: Path, metrics: Metrics, setup: Mapping[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"metrics": metrics, "setup": setup}, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Section:
    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


def show(document: Mapping[str, Mapping[str, object]], console: Console) -> None:
    for section in _sections(document):
        table = Table(title=section.title, title_justify="left")
        for position, name in enumerate(section.head):
            table.add_column(name, justify="left" if position == 0 else "right")
        for row in section.rows:
            table.add_row(*row)
        console.print(table)


def markdown(document: Mapping[str, Mapping[str, object]]) -> str:
    lines = []
    for section in _sections(document):
        lines += [f"**{section.title}**", "", _line(section.head)]
        lines.append(_line(["---", *["---:"] * (len(section.head) - 1)]))
        lines += [*map(_line, section.rows), ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _sections(document: Mapping[str, Mapping[str, object]]) -> list[_Section]:
    metrics = {name: float(str(value)) for name, value in document["metrics"].items()}
    setup = document["setup"]
    aims = [
        [
            aim.text,
            f"{metrics[aim.metric]:.3f}",
            f"{'<=' if aim.is_upper else '>='} {aim.bound:g}",
            "met" if aim.is_met(metrics[aim.metric]) else "missed",
        ]
        for aim in AIMS
    ]
    plan = setup["plan"]
    assert isinstance(plan, dict)
    in_flight = (1, int(plan["in_flight"]))
    reads = []
    for case in ("read_10k", "get_1k", "miss"):
        for target in (STORE, f"{STORE}_plain", ROWS, NULL):
            cells = [case, target, f"{metrics[f'{case}_{target}_reply_bytes']:,.0f}"]
            for count in in_flight:
                name = f"{case}_{target}_c{count}"
                cells += [f"{metrics[f'{name}_{what}_us']:,.0f}" for what in ("cpu", "p50", "p99")]
            decode = metrics.get(f"{case}_{target}_decode_us")
            reads.append([*cells, "" if decode is None else f"{decode:,.0f}"])
    heads = [f"{what} at {count}" for count in in_flight for what in ("CPU", "P50", "P99")]
    return [
        _Section(title="Ratios and aims", head=["what", "value", "aim", ""], rows=aims),
        _Section(
            title=f"Reads, us; of the CPU of {ROWS}'s handler {metrics['rocksdb_iterating_share_of_read_cpu']:.0%} is iterating",
            head=["case", "target", "reply bytes", *heads, "client decode"],
            rows=reads,
        ),
        _Section(
            title="First reads of 10k histories after a restart, caches empty",
            head=["server", "reads per hit", "device bytes per hit", "P50 us", "P99 us", "restart s"],
            rows=[
                [
                    server,
                    f"{metrics[f'cold_{server}_reads_per_hit']:.2f}",
                    *(
                        f"{metrics[f'cold_{server}_{what}']:,.0f}"
                        for what in ("device_bytes_per_hit", "p50_us", "p99_us")
                    ),
                    f"{metrics[f'{server}_restart_s']:.1f}",
                ]
                for server in (STORE, ROWS)
            ],
        ),
        _Section(
            title="Disk, bytes an event",
            head=["what", "bytes"],
            rows=[
                [name.removeprefix("disk_").removesuffix("_bytes_per_event") or "all", f"{metrics[name]:.2f}"]
                for name in sorted(metrics)
                if name.startswith("disk_") and name.endswith("bytes_per_event")
            ],
        ),
        _Section(
            title="Appends",
            head=[
                "server",
                "events/s",
                "until the last reply",
                "server CPU us/event",
                "device bytes/event",
                "load, events/s",
            ],
            rows=[
                [
                    server,
                    f"{metrics[f'append_{server}_events_per_s']:,.0f}",
                    f"{metrics[f'append_{server}_acked_events_per_s']:,.0f}",
                    f"{metrics[f'append_{server}_cpu_us_per_event']:.2f}",
                    f"{metrics[f'append_{server}_device_bytes_per_event']:.1f}",
                    f"{metrics[f'load_{server}_events_per_s']:,.0f}",
                ]
                for server in (STORE, ROWS)
            ],
        ),
        _Section(
            title="Machine and sizes", head=["what", "value"], rows=[[k, str(v)] for k, v in sorted(setup.items())]
        ),
    ]
