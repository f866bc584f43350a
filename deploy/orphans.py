"""Processes that outlive the part that started them: PostgreSQL's backends after a `kill -9` of the first process.

The supervisor makes itself the process to which such orphans fall (PR_SET_CHILD_SUBREAPER), so that it sees them
and can end them before the part is started again. They cannot be told by their environment: PostgreSQL overwrites
it to show what a backend is doing. What tells them is that they are the supervisor's children and that it did not
start them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

import psutil

from deploy.processes import marked

PR_SET_CHILD_SUBREAPER = 36

#: Children that this process started itself: somebody waits for them.
_started: set[int] = set()

#: Orphans at the last call of `reap`.
_seen: set[int] = set()


def adopt_orphans() -> None:
    """Let orphaned descendants fall to this process. Linux; elsewhere they fall to init, and nothing is seen."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def started(pid: int) -> None:
    """Note a process that we started and whose end somebody waits for."""
    _started.add(pid)


def ended(pid: int) -> None:
    """Note that a process that we started has ended and was waited for."""
    _started.discard(pid)


def adopted(value: str) -> list[int]:
    """Living orphans of the part with this marker, which just ended: those that carry it, or none.

    A process that is being started at this moment for another part is none of them: it carries that part's.
    """
    return [
        child.pid
        for child in _orphans()
        if child.status() != psutil.STATUS_ZOMBIE and marked(child.pid) in (value, None)
    ]


def reap() -> None:
    """Wait for orphans that have ended, so that no zombie stays. To be called now and then.

    Only what was there at the call before: a process that is being started is a child, too, before `started`
    is told of it, and to wait for it here would steal its exit status.
    """
    now = {child.pid for child in _orphans()}
    for pid in now & _seen:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    _seen.clear()
    _seen.update(now)


def _orphans() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.pid not in _started]
