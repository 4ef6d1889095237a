"""A failed RPC to a typed error: the code picks the class, google.rpc's details fill its fields."""

from collections.abc import Mapping
from typing import Final

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from laser_client.errors import (
    DataCorrupted,
    DeadlineExceeded,
    InvalidRequest,
    NotAvailable,
    Overloaded,
    PermissionDenied,
    SeqVaultError,
    ServerBug,
)

_DETAILS_KEY: Final = "grpc-status-details-bin"

_CLASS_OF: Final[Mapping[grpc.StatusCode, type[SeqVaultError]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
    grpc.StatusCode.FAILED_PRECONDITION: InvalidRequest,
    grpc.StatusCode.OUT_OF_RANGE: InvalidRequest,
    grpc.StatusCode.NOT_FOUND: InvalidRequest,
    grpc.StatusCode.ALREADY_EXISTS: InvalidRequest,
    grpc.StatusCode.UNAVAILABLE: NotAvailable,
    grpc.StatusCode.ABORTED: NotAvailable,
    grpc.StatusCode.CANCELLED: NotAvailable,  # by the peer; a call cancelled here raises CancelledError
    grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.DATA_LOSS: DataCorrupted,
}
"""Any other code is a ServerBug."""


def error_of(rpc: grpc.aio.AioRpcError) -> SeqVaultError:
    """To be raised `from rpc`. Details that do not parse count as absent."""
    status = _details_of(rpc)
    info, violation, retry = ErrorInfo(), BadRequest(), RetryInfo()
    has_retry = False
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(violation)
        has_retry = detail.Unpack(retry) or has_retry
    message = rpc.details() or rpc.code().name
    if rpc.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and not info.reason and "larger than max" in message:
        # gRPC itself refuses oversized messages, on either side, before the server's own code is asked.
        return InvalidRequest(message, reason="MESSAGE_TOO_LARGE")
    return _CLASS_OF.get(rpc.code(), ServerBug)(
        message,
        reason=info.reason,
        field=violation.field_violations[0].field if violation.field_violations else "",
        retry_after_ms=retry.retry_delay.ToMilliseconds() if has_retry else None,
    )


def _details_of(rpc: grpc.aio.AioRpcError) -> Status:
    for key, value in rpc.trailing_metadata():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                return Status.FromString(value)
            except DecodeError:
                break
    return Status()
