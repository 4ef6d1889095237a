"""How far a load of a file has come: `FILE.seqvault-load.json` beside it, replaced as a whole.

It is there from before the first call until after the last reply. A batch has sequence number + 1 of the state's
producer, and is sent only while every batch `WINDOW` below it is stored. So whatever the state lags behind by, the batches
that are sent again from `next_batch` on are either known to the server by their sequence, or below its window, and then
stored for certain (`SEQUENCE_TOO_OLD`).
"""

import json
import os
import secrets
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

FORMAT: Final = 1
MAX_AGE_S: Final = 6 * 24 * 3600
"""The store forgets a producer after 7 days, and could not tell its repeated batches any more."""


class StateError(ValueError):
    """An earlier load cannot be taken up again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadState:
    """See the module's text."""

    format: int = FORMAT
    address: str
    """The server that has the batches below `next_batch`."""
    size_bytes: int
    mtime_ns: int
    row_count: int
    batch_rows: int
    producer_id: int
    next_batch: int = 0
    """Every batch below is stored."""
    saved_s: int = 0

    @classmethod
    def begin(cls, file: Path, *, address: str, row_count: int, batch_rows: int) -> Self:
        """A state for a load from the first batch on, under a producer of its own."""
        stat = file.stat()
        return cls(
            address=address,
            size_bytes=stat.st_size,
            mtime_ns=stat.st_mtime_ns,
            row_count=row_count,
            batch_rows=batch_rows,
            producer_id=secrets.randbelow(2**64 - 1) + 1,
        )

    def check_continues(self, new: Self) -> None:
        """Raises: StateError if what `new` would load is not what this state has loaded a part of."""
        if self.format != FORMAT:
            raise StateError(f"its state has format {self.format}, this program knows {FORMAT}")
        if (self.size_bytes, self.mtime_ns, self.row_count) != (new.size_bytes, new.mtime_ns, new.row_count):
            raise StateError("the file has changed since")
        if self.address != new.address:
            raise StateError(f"it went to {self.address}, not to {new.address}")
        if time.time() - self.saved_s > MAX_AGE_S:
            raise StateError("that was more than 6 days ago, and the store forgets after 7 what it was sent")


def state_file_of(file: Path) -> Path:
    return file.with_name(f"{file.name}.seqvault-load.json")


def read_state(path: Path) -> LoadState | None:
    """None: there is none. Raises: StateError, OSError."""
    try:
        return LoadState(**json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise StateError(f"{path} cannot be read: {error}") from error


def write_state(path: Path, state: LoadState) -> None:
    """Durable when it returns. Raises: OSError."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w", encoding="utf-8") as stream:
        json.dump({**asdict(state), "saved_s": int(time.time())}, stream, indent=1)
        stream.flush()
        os.fsync(stream.fileno())
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
