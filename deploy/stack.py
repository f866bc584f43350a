"""A stack from Python: what the command line and the tests start and stop.

    with Stack(run_dir=tmp_path, port_base=31000, services=[Path("examples/services.toml")]) as stack:
        requests.get(stack.endpoints()["COORDINATOR_URL"] + "/health")

As a context manager it starts everything, and on the way out stops it and removes its run directory.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.java import WRITING_GRACE, will_write_archive
from deploy.plan import EXTERNAL, Only, Plan, busy_ports, make_plan, masked, missing_programs, unanswered
from deploy.processes import (
    MARKER,
    carries,
    family,
    marker,
    read_pid,
    send,
    stop_survivors,
    supervisor_pid,
)
from deploy.settings import PROJECT, StackSettings
from deploy.status import EXIT_ALREADY_RUNNING, PartState, StackState, StackStatus

#: Takes one line of progress.
Report = Callable[[str], None]

POLL = 0.1


class StackError(Exception):
    """The stack did not start, or does not run. The message says what to do, and ends with the log of the
    part that failed if there is one."""


class Stack:
    """The stack of one run directory, running or not.

    Without `environment` it takes nothing from the process's own but PATH and the like: a DATABASE_URL that
    somebody exported does not make a test run on somebody's database. The variables in `environment` come on
    top; `Stack.of_environment` uses all that there is, as `make up` must.
    """

    def __init__(
        self,
        run_dir: Path | str,
        port_base: int | None = None,
        services: Sequence[Path | str] = (),
        only: Only = "all",
        environment: Mapping[str, str] | None = None,
        report: Report | None = None,
    ) -> None:
        taken = {
            key: value
            for key, value in os.environ.items()
            if key not in EXTERNAL.values() and not re.fullmatch(r"FLUXORA_(\w+_PORT|PORT_BASE)", key)
        }
        # Writing the JVMs' archives would make the first stop take half a minute: `make down` does it.
        own = {"FLUXORA_ARCHIVE_CLASSES": "false", **taken, "FLUXORA_RUN_DIR": str(Path(run_dir).absolute())}
        if port_base is not None:
            own["FLUXORA_PORT_BASE"] = str(port_base)
        self._prepare({**own, **(environment or {})}, services, only, report)

    @classmethod
    def of_environment(
        cls, services: Sequence[Path | str] = (), only: Only = "all", report: Report | None = None
    ) -> Self:
        """The stack that the FLUXORA_* variables of this process describe, with external parts from its
        DATABASE_URL, KAFKA_BOOTSTRAP_SERVERS, CONNECT_URL and SCHEMA_REGISTRY_URL."""
        stack = cls.__new__(cls)
        stack._prepare(dict(os.environ), services, only, report)
        return stack

    def _prepare(
        self, environment: dict[str, str], services: Sequence[Path | str], only: Only, report: Report | None
    ) -> None:
        environment.pop(MARKER, None)
        self._environment = environment
        self._services = [Path(file).absolute() for file in services]
        self._only: Only = only
        self._report: Report = report or (lambda line: None)
        self._launched: subprocess.Popen[bytes] | None = None
        self.settings = StackSettings.from_environment(environment)
        self.root = self.settings.root

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clean()

    def up(self) -> dict[str, str]:
        """Start what does not run, wait until all is ready, and return the endpoints.

        Already running: waits until it is ready and returns. Raises `StackError`, and then nothing is left
        running that this call started.
        """
        pid = supervisor_pid(self.root)
        if pid is not None:
            self._same_directories(pid)
            self._report(f"already up (supervisor pid {pid}) in {self.root}")
            return self._follow(pid, None)
        self._clear_remains()
        plan = make_plan(self.settings, self._environment, self._services, self._only)
        self._check(plan)
        self._rotate_logs()
        # Kept, so that `down` reaps it: a child that nobody waits for is a zombie as long as we live.
        self._launched = process = self._launch()
        try:
            return self._follow(process.pid, process)
        except BaseException:
            # Failed, or Ctrl-C: nothing half-started stays behind. But what another `up` started is its own.
            if process.returncode != EXIT_ALREADY_RUNNING:
                self.down()
                process.wait()
            raise

    def _same_directories(self, pid: int) -> None:
        """Raise StackError if services are looked for elsewhere than we are told: what runs would not hear of it."""
        try:
            told = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:  # it has just ended, or this system does not tell
            return
        running = dict(one.decode(errors="replace").split("=", 1) for one in told if b"=" in one)
        for name in ("SERVICE_REGISTRY_URL", "FLUXORA_SERVICE_MAP"):
            wanted = self._environment.get(name)
            if wanted and wanted != running.get(name):
                has = f"{name}={running.get(name, '')}"
                raise StackError(f"the stack in {self.root} runs with {has}, not {wanted}: run `make down` first")

    def down(self) -> list[str]:
        """Stop everything, keep the data. Returns what was stopped, in order; empty if nothing ran."""
        status = StackStatus.read(self.root)
        pid = supervisor_pid(self.root)
        stopped: list[str] = []
        if pid is not None:
            running = [name for layer in status.stop_layers() for name in layer] if status else []
            ours = [
                name
                for name in running
                if status and status.parts[name].state not in (PartState.EXTERNAL, PartState.DONE)
            ]
            send(pid, signal.SIGTERM, marker(self.root, "supervisor"))
            if any(will_write_archive(self.settings, name) for name in ours):
                self._report("the first stop takes longer: the JVMs write archives, from which they start faster")
            # The supervisor gives each part its grace; layers follow each other.
            deadline = time.monotonic() + 4 * self.settings.stop_grace + 2 * WRITING_GRACE
            while self._is_supervisor(pid) and time.monotonic() < deadline:
                time.sleep(POLL / 2)
            if self._is_supervisor(pid):
                self._report(f"the supervisor (pid {pid}) does not end: killed")
                send(pid, signal.SIGKILL, marker(self.root, "supervisor"))
            stopped += ours
        if self._launched is not None:
            self._launched.wait()
            self._launched = None
        stopped += [name for name in self._stop_survivors() if name not in stopped]
        for file in ("supervisor.pid", "endpoints.env"):
            (self.root / file).unlink(missing_ok=True)
        return stopped

    def clean(self) -> None:
        """Stop everything and remove the run directory with all data."""
        self.down()
        shutil.rmtree(self.root, ignore_errors=True)

    def endpoints(self) -> dict[str, str]:
        """COORDINATOR_URL, DATABASE_URL and so on. Raises `StackError` if the stack is not up."""
        try:
            lines = (self.root / "endpoints.env").read_text().splitlines()
        except OSError:
            raise StackError(f"no stack is up in {self.root}: run `make up`") from None
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def pid(self, name: str) -> int:
        """The present pid of a part. Raises `StackError` if there is none."""
        pid = read_pid(self.settings.pid_dir / name)
        if pid is None:
            raise StackError(f"{name} has no pid in {self.settings.pid_dir}")
        return pid

    def status(self) -> StackStatus | None:
        """The last status; STOPPED if the supervisor that wrote it is gone. None if it was never up."""
        status = StackStatus.read(self.root)
        running = supervisor_pid(self.root) is not None
        if status is not None and not running and status.state is not StackState.FAILED:
            status.state = StackState.STOPPED
        return status

    def unwatched(self) -> list[str]:
        """Parts that run although their supervisor is gone."""
        return [] if supervisor_pid(self.root) is not None else sorted(family(self.root))

    def log_tail(self, name: str, lines: int = 40) -> str:
        """The last lines of a part's log; empty if there is none."""
        try:
            with self.settings.log_file(name).open("rb") as file:
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 400 * lines))
                return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def _check(self, plan: Plan) -> None:
        problems = missing_programs(self.settings, plan) or busy_ports(plan) + asyncio.run(unanswered(plan))
        if problems:
            raise StackError("\n".join(problems))
        for part, address in plan.external.items():
            self._report(f"{part}: using {masked(address)} ({EXTERNAL[part]} is set)")

    def _launch(self) -> subprocess.Popen[bytes]:
        for directory in (self.root, self.settings.log_dir, self.settings.pid_dir):
            directory.mkdir(parents=True, exist_ok=True)
        (self.root / "status.json").unlink(missing_ok=True)
        command = [sys.executable, "-m", "deploy.supervisor", "--only", self._only]
        for file in self._services:
            command += ["--services", str(file)]
        with self.settings.log_file("supervisor").open("ab") as output:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=PROJECT,
                env={
                    **self._environment,
                    "FLUXORA_RUN_DIR": str(self.root),
                    MARKER: marker(self.root, "supervisor"),
                },
                start_new_session=True,
            )

    def _follow(self, pid: int, process: subprocess.Popen[bytes] | None) -> dict[str, str]:
        """Report what the supervisor does until all is ready."""
        told: dict[str, tuple[PartState, int]] = {}
        while True:
            ended = process.poll() is not None if process else not self._is_supervisor(pid)
            status = StackStatus.read(self.root)
            if status is not None and status.supervisor_pid == pid:
                self._tell(status, told)
                if status.state is StackState.READY:
                    return self.endpoints()
                if status.state is StackState.FAILED:
                    raise StackError(self._failure(status))
            if process is not None and process.returncode == EXIT_ALREADY_RUNNING:
                other = supervisor_pid(self.root)
                if other is not None:
                    self._report(f"another `up` was quicker (supervisor pid {other}): waiting for it")
                    return self._follow(other, None)
            if ended:
                tail = self.log_tail("supervisor", 15)
                raise StackError(f"the supervisor ended while the stack was starting:\n{tail}")
            time.sleep(POLL)

    def _tell(self, status: StackStatus, told: dict[str, tuple[PartState, int]]) -> None:
        for name, part in status.parts.items():
            now = (part.state, part.restarts)
            if told.get(name) == now:
                continue
            told[name] = now
            match part.state:
                case PartState.READY:
                    self._report(f"{name}: ready after {part.ready_seconds:.1f} s (pid {part.pid})")
                case PartState.DONE:
                    self._report(f"{name}: done")
                case PartState.RESTARTING:
                    self._report(f"{name}: {part.last_exit}; starting it again")
                case PartState.FAILED:
                    self._report(f"{name}: failed")
                case _:
                    pass

    def _is_supervisor(self, pid: int) -> bool:
        return carries(pid, marker(self.root, "supervisor"))

    def _failure(self, status: StackStatus) -> str:
        text = status.message or "the stack did not start"
        if status.failed:
            tail = self.log_tail(status.failed, 25)
            text += f"\nThe end of {self.settings.log_file(status.failed)}:\n{tail}"
        return text

    def _clear_remains(self) -> None:
        """Stop what a supervisor that was killed left running."""
        remains = self.unwatched()
        if remains:
            self._report(f"an earlier run ended without stopping {', '.join(remains)}: stopping them first")
            self._stop_survivors()

    def _stop_survivors(self) -> list[str]:
        status = StackStatus.read(self.root)
        layers = status.stop_layers() if status else []
        signals = {name: part.stop_signal for name, part in status.parts.items()} if status else {}
        return stop_survivors(self.root, layers, signals, self.settings.stop_grace)

    def _rotate_logs(self) -> None:
        for file in self.settings.log_dir.glob("*.log"):
            if file.stat().st_size > self.settings.log_limit_mb * 1024 * 1024:
                os.replace(file, file.with_suffix(".log.1"))
