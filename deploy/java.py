"""The command lines of the JVMs of the stack, and the archives by which they start in half the time.

A JVM spends most of its start on loading and checking classes. With a class-data archive (JEP 350) it maps them
from a file. The first time a part runs from a set of jars, it writes that file when it is stopped in order, which
takes a while; from then on it starts with it. Java checks an archive against its own version and against the jars
and does without one that does not fit, so nothing depends on it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path

from deploy.parts import Part, RunCommand
from deploy.settings import StackSettings

JVM_PARTS = ("kafka", "connect", "registry")

#: Heap and compiled code on large pages where Linux gives them on request (admin-guide/mm/transhuge, "madvise"). Under
#: load the whole stack, not the JVMs alone, then costs less: fewer page walks go through the caches.
_LARGE_PAGES = ("-XX:+UseTransparentHugePages",) if sys.platform == "linux" else ()
#: Seconds: longer than it takes to write an archive on a busy machine.
WRITING_GRACE = 90.0


def java(heap: str, *arguments: str) -> tuple[str, ...]:
    """A JVM for a machine that runs many things: small, quick to start, and dead when it is out of memory."""
    return (
        "java",
        f"-Xmx{heap}",
        "-XX:+UseSerialGC",
        *_LARGE_PAGES,
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        "-Djava.net.preferIPv4Stack=true",
        *arguments,
    )


def with_archive(part: Part, settings: StackSettings) -> Part:
    """The part, starting from its archive; or if it has none yet, writing it when it is stopped."""
    archive = archive_file(settings, part.name)
    program, *arguments = part.commands[0]
    quiet = ("-Xlog:cds=off", "-Xlog:cds+dynamic=off")
    if archive.exists():
        return replace(part, commands=((program, f"-XX:SharedArchiveFile={archive}", *quiet, *arguments),))
    if not settings.archive_classes:
        return part
    # Beside its place, so that the rename works, and apart from what other stacks may be writing.
    written = archive.with_name(f".{archive.stem}-{_digest(str(settings.root))}.jsa")

    async def prepare(run: RunCommand) -> None:
        archive.parent.mkdir(parents=True, exist_ok=True)
        if part.prepare is not None:
            await part.prepare(run)

    def publish() -> None:
        # Another stack may have been quicker: then the later of two good ones stays.
        with contextlib.suppress(OSError):
            os.replace(written, archive)
            for other in set(archive.parent.glob(f"{part.name}-*.jsa")) - {archive}:
                other.unlink()

    return replace(
        part,
        commands=((program, f"-XX:ArchiveClassesAtExit={written}", *quiet, *arguments),),
        prepare=prepare,
        stop_grace=max(WRITING_GRACE, settings.stop_grace),
        finish=publish,
    )


def will_write_archive(settings: StackSettings, part: str) -> bool:
    """Whether this part is a JVM that writes its archive when it is stopped."""
    return part in JVM_PARTS and settings.archive_classes and not archive_file(settings, part).exists()


def archive_file(settings: StackSettings, part: str) -> Path:
    """Where the archive of a part is: another one for other jars, and for another place or copy of them."""
    root = settings.jvm_dir.absolute()
    stamps = [f"{file.read_text()}{file.stat().st_mtime_ns}" for file in sorted(root.glob("**/.pom.sha256"))]
    return root / "archives" / f"{part}-{_digest(str(root), *stamps)}.jsa"


def _digest(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:12]
