"""The few operations that the engine needs of the file system, behind one object, so that tests can inject faults.

All are blocking; offsets and lengths are bytes. Short writes are completed, EINTR is retried by Python itself.
"""

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

_FALLOC_FL_KEEP_SIZE: Final = 1
_FALLOC_FL_PUNCH_HOLE: Final = 2
_ZEROS: Final = bytes(1 << 20)


class Files:
    """The real file system."""

    def __init__(self) -> None:
        self._fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        self._fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

    def open(self, path: Path, *, create: bool = False) -> int:
        """A descriptor for reading and writing; `create` refuses a file that exists."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT | os.O_EXCL if create else 0), 0o640)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)

    def read_cached(self, descriptor: int, buffer: bytearray, offset: int) -> int:
        """Bytes that the page cache could give at once, from the start of the range; never waits for the device."""
        try:
            return os.preadv(descriptor, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0

    def read_rest(self, descriptor: int, buffer: bytearray, offset: int, done: int) -> int:
        """Fills the buffer from its byte `done` on; returns the bytes filled in all, fewer only at the end of the file."""
        view = memoryview(buffer)
        while done < len(buffer):
            count = os.preadv(descriptor, [view[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count

    def sync(self, descriptor: int) -> None:
        os.fdatasync(descriptor)

    def sync_directory(self, path: Path) -> None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def punch(self, descriptor: int, offset: int, length: int) -> None:
        """Gives the range back to the file system; where that is not supported, overwrites it with zeros."""
        mode = _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE
        if self._fallocate(descriptor, mode, offset, length) == 0:
            return
        error = ctypes.get_errno()
        if error not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(error, os.strerror(error))
        self.zero(descriptor, offset, length)

    def has_data(self, descriptor: int, offset: int, length: int) -> bool:
        """Whether any byte of the range is backed by the device; False for holes and beyond the end of the file."""
        try:
            return os.lseek(descriptor, offset, os.SEEK_DATA) < offset + length
        except OSError as error:
            if error.errno == errno.ENXIO:
                return False
            raise

    def size(self, descriptor: int) -> int:
        """Length of the file in bytes."""
        return os.fstat(descriptor).st_size

    def zero(self, descriptor: int, offset: int, length: int) -> None:
        for at in range(0, length, len(_ZEROS)):
            self.write(descriptor, memoryview(_ZEROS)[: length - at], offset + at)

    def replace_document(self, path: Path, text: str) -> None:
        """Writes a small file so that after a crash there is the old one or the new one, whole."""
        temporary = path.with_suffix(path.suffix + ".new")
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        self.sync_directory(path.parent)
