"""The supervisor as a process of its own, over small parts instead of the stack."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.plan import EXTERNAL
from deploy.processes import MARKER, family, marker, read_pid, stop_survivors
from deploy.status import PartState, StackState, StackStatus

Supervise = Callable[..., subprocess.Popen[bytes]]

#: Long, because tests may share two cores with a whole stack.
PATIENCE = 60.0


@pytest.fixture
def supervise(tmp_path: Path) -> Iterator[Supervise]:
    """Start the supervisor over the services of a TOML text; whatever it started is gone after the test."""
    root = tmp_path / "run"
    running: list[subprocess.Popen[bytes]] = []

    def start(services: str, **settings: str) -> subprocess.Popen[bytes]:
        file = tmp_path / "services.toml"
        file.write_text(services)
        process = subprocess.Popen(
            [sys.executable, "-m", "deploy.supervisor", "--only", "stack", "--services", str(file)],
            env={
                **os.environ,
                # With all four there already, none of the stack is started.
                **dict.fromkeys(EXTERNAL.values(), "elsewhere"),
                **{f"FLUXORA_{name.upper()}": value for name, value in settings.items()},
                "FLUXORA_RUN_DIR": str(root),
                MARKER: marker(root, "supervisor"),
            },
            start_new_session=True,
        )
        running.append(process)
        return process

    yield start
    for process in running:
        process.terminate()
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    stop_survivors(root, [], {}, grace=0)


def until(root: Path, wanted: Callable[[StackStatus], bool]) -> StackStatus:
    """The first status that is as wanted."""
    deadline = time.monotonic() + PATIENCE
    status = None
    while time.monotonic() < deadline:
        status = StackStatus.read(root)
        if status is not None and wanted(status):
            return status
        time.sleep(0.02)
    raise AssertionError(f"not seen in {PATIENCE} s; last status: {status}")


def is_ready(status: StackStatus) -> bool:
    return status.state is StackState.READY


def test_a_part_that_is_killed_comes_back_under_a_new_pid(tmp_path: Path, supervise: Supervise) -> None:
    root = tmp_path / "run"
    supervise('[[service]]\nname = "web"\ncommand = ["sleep", "1000"]')
    until(root, is_ready)
    before = read_pid(root / "pids" / "web")
    assert before is not None
    os.kill(before, signal.SIGKILL)
    status = until(root, lambda now: now.parts["web"].restarts == 1 and now.parts["web"].state is PartState.READY)
    after = read_pid(root / "pids" / "web")
    assert after == status.parts["web"].pid != before
    assert status.parts["web"].last_exit == "was killed by SIGKILL"
    assert family(root)["web"] == [after]


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="Linux only")
@pytest.mark.parametrize("wanted", [True, False])
def test_parts_take_turns_unless_told_otherwise(tmp_path: Path, supervise: Supervise, wanted: bool) -> None:
    root = tmp_path / "run"
    supervise('[[service]]\nname = "web"\ncommand = ["sleep", "1000"]', batch_scheduling=str(wanted))
    until(root, is_ready)
    pid = read_pid(root / "pids" / "web")
    assert pid is not None
    assert os.sched_getscheduler(pid) == (os.SCHED_BATCH if wanted else os.SCHED_OTHER)


def test_what_a_killed_part_leaves_behind_is_ended_before_it_starts_again(tmp_path: Path, supervise: Supervise) -> None:
    root = tmp_path / "run"
    supervise('[[service]]\nname = "web"\ncommand = ["sh", "-c", "sleep 1000 & wait"]')
    until(root, is_ready)
    deadline = time.monotonic() + PATIENCE
    while len(family(root).get("web", [])) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    before = set(family(root)["web"])
    pid = read_pid(root / "pids" / "web")
    assert pid in before
    assert len(before) == 2
    os.kill(pid, signal.SIGKILL)
    until(root, lambda now: now.parts["web"].restarts == 1 and now.parts["web"].state is PartState.READY)
    assert not before & set(family(root)["web"])


def test_setup_runs_in_order_and_to_its_end_before_its_service(tmp_path: Path, supervise: Supervise) -> None:
    root, trace = tmp_path / "run", tmp_path / "trace"
    supervise(f"""
        [[service]]
        name = "web"
        setup = [["sh", "-c", "sleep 0.2; echo 1 >> {trace}"], ["sh", "-c", "echo 2 >> {trace}"]]
        command = ["sh", "-c", "echo 3 >> {trace}; exec sleep 1000"]
    """)
    status = until(root, is_ready)
    assert status.parts["web-setup"].state is PartState.DONE
    deadline = time.monotonic() + PATIENCE
    while "3" not in trace.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert trace.read_text().split() == ["1", "2", "3"]
    assert not (root / "pids" / "web-setup").exists()


def test_told_to_end_it_stops_every_part_and_what_requires_another_first(tmp_path: Path, supervise: Supervise) -> None:
    root, trace = tmp_path / "run", tmp_path / "trace"
    on_stop = "trap 'sleep {}; echo {} >> {}; exit' TERM; while :; do sleep 0.05; done"
    supervisor = supervise(f"""
        [[service]]
        name = "below"
        command = ["sh", "-c", "{on_stop.format(0, "below", trace)}"]
        [[service]]
        name = "above"
        requires = ["below"]
        command = ["sh", "-c", "{on_stop.format(0.5, "above", trace)}"]
    """)
    until(root, is_ready)
    time.sleep(0.3)  # The shells have to reach their traps; a shell tells nobody when it has.
    supervisor.terminate()
    assert supervisor.wait(PATIENCE) == 0
    assert trace.read_text().split() == ["above", "below"]
    status = StackStatus.read(root)
    assert status is not None
    assert status.state is StackState.STOPPED
    assert family(root) == {}
    assert list((root / "pids").iterdir()) == []
    assert not (root / "supervisor.pid").exists()


def test_a_part_that_cannot_start_ends_all_with_its_name(tmp_path: Path, supervise: Supervise) -> None:
    root = tmp_path / "run"
    supervisor = supervise(
        """
        [[service]]
        name = "good"
        command = ["sleep", "1000"]
        [[service]]
        name = "bad"
        command = ["sh", "-c", "echo no such table; exit 3"]
        health_port = 1
        """,
        start_attempts="2",
    )
    assert supervisor.wait(PATIENCE) == 1
    status = StackStatus.read(root)
    assert status is not None
    assert (status.state, status.failed) == (StackState.FAILED, "bad")
    assert status.message == "bad did not start: ended with status 3 before it was ready (start 2)"
    assert "no such table" in (root / "log" / "bad.log").read_text()
    assert family(root) == {}


def test_a_second_supervisor_leaves_the_first_alone(tmp_path: Path, supervise: Supervise) -> None:
    services = '[[service]]\nname = "web"\ncommand = ["sleep", "1000"]'
    first = supervise(services)
    until(tmp_path / "run", is_ready)
    assert supervise(services).wait(PATIENCE) == 3
    assert read_pid(tmp_path / "run" / "supervisor.pid") == first.pid
    assert until(tmp_path / "run", is_ready).supervisor_pid == first.pid
