"""One run: the stack, the load, the faults, the time to settle, a calm wave, the judge."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from deploy.stack import Stack
from tests import http_services
from tests.platform import Platform
from tests.torture import history as histories
from tests.torture import world as worlds
from tests.torture.checker import check, in_order
from tests.torture.clients import Clients, Load
from tests.torture.history import History
from tests.torture.observation import Observation
from tests.torture.recorder import Recorder
from tests.torture.report import Summary, explain, summarise
from tests.torture.rules import Rule, Violation
from tests.torture.schedule import Strike, strikes
from tests.torture.strikes import Failed, Strikes, fluxora
from tests.torture.world import World
from tests.transfers import DATABASES

TESTS = Path(__file__).parents[1]
SERVICES = [TESTS / "services" / "ledger.toml", TESTS / "services" / "vaults.toml", TESTS / "torture" / "services.toml"]
#: Pieces of work that must end as they are planned, when the faults are over.
CALM_WAVE = 40
#: Seconds in which nothing may change before the world is read.
QUIET = 2.0

#: Takes one line of progress.
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    #: Of load and faults.
    seconds: float = 300.0
    seed: int = 1
    #: Pieces of work a second.
    rate: float = 10.0
    #: Clients at once.
    concurrency: int = 24
    #: Names; all that can be injected by default.
    faults: tuple[str, ...] = ()
    run_dir: Path = Path(".run-torture")
    port_base: int = 26600
    #: Within which everything must have ended when the faults are over.
    settle: float = 180.0
    processors: int = 2
    #: Leave the stack running.
    keep: bool = False


@dataclass
class Result:
    summary: Summary
    violations: list[Violation]
    history: History
    lines: list[str] = field(default_factory=list)


def run(options: Options, tell: Tell) -> Result:
    """Run it. Everything that was recorded is in the run directory, and the stack's data and logs if it failed.

    Raises:
        StackError: the stack does not start.
        ValueError: a fault has an unknown name.
    """
    schedule = strikes(options.seed, options.faults)
    options.run_dir.mkdir(parents=True, exist_ok=True)
    crash_dir = (options.run_dir / "crash").absolute()
    crash_dir.mkdir(exist_ok=True)
    for left in crash_dir.iterdir():
        left.unlink()
    with http_services.catalog() as catalog:
        stack = Stack(
            options.run_dir / "stack",
            options.port_base,
            services=SERVICES,
            environment=_environment(options, crash_dir, catalog.url),
            report=tell,
        )
        stack.clean()
        result = None
        try:
            endpoints = stack.up()
            shop = urlsplit(endpoints["SHOP_URL"])
            catalog.say("shop", 200, [{"ServiceAddress": shop.hostname, "ServicePort": shop.port}])
            with Platform(stack) as platform:
                result = _torture(options, stack, platform, crash_dir, schedule, tell)
        finally:
            if options.keep:
                tell(f"left running in {stack.root}; stop it: FLUXORA_RUN_DIR={stack.root} python -m deploy clean")
            elif result is None or result.violations:
                stack.down()
                tell(f"data and logs are in {stack.root}")
            else:
                stack.clean()
    return result


def _environment(options: Options, crash_dir: Path, catalog_url: str) -> dict[str, str]:
    return {
        "FLUXORA_CRASH_DIR": str(crash_dir),
        "SERVICE_REGISTRY_URL": catalog_url,
        "FLUXORA_PROCESSORS": str(options.processors),
        # What is killed time after time is soon there again.
        "FLUXORA_RESTART_CAP": "2",
        # A destination is dead for as long as its process; nothing may be given up meanwhile.
        "FLUXORA_OUTBOX_MAX_ATTEMPTS": "500",
        "FLUXORA_OUTBOX_RETRY_MAX_SECONDS": "3",
        "FLUXORA_SWEEP_INTERVAL_S": "5",
        "FLUXORA_SWEEP_OLDER_THAN_S": "20",
        "PYTHONPATH": str(TESTS.parent),
    }


def _torture(
    options: Options,
    stack: Stack,
    platform: Platform,
    crash_dir: Path,
    schedule: Iterator[Strike],
    tell: Tell,
) -> Result:
    recorder = Recorder(options.run_dir / "history.jsonl")
    observation = Observation(platform)
    clients = Clients(platform.endpoints, recorder, options.seed)
    faults = Strikes(stack, platform.endpoints, recorder, crash_dir)
    load = Load(clients, options.rate, options.concurrency)
    violations: list[Violation] = []
    begun = time.monotonic()
    try:
        with _auditing(recorder, observation):
            load.start()
            try:
                while time.monotonic() - begun < options.seconds and not load.broken:
                    strike = next(schedule)
                    time.sleep(strike.calm)
                    for struck in faults.strike(strike):
                        tell(f"{time.monotonic() - begun:6.1f} s  {struck.fault}: {struck.wrong or struck.told}")
            except BaseException:
                clients.over.set()
                raise
            finally:
                load.stop()
            seconds = time.monotonic() - begun
            violations += _ready(faults)
            settled = _settle(observation, options.settle, tell)
            calm = _calm_wave(clients, tell)
            _settle(observation, options.settle, tell)
        if load.broken:
            raise load.broken[0]
        if calm:
            raise calm[0]
        clients.over.set()
        for database in DATABASES:
            recorder.add(observation.purse(database))
        tell("reading databases and topics")
        world = observation.world(faults.poisons)
    finally:
        clients.over.set()
        clients.close()
        recorder.close()
    (options.run_dir / "world.json").write_bytes(worlds.encode(world))
    violations += check(recorder.history, world)
    rebuild, audit = _tools(platform, violations, tell)
    violations = in_order(violations, world)
    summary = summarise(recorder.history, world, violations, seed=options.seed, seconds=seconds, settled=settled)
    summary.rebuild, summary.audit = rebuild, audit
    lines = explain(violations, recorder.history, _journals(observation, world, violations), options.seed)
    (options.run_dir / "report.txt").write_text("\n".join(lines) + "\n")
    return Result(summary, violations, recorder.history, lines)


@contextmanager
def _auditing(recorder: Recorder, observation: Observation) -> Iterator[None]:
    """Count the money again and again while the block runs."""
    over = threading.Event()

    def count() -> None:
        for database in cycle(DATABASES):
            if over.wait(0.25):
                return
            try:
                recorder.add(observation.purse(database))
            except AssertionError:
                continue  # PostgreSQL is away

    thread = threading.Thread(target=count, name="auditor")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _ready(faults: Strikes) -> list[Violation]:
    try:
        faults.all_ready()
    except Failed as error:
        return [Violation(Rule.NOT_RECOVERED, "the stack", str(error))]
    return []


def _settle(observation: Observation, seconds: float, tell: Tell) -> float:
    """Wait until everything has ended, or the time is over: the judge will say what has not."""
    begun = time.monotonic()
    told = ""
    while (left := observation.unsettled()) is not None and time.monotonic() - begun < seconds:
        if left != told:
            tell(f"{left}")
            told = left
        time.sleep(1)
    settled = time.monotonic() - begun
    time.sleep(QUIET)
    return settled


def _calm_wave(clients: Clients, tell: Tell) -> list[BaseException]:
    tell(f"faults are over: {CALM_WAVE} pieces of work that must end as planned")
    broken: list[BaseException] = []

    def one(number: int) -> None:
        try:
            clients.one(number, calm=True)
        except BaseException as error:
            broken.append(error)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(one, range(CALM_WAVE)))
    return broken


def _tools(platform: Platform, violations: list[Violation], tell: Tell) -> tuple[Any, Any]:
    """What an operator would run; what it finds is added to the violations."""
    tell("fluxora rebuild --verify")
    code, told = fluxora(platform.endpoints, "rebuild", "--verify", "--json", seconds=1800)
    rebuild: dict[str, Any] = _json(told)
    if code:
        differences = rebuild.get("differences") or [{"what": "fluxora rebuild", "how": told[-1000:]}]
        violations += [Violation(Rule.REBUILD, one["what"], one["how"]) for one in differences]
    tell("fluxora audit")
    code, told = fluxora(platform.endpoints, "audit", "--json", "--wait", "60", seconds=1800)
    if code:
        violations.append(Violation(Rule.AUDIT, "fluxora audit", told[-1500:]))
    return {name: rebuild.get(name) for name in ("transactions", "inputs")}, _json(told)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def _journals(
    observation: Observation, world: World, violations: list[Violation]
) -> dict[str, list[dict[str, object]]]:
    kinds = {one.id: one.kind for one in world.stored}
    wanted = [one.about for one in violations if one.about in kinds][:20]
    return {id: observation.journal(kinds[id], id) for id in dict.fromkeys(wanted)}


def recheck(run_dir: Path) -> list[str]:
    """Judge once more what an earlier run has recorded. Raises OSError if there is nothing."""
    with (run_dir / "history.jsonl").open("rb") as file:
        history = histories.decode(file)
    world = worlds.decode((run_dir / "world.json").read_bytes())
    return explain(check(history, world), history, {}, 0)
