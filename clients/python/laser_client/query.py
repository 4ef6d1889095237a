"""Which events and columns a read wants."""

from dataclasses import dataclass
from enum import IntEnum

from laser_client.errors import InvalidRequest
from seqcore.schema import Schema
from seqvault.v1 import seqvault_pb2 as pb


class Encoding(IntEnum):
    """How a history travels; the numbers are the protocol's."""

    BLOCKS = 1
    PLAIN = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """Everything set must hold; fields narrow the view, but `columns` and `side_info` replace the view's."""

    view: str = ""
    """A named read of the schema; empty: none."""
    columns: tuple[str, ...] = ()
    """Event columns to return, in this order; empty: the view's, or else all."""
    max_events: int = 0
    """Newest events to return; 0: the view's, or else all."""
    start_ms: int | None = None
    """Event time >= start_ms."""
    end_ms: int | None = None
    """Event time < end_ms."""
    as_of_ms: int | None = None
    """Event time < as_of_ms: what a request at that time may see."""
    actions: tuple[int, ...] = ()
    """Actions to keep; empty: all."""
    scenes: tuple[int, ...] = ()
    """Scenes to keep; empty: all."""
    side_info: tuple[str, ...] = ()
    """Side-info columns to join for the distinct items; empty: the view's, or else none."""
    encoding: Encoding = Encoding.BLOCKS
    """Blocks are cheapest for both sides; plain arrays cost the server a decode."""

    def to_proto(self) -> pb.Query:
        """Raises: InvalidRequest if a number does not fit its field."""
        try:
            return pb.Query(
                view=self.view,
                columns=self.columns,
                max_events=self.max_events,
                start_ms=self.start_ms,
                end_ms=self.end_ms,
                as_of_ms=self.as_of_ms,
                actions=self.actions,
                scenes=self.scenes,
                side_info=self.side_info,
                encoding=pb.Encoding.ValueType(self.encoding),
            )
        except (TypeError, ValueError) as error:
            raise InvalidRequest(f"query: {error}", reason="OUT_OF_RANGE", field="query") from error

    def columns_of(self, schema: Schema) -> tuple[str, ...]:
        """Names of the columns that a reply holds, as far as this schema knows the view."""
        view = schema.view_of.get(self.view)
        return self.columns or (view.columns if view else ()) or tuple(schema.event_column_of)
