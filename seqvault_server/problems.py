"""The one table from SeqVault's errors to gRPC statuses. Each reason is explained in docs/errors.md."""

from grpc import StatusCode

from laser_client.errors import ColumnError
from seqcore.errors import BlockError, QueryError
from seqvault_server.sideinfo.errors import InvalidItems, SideInfoFull, SideInfoUnavailable
from seqvault_server.storage.errors import (
    DamagedHistory,
    InvalidAppend,
    ReadOnly,
    SequenceTooOld,
    StoreFull,
    UserFull,
    UsersFull,
)
from servicekit.errors import ErrorTable, Problem, row

DOMAIN = "seqvault.v1"


class InvalidRequestError(ValueError):
    """A request breaks a limit that no deeper layer knows."""

    def __init__(self, field: str, reason: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.reason = reason


def _invalid(error: InvalidAppend | InvalidItems | QueryError | InvalidRequestError | ColumnError) -> Problem:
    return Problem(code=StatusCode.INVALID_ARGUMENT, reason=error.reason, message=str(error), field=error.field)


def _store_full(error: StoreFull) -> Problem:
    return Problem(
        code=StatusCode.RESOURCE_EXHAUSTED,
        reason=error.reason,
        message=str(error),
        field="columns",
        retry_after_ms=error.retry_after_ms,
    )


TABLE = ErrorTable(
    DOMAIN,
    [
        row(InvalidRequestError, _invalid),
        row(InvalidAppend, _invalid),
        row(InvalidItems, _invalid),
        row(QueryError, _invalid),
        row(ColumnError, _invalid),
        row(StoreFull, _store_full),
        row(
            SequenceTooOld,
            lambda e: Problem(
                code=StatusCode.FAILED_PRECONDITION, reason="SEQUENCE_TOO_OLD", message=str(e), field="sequence"
            ),
        ),
        row(
            UserFull,
            lambda e: Problem(
                code=StatusCode.FAILED_PRECONDITION, reason="USER_FULL", message=str(e), field="user_ids"
            ),
        ),
        row(
            UsersFull,
            lambda e: Problem(
                code=StatusCode.RESOURCE_EXHAUSTED, reason="USERS_FULL", message=str(e), field="user_ids"
            ),
        ),
        row(
            SideInfoFull,
            lambda e: Problem(
                code=StatusCode.RESOURCE_EXHAUSTED, reason="ITEMS_FULL", message=str(e), field="item_ids"
            ),
        ),
        row(ReadOnly, lambda e: Problem(code=StatusCode.UNAVAILABLE, reason="READ_ONLY", message=str(e))),
        row(
            SideInfoUnavailable,
            lambda e: Problem(code=StatusCode.UNAVAILABLE, reason="ITEMS_UNAVAILABLE", message=str(e)),
        ),
        row(
            DamagedHistory,
            lambda e: Problem(code=StatusCode.DATA_LOSS, reason="DAMAGED_HISTORY", message=str(e), field="user_id"),
        ),
        row(
            BlockError,
            lambda e: Problem(code=StatusCode.DATA_LOSS, reason="DAMAGED_HISTORY", message=str(e), field="user_id"),
        ),
    ],
)
