"""The judge of what took effect: steps of sagas, and money. Pure; a part of ``checker``."""

from collections import Counter, defaultdict

from tests.torture.history import History, PlannedStep, SagaIntent, TransferIntent
from tests.torture.rules import Rule, Violation
from tests.torture.world import Entry, Stored, World


def check(history: History, world: World) -> list[Violation]:
    return [*_sagas(history, world), *_transfers(history, world), *_decisions(world), *_money(history)]


def _sagas(history: History, world: World) -> list[Violation]:
    plans = {intent.label: intent for intent in history.sagas}
    entries: dict[str, list[Entry]] = defaultdict(list)
    for entry in world.entries:
        entries[entry.saga].append(entry)
    found = []
    for one in world.stored:
        if one.kind == "saga" and one.label in plans:
            found += _saga(plans[one.label], one, entries.pop(one.id, []))
    known = {one.id for one in world.stored}
    for saga in entries:
        if saga not in known:
            found.append(Violation(Rule.PHANTOM, saga, "a service has effects of a saga that is not there"))
    return found


def _saga(plan: SagaIntent, one: Stored, entries: list[Entry]) -> list[Violation]:
    found = []
    counts = Counter((entry.step, entry.operation) for entry in entries)
    for (name, operation), count in counts.items():
        if count > 1:
            found.append(Violation(Rule.DOUBLED, one.id, f"{operation} of {name} took effect {count} times"))
    for step in plan.steps:
        done, undone = counts[step.name, "ACTION"] > 0, counts[step.name, "COMPENSATION"] > 0
        if undone and not done:
            found.append(Violation(Rule.UNDONE_UNDONE, one.id, f"{step.name} was undone and had not been done"))
        if done and step.refuses:
            found.append(Violation(Rule.HALF_DONE, one.id, f"{step.name} refuses, and its effect stands"))
        if one.state == "COMPLETED" and not (done and not undone):
            what = "was undone" if undone else "has no effect"
            found.append(Violation(Rule.HALF_DONE, one.id, f"it is COMPLETED, and {step.name} {what}"))
        if one.state == "FAILED" and done and not undone:
            found.append(Violation(Rule.HALF_DONE, one.id, f"it is FAILED, and {step.name} was not undone"))
    for stranger in {step for step, _ in counts} - {step.name for step in plan.steps}:
        found.append(Violation(Rule.PHANTOM, one.id, f"{stranger} is no step of it, and has effects"))
    return found + _order(plan.steps, one, entries)


def _order(steps: tuple[PlannedStep, ...], one: Stored, entries: list[Entry]) -> list[Violation]:
    """Within one database its clock orders effects; between databases there is none to trust."""
    first: dict[tuple[str, str], Entry] = {}
    for entry in sorted(entries, key=lambda entry: entry.at):
        first.setdefault((entry.step, entry.operation), entry)
    http = {step.name: step.http for step in steps}
    found = []

    def late(earlier: tuple[str, str], later: tuple[str, str], told: str) -> None:
        a, b = first.get(earlier), first.get(later)
        if a is not None and b is not None and http[earlier[0]] == http[later[0]] and a.at > b.at:
            found.append(Violation(Rule.STEP_ORDER, one.id, told))

    for step in steps:
        late((step.name, "ACTION"), (step.name, "COMPENSATION"), f"{step.name} was undone before it was done")
        for before in step.depends_on:
            late((before, "ACTION"), (step.name, "ACTION"), f"{step.name} ran before {before}, on which it depends")
            late(
                (step.name, "COMPENSATION"),
                (before, "COMPENSATION"),
                f"{before} was undone before {step.name}, which depends on it",
            )
    return found


def _transfers(history: History, world: World) -> list[Violation]:
    plans = {intent.label: intent for intent in history.transfers}
    stored = {one.label: one for one in world.stored if one.kind == "transaction"}
    moves: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for move in world.moves:
        moves[move.label][move.vault].append(move.amount)
    found = []
    for label, plan in plans.items():
        if label in stored:
            found += _transfer(plan, stored[label], moves.pop(label, {}))
    for label in moves:
        if label not in stored:
            found.append(Violation(Rule.PHANTOM, label, "money was moved by a transaction that is not there", label))
    found += [Violation(Rule.PROMISE_LEFT, one, one) for one in world.promises]
    return found


def _transfer(plan: TransferIntent, one: Stored, moves: dict[str, list[int]]) -> list[Violation]:
    found = []
    for vault, amount in plan.moves:
        amounts = moves.get(vault, [])
        if len(amounts) > 1:
            found.append(Violation(Rule.DOUBLED, one.id, f"{vault} has moved {amounts}, not {amount} once"))
        elif amounts and amounts != [amount]:
            found.append(Violation(Rule.MONEY, one.id, f"{vault} has moved {amounts[0]}, not {amount}"))
        if one.state == "COMMITTED" and not amounts:
            found.append(Violation(Rule.HALF_DONE, one.id, f"it is COMMITTED, and {vault} has moved nothing"))
        if one.state == "ABORTED" and amounts:
            found.append(Violation(Rule.HALF_DONE, one.id, f"it is ABORTED, and {vault} has moved {amounts}"))
    applied = [vault for vault, _ in plan.moves if moves.get(vault)]
    if applied and len(applied) < len(plan.moves) and one.state not in ("COMMITTING", "COMMITTED"):
        rest = ", ".join(vault for vault, _ in plan.moves if not moves.get(vault))
        told = f"committed at {', '.join(applied)} and not at {rest}, and it is {one.state}"
        found.append(Violation(Rule.TWO_DECISIONS, one.id, told))
    for vault in moves.keys() - {vault for vault, _ in plan.moves}:
        found.append(Violation(Rule.PHANTOM, one.id, f"{vault} is no participant, and has moved money"))
    return found


def _decisions(world: World) -> list[Violation]:
    """A transaction is decided once: in the journal, and in what participants were sent."""
    found = []
    decided: dict[str, set[str]] = defaultdict(set)
    for fold in world.folds:
        if fold.state in ("COMMITTING", "COMMITTED"):
            decided[fold.transaction_id].add("COMMIT")
        elif fold.state in ("ABORTING", "ABORTED"):
            decided[fold.transaction_id].add("ABORT")
        elif fold.state in ("COMPLETED", "FAILED"):
            decided[fold.transaction_id].add(fold.state)
    for id, both in decided.items():
        if len(both) > 1:
            found.append(
                Violation(Rule.TWO_DECISIONS, id, f"the journal has it decided as {' and '.join(sorted(both))}")
            )
    for id, sent in world.sent.items():
        if {"COMMIT", "ABORT"} <= sent:
            found.append(Violation(Rule.TWO_DECISIONS, id, "participants were sent both COMMIT and ABORT"))
    ended: dict[str, str] = {}
    for fold in sorted(world.folds, key=lambda fold: fold.offset):
        before = ended.get(fold.transaction_id)
        if before is not None and fold.state != before:
            told = f"the journal has it {before}, and at offset {fold.offset} {fold.state}"
            found.append(Violation(Rule.TWO_DECISIONS, fold.transaction_id, told))
        elif fold.state in ("COMPLETED", "FAILED", "COMMITTED", "ABORTED"):
            ended[fold.transaction_id] = fold.state
    return found


def _money(history: History) -> list[Violation]:
    """Each snapshot of a database is whole; the last ones of all databases, taken at rest, together too."""
    found = []
    last: dict[str, int] = {}
    aside = 0
    for purse in history.purses:
        if purse.balance + purse.aside - purse.moved != purse.first:
            told = (
                f"{purse.balance} + {purse.aside} set aside - {purse.moved} moved is "
                f"{purse.balance + purse.aside - purse.moved}, not {purse.first}"
            )
            found.append(Violation(Rule.MONEY, purse.database, told))
    for purse in history.purses:
        last[purse.database] = purse.moved
    aside = sum({purse.database: purse.aside for purse in history.purses}.values())
    if sum(last.values()) != 0:
        told = f"what one database has lost the others have not won: {last}"
        found.append(Violation(Rule.MONEY, "all databases", told))
    if aside:
        found.append(Violation(Rule.MONEY, "all databases", f"{aside} is still set aside"))
    return found
