"""The index: user -> place, in DRAM.

    one entry = {user id: u64, place: u64} = 16 bytes          place: see storage.place, 0 = absent

    capacity formula:  bytes = users * 16 / load,  load 0.70 .. 0.88  ->  18.2 .. 22.9 bytes a user
    1e7 users -> 256 sub-tables of 39,000 entries; the one that grows holds the owner's thread for about 3 ms

The table is seqcore.table; only the owner's thread touches it. It is rebuilt from the journal when the shard opens.
"""

from seqcore.table import Table, Words


class Index:
    """Users that have a place on disk."""

    def __init__(self, *, max_users: int) -> None:
        self._table = Table(max_keys=max_users)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def memory_bytes(self) -> int:
        return self._table.memory_bytes

    def place_of(self, user: int) -> int:
        """The user's place, 0 if it has none."""
        return self._table.get(user)

    def places_of(self, users: Words) -> Words:
        return self._table.get_many(users)

    def put(self, users: Words, places: Words) -> None:
        """Sets places; 0 removes a user."""
        self._table.put_many(users, places)
