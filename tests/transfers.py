"""Transfers between the vaults (tests/services/vaults.py), as two-phase commits, while processes die: a client that
asks again, and the counting afterwards."""

import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.platform import Platform
from tests.services.vaults import ACCOUNTS, BALANCE, VAULTS

ENDED = ("COMMITTED", "ABORTED")
DATABASES = {f"fluxora_{suffix}": vaults for suffix, vaults in VAULTS.items()}
#: Both ways to be called, both ways to keep a promise.
ALL_VAULTS = tuple(vault for vaults in VAULTS.values() for vault in vaults)

# One statement is one snapshot. What is set aside has left the balance and is not in ``moves`` yet.
_IN_ONE_DATABASE = """
    SELECT (SELECT sum(balance) FROM accounts)::bigint,
        (SELECT coalesce(sum(-(one #>> '{data,amount}')::bigint), 0)
         FROM fluxora.prepared, json_array_elements(changes) one
         WHERE state = 'PREPARED' AND service = ANY(%s) AND (one #>> '{data,amount}')::bigint < 0)::bigint,
        (SELECT coalesce(sum(amount), 0) FROM moves)::bigint
"""


@dataclass
class Transfer:
    """``amount`` from an account of the first vault to one of each further vault, which get it in equal parts."""

    vaults: Sequence[str]
    account: str
    amount: int
    #: The client decides against it, when all have voted.
    withdrawn: bool = False
    auto_commit: bool = False
    #: Until it is decided; a crash and what follows it are to fit in, where the test wants a commit.
    timeout_seconds: int = 60
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    #: What REST has answered to commit or abort: with 200 it is decided.
    answered: str | None = None

    def moves(self) -> dict[str, int]:
        share = self.amount // (len(self.vaults) - 1)
        return {self.vaults[0]: -share * (len(self.vaults) - 1)} | dict.fromkeys(self.vaults[1:], share)


class Transfers:
    """A client of the coordinator that does not give up, and an auditor of both databases."""

    def __init__(self, platform: Platform, threads: int = 8) -> None:
        self.platform = platform
        self._threads = threads
        #: Where the vaults that are called over HTTP listen.
        self._url = platform.endpoints["VAULTS_URL"]

    # The client

    def run(self, transfer: Transfer) -> None:
        """Begin, prepare, and commit or withdraw one transfer."""
        self.begin(transfer)
        self.prepare(transfer)
        if not transfer.auto_commit and self.voted(transfer) == "PREPARED":
            self.decide(transfer)

    def begin(self, transfer: Transfer) -> None:
        participants = []
        for vault, amount in transfer.moves().items():
            payload = {"transfer": transfer.id, "account": transfer.account, "amount": amount}
            participant: dict[str, Any] = {"service_name": vault, "payload": payload}
            if vault.startswith("http"):
                participant["service_url"] = f"{self._url}/{vault}"
            participants.append(participant)
        body = {
            "transaction_id": transfer.id,
            "timeout_seconds": transfer.timeout_seconds,
            "auto_commit": transfer.auto_commit,
            "participants": participants,
        }
        answer = self._post("/transactions", transfer.id, body)
        assert answer.status_code == 201, answer.text

    def prepare(self, transfer: Transfer) -> None:
        answer = self._post(f"/transactions/{transfer.id}/prepare", f"{transfer.id}:prepare")
        # 409: it has aborted meanwhile, because its client was kept waiting for longer than its timeout.
        assert answer.status_code in (200, 202, 409), answer.text

    def voted(self, transfer: Transfer, seconds: float = 90) -> str:
        """Its state once all votes are in, or one no, or none in time."""
        deadline = time.monotonic() + seconds
        while (state := self.states([transfer.id]).get(transfer.id)) in (None, "STARTED", "PREPARING"):
            assert time.monotonic() < deadline, f"{transfer.id} has no vote after {seconds} s: {state}"
            time.sleep(0.1)
        return str(state)

    def decide(self, transfer: Transfer) -> None:
        verb = "abort" if transfer.withdrawn else "commit"
        answer = self._post(f"/transactions/{transfer.id}/{verb}", f"{transfer.id}:{verb}")
        assert answer.status_code in (200, 202, 409), answer.text
        if answer.status_code in (200, 409):
            transfer.answered = answer.json()["state"]

    def each(self, what: Any, transfers: Iterable[Transfer]) -> None:
        """Do ``what`` with all of them at once."""
        with ThreadPoolExecutor(self._threads) as pool:
            list(pool.map(what, transfers))

    def _post(self, path: str, key: str, body: Any = None, seconds: float = 120) -> httpx.Response:
        """As any client should: what was not answered is asked again, with the same key."""
        deadline = time.monotonic() + seconds
        while True:
            problem: object
            try:
                answer = self.platform.http.post(path, json=body, headers={"Idempotency-Key": key})
                if answer.status_code < 500:
                    return answer
                problem = answer.text
            except httpx.TransportError as error:
                problem = error
            assert time.monotonic() < deadline, f"POST {path}: {problem!r}"
            time.sleep(0.2)

    # The auditor

    def states(self, ids: Sequence[str]) -> dict[str, str]:
        """Asks the database, so that it works while REST is down."""
        rows = self.platform.query(
            "fluxora", "SELECT id::text, state FROM transactions WHERE id = ANY(%s::uuid[])", list(ids)
        )
        return dict(rows)

    def all_ended(self, transfers: Sequence[Transfer], seconds: float = 150) -> dict[str, str]:
        ids = [transfer.id for transfer in transfers]
        deadline = time.monotonic() + seconds
        while stuck := [id for id in ids if (states := self.states(ids)).get(id) not in ENDED]:
            if time.monotonic() > deadline:
                rows = self.platform.query(
                    "fluxora",
                    "SELECT id, state, progress, next_deadline FROM transactions WHERE id = ANY(%s::uuid[])",
                    stuck[:3],
                )
                raise AssertionError(f"{len(stuck)} of {len(ids)} transactions have not ended: {rows}")
            time.sleep(0.2)
        return states

    def check(self, transfers: Sequence[Transfer], states: dict[str, str]) -> None:
        """Each is applied once everywhere, or nowhere; what the client was told holds; nothing is left open."""
        applied: dict[str, dict[str, list[int]]] = {transfer.id: {} for transfer in transfers}
        ids = list(applied)
        for database in DATABASES:
            for id, vault, amount in self.platform.query(
                database, "SELECT transfer::text, vault, amount FROM moves WHERE transfer = ANY(%s::uuid[])", ids
            ):
                applied[id].setdefault(vault, []).append(amount)
        problems = []
        for one in transfers:
            committed = states[one.id] == "COMMITTED"
            wanted = {vault: [amount] for vault, amount in one.moves().items()} if committed else {}
            if applied[one.id] != wanted:
                problems.append(f"{one.id} is {states[one.id]}; applied: {applied[one.id]}, expected {wanted}")
            if one.answered is not None and one.answered[:5] != states[one.id][:5]:
                problems.append(f"{one.id} is {states[one.id]}; the client was told {one.answered}")
            if committed and one.withdrawn:
                problems.append(f"{one.id} was withdrawn by its client, and is COMMITTED")
        assert not problems, f"{len(problems)} of {len(transfers)} transactions: " + "\n".join(problems[:5])
        self.check_nothing_open(ids)

    def check_nothing_open(self, ids: Sequence[str]) -> None:
        for database in DATABASES:
            held = self.platform.query(
                database, "SELECT * FROM fluxora.held WHERE transaction_id = ANY(%s)", list(ids)
            ) + self.platform.query(
                database,
                "SELECT * FROM fluxora.prepared WHERE state = 'PREPARED' AND transaction_id = ANY(%s)",
                list(ids),
            )
            assert not held, f"{database} still holds {held[:5]}"
        gids = [gid for (gid,) in self.platform.query("fluxora", "SELECT gid FROM pg_prepared_xacts")]
        assert not gids, f"prepared transactions are left: {gids[:5]}"

    def read(self, database: str) -> tuple[int, int, int]:
        """In one database at one moment: money in accounts, money set aside, and what came in less what went out."""
        [row] = self.platform.query(database, _IN_ONE_DATABASE, list(DATABASES[database]))
        balance, aside, moved = row
        return balance, aside, moved

    def check_constant(self, database: str) -> None:
        balance, aside, moved = self.read(database)
        first = len(DATABASES[database]) * len(ACCOUNTS) * BALANCE
        assert balance + aside - moved == first, (
            f"{database}: {balance} + {aside} set aside - {moved} moved, not {first}"
        )

    def check_total(self) -> None:
        """When nothing is under way: what one database has lost the other has won."""
        reads = [self.read(database) for database in DATABASES]
        assert [aside for _, aside, _ in reads] == [0, 0]
        assert sum(moved for _, _, moved in reads) == 0
        assert sum(balance for balance, _, _ in reads) == len(ALL_VAULTS) * len(ACCOUNTS) * BALANCE
