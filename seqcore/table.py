"""The hash table of the servers: uint64 key -> non-zero uint64 value, 16 bytes a slot, probed by numba kernels.

    key --splitmix64--> h      sub-table = h >> 56          256 sub-tables, each growing on its own
                               home slot = (h >> 24 & 2^32 - 1) * capacity >> 32        any capacity, no mask

    slots   [256, max_capacity, 2] u64        one lazily touched anonymous mapping: only used pages cost memory
              |--- sub-table 0: capacity[0] slots in use ---|......reserved, untouched......|
              |--- sub-table 1: capacity[1] slots in use -------|..reserved, untouched......|

Linear probing; value 0 marks an empty slot, so every key is valid. Deletion shifts the following cluster back: no
tombstones, so a miss never gets slower with age. A sub-table grows by 1.25 in one go when it is 88 % full; one of
39,000 entries (1e7 keys in all) takes about 3 ms. Memory: 16 bytes / load, that is 18.2 to 22.7 bytes a key.

Not thread-safe: one thread owns a table. Kernels release the GIL, so another thread may run, but not on the same table.
"""

import mmap
from typing import Final

import numba
import numpy as np
import numpy.typing as npt

Words = npt.NDArray[np.uint64]

SUB_TABLES: Final = 256
MAX_LOAD_PERCENT: Final = 88
INITIAL_CAPACITY: Final = 16
_MAP_NORESERVE: Final = 0x4000
"""Linux's flag: reserve addresses, not memory. `mmap.MAP_NORESERVE` is missing before Python 3.13."""


class TableFullError(MemoryError):
    """A sub-table reached `max_keys / 256` and some: the table was made too small for what it is asked to hold."""

    def __init__(self, max_keys: int) -> None:
        super().__init__(f"hash table is full: it was made for {max_keys} keys")
        self.max_keys = max_keys


def reserve(size_bytes: int) -> npt.NDArray[np.uint8]:
    """Zeroed bytes that take memory only once they are touched, 4 KiB at a time; unmapped with the last view of them."""
    region = mmap.mmap(-1, max(size_bytes, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE)
    region.madvise(mmap.MADV_NOHUGEPAGE)  # else 256 sub-tables of a few slots would take 256 x 2 MiB
    return np.frombuffer(region, np.uint8)


class Table:
    """See the module's diagram. `max_keys` bounds addresses, not memory: it is reserved at 32 bytes a key."""

    def __init__(self, *, max_keys: int) -> None:
        self.max_keys = max_keys
        # Twice the mean, and some: sub-tables of a small table differ most, and none may overflow below `max_keys`.
        max_capacity = 2 * max_keys // SUB_TABLES + 4 * INITIAL_CAPACITY
        self._slots = reserve(SUB_TABLES * max_capacity * 16).view(np.uint64).reshape(SUB_TABLES, max_capacity, 2)
        self._capacity = np.full(SUB_TABLES, INITIAL_CAPACITY, np.int64)
        self._count = np.zeros(SUB_TABLES, np.int64)

    def __len__(self) -> int:
        return int(self._count.sum())

    @property
    def kernel_parts(self) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Slots, capacities and counts, for kernels that call `get_one` and `put_one`."""
        return self._slots, self._capacity, self._count

    @property
    def memory_bytes(self) -> int:
        """Bytes of the slots in use."""
        return int(self._capacity.sum()) * 16

    def get(self, key: int) -> int:
        """The key's value, 0 if absent."""
        return int(get_one(self._slots, self._capacity, np.uint64(key)))

    def get_many(self, keys: Words) -> Words:
        """The value of each key, 0 where absent."""
        values = np.empty(len(keys), np.uint64)
        _get_many(self._slots, self._capacity, keys, values)
        return values

    def put(self, key: int, value: int) -> None:
        """Sets one value; 0 deletes."""
        self.put_many(np.array([key], np.uint64), np.array([value], np.uint64))

    def put_many(self, keys: Words, values: Words) -> None:
        """Sets values in order, so the last of equal keys wins; a value of 0 deletes its key.

        Raises: TableFullError, with the keys before the one that did not fit already set.
        """
        assert len(keys) == len(values)
        if _put_many(self._slots, self._capacity, self._count, keys, values) < len(keys):
            raise TableFullError(self.max_keys)

    def items(self) -> tuple[Words, Words]:
        """All keys and their values, in no order: a copy."""
        keys, values = np.empty(len(self), np.uint64), np.empty(len(self), np.uint64)
        _items(self._slots, self._capacity, keys, values)
        return keys, values


@numba.njit(nogil=True, cache=True, inline="always")
def mix(key: np.uint64) -> np.uint64:
    """splitmix64's finalizer: a bijection, so distinct keys have distinct hashes."""
    z = key + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@numba.njit(nogil=True, cache=True, inline="always")
def _home(hashed: np.uint64, capacity: int) -> int:
    home = ((hashed >> np.uint64(24)) & np.uint64(0xFFFFFFFF)) * np.uint64(capacity) >> np.uint64(32)
    return np.int64(home)  # type: ignore[return-value]  # int() would stay unsigned in a kernel


@numba.njit(nogil=True, cache=True)
def _find(slots: npt.NDArray[np.uint64], capacity: int, hashed: np.uint64, key: np.uint64) -> int:
    """Index of the key's slot in its sub-table, or of the empty slot where it belongs."""
    at = _home(hashed, capacity)
    while slots[at, 1] != 0 and slots[at, 0] != key:
        at += 1
        if at == capacity:
            at = 0
    return at


@numba.njit(nogil=True, cache=True)
def get_one(slots: npt.NDArray[np.uint64], capacity: npt.NDArray[np.int64], key: np.uint64) -> np.uint64:
    hashed = mix(key)
    sub = np.int64(hashed >> np.uint64(56))
    value: np.uint64 = slots[sub, _find(slots[sub], capacity[sub], hashed, key), 1]
    return value


@numba.njit(nogil=True, cache=True)
def _get_many(slots: npt.NDArray[np.uint64], capacity: npt.NDArray[np.int64], keys: Words, values: Words) -> None:
    for i in range(len(keys)):
        values[i] = get_one(slots, capacity, keys[i])


@numba.njit(nogil=True, cache=True)
def put_one(
    slots: npt.NDArray[np.uint64],
    capacity: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    key: np.uint64,
    value: np.uint64,
) -> bool:
    """Sets one value, 0 deletes; False if the sub-table could not grow."""
    hashed = mix(key)
    sub = np.int64(hashed >> np.uint64(56))
    at = _find(slots[sub], capacity[sub], hashed, key)
    occupied = slots[sub, at, 1] != 0
    if value == 0:
        if occupied:
            _remove(slots[sub], capacity[sub], at)
            count[sub] -= 1
        return True
    if not occupied:
        if (count[sub] + 1) * 100 > capacity[sub] * MAX_LOAD_PERCENT:
            if not _grow(slots[sub], capacity, sub):
                return False
            at = _find(slots[sub], capacity[sub], hashed, key)
        slots[sub, at, 0] = key
        count[sub] += 1
    slots[sub, at, 1] = value
    return True


@numba.njit(nogil=True, cache=True)
def _put_many(
    slots: npt.NDArray[np.uint64],
    capacity: npt.NDArray[np.int64],
    count: npt.NDArray[np.int64],
    keys: Words,
    values: Words,
) -> int:
    """Returns how many were set: fewer than all if a sub-table could not grow."""
    for i in range(len(keys)):
        if not put_one(slots, capacity, count, keys[i], values[i]):
            return i
    return len(keys)


@numba.njit(nogil=True, cache=True)
def _remove(slots: npt.NDArray[np.uint64], capacity: int, hole: int) -> None:
    """Backward shift: pulls up every later entry of the cluster that may lie in the hole."""
    at = hole
    while True:
        at += 1
        if at == capacity:
            at = 0
        if slots[at, 1] == 0:
            break
        home = _home(mix(slots[at, 0]), capacity)
        # May move if its home is not within (hole, at], cyclically.
        between = hole < home <= at if hole < at else home > hole or home <= at
        if not between:
            slots[hole, 0], slots[hole, 1] = slots[at, 0], slots[at, 1]
            hole = at
    slots[hole, 0], slots[hole, 1] = 0, 0


@numba.njit(nogil=True, cache=True)
def _grow(slots: npt.NDArray[np.uint64], capacity: npt.NDArray[np.int64], sub: np.int64) -> bool:
    old = capacity[sub]
    new = min(old + max(old // 4, INITIAL_CAPACITY), slots.shape[0])
    if new == old:
        return False
    entries = slots[:old].copy()
    slots[:old] = 0
    capacity[sub] = new
    for i in range(old):
        if entries[i, 1] != 0:
            at = _find(slots, new, mix(entries[i, 0]), entries[i, 0])
            slots[at, 0], slots[at, 1] = entries[i, 0], entries[i, 1]
    return True


@numba.njit(nogil=True, cache=True)
def _items(slots: npt.NDArray[np.uint64], capacity: npt.NDArray[np.int64], keys: Words, values: Words) -> None:
    at = 0
    for sub in range(slots.shape[0]):
        for i in range(capacity[sub]):
            if slots[sub, i, 1] != 0:
                keys[at], values[at] = slots[sub, i, 0], slots[sub, i, 1]
                at += 1
