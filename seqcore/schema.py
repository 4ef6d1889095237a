"""Which columns an event and an item have: types, roles, defaults, and the views over them.

A schema has a version, from 1 upwards. A later version may append columns, each with a default; it may not drop,
reorder or retype one, so rows and blocks of every older version stay readable: the columns of version v are those with
`since <= v`, and they are a prefix of the columns of v + 1.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final, Self

import numpy as np

from seqcore.errors import SchemaError

MAX_COLUMNS: Final = 32
MAX_VIEWS: Final = 64
MAX_ARRAY_LENGTH: Final = 64
NAME_PATTERN: Final = re.compile(r"[a-z][a-z0-9_]{0,63}")


class Type(IntEnum):
    """Type of a value, little-endian. Persisted: add members, never renumber or reuse one."""

    U8 = 1
    U16 = 2
    U32 = 3
    U64 = 4
    I64 = 5
    F32 = 6

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return _DTYPES[self]


class Role(IntEnum):
    """Meaning of an event column to the store. Persisted: add members, never renumber or reuse one."""

    PLAIN = 1
    ITEM = 2
    TIME = 3
    ACTION = 4
    SCENE = 5


_DTYPES: Final[Mapping[Type, np.dtype[np.generic]]] = {
    Type.U8: np.dtype("u1"),
    Type.U16: np.dtype("<u2"),
    Type.U32: np.dtype("<u4"),
    Type.U64: np.dtype("<u8"),
    Type.I64: np.dtype("<i8"),
    Type.F32: np.dtype("<f4"),
}
_MAX_F32: Final = float(np.finfo(np.float32).max)
_TYPES_OF_ROLE: Final[Mapping[Role, tuple[Type, ...]]] = {
    Role.PLAIN: tuple(Type),
    Role.ITEM: (Type.U64,),
    Role.TIME: (Type.I64,),
    Role.ACTION: (Type.U8,),
    Role.SCENE: (Type.U8, Type.U16),
}


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column; `default` is None where a value must be given, and is repeated over the values of a fixed array."""

    name: str
    type: Type
    role: Role = Role.PLAIN
    length: int = 1
    since: int = 1
    default: int | float | None = None

    def __post_init__(self) -> None:
        if not NAME_PATTERN.fullmatch(self.name):
            raise SchemaError(f"column {self.name!r}", "a name is [a-z][a-z0-9_]*, at most 64 characters")
        if self.type not in _TYPES_OF_ROLE[self.role]:
            allowed = ", ".join(t.name.lower() for t in _TYPES_OF_ROLE[self.role])
            raise SchemaError(f"column {self.name!r}", f"role {self.role.name.lower()} needs type {allowed}")
        if not 1 <= self.length <= MAX_ARRAY_LENGTH:
            raise SchemaError(f"column {self.name!r}", f"length must lie in 1..{MAX_ARRAY_LENGTH}")
        if self.default is not None and self.role in (Role.ITEM, Role.TIME):
            raise SchemaError(f"column {self.name!r}", f"role {self.role.name.lower()} takes no default")
        if self.default is not None and not _fits(self.default, self.type):
            raise SchemaError(f"column {self.name!r}", f"default {self.default} does not fit {self.type.name.lower()}")
        if self.since > 1 and self.default is None:
            raise SchemaError(f"column {self.name!r}", "a column added later needs a default")

    @property
    def dtype(self) -> np.dtype[np.generic]:
        return self.type.dtype

    @property
    def width_bytes(self) -> int:
        """Bytes of one row of the column."""
        return self.type.dtype.itemsize * self.length


@dataclass(frozen=True, kw_only=True)
class View:
    """A named read. Empty columns, actions, scenes and a `max_events` of 0 mean all; empty side_info means none."""

    name: str
    columns: tuple[str, ...] = ()
    max_events: int = 0
    actions: tuple[int, ...] = ()
    scenes: tuple[int, ...] = ()
    side_info: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All columns and views. Immutable; everything derived from it is computed once."""

    version: int
    event_columns: tuple[Column, ...]
    side_info_columns: tuple[Column, ...] = ()
    views: tuple[View, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.version <= 0xFFFF:
            raise SchemaError("version", "must lie in 1..65535")
        for field, columns in (("event.columns", self.event_columns), ("side_info.columns", self.side_info_columns)):
            _check_columns(field, columns, self.version)
        for role, needed in ((Role.ITEM, 1), (Role.TIME, 1), (Role.ACTION, 0), (Role.SCENE, 0)):
            count = sum(column.role is role for column in self.event_columns)
            if not needed <= count <= 1:
                wanted = "exactly one" if needed else "at most one"
                raise SchemaError("event.columns", f"{wanted} column of role {role.name.lower()}, not {count}")
        for column in self.event_columns:
            if column.length != 1:
                raise SchemaError("event.columns", f"{column.name!r}: event columns hold one value a row")
        for column in self.side_info_columns:
            if column.role is not Role.PLAIN:
                raise SchemaError("side_info.columns", f"{column.name!r}: side-info columns are plain")
        self._check_views()

    def _check_views(self) -> None:
        if len(self.views) > MAX_VIEWS or len({view.name for view in self.views}) != len(self.views):
            raise SchemaError("views", f"at most {MAX_VIEWS}, each name once")
        for view in self.views:
            field = f"view {view.name!r}"
            if not NAME_PATTERN.fullmatch(view.name):
                raise SchemaError(field, "a name is [a-z][a-z0-9_]*, at most 64 characters")
            for name in view.columns:
                if name not in self.event_column_of:
                    raise SchemaError(field, f"no event column {name!r}")
            for name in view.side_info:
                if name not in self.side_info_column_of:
                    raise SchemaError(field, f"no side-info column {name!r}")
            if view.max_events < 0:
                raise SchemaError(field, "last must be 0 (all) or more")
            for values, column, role in ((view.actions, self.action, "action"), (view.scenes, self.scene, "scene")):
                if values and column is None:
                    raise SchemaError(field, f"filters on {role}s, but the schema has no column of that role")
                if column is not None and not all(_fits(value, column.type) for value in values):
                    raise SchemaError(field, f"{role}s must fit {column.type.name.lower()}")

    @cached_property
    def event_column_of(self) -> Mapping[str, Column]:
        return {column.name: column for column in self.event_columns}

    @cached_property
    def event_position_of(self) -> Mapping[str, int]:
        return {column.name: position for position, column in enumerate(self.event_columns)}

    @cached_property
    def event_sizes(self) -> tuple[int, ...]:
        """Bytes of a value of each event column."""
        return tuple(column.width_bytes for column in self.event_columns)

    @cached_property
    def side_info_column_of(self) -> Mapping[str, Column]:
        return {column.name: column for column in self.side_info_columns}

    @cached_property
    def view_of(self) -> Mapping[str, View]:
        return {view.name: view for view in self.views}

    @cached_property
    def item(self) -> Column:
        return next(column for column in self.event_columns if column.role is Role.ITEM)

    @cached_property
    def time(self) -> Column:
        return next(column for column in self.event_columns if column.role is Role.TIME)

    @cached_property
    def action(self) -> Column | None:
        return next((column for column in self.event_columns if column.role is Role.ACTION), None)

    @cached_property
    def scene(self) -> Column | None:
        return next((column for column in self.event_columns if column.role is Role.SCENE), None)

    @cached_property
    def row_dtype(self) -> np.dtype[np.void]:
        """A packed event row: every event column in order, no padding."""
        return row_dtype(self.event_columns)

    def event_columns_at(self, version: int) -> tuple[Column, ...]:
        """The event columns of an older version: a prefix of today's."""
        return tuple(column for column in self.event_columns if column.since <= version)

    def check_extends(self, older: Self) -> None:
        """Raises: SchemaError, naming the column, if data written under `older` could not be read under this schema."""
        if self.version < older.version:
            raise SchemaError("version", f"{self.version} is older than the data's {older.version}")
        for field, mine, theirs in (
            ("event.columns", self.event_columns, older.event_columns),
            ("side_info.columns", self.side_info_columns, older.side_info_columns),
        ):
            for position, column in enumerate(theirs):
                if position >= len(mine) or mine[position] != column:
                    raise SchemaError(
                        field, f"column {column.name!r} differs from the one that the data was written with"
                    )
            for column in mine[len(theirs) :]:
                if column.since <= older.version:
                    raise SchemaError(field, f"new column {column.name!r} needs since > {older.version}")

    @classmethod
    def from_mapping(cls, document: object) -> Self:
        """The schema of a parsed YAML or JSON document.

        Raises: SchemaError with the path of what is wrong: unknown keys and types, missing ones, broken rules.
        """
        top = _mapping("schema", document, ("version", "event", "side_info", "views"))
        event = _mapping("event", top.get("event"), ("columns",))
        side_info = _mapping("side_info", top.get("side_info", {}), ("columns",))
        return cls(
            version=_integer("version", top.get("version")),
            event_columns=_columns("event.columns", event.get("columns")),
            side_info_columns=_columns("side_info.columns", side_info.get("columns", [])),
            views=tuple(_view(f"views[{i}]", entry) for i, entry in enumerate(_list("views", top.get("views", [])))),
        )

    def to_mapping(self) -> dict[str, object]:
        """The inverse of `from_mapping`, for storing the schema as JSON."""
        return {
            "version": self.version,
            "event": {"columns": [_column_document(column) for column in self.event_columns]},
            "side_info": {"columns": [_column_document(column) for column in self.side_info_columns]},
            "views": [
                {
                    "name": view.name,
                    "columns": list(view.columns),
                    "last": view.max_events,
                    "actions": list(view.actions),
                    "scenes": list(view.scenes),
                    "side_info": list(view.side_info),
                }
                for view in self.views
            ],
        }


def row_dtype(columns: Sequence[Column]) -> np.dtype[np.void]:
    """A packed row of the columns, without padding; arrays as sub-arrays."""
    return np.dtype([(c.name, c.dtype) if c.length == 1 else (c.name, c.dtype, (c.length,)) for c in columns])


def _fits(value: int | float, type_: Type) -> bool:
    if type_ is Type.F32:
        return (
            -_MAX_F32 <= value <= _MAX_F32
        )  # neither infinity nor NaN, which equals nothing, not even in an older schema
    limits = np.iinfo(type_.dtype.str)
    return isinstance(value, int) and int(limits.min) <= value <= int(limits.max)


def _check_columns(field: str, columns: Sequence[Column], version: int) -> None:
    if len(columns) > MAX_COLUMNS:
        raise SchemaError(field, f"at most {MAX_COLUMNS} columns, not {len(columns)}")
    if len({column.name for column in columns}) != len(columns):
        raise SchemaError(field, "a name is used twice")
    since = [column.since for column in columns]
    if since != sorted(since) or any(not 1 <= s <= version for s in since):
        raise SchemaError(field, "`since` must ascend and lie in 1..version: new columns come last")


def _mapping(field: str, document: object, allowed: tuple[str, ...]) -> Mapping[str, object]:
    if not isinstance(document, Mapping):
        raise SchemaError(field, "must be a mapping")
    for key in document:
        if key not in allowed:
            raise SchemaError(field, f"unknown key {key!r}; known are {', '.join(allowed)}")
    return document


def _list(field: str, document: object) -> Sequence[object]:
    if not isinstance(document, list):
        raise SchemaError(field, "must be a list")
    return document


def _integer(field: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise SchemaError(field, "must be an integer")
    return value


def _string(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise SchemaError(field, "must be a string")
    return value


def _columns(field: str, document: object) -> tuple[Column, ...]:
    return tuple(_column(f"{field}[{i}]", entry) for i, entry in enumerate(_list(field, document)))


def _column(field: str, document: object) -> Column:
    entry = _mapping(field, document, ("name", "type", "role", "since", "default"))
    written = _string(f"{field}.type", entry.get("type"))
    match = re.fullmatch(r"(u8|u16|u32|u64|i64|f32)(?:\[(\d{1,3})\])?", written)
    if not match:
        raise SchemaError(
            f"{field}.type", f"{written!r} is none of u8 u16 u32 u64 i64 f32, or a fixed array such as u16[4]"
        )
    role = _string(f"{field}.role", entry.get("role", "plain"))
    if role.upper() not in Role.__members__:
        raise SchemaError(f"{field}.role", f"{role!r} is none of {', '.join(r.name.lower() for r in Role)}")
    default = entry.get("default")
    if default is not None and (not isinstance(default, int | float) or isinstance(default, bool)):
        raise SchemaError(f"{field}.default", "must be a number")
    return Column(
        name=_string(f"{field}.name", entry.get("name")),
        type=Type[match[1].upper()],
        role=Role[role.upper()],
        length=int(match[2] or 1),
        since=_integer(f"{field}.since", entry.get("since", 1)),
        default=default,
    )


def _column_document(column: Column) -> dict[str, object]:
    type_ = column.type.name.lower() + (f"[{column.length}]" if column.length > 1 else "")
    document: dict[str, object] = {
        "name": column.name,
        "type": type_,
        "role": column.role.name.lower(),
        "since": column.since,
    }
    return document if column.default is None else {**document, "default": column.default}


def _view(field: str, document: object) -> View:
    entry = _mapping(field, document, ("name", "columns", "last", "actions", "scenes", "side_info"))

    def strings(key: str) -> tuple[str, ...]:
        return tuple(_string(f"{field}.{key}", value) for value in _list(f"{field}.{key}", entry.get(key, [])))

    def integers(key: str) -> tuple[int, ...]:
        return tuple(_integer(f"{field}.{key}", value) for value in _list(f"{field}.{key}", entry.get(key, [])))

    return View(
        name=_string(f"{field}.name", entry.get("name")),
        columns=strings("columns"),
        max_events=_integer(f"{field}.last", entry.get("last", 0)),
        actions=integers("actions"),
        scenes=integers("scenes"),
        side_info=strings("side_info"),
    )
