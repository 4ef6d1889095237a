"""File, environment, overrides; and every way in which they can be wrong."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from servicekit.config import ConfigError, load
from servicekit.config_yaml import default_yaml


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A section."""

    cap_bytes: int = 64 << 20
    """Ceiling of the cache."""
    ttl_ms: int = 1500
    """How long an entry is good for. Longer means staler, and this text is long enough to be wrapped onto a second line
    of comment."""
    warm: bool = False

    def __post_init__(self) -> None:
        if self.cap_bytes < 0:
            raise ValueError("cap_bytes must not be negative")


@dataclass(frozen=True, kw_only=True)
class Settings:
    data_dir: Path
    """Where the data lies."""
    name: str = "x: y"
    ratio: float = 0.5
    mode: Literal["fast", "safe"] = "safe"
    tags: tuple[str, ...] = ("a", "b c")
    counts: tuple[int, ...] = ()
    limit: int | None = None
    cache: Cache = field(default_factory=Cache)
    """The cache."""
    small: Cache = Cache(cap_bytes=1 << 10)


BASE = Settings(data_dir=Path("/data"))


def _load(
    tmp_path: Path,
    text: str = "",
    *,
    environ: Mapping[str, str] | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Settings:
    file = tmp_path / "config.yaml"
    file.write_text(f"data_dir: /data\n{text}")
    return load(Settings, file=file, environ=environ, prefix="APP", overrides=overrides)


def test_file_gives_every_type(tmp_path: Path) -> None:
    text = """
ratio: 1
mode: fast
tags: [q]
counts: [1, 2]
limit: 3
cache: {cap_bytes: 2KiB, warm: true}
"""
    assert _load(tmp_path, text) == Settings(
        data_dir=Path("/data"),
        ratio=1.0,
        mode="fast",
        tags=("q",),
        counts=(1, 2),
        limit=3,
        cache=Cache(cap_bytes=2048, warm=True),
    )


def test_environment_gives_every_type(tmp_path: Path) -> None:
    environ = {
        "APP_DATA_DIR": "/other",
        "APP_RATIO": "0.25",
        "APP_MODE": "fast",
        "APP_TAGS": "p, q",
        "APP_COUNTS": "1,2",
        "APP_LIMIT": "7",
        "APP_CACHE_TTL_MS": "2s",
        "APP_CACHE_WARM": "yes",
        "OTHER_NAME": "ignored",
    }
    assert _load(tmp_path, environ=environ) == Settings(
        data_dir=Path("/other"),
        ratio=0.25,
        mode="fast",
        tags=("p", "q"),
        counts=(1, 2),
        limit=7,
        cache=Cache(ttl_ms=2000, warm=True),
    )


def test_environment_beats_file_and_overrides_beat_both(tmp_path: Path) -> None:
    text = "name: file\nmode: fast\ncache: {cap_bytes: 1, ttl_ms: 1, warm: true}"
    environ = {"APP_NAME": "environment", "APP_CACHE_TTL_MS": "2", "APP_CACHE_CAP_BYTES": "2"}
    loaded = _load(tmp_path, text, environ=environ, overrides={"cache.cap_bytes": 3})
    assert (loaded.name, loaded.mode) == ("environment", "fast")
    assert loaded.cache == Cache(cap_bytes=3, ttl_ms=2, warm=True)


def test_nothing_given_means_the_defaults(tmp_path: Path) -> None:
    assert _load(tmp_path) == BASE
    assert load(Settings, overrides={"data_dir": Path("/data")}) == BASE
    assert _load(tmp_path, "cache:\nlimit: null") == BASE


def test_defaults_of_a_section_come_from_its_parent(tmp_path: Path) -> None:
    assert _load(tmp_path, "small: {warm: true}").small == Cache(cap_bytes=1 << 10, warm=True)


def test_environment_without_prefix_is_not_read() -> None:
    assert load(Settings, environ={"_NAME": "x", "NAME": "x"}, overrides={"data_dir": "/data"}) == BASE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nmae: x", "nmae: unknown; did you mean name?"),
        ("cache: {cap_byte: 1}", "cache.cap_byte: unknown; did you mean cache.cap_bytes?"),
        ("zzz: 1", "zzz: unknown; known: data_dir, name, ratio"),
        ("ratio: fast", "ratio: must be float, not 'fast'"),
        ("name: 3", "name: must be str, not 3"),
        ("limit: true", "limit: must be int, not True"),
        ("limit: 1.5", "limit: must be int, not 1.5"),
        ("limit: 64MiB", "limit: must be int, not '64MiB'"),
        ("mode: slow", "mode: must be one of fast, safe, not 'slow'"),
        ("tags: 3", "tags: must be a list, not 3"),
        ("counts: [1, x]", "counts: must be int, not 'x'"),
        ("cache: 3", "cache: must be a section, not 3"),
        ("cache: {warm: 1}", "cache.warm: must be bool, not 1"),
        ("cache: {warm: maybe}", "cache.warm: must be bool, not 'maybe'"),
        ("cache: {cap_bytes: 2s}", "cache.cap_bytes: must be int or a number with one of the units GiB, "),
        ("cache: {ttl_ms: 2MiB}", "cache.ttl_ms: must be int or a number with one of the units d, h, "),
        ("cache: {cap_bytes: -1}", "cache: cap_bytes must not be negative"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        _load(tmp_path, text)
    assert str(caught.value).startswith(message)


def test_a_wrong_variable_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"APP_CACHE_TTL: unknown; did you mean APP_CACHE_TTL_MS\?"):
        _load(tmp_path, environ={"APP_CACHE_TTL": "1"})
    with pytest.raises(ConfigError, match=r"cache\.ttl_ms: must be int"):
        _load(tmp_path, environ={"APP_CACHE_TTL_MS": "soon"})


def test_a_wrong_override_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache\.wram: unknown; did you mean cache\.warm\?"):
        _load(tmp_path, overrides={"cache.wram": True})


def test_a_required_field_is_asked_for() -> None:
    with pytest.raises(ConfigError, match="data_dir: is required"):
        load(Settings)


@pytest.mark.parametrize("content", ["- a list", "a: [", "just text"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"config\.yaml"):
        load(Settings, file=file)


def test_printed_defaults_are_documented_and_read_back(tmp_path: Path) -> None:
    text = default_yaml(Settings)
    assert "# Where the data lies.\n# data_dir:  (required)\n" in text
    assert "# The cache.\ncache:\n  # Ceiling of the cache.\n  cap_bytes: 64MiB\n" in text
    assert " comment.\n  ttl_ms: 1500ms\n" in text
    assert max(map(len, text.splitlines())) <= 120
    assert "small:\n  # Ceiling of the cache.\n  cap_bytes: 1KiB\n" in text
    assert _load(tmp_path, text) == BASE
