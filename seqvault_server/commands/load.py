"""`seqvault load`: a Parquet file into the store, each event once, however often the load is interrupted.

`parquet` cuts the file into batches, `load_state` says which of them are stored, `load_report` tells it to a person.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console

from laser_client.client import SeqVaultClient
from laser_client.config import ClientConfig
from laser_client.errors import InvalidRequest, Overloaded, SeqVaultError
from seqvault_server.commands.load_report import Report
from seqvault_server.commands.load_state import LoadState, StateError, read_state, state_file_of, write_state
from seqvault_server.commands.parquet import Columns, ParquetError, ParquetRows

MAX_BATCH_ROWS: Final = 8_192
MAX_BATCH_BYTES: Final = 2 << 20
"""Half of what the server takes in one request, if nobody configured it."""
CALL_TIMEOUT_S: Final = 60.0
"""Outlasts a restart of the server."""
SAVE_EVERY_S: Final = 1.0
INTERRUPTED: Final = 130
"""Exit status of a program that Ctrl-C ended."""

Keys: TypeAlias = "npt.NDArray[np.generic]"
Send: TypeAlias = "Callable[[int, Keys, Columns], Coroutine[Any, Any, None]]"
"""Stores the batch of that number."""


class LoadError(Exception):
    """The load cannot begin, or not go on; the text says what to do."""


def load_file(file: Path, *, address: str, in_flight: int, restart: bool, console: Console) -> None:
    """Returns when all of the file is stored. Ctrl-C ends the program with status 130, after a word on how to go on.

    Raises: LoadError; SeqVaultError if the server fails before the first batch.
    """
    try:
        asyncio.run(_load(file, address=address, in_flight=in_flight, restart=restart, console=console))
    except (OSError, ParquetError) as error:
        raise LoadError(f"{file}: {error}") from error
    except StateError as error:
        raise LoadError(f"{file}: an earlier load was interrupted, but {error}; --restart begins anew") from error
    except KeyboardInterrupt:
        console.print("interrupted; the same command again goes on from here", soft_wrap=True)
        raise click.exceptions.Exit(INTERRUPTED) from None


async def _load(file: Path, *, address: str, in_flight: int, restart: bool, console: Console) -> None:
    async with SeqVaultClient(address) as client:
        schema = await client.get_schema(timeout_s=CALL_TIMEOUT_S)
    rows = ParquetRows.open(file, schema)
    state_file = state_file_of(file)
    if restart:
        state_file.unlink(missing_ok=True)
    batch_rows = min(MAX_BATCH_ROWS, MAX_BATCH_BYTES // rows.row_bytes)
    state = LoadState.begin(file, address=address, row_count=rows.row_count, batch_rows=batch_rows)
    earlier = read_state(state_file)
    if earlier is not None:
        earlier.check_continues(state)
        state = earlier
    write_state(state_file, state)
    noun = "events" if rows.has_events else "items"
    done = min(state.next_batch * state.batch_rows, rows.row_count)
    async with SeqVaultClient(address, ClientConfig(producer_id=state.producer_id)) as client:
        with Report(console, noun=noun, total=rows.row_count, done=done) as report:
            if earlier is not None:
                report.say(f"going on after {done:,} {noun} of an interrupted load")
            if rows.has_events:
                send = _sender_of_events(client, report)
            else:
                # One at a time: of an item that comes twice, the later row has to win.
                send, in_flight = _sender_of_items(client, report), 1
            try:
                await _send_all(rows, send, state, state_file, in_flight=in_flight, report=report)
            except SeqVaultError as error:
                raise LoadError(f"{error}; the same command again goes on after {report.done:,} {noun}") from error
    state_file.unlink()
    report.say(f"{file}: {report.summary()}")


async def _send_all(
    rows: ParquetRows, send: Send, state: LoadState, state_file: Path, *, in_flight: int, report: Report
) -> None:
    """Ends with a saved state, whatever ends it."""
    batches = rows.batches(batch_rows=state.batch_rows, first=state.next_batch)
    under_way: deque[tuple[int, asyncio.Task[None]]] = deque()
    number = state.next_batch
    saved_at = time.monotonic()
    try:
        while (batch := await asyncio.to_thread(_next, batches)) is not None or under_way:
            if batch is not None:
                keys, columns = batch
                under_way.append((len(keys), asyncio.create_task(send(number, keys, columns))))
                number += 1
            if batch is None or len(under_way) == in_flight:
                # Always the oldest: so no number is further than `in_flight` above one in doubt.
                stored, task = under_way[0]
                await task
                under_way.popleft()
                state = replace(state, next_batch=state.next_batch + 1)
                report.advance(stored)
            if time.monotonic() - saved_at >= SAVE_EVERY_S:
                await asyncio.to_thread(write_state, state_file, state)
                saved_at = time.monotonic()
    finally:
        for _, task in under_way:
            task.cancel()
        await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
        write_state(state_file, state)


def _next(batches: Iterator[tuple[Keys, Columns]]) -> tuple[Keys, Columns] | None:
    return next(batches, None)


def _sender_of_events(client: SeqVaultClient, report: Report) -> Send:
    async def send(number: int, keys: Keys, columns: Columns) -> None:
        async def append() -> None:
            await client.append_events(keys, columns, sequence=number + 1, timeout_s=CALL_TIMEOUT_S)

        try:
            await _waiting_out(append, report)
        except InvalidRequest as error:
            # Stored before the interruption: see `load_state`.
            if error.reason != "SEQUENCE_TOO_OLD":
                raise

    return send


def _sender_of_items(client: SeqVaultClient, report: Report) -> Send:
    async def send(_number: int, keys: Keys, columns: Columns) -> None:
        async def put() -> None:
            await client.put_items(keys, columns, timeout_s=CALL_TIMEOUT_S)

        await _waiting_out(put, report)

    return send


async def _waiting_out(call: Callable[[], Coroutine[Any, Any, None]], report: Report) -> None:
    """Calls again for as long as the server says that it will take the call later."""
    while True:
        try:
            return await call()
        except Overloaded as error:
            if error.retry_after_ms is None:
                raise
            report.waiting(error.message)
            await asyncio.sleep(error.retry_after_ms / 1000)
