"""The supervisor: one process that starts the parts in order of readiness, keeps them up, and stops them.

    python -m deploy.supervisor [--only stack] [--services FILE]…

`up` starts it detached, with the settings in its environment; it can as well run in the foreground. It ends
orderly on SIGTERM or SIGINT. It leaves, in the run directory: `supervisor.pid`, `pids/<part>`,
`endpoints.env`, `status.json`, `log/`. After a `kill -9` of itself the parts run on unwatched; the next `up`
or `down` finds them (`deploy.processes`).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import sys
import time
from pathlib import Path

from deploy.keeper import Keeper, StartFailed
from deploy.orphans import adopt_orphans, reap
from deploy.parts import dependents
from deploy.plan import Plan, make_plan
from deploy.processes import write_atomically
from deploy.settings import StackSettings
from deploy.status import EXIT_ALREADY_RUNNING, PartState, PartStatus, StackState, StackStatus

log = logging.getLogger(__name__)

EXIT_START_FAILED = 1


class Supervisor:
    """Runs a plan until it is told to stop, or until a part fails to start."""

    def __init__(self, settings: StackSettings, plan: Plan) -> None:
        self._settings = settings
        self._plan = plan
        self._stop = asyncio.Event()
        now = time.time()
        stopped_before = dependents(plan.parts)
        self._status = StackStatus(state=StackState.STARTING, since=now, supervisor_pid=os.getpid())
        for name in plan.external:
            self._status.parts[name] = PartStatus(state=PartState.EXTERNAL, since=now)
        self._keepers: dict[str, Keeper] = {}
        self._stopped = {part.name: asyncio.Event() for part in plan.parts}
        for part in plan.parts:
            status = PartStatus(since=now, dependents=sorted(stopped_before[part.name]), stop_signal=part.stop_signal)
            self._status.parts[part.name] = status
            self._keepers[part.name] = Keeper(part, settings, status, self._publish)

    async def run(self) -> int:
        """Returns the exit status: 0 when told to stop, `EXIT_START_FAILED` otherwise."""
        loop = asyncio.get_running_loop()
        adopt_orphans()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop.set)
        endpoints = self._settings.root / "endpoints.env"
        lines = [f"{key}={value}\n" for key, value in self._plan.endpoints.items()]
        write_atomically(endpoints, "".join(lines))
        tasks: dict[str, asyncio.Task[None]] = {}
        for name, keeper in self._keepers.items():
            requirements = [self._keepers[other].ready for other in keeper.part.requires]
            tasks[name] = asyncio.create_task(keeper.keep(requirements))
        reaper = asyncio.create_task(_reap_forever())
        stop = asyncio.create_task(self._told_to_stop())
        everything = asyncio.create_task(self._all_ready())
        failure = await self._first_failure(set(tasks.values()), stop, everything)
        everything.cancel()
        if failure is None:
            log.info("told to stop")
            self._enter(StackState.STOPPING)
        else:
            log.error("%s; stopping everything", failure)
            self._status.message = str(failure)
            self._status.failed = failure.part if isinstance(failure, StartFailed) else None
            self._publish()
        await asyncio.gather(*(self._stop_part(name, task) for name, task in tasks.items()))
        reaper.cancel()
        endpoints.unlink(missing_ok=True)
        self._enter(StackState.STOPPED if failure is None else StackState.FAILED)
        return 0 if failure is None else EXIT_START_FAILED

    async def _first_failure(
        self,
        tasks: set[asyncio.Task[None]],
        stop: asyncio.Task[None],
        everything: asyncio.Task[None],
    ) -> BaseException | None:
        """Wait for the order to stop (None) or for a part that could not be started or kept."""
        waiting = {*tasks, stop, everything}
        while True:
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                if future is stop:
                    return None
                if future is everything:
                    self._enter(StackState.READY)
                    log.info("all parts are ready")
                elif (error := future.exception()) is not None:
                    return error

    async def _told_to_stop(self) -> None:
        await self._stop.wait()

    async def _all_ready(self) -> None:
        for keeper in self._keepers.values():
            await keeper.ready.wait()

    async def _stop_part(self, name: str, task: asyncio.Task[None]) -> None:
        """Stop a part after all that require it. (A one-shot has long ended, but what requires it has not.)"""
        for other in self._status.parts[name].dependents:
            await self._stopped[other].wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        self._stopped[name].set()
        log.info("%s: stopped", name)

    def _enter(self, state: StackState) -> None:
        self._status.state = state
        self._status.since = time.time()
        self._publish()

    def _publish(self) -> None:
        self._status.write(self._settings.root)


async def _reap_forever() -> None:
    while True:
        await asyncio.sleep(1)
        reap()


def _take_turns() -> None:
    """Have the parts, which inherit it, scheduled as SCHED_BATCH (sched(7)).

    A dozen processes hand each record on to the next. On two busy cores each one that wakes up interrupts another,
    hundreds of times a second, and both go on with cold caches; in turns they handle more at a time. Where a core is
    free nothing changes.
    """
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):  # a container may forbid it
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def main(arguments: list[str] | None = None) -> int:
    """Take the run directory for this process alone, then run the plan."""
    parser = argparse.ArgumentParser(prog="python -m deploy.supervisor", description=__doc__)
    parser.add_argument("--services", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--only", choices=("all", "stack"), default="all")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    settings = StackSettings.from_environment(os.environ)
    root = settings.root
    for directory in (root, settings.log_dir, settings.pid_dir):
        directory.mkdir(parents=True, exist_ok=True)
    with (root / "supervisor.lock").open("w") as lock:
        try:
            # Held until this process ends, however it ends: two supervisors never share a run directory.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.error("another supervisor holds %s", root)
            return EXIT_ALREADY_RUNNING
        write_atomically(root / "supervisor.pid", f"{os.getpid()}\n")
        if settings.batch_scheduling:
            _take_turns()
        try:
            plan = make_plan(settings, os.environ, options.services, options.only)

            async def run() -> int:
                return await Supervisor(settings, plan).run()

            return asyncio.run(run())
        finally:
            (root / "supervisor.pid").unlink(missing_ok=True)


if __name__ == "__main__":
    sys.exit(main())
