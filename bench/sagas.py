"""``python -m bench.sagas``: saga throughput on a stack of its own; one JSON line a result.

Three steps, each one local PostgreSQL transaction with its own row; everything durable. A first rough measure: the
side by side with the peers comes with the performance issue.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated
from uuid import UUID

import httpx
import psutil
import psycopg
import typer
from sqlalchemy import Engine, create_engine

from bench.order import NAMES
from deploy.stack import Stack
from participant.sagas import Step, start

SERVICES = Path(__file__).with_name("order.toml")
TERMINAL = ("COMPLETED", "FAILED")
_LIMIT_S = 170


def main(
    sagas: Annotated[int, typer.Option(min=1, max=200_000, help="Sagas in a run.")] = 3_000,
    runs: Annotated[int, typer.Option(min=1, max=20, help="Runs of each kind; the JVMs warm up over them.")] = 3,
    fail_every: Annotated[int, typer.Option(min=0, help="Every n-th saga is refused at its third step; 0: none.")] = 0,
    port_base: Annotated[int, typer.Option(help="First of a hundred ports.")] = 29600,
    run_dir: Annotated[Path, typer.Option(help="Where data and logs go.")] = Path(".run-bench"),
) -> None:
    """Measure sagas from a service's outbox, and one by one over REST. Example: python -m bench.sagas --runs 5"""
    stack = Stack(run_dir, port_base, services=[SERVICES], report=lambda line: print(f"# {line}", flush=True))
    stack.clean()
    with stack:
        endpoints = stack.endpoints()
        pids = stack.settings.pid_dir
        for name, begin in (("outbox", from_outbox), ("rest", over_rest)):
            for run in range(runs):
                result = measure(endpoints, pids, begin, sagas, fail_every)
                print(json.dumps({"bench": f"sagas-{name}", "run": run + 1, **result}), flush=True)


def measure(
    endpoints: dict[str, str],
    pids: Path,
    begin: Callable[[dict[str, str], int, int], None],
    sagas: int,
    fail_every: int,
) -> dict[str, object]:
    """Start ``sagas`` and wait for the last end; returns rate and CPU milliseconds a saga by process."""
    with psycopg.connect(endpoints["DATABASE_URL"], autocommit=True) as connection:
        # Counting all ended sagas would cost more with every run: only those begun since now are looked at.
        [(since,)] = connection.execute("SELECT clock_timestamp()").fetchall()

        def ended() -> int:
            [(count,)] = connection.execute(
                "SELECT count(*) FROM transactions WHERE created_at >= %s AND state = ANY(%s)", (since, list(TERMINAL))
            ).fetchall()
            return int(count)

        cpu_before = cpu_seconds(pids)
        began = time.monotonic()
        starter = threading.Thread(target=begin, args=(endpoints, sagas, fail_every), daemon=True)
        starter.start()
        while ended() < sagas:
            if time.monotonic() - began > _LIMIT_S:
                raise typer.BadParameter(f"only {ended()} of {sagas} sagas ended within {_LIMIT_S} s")
            time.sleep(0.2)
        seconds = time.monotonic() - began
    starter.join()
    cpu = {name: used - cpu_before.get(name, 0.0) for name, used in cpu_seconds(pids).items()}
    return {
        "sagas": sagas,
        "fail_every": fail_every,
        "seconds": round(seconds, 2),
        "sagas_per_s": round(sagas / seconds, 1),
        "cpu_ms_per_saga": round(sum(cpu.values()) * 1000 / sagas, 2),
        "cpu_ms_by_process": {name: round(used * 1000 / sagas, 2) for name, used in cpu.items()},
        "load_1m": round(os.getloadavg()[0], 1),
    }


def cpu_seconds(pids: Path) -> dict[str, float]:
    """CPU time of every supervised process, PostgreSQL with its backends; the load client is not in it."""
    found = {}
    for file in sorted(pids.iterdir()):
        process = psutil.Process(int(file.read_text()))
        family = [process, *process.children(recursive=True)]
        found[file.name] = sum(sum(member.cpu_times()[:2]) for member in family)
    return found


def _steps(refuse: bool) -> list[Step]:
    return [Step(name, {"refuse": refuse and name == NAMES[-1]}, name=name, command="do") for name in NAMES]


def _refuse(i: int, fail_every: int) -> bool:
    return fail_every > 0 and i % fail_every == fail_every - 1


def from_outbox(endpoints: dict[str, str], sagas: int, fail_every: int) -> None:
    """One transaction a saga, on eight connections, as services would."""
    os.environ["SCHEMA_REGISTRY_URL"] = endpoints["SCHEMA_REGISTRY_URL"]
    url = endpoints["DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://") + "_orders"
    engine = create_engine(url, pool_size=8)

    def one(i: int) -> UUID:
        with engine.begin() as connection:
            return start(connection, "order", _steps(_refuse(i, fail_every)))

    _eight_at_a_time(one, sagas, engine)


def over_rest(endpoints: dict[str, str], sagas: int, fail_every: int) -> None:
    """A closed loop of thirty-two clients."""
    with (
        httpx.Client(base_url=endpoints["COORDINATOR_URL"], limits=httpx.Limits(max_connections=32)) as client,
        ThreadPoolExecutor(32) as pool,
    ):

        def one(i: int) -> None:
            steps = [
                {"name": s.name, "service_name": s.service_name, "command": "do", "payload": s.payload}
                for s in _steps(_refuse(i, fail_every))
            ]
            client.post("/sagas", json={"name": "order", "steps": steps}).raise_for_status()

        list(pool.map(one, range(sagas)))


def _eight_at_a_time(one: Callable[[int], UUID], sagas: int, engine: Engine) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(sagas)))
    engine.dispose()


if __name__ == "__main__":
    typer.run(main)
