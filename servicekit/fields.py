"""The strings under the fields of a dataclass, read from its source."""

import ast
import inspect
import textwrap
from collections.abc import Mapping
from functools import cache
from itertools import pairwise
from types import MappingProxyType


@cache
def field_docs(cls: type) -> Mapping[str, str]:
    """Field name -> its documentation, whitespace folded; fields of base classes included. Empty without source."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base is not object:
            found.update(_own_docs(base))
    return MappingProxyType(found)


def _own_docs(cls: type) -> Mapping[str, str]:
    try:
        source = inspect.getsource(cls)
    except OSError:  # made at run time, or shipped as byte code
        return {}
    (definition,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(doc.value.value.split())
        for field, doc in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(doc, ast.Expr)
        and isinstance(doc.value, ast.Constant)
        and isinstance(doc.value.value, str)
    }
