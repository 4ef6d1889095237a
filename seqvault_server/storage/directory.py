"""The data directory: its lock, its format, the schema that its data was written with.

LOCK            held by the one process that has the directory open
shard.json      {"format": 1, "schema": {...}}, replaced as a whole
segments/ log/ journal/ items/
"""

import fcntl
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from seqcore.errors import SchemaError
from seqcore.schema import Schema
from seqvault_server.storage.errors import DataDirectoryError
from seqvault_server.storage.files import Files

DIRECTORY_FORMAT: Final = 1


@dataclass(slots=True)
class DataDirectory:
    """An open, locked data directory."""

    path: Path
    files: Files
    _lock: int

    @classmethod
    def open(cls, path: Path, schema: Schema, files: Files) -> Self:
        """Locks the directory, making it if need be, and settles the schema: the given one must extend the stored one.

        Raises: DataDirectoryError; nothing has been changed then.
        """
        path.mkdir(parents=True, exist_ok=True)
        files.sync_directory(path.parent)
        lock = os.open(path / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise DataDirectoryError(f"{path}: another process has this data directory open") from None
            _settle_schema(path / "shard.json", schema, files)
        except BaseException:
            os.close(lock)
            raise
        return cls(path, files, lock)

    def close(self) -> None:
        os.close(self._lock)


def _settle_schema(path: Path, schema: Schema, files: Files) -> None:
    if path.exists():
        stored = _stored_schema(path)
        try:
            schema.check_extends(stored)
        except SchemaError as error:
            raise DataDirectoryError(f"{path}: the schema does not match the data: {error}") from error
        if schema == stored:
            return
    document = {"format": DIRECTORY_FORMAT, "schema": schema.to_mapping()}
    files.replace_document(path, json.dumps(document, indent=1) + "\n")


def _stored_schema(path: Path) -> Schema:
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["format"] > DIRECTORY_FORMAT:
            raise DataDirectoryError(
                f"{path}: format {document['format']} is newer than {DIRECTORY_FORMAT}, the newest that this program knows"
            )
        return Schema.from_mapping(document["schema"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataDirectoryError(f"{path}: cannot be read: {error}") from error
