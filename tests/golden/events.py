"""What the golden files hold, in plain Python."""

from dataclasses import dataclass
from typing import Any

COLUMNS: list[dict[str, Any]] = [
    {"name": "item_id", "type": "u64", "role": "item"},
    {"name": "time_ms", "type": "i64", "role": "time"},
    {"name": "action", "type": "u8", "role": "action"},
    {"name": "scene", "type": "u16", "role": "scene"},
    {"name": "dwell_ms", "type": "u32", "default": 0},
    {"name": "balance", "type": "i64", "since": 2, "default": -1},
    {"name": "price", "type": "f32", "since": 2, "default": 0.5},
]


@dataclass(frozen=True, kw_only=True)
class Part:
    """Events of one flush. `offset` is where the extent begins that holds them."""

    name: str
    user: int
    segment: int
    offset: int
    first_number: int
    count: int
    schema_version: int
    first_lsn: int
    last_lsn: int

    def columns(self) -> dict[str, list[Any]]:
        """Every column of the newest schema, as a reader of that schema gets it."""
        numbers = range(self.first_number, self.first_number + self.count)
        return {
            "item_id": [number * 7919 % 60_000 for number in numbers],
            "time_ms": [1_700_000_000_000 + number * 3_000 + number % 7 * 11 for number in numbers],
            "action": [number % 4 + 1 for number in numbers],
            "scene": [0 for _ in numbers],
            "dwell_ms": [number * 311 % 50_000 for number in numbers],
            "balance": [(number % 5 - 2) * 1_000 if self.schema_version >= 2 else -1 for number in numbers],
            "price": [number % 8 / 4 if self.schema_version >= 2 else 0.5 for number in numbers],
        }


ONE_FRAME = Part(
    name="one_frame.block",
    user=42,
    segment=7,
    offset=8_208,
    first_number=1,
    count=4,
    schema_version=1,
    first_lsn=1_001,
    last_lsn=1_003,
)
FRAME_PER_COLUMN = Part(
    name="frame_per_column.block",
    user=2**64 - 1,
    segment=65_535,
    offset=2**30 - 4_096,
    first_number=0,
    count=300,
    schema_version=2,
    first_lsn=0,
    last_lsn=2**64 - 1,
)
EXTENT = "extent.blocks"
EXTENT_PARTS = [
    Part(
        name=EXTENT,
        user=42,
        segment=7,
        offset=65_536,
        first_number=first_number,
        count=count,
        schema_version=schema_version,
        first_lsn=first_number + 1,
        last_lsn=first_number + count,
    )
    for first_number, count, schema_version in ((0, 1_100, 1), (1_100, 600, 1), (1_700, 30, 2))
]
