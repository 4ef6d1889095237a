"""A real process that is killed, or that the disk fails: every acknowledged put is there, none half."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.seqvault_server.sideinfo import putting_child
from tests.seqvault_server.sideinfo.harness import opened, read
from tests.seqvault_server.sideinfo.putting_child import ITEMS, items_of

REPOSITORY = Path(__file__).parents[3]


def _start(folder: Path, *limit_bytes: int) -> subprocess.Popen[str]:
    command = [sys.executable, putting_child.__file__, str(folder), *map(str, limit_bytes)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}
    )


def _check(folder: Path, acked: int, *, at_most: int) -> None:
    with opened(folder, max_items=10_000_000) as side_info:
        written = side_info.version
        assert acked <= written <= at_most
        assert side_info.statistics().items == written * (ITEMS - 1) + 1
        for version in range(1, written + 1):
            present, columns = read(side_info, items_of(version))
            assert present == [1] * ITEMS
            assert columns["category"].tolist() == [version] * (ITEMS - 1) + [written]
        assert not any(read(side_info, items_of(written + 1))[0][:-1])


def test_acked_puts_survive_kill_9(tmp_path: Path) -> None:
    random, acked = np.random.default_rng(1), 0
    for _ in range(4):
        with _start(tmp_path) as child:
            assert child.stdout is not None
            acked = [int(child.stdout.readline()) for _ in range(int(random.integers(2, 60)))][-1]
            child.kill()
            # What it printed before it died was acked, too; a last line may be cut.
            rest = [line for line in child.stdout if line.endswith("\n")]
            acked = int(rest[-1]) if rest else acked
        assert child.returncode == -9
        _check(tmp_path, acked, at_most=acked + 1)


def test_after_a_failed_write_no_more_is_taken_until_reopened(tmp_path: Path) -> None:
    with _start(tmp_path, 1 << 20) as child:
        assert child.stdout is not None
        *acks, failure, refusal = child.stdout.read().splitlines()
    assert child.returncode == 0
    assert len(acks) > 5
    assert "a write failed" in failure
    assert refusal == failure
    _check(tmp_path, len(acks), at_most=len(acks))
    with _start(tmp_path) as child:
        assert child.stdout is not None
        assert int(child.stdout.readline()) == len(acks) + 1
        child.kill()
