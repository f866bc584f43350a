"""What a run comes to, in words: what is wrong, what happened around it, what to do next. Pure."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.torture.history import History, Intent, Struck
from tests.torture.rules import Violation
from tests.torture.world import World

#: Faults so many seconds before the work, or after its last answer, are told with it.
NEAR = 20.0
#: Pieces of work that are told with their timeline.
TOLD = 5
#: Lines of one timeline.
LINES = 60

#: Journals by id: as ``GET /sagas/{id}/history`` has them.
Journals = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(slots=True)
class Summary:
    """Figures of a run; ``--json`` prints it."""

    seed: int
    seconds: float
    settled_seconds: float
    #: What was asked for and accepted, by kind.
    accepted: dict[str, int]
    #: How it ended, by kind and state.
    ended: dict[str, int]
    #: Calls without an answer, answered 503, and so on.
    answers: dict[str, int]
    faults: dict[str, int]
    #: Crash points that nobody came to.
    not_met: list[str]
    purses: int
    rebuild: dict[str, Any] = field(default_factory=dict)
    audit: Any = None
    violations: list[dict[str, Any]] = field(default_factory=list)


def summarise(
    history: History, world: World, violations: Sequence[Violation], *, seed: int, seconds: float, settled: float
) -> Summary:
    granted = {one.label for one in history.answers if one.what == "create" and one.granted}
    accepted = Counter(_kind(intent) for intent in history.intents() if intent.label in granted)
    ended = Counter(f"{one.kind} {one.state}" for one in world.stored)
    ended += Counter(f"message {one.status}" for one in world.messages)
    ended["event heard"] = len({one.label for one in world.consumed})
    answers = Counter("no answer" if one.status is None else str(one.status) for one in history.answers)
    return Summary(
        seed=seed,
        seconds=round(seconds, 1),
        settled_seconds=round(settled, 1),
        accepted=dict(accepted),
        ended=dict(ended),
        answers=dict(answers),
        faults=dict(Counter(one.fault for one in history.strikes)),
        not_met=[one.fault for one in history.strikes if one.told == "nobody came to it"],
        purses=len(history.purses),
        violations=[asdict(one) | {"next": one.next} for one in violations],
    )


def _kind(intent: Intent) -> str:
    if intent.line != "saga":
        return intent.line
    http = {step.http for step in intent.steps}
    transport = "kafka and http" if len(http) > 1 else "http" if http == {True} else "kafka"
    shape = "parallel" if any(len(step.depends_on) > 1 for step in intent.steps) else "in a row"
    return f"saga {transport}, {shape}, by {intent.way}"


def words(summary: Summary) -> list[str]:
    """The figures, for people."""

    def told(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{count} {what}" for what, count in sorted(counts.items())) or "none"

    return [
        f"seed {summary.seed}: {summary.seconds:g} s of load and faults, settled after {summary.settled_seconds:g} s",
        f"accepted: {told(summary.accepted)}",
        f"ended: {told(summary.ended)}",
        f"answers: {told(summary.answers)}",
        f"faults: {sum(summary.faults.values())} ({told(summary.faults)})",
        *([f"lines that nobody came to: {', '.join(summary.not_met)}"] if summary.not_met else []),
        f"{summary.purses} snapshots of the money",
    ]


def explain(violations: Sequence[Violation], history: History, journals: Journals, seed: int) -> list[str]:
    """Every violation; with the first ones the faults near them, the timeline, and what to do next."""
    if not violations:
        return []
    by_work: dict[str, list[Violation]] = defaultdict(list)
    for one in violations:
        by_work[one.label or one.about].append(one)
    counts = Counter(one.rule.value for one in violations)
    lines = [f"{len(violations)} violations: " + ", ".join(f"{n} x {rule}" for rule, n in counts.most_common()), ""]
    for number, (work, found) in enumerate(by_work.items()):
        for one in found:
            lines.append(f"[{one.rule.value}] {one.about}: {one.told}")
        if number < TOLD:
            ids = {one.about for one in found}
            journal = next((journals[id] for id in ids if id in journals), ())
            lines += [f"    {line}" for line in _around(work, history, journal)]
            lines += [f"    next: {text}" for text in dict.fromkeys(one.next for one in found)]
            lines.append("")
    lines.append(f"The same faults in the same order: make torture ARGS='--seed {seed}'")
    return lines


def _around(label: str, history: History, journal: Sequence[Mapping[str, Any]]) -> list[str]:
    answers = history.answers_of(label)
    intent = next((one for one in history.intents() if one.label == label), None)
    events: list[tuple[float, str]] = []
    if intent is not None:
        events.append((intent.at, f"wanted    {_wanted(intent)}"))
    for one in answers:
        got = "no answer" if one.status is None else str(one.status)
        text = " ".join(part for part in (one.what, got, one.state or "", one.id or "", one.error or "") if part)
        events.append((one.asked, f"client    {text} (after {one.answered - one.asked:.2f} s)"))
    for entry in journal:
        at = datetime.fromisoformat(str(entry["at"])).timestamp()
        effects = ", ".join(_effect(effect) for effect in entry["effects"])
        reason = f" ({entry['reason']})" if entry["reason"] else ""
        text = f"{entry['type']} {entry['verdict']}{reason} -> {entry['state']}"
        events.append((at, f"journal   {text}" + (f"; left: {effects}" if effects else "")))
    if not events:
        return []
    begin, end = min(at for at, _ in events), max(at for at, _ in events)
    near = [one for one in history.strikes if one.began <= end + NEAR and one.ended >= begin - NEAR]
    events += [(one.began, f"FAULT     {_struck(one)}") for one in near]
    events.sort()
    told = [f"{_time(at)}  {text[:300]}" for at, text in events]
    if len(told) > LINES:
        told = [*told[: LINES // 2], f"... {len(told) - LINES} lines ...", *told[-LINES // 2 :]]
    return told


def _wanted(intent: Intent) -> str:
    match intent.line:
        case "saga":
            steps = [
                f"{step.name}@{step.service}"
                + ("!" if step.refuses else "")
                + (f"<{','.join(step.depends_on)}" if step.depends_on else "")
                for step in intent.steps
            ]
            return f"a saga by {intent.way}: {' '.join(steps)}  (! refuses, < depends on)"
        case "transfer":
            moves = ", ".join(f"{vault} {amount:+}" for vault, amount in intent.moves)
            return f"a transfer: {moves}" + (", withdrawn" if intent.withdrawn else "")
        case "message":
            return f"message number {intent.number} of lane {intent.lane} to {intent.destination}"
        case _:
            return f"event number {intent.number} of stream {intent.stream}"


def _effect(effect: Mapping[str, Any]) -> str:
    return " ".join(
        str(value) for value in effect.values() if isinstance(value, (str, int)) and not isinstance(value, bool)
    )


def _struck(one: Struck) -> str:
    return f"{one.fault} ({one.told or one.target}), all ready after {one.ended - one.began:.1f} s" + (
        f"; WRONG: {one.wrong}" if one.wrong else ""
    )


def _time(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%H:%M:%S.%f")[:-3]
