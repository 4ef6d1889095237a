"""Blocks of format 1 as they were once written are read for ever, and docs/storage_format.md tells their bytes truly.

`make.py` made the files, once; the digests here hold them. `stranger.py` is a reader made from the document alone.
"""

import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard

from seqcore.decode import decode, open_blocks
from seqcore.schema import Schema
from seqvault_server.storage.walk import walk
from tests.golden.events import EXTENT, EXTENT_PARTS, FRAME_PER_COLUMN, ONE_FRAME, Part
from tests.golden.stranger import FIELDS, HEADER, read_block, read_extent

FOLDER = Path(__file__).parent / "format_1"
DOCUMENT = Path(__file__).parents[2] / "docs" / "storage_format.md"
FILES = [(ONE_FRAME.name, [ONE_FRAME]), (FRAME_PER_COLUMN.name, [FRAME_PER_COLUMN]), (EXTENT, EXTENT_PARTS)]
DIGESTS = {
    "extent.blocks": "c95b0d20a8891ba7897b7de91639a518cb6943b7a95abd5162436ec787a3ba3f",
    "frame_per_column.block": "5f063c6885984f171f5ae56e0eb5660d907481a6513fff0a4ad2531ae18db353",
    "one_frame.block": "87e5b2286d6537bbb472bacdf3b28e37ed3c1e99a3ddf64443b73ca7cdfc0691",
    "schema.json": "106aaefa02dae950873b3e6c53a20109b8a49e11fd05309f5886bc3fb36a6ac9",
}


def read_schema() -> dict[str, Any]:
    document: dict[str, Any] = json.loads((FOLDER / "schema.json").read_text())
    return document


def section(heading: str) -> str:
    text = DOCUMENT.read_text()
    begin = text.index(f"\n## {heading}\n")
    return text[begin : text.find("\n## ", begin + 1)]


def table_rows(text: str, columns: int) -> list[list[str]]:
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line[:1] == "|"
    ]
    return [row for row in rows if len(row) == columns and not row[0].startswith("---")]


def test_no_golden_file_was_made_again() -> None:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FOLDER.iterdir()}
    assert found == DIGESTS


@pytest.mark.parametrize(("name", "parts"), FILES, ids=[name for name, _ in FILES])
def test_a_stranger_reads_what_was_written(name: str, parts: list[Part]) -> None:
    data, schema = (FOLDER / name).read_bytes(), read_schema()
    first = parts[0]
    blocks = read_extent(data, user=first.user, segment=first.segment, offset=first.offset, schema=schema)
    assert [header["count"] for header, _ in blocks] == ([550, 550, 600, 30] if name == EXTENT else [first.count])
    for column in schema["event"]["columns"]:
        expected = [value for part in parts for value in part.columns()[column["name"]]]
        read = [
            value
            for header, values in blocks
            for value in values.get(column["name"], [column.get("default")] * header["count"])
        ]
        assert read == expected, column["name"]


@pytest.mark.parametrize(("name", "parts"), FILES, ids=[name for name, _ in FILES])
def test_the_reader_reads_what_was_written(name: str, parts: list[Part]) -> None:
    data, schema = (FOLDER / name).read_bytes(), Schema.from_mapping(read_schema())
    first = parts[0]
    walked = walk(
        np.frombuffer(data, np.uint8),
        begin_U=np.array([0]),
        end_U=np.array([len(data)]),
        offset_U=np.array([first.offset]),
        user_U=np.array([first.user], np.uint64),
        segment_U=np.array([first.segment]),
    )
    assert walked.bad_extent == -1
    blocks = open_blocks(data, walked.length_K, schema=schema, offset_K=walked.offset_K)
    decoded = decode(blocks, schema=schema, columns=schema.event_columns)
    for column, values in decoded.items():
        assert values.tolist() == [value for part in parts for value in part.columns()[column]], column


def test_later_flushes_of_an_extent_begin_at_pages() -> None:
    first = EXTENT_PARTS[0]
    blocks = read_extent(
        (FOLDER / EXTENT).read_bytes(), user=42, segment=7, offset=first.offset, schema=read_schema()
    )  # fmt: skip
    gaps = [header["gap"] for header, _ in blocks]
    assert [gap > 0 for gap in gaps] == [False, False, True, True]
    assert [header["offset"] % 4096 for header, _ in blocks][2:] == [0, 0]


def test_the_stranger_refuses_damage_and_another_address() -> None:
    data, schema = (FOLDER / ONE_FRAME.name).read_bytes(), read_schema()
    for at in range(len(data)):
        with pytest.raises(ValueError, match=r"checksum|no block"):
            read_block(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], schema)
    with pytest.raises(ValueError, match="another"):
        read_extent(data, user=42, segment=7, offset=8_192, schema=schema)


def test_the_document_shows_the_strangers_code() -> None:
    shown = re.search(r"```python\n(.*?)```", section("A reader"), re.DOTALL)
    code = (Path(__file__).parent / "stranger.py").read_text()
    assert shown is not None
    assert shown[1] == code[code.index("import struct") :]


def test_the_document_shows_the_bytes_of_the_worked_example() -> None:
    shown = re.search(r"```text\n(.*?)```", section("Worked example"), re.DOTALL)
    assert shown is not None
    lines = [line.split("  ", 1) for line in shown[1].splitlines()]
    assert [int(at, 16) for at, _ in lines] == list(range(0, 16 * len(lines), 16))
    assert bytes.fromhex(" ".join(text for _, text in lines)) == (FOLDER / ONE_FRAME.name).read_bytes()


def test_every_annotated_field_of_the_worked_example_is_true() -> None:
    block = (FOLDER / ONE_FRAME.name).read_bytes()
    header, _ = read_block(block, read_schema())
    checksum, length = struct.unpack("<QI", block[-12:])
    values: dict[str, int] = {**header, "frame_lengths": struct.unpack_from("<I", block, 77)[0], "pad": 0}
    at, fields = 0, []
    for begin, text, field, value, _ in table_rows(section("Worked example"), columns=5)[1:]:
        assert int(begin) == at
        assert bytes.fromhex(text) == block[at : at + len(bytes.fromhex(text))]
        if field == "descriptors":
            assert bytes.fromhex(value) == block[72:77]
        elif field == "frames":
            assert len(bytes.fromhex(text)) == values["frame_lengths"]
            assert bytes.fromhex(text)[:4] == zstandard.FRAME_HEADER
        else:
            expected = {"checksum": checksum, "length": length}.get(field, values.get(field))
            assert int(value, 0) == expected == int.from_bytes(bytes.fromhex(text), "little")
        fields.append(field)
        at += len(bytes.fromhex(text))
    assert at == len(block)
    assert fields == [*FIELDS, "descriptors", "frame_lengths", "frames", "pad", "checksum", "length"]


def test_the_columns_of_the_worked_example_are_true() -> None:
    block = (FOLDER / ONE_FRAME.name).read_bytes()
    header, values = read_block(block, read_schema())
    raw = zstandard.ZstdDecompressor().decompress(block[81:118], max_output_size=100)
    at = 0
    for position, (name, descriptor, text, shown) in enumerate(table_rows(section("Worked example"), columns=4)[1:]):
        width = int(descriptor, 16) & 15
        shuffled = b"" if text == "(none)" else bytes.fromhex(text)
        assert int(descriptor, 16) == block[72 + position]
        assert shuffled == raw[at : at + width * header["count"]]
        assert [int(value) for value in shown.split(", ")] == values[name]
        at += len(shuffled)
    assert at == len(raw)
    assert list(values) == [row[0] for row in table_rows(section("Worked example"), columns=4)[1:]]


def test_the_header_table_of_the_document_is_the_header() -> None:
    text = DOCUMENT.read_text()
    rows = table_rows(text[text.index("\n### Header\n") : text.index("\n### Order of events\n")], columns=4)[1:]
    assert tuple(row[2] for row in rows) == FIELDS
    codes = {"u8": "B", "u16": "H", "u32": "I", "u64": "Q", "i64": "q"}
    assert "<" + "".join(codes[row[1]] for row in rows) == HEADER.format
    at = 0
    for row in rows:
        assert int(row[0]) == at
        at += struct.calcsize("<" + codes[row[1]])
    assert at == HEADER.size == 72
