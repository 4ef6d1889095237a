"""What can go wrong in the engine, by what its caller can do about it. Reasons are documented in docs/errors.md."""


class StorageError(Exception):
    """Base of the package."""


class InvalidAppend(StorageError, ValueError):
    """The caller's data is wrong; sending it again will not help. Nothing was applied."""

    def __init__(self, field: str, reason: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.reason = reason
        self.problem = problem


class SequenceTooOld(StorageError):
    """The producer's sequence lies below its window: whether the call was applied is no longer known."""

    def __init__(self, sequence: int, oldest: int) -> None:
        super().__init__(f"sequence {sequence} lies below the producer's window, which begins at {oldest}")
        self.sequence = sequence
        self.oldest = oldest


class StoreFull(StorageError):
    """No room now for more events; a retry after `retry_after_ms` makes sense. `reason` is of docs/errors.md."""

    def __init__(self, reason: str, problem: str, retry_after_ms: int) -> None:
        super().__init__(problem)
        self.reason = reason
        self.problem = problem
        self.retry_after_ms = retry_after_ms


class UsersFull(StorageError):
    """The index may hold no more users; histories of those that it has still take events."""

    def __init__(self, max_users: int) -> None:
        super().__init__(f"the store may hold {max_users} users (max_users), and more than that would be known")
        self.max_users = max_users


class UserFull(StorageError):
    """One user's history reached its limit; deleting the user is the only cure."""

    def __init__(self, user_id: int, limit_bytes: int) -> None:
        super().__init__(f"history of user {user_id} has reached its limit of {limit_bytes} bytes on disk")
        self.user_id = user_id
        self.limit_bytes = limit_bytes


class ReadOnly(StorageError):
    """A log write failed, so the shard takes no more writes until it is restarted; reads go on."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"the shard is read-only: {cause}")
        self.cause = cause


class DamagedHistory(StorageError):
    """Bytes of a history do not verify. Other users are not affected."""

    def __init__(self, user_id: int, segment: int, offset: int, problem: str) -> None:
        super().__init__(f"history of user {user_id} in segment {segment} at byte {offset}: {problem}")
        self.user_id = user_id
        self.segment = segment
        self.offset = offset


class DataDirectoryError(StorageError):
    """The data directory cannot be opened as it is: locked by another process, another schema, a newer format."""
