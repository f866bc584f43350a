"""``python -m bench.peers``: ours beside DTM and a hand-written polling outbox, in turn, in one run.

The peers' scripts are outside this repository. Each of theirs and each stack of ours is started fresh, measured and
stopped before the next one begins, so that none costs another anything. Ours is warmed up, as its JVMs need; the
peers' driver warms up by itself. A measured run of either holds the peers' lock.
"""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from bench import comparison, latency, throughput
from bench.results import PROJECT, Result, Results, command_line, default_file
from bench.stage import SERVICES, BenchmarkFailed, OutOfTime, end_on_sigterm, open_stage
from deploy.stack import Stack, StackError

#: What runs each peer, in its folder.
SCRIPTS = {"dtm": "run_dtm.sh", "polling-publisher": "run_poll.sh"}
#: As driver.py takes it.
LOCK = Path("/tmp/bench.lock")
#: Between SIGTERM, which lets a script stop what it started, and SIGKILL.
_GRACE_S = 30


def main(
    peers_dir: Annotated[Path, typer.Option(help="Folder with run_dtm.sh and run_poll.sh.")] = Path("../shared/peers"),
    rounds: Annotated[int, typer.Option(min=1, max=10, help="Times that each is run, in turn.")] = 2,
    sagas: Annotated[int, typer.Option(min=20, max=20_000, help="In a run (N).")] = 3_000,
    runs: Annotated[int, typer.Option(min=1, max=9, help="Runs of each mix in a round (REPS).")] = 3,
    alone: Annotated[int, typer.Option(min=10, max=2_000, help="Sagas one after the other (SEQ).")] = 200,
    concurrency: Annotated[int, typer.Option(min=1, max=512, help="The peers' sagas under way (CONC).")] = 64,
    warm_up: Annotated[int, typer.Option(min=0, max=500_000, help="Our sagas before we measure ours.")] = 20_000,
    peer_limit_s: Annotated[float, typer.Option(min=10, help="Seconds that one script may take.")] = 900,
    run_limit_s: Annotated[float, typer.Option(min=5, max=3600, help="Seconds one run of ours may take.")] = 170,
    limit_s: Annotated[float, typer.Option(min=10, help="Nothing begins after so many seconds.")] = 5_400,
    port_base: Annotated[int, typer.Option(envvar="FLUXORA_BENCH_PORT_BASE", help="First of a hundred ports.")] = 29600,
    run_dir: Annotated[Path, typer.Option(envvar="FLUXORA_BENCH_RUN_DIR", help="Data and logs.")] = Path(".run-bench"),
    build_dir: Annotated[
        Path | None, typer.Option(help="What the peers install (PEERS_DIR). [default: theirs]")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Results. [default: bench/results/<date>.jsonl]")] = None,
) -> None:
    """Measure peers and ours in turn; print a JSON line a result and, in the end, the ratios.

    Example: python -m bench.peers --peers-dir ../shared/peers --rounds 3
    """
    missing = [name for name in ("driver.py", "lib.sh", *SCRIPTS.values()) if not (peers_dir / name).is_file()]
    if missing:
        say(f"the peers are not in {peers_dir.absolute()}: there is no {', '.join(missing)}. Give --peers-dir.")
        raise typer.Exit(2)
    end_on_sigterm()
    deadline = time.monotonic() + limit_s
    settings = {"warm_up": warm_up, "rounds": rounds}
    results = Results(output or default_file(), command_line("bench.peers", sys.argv[1:]), settings)
    environment = {**os.environ, "N": str(sagas), "REPS": str(runs), "SEQ": str(alone), "CONC": str(concurrency)}
    if build_dir is not None:
        environment["PEERS_DIR"] = str(build_dir.absolute())
    stack = Stack(run_dir, port_base, services=[SERVICES], environment={"PYTHONPATH": str(PROJECT)}, report=say)
    try:
        for turn in range(1, rounds + 1):
            for system, script in SCRIPTS.items():
                say(f"── round {turn} of {rounds}: {system}")
                run_peer(results, peers_dir / script, system, turn, environment, min(peer_limit_s, _left(deadline)))
            say(f"── round {turn} of {rounds}: ours")
            with open_stage(stack, results, say, deadline=deadline, limit_s=run_limit_s, keep=False) as stage:
                stage.warm_up(warm_up)
                with _lock(deadline):
                    throughput.measure(stage, sagas=sagas, runs=runs)
                    latency.alone_from_outbox(stage, sagas=alone)
                    latency.alone_over_rest(stage, sagas=alone)
    except (StackError, BenchmarkFailed, OutOfTime) as error:
        results.add("failed", what="peers", why=str(error))
        say(str(error))
        raise typer.Exit(1) from None
    for ratio in comparison.ratios(results.lines):
        results.add("ratio", **ratio)
    say(f"results are in {results.file}")


def run_peer(
    results: Results, script: Path, system: str, turn: int, environment: dict[str, str], limit_s: float
) -> None:
    """Run a peer's script, whose lines become results. Raises BenchmarkFailed, with what it said."""
    began = time.monotonic()
    process = subprocess.Popen(
        ["bash", str(script.absolute())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        # A group of its own: what the script started can be told to end with it.
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except BaseException as error:
        _end(process)
        if isinstance(error, subprocess.TimeoutExpired):
            raise BenchmarkFailed(f"{script.name} took over {limit_s:.0f} s") from None
        raise
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if process.returncode or not lines:
        raise BenchmarkFailed(f"{script.name} ended with {process.returncode}: {err.strip()[-800:]}")
    for line in lines:
        result: Result = results.add("peer", repetition=turn, **line)
        say(
            f"{system}, {result['mix']}: {result['sagas_per_s']}/s, {result['cpu_s_per_saga'] * 1000:.2f} ms CPU a saga"
        )
        if not result.get("ok", False):
            raise BenchmarkFailed(f"{script.name} has done something else than it should: {result.get('counts')}")
    say(f"{system}: {time.monotonic() - began:.0f} s")


def _end(process: "subprocess.Popen[str]") -> None:
    """SIGTERM to the group: a shell runs its trap, which stops the rest, when what it waits for has ended."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise OutOfTime("the time of the whole run is over")
    return left


@contextmanager
def _lock(deadline: float) -> Iterator[None]:
    """The one that a measured run of a peer holds."""
    with LOCK.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                _left(deadline)
                time.sleep(0.5)
        yield


def say(line: str) -> None:
    """Progress, on stderr."""
    print(f"# {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
