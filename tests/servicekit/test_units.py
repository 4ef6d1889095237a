"""Sizes and durations in text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from servicekit.units import DURATIONS_MS, SIZES, format_quantity, parse_quantity, units_of


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("cap_bytes", "64MiB", 64 << 20),
        ("cap_bytes", "1.5 KiB", 1536),
        ("cap_bytes", "2GB", 2_000_000_000),
        ("wait_ms", "250ms", 250),
        ("wait_ms", "2s", 2000),
        ("wait_ms", "0.5min", 30_000),
    ],
)
def test_units_of_the_field_are_understood(name: str, text: str, value: int) -> None:
    assert parse_quantity(text, units_of(name)) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cap_bytes", "2s"),
        ("wait_ms", "2MiB"),
        ("cap_bytes", "-1MiB"),
        ("cap_bytes", "MiB"),
        ("cap_bytes", "1.5B"),
        ("cap", "1MiB"),
        ("wait_ms", "1ms2"),
    ],
)
def test_what_is_no_quantity_of_the_field_is_none(name: str, text: str) -> None:
    assert parse_quantity(text, units_of(name)) is None


@pytest.mark.parametrize("units", [SIZES, DURATIONS_MS])
@given(value=st.integers(1, 1 << 50))
def test_formatted_quantities_are_read_back(units: dict[str, int], value: int) -> None:
    assert parse_quantity(format_quantity(value, units), units) == value


def test_the_largest_whole_unit_is_written() -> None:
    assert format_quantity(90_000, DURATIONS_MS) == "90s"
    assert format_quantity(3 << 30, SIZES) == "3GiB"
    assert format_quantity(0, SIZES) == "0"
