"""Strings under fields."""

from dataclasses import dataclass, make_dataclass

from servicekit.fields import field_docs


@dataclass(frozen=True, slots=True)
class Base:
    """No field's documentation."""

    first: int
    """Of the
    base."""
    second: int


@dataclass(frozen=True, slots=True)
class Derived(Base):
    third: int = 0
    """Of the derived."""
    first: int
    """Said anew."""

    def method(self) -> None:
        """Not a field's either."""


def test_strings_under_fields_are_found_in_all_bases() -> None:
    assert field_docs(Base) == {"first": "Of the base."}
    assert field_docs(Derived) == {"first": "Said anew.", "third": "Of the derived."}


def test_a_class_without_source_has_no_docs() -> None:
    assert field_docs(make_dataclass("Made", ["x"])) == {}
