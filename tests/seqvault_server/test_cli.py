"""`seqvault load | get | health | serve` as a person calls them: real processes, real files."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from laser_client.client import SeqVaultClient
from laser_client.decode import History, Items
from seqvault_server.commands.load_state import read_state, state_file_of
from tests.e2e.server_process import ROOT, SCHEMA_FILE, ServerProcess, server

ROW: Final = np.dtype([("item_id", "u8"), ("time_ms", "i8"), ("action", "u1"), ("scene", "u1"), ("dwell_ms", "u4")])
TIMEOUT_S: Final = 60.0


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `python -m loadtest.generator` writes; read-only for the tests."""
    folder = tmp_path_factory.mktemp("generated")
    out = folder / "events.parquet"
    arguments = ["-m", "loadtest.generator", "--events", "60000", "--items", "2000", "--out", str(out)]
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=_environment(), timeout=TIMEOUT_S)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ServerProcess]:
    with server(tmp_path / "data") as process:
        yield process


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """For tests whose calls are refused: it stays empty."""
    with server(tmp_path_factory.mktemp("empty") / "data") as process:
        yield process


@pytest.fixture
def events(generated: Path, tmp_path: Path) -> Path:
    """The test's own copy: a load leaves its state beside the file."""
    return Path(shutil.copy(generated / "events.parquet", tmp_path))


def _environment() -> dict[str, str]:
    paths = [str(ROOT), str(ROOT / "proto"), str(ROOT / "clients" / "python")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _seqvault(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "seqvault_server", *map(str, arguments)],
        check=False,
        capture_output=True,
        text=True,
        env=_environment(),
        timeout=TIMEOUT_S,
    )
    assert "Traceback" not in done.stderr
    return done


def _start_load(file: Path, target: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "seqvault_server", "load", str(file), "--address", target, *options]
    return subprocess.Popen(
        command,
        env=_environment(),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        # A shell's background jobs ignore SIGINT, and so would their children: Ctrl-C must work even if the tests are one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509  no other thread forks here
    )


def _histories(target: str, users: Sequence[int]) -> list[History]:
    async def read() -> list[History]:
        async with SeqVaultClient(target) as client:
            return [await client.get_history(user) for user in users]

    return asyncio.run(read())


def _rows(columns: Mapping[str, npt.NDArray[np.generic]]) -> npt.NDArray[np.void]:
    rows = np.empty(len(columns["time_ms"]), ROW)
    for name in ROW.names or ():
        rows[name] = columns[name]
    return rows


def _assert_stored_once(target: str, file: Path) -> None:
    """Each user has just the events of the file: as many, and the same when both are sorted."""
    table = pq.read_table(file)
    rows = _rows({name: table[name].to_numpy() for name in (ROW.names or ())})
    user_of_rows = table["user_id"].to_numpy()
    users = np.unique(user_of_rows)
    for history in _histories(target, users.tolist()):
        wanted = rows[user_of_rows == history.user_id]
        stored = _rows(history.columns)
        np.testing.assert_array_equal(np.sort(stored), np.sort(wanted), strict=True)
        np.testing.assert_array_equal(stored["time_ms"], np.sort(wanted["time_ms"]))


def _write_events(
    file: Path, *, rows: int, users: int = 7, row_group: int = 10_000, changes: Mapping[str, object] | None = None
) -> None:
    """`changes`: columns added or replaced; None leaves one out."""
    arrays: dict[str, object] = {
        "user_id": np.arange(rows, dtype=np.uint64) % users,
        "item_id": np.arange(rows, dtype=np.uint64),
        "time_ms": 1_700_000_000_000 + np.arange(rows, dtype=np.int64),
        "action": (np.arange(rows) % 4).astype(np.uint8),
        "scene": np.zeros(rows, np.uint8),
        "dwell_ms": np.arange(rows, dtype=np.uint32),
        **(changes or {}),
    }
    kept = {name: values for name, values in arrays.items() if values is not None}
    pq.write_table(pa.table(kept), file, row_group_size=row_group)


def test_generated_events_are_loaded_once(store: ServerProcess, events: Path) -> None:
    done = _seqvault("load", events, "--address", store.target)
    assert done.returncode == 0, done.stderr
    assert re.search(r"events\.parquet: 60,000 events in [\d.,]+ s, [\d,]+ events/s\n$", done.stderr)
    assert not state_file_of(events).exists()
    _assert_stored_once(store.target, events)


class _StallingProxy:
    """Forwards bytes between a loader and the store until `limit_bytes` came from the loader; then holds what comes."""

    def __init__(self, port: int, *, limit_bytes: int) -> None:
        self._port = port
        self._limit_bytes = limit_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = [self._listener]
        self.is_stalled = threading.Event()
        self.target = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in self._sockets:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                loader, _ = self._listener.accept()
            except OSError:
                return
            behind = socket.create_connection(("127.0.0.1", self._port))
            self._sockets += [loader, behind]
            threading.Thread(target=self._forward, args=(loader, behind), daemon=True).start()
            threading.Thread(target=self._answer, args=(behind, loader), daemon=True).start()

    def _forward(self, loader: socket.socket, behind: socket.socket) -> None:
        try:
            while data := loader.recv(1 << 14):
                self._limit_bytes -= len(data)
                behind.sendall(data)
                if self._limit_bytes < 0:
                    self.is_stalled.set()
                    return
        except OSError:
            return

    def _answer(self, behind: socket.socket, loader: socket.socket) -> None:
        try:
            while data := behind.recv(1 << 14):
                loader.sendall(data)
        except OSError:
            return


@pytest.fixture
def proxy(store: ServerProcess) -> Iterator[_StallingProxy]:
    """Stalls after about 600 kB: three batches of events are through by then, the others are not."""
    proxy = _StallingProxy(store.port, limit_bytes=600_000)
    yield proxy
    proxy.close()


def _readdress(file: Path, target: str) -> None:
    """The state as if the load had gone to the store without the proxy."""
    path = state_file_of(file)
    path.write_text(json.dumps({**json.loads(path.read_text()), "address": target}))


def test_a_killed_load_goes_on_and_stores_no_event_twice(
    store: ServerProcess, proxy: _StallingProxy, events: Path
) -> None:
    loader = _start_load(events, proxy.target)
    assert proxy.is_stalled.wait(TIMEOUT_S)
    loader.kill()
    loader.communicate()
    state = read_state(state_file_of(events))
    assert state is not None
    assert state.next_batch < 7
    users = np.unique(pq.read_table(events)["user_id"].to_numpy()).tolist()
    assert 0 < sum(history.event_count for history in _histories(store.target, users)) < 60_000
    _readdress(events, store.target)
    done = _seqvault("load", events, "--address", store.target)
    assert done.returncode == 0, done.stderr
    assert "of an interrupted load" in done.stderr
    assert not state_file_of(events).exists()
    _assert_stored_once(store.target, events)


def test_a_state_far_behind_stores_no_event_twice(store: ServerProcess, tmp_path: Path) -> None:
    """More batches than the server's window of 64 were stored since the state was written."""
    file = tmp_path / "many.parquet"
    _write_events(file, rows=8_192 * 80 + 5, users=40_000, row_group=100_000)
    loader = _start_load(file, store.target)
    path = state_file_of(file)
    while not path.exists():
        assert loader.poll() is None
    first = path.read_bytes()
    assert loader.wait(TIMEOUT_S) == 0
    loader.communicate()
    assert json.loads(first)["next_batch"] == 0
    path.write_bytes(first)
    done = _seqvault("load", file, "--address", store.target)
    assert done.returncode == 0, done.stderr
    assert "going on after 0 events" in done.stderr
    histories = _histories(store.target, range(0, 40_000, 97))
    assert {history.event_count for history in histories} == {16, 17}
    assert histories[0].columns["item_id"].tolist() == list(range(0, 8_192 * 80 + 5, 40_000))


def test_ctrl_c_says_how_to_go_on(store: ServerProcess, proxy: _StallingProxy, events: Path) -> None:
    loader = _start_load(events, proxy.target)
    assert proxy.is_stalled.wait(TIMEOUT_S)
    loader.send_signal(signal.SIGINT)
    _, said = loader.communicate(timeout=TIMEOUT_S)
    assert loader.returncode == 130
    assert "the same command again goes on from here" in said
    assert "Traceback" not in said
    _readdress(events, store.target)
    assert _seqvault("load", events, "--address", store.target).returncode == 0
    _assert_stored_once(store.target, events)


@pytest.fixture
def interrupted(store: ServerProcess, events: Path, proxy: _StallingProxy) -> Path:
    """A file whose load was killed."""
    loader = _start_load(events, proxy.target)
    assert proxy.is_stalled.wait(TIMEOUT_S)
    loader.kill()
    loader.communicate()
    _readdress(events, store.target)
    return events


def test_a_changed_file_is_refused_and_restart_begins_anew(store: ServerProcess, interrupted: Path) -> None:
    _write_events(interrupted, rows=100)
    refused = _seqvault("load", interrupted, "--address", store.target)
    assert refused.returncode == 1
    assert (
        f"{interrupted}: an earlier load was interrupted, but the file has changed since; --restart" in refused.stderr
    )
    assert state_file_of(interrupted).exists()
    done = _seqvault("load", interrupted, "--address", store.target, "--restart")
    assert done.returncode == 0, done.stderr
    assert "100 events in" in done.stderr
    assert not state_file_of(interrupted).exists()
    _assert_stored_once(store.target, interrupted)


def test_another_server_is_refused(interrupted: Path, tmp_path: Path) -> None:
    with server(tmp_path / "other") as other:
        refused = _seqvault("load", interrupted, "--address", other.target)
    assert refused.returncode == 1
    assert re.search(rf"it went to 127\.0\.0\.1:\d+, not to {re.escape(other.target)}; --restart", refused.stderr)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"colour": np.zeros(9, np.uint8)}, "column 'colour': the schema has no such column; it has user_id, item_id"),
        ({"action": None}, "column 'action': missing, and it has no default"),
        ({"dwell_ms": np.zeros(9)}, "column 'dwell_ms': double given, u32 wanted"),
        ({"dwell_ms": pa.array([[1]] * 9)}, "column 'dwell_ms': list<"),
        ({"time_ms": pa.array([None] * 9, pa.int64())}, "column 'time_ms': a value is missing (null)"),
        ({"action": np.full(9, 256)}, "column 'action': 256..256 does not fit u8"),
        ({"user_id": np.full(9, -1)}, "user_ids: wanted unsigned 64-bit integers"),
        ({"user_id": None, "item_id": None}, "neither a column 'user_id' (events) nor a column 'item_id' (items)"),
    ],
    ids=["unknown", "missing", "float", "list", "null", "too large", "negative user", "no key"],
)
def test_a_wrong_column_is_named(
    empty_store: ServerProcess, tmp_path: Path, columns: dict[str, object], said: str
) -> None:
    file = tmp_path / "wrong.parquet"
    _write_events(file, rows=9, changes=columns)
    done = _seqvault("load", file, "--address", empty_store.target)
    assert done.returncode == 1
    assert said in done.stderr
    assert not any(history.found for history in _histories(empty_store.target, range(7)))


def test_a_file_that_is_no_parquet_is_refused(empty_store: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "events.csv"
    file.write_text("user_id,item_id\n1,2\n")
    done = _seqvault("load", file, "--address", empty_store.target)
    assert done.returncode == 1
    assert f"Error: {file}: no Parquet file" in done.stderr


def test_columns_with_a_default_may_be_left_out(store: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "short.parquet"
    _write_events(file, rows=9, users=1, changes={"dwell_ms": None, "scene": None})
    assert _seqvault("load", file, "--address", store.target).returncode == 0
    (history,) = _histories(store.target, [0])
    assert history.columns["dwell_ms"].tolist() == [0] * 9
    assert history.columns["item_id"].tolist() == list(range(9))


@pytest.mark.parametrize("has_lists", [False, True], ids=["fixed-size", "list"])
def test_items_are_loaded(store: ServerProcess, generated: Path, tmp_path: Path, has_lists: bool) -> None:
    file = tmp_path / "items.parquet"
    table = pq.read_table(generated / "items.parquet")
    if has_lists:
        fields = [
            pa.field(each.name, pa.list_(each.type.value_type) if pa.types.is_fixed_size_list(each.type) else each.type)
            for each in table.schema
        ]
        table = table.cast(pa.schema(fields))
    pq.write_table(table, file, row_group_size=300)
    done = _seqvault("load", file, "--address", store.target)
    assert done.returncode == 0, done.stderr
    assert "2,000 items in" in done.stderr

    async def read() -> Items:
        async with SeqVaultClient(store.target) as client:
            return await client.get_items(table["item_id"].to_numpy())

    items = asyncio.run(read())
    assert items.is_present.all()
    for name, values in items.columns.items():
        wanted = np.array(table[name].to_pylist(), values.dtype)
        np.testing.assert_array_equal(values, wanted, strict=True)


def test_arrays_of_another_length_are_refused(empty_store: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "items.parquet"
    columns = {"item_id": [1, 2], "category": [1, 1], "author": [1, 1], "price": [1.0, 1.0]}
    pq.write_table(pa.table({**columns, "genres": [[1, 2, 3, 4], [1, 2, 3]]}), file)
    done = _seqvault("load", file, "--address", empty_store.target)
    assert done.returncode == 1
    assert "column 'genres': an array that has not 4 values" in done.stderr


def test_get_shows_the_newest_events_with_their_items(store: ServerProcess, tmp_path: Path) -> None:
    events, items = tmp_path / "events.parquet", tmp_path / "items.parquet"
    _write_events(events, rows=50, changes={"user_id": np.full(50, 2**64 - 1, np.uint64)})
    columns = {"item_id": [49], "category": [7], "author": [1], "price": [2.5], "genres": [[1, 2, 3, 4]]}
    pq.write_table(pa.table(columns), items)
    for file in (events, items):
        assert _seqvault("load", file, "--address", store.target).returncode == 0
    user = str(2**64 - 1)
    shown = _seqvault("get", user, "--address", store.target, "--last", "2", "--side-info", "price,genres")
    assert shown.returncode == 0, shown.stderr
    lines = [line.split() for line in shown.stdout.splitlines() if line.strip(" ─")]
    assert lines[0] == ["item_id", "time_ms", "(UTC)", "action", "scene", "dwell_ms", "price", "genres"]
    assert lines[1] == ["48", "2023-11-14", "22:13:20.048", "0", "0", "48", "-", "-"]
    assert lines[2] == ["49", "2023-11-14", "22:13:20.049", "1", "0", "49", "2.5", "1", "2", "3", "4"]
    assert re.fullmatch(rf"user {user}: 2 of 50 events; reads: [01], [\d,]+ bytes", " ".join(lines[3]))
    narrowed = _seqvault(
        *("get", user, "--address", store.target, "--last", "0", "--columns", "time_ms"),
        *("--side-info", "price", "--as-of", "1700000000003"),
    )
    assert [line.split()[0] for line in narrowed.stdout.splitlines() if line.strip(" ─")][:4] == [
        "item_id",
        "0",
        "1",
        "2",
    ]
    assert "3 of 50 events" in narrowed.stdout


def test_get_of_an_unknown_user_says_so(empty_store: ServerProcess) -> None:
    done = _seqvault("get", "5", "--address", empty_store.target)
    assert (done.returncode, done.stdout) == (1, "user 5: unknown, no event is stored\n")


def test_get_of_an_unknown_view_is_refused(empty_store: ServerProcess) -> None:
    done = _seqvault("get", "5", "--address", empty_store.target, "--view", "nothing")
    assert done.returncode == 1
    assert "'nothing'" in done.stderr


def test_health_tells_by_its_exit_status(store: ServerProcess) -> None:
    up = _seqvault("health", "--address", store.target)
    assert (up.returncode, up.stdout) == (0, f"{store.target}: serving\n")
    store.stop()
    down = _seqvault("health", "--address", store.target, "--timeout", "0.5")
    assert (down.returncode, down.stderr) == (1, f"{store.target}: not serving\n")


def _serve(data: Path, *options: str | Path) -> subprocess.CompletedProcess[str]:
    return _seqvault("serve", "--data", data, "--port", "0", "--metrics-port", "0", *options)


def test_an_unknown_setting_is_refused(tmp_path: Path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("shard:\n  colour: blue\n")
    done = _serve(tmp_path / "data", "--schema", SCHEMA_FILE, "--config", config)
    assert done.returncode == 1
    assert "shard.colour" in done.stderr
    assert not (tmp_path / "data").exists()


def test_a_missing_schema_file_is_named(tmp_path: Path) -> None:
    done = _serve(tmp_path / "data", "--schema", tmp_path / "nowhere.yaml")
    assert done.returncode == 1
    assert "nowhere.yaml" in done.stderr


def test_a_locked_data_directory_is_refused(store: ServerProcess, tmp_path: Path) -> None:
    done = _serve(tmp_path / "data", "--schema", SCHEMA_FILE)
    assert done.returncode == 1
    assert f"Error: {tmp_path / 'data'}: another process has this data directory open\n" in done.stderr


def test_a_taken_port_is_refused(store: ServerProcess, tmp_path: Path) -> None:
    done = _serve(tmp_path / "other", "--schema", SCHEMA_FILE, "--port", str(store.port))
    assert done.returncode == 1
    assert str(store.port) in done.stderr
    assert not (tmp_path / "other").exists()
