"""Exceptions to rich gRPC statuses: one table per server, and what is not in it is a bug."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

STATUS_DETAILS_KEY: Final = "grpc-status-details-bin"

_Error = TypeVar("_Error", bound=Exception)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a peer is told."""

    code: grpc.StatusCode
    reason: str
    """UPPER_SNAKE_CASE, stable: programs branch on it."""
    message: str
    """For a person; may change between releases."""
    field: str | None = None
    """Path of the request's field that is to blame."""
    retry_after_ms: int | None = None
    """Given where the same request may succeed later."""


BUG: Final = Problem(code=grpc.StatusCode.INTERNAL, reason="INTERNAL", message="internal error")
"""Neutral on purpose: the traceback belongs in the log, not to the peer."""


@dataclass(frozen=True, slots=True)
class Row:
    """Made by `row`, which checks that both halves fit."""

    error: type[Exception]
    problem: Callable[[Any], Problem]


def row(error: type[_Error], problem: Callable[[_Error], Problem], /) -> Row:
    """`problem` is called with an instance of `error` or of a subclass without a row of its own."""
    return Row(error, problem)


class ErrorTable:
    """Immutable after construction. The row of the nearest base class serves an error."""

    def __init__(self, domain: str, rows: Iterable[Row]) -> None:
        """Raises:
        ValueError: an error has two rows.
        """
        self.domain = domain
        self._rows: dict[type, Callable[[Any], Problem]] = {}
        for each in rows:
            if each.error in self._rows:
                raise ValueError(f"two rows for {each.error.__name__}")
            self._rows[each.error] = each.problem

    def problem(self, error: Exception) -> Problem | None:
        """None: no row, so the error is a bug."""
        for kind in type(error).__mro__:
            if describe := self._rows.get(kind):
                return describe(error)
        return None


def to_status(problem: Problem, domain: str) -> Status:
    """Carries ErrorInfo always, BadRequest where a field is to blame, RetryInfo where a retry makes sense."""
    status = Status(code=problem.code.value[0], message=problem.message)
    status.details.add().Pack(ErrorInfo(reason=problem.reason, domain=domain))
    if problem.field is not None:
        violation = BadRequest.FieldViolation(field=problem.field, description=problem.message)
        status.details.add().Pack(BadRequest(field_violations=[violation]))
    if problem.retry_after_ms is not None:
        delay = Duration()
        delay.FromMilliseconds(problem.retry_after_ms)
        status.details.add().Pack(RetryInfo(retry_delay=delay))
    return status


def trailing_metadata(problem: Problem, domain: str) -> tuple[tuple[str, bytes], ...]:
    """What travels beside code and message."""
    return ((STATUS_DETAILS_KEY, to_status(problem, domain).SerializeToString()),)
