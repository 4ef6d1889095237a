"""The store's benchmark in small: every phase runs, answers are checked, numbers are whole, no child is left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

import pytest

from loadtest.store_report import AIMS

COMMAND: Final = (sys.executable, "-m", "loadtest.bench_store")
NAMED: Final = {
    "reads_per_hit",
    "reads_per_miss",
    "disk_bytes_per_event",
    "disk_log_bytes_per_event",
    "disk_ratio_vs_fat_rows",
    "disk_ratio_vs_thin_rows",
    "read_10k_cpu_ratio_vs_rocksdb",
    "read_10k_p99_ratio_vs_rocksdb",
    "read_10k_seqvault_c1_p50_us",
    "read_10k_seqvault_c8_cpu_us",
    "read_10k_seqvault_decode_us",
    "get_1k_cpu_ratio_vs_null_rpc",
    "cold_seqvault_reads_per_hit",
    "cold_rocksdb_reads_per_hit",
    "append_ratio_vs_rocksdb_rows",
    "append_seqvault_events_per_s",
    *(aim.metric for aim in AIMS),
}
"""What other programs read: a renamed metric is a break."""


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    out = folder / "store.json"
    command = [*COMMAND, "--quick", "--out", str(out)]
    ended = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=110, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "reads of files per hit" in ended.stdout
    assert list(folder.iterdir()) == [out], "data of the servers is left behind"
    return out


@pytest.fixture(scope="module")
def document(result: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(result.read_text())
    return loaded


def test_metrics_are_flat_numbers_and_all_there(document: dict[str, Any]) -> None:
    metrics = document["metrics"]
    assert metrics.keys() >= NAMED
    assert all(isinstance(value, float) for value in metrics.values())
    assert {name for name, value in metrics.items() if value < 0} <= {"cold_rocksdb_reads_per_hit"}


def test_ratios_follow_from_what_they_compare(document: dict[str, Any]) -> None:
    metrics = document["metrics"]
    assert metrics["read_10k_cpu_ratio_vs_rocksdb"] == pytest.approx(
        metrics["read_10k_seqvault_c8_cpu_us"] / metrics["read_10k_rocksdb_c8_cpu_us"]
    )
    assert metrics["disk_ratio_vs_fat_rows"] == pytest.approx(
        metrics["disk_bytes_per_event"] / metrics["disk_fat_rows_bytes_per_event"]
    )
    parts = [
        value
        for name, value in metrics.items()
        if name.startswith("disk_")
        and name.endswith("_bytes_per_event")
        and "rows" not in name
        and name != "disk_bytes_per_event"
    ]
    whole = metrics["disk_bytes_per_event"]
    assert sum(parts) == pytest.approx(whole)


def test_a_hit_costs_one_read_and_a_miss_none(document: dict[str, Any]) -> None:
    assert document["metrics"]["reads_per_hit"] == 1.0
    assert document["metrics"]["cold_seqvault_reads_per_hit"] == 1.0
    assert document["metrics"]["reads_per_miss"] == 0.0


def test_the_null_handler_returns_as_many_bytes(document: dict[str, Any]) -> None:
    metrics = document["metrics"]
    assert metrics["read_10k_null_rpc_reply_bytes"] == metrics["read_10k_seqvault_reply_bytes"] > 10_000


def test_setup_names_machine_versions_and_sizes(document: dict[str, Any]) -> None:
    setup = document["setup"]
    assert setup["cores"] == os.cpu_count()
    assert setup["loaded_events"] == 100_000
    assert setup["packages"]["rocksdict"]
    assert setup["plan"]["cohort"] == 4


def test_markdown_is_made_from_the_result_alone(result: Path, document: dict[str, Any]) -> None:
    command = [*COMMAND, "--markdown", str(result)]
    shown = subprocess.run(command, env=_environment(), capture_output=True, text=True, timeout=60, check=True).stdout
    ratio = document["metrics"]["append_ratio_vs_rocksdb_rows"]
    assert f"| appends a second / synced RocksDB rows | {ratio:.3f} | >= 2.5 |" in shown
    for line in filter(None, shown.splitlines()):
        assert line.startswith(("|", "**")), line


def test_ended_by_a_signal_it_ends_its_servers(tmp_path: Path) -> None:
    command = [*COMMAND, "--events", "2e6", "--out", str(tmp_path / "store.json")]
    with subprocess.Popen(command, env=_environment(), stderr=subprocess.PIPE, text=True) as bench:
        try:
            children = _children(bench)
            bench.send_signal(signal.SIGTERM)
            _, errors = bench.communicate(timeout=60)
        finally:
            bench.kill()
    assert bench.returncode == 130, errors
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert list(tmp_path.iterdir()) == []


def _children(bench: "subprocess.Popen[str]") -> list[int]:
    """Pids of the servers, once there is one."""
    tasks = Path(f"/proc/{bench.pid}/task")
    while bench.poll() is None:
        children = [int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()]
        if children:
            return children
        time.sleep(0.05)
    raise AssertionError("it ended before it started a server")
