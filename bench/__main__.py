"""``python -m bench``: measure sagas, two-phase commits and the relay, on one stack."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bench import growth, latency, overload, relay, throughput, timers, two_phase
from bench.results import PROJECT, Results, command_line, default_file
from bench.stage import PAIR, SERVICES, BenchmarkFailed, OutOfTime, Stage, end_on_sigterm, open_stage
from deploy.stack import Stack, StackError


class What(StrEnum):
    """What can be measured, in this order."""

    IDLE = "idle"
    THROUGHPUT = "throughput"
    LATENCY = "latency"
    TWO_PHASE = "two-phase"
    RELAY = "relay"
    PUBLISH = "publish"
    PROCESSORS = "processors"
    STORED = "stored"
    TIMERS = "timers"
    OVERLOAD = "overload"


def main(
    only: Annotated[list[What] | None, typer.Option(help="Only this; may be given several times.")] = None,
    sagas: Annotated[int, typer.Option(min=20, max=200_000, help="Sagas in a run at saturation.")] = 3_000,
    runs: Annotated[int, typer.Option(min=1, max=20, help="Runs of each kind.")] = 3,
    alone: Annotated[
        int, typer.Option(min=10, max=10_000, help="Transactions one after the other, for latency.")
    ] = 300,
    half_seconds: Annotated[float, typer.Option(min=1, max=300, help="Seconds at half of saturation.")] = 20,
    warm_up: Annotated[int, typer.Option(min=0, max=500_000, help="Sagas before anything is measured.")] = 20_000,
    transactions: Annotated[int, typer.Option(min=20, max=100_000, help="Two-phase commits in a run.")] = 1_500,
    rows: Annotated[int, typer.Option(min=1_000, max=1_000_000, help="Rows through the relay in a run.")] = 50_000,
    processors: Annotated[list[int] | None, typer.Option(min=1, max=12, help="[default: 1, 2, 4]")] = None,
    stored: Annotated[list[int] | None, typer.Option(min=100, help="[default: 1000, 100000, 1000000]")] = None,
    waiting: Annotated[int, typer.Option(min=10, max=100_000, help="Sagas that wait for a timer.")] = 10_000,
    wait_s: Annotated[float, typer.Option(min=70, max=3_000, help="Seconds that they wait.")] = 240,
    overload_s: Annotated[float, typer.Option(min=10, max=3_600, help="Seconds of twice what it can do.")] = 600,
    fill_limit_s: Annotated[float, typer.Option(min=1, help="Seconds that filling the tables once may take.")] = 600,
    run_limit_s: Annotated[float, typer.Option(min=5, max=3600, help="Seconds that one measured run may take.")] = 170,
    limit_s: Annotated[float, typer.Option(min=10, help="Nothing begins after so many seconds.")] = 7_200,
    port_base: Annotated[int, typer.Option(envvar="FLUXORA_BENCH_PORT_BASE", help="First of a hundred ports.")] = 29600,
    run_dir: Annotated[Path, typer.Option(envvar="FLUXORA_BENCH_RUN_DIR", help="Data and logs.")] = Path(".run-bench"),
    output: Annotated[Path | None, typer.Option(help="Results. [default: bench/results/<date>.jsonl]")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Use the stack of run_dir if it runs, and leave it.")] = False,
) -> None:
    """Measure on a fresh stack, everything durable; a JSON line a result on stdout and in the file, progress on stderr.

    Example: python -m bench --only throughput --only latency --runs 5
    """
    end_on_sigterm()
    chosen = [what for what in What if not only or what in only]
    sizes, counts = stored or [1_000, 100_000, 1_000_000], processors or [1, 2, 4]
    deadline = time.monotonic() + limit_s
    results = Results(output or default_file(), command_line("bench", sys.argv[1:]), {"warm_up": warm_up})
    services = [SERVICES, *([PAIR] if What.TWO_PHASE in chosen else [])]
    stack = Stack(run_dir, port_base, services=services, environment={"PYTHONPATH": str(PROJECT)}, report=say)

    def of_latency(stage: Stage) -> None:
        latency.alone_from_outbox(stage, sagas=alone)
        latency.alone_over_rest(stage, sagas=alone)
        most = throughput.saturation(stage, sagas=sagas)
        latency.at_rate_from_outbox(stage, rate=most / 2, seconds=half_seconds, of_saturation=most)

    def of_relay(stage: Stage) -> None:
        relay.latency(stage, rate=20, seconds=half_seconds)
        relay.rate(stage, rows=rows, runs=runs)

    measures: dict[What, Callable[[Stage], None]] = {
        What.IDLE: lambda stage: idle(stage, min(10.0, half_seconds)),
        What.THROUGHPUT: lambda stage: throughput.measure(stage, sagas=sagas, runs=runs),
        What.LATENCY: of_latency,
        What.TWO_PHASE: lambda stage: two_phase.measure(stage, transactions=transactions, alone=alone, runs=runs),
        What.RELAY: of_relay,
        What.PUBLISH: lambda stage: publish(stage, run_limit_s),
        What.PROCESSORS: lambda stage: growth.processors(stage, counts=counts, sagas=sagas, runs=runs),
        What.STORED: lambda stage: growth.stored(
            stage, sizes=sizes, sagas=sagas, runs=runs, alone=alone, fill_limit_s=fill_limit_s
        ),
        What.TIMERS: lambda stage: timers.measure(stage, waiting=waiting, wait_s=wait_s, sagas=sagas, runs=runs),
        What.OVERLOAD: lambda stage: overload.measure(stage, seconds=overload_s, sagas=sagas),
    }
    failed = False
    try:
        with open_stage(stack, results, say, deadline=deadline, limit_s=run_limit_s, keep=keep) as stage:
            stage.warm_up(warm_up)
            for what in chosen:
                say(f"── {what}")
                try:
                    measures[what](stage)
                except OutOfTime as error:
                    failed = True
                    results.add("skipped", what=what, why=str(error))
                except BenchmarkFailed as error:
                    failed = True
                    results.add("failed", what=what, why=str(error))
    except (StackError, BenchmarkFailed, OutOfTime) as error:
        say(str(error))
        raise typer.Exit(1) from None
    say(f"results are in {results.file}")
    raise typer.Exit(1 if failed else 0)


def idle(stage: Stage, seconds: float) -> None:
    """What the stack costs doing nothing."""
    result = stage.results.add("idle", **stage.idle(seconds))
    stage.say(f"idle: {result['percent_of_a_core']} % of a core")


def publish(stage: Stage, limit_s: float) -> None:
    """What an event adds to a service's own transaction: ``python -m bench.publish``, on this stack's PostgreSQL."""
    stage.look_at_the_clock()
    command = [sys.executable, "-m", "bench.publish", "--database-url", stage.endpoints["DATABASE_URL"]]
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=limit_s, check=False)
    except subprocess.TimeoutExpired:
        raise BenchmarkFailed(f"bench.publish took over {limit_s:.0f} s") from None
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise BenchmarkFailed(f"bench.publish ended with {done.returncode} and no result: {done.stderr[-500:]}")
    told = {key: value for key, value in json.loads(lines[-1]).items() if key not in ("bench", "run")}
    stage.results.add("publish", **told)
    stage.say(f"one event adds {told.get('overhead_percent_at_median')} % to a transaction")


def say(line: str) -> None:
    """Progress, on stderr."""
    print(f"# {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    typer.run(main)
