"""What can go wrong with side-info, by what its caller can do about it. Reasons are documented in docs/errors.md."""


class SideInfoError(Exception):
    """Base of the package."""


class InvalidItems(SideInfoError, ValueError):
    """The caller's data is wrong; sending it again will not help. Nothing was applied."""

    def __init__(self, field: str, reason: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.reason = reason
        self.problem = problem


class SideInfoFull(SideInfoError):
    """No room for more items: `max_items`, the map or the disk. Nothing was applied."""


class SideInfoUnavailable(SideInfoError):
    """Items cannot be opened, or a write failed so that no more are taken; mend what it names, then restart."""
