"""``python -m schemas.evolution [--release VERSION]``: no schema may break who reads what older versions wrote.

The schemas of each release are kept in ``schemas/released/<version>``. The check compares those of today with all of
them, in the sense of the registry's BACKWARD_TRANSITIVE (Confluent's "Schema Evolution and Compatibility"): whoever
reads with today's schema reads every record that any release has written. The registry would refuse a break at
``fluxora init``; this finds it in ``make check``, before anything is deployed.
"""

import argparse
import json
import shutil
import sys
from importlib import resources
from pathlib import Path
from typing import Any

from avro.compatibility import ReaderWriterCompatibilityChecker, SchemaCompatibilityType
from avro.schema import parse

CURRENT = Path(str(resources.files("schemas"))) / "avro"
RELEASED = Path(str(resources.files("schemas"))) / "released"


def breaks(current: Path = CURRENT, released: Path = RELEASED) -> list[str]:
    """Return what would break, one line each, naming release, schema and field."""
    found = []
    for release in sorted(path for path in released.iterdir() if path.is_dir()):
        for old in sorted(release.glob("*.avsc")):
            new = current / old.name
            if not new.exists():
                found.append(f"{old.name} of release {release.name} is gone: its records are still in topics")
                continue
            compatible = ReaderWriterCompatibilityChecker().get_compatibility(
                reader=parse(new.read_text()), writer=parse(old.read_text())
            )
            if compatible.compatibility is not SchemaCompatibilityType.compatible:
                schema = json.loads(new.read_text())
                where = ", ".join(sorted(_field(schema, location) for location in compatible.locations))
                why = "; ".join(sorted(compatible.messages))
                found.append(f"{old.name} cannot read what release {release.name} wrote, at {where}: {why}")
    return found


def _field(schema: Any, location: str) -> str:
    """``/fields/1/type`` with the field's name in the place of its number."""
    names = []
    for part in location.strip("/").split("/"):
        schema = schema[int(part)] if isinstance(schema, list) else schema.get(part) if schema else None
        name = schema.get("name") if isinstance(schema, dict) else None
        names.append(name if part.isdigit() and name else part)
    return "/" + "/".join(names)


def release(version: str, current: Path = CURRENT, released: Path = RELEASED) -> None:
    """Keep today's schemas as those of ``version``."""
    target = released / version
    if target.exists():
        raise SystemExit(f"{target} is there already: what was released does not change")
    target.mkdir(parents=True)
    for schema in sorted(current.glob("*.avsc")):
        shutil.copy(schema, target / schema.name)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--release", metavar="VERSION", help="keep today's schemas as those of this release")
    version = parser.parse_args().release
    found = breaks()
    for line in found:
        sys.stderr.write(f"{line}\n")
    if found:
        sys.stderr.write("A new field needs a default; a field or a symbol does not go away or change its type.\n")
        return 1
    if version is not None:
        release(version)
    return 0


if __name__ == "__main__":
    sys.exit(main())
