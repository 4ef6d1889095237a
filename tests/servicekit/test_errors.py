"""From an exception to a rich status."""

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo  # type: ignore[import-untyped]

from servicekit.errors import ErrorTable, Problem, row, to_status


class Base(Exception):
    pass


class Middle(Base):
    pass


class Leaf(Middle):
    pass


def _problem(reason: str) -> Problem:
    return Problem(code=grpc.StatusCode.ABORTED, reason=reason, message="text")


TABLE = ErrorTable("d", [row(Base, lambda _: _problem("BASE")), row(Middle, lambda _: _problem("MIDDLE"))])


@pytest.mark.parametrize(("error", "reason"), [(Base(), "BASE"), (Middle(), "MIDDLE"), (Leaf(), "MIDDLE")])
def test_row_of_the_nearest_base_serves(error: Exception, reason: str) -> None:
    problem = TABLE.problem(error)
    assert problem is not None
    assert problem.reason == reason


def test_an_error_outside_the_table_has_no_problem() -> None:
    assert TABLE.problem(KeyError()) is None


def test_two_rows_for_one_error_are_refused() -> None:
    with pytest.raises(ValueError, match="two rows for Base"):
        ErrorTable("d", [row(Base, lambda _: _problem("A")), row(Base, lambda _: _problem("B"))])


def test_status_without_field_and_retry_names_the_reason_alone() -> None:
    status = to_status(_problem("R"), "d")
    info = ErrorInfo()
    (detail,) = status.details
    assert detail.Unpack(info)
    assert (status.code, status.message, info.reason, info.domain) == (10, "text", "R", "d")


def test_status_names_field_and_delay() -> None:
    problem = Problem(code=grpc.StatusCode.ABORTED, reason="R", message="text", field="a.b", retry_after_ms=1500)
    _, bad_request, retry = to_status(problem, "d").details
    violations, delay = BadRequest(), RetryInfo()
    assert bad_request.Unpack(violations)
    assert retry.Unpack(delay)
    (violation,) = violations.field_violations
    assert (violation.field, violation.description) == ("a.b", "text")
    assert delay.retry_delay.ToMilliseconds() == 1500


def test_a_retry_at_once_is_told_too() -> None:
    problem = Problem(code=grpc.StatusCode.ABORTED, reason="R", message="text", retry_after_ms=0)
    assert len(to_status(problem, "d").details) == 2
