"""What can be wrong with a schema, a query or a block, by what the caller can do about it."""


class SeqCoreError(ValueError):
    """Base of the package."""


class SchemaError(SeqCoreError):
    """The schema itself is wrong, or asks for a program newer than this one. `field` is a path such as `event.columns[2].type`."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.problem = problem


class QueryError(SeqCoreError):
    """A query names something that the schema does not have, or a value out of its range. `reason` is of docs/errors.md."""

    def __init__(self, field: str, reason: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field
        self.reason = reason
        self.problem = problem


class BlockError(SeqCoreError):
    """A block is damaged, misplaced, or of a newer format. `offset` is where it begins in the bytes that were read."""

    def __init__(self, offset: int, problem: str) -> None:
        super().__init__(f"block at byte {offset}: {problem}")
        self.offset = offset
        self.problem = problem
