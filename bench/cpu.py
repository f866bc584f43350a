"""CPU time by process: of every part of the stack with its children, and of the load client, which is this process."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

#: The load client. Where sagas start from an outbox it is the service's own work too: its transaction, its INSERT.
CLIENT = "client"


def snapshot(pids: Path) -> dict[str, float]:
    """CPU seconds so far, by part; ``pids`` is the stack's folder of pid files.

    What children have used that have ended is in it, as far as they were waited for: PostgreSQL's backends come and go.
    """
    found = {CLIENT: time.process_time()}
    for name, process in processes(pids):
        try:
            family = [process, *process.children(recursive=True)]
        except psutil.NoSuchProcess:
            continue
        found[name] = sum(map(_used, family))
    return found


def processes(pids: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Every part of the stack that runs, by name; one that is just being started again is left out."""
    for file in sorted(pids.iterdir()):
        if file.name.startswith("."):
            continue
        try:
            process = psutil.Process(int(file.read_text()))
        except (psutil.NoSuchProcess, ValueError, FileNotFoundError):
            continue
        yield file.name, process


def _used(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        # Ended just now; its parent has it in its own children's time at the next look.
        return 0.0
    return times.user + times.system + times.children_user + times.children_system


def per_saga(before: Mapping[str, float], after: Mapping[str, float], sagas: int) -> dict[str, object]:
    """The fields of a result: CPU milliseconds a saga in all, without the load client, and by process."""
    used = {name: (seconds - before.get(name, 0.0)) * 1000 / sagas for name, seconds in after.items()}
    return {
        "cpu_ms": round(sum(used.values()), 3),
        "cpu_ms_without_client": round(sum(ms for name, ms in used.items() if name != CLIENT), 3),
        "cpu_ms_by_process": {name: round(ms, 3) for name, ms in sorted(used.items(), key=lambda one: -one[1])},
    }


def cores(before: Mapping[str, float], after: Mapping[str, float], seconds: float) -> dict[str, float]:
    """How much of one core each part used, in percent; the client is left out."""
    return {
        name: round((used - before.get(name, 0.0)) * 100 / seconds, 2)
        for name, used in sorted(after.items(), key=lambda one: before.get(one[0], 0.0) - one[1])
        if name != CLIENT
    }
