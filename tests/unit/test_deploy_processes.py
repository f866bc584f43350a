"""Whether a process is one of ours, tried on real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.processes import MARKER, carries, family, marker, read_pid, stop_survivors, write_atomically

Launch = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    """Start a process as a part of the stack in `tmp_path`; all are gone after the test."""
    running: list[subprocess.Popen[bytes]] = []

    def start(name: str, code: str = "import time; time.sleep(60)") -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", f"print(flush=True)\n{code}"],
            env={**os.environ, MARKER: marker(tmp_path, name)},
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        process.stdout.readline()
        (tmp_path / "pids").mkdir(exist_ok=True)
        write_atomically(tmp_path / "pids" / name, f"{process.pid}\n")
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_a_process_is_ours_only_by_its_own_marker(tmp_path: Path, launch: Launch) -> None:
    process = launch("kafka")
    assert carries(process.pid, marker(tmp_path, "kafka"))
    assert not carries(process.pid, marker(tmp_path, "postgres"))
    assert not carries(process.pid, marker(tmp_path / "other", "kafka"))


def test_a_zombie_and_a_pid_that_is_free_are_not_ours(tmp_path: Path, launch: Launch) -> None:
    process = launch("kafka")
    process.kill()
    # Not waited for: a zombie now, or in a moment.
    deadline = time.monotonic() + 5
    while carries(process.pid, marker(tmp_path, "kafka")) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not carries(process.pid, marker(tmp_path, "kafka"))
    process.wait()
    assert not carries(process.pid, marker(tmp_path, "kafka"))


def test_a_stale_pid_file_that_names_a_stranger_harms_nobody(tmp_path: Path, launch: Launch) -> None:
    stranger = launch("kafka")
    other = tmp_path / "other"
    (other / "pids").mkdir(parents=True)
    write_atomically(other / "pids" / "kafka", f"{stranger.pid}\n")
    assert stop_survivors(other, [], {}, grace=1) == []
    assert stranger.poll() is None
    assert not (other / "pids" / "kafka").exists()


def test_survivors_are_found_without_their_pid_files_children_included(tmp_path: Path, launch: Launch) -> None:
    parent = launch(
        "web", "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    )
    (tmp_path / "pids" / "web").unlink()
    deadline = time.monotonic() + 5
    while len(family(tmp_path).get("web", [])) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(family(tmp_path)["web"]) == 2
    assert stop_survivors(tmp_path, [], {}, grace=0.2) == ["web"]
    assert family(tmp_path) == {}
    assert parent.wait() != 0


def test_survivors_stop_layer_by_layer_with_their_signals(tmp_path: Path, launch: Launch) -> None:
    ends = "import signal, sys, time\nsignal.signal({}, lambda *_: sys.exit(7))\nwhile True: time.sleep(1)"
    postgres = launch("postgres", ends.format("signal.SIGINT"))
    coordinator = launch("coordinator", ends.format("signal.SIGTERM"))
    time.sleep(0.3)
    stopped = stop_survivors(tmp_path, [["coordinator"], ["postgres"]], {"postgres": signal.SIGINT}, grace=5)
    assert stopped == ["coordinator", "postgres"]
    assert (postgres.wait(), coordinator.wait()) == (7, 7)


def test_what_ignores_its_signal_is_killed_after_the_grace(tmp_path: Path, launch: Launch) -> None:
    deaf = launch("deaf", "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)")
    time.sleep(0.3)
    stop_survivors(tmp_path, [["deaf"]], {}, grace=0.3)
    assert deaf.wait() == -signal.SIGKILL


@pytest.mark.parametrize("content", ["", "x\n", None])
def test_a_pid_file_without_a_number_gives_none(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "kafka"
    if content is not None:
        file.write_text(content)
    assert read_pid(file) is None
