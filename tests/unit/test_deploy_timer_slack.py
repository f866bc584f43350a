"""A part whose threads may be woken up late."""

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.parts import Part
from deploy.timer_slack import with_timer_slack

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="Linux only")


@LINUX
def test_the_command_runs_with_the_slack_in_the_same_process() -> None:
    part = with_timer_slack(Part("sleeper", (("sh", "-c", "cat /proc/self/timerslack_ns; echo $$"),)), 1_500_000)
    [command] = part.commands
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=20)
    assert output.split() == ["1500000", str(process.pid)]
    assert Path("/proc/self/timerslack_ns").read_text().strip() != "1500000", "only that process has it"


@LINUX
def test_a_command_that_is_not_there_fails_with_its_name() -> None:
    [command] = with_timer_slack(Part("none", (("no-such-program",),)), 1).commands
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert done.returncode != 0
    assert "no-such-program" in done.stderr


def test_other_systems_have_no_such_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    part = Part("sleeper", (("sleep", "1"),))
    assert with_timer_slack(part, 1) is part
