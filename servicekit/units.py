"""Sizes and durations as people write them: `64MiB` in a field named `.._bytes`, `250ms` in one named `.._ms`."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

SIZES: Final[Mapping[str, int]] = MappingProxyType(
    {"GiB": 1 << 30, "MiB": 1 << 20, "KiB": 1 << 10, "GB": 10**9, "MB": 10**6, "kB": 10**3, "B": 1}
)
DURATIONS_MS: Final[Mapping[str, int]] = MappingProxyType(
    {"d": 86_400_000, "h": 3_600_000, "min": 60_000, "s": 1_000, "ms": 1}
)

_QUANTITY: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)")


def units_of(field_name: str) -> Mapping[str, int]:
    """The units that values of the field may be written in; empty if it takes bare numbers only."""
    if field_name.endswith("_bytes"):
        return SIZES
    if field_name.endswith("_ms"):
        return DURATIONS_MS
    return {}


def parse_quantity(text: str, units: Mapping[str, int]) -> int | None:
    """None: no number with one of the units, or not a whole number of the smallest one."""
    match = _QUANTITY.fullmatch(text.strip())
    if match is None or match[2] not in units:
        return None
    value = float(match[1]) * units[match[2]]
    return int(value) if value.is_integer() else None


def format_quantity(value: int, units: Mapping[str, int]) -> str:
    """In the largest unit that `value` is a whole number of; the bare number for 0 and where there are no units."""
    for unit, factor in units.items():
        if value and value % factor == 0:
            return f"{value // factor}{unit}"
    return str(value)
