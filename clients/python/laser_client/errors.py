"""What can go wrong for a caller of the store, one class for each thing to do about it.

InvalidRequest      mend the request             NotAvailable       try again later, or elsewhere
  ColumnError         found before sending       Overloaded         wait `retry_after_ms`, then try again
PermissionDenied    get the right credentials    DeadlineExceeded   take less, or give more time
DataCorrupted       tell who runs the store      ServerBug          report it
"""


class SeqVaultError(Exception):
    """Base of the package.

    `reason`: UPPER_SNAKE_CASE, stable, of docs/errors.md; empty where the peer gave none. `field`: path of the request's
    field that is to blame, or empty. `retry_after_ms`: set where the server refused the call before doing anything, and
    the same call may succeed after that time.
    """

    def __init__(self, message: str, *, reason: str = "", field: str = "", retry_after_ms: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.field = field
        self.retry_after_ms = retry_after_ms


class InvalidRequest(SeqVaultError, ValueError):
    """The request is wrong and will stay wrong: nothing was changed, a retry is useless."""


class ColumnError(InvalidRequest):
    """A packed column does not fit the schema: unknown, given twice, missing, of another type or length."""

    def __init__(self, column: str, reason: str, problem: str) -> None:
        super().__init__(f"column {column!r}: {problem}", reason=reason, field=f"columns[{column}]")
        self.column = column
        self.problem = problem


class NotAvailable(SeqVaultError):
    """No server answered, or the one that did may not serve now. Where retries are safe they did not help in time."""


class Overloaded(SeqVaultError):
    """The server sheds load or is full. Nothing was changed."""


class DeadlineExceeded(SeqVaultError):
    """The call took longer than its timeout. A write without a reply may have happened, or may still happen."""


class PermissionDenied(SeqVaultError):
    """The peer refuses who we are, or what we may do."""


class DataCorrupted(SeqVaultError):
    """The server found damaged data, or a reply does not verify: a bad checksum, another user's block, a short column."""


class ServerBug(SeqVaultError):
    """The server failed in a way that it has no name for, or answered what the protocol does not allow."""
