"""``make demo``, as a newcomer runs it: a stack of its own, real transactions, nothing left behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_demo_shows_transactions_and_leaves_nothing(tmp_path: Path) -> None:
    run_dir = tmp_path / "demo"
    port_base = os.environ.get("FLUXORA_TEST_DEMO_PORT_BASE", "28700")
    ended = subprocess.run(
        [sys.executable, "-m", "examples.demo", "--run-dir", str(run_dir), "--port-base", port_base],
        cwd=ROOT,
        # Wide enough that no cell of a table is wrapped.
        env={**os.environ, "COLUMNS": "150"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("COMPLETED") == 2
    assert "41.40 EUR is over the credit limit" in ended.stdout
    assert "30.00: transaction" in ended.stdout
    assert "(prepare → PREPARED, commit → COMMIT" in ended.stdout
    assert "bob has less than 15000 cents" in ended.stdout
    assert re.search(r"both +│ +all +│ +400.00 +│ +400.00", ended.stdout)
    assert "kcat -b" in ended.stdout
    assert not run_dir.exists()
    left = [file for file in Path("/proc").glob("[0-9]*/cmdline") if str(run_dir) in _text(file)]
    assert not left
    listening = [line for line in Path("/proc/net/tcp").read_text().splitlines() if f":{int(port_base):04X} " in line]
    assert not [line for line in listening if line.split()[3] == "0A"], "the demo's PostgreSQL still listens"


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""
