"""Fetches the JVM parts of the stack (Kafka, Debezium, Apicurio) with Maven, from the poms in deploy/jvm.

    python3 -I deploy/jars.py [.jvm]

Standard library only: it runs while the virtual environment is still being made. A part is resolved into a
folder beside its place and renamed into it, and its stamp (the hash of its pom) lies inside: what is in place
is complete, whenever this was interrupted. A part whose stamp is current is not fetched again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

POMS = Path(__file__).resolve().parent / "jvm"

#: Part (the folder of its pom) -> where it goes, below the target folder.
PARTS = {"kafka": "kafka", "debezium": "plugins/debezium", "registry": "registry"}

STAMP = ".pom.sha256"


class ResolutionFailed(Exception):
    """Maven could not deliver a part; the message has the end of its output."""


def pom_hash(part: str) -> str:
    """The hash of the part's pom: versions and exclusions, thus everything that decides what is fetched."""
    return hashlib.sha256((POMS / part / "pom.xml").read_bytes()).hexdigest()


def is_current(part: str, root: Path) -> bool:
    """Whether the part is in place, complete, and from the pom as it is now."""
    stamp = root / PARTS[part] / STAMP
    return stamp.is_file() and stamp.read_text().strip() == pom_hash(part)


def resolve(part: str, root: Path) -> None:
    """Fetch one part and put it in its place by a rename. Raises `ResolutionFailed`."""
    place = root / PARTS[part]
    # A name that is stable per part: what an interrupted run left is removed, not piled up. Outside plugins/,
    # because Connect would take a half-filled folder there for a plugin.
    fresh = root / f".{part}.partial"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    command = ["mvn", "-q", "-B", "-f", str(POMS / part / "pom.xml"), f"-Dtarget={fresh}", "package"]
    for attempt in (1, 2, 3):
        done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        if done.returncode == 0:
            break
        if attempt < 3:
            # -U: Maven remembers a failed download and would not try it again for a day.
            if "-U" not in command:
                command.append("-U")
            time.sleep(attempt)
    else:
        lines = [line for line in done.stdout.splitlines() if "ERROR" in line][:5]
        raise ResolutionFailed(f"mvn could not fetch {part}:\n" + "\n".join(lines or done.stdout.splitlines()[-5:]))
    for archive in fresh.glob("*.tar.gz"):
        with tarfile.open(archive) as tar:
            # The filter came with Python 3.11.4; Debian 12 has 3.11.2. The archive's checksum is Maven's to check.
            if hasattr(tarfile, "data_filter"):
                tar.extractall(fresh, filter="data")
            else:
                tar.extractall(fresh)
        archive.unlink()
    if not any(fresh.rglob("*.jar")):
        raise ResolutionFailed(f"mvn reported success for {part}, but there is no jar in {fresh}")
    (fresh / STAMP).write_text(pom_hash(part) + "\n")
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(place, ignore_errors=True)
    os.replace(fresh, place)


def tell(line: str) -> None:
    sys.stderr.write(line + "\n")


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".jvm").resolve()
    missing = [part for part in PARTS if not is_current(part, root)]
    if not missing:
        return 0
    started = time.monotonic()
    # Side by side: Maven waits for the network, and downloads into its repository through temporary files.
    tell(f"Fetching {', '.join(missing)} with Maven …")
    with ThreadPoolExecutor(max_workers=len(missing)) as pool:
        results = [(part, pool.submit(resolve, part, root)) for part in missing]
    failed = False
    for part, result in results:
        error = result.exception()
        if error is not None:
            failed = True
            tell(f"{part}: {error}")
    if not failed:
        tell(f"JVM parts are in {root} ({time.monotonic() - started:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
