"""docs/errors.md and the sources name the same reasons, with the same codes."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SOURCES = [
    path
    for folder in ("seqvault_server", "servicekit", "clients/python/laser_client", "seqcore")
    for path in sorted((REPOSITORY / folder).rglob("*.py"))
]
REASON_POSITION = {
    "InvalidAppend": 1,
    "InvalidItems": 1,
    "QueryError": 1,
    "InvalidRequestError": 1,
    "ColumnError": 1,
    "StoreFull": 0,
}
"""Classes that take the reason by position. Any other call gives it as `reason=`."""
PASSED_ON = {"reason", "error.reason", "info.reason", "problem.reason"}
"""Expressions that hand a reason through, from where it was made."""

_ROW = re.compile(r"^\| `(?P<reason>[A-Z_]+)` \| (?P<code>\w+) \|", re.MULTILINE)


def reasons_made(source: str) -> Iterator[tuple[str, str]]:
    """(reason, code) for each reason that the module makes; the code is empty where the call does not say it.

    Raises:
        ValueError: a reason is neither a string nor a constant of the module.
    """
    tree = ast.parse(source)
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign | ast.Assign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        reason = given.get("reason")
        position = REASON_POSITION.get(ast.unparse(call.func).rpartition(".")[2])
        if position is not None and position < len(call.args):
            reason = call.args[position]
        if reason is None:
            continue
        text = ast.unparse(reason)
        if text in PASSED_ON:
            continue
        match constants.get(text, reason):
            case ast.Constant(value=str(name)):
                yield name, ast.unparse(given["code"]).rpartition(".")[2] if "code" in given else ""
            case _:
                raise ValueError(f"line {call.lineno}: no test can tell what reason {text} is")


def test_every_reason_is_documented_and_every_documented_one_exists() -> None:
    documented = [row["reason"] for row in _ROW.finditer((REPOSITORY / "docs/errors.md").read_text())]
    made = {reason for path in SOURCES for reason, _ in reasons_made(path.read_text())}
    assert len(documented) == len(set(documented)), "a reason has two rows"
    assert made - set(documented) == set(), "made, but not documented"
    assert set(documented) - made == set(), "documented, but not made"


def test_codes_are_those_of_the_sources() -> None:
    documented = {row["reason"]: row["code"] for row in _ROW.finditer((REPOSITORY / "docs/errors.md").read_text())}
    made = {(reason, code) for path in SOURCES for reason, code in reasons_made(path.read_text()) if code}
    assert made
    assert {(reason, documented[reason]) for reason, _ in made} == made


def test_reasons_are_found_wherever_they_are_given() -> None:
    source = (
        "GONE: Final = 'GONE_AWAY'\n"
        "raise errors.InvalidAppend('field', 'BY_POSITION', 'text')\n"
        "raise StoreFull('FIRST', 'text', 1)\n"
        "Problem(code=grpc.StatusCode.INTERNAL, reason='BY_NAME', message='')\n"
        "raise NotAvailable('text', reason=GONE)\n"
        "Problem(code=code, reason=error.reason)\n"
    )
    assert set(reasons_made(source)) == {("BY_POSITION", ""), ("FIRST", ""), ("BY_NAME", "INTERNAL"), ("GONE_AWAY", "")}


def test_a_reason_that_cannot_be_told_is_refused() -> None:
    with pytest.raises(ValueError, match="line 1"):
        list(reasons_made("raise QueryError('field', choose(), 'text')"))
