"""Injecting faults into a running stack, one strike after the other, and waiting until all is up again."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from confluent_kafka import Producer
from sqlalchemy import create_engine, text

from deploy.stack import Stack, StackError
from deploy.status import PartState, StackStatus
from fluxora.topic_reader import Range, TopicReader, as_bytes, headers_of
from participant import outbox
from participant.consumer import letters_of
from participant.settings import sqlalchemy_url
from schemas import WrongShape
from tests.torture.faults import Fault, Way
from tests.torture.history import Struck
from tests.torture.listener import GROUP, TOPIC
from tests.torture.recorder import Recorder
from tests.torture.schedule import Strike
from tests.torture.world import Poison

#: Seconds for all processes to be ready after a strike.
READY_WITHIN = 150.0
#: Seconds for somebody to come to a line of the code.
LINE_WITHIN = 12.0
#: Records that come again, of each topic.
COPIES = 40
#: The topics with poison, and where it must be found again.
POISONED = {
    "fluxora.transactions": "fluxora.transactions.dlq",
    "alpha.commands": "alpha.commands.dlq",
    "fluxora.http.commands": "fluxora.http.commands.dlq",
    TOPIC: letters_of(TOPIC, GROUP),
}
#: REST calls may end so while something is down.
PASSING = {None, 503}


class Failed(Exception):
    """The platform did with a fault what it must not, or the fault could not be injected."""


@dataclass
class Strikes:
    """Does what a schedule says."""

    stack: Stack
    endpoints: dict[str, str]
    recorder: Recorder
    crash_dir: Path
    poisons: list[Poison] = field(default_factory=list)

    def strike(self, strike: Strike) -> list[Struck]:
        """Let all faults of a strike happen at once; returns when every process is ready again."""
        with ThreadPoolExecutor(len(strike.faults)) as pool:
            struck = list(pool.map(lambda fault: self._one(fault, strike), strike.faults))
        for one in struck:
            self.recorder.add(one)
        return struck

    def _one(self, fault: Fault, strike: Strike) -> Struck:
        began = time.time()
        told, wrong = "", None
        try:
            told = self._inject(fault, strike)
            self.all_ready()
        except Failed as error:
            wrong = str(error)
        except Exception as error:
            # A fault that cannot be injected fails the run, at its end: with all that was recorded.
            wrong = f"not injected: {error!r}"
        return Struck(fault.name, fault.target, began, time.time(), told, wrong)

    def _inject(self, fault: Fault, strike: Strike) -> str:
        match fault.way:
            case Way.KILL:
                return self._signal(fault.target, signal.SIGKILL)
            case Way.STOP:
                return self._signal(fault.target, signal.SIGTERM)
            case Way.FREEZE:
                return self._freeze(fault.target, strike.freeze)
            case Way.FULL:
                return self._fill(fault.target, strike.full)
            case Way.CRASH:
                return self._crash(fault.target)
            case Way.POISON:
                return self._poison(strike.number)
            case Way.COPIES:
                return self._copies(fault.target.split(", "))
            case Way.REPLAY:
                return self._replay(fault.target)
            case Way.OVERSIZE:
                return self._oversize(strike.number)
            case _:
                raise AssertionError(f"{fault.name} is not injected")

    # Processes

    def all_ready(self, seconds: float = READY_WITHIN) -> None:
        """Wait until every process is up. Raises Failed."""
        deadline = time.monotonic() + seconds
        while late := self._late():
            if time.monotonic() > deadline:
                raise Failed(f"not ready {seconds:g} s after the fault: {', '.join(late)}; their logs tell why")
            time.sleep(0.1)

    def _late(self) -> list[str]:
        status = StackStatus.read(self.stack.root)
        return ["the supervisor"] if status is None else status.not_up()

    def _pid(self, name: str) -> int:
        """The pid of a process that is up; another fault may have ended it a moment ago."""
        deadline = time.monotonic() + READY_WITHIN
        while True:
            try:
                pid = self.stack.pid(name)
                os.kill(pid, 0)
                return pid
            except (StackError, ProcessLookupError):
                if time.monotonic() > deadline:
                    raise Failed(f"{name} does not run") from None
                time.sleep(0.1)

    def _signal(self, name: str, number: signal.Signals) -> str:
        pid = self._pid(name)
        os.kill(pid, number)
        deadline = time.monotonic() + READY_WITHIN
        while True:
            status = StackStatus.read(self.stack.root)
            part = None if status is None else status.parts.get(name)
            if part is not None and part.state is PartState.READY and part.pid != pid:
                return f"pid {pid}, then {part.pid}"
            if time.monotonic() > deadline:
                raise Failed(f"{name} was not ready again {READY_WITHIN:g} s after {number.name}")
            time.sleep(0.05)

    def _freeze(self, name: str, seconds: float) -> str:
        pid = self._pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(seconds)
        finally:
            try:
                os.kill(pid, signal.SIGCONT)
            except ProcessLookupError:
                return f"pid {pid} ended while it was frozen"
        return f"pid {pid}, {seconds:.1f} s"

    def _fill(self, name: str, seconds: float) -> str:
        """No process of a part can write to a file for a while. Starting it again takes the limit away, too."""
        part = psutil.Process(self._pid(name))
        limited = _limit_files(part, 0)
        if not limited:
            raise Failed(f"the files of {name} cannot be limited: prlimit is refused")
        time.sleep(seconds)
        gone = not part.is_running()
        _limit_files(part, -1)
        # It may still be going down.
        time.sleep(2)
        return f"{limited} processes for {seconds:.1f} s; {'it ended' if gone else 'it went on'}"

    def _crash(self, line: str) -> str:
        file = self.crash_dir / line
        file.touch()
        deadline = time.monotonic() + LINE_WITHIN
        while file.exists():
            if time.monotonic() > deadline:
                file.unlink(missing_ok=True)
                return "nobody came to it"
            time.sleep(0.05)
        # The supervisor notices a moment later.
        time.sleep(1)
        return "somebody died there"

    # Records

    def _producer(self) -> Producer:
        return Producer(
            {
                "bootstrap.servers": self.endpoints["KAFKA_BOOTSTRAP_SERVERS"],
                "partitioner": "murmur2_random",
                "message.max.bytes": 2 * 1024 * 1024,
                "acks": "all",
            }
        )

    def _poison(self, number: int) -> str:
        producer = self._producer()
        sent = 0
        for topic, letters in POISONED.items():
            for name, prefix in (("bytes", b"no record at all "), ("schema", b"\x00\x7f\xff\xff\xf0")):
                marker = f"poison-{number}-{topic}-{name}"
                producer.produce(topic, prefix + marker.encode(), key=f"poison-{number}".encode())
                self.poisons.append(Poison(marker, letters))
                sent += 1
        self._flush(producer)
        return f"{sent} records"

    def _copies(self, topics: Sequence[str]) -> str:
        producer = self._producer()
        count = 0
        for topic in topics:
            with TopicReader(self.endpoints["KAFKA_BOOTSTRAP_SERVERS"], topic) as reader:
                ranges = reader.ranges()
                each = max(1, COPIES // max(1, len(ranges)))
                last = [Range(one.partition, max(one.start, one.end - each), one.end) for one in ranges]
                for record in reader.read(last):
                    producer.produce(
                        topic,
                        record.value(),
                        as_bytes(record.key()),
                        partition=record.partition() or 0,
                        headers=[*headers_of(record)],
                    )
                    count += 1
        self._flush(producer)
        return f"{count} records"

    def _flush(self, producer: Producer) -> None:
        if producer.flush(60):
            raise Failed("Kafka does not take the records of this fault within 60 s")

    def _replay(self, topic: str) -> str:
        code, told = fluxora(self.endpoints, "replay", topic, "--really", "--from", "1m", "--json", "--who", "torture")
        if code:
            raise Failed(f"`fluxora replay` ended with {code}: {told[-500:]}")
        return told.strip()[-200:]

    def _oversize(self, number: int) -> str:
        step = {"service_name": "alpha", "command": "enter", "payload": {"refuse": "x" * 300_000}}
        asked = [
            (f"{self.endpoints['COORDINATOR_URL']}/sagas", {"name": "too-large", "steps": [step]}),
            (f"{self.endpoints['COORDINATOR_URL']}/sagas", {"name": "too-large", "steps": [step] * 5}),
            (f"{self.endpoints['OUTBOX_URL']}/messages", {"destination_service": "shop", "payload": "x" * 1_000_000}),
            (f"{self.endpoints['OUTBOX_URL']}/messages", {"destination_service": "shop", "payload": "x" * 2_000_000}),
        ]
        got = []
        for url, body in asked:
            try:
                status = httpx.post(url, json=body, timeout=20, trust_env=False).status_code
            except httpx.HTTPError:
                status = None
            got.append(status)
            if status not in PASSING and status != 413:
                raise Failed(f"POST {url} with {len(str(body))} characters was answered {status}, not 413")
        engine = create_engine(sqlalchemy_url(f"{self.endpoints['DATABASE_URL']}_ledger"))
        try:
            with engine.begin() as connection:
                connection.execute(text("SELECT 1"))
                outbox.publish(connection, b"x" * 1_000_000, type="torture.Large", topic=TOPIC, key="large")
            raise Failed("outbox.publish took a message that would stop the connector")
        except WrongShape:
            pass
        finally:
            engine.dispose()
        producer = self._producer()
        marker = f"poison-{number}-large"
        producer.produce("fluxora.transactions", marker.encode() + b"x" * 1_000_000, key=marker.encode())
        self.poisons.append(Poison(marker, "fluxora.transactions.dlq"))
        self._flush(producer)
        return f"REST answered {got}; a megabyte of nothing is in the log"


def _limit_files(part: psutil.Process, size: int) -> int:
    """Limit the size of the files that a process and its children write; returns how many they are."""
    count = 0
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in [part, *part.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                # As its own user: root without CAP_SYS_RESOURCE may not limit another user's process.
                user, group = process.uids().real, process.gids().real
                ours = (
                    [] if user == os.getuid() else ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"]
                )
                limit = "unlimited" if size < 0 else str(size)
                command = [*ours, "prlimit", f"--pid={process.pid}", f"--fsize={limit}:"]
                count += subprocess.run(command, capture_output=True, check=False).returncode == 0
    return count


def fluxora(endpoints: dict[str, str], *words: str, seconds: float = 600) -> tuple[int, str]:
    """Run the command line as an operator does; returns its exit code and what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "fluxora", *words],
        env={**os.environ, **endpoints},
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    return done.returncode, done.stdout or done.stderr
