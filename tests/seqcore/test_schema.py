"""Rules of a schema: each is refused by the name of its field, and what passes survives the way through a document."""

import json
from typing import Any

import pytest
from hypothesis import given

from seqcore.errors import SchemaError
from seqcore.schema import MAX_COLUMNS, MAX_VIEWS, Column, Role, Schema, Type, View, row_dtype
from tests.seqcore.samples import SCHEMA, schemas

ITEM: dict[str, Any] = {"name": "item_id", "type": "u64", "role": "item"}
TIME: dict[str, Any] = {"name": "time_ms", "type": "i64", "role": "time"}
ACTION: dict[str, Any] = {"name": "action", "type": "u8", "role": "action"}
SCENE: dict[str, Any] = {"name": "scene", "type": "u16", "role": "scene"}
PRICE: dict[str, Any] = {"name": "price", "type": "f32", "since": 2, "default": 0.5}


def document(**changes: Any) -> dict[str, Any]:
    return {
        "version": 2,
        "event": {"columns": [ITEM, TIME, ACTION, SCENE, PRICE]},
        "side_info": {"columns": [{"name": "genres", "type": "u16[4]"}, {"name": "author", "type": "u64"}]},
        "views": [
            {"name": "clicks", "last": 100, "actions": [1, 2], "scenes": [300]},
            {"name": "prices", "columns": ["price"], "side_info": ["genres"]},
        ],
        **changes,
    }


def with_event_columns(*columns: dict[str, Any]) -> dict[str, Any]:
    return document(event={"columns": list(columns)}, views=[])


def with_view(**view: Any) -> dict[str, Any]:
    return document(views=[{"name": "feed", **view}])


def test_a_document_becomes_columns_and_views() -> None:
    schema = Schema.from_mapping(document())
    assert [column.name for column in schema.event_columns] == ["item_id", "time_ms", "action", "scene", "price"]
    assert schema.event_columns[4] == Column(name="price", type=Type.F32, since=2, default=0.5)
    assert schema.side_info_column_of["genres"] == Column(name="genres", type=Type.U16, length=4)
    assert schema.view_of["clicks"] == View(name="clicks", max_events=100, actions=(1, 2), scenes=(300,))
    assert (schema.item.name, schema.time.name) == ("item_id", "time_ms")
    assert schema.action is schema.event_column_of["action"]
    assert schema.scene is schema.event_column_of["scene"]
    assert schema.event_sizes == (8, 8, 1, 2, 4)
    assert schema.row_dtype.itemsize == 23
    assert row_dtype(schema.side_info_columns).itemsize == 16
    assert [column.name for column in schema.event_columns_at(1)] == ["item_id", "time_ms", "action", "scene"]


def test_the_least_document_is_an_item_and_a_time() -> None:
    schema = Schema.from_mapping({"version": 1, "event": {"columns": [ITEM, TIME]}})
    assert (schema.action, schema.scene, schema.side_info_columns, schema.views) == (None, None, (), ())


def test_a_schema_survives_its_document() -> None:
    schema = Schema.from_mapping(document())
    assert Schema.from_mapping(json.loads(json.dumps(schema.to_mapping()))) == schema


@given(schemas())
def test_any_schema_survives_its_document(schema: Schema) -> None:
    assert Schema.from_mapping(json.loads(json.dumps(schema.to_mapping()))) == schema


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        (None, "schema"),
        ([], "schema"),
        (document(extra=1), "schema"),
        (document(version=None), "version"),
        (document(version="2"), "version"),
        (document(version=True), "version"),
        (document(version=0), "version"),
        (document(version=65_536), "version"),
        (document(event=None), "event"),
        (document(event={}), "event.columns"),
        (document(event={"columns": {}}), "event.columns"),
        (document(event={"columns": [], "rows": []}), "event"),
        (document(side_info=[]), "side_info"),
        (document(views={}), "views"),
        (with_event_columns(ITEM, TIME, 7), "event.columns[2]"),  # type: ignore[arg-type]
        (with_event_columns(ITEM, TIME, {**ACTION, "colour": 1}), "event.columns[2]"),
        (with_event_columns(ITEM, TIME, {"type": "u8"}), "event.columns[2].name"),
        (with_event_columns(ITEM, TIME, {"name": "x"}), "event.columns[2].type"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u128"}), "event.columns[2].type"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8 "}), "event.columns[2].type"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8", "role": "colour"}), "event.columns[2].role"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8", "role": 1}), "event.columns[2].role"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8", "since": "1"}), "event.columns[2].since"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8", "default": "1"}), "event.columns[2].default"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8", "default": True}), "event.columns[2].default"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8", "default": 256}), "column 'x'"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8", "default": -1}), "column 'x'"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8", "default": 0.5}), "column 'x'"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "f32", "default": float("nan")}), "column 'x'"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "f32", "default": float("inf")}), "column 'x'"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "f32", "default": 10**400}), "column 'x'"),
        (with_event_columns(ITEM, TIME, {"name": "X", "type": "u8"}), "column 'X'"),
        (with_event_columns(ITEM, TIME, {"name": "", "type": "u8"}), "column ''"),
        (with_event_columns(ITEM, TIME, {"name": "a" * 65, "type": "u8"}), f"column {'a' * 65!r}"),
        (with_event_columns(ITEM, TIME, {"name": "x\n", "type": "u8"}), r"column 'x\n'"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8", "since": 2}), "column 'x'"),
        (with_event_columns({**ITEM, "type": "u32"}, TIME), "column 'item_id'"),
        (with_event_columns({**ITEM, "default": 0}, TIME), "column 'item_id'"),
        (with_event_columns(ITEM, {**TIME, "type": "u64"}), "column 'time_ms'"),
        (with_event_columns(ITEM, TIME, {**ACTION, "type": "u16"}), "column 'action'"),
        (with_event_columns(ITEM, TIME, {**SCENE, "type": "u32"}), "column 'scene'"),
        (with_event_columns(ITEM, TIME, ITEM), "event.columns"),
        (with_event_columns(ITEM), "event.columns"),
        (with_event_columns(TIME), "event.columns"),
        (with_event_columns(ITEM, TIME, ACTION, {**ACTION, "name": "other"}), "event.columns"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8[2]"}), "event.columns"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8[0]"}), "column 'x'"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8", "since": 3, "default": 0}), "event.columns"),
        (with_event_columns(ITEM, TIME, {"name": "x", "type": "u8", "since": 0}), "event.columns"),
        (with_event_columns(ITEM, PRICE, TIME), "event.columns"),
        (
            with_event_columns(ITEM, TIME, *({"name": f"x{i}", "type": "u8"} for i in range(MAX_COLUMNS - 1))),
            "event.columns",
        ),
        (document(side_info={"columns": [ACTION]}), "side_info.columns"),
        (document(side_info={"columns": [{"name": "x", "type": "u8[65]"}]}), "column 'x'"),
        (document(side_info={"columns": [{"name": "x", "type": "u8[0]"}]}), "column 'x'"),
        (document(views=[{"name": f"v{i}"} for i in range(MAX_VIEWS + 1)]), "views"),
        (document(views=[{"name": "feed"}, {"name": "feed"}]), "views"),
        (document(views=[{}]), "views[0].name"),
        (document(views=["feed"]), "views[0]"),
        (with_view(limit=3), "views[0]"),
        (with_view(name="Feed"), "view 'Feed'"),
        (with_view(last="3"), "views[0].last"),
        (with_view(last=-1), "view 'feed'"),
        (with_view(columns=["nothing"]), "view 'feed'"),
        (with_view(columns="price"), "views[0].columns"),
        (with_view(columns=[1]), "views[0].columns"),
        (with_view(side_info=["price"]), "view 'feed'"),
        (with_view(actions=[256]), "view 'feed'"),
        (with_view(actions=["1"]), "views[0].actions"),
        (with_view(scenes=[65_536]), "view 'feed'"),
        (
            {"version": 1, "event": {"columns": [ITEM, TIME]}, "views": [{"name": "feed", "actions": [1]}]},
            "view 'feed'",
        ),
        (
            {"version": 1, "event": {"columns": [ITEM, TIME]}, "views": [{"name": "feed", "scenes": [1]}]},
            "view 'feed'",
        ),
    ],
    ids=str,
)
def test_what_breaks_a_rule_is_refused_by_the_name_of_its_field(wrong: object, field: str) -> None:
    with pytest.raises(SchemaError) as refused:
        Schema.from_mapping(wrong)
    assert refused.value.field == field
    assert str(refused.value).startswith(refused.value.field)


@pytest.mark.parametrize("type_", Type)
def test_the_ends_of_a_type_are_good_defaults(type_: Type) -> None:
    limits = {Type.I64: (-(2**63), 2**63 - 1), Type.F32: (-3.4028234663852886e38, 3.4028234663852886e38)}
    low, high = limits.get(type_, (0, 2 ** (8 * type_.dtype.itemsize) - 1))
    for default in (low, high):
        assert Column(name="x", type=type_, default=default).default == default


@pytest.mark.parametrize("name", ["a", "a1_", "a" * 64])
def test_names_are_lower_case_words(name: str) -> None:
    assert Column(name=name, type=Type.U8).name == name


def extended(*columns: Column, version: int = 2, base: Schema = SCHEMA) -> Schema:
    return Schema(version=version, event_columns=(*base.event_columns, *columns))


def test_a_later_version_may_append_columns_and_change_views() -> None:
    later = Schema(
        version=3,
        event_columns=(*SCHEMA.event_columns, Column(name="price", type=Type.F32, since=3, default=0)),
        side_info_columns=(Column(name="author", type=Type.U64, since=2, default=0),),
        views=(View(name="feed"),),
    )
    later.check_extends(SCHEMA)
    SCHEMA.check_extends(SCHEMA)
    extended().check_extends(SCHEMA)


@pytest.mark.parametrize(
    ("later", "field", "named"),
    [
        (Schema(version=2, event_columns=SCHEMA.event_columns[:4]), "event.columns", "dwell_ms"),
        (
            Schema(version=2, event_columns=(*SCHEMA.event_columns[:3], *SCHEMA.event_columns[:2:-1])),
            "event.columns",
            "scene",
        ),
        (
            Schema(
                version=2,
                event_columns=(
                    *SCHEMA.event_columns[:4],
                    Column(name="dwell_ms", type=Type.U64, default=0),
                ),
            ),
            "event.columns",
            "dwell_ms",
        ),
        (
            Schema(
                version=2,
                event_columns=(*SCHEMA.event_columns[:4], Column(name="dwell_ms", type=Type.U32, default=1)),
            ),
            "event.columns",
            "dwell_ms",
        ),
        (extended(Column(name="price", type=Type.F32)), "event.columns", "price"),
        (extended(Column(name="price", type=Type.F32, default=0.0), version=1), "event.columns", "price"),
        (
            Schema(
                version=2,
                event_columns=SCHEMA.event_columns,
                side_info_columns=(Column(name="author", type=Type.U64),),
            ),
            "side_info.columns",
            "author",
        ),
    ],
    ids=["dropped", "reordered", "retyped", "another default", "not since later", "same version", "side-info"],
)
def test_a_schema_that_could_not_read_older_data_is_refused(later: Schema, field: str, named: str) -> None:
    with pytest.raises(SchemaError, match=named) as refused:
        later.check_extends(SCHEMA)
    assert refused.value.field == field


def test_an_older_schema_does_not_extend_a_newer_one() -> None:
    with pytest.raises(SchemaError) as refused:
        SCHEMA.check_extends(extended())
    assert refused.value.field == "version"


def test_persisted_numbers_stay() -> None:
    assert {type_.name: type_.value for type_ in Type} == {"U8": 1, "U16": 2, "U32": 3, "U64": 4, "I64": 5, "F32": 6}
    assert {role.name: role.value for role in Role} == {"PLAIN": 1, "ITEM": 2, "TIME": 3, "ACTION": 4, "SCENE": 5}
