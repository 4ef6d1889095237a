"""`seqvault get`: a user's newest events, as a person reads them."""

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

import click
import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Console
from rich.table import Table

from laser_client.client import SeqVaultClient
from laser_client.decode import History, SideInfo
from laser_client.query import Query
from seqcore.schema import Schema

UNKNOWN_ITEM = "-"


def show_history(
    user: int,
    *,
    address: str,
    timeout: float,
    last: int,
    view: str,
    columns: Sequence[str],
    side_info: Sequence[str],
    as_of_ms: int | None,
    console: Console,
) -> None:
    """Prints the events, oldest first. An unknown user is said so and ends the program with status 1, as grep does.

    Raises: SeqVaultError.
    """
    query = Query(view=view, columns=tuple(columns), max_events=last, side_info=tuple(side_info), as_of_ms=as_of_ms)
    schema, shown, event_count = asyncio.run(_read(user, query, address=address, timeout_s=timeout))
    if not shown.found:
        console.print(f"user {user}: unknown, no event is stored", highlight=False)
        raise click.exceptions.Exit(1)
    table = _table(shown, schema)
    if not console.is_terminal:
        # A pipe has no width: nothing is folded for `grep` and `less -S`.
        console.width = max(80, console.measure(table, options=console.options.update(max_width=1 << 16)).maximum)
    console.print(table)
    console.print(
        f"user {user}: {shown.event_count:,} of {event_count:,} events; "
        f"reads: {shown.reads}, {shown.read_bytes:,} bytes",
        highlight=False,
    )


async def _read(user: int, query: Query, *, address: str, timeout_s: float) -> tuple[Schema, History, int]:
    """The schema, the history, and how many events the user has in all."""
    async with SeqVaultClient(address) as client:
        schema = await client.get_schema(timeout_s=timeout_s)
        names = query.columns_of(schema)
        view = schema.view_of.get(query.view)
        is_joined = bool(query.side_info or (view and view.side_info))
        if is_joined and schema.item.name not in names:
            query = replace(query, columns=(schema.item.name, *names))
        shown = await client.get_history(user, query, timeout_s=timeout_s)
        everything = await client.get_history(user, Query(columns=(schema.time.name,)), timeout_s=timeout_s)
    return schema, shown, everything.event_count


def _table(history: History, schema: Schema) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    cells: list[Iterator[str]] = []
    for name, values in history.columns.items():
        is_time = name == schema.time.name
        table.add_column(f"{name} (UTC)" if is_time else name, justify="right", overflow="fold")
        cells.append(_utc(values) if is_time else map(_text, values))
    if history.side_info is not None:
        items = history.columns[schema.item.name]
        for name in history.side_info.columns:
            table.add_column(name, justify="right", overflow="fold")
            cells.append(_joined(history.side_info, name, items))
    for row in zip(*cells, strict=True):
        table.add_row(*row)
    return table


def _joined(side_info: SideInfo, name: str, items: npt.NDArray[np.generic]) -> Iterator[str]:
    values = side_info.columns[name]
    for position in np.searchsorted(side_info.item_ids, items).tolist():
        yield _text(values[position]) if side_info.is_present[position] else UNKNOWN_ITEM


def _utc(times_ms: npt.NDArray[np.generic]) -> Iterator[str]:
    for text in np.datetime_as_string(times_ms.astype("datetime64[ms]"), unit="ms"):
        yield str(text).replace("T", " ")


def _text(value: npt.NDArray[np.generic] | np.generic) -> str:
    if isinstance(value, np.ndarray):
        return " ".join(map(_text, value))
    return f"{value:g}" if isinstance(value, np.floating) else str(value)
