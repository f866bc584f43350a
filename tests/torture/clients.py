"""The load: clients that want something, ask for it until they are answered, and record what they saw.

They do what a careful client does and nothing cleverer: a call without an answer is made again with the same
Idempotency-Key, a database transaction whose commit was not acknowledged is looked for and then made again.
"""

import itertools
import random
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError

from participant import outbox, sagas
from participant.sagas import Retry
from participant.settings import sqlalchemy_url
from schemas import Codec
from tests.services.vaults import ACCOUNTS, VAULTS
from tests.torture.history import (
    Answer,
    EventIntent,
    MessageIntent,
    PlannedStep,
    SagaIntent,
    TransferIntent,
)
from tests.torture.listener import POST, OrderPlaced
from tests.torture.recorder import Recorder

#: Seconds for which a client asks again; then it gives up, and does not know.
PATIENCE = 90.0
#: Of one call.
CALL_TIMEOUT = 15.0
#: Lanes of each destination, and streams of events: few, so that there is an order to break.
LANES = 6
LEDGERS = ("alpha", "beta", "gamma")
DATABASES = tuple(VAULTS.values())
#: Attempts of a step outlast a killed process, and not a frozen one: some sagas turn round.
RETRY = Retry(max_attempts=6, initial_delay_seconds=0.1, max_delay_seconds=2.0)
STEP_TIMEOUT = 8.0
#: Kept for transfers that must go through.
CALM_ACCOUNTS = 10
#: Share of what is created that two clients ask for at the same moment, with the same key.
TWINS = 0.05

_PLACE = text("INSERT INTO orders (label) VALUES (:label)")


class Clients:
    """What one client after the other may want; safe to use from many threads."""

    def __init__(self, endpoints: dict[str, str], recorder: Recorder, seed: int) -> None:
        self._record = recorder
        self._coordinator = endpoints["COORDINATOR_URL"]
        self._messages = endpoints["OUTBOX_URL"]
        self._vaults = endpoints["VAULTS_URL"]
        self._http = httpx.Client(
            timeout=CALL_TIMEOUT, trust_env=False, limits=httpx.Limits(max_connections=200, keepalive_expiry=2)
        )
        self._engine: Engine = create_engine(
            sqlalchemy_url(f"{endpoints['DATABASE_URL']}_ledger"), pool_size=8, max_overflow=24, pool_pre_ping=True
        )
        self._codec = Codec(endpoints["SCHEMA_REGISTRY_URL"])
        outbox.register(OrderPlaced, codec=self._codec, registry_url=endpoints["SCHEMA_REGISTRY_URL"])
        self._codec.prepare(sagas.STARTED)
        self._seed = seed
        #: Posting into a lane is one client's at a time.
        self._lanes = {(kind, lane): threading.Lock() for kind in ("shop", POST, "event") for lane in range(LANES)}
        self._numbers = dict.fromkeys(self._lanes, 0)
        #: Ids to read now and then: label, path.
        self._known: list[tuple[str, str]] = []
        self._calm_accounts = itertools.cycle(ACCOUNTS[-CALM_ACCOUNTS:])
        self.over = threading.Event()
        self._kinds: list[tuple[int, Callable[[random.Random, bool], None]]] = [
            (24, self.saga_in_a_row),
            (14, self.saga_in_parallel),
            (14, self.saga_over_http),
            (8, self.saga_with_pivot),
            (10, self.saga_by_outbox),
            (14, self.transfer),
            (6, self.message_over_http),
            (6, self.message_over_kafka),
            (8, self.event),
            (10, self.read),
        ]

    def close(self) -> None:
        self._http.close()
        self._engine.dispose()
        self._codec.close()

    def one(self, number: int, *, calm: bool = False) -> None:
        """One piece of work; which one, and all of its choices, follow from the seed and its number."""
        chance = random.Random(f"client {self._seed} {number} {calm}")
        [kind] = chance.choices([what for _, what in self._kinds], [weight for weight, _ in self._kinds])
        kind(chance, calm)

    # Sagas

    def saga_in_a_row(self, chance: random.Random, calm: bool) -> None:
        names = [f"s{i}" for i in range(chance.choice([1, 2, 3, 3, 4]))]
        refusing = names[-1] if chance.random() < 0.25 else None
        steps = tuple(
            PlannedStep(name, chance.choice(LEDGERS), depends_on=tuple(names[i - 1 : i]), refuses=name == refusing)
            for i, name in enumerate(names)
        )
        self._saga(chance, steps, calm)

    def saga_in_parallel(self, chance: random.Random, calm: bool) -> None:
        """A diamond of Kafka and HTTP services."""
        refuses = chance.choice([None, None, None, "left", "end"])

        def step(name: str, *depends_on: str) -> PlannedStep:
            http = chance.random() < 0.4
            service = "shop" if http else chance.choice(LEDGERS)
            return PlannedStep(name, service, http, depends_on, refuses=name == refuses)

        steps = (step("begin"), step("left", "begin"), step("right", "begin"), step("end", "left", "right"))
        self._saga(chance, steps, calm)

    def saga_over_http(self, chance: random.Random, calm: bool) -> None:
        names = [f"h{i}" for i in range(chance.choice([1, 2, 3]))]
        refusing = names[-1] if chance.random() < 0.25 else None
        steps = tuple(
            PlannedStep(name, "shop", True, tuple(names[i - 1 : i]), refuses=name == refusing)
            for i, name in enumerate(names)
        )
        self._saga(chance, steps, calm)

    def saga_with_pivot(self, chance: random.Random, calm: bool) -> None:
        """Past its pivot it goes on to its end."""
        steps = (
            PlannedStep("before", "alpha"),
            PlannedStep("pivot", "beta", depends_on=("before",), refuses=chance.random() < 0.25, kind="pivot"),
            PlannedStep("after", "gamma", depends_on=("pivot",), kind="retriable"),
        )
        self._saga(chance, steps, calm)

    def saga_by_outbox(self, chance: random.Random, calm: bool) -> None:
        """With a row of the service's own, in its own transaction."""
        names = [f"s{i}" for i in range(3)]
        refusing = names[-1] if chance.random() < 0.2 else None
        steps = tuple(
            PlannedStep(name, chance.choice(LEDGERS), depends_on=tuple(names[i - 1 : i]), refuses=name == refusing)
            for i, name in enumerate(names)
        )
        intent = SagaIntent(_label("saga", chance), time.time(), steps, "outbox", calm)
        self._record.add(intent)
        made = [sagas.Step(**self._step(step, chance, calm)) for step in steps]
        saga_id = uuid.UUID(int=chance.getrandbits(128), version=4)

        def write(connection: Any) -> None:
            record = sagas.started(saga_id, intent.label, made)
            outbox.publish(
                connection,
                record,
                topic=sagas.INPUT_TOPIC,
                key=str(saga_id),
                type=sagas.STARTED,
                source="alpha",
                codec=self._codec,
            )

        if self._committed(intent.label, str(saga_id), write):
            self._known.append((intent.label, f"{self._coordinator}/sagas/{saga_id}"))

    def _saga(self, chance: random.Random, steps: tuple[PlannedStep, ...], calm: bool) -> None:
        intent = SagaIntent(_label("saga", chance), time.time(), steps, calm=calm)
        self._record.add(intent)
        body: dict[str, Any] = {
            "name": intent.label,
            "steps": [sagas.Step(**self._step(step, chance, calm)).as_json() for step in steps],
        }
        if chance.random() < 0.3:
            body["saga_id"] = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        saga_id = self._create(intent.label, f"{self._coordinator}/sagas", body, "saga_id")
        if saga_id is None:
            return
        url = f"{self._coordinator}/sagas/{saga_id}"
        self._known.append((intent.label, url))
        if not calm and chance.random() < 0.05:
            time.sleep(chance.uniform(0, 0.3))
            self._ask(intent.label, "cancel", "POST", f"{url}/cancel", f"{intent.label}:cancel", {"who": "torture"})
        elif chance.random() < 0.4:
            self._ask(intent.label, "read", "GET", f"{url}?wait=5s")

    @staticmethod
    def _step(step: PlannedStep, chance: random.Random, calm: bool) -> dict[str, Any]:
        """The arguments of ``sagas.Step``."""
        payload: dict[str, Any] = {"refuse": True} if step.refuses else {}
        timeout = STEP_TIMEOUT
        spice = 1.0 if calm else chance.random()
        if spice < 0.02:
            # Answered after the attempt has been given up.
            payload["seconds"], timeout = 1.5, 1.0
        elif spice < 0.06 and step.http:
            payload["flaky"] = True
        fields: dict[str, Any] = {
            "service_name": step.service,
            "payload": payload,
            "name": step.name,
            "depends_on": list(step.depends_on),
            "kind": step.kind,
            "retry": RETRY,
            "timeout_seconds": timeout,
        }
        if step.http:
            return fields | {
                "action_endpoint": f"/steps/{step.name}",
                "compensation_endpoint": f"/steps/{step.name}/undo",
            }
        return fields | {"command": "enter"}

    # Two-phase commits

    def transfer(self, chance: random.Random, calm: bool) -> None:
        sides = [list(vaults) for vaults in DATABASES]
        chance.shuffle(sides)
        vaults = [chance.choice(sides[0]), chance.choice(sides[1])]
        if chance.random() < 0.3:
            vaults.append(next(vault for vault in sides[1] if vault not in vaults))
        # A calm one must not meet another one, nor an account that is empty.
        account = next(self._calm_accounts) if calm else chance.choice(ACCOUNTS[:-CALM_ACCOUNTS])
        share = 1 if calm else chance.choice([1, 2, 5, 5, 40, 400])
        auto_commit = chance.random() < 0.5
        withdrawn = not auto_commit and chance.random() < 0.2
        moves = ((vaults[0], -share * (len(vaults) - 1)), *((vault, share) for vault in vaults[1:]))
        label = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        intent = TransferIntent(label, time.time(), moves, withdrawn, auto_commit, calm)
        self._record.add(intent)
        participants = []
        for vault, amount in moves:
            one: dict[str, Any] = {
                "service_name": vault,
                "payload": {"transfer": label, "account": account, "amount": amount},
            }
            if vault.startswith("http"):
                one["service_url"] = f"{self._vaults}/{vault}"
            participants.append(one)
        body = {
            "timeout_seconds": 120 if calm else 20,
            "auto_commit": auto_commit,
            "participants": participants,
            "metadata": {"label": label},
        }
        id = self._create(label, f"{self._coordinator}/transactions", body, "transaction_id")
        if id is None:
            return
        url = f"{self._coordinator}/transactions/{id}"
        self._known.append((label, url))
        answer = self._ask(label, "prepare", "POST", f"{url}/prepare", f"{label}:prepare")
        deadline = time.monotonic() + (120 if calm else 30)
        while answer is not None and answer.state in ("STARTED", "PREPARING") and time.monotonic() < deadline:
            time.sleep(0.2)
            answer = self._ask(label, "read", "GET", url)
        if answer is not None and answer.state == "PREPARED" and not auto_commit:
            verb = "abort" if withdrawn else "commit"
            self._ask(label, verb, "POST", f"{url}/{verb}", f"{label}:{verb}")

    # Messages and events

    def message_over_http(self, chance: random.Random, calm: bool) -> None:
        self._message(chance, "shop", calm)

    def message_over_kafka(self, chance: random.Random, calm: bool) -> None:
        self._message(chance, POST, calm)

    def _message(self, chance: random.Random, destination: str, calm: bool) -> None:
        lane = destination, chance.randrange(LANES)
        with self._lanes[lane]:
            self._numbers[lane] += 1
            number = self._numbers[lane]
            intent = MessageIntent(_label("message", chance), time.time(), destination, str(lane[1]), number, calm)
            self._record.add(intent)
            body = {
                "destination_service": destination,
                "payload": {"label": intent.label, "number": number},
                "key": str(lane[1]),
                "type": "torture.Message",
            }
            id = self._create(intent.label, f"{self._messages}/messages", body, "message_id")
        if id is not None:
            self._known.append((intent.label, f"{self._messages}/messages/{id}"))

    def event(self, chance: random.Random, calm: bool) -> None:
        stream = "event", chance.randrange(LANES)
        with self._lanes[stream]:
            self._numbers[stream] += 1
            number = self._numbers[stream]
            intent = EventIntent(_label("event", chance), time.time(), str(stream[1]), number, calm)
            self._record.add(intent)
            order = OrderPlaced(intent.label, intent.stream, number)
            self._committed(
                intent.label,
                None,
                lambda connection: outbox.publish(connection, order, source="torture", codec=self._codec),
            )

    # Looking

    def read(self, chance: random.Random, calm: bool) -> None:
        """Some of what is known, of any age: what was shown once must stay true."""
        for label, url in chance.sample(self._known, min(5, len(self._known))):
            if self.over.is_set():
                return
            self._once(label, "read", "GET", url, None, None)

    # Asking

    def _create(self, label: str, url: str, body: dict[str, Any], id_field: str) -> str | None:
        def ask() -> Answer | None:
            return self._ask(label, "create", "POST", url, f"{label}:create", body, id_field)

        if random.Random(label).random() < TWINS:
            twin = threading.Thread(target=ask)
            twin.start()
            answer = ask()
            twin.join()
        else:
            answer = ask()
        return None if answer is None or not answer.granted else answer.id

    def _ask(
        self,
        label: str,
        what: str,
        method: str,
        url: str,
        key: str | None = None,
        body: Any = None,
        id_field: str | None = None,
    ) -> Answer | None:
        """Ask until there is an answer; none when patience is at its end, or all is over."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            answer = self._once(label, what, method, url, key, body, id_field)
            # 202: it is durable, and not decided.
            if answer.status is not None and answer.status < 500 and not (answer.status == 202 and key):
                return answer
            if self.over.wait(0.3):
                return None
        return None

    def _once(
        self,
        label: str,
        what: str,
        method: str,
        url: str,
        key: str | None,
        body: Any,
        id_field: str | None = None,
    ) -> Answer:
        asked = time.time()
        status, id, state, error = None, None, None, None
        try:
            reply = self._http.request(method, url, json=body, headers={} if key is None else {"Idempotency-Key": key})
            status = reply.status_code
            told = reply.json() if reply.content else {}
            if status < 300:
                id = told.get(id_field) if id_field else None
            else:
                error = str(told.get("detail"))[:300]
            if what != "create":
                state = told.get("status") if "/messages/" in url and status < 300 else told.get("state")
        except (httpx.HTTPError, ValueError) as problem:
            error = repr(problem)[:300]
        answer = Answer(label, what, asked, time.time(), status, id, state, key, error)
        self._record.add(answer)
        return answer

    def _committed(self, label: str, id: str | None, write: Callable[[Any], object]) -> bool:
        """Commit a row of ours and what ``write`` does, together, once; False if it is not known whether it did."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            asked = time.time()
            status, error = None, None
            try:
                with self._engine.begin() as connection:
                    connection.execute(_PLACE, {"label": label})
                    write(connection)
                status = 201
            except IntegrityError:
                status = 201  # an earlier try, whose acknowledgement was lost
            except (DBAPIError, psycopg.Error) as problem:
                error = repr(problem)[:300]
            self._record.add(Answer(label, "create", asked, time.time(), status, id, error=error))
            if status is not None:
                return True
            if self.over.wait(0.5):
                return False
        return False


class Load:
    """Clients side by side, at a steady rate: a new piece of work each 1/rate s, if somebody is free for it."""

    def __init__(self, clients: Clients, rate: float, concurrency: int) -> None:
        self._clients = clients
        self._rate = rate
        self._concurrency = concurrency
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="load")
        self.started = 0
        #: Errors of the load itself: it must not go on as if nothing were the matter.
        self.broken: list[BaseException] = []

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No new work; clients finish what they have begun."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        free = threading.Semaphore(self._concurrency)
        due = time.monotonic()
        with ThreadPoolExecutor(self._concurrency) as pool:
            while not self._over.is_set() and not self.broken:
                due = max(due + 1 / self._rate, time.monotonic())
                self._over.wait(max(0.0, due - time.monotonic()))
                if not free.acquire(timeout=1):
                    continue
                self.started += 1
                pool.submit(self._one, self.started, free)

    def _one(self, number: int, free: threading.Semaphore) -> None:
        try:
            self._clients.one(number)
        except BaseException as error:
            self.broken.append(error)
        finally:
            free.release()


def _label(kind: str, chance: random.Random) -> str:
    return f"{kind}-{chance.getrandbits(64):016x}"
