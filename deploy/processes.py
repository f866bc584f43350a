"""Pid files, and how a process is recognised as one of ours before a signal is sent to it.

A pid in a file proves nothing: the process may be gone and its number given to another. Every process of a
stack carries the variable `MARKER` = "<run directory>:<part>" in its environment, which the kernel shows in
/proc/<pid>/environ; only a process that carries it is ever signalled. Nothing is looked up by name, and a
process is found even if its supervisor was killed before it could write the pid file.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

import psutil

MARKER = "FLUXORA_SUPERVISED"

#: PostgreSQL's process carries the marker also as this option (a custom setting to it).
COMMAND_LINE_MARKER = "fluxora.supervised"

_KEY = f"{MARKER}=".encode()


def marker(root: Path, part: str) -> str:
    """The value of `MARKER` for a part of the stack in this run directory."""
    return f"{root}:{part}"


def marked(pid: int) -> str | None:
    """The marker that the process carries; None if it has none, is a zombie, or is gone."""
    process = Path("/proc") / str(pid)
    try:
        # The state follows the command's name, which is in parentheses and may hold anything.
        if (process / "stat").read_text().rpartition(")")[2].split()[0] == "Z":
            return None
        words = (process / "environ").read_bytes()
    except PermissionError:
        # Root without CAP_SYS_PTRACE (a container) may not read the environment of PostgreSQL's processes,
        # which run as another user. They have the marker on their command line too.
        try:
            words = (process / "cmdline").read_bytes().replace(f"--{COMMAND_LINE_MARKER}=".encode(), _KEY)
        except OSError:
            return None
    except (OSError, IndexError):
        return None
    for word in words.split(b"\0"):
        if word.startswith(_KEY):
            return word.removeprefix(_KEY).decode(errors="replace")
    return None


def carries(pid: int, value: str) -> bool:
    """Whether the process is alive and carries this marker."""
    return marked(pid) == value


def family(root: Path) -> dict[str, list[int]]:
    """The living processes of the stack in this run directory by part, children included."""
    found: dict[str, list[int]] = {}
    for pid in psutil.pids():
        value = marked(pid)
        if value is not None and value.startswith(f"{root}:"):
            found.setdefault(value.removeprefix(f"{root}:"), []).append(pid)
    return found


def write_atomically(path: Path, text: str) -> None:
    """Replace the file's content: a reader sees the old or the new, whatever dies when."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    os.replace(fresh, path)


def read_pid(path: Path) -> int | None:
    """The pid in the file; None if there is no file or no number in it."""
    try:
        return int(path.read_text().strip())
    except (OSError, ValueError):
        return None


def supervisor_pid(root: Path) -> int | None:
    """The pid of the living supervisor of this run directory."""
    value = marker(root, "supervisor")
    pid = read_pid(root / "supervisor.pid")
    if pid is not None and carries(pid, value):
        return pid
    # It may be so young that it has not written its file yet.
    return next(iter(family(root).get("supervisor", [])), None)


def stop_survivors(
    root: Path, layers: Iterable[Iterable[str]], signals: Mapping[str, signal.Signals], grace: float
) -> list[str]:
    """Stop what a supervisor that is gone left behind, layer after layer; those in no layer first.

    Each part's process gets its stop signal; what is left after `grace` seconds gets SIGKILL, children too.
    Returns the names of what was stopped, and removes the pid files. Blocks.
    """
    alive = family(root)
    alive.pop("supervisor", None)
    ordered = [[name for name in layer if name in alive] for layer in layers]
    placed = {name for layer in ordered for name in layer}
    ordered.insert(0, [name for name in alive if name not in placed])
    for layer in ordered:
        for name in layer:
            for pid in leaders(alive[name]):
                send(pid, signals.get(name, signal.SIGTERM), marker(root, name))
        deadline = time.monotonic() + grace
        while left := [(pid, marker(root, name)) for name in layer for pid in alive[name]]:
            left = [(pid, value) for pid, value in left if carries(pid, value)]
            if not left:
                break
            if time.monotonic() > deadline:
                for pid, value in left:
                    send(pid, signal.SIGKILL, value)
            time.sleep(0.05)
    for file in (root / "pids").glob("*"):
        file.unlink(missing_ok=True)
    return [name for layer in ordered for name in layer]


def leaders(pids: Iterable[int]) -> list[int]:
    """Those whose parent is not among them: a part's own process, without its children."""
    group = set(pids)
    found: list[int] = []
    for pid in group:
        try:
            if psutil.Process(pid).ppid() not in group:
                found.append(pid)
        except psutil.Error:
            continue
    return found


def send(pid: int, number: signal.Signals, value: str) -> None:
    """Signal the process if it carries the marker; a process that is gone is no error."""
    if carries(pid, value):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def port_holder(port: int) -> str | None:
    """Who listens on the TCP port, for a message; None if that cannot be seen."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or not connection.laddr or connection.laddr[1] != port:
                continue
            if connection.pid is None:
                return None
            holder = psutil.Process(connection.pid)
            command = " ".join(holder.cmdline())
            text = f"pid {holder.pid} ({command[:100]}{'…' if len(command) > 100 else ''})"
            stack = holder.environ().get(MARKER)
            return f"{text}, part of the stack in {stack.rpartition(':')[0]}" if stack else text
    except (psutil.Error, OSError):
        pass
    return None
