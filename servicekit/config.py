"""Frozen dataclasses filled from a YAML file, the environment and explicit overrides, the later over the earlier.

    file         sections are nested mappings, one for each field that is itself a dataclass
    environment  PREFIX_SECTION_NAME=value
    overrides    {"section.name": value}, as command-line options give them

Fields may be bool, int, float, str, Path, Literal, `tuple[X, ...]`, `X | None` or a dataclass. Text is converted for
them; tuples are comma-separated in text. An int named `.._bytes` takes `64MiB`, one named `.._ms` takes `250ms`, `2s`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from servicekit.units import parse_quantity, units_of

_Config = TypeVar("_Config")

_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


class ConfigError(ValueError):
    """A setting is wrong. `name` is `section.key`, or the environment variable; empty for the whole file."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"{name}: {problem}" if name else problem)
        self.name = name
        self.problem = problem


def load(
    cls: type[_Config],
    *,
    file: Path | None = None,
    environ: Mapping[str, str] | None = None,
    prefix: str = "",
    overrides: Mapping[str, object] | None = None,
) -> _Config:
    """The environment is read only with a `prefix`; what comes later replaces single keys, never a whole section.

    Raises:
        ConfigError: an unknown name, a value of the wrong type, a missing one, or one that `__post_init__` refuses.
        OSError: the file cannot be read.
    """
    keys = dict(_keys(cls))
    values: dict[str, object] = {}
    if file is not None:
        values |= _read_file(file, cls, keys)
    if prefix:
        values |= _read_environment(environ or {}, prefix, keys)
    for name, value in (overrides or {}).items():
        _check_known(name, keys)
        values[name] = value
    converted = {name: _convert(name, keys[name], value) for name, value in values.items()}
    return _build(cls, converted, path="", base=None)


def section_type(field: Field[Any], hints: Mapping[str, Any]) -> type | None:
    """The dataclass of a nested section, None for a plain field."""
    hint = hints[field.name]
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def default_of(field: Field[Any], base: object | None) -> Any:
    """The value in `base` if there is one, else the field's own default; MISSING where it has none."""
    if base is not None:
        return getattr(base, field.name)
    return field.default if field.default_factory is MISSING else field.default_factory()


def _keys(cls: type[Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """`section.key` -> type, of all plain fields."""
    hints = get_type_hints(cls)
    for field in fields(cls):
        if section := section_type(field, hints):
            yield from _keys(section, f"{path}{field.name}.")
        else:
            yield path + field.name, hints[field.name]


def _check_known(name: str, known: Mapping[str, Any]) -> None:
    if name not in known:
        close = get_close_matches(name, known, n=1, cutoff=0.5)
        raise ConfigError(
            name, f"unknown; did you mean {close[0]}?" if close else f"unknown; known: {', '.join(known)}"
        )


def _read_file(file: Path, cls: type[Any], keys: Mapping[str, Any]) -> dict[str, object]:
    try:
        content = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ConfigError("", f"{file} is no YAML: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("", f"{file} must hold a mapping")
    values = dict(_flatten(content, cls, ""))
    for name in values:
        _check_known(name, keys)
    return values


def _flatten(content: Mapping[object, object], cls: type[Any], path: str) -> Iterator[tuple[str, object]]:
    hints = get_type_hints(cls)
    sections = {field.name: section for field in fields(cls) if (section := section_type(field, hints))}
    for key, value in content.items():
        name = f"{path}{key}"
        section = sections.get(str(key))
        if section is None:
            yield name, value
        elif isinstance(value, dict):
            yield from _flatten(value, section, f"{name}.")
        elif value is not None:
            raise ConfigError(name, f"must be a section, not {value!r}")


def _read_environment(environ: Mapping[str, str], prefix: str, keys: Mapping[str, Any]) -> dict[str, object]:
    key_of = {f"{prefix}_{name}".replace(".", "_").upper(): name for name in keys}
    given = {name: value for name, value in environ.items() if name.startswith(f"{prefix.upper()}_")}
    for name in given:
        _check_known(name, key_of)
    return {key_of[name]: value for name, value in given.items()}


def _convert(name: str, hint: Any, value: object) -> object:
    """Raises:
    ConfigError: `value` is not, and does not say, a value of the type.
    """
    origin = get_origin(hint)
    if origin in {Union, UnionType}:
        if value is None or value == "":
            return None
        (plain,) = (each for each in get_args(hint) if each is not NoneType)
        return _convert(name, plain, value)
    if origin is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)):
            raise ConfigError(name, f"must be a list, not {value!r}")
        each = get_args(hint)[0]
        return tuple(_convert(name, each, part.strip() if isinstance(part, str) else part) for part in parts)
    if origin is Literal:
        if value not in get_args(hint):
            raise ConfigError(name, f"must be one of {', '.join(map(str, get_args(hint)))}, not {value!r}")
        return value
    converted = _convert_scalar(name, hint, value)
    if converted is None:
        units = units_of(name) if hint is int else {}
        wanted = hint.__name__ + (f" or a number with one of the units {', '.join(units)}" if units else "")
        raise ConfigError(name, f"must be {wanted}, not {value!r}")
    return converted


def _convert_scalar(name: str, hint: Any, value: object) -> object | None:
    """None: does not fit."""
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    if isinstance(value, str) and hint is not str:
        return _parse_scalar(name, hint, value)
    if hint is float and type(value) is int:
        return float(value)
    # By `type`, for True is an instance of int.
    return value if type(value) is hint else None


def _parse_scalar(name: str, hint: Any, text: str) -> object | None:
    if hint is bool:
        return _TRUTHS.get(text.lower())
    try:
        parsed: object = hint(text)
    except ValueError:
        return parse_quantity(text, units_of(name)) if hint is int else None
    return parsed


def _build(cls: type[_Config], values: Mapping[str, object], *, path: str, base: object | None) -> _Config:
    """`base` holds the defaults of a section that its parent declares with values of its own."""
    hints = get_type_hints(cls)
    arguments: dict[str, object] = {}
    for field in fields(cls):  # type: ignore[arg-type]
        name = path + field.name
        default = default_of(field, base)
        if section := section_type(field, hints):
            arguments[field.name] = _build(
                section, values, path=f"{name}.", base=None if default is MISSING else default
            )
        elif name in values or default is not MISSING:
            arguments[field.name] = values.get(name, default)
        else:
            raise ConfigError(name, "is required")
    try:
        return cls(**arguments)
    except ConfigError as error:
        raise ConfigError(path + error.name, error.problem) from error
    except ValueError as error:
        raise ConfigError(path.rstrip("."), str(error)) from error
