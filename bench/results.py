"""Result lines: one JSON object a line, on stdout and in a file; what a run was is said once, in its first line."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

PROJECT = Path(__file__).resolve().parent.parent
#: Git ignores it.
DIRECTORY = PROJECT / "bench" / "results"
#: The ``bench`` of a run's first line.
RUN = "run"

Result = dict[str, Any]


class UnreadableResults(ValueError):
    """A file of results that has a line which is none. Names file and line."""


class Results:
    """Takes what one run measures, and writes every line at once: a run that is broken off keeps what it has."""

    def __init__(self, file: Path, command: str, settings: Mapping[str, Any], stdout: TextIO | None = None) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._stdout = sys.stdout if stdout is None else stdout
        began = datetime.now(UTC)
        self._run = began.strftime("%Y%m%dT%H%M%S")
        self.lines: list[Result] = []
        self.add(RUN, date=began.isoformat(timespec="seconds"), command=command, **revision(), **machine(), **settings)

    def add(self, bench: str, **figures: Any) -> Result:
        """Write a line. ``load_1m`` tells how busy the machine was: others may use it too."""
        result = {"run": self._run, "bench": bench, **figures, "load_1m": round(os.getloadavg()[0], 1)}
        line = json.dumps(result)
        print(line, file=self._stdout, flush=True)
        with self.file.open("a") as file:
            file.write(line + "\n")
        self.lines.append(result)
        return result

    def of(self, bench: str, **like: Any) -> list[Result]:
        """The lines of a benchmark in this run whose fields are ``like`` these."""
        return select(self.lines, bench, **like)


def select(lines: Iterable[Result], bench: str, **like: Any) -> list[Result]:
    """Those of ``lines`` that a benchmark wrote, and whose fields are ``like`` these."""
    return [one for one in lines if one["bench"] == bench and all(one.get(key) == like[key] for key in like)]


def default_file() -> Path:
    """One file a day: ``bench/results/<date>.jsonl``."""
    return DIRECTORY / f"{datetime.now(UTC):%Y-%m-%d}.jsonl"


def read(files: Sequence[Path]) -> list[Result]:
    """Read result files, in order.

    Raises:
        UnreadableResults: a line is no JSON object with ``run`` and ``bench``.
        OSError: a file cannot be read.
    """
    lines = []
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            try:
                one = json.loads(line)
                if not isinstance(one, dict) or not {"run", "bench"} <= one.keys():
                    raise ValueError("a result is an object with run and bench")
            except ValueError as error:
                raise UnreadableResults(f"{file}:{number}: {error}") from None
            lines.append(one)
    return lines


def command_line(module: str, arguments: Sequence[str]) -> str:
    """The command as one types it again."""
    return shlex.join(["python", "-m", module, *arguments])


def revision() -> dict[str, Any]:
    """What was measured: the commit, and whether files differ from it."""

    def git(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=PROJECT, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    return {"commit": git("rev-parse", "--short=12", "HEAD") or None, "changed": bool(git("status", "--porcelain"))}


def machine() -> dict[str, Any]:
    """What it was measured on; no name of the machine."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()
