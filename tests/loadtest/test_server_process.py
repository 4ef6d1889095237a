"""Children of a benchmark: started, measured, ended; and what they hold on disk."""

import asyncio
import os
import time
from pathlib import Path
from typing import Final

import pytest

from loadtest.drive import Cost, call_all
from loadtest.peers.null_rpc import LENGTH, METHOD
from loadtest.server_process import Program, ServerError, disk_bytes, drop_page_cache, running

NULL: Final = Program(name="null", arguments=["loadtest.peers.null_rpc"], data=None)


def _exists(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_null_handler_returns_as_many_bytes_as_asked(tmp_path: Path) -> None:
    cost = Cost()
    async with running(NULL, log=tmp_path / "log") as server:
        lengths = [0, 1, 20_000, 5_000_000, 20_000]
        replies = await call_all(server, METHOD, [LENGTH.pack(n) for n in lengths], in_flight=2, cost=cost)
    assert list(map(len, replies)) == lengths
    assert cost.reply_bytes == sum(lengths)
    assert len(cost.latency_s) == len(lengths)
    assert 0 < cost.latency_us(50) <= cost.latency_us(99)


async def test_cpu_counts_what_the_server_works(tmp_path: Path) -> None:
    async with running(NULL, log=tmp_path / "log") as server:
        await server.idle()
        rested = server.cpu_s()
        cost = Cost()
        await call_all(server, METHOD, [LENGTH.pack(1_000)] * 500, in_flight=8, cost=cost)
        worked = server.cpu_s() - rested
        assert 500 * 10e-6 < worked < 10
        assert cost.cpu_us == pytest.approx(worked / 500 * 1e6, rel=0.5)
        assert server.io()["syscr"] > 0


async def test_idle_names_the_moment_of_the_last_work(tmp_path: Path) -> None:
    async with running(NULL, log=tmp_path / "log") as server:
        await server.idle()
        began = time.monotonic()
        await call_all(server, METHOD, [LENGTH.pack(1_000)] * 200, in_flight=8)
        replied = time.monotonic()
        last = await server.idle()
        assert began < last
        assert last < time.monotonic()
        assert last - replied < 2.0


async def test_a_busy_server_is_not_idle(tmp_path: Path) -> None:
    async with running(NULL, log=tmp_path / "log") as server, asyncio.TaskGroup() as group:
        calls = group.create_task(call_all(server, METHOD, [LENGTH.pack(100)] * 1_000_000, in_flight=4))
        with pytest.raises(ServerError, match="still busy"):
            await server.idle(timeout_s=1.5)
        calls.cancel()


async def test_the_child_ends_with_the_block_however_that_ends(tmp_path: Path) -> None:
    async with running(NULL, log=tmp_path / "log") as server:
        assert _exists(server.pid)
    assert not _exists(server.pid)

    async def fail() -> None:
        nonlocal server
        async with running(NULL, log=tmp_path / "log") as server:
            raise KeyError

    with pytest.raises(KeyError):
        await fail()
    assert not _exists(server.pid)


async def test_a_program_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    broken = Program(name="broken", arguments=["loadtest.peers.no_such_peer"], data=None)
    with pytest.raises(ServerError, match=r"broken ended before it served:\n.*no_such_peer"):
        async with running(broken, log=tmp_path / "log"):
            pytest.fail("it cannot serve")


async def test_a_refused_call_names_server_and_method(tmp_path: Path) -> None:
    async with running(NULL, log=tmp_path / "log") as server:
        with pytest.raises(ServerError, match=r"null failed in loadtest\.Null/Missing"):
            await call_all(server, "loadtest.Null/Missing", [b""] * 3, in_flight=2)


def test_disk_bytes_leave_holes_out_and_tell_folders_apart(tmp_path: Path) -> None:
    (tmp_path / "log" / "1").mkdir(parents=True)
    (tmp_path / "log" / "1" / "wal").write_bytes(os.urandom(50_000))
    (tmp_path / "lock").write_bytes(b"x" * 100)
    with (tmp_path / "log" / "sparse").open("wb") as file:
        file.truncate(100 << 20)
    os.sync()
    sizes = disk_bytes(tmp_path)
    assert set(sizes) == {"", "log"}
    assert 50_000 <= sizes["log"] < 200_000
    assert 512 <= sizes[""] < 20_000


def test_dropping_the_page_cache_keeps_the_bytes(tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(content)
    os.sync()
    drop_page_cache(tmp_path)
    assert (tmp_path / "folder" / "file").read_bytes() == content
