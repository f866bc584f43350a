"""Keeps one part running: starts it, sees it become ready, and starts it again whenever it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from deploy import orphans
from deploy.backoff import Backoff
from deploy.parts import Part, StepFailed
from deploy.processes import MARKER, marker, write_atomically
from deploy.readiness import attempt
from deploy.settings import StackSettings
from deploy.status import PartState, PartStatus

log = logging.getLogger(__name__)

#: Seconds between two looks at a part that is starting: at first, and once it has taken its time.
PROBE_INTERVAL = 0.1
PROBE_INTERVAL_LATER = 0.3

#: Orphans of a part that died (PostgreSQL's backends) end by themselves within this, or are killed.
ORPHAN_GRACE = 3.0


class StartFailed(Exception):
    """A part did not become ready within its attempts or its time. `part` names it."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} did not start: {reason}")
        self.part = part


class Keeper:
    """One part. `keep` runs until it is cancelled, which stops the part's process in order."""

    def __init__(self, part: Part, settings: StackSettings, status: PartStatus, changed: Callable[[], None]) -> None:
        self.part = part
        self.status = status
        #: Set when the part is ready (one-shot: done) for the first time.
        self.ready = asyncio.Event()
        self._settings = settings
        self._changed = changed
        self._marker = marker(settings.root, part.name)
        self._pid_file = settings.pid_dir / part.name
        self._process: asyncio.subprocess.Process | None = None
        self._backoff = Backoff(settings.restart_first, settings.restart_cap, settings.restart_stable)

    async def keep(self, requirements: Sequence[asyncio.Event]) -> None:
        """Run the part once its requirements are ready. Raises `StartFailed`; returns only for a one-shot."""
        try:
            for requirement in requirements:
                await requirement.wait()
            await self._keep()
        except StartFailed:
            self._enter(PartState.FAILED)
            raise
        finally:
            await self._stop_process()
            self._pid_file.unlink(missing_ok=True)
            if self.status.state not in (PartState.FAILED, PartState.DONE):
                self._enter(PartState.STOPPED)

    async def _keep(self) -> None:
        give_up = time.monotonic() + self._settings.start_timeout
        starts = 0
        while True:
            starts += 1
            begun = time.monotonic()
            was_ready = False
            self._enter(PartState.STARTING)
            try:
                async with asyncio.timeout(self._settings.start_timeout):
                    await self._start()
                was_ready = True
                if self.part.one_shot:
                    self._enter(PartState.DONE)
                    self.ready.set()
                    return
                self.status.ready_seconds = round(time.monotonic() - begun, 2)
                self._enter(PartState.READY)
                self.ready.set()
                assert self._process is not None
                reason = _described(await self._process.wait())
            except StepFailed as error:
                reason = str(error)
            except TimeoutError:
                reason = f"not ready within {self._settings.start_timeout:.0f} s"
            await self._stop_process()
            self.status.last_exit = reason
            if not self.ready.is_set() and (starts >= self._settings.start_attempts or time.monotonic() >= give_up):
                raise StartFailed(self.part.name, f"{reason} (start {starts})")
            wait = self._backoff.wait_after(time.monotonic() - begun if was_ready else 0.0)
            log.warning("%s: %s; starting it again in %.1f s", self.part.name, reason, wait)
            self.status.restarts += 1
            self._enter(PartState.RESTARTING)
            await asyncio.sleep(wait)

    async def _start(self) -> None:
        """Prepare, start, wait until ready. Raises `StepFailed` when the process ends before that."""
        self._note(f"starting {self.part.name}" + (" again" if self.status.restarts else ""))
        if self.part.prepare is not None:
            try:
                await self.part.prepare(self._run)
            except StepFailed:
                raise
            except Exception as error:
                self._note(f"preparation failed: {type(error).__name__}: {error}")
                raise StepFailed(f"preparation failed: {type(error).__name__}: {error}") from error
        if self.part.one_shot:
            for command in self.part.commands:
                await self._run(command)
            return
        process = self._process = await self._spawn(self.part.commands[0])
        write_atomically(self._pid_file, f"{process.pid}\n")
        self.status.pid = process.pid
        self._changed()
        log.info("%s: started, pid %d", self.part.name, process.pid)
        ended = asyncio.ensure_future(process.wait())
        accepting = asyncio.ensure_future(self._accepting())
        try:
            await asyncio.wait({ended, accepting}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise StepFailed(f"{_described(ended.result())} before it was ready")
            await accepting
        finally:
            for task in (ended, accepting):
                task.cancel()
            await asyncio.gather(ended, accepting, return_exceptions=True)

    async def _accepting(self) -> None:
        begun = time.monotonic()
        while self.part.ready is not None and not await attempt(self.part.ready):  # noqa: ASYNC110 — polls
            await asyncio.sleep(PROBE_INTERVAL if time.monotonic() - begun < 3 else PROBE_INTERVAL_LATER)
        if self.part.complete is not None:
            try:
                await self.part.complete()
            except Exception as error:
                raise StepFailed(f"{type(error).__name__}: {error}") from error

    async def _run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        process = await self._spawn(command, environment)
        try:
            code = await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
            orphans.ended(process.pid)
        if code != 0:
            raise StepFailed(f"`{_shortened(command)}` {_described(code)}")

    async def _spawn(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> asyncio.subprocess.Process:
        with self._log() as output:
            starting = asyncio.ensure_future(
                asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=self.part.directory,
                    env={**os.environ, **self.part.environment, **(environment or {}), MARKER: self._marker},
                    # A Ctrl-C in a terminal, or a signal to the supervisor's group, must not reach it.
                    start_new_session=True,
                )
            )
            try:
                process = await asyncio.shield(starting)
            except asyncio.CancelledError:
                # Told to stop while the process comes to life: it would be nobody's.
                (await starting).kill()
                raise
            except OSError as error:
                self._note(f"cannot run {command[0]}: {error}")
                raise StepFailed(f"cannot run {command[0]}: {error}") from error
        orphans.started(process.pid)
        return process

    async def _stop_process(self) -> None:
        """End the part's process if it runs, and whatever it left behind."""
        process, self._process = self._process, None
        if process is None:
            return
        self.status.pid = None
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self.part.stop_signal)
            grace = self.part.stop_grace or self._settings.stop_grace
            try:
                async with asyncio.timeout(grace):
                    await process.wait()
                if self.ready.is_set() and self.part.finish is not None:
                    self.part.finish()
            except TimeoutError:
                log.warning("%s: did not stop in %.0f s, killed", self.part.name, grace)
                process.kill()
                await process.wait()
        orphans.ended(process.pid)
        # A PostgreSQL whose first process was killed refuses to start while a backend of it is alive.
        deadline = time.monotonic() + ORPHAN_GRACE
        while left := orphans.adopted(self._marker):
            if time.monotonic() > deadline:
                log.warning("%s: killing what it left behind: %s", self.part.name, left)
                for pid in left:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(0.02)

    def _enter(self, state: PartState) -> None:
        self.status.state = state
        self.status.since = time.time()
        self._changed()

    def _log(self) -> BinaryIO:
        return self._settings.log_file(self.part.name).open("ab")

    def _note(self, text: str) -> None:
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        with self._log() as output:
            output.write(f"=== {now} supervisor: {text}\n".encode())


def _described(code: int) -> str:
    if code >= 0:
        return f"ended with status {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


def _shortened(command: Sequence[str]) -> str:
    """The command for a message: without the prefix that changes the user, and without folders and long ends."""
    words = list(command)
    if words[0] == "setpriv":
        words = words[next(n for n, word in enumerate(words[1:], 1) if not word.startswith("--")) :]
    text = " ".join([Path(words[0]).name, *words[1:]])
    return text if len(text) <= 100 else text[:99] + "…"
