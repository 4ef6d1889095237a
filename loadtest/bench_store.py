"""`make bench-store`: the store beside LastN on RocksDB and a handler that does nothing, all as servers on loopback.

    load      the same items and events, in global time order, into the store, fat rows and thin rows
    settle    the store cuts its log, the rows are compacted to one level; then disk bytes are counted
    cold      store and fat rows restart, the page cache is dropped, each 10,000-event history is read once
    read      rounds: every case from every server, one call at a time and several
    append    rounds of new events until each server has nothing left to do

docs/benchmarks.md says what the numbers mean.
"""

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from loadtest.catalogue import Catalogue
from loadtest.generator import Workload
from loadtest.server_process import ServerError, running
from loadtest.store_phases import (
    Producer,
    Step,
    WrongAnswer,
    append_steps,
    check_answers,
    disk_of,
    load,
    measure_appends,
    settle_rows,
    settle_store,
)
from loadtest.store_plan import REPOSITORY, ROWS, SCHEMA, STORE, THIN_ROWS, Plan, Programs
from loadtest.store_reads import iterating_share, measure_reads, read_cold, read_steps
from loadtest.store_report import Findings, markdown, metrics_of, setup_of, show, write
from seqcore.schema import Schema

RESULT = REPOSITORY / "build" / "bench" / "store.json"
_CHECKED_USERS = 8


class _Bars:
    """One progress bar a phase, on stderr."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    @contextlib.contextmanager
    def phase(self, name: str, total: int | None = None) -> Iterator[Step]:
        task = self._progress.add_task(name, total=total)
        yield lambda: self._progress.advance(task)
        self._progress.update(task, total=total or 1, completed=total or 1)


async def run(plan: Plan, directory: Path, bars: _Bars) -> tuple[Findings, Workload]:
    """The whole benchmark, with data under `directory`.

    Raises: ServerError, WrongAnswer.
    """
    schema = Schema.from_mapping(yaml.safe_load(SCHEMA.read_text()))
    with bars.phase("generate events"):
        catalogue = Catalogue(seed=plan.seed, item_count=plan.items)
        workload = Workload.of_events(plan.events, seed=plan.seed, catalogue=catalogue, cohort=plan.cohort)
        batches = list(workload.batches(events=plan.events_per_call))
    programs = Programs.under(directory, plan)
    to_store, to_rows = Producer(), Producer()
    speed_of: dict[str, float] = {}
    disk: dict[str, dict[str, int]] = {}

    async with running(programs.store, log=directory / "seqvault.log") as store:
        with bars.phase(f"load {STORE}", len(batches)) as step:
            speed_of[STORE] = await load(store, workload, batches, producer=to_store, plan=plan, step=step)
        settling = asyncio.create_task(settle_store(store, workload, producer=to_store)) if plan.cuts_log else None
        for program, producer in ((programs.rows, to_rows), (programs.thin_rows, Producer())):
            async with running(program, log=directory / f"{program.name}.log") as rows:
                with bars.phase(f"load {program.name}", len(batches)) as step:
                    speed_of[program.name] = await load(
                        rows, workload, batches, producer=producer, plan=plan, step=step
                    )
                with bars.phase(f"compact {program.name}"):
                    await settle_rows(rows)
                disk[program.name] = await asyncio.to_thread(disk_of, rows)
        with bars.phase(f"settle {STORE}"):
            if settling is not None:
                await settling
        disk[STORE] = await asyncio.to_thread(disk_of, store)
    shutil.rmtree(directory / THIN_ROWS)
    del batches

    async with (
        running(programs.store_in_appends, log=directory / "seqvault.log") as store,
        running(programs.rows, log=directory / "rocksdb.log") as rows,
        running(programs.null, log=directory / "null_rpc.log") as null,
    ):
        cohort = workload.user_ids[: plan.cohort].tolist()
        with bars.phase("cold reads"):
            cold_of = {server.name: await read_cold(server, cohort) for server in (store, rows)}
        checked = workload.user_ids[:: max(1, len(workload.user_ids) // _CHECKED_USERS)].tolist()
        with bars.phase("check answers"):
            for server in (store, rows):
                await check_answers(server, workload, schema, checked)
        with bars.phase("read rounds", read_steps(plan)) as step:
            reads = await measure_reads(store, rows, null, workload, schema, plan=plan, step=step)
        share = await iterating_share(rows)
        with bars.phase("append rounds", append_steps(plan)) as step:
            appends = await measure_appends(
                [(store, to_store), (rows, to_rows)], workload.live_batches(), plan=plan, step=step
            )
        findings = Findings(
            events=workload.event_count,
            load_events_per_s_of=speed_of,
            disk_of=disk,
            restart_s_of={STORE: store.start_s, ROWS: rows.start_s},
            cold_of=cold_of,
            reads=reads,
            iterating_share=share,
            appends=appends,
        )
    return findings, workload


async def _run_until_signal(plan: Plan, directory: Path, console: Console) -> tuple[Findings, Workload]:
    """Servers are ended, each by its pid, however this ends."""
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        return await run(plan, directory, _Bars(progress))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m loadtest.bench_store", description="The store beside its peers.")
    parser.add_argument("--events", type=float, default=Plan.events, help="events to load (default 6e6)")
    parser.add_argument("--seed", type=int, default=Plan.seed, help="of the generated data (default 1)")
    parser.add_argument("--quick", action="store_true", help="every phase in small: shows that it works, not how fast")
    parser.add_argument("--out", type=Path, default=RESULT, help="result (default build/bench/store.json)")
    parser.add_argument("--keep", action="store_true", help="keep data and logs of the servers")
    parser.add_argument("--markdown", type=Path, metavar="JSON", help="print an earlier result as Markdown, and end")
    return parser.parse_args()


def main() -> int:
    """Exit status."""
    arguments = _arguments()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text())))
        return 0
    console = Console(stderr=True)
    plan = Plan.quick() if arguments.quick else replace(Plan(), events=int(arguments.events))
    plan = replace(plan, seed=arguments.seed)
    load_average = os.getloadavg()[0]
    out: Path = arguments.out
    out.parent.mkdir(parents=True, exist_ok=True)
    directory = Path(tempfile.mkdtemp(prefix="store-", dir=out.parent))
    try:
        findings, workload = asyncio.run(_run_until_signal(plan, directory, console))
    except (ServerError, WrongAnswer) as error:
        console.print(f"error: {error}", style="bold red")
        return 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("interrupted; the servers have ended")
        return 130
    finally:
        if not arguments.keep:
            shutil.rmtree(directory, ignore_errors=True)
    metrics = metrics_of(findings, plan)
    setup = setup_of(plan, events=workload.event_count, users=len(workload.user_ids), load_average=load_average)
    write(out, metrics, setup)
    tables = Console()
    if not tables.is_terminal:
        tables.width = 140
    show(json.loads(out.read_text()), tables)
    print(f"wrote {out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
