"""A server as a child process: started on a free port, measured through /proc, ended by its own pid."""

import asyncio
import contextlib
import os
import re
import signal
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import grpc.aio

START_TIMEOUT_S: Final = 120.0
STOP_TIMEOUT_S: Final = 60.0
IDLE_WINDOW_S: Final = 0.6
"""Longer than a store's background work pauses between two steps."""
_IDLE_CPU_S: Final = 0.004
_LOOK_EVERY_S: Final = 0.02
_READY: Final = re.compile(rb"ready port=(\d+)")


class ServerError(RuntimeError):
    """A child did not start, never came to rest, or refused a call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How to start a server. `arguments` are those of `python -m`."""

    name: str
    arguments: Sequence[str]
    data: Path | None
    """The directory whose bytes are the server's; None: it stores nothing."""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerProcess:
    """A serving child and a connection to it."""

    program: Program
    pid: int
    channel: grpc.aio.Channel
    start_s: float
    """From exec to the ready line."""

    @property
    def name(self) -> str:
        return self.program.name

    def cpu_s(self) -> float:
        """User and system time of the whole process since its start, threads that ended included; in nanoseconds where
        /proc/PID/stat counts hundredths of a second."""
        # What clock_getcpuclockid(3) answers on Linux.
        return time.clock_gettime((~self.pid << 3) | 2)

    def io(self) -> Mapping[str, int]:
        """/proc/PID/io: `syscr` read calls, `read_bytes` from the device, `write_bytes` to it."""
        lines = Path(f"/proc/{self.pid}/io").read_text().splitlines()
        return {name: int(value) for name, _, value in (line.partition(": ") for line in lines)}

    async def idle(self, *, timeout_s: float = 300.0) -> float:
        """Waits until the process rests; returns the moment (`time.monotonic`) at which it last worked.

        Raises: ServerError after `timeout_s`.
        """
        began = worked_at = time.monotonic()
        window = [(began, self.cpu_s())]
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            now, cpu = time.monotonic(), self.cpu_s()
            if cpu - window[-1][1] > _LOOK_EVERY_S / 100:
                worked_at = now
            window = [(at, used) for at, used in window if at >= now - IDLE_WINDOW_S]
            window.append((now, cpu))
            if now - began >= IDLE_WINDOW_S and cpu - window[0][1] < _IDLE_CPU_S:
                return worked_at
            if now - began > timeout_s:
                raise ServerError(f"{self.name} is still busy after {timeout_s:.0f} s")


@asynccontextmanager
async def running(program: Program, *, log: Path) -> AsyncIterator[ServerProcess]:
    """The server, until the block is left: then SIGTERM, and SIGKILL if that does not end it. stderr goes to `log`.

    Raises: ServerError.
    """
    began = time.monotonic()
    with log.open("ab") as errors:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *program.arguments,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            # Whatever this process can import, however it was started, its children can.
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **program.environment},
            # A Ctrl-C is for this process; its children are ended in order.
            start_new_session=True,
        )
    try:
        port = await _port(child, program, log)
        started_s = time.monotonic() - began
        channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)])
        async with channel:
            yield ServerProcess(program=program, pid=child.pid, channel=channel, start_s=started_s)
    finally:
        await asyncio.shield(_end(child))


async def _port(child: asyncio.subprocess.Process, program: Program, log: Path) -> int:
    assert child.stdout is not None
    try:
        async with asyncio.timeout(START_TIMEOUT_S):
            async for line in child.stdout:
                if match := _READY.search(line):
                    return int(match[1])
    except TimeoutError:
        raise ServerError(f"{program.name} is not ready after {START_TIMEOUT_S:.0f} s; see {log}") from None
    raise ServerError(f"{program.name} ended before it served:\n{_end_of(log)}")


def _end_of(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.send_signal(signal.SIGTERM)
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()


def disk_bytes(directory: Path) -> dict[str, int]:
    """Bytes that the files under each entry of `directory` occupy on the device, holes not counted; files of the top
    level are under ''."""
    sizes: dict[str, int] = {}
    for folder, _, names in os.walk(directory):
        top = Path(folder).relative_to(directory).parts[:1]
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # compacted away meanwhile
                blocks = (Path(folder) / name).stat().st_blocks
                sizes["".join(top)] = sizes.get("".join(top), 0) + 512 * blocks
    return sizes


def drop_page_cache(directory: Path) -> None:
    """Makes the next reads of the files cold. Dirty pages stay, so sync first: `os.sync`."""
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                finally:
                    os.close(descriptor)
