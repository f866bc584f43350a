"""The command line as a process of its own, without the seconds that a new interpreter takes to import it.

A server that has imported ``fluxora.cli`` forks for each command: the child has its own environment, arguments, output
and exit code, and runs what the script ``fluxora`` runs.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fluxora import cli
from tests.platform import Platform

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["pytest", "fluxora.cli"])


def run(*arguments: str, environment: Mapping[str, str], seconds: float = 120) -> subprocess.CompletedProcess[str]:
    """Run ``fluxora ARGUMENTS`` with exactly this environment.

    Raises:
        subprocess.TimeoutExpired: it has not ended in time, and was killed.
    """
    with tempfile.TemporaryDirectory() as directory:
        out, err = Path(directory, "out"), Path(directory, "err")
        out.touch()
        err.touch()
        process = _context.Process(target=_main, args=(arguments, dict(environment), out, err))
        process.start()
        try:
            process.join(seconds)
            if process.exitcode is None:
                raise subprocess.TimeoutExpired(["fluxora", *arguments], seconds, out.read_text(), err.read_text())
            return subprocess.CompletedProcess(
                ["fluxora", *arguments], process.exitcode, out.read_text(), err.read_text()
            )
        finally:
            process.kill()
            process.join()
            process.close()


def fluxora(platform: Platform, *arguments: str, **environment: str) -> tuple[int, Any, str]:
    """Run the command line on the platform with --json; returns its exit code, what it printed, and its errors."""
    done = run(*arguments, "--json", environment={**os.environ, **platform.endpoints, **environment}, seconds=180)
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def _main(arguments: tuple[str, ...], environment: dict[str, str], out: Path, err: Path) -> None:
    for file, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(file, os.O_WRONLY), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["fluxora", *arguments]
    cli.main()
