"""Clients of the REST API, and what they ask for: any valid saga, any two-phase commit, in any order and twice."""

import json
import random
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from participant.sweep import Sweep, SweepSettings
from saga_processors.definition import RetryPolicy, SagaDefinition, StepDefinition, StepKind
from saga_processors.transaction_definition import ParticipantDefinition, TransactionDefinition, Transport
from tests.simulation.kafka import Encoded
from tests.simulation.schedule import Life, Process
from tests.unit.saga_samples import definition_to_json

if TYPE_CHECKING:
    from tests.simulation.world import World

#: ms of virtual time in which clients begin.
BEGIN = 6_000
RESOURCES = [f"row-{n}" for n in range(4)]
_PATIENCE = 200


def any_id(chance: random.Random) -> str:
    return str(uuid.UUID(int=chance.getrandbits(128)))


class Rest:
    """The coordinator's side: a request is one local transaction, with the input in its outbox."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def post(self, idempotency_key: str, id: str, type: str, record: dict[str, Any]) -> None:
        database = self._world.database
        if idempotency_key in database.accepted:
            return
        # Debezium may show the row before others see it, and even before we have seen the commit.
        database.accepted |= {idempotency_key, id}
        database.outbox.append((id, Encoded(type, {"transaction_id": id, **record})))
        self._world.connector.process.wake()


class Client:
    """Begins one transaction, and asks for more; it may die, and then begins again with the same keys, or gives up."""

    def __init__(self, world: "World", id: str) -> None:
        self._world = world
        self.id = id
        self._begins_at = world.chance.setup.randrange(BEGIN)
        self._seed = world.chance.setup.getrandbits(32)

    def start(self) -> None:
        process = Process(self._world.schedule, f"client of {self.id[:8]}", self._live)
        process.wake()

    def _live(self) -> Life:
        yield self._begins_at
        yield from self._post("start", *self.first())
        yield from self.goes_on(random.Random(self._seed))

    def _post(self, key: str, type: str, record: dict[str, Any]) -> Life:
        """Until it has an answer: the same request again is the same to the server."""
        place = f"client of {self.id[:8]}: {key}"
        while self._world.chance.fault("request lost", place, 0.1):
            yield _PATIENCE
        yield "before its request"
        while True:
            self._world.rest.post(f"{self.id}/{key}", self.id, type, record)
            if not self._world.chance.fault("answer to client lost", place, 0.1):
                break
            yield _PATIENCE
        yield "has its answer"

    def _ask(self, key: str, request: str, **more: Any) -> Life:
        """A RequestMade, with an id that follows from ``key``."""
        asked = {
            "request_id": str(uuid.uuid5(uuid.UUID(self.id), key)),
            "request": request,
            "step": None,
            "participant": None,
            "who": "ann",
            "why": None,
            **more,
        }
        yield from self._post(key, "fluxora.RequestMade", asked)

    def first(self) -> tuple[str, dict[str, Any]]:
        raise NotImplementedError

    def goes_on(self, chance: random.Random) -> Life:
        raise NotImplementedError


class SagaClient(Client):
    def __init__(self, world: "World", id: str) -> None:
        super().__init__(world, id)
        self.definition = any_saga(world.chance.setup)

    def first(self) -> tuple[str, dict[str, Any]]:
        return "fluxora.SagaStarted", definition_to_json(self.definition)

    def goes_on(self, chance: random.Random) -> Life:
        """An operator cancels, retries, skips."""
        names = [step.name for step in self.definition.steps]
        for n in range(chance.choice([0, 0, 0, 1, 3])):
            yield chance.randrange(1, 3_000)
            request = chance.choice(["CANCEL", "RETRY", "SKIP"])
            yield from self._ask(f"{n}", request, step=chance.choice([*names, None]))


class TransactionClient(Client):
    def __init__(self, world: "World", id: str) -> None:
        super().__init__(world, id)
        self.definition = any_transaction(world.chance.setup, world.services, world.web_services)

    def first(self) -> tuple[str, dict[str, Any]]:
        record = {
            "timeout_ms": self.definition.timeout_ms,
            "auto_commit": self.definition.auto_commit,
            "metadata": None,
            "traceparent": None,
            "participants": [asdict(participant) for participant in self.definition.participants],
        }
        return "fluxora.TransactionStarted", record

    def goes_on(self, chance: random.Random) -> Life:
        if chance.random() < 0.05:
            return  # it forgets what it has begun
        left = [s for s in self._world.services + self._world.web_services if s not in self._names()]
        if left and chance.random() < 0.5:
            service = chance.choice(left)
            yield from self._ask("add", "ADD_PARTICIPANT", participant=asdict(any_participant(chance, service)))
        for n in range(chance.choice([0, 0, 1, 2])):
            # Somebody who cannot wait.
            yield chance.randrange(1, 1_000)
            yield from self._ask(f"early-{n}", chance.choice(["PREPARE", "COMMIT", "ABORT", "COMMIT"]))
        yield from self._ask("prepare", "PREPARE")
        for _ in range(100):
            if self._world.database.state_of(self.id) not in ("STARTED", "PREPARING"):
                break
            yield 50
        if chance.random() < 0.1:
            return
        verdict = chance.choice(["COMMIT", "COMMIT", "COMMIT", "ABORT"])
        yield from self._ask("verdict", verdict)
        if chance.random() < 0.3:
            yield from self._ask("doubt", "ABORT" if verdict == "COMMIT" else "COMMIT")

    def _names(self) -> set[str]:
        return {participant.service_name for participant in self.definition.participants}


class Sweeper:
    """``participant.sweep`` itself, at every service; the coordinator answers from its database."""

    def __init__(self, world: "World") -> None:
        self._world = world
        settings = SweepSettings(coordinator_url="http://coordinator", older_than_s=4, presume_abort_after_s=20)
        participants = [service.resources for service in world.all_services]
        self._sweeps = [Sweep(participant, settings, self) for participant in participants]  # type: ignore[arg-type]

    def once(self) -> None:
        for sweep in self._sweeps:
            sweep.once()

    def get(self, path: str) -> "Got":
        state = self._world.database.state_of(path.rsplit("/", 1)[-1])
        return Got(503) if state is None else Got(200, {"state": state})


class Got:
    """Stands for ``httpx.Response``."""

    def __init__(self, status_code: int, document: Any = None) -> None:
        self.status_code = status_code
        self.request = self
        self.url = "the coordinator"
        self._document = document

    def json(self) -> Any:
        return self._document


def any_saga(chance: random.Random) -> SagaDefinition:
    """Any valid saga: a graph in any order, Kafka and HTTP steps, payloads that refer to the input and to results."""
    count = chance.randrange(1, 7)
    pivot = chance.choice([None, None, chance.randrange(count)])
    above: list[set[int]] = []
    steps = []
    for i in range(count):
        if pivot is None or i < pivot:
            kind, needed = StepKind.COMPENSATABLE, {j for j in range(i) if chance.random() < 0.4}
        elif i == pivot:
            kind, needed = StepKind.PIVOT, set(range(i))
        else:
            kind, needed = StepKind.RETRIABLE, {pivot, *(j for j in range(pivot, i) if chance.random() < 0.4)}
        above.append(needed.union(*(above[j] for j in needed)))
        read = {
            f"s{j}": {"$from": f"steps.s{j}.result.n"}
            | ({"default": None} if kind is StepKind.RETRIABLE or chance.random() < 0.5 else {})
            for j in sorted(above[i])
            if chance.random() < 0.5
        }
        http = chance.random() < 0.4
        steps.append(
            StepDefinition(
                f"s{i}",
                f"web-{i % 2}" if http else f"svc-{i % 3}",
                f"s{i}",
                json.dumps({"customer": {"$from": "input.customer"}, "of": read}),
                tuple(f"s{j}" for j in sorted(needed)),
                kind,
                RetryPolicy(chance.randrange(1, 4), 50, 800, chance.choice([1.0, 2.0]), chance.choice([0.0, 0.5]), 3),
                chance.choice([400, 1_000, 2_500]),
                "/act" if http else None,
                "/undo" if http and chance.random() < 0.8 else None,
            )
        )
    chance.shuffle(steps)
    definition = SagaDefinition(
        "any", tuple(steps), chance.choice([None, 1_500, 15_000]), version="1", input='{"customer": "c-1"}'
    )
    definition.check(10)
    return definition


def any_participant(chance: random.Random, service: str) -> ParticipantDefinition:
    transport = Transport.HTTP if service.startswith("web") else Transport.KAFKA
    wanted = chance.sample(RESOURCES, chance.choice([1, 1, 2]))
    return ParticipantDefinition(service, transport, "/prepare", "/commit", "/abort", json.dumps({"resources": wanted}))


def any_transaction(chance: random.Random, services: list[str], web_services: list[str]) -> TransactionDefinition:
    chosen = chance.sample(services + web_services, chance.randrange(0, 4))
    definition = TransactionDefinition(
        chance.choice([1_000, 3_000, 8_000]),
        chance.random() < 0.5,
        None,
        tuple(any_participant(chance, service) for service in chosen),
    )
    definition.check()
    return definition
