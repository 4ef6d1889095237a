"""A query of the protocol against the schema: view and overrides resolved, everything checked, once per call."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Final

from laser_client.wire import filter_to_proto
from seqcore.errors import QueryError
from seqcore.filters import Filter
from seqcore.schema import Column, Schema, View
from seqvault.v1 import seqvault_pb2 as pb
from seqvault_server.storage.walk import NO_END_MS, NO_START_MS, Wanted

REMEMBERED: Final = 1024
_ALL: Final = View(name="all")
_NOTHING: Final = Filter(start_ms=0, end_ms=0)
"""An empty time range: what is left of filters that exclude each other."""


@dataclass(frozen=True, slots=True)
class ResolvedQuery:
    """What to read, what to keep of it, how to send it."""

    columns: tuple[str, ...]
    residual: Filter
    wanted: Wanted
    side_info: tuple[str, ...]
    is_plain: bool
    blocks_template: pb.GetHistoryResponse
    """A reply of blocks with all that does not depend on the history."""


class QueryResolver:
    """Queries against one schema; those seen lately are remembered, since a scenario asks the same again and again."""

    def __init__(self, schema: Schema) -> None:
        self._resolve = lru_cache(maxsize=REMEMBERED)(partial(_resolve, schema=schema))

    def resolve(self, query: pb.Query) -> ResolvedQuery:
        """Raises: QueryError with field and reason."""
        return self._resolve(query.SerializeToString(deterministic=True))


def _resolve(serialized: bytes, *, schema: Schema) -> ResolvedQuery:
    query = pb.Query.FromString(serialized)
    view = _view(query.view, schema)
    columns = _names("columns", tuple(query.columns) or view.columns, schema.event_column_of)
    side_info = _names("side_info", tuple(query.side_info) or view.side_info, schema.side_info_column_of)
    actions = _values("actions", tuple(query.actions), schema.action)
    scenes = _values("scenes", tuple(query.scenes), schema.scene)
    limits = [n for n in (query.max_events, view.max_events) if n]
    ends = [getattr(query, name) for name in ("end_ms", "as_of_ms") if query.HasField(name)]
    kept_actions, kept_scenes = _both(actions, view.actions), _both(scenes, view.scenes)
    residual = Filter(
        max_events=min(limits, default=0),
        start_ms=query.start_ms if query.HasField("start_ms") else None,
        end_ms=min(ends, default=None),
        actions=kept_actions or (),
        scenes=kept_scenes or (),
    )
    if kept_actions is None or kept_scenes is None:
        residual = _NOTHING
    if query.encoding not in pb.Encoding.values():
        raise QueryError("query.encoding", "UNKNOWN_ENCODING", f"{query.encoding} is no encoding")
    columns = columns or tuple(schema.event_column_of)
    blocks = pb.Blocks(residual=filter_to_proto(residual), columns=columns, schema_version=schema.version)
    return ResolvedQuery(
        columns=columns,
        residual=residual,
        wanted=_wanted(residual),
        side_info=side_info,
        is_plain=query.encoding == pb.ENCODING_PLAIN,
        blocks_template=pb.GetHistoryResponse(found=True, blocks=blocks),
    )


def _wanted(residual: Filter) -> Wanted:
    mask = 0
    for action in residual.actions:
        mask |= 1 << (action & 63)
    return Wanted(
        max_events=residual.max_events,
        start_ms=NO_START_MS if residual.start_ms is None else residual.start_ms,
        end_ms=NO_END_MS if residual.end_ms is None else residual.end_ms,
        action_mask=mask or (1 << 64) - 1,
        has_row_filter=bool(residual.actions or residual.scenes),
    )


def _view(name: str, schema: Schema) -> View:
    if not name:
        return _ALL
    view = schema.view_of.get(name)
    if view is None:
        known = ", ".join(schema.view_of) or "none"
        raise QueryError("query.view", "UNKNOWN_VIEW", f"no view {name!r}; there are: {known}")
    return view


def _names(field: str, names: tuple[str, ...], known: Mapping[str, Column]) -> tuple[str, ...]:
    for position, name in enumerate(names):
        if name not in known:
            raise QueryError(f"query.{field}[{position}]", "UNKNOWN_COLUMN", f"the schema has no column {name!r} here")
    if len(set(names)) != len(names):
        raise QueryError(f"query.{field}", "DUPLICATE_COLUMN", "a column is named twice")
    return names


def _values(field: str, values: tuple[int, ...], column: Column | None) -> tuple[int, ...]:
    if values and column is None:
        raise QueryError(f"query.{field}", "NO_SUCH_ROLE", f"the schema has no column to filter {field} by")
    if values and column is not None:
        limit = (1 << (8 * column.dtype.itemsize)) - 1
        if max(values) > limit:
            raise QueryError(f"query.{field}", "VALUE_OUT_OF_RANGE", f"{max(values)} is above {limit}")
    return values


def _both(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    """The intersection, where () means all; None if it is empty."""
    if not one or not other:
        return one or other
    return tuple(value for value in one if value in other) or None
