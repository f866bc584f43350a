"""A schema that cannot read what a release wrote is refused before it is deployed."""

import json
from pathlib import Path
from typing import Any

import pytest

from schemas.evolution import breaks, release

OLD: dict[str, Any] = {
    "type": "record",
    "name": "Thing",
    "namespace": "test",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "count", "type": "int"},
        {"name": "colour", "type": {"type": "enum", "name": "Colour", "symbols": ["RED", "BLUE"]}},
    ],
}


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    current, released = tmp_path / "avro", tmp_path / "released"
    current.mkdir()
    write(current, OLD)
    release("1.0.0", current, released)
    return current, released


def write(folder: Path, schema: dict[str, Any]) -> None:
    (folder / "Thing.avsc").write_text(json.dumps(schema))


def with_fields(*fields: dict[str, Any]) -> dict[str, Any]:
    return {**OLD, "fields": list(fields)}


ID, COUNT, COLOUR = OLD["fields"]


@pytest.mark.parametrize(
    "schema",
    [
        OLD,
        with_fields(ID, COUNT, COLOUR, {"name": "note", "type": "string", "default": ""}),
        with_fields(ID, {"name": "count", "type": "long"}, COLOUR),
        with_fields(ID, COLOUR),
    ],
    ids=["the same", "a field with a default", "a wider type", "a field that is no longer read"],
)
def test_what_can_still_read_a_release_passes(folders: tuple[Path, Path], schema: dict[str, Any]) -> None:
    write(folders[0], schema)
    assert breaks(*folders) == []


@pytest.mark.parametrize(
    ("schema", "names"),
    [
        (with_fields(ID, COUNT, COLOUR, {"name": "note", "type": "string"}), "note"),
        (with_fields(ID, {"name": "count", "type": "string"}, COLOUR), "count"),
        (
            with_fields(ID, COUNT, {"name": "colour", "type": {"type": "enum", "name": "Colour", "symbols": ["RED"]}}),
            "BLUE",
        ),
    ],
    ids=["a field without a default", "another type", "a symbol less"],
)
def test_what_cannot_read_a_release_is_named(folders: tuple[Path, Path], schema: dict[str, Any], names: str) -> None:
    write(folders[0], schema)
    [line] = breaks(*folders)
    assert "1.0.0" in line
    assert names in line


def test_every_release_counts_not_only_the_last(folders: tuple[Path, Path]) -> None:
    """Field count goes away, and comes back without a default: the last release could be read, the first one too."""
    current, released = folders
    write(current, with_fields(ID, COLOUR))
    release("2.0.0", current, released)
    write(current, OLD)
    [line] = breaks(*folders)
    assert "2.0.0" in line


def test_a_schema_that_is_gone_is_named(folders: tuple[Path, Path]) -> None:
    (folders[0] / "Thing.avsc").unlink()
    [line] = breaks(*folders)
    assert "is gone" in line


def test_a_release_is_kept_once(folders: tuple[Path, Path]) -> None:
    with pytest.raises(SystemExit, match="does not change"):
        release("1.0.0", *folders)


def test_the_platforms_own_schemas_read_every_release() -> None:
    assert breaks() == []
