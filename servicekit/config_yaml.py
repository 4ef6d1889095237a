"""The documented default configuration, as YAML that `config.load` reads back."""

import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_type_hints

import yaml

from servicekit.config import default_of, section_type
from servicekit.fields import field_docs
from servicekit.units import format_quantity, units_of

_WIDTH = 116
_UNWRAPPED = 1 << 20


def default_yaml(cls: type) -> str:
    """Each field's string as a comment above it; a field without default is commented out and marked `required`."""
    return "\n".join(_lines(cls, base=None, indent="")) + "\n"


def _lines(cls: type, *, base: object | None, indent: str) -> Iterator[str]:
    hints = get_type_hints(cls)
    docs = field_docs(cls)
    for field in fields(cls):
        if doc := docs.get(field.name):
            yield from textwrap.wrap(doc, _WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")
        default = default_of(field, base)
        if section := section_type(field, hints):
            yield f"{indent}{field.name}:"
            yield from _lines(section, base=None if default is MISSING else default, indent=f"{indent}  ")
        elif default is MISSING:
            yield f"{indent}# {field.name}:  (required)"
        else:
            yield f"{indent}{field.name}: {_text(field.name, default)}"


def _text(name: str, value: object) -> str:
    if type(value) is int:
        return format_quantity(value, units_of(name))
    plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
    # A bare scalar is dumped as a document, with an end mark on a line of its own.
    return yaml.safe_dump(plain, default_flow_style=True, width=_UNWRAPPED).splitlines()[0]
