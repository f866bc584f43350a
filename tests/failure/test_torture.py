"""``make torture``: the whole platform under load, everything killed by a seeded schedule, judged.

It has a stack of its own, because it kills all of it and judges all that is in it. FLUXORA_TEST_TORTURE_SECONDS says
how long load and faults go on, FLUXORA_TEST_SEED which faults in which order; `make torture` draws a fresh one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("FLUXORA_TEST_TORTURE_SECONDS", "300"))
#: Starting the stack, settling, the calm wave, judging.
AROUND = 600


@pytest.mark.slow
@pytest.mark.timeout(SECONDS + AROUND, func_only=True)
def test_nothing_is_lost_doubled_half_done_or_stuck_whatever_dies(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    seed = os.environ.get("FLUXORA_TEST_SEED", "1")
    ports = int(os.environ.get("FLUXORA_TEST_PORT_BASE", "28600")) + 100
    words = ["--json", "--seconds", str(SECONDS), "--seed", seed]
    words += ["--run-dir", str(tmp_path / "run"), "--port-base", str(ports)]
    torture = subprocess.Popen(
        [sys.executable, "-m", "tests.torture", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        told, progress = torture.communicate()
    finally:
        # Out of time: it stops its stack.
        torture.terminate()
        torture.wait(120)
    assert torture.returncode == 0, told[-2_000:] + progress[-20_000:]
    summary = json.loads(told)
    for name in ("seed", "accepted", "ended", "faults"):
        record_property(name, summary[name])
    # A run that did nothing proves nothing.
    assert sum(summary["accepted"].values()) > SECONDS
    # How many strikes there is time for is the machine's affair.
    assert summary["faults"]
    assert summary["ended"]["saga COMPLETED"] and summary["ended"]["saga FAILED"]
    assert summary["ended"]["transaction COMMITTED"] and summary["ended"]["event heard"]
