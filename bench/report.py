"""``python -m bench.report FILE…``: result lines to ``docs/performance.md``, on stdout.

The prose is in ``performance.template.md``; each ``{{name}}`` alone on its line becomes the table of that name, from
the newest run that has lines for it. Where a run beside the peers is not what is asked for, others go before it.
"""

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from bench import growth, hops, latency, overload, relay, throughput, timers, two_phase
from bench.distribution import median
from bench.results import RUN, Result, UnreadableResults, read, select

TEMPLATE = Path(__file__).with_name("performance.template.md")
NOTHING = "*Not measured yet.*"
_PLACE = re.compile(r"^\{\{([a-z-]+)\}\}$", re.MULTILINE)

Row = Sequence[object]


def main(
    files: Annotated[list[Path], typer.Argument(help="Result files, as bench/results/<date>.jsonl.")],
    template: Annotated[Path, typer.Option(help="Prose with places for tables.")] = TEMPLATE,
) -> None:
    """Write docs/performance.md. Example: python -m bench.report bench/results/*.jsonl > docs/performance.md"""
    try:
        sys.stdout.write(report(template.read_text(), read(files)))
    except (UnreadableResults, UnknownTable, OSError) as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None


class UnknownTable(ValueError):
    """The template has a place for a table that nobody makes. Names it."""


def report(template: str, lines: list[Result]) -> str:
    """Fill the template. Raises UnknownTable."""

    def fill(place: "re.Match[str]") -> str:
        name = place[1]
        if name not in TABLES:
            raise UnknownTable(f"{{{{{name}}}}} in the template: there is no such table; there are {', '.join(TABLES)}")
        bench, make = TABLES[name]
        if bench == RUN:
            used = {one["run"] for bench, _ in TABLES.values() if bench != RUN for one in newest_run(lines, bench)}
            return _runs([one for one in lines if one["run"] in used])
        newest = newest_run(lines, bench)
        return make(newest) if newest else NOTHING

    return _PLACE.sub(fill, template)


def newest_run(lines: Iterable[Result], bench: str) -> list[Result]:
    """All lines of the newest run that measured ``bench``; of one without the peers, if there is one."""
    lines = list(lines)
    runs = {one["run"] for one in select(lines, bench)}
    alone = runs - {one["run"] for one in select(lines, "peer")}
    newest = max(alone or runs, default=None)
    return [one for one in lines if one["run"] == newest]


def table(head: Row, rows: Iterable[Row]) -> str:
    """Markdown; numbers to the right."""
    whole = [list(row) for row in rows]
    right = [all(isinstance(row[i], int | float) or row[i] in ("", "–") for row in whole) for i in range(len(head))]
    lines = [head, ["--:" if one else ":--" for one in right], *whole]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _of(lines: Iterable[Result], field: str) -> float:
    """The median of a field."""
    return float(median([float(one[field]) for one in lines]))


def _range(lines: Iterable[Result], field: str) -> str:
    values = [float(one[field]) for one in lines]
    return f"{_cell(min(values))}–{_cell(max(values))}"


def _groups(lines: Iterable[Result], *fields: str) -> dict[tuple[Any, ...], list[Result]]:
    """Lines by the values of fields, in the order in which those came."""
    found: dict[tuple[Any, ...], list[Result]] = {}
    for one in lines:
        found.setdefault(tuple(one[field] for field in fields), []).append(one)
    return found


def _runs(lines: list[Result]) -> str:
    told = []
    for run in select(lines, RUN):
        changed = ", with changes" if run["changed"] else ""
        machine = f"{run['cpu']}, {run['cores']} cores, {run['memory_gb']} GB; {run['os']}; Python {run['python']}"
        told.append(
            (
                f"`{run['command']}`",
                run["date"],
                f"{run['commit'] or '?'}{changed}",
                f"{machine}; load at the start {run['load_1m']}",
            )
        )
    return table(("command", "date", "commit", "machine"), told) if told else NOTHING


def _throughput(lines: list[Result]) -> str:
    rows = [
        (
            throughput.KINDS.get(kind, kind),
            mix,
            _of(runs, "sagas_per_s"),
            _range(runs, "sagas_per_s"),
            len(runs),
            _of(runs, "cpu_ms"),
            _of(runs, "cpu_ms_without_client"),
        )
        for (kind, mix), runs in _groups(select(lines, throughput.BENCH), "kind", "mix").items()
    ]
    head = ("sagas are started", "mix", "sagas/s (median)", "range", "runs", "CPU ms a saga", "without the client")
    return table(head, rows)


def _cpu(lines: list[Result]) -> str:
    groups = _groups(select(lines, throughput.BENCH, mix="success"), "kind")
    kinds = [kind for (kind,) in groups]
    # A process that has not been there in every run of a kind has no median.
    medians = {
        kind: {
            name: median([run["cpu_ms_by_process"].get(name, 0.0) for run in groups[kind,]])
            for name in dict.fromkeys(name for run in groups[kind,] for name in run["cpu_ms_by_process"])
        }
        for kind in kinds
    }
    names = sorted(
        {name for one in medians.values() for name in one},
        key=lambda name: -max(one.get(name, 0.0) for one in medians.values()),
    )
    small = [name for name in names if all(one.get(name, 0.0) < 0.01 for one in medians.values())]
    rows: list[Row] = [(name, *(medians[kind].get(name, 0.0) for kind in kinds)) for name in names if name not in small]
    if small:
        rows.append((f"{len(small)} others", *(sum(medians[kind].get(name, 0.0) for name in small) for kind in kinds)))
    return table(("process", *kinds), rows)


def _latency(lines: list[Result]) -> str:
    rows: list[Row] = []
    for one in select(lines, latency.BENCH):
        rows.append((_LATENCY.get(one["kind"], one["kind"]), one.get("sagas_per_s", "–"), *_times(one)))
        if "until_answer" in one:
            rows.append(("… of which until the answer", "–", *_times(one["until_answer"])))
    return table(("saga of three steps", "sagas/s", "n", "p50 ms", "p99 ms", "longest ms"), rows)


#: The kinds of latency, for people.
_LATENCY = {
    "outbox-alone": "from the outbox, one after the other: BEGIN → END",
    "outbox-half": "from the outbox, at half of saturation (Poisson): due → END",
    "rest-alone": "over REST, one after the other: POST → END",
}


def _times(one: Result) -> Row:
    return int(one["n"]), float(one["p50_ms"]), float(one["p99_ms"]), float(one["max_ms"])


def _hops(lines: list[Result]) -> str:
    by_kind = {one["kind"]: one["hops"] for one in select(lines, latency.BENCH) if one.get("hops")}
    rows: list[Row] = []
    for name, meaning in hops.MEANINGS.items():
        found = [kind_hops.get(name) for kind_hops in by_kind.values()]
        if not any(found):
            continue
        times = next(int(one["times"]) for one in found if one)
        cells = [
            cell for one in found for cell in ((one["p50_ms"], one["p99_ms"], one["share_percent"]) if one else _NONE)
        ]
        rows.append((name, meaning, f"{times}×", *cells))
    heads = [f"{kind}: {what}" for kind in by_kind for what in ("p50 ms", "p99 ms", "% of all")]
    return table(("hop", "what it is", "a saga", *heads), rows) if rows else NOTHING


_NONE = ("–", "–", "–")


def _two_phase(lines: list[Result]) -> str:
    rows: list[Row] = []
    for (transport,), found in _groups(select(lines, two_phase.BENCH), "transport").items():
        rates, times = (
            select(found, two_phase.BENCH, measured="rate"),
            select(found, two_phase.BENCH, measured="latency"),
        )
        rate = (_of(rates, "transactions_per_s"), _of(rates, "cpu_ms")) if rates else ("–", "–")
        rows.append((transport, *rate, *(_times(times[-1]) if times else (*_NONE, "–"))))
    return table(("participants", "commits/s", "CPU ms each", "n alone", "p50 ms", "p99 ms", "longest ms"), rows)


def _relay(lines: list[Result]) -> str:
    rows: list[Row] = []
    for one in select(lines, relay.BENCH, measured="latency"):
        for field, what in (
            ("from_begin", "BEGIN → consumer"),
            ("from_commit", "COMMIT's answer → consumer"),
            ("appended_to_consumer", "of which appended to the topic → consumer"),
        ):
            rows.append((f"{what}, {one['rows_per_s']} rows/s", *_times(one[field])[1:], "–"))
    rates = select(lines, relay.BENCH, measured="rate")
    if rates:
        bound = "" if all(one["left_when_written"] for one in rates) else " (bound by the writers, not by the relay)"
        written = f"{_of(rates, 'write_rows_per_s'):,.0f}"
        what = f"rows/s through the relay, {rates[0]['rows']:,} rows, {written} rows/s written{bound}"
        rows.append((what, "–", "–", "–", _of(rates, "relay_rows_per_s")))
    return table(("", "p50 ms", "p99 ms", "longest ms", "rows/s"), rows)


def _publish(lines: list[Result]) -> str:
    one = select(lines, "publish")[-1]
    skip = {"run", "bench", "load_1m"}
    return table(("", ""), [(name.replace("_", " "), value) for name, value in one.items() if name not in skip])


def _idle(lines: list[Result]) -> str:
    one = select(lines, "idle")[-1]
    used = {name: value for name, value in one["percent_of_a_core_by_process"].items() if value >= 0.1}
    rest = one["percent_of_a_core"] - sum(used.values())
    rows = [("all", float(one["percent_of_a_core"])), *used.items(), ("all others", max(0.0, round(rest, 2)))]
    return table(("process, doing nothing", "% of one core"), rows)


def _processors(lines: list[Result]) -> str:
    rows = [
        (int(count), _of(runs, "sagas_per_s"), _range(runs, "sagas_per_s"), _of(runs, "cpu_ms"))
        for (count,), runs in _groups(select(lines, growth.PROCESSORS), "processors").items()
    ]
    return table(("processors", "sagas/s (median)", "range", "CPU ms a saga"), rows)


def _stored(lines: list[Result]) -> str:
    rates = select(lines, growth.STORED, measured="rate")
    rows: list[Row] = []
    first: list[Result] | None = None
    for (wanted, again), runs in _groups(rates, "wanted", "again").items():
        first = first or runs
        times = select(lines, growth.STORED, measured="latency", wanted=wanted, again=again)
        rows.append(
            (
                f"{runs[0]['stored']:,}{' again' if again else ''}",
                int(runs[0]["tables_mb"]),
                _of(runs, "sagas_per_s"),
                _of(runs, "cpu_ms"),
                round(_of(runs, "cpu_ms") / _of(first, "cpu_ms"), 3),
                round(_of(first, "sagas_per_s") / _of(runs, "sagas_per_s"), 3),
                *((float(times[-1]["p50_ms"]), float(times[-1]["p99_ms"])) if times else ("–", "–")),
            )
        )
    head = ("sagas stored", "MB", "sagas/s", "CPU ms a saga", "CPU ratio", "time ratio", "p50 ms alone", "p99 ms alone")
    return table(head, rows)


def _timers(lines: list[Result]) -> str:
    rows: list[Row] = []
    for (waiting,), runs in _groups(select(lines, timers.BENCH, measured="rate"), "waiting").items():
        idle = select(lines, timers.BENCH, measured="idle", waiting=waiting)[-1]
        late = select(lines, timers.BENCH, measured="lateness", waiting=waiting)
        rows.append(
            (
                f"{waiting:,}",
                _of(runs, "sagas_per_s"),
                _of(runs, "cpu_ms"),
                float(idle["percent_of_a_core"]),
                float(idle["percent_of_a_core_by_process"].get("deadline-clock", 0.0)),
                *((float(late[-1]["p50_ms"]), float(late[-1]["p99_ms"])) if late else ("–", "–")),
            )
        )
    head = (
        "sagas that wait",
        "sagas/s",
        "CPU ms a saga",
        "% of a core at rest",
        "of which the clock",
        "p50 ms from timer to end",
        "p99 ms",
    )
    return table(head, rows)


def _overload(lines: list[Result]) -> str:
    one = select(lines, overload.BENCH)[-1]
    first, last = one["memory_mb_in_second_minute"], one["memory_mb_at_the_end"]
    told = [
        ("asked for, a second", float(one["asked_per_s"])),
        ("seconds", int(one["seconds"])),
        ("accepted, and all of them done", int(one["accepted"])),
        ("refused with Retry-After", int(one["refused"])),
        ("not sent: too many under way", int(one["not_sent"])),
        ("seconds from the last request to the last END", float(one["done_after_s"])),
        *((f"MB of {name}, second minute and last", f"{size} / {last.get(name, 0)}") for name, size in first.items()),
    ]
    accepted, refused = one["accepted_ms_by_minute"], one["refused_ms_by_minute"]
    minutes: list[Row] = [
        (int(minute), *_answered(accepted.get(minute)), *_answered(refused.get(minute)))
        for minute in sorted({*accepted, *refused}, key=int)
    ]
    head = ("minute", "accepted", "p50 s until the answer", "p99 s", "refused", "p50 s until the answer", "p99 s")
    return f"{table(('', ''), told)}\n\n{table(head, minutes)}"


def _answered(took: dict[str, float] | None) -> Row:
    return (0, "–", "–") if took is None else (int(took["n"]), took["p50_ms"] / 1000, took["p99_ms"] / 1000)


def _peers(lines: list[Result]) -> str:
    rows: list[Row] = []
    for (system, mix), found in _groups(select(lines, "peer"), "system", "mix").items():
        cpu = median([one["cpu_s_per_saga"] * 1000 for one in found])
        rates = [rate for one in found for rate in one.get("all_sagas_per_s") or [one["sagas_per_s"]]]
        load = median([one["cpu_ms_by_part"].get("load", 0.0) for one in found])
        rows.append((system, mix, float(median(rates)), cpu, cpu - load, _of(found, "p50_ms"), _of(found, "p99_ms")))
    for (kind, mix), runs in _groups(select(lines, throughput.BENCH), "kind", "mix").items():
        times = select(lines, latency.BENCH, kind=f"{kind}-alone") if mix == "success" else []
        alone = (_of(times, "p50_ms"), _of(times, "p99_ms")) if times else ("–", "–")
        both = (_of(runs, "cpu_ms"), _of(runs, "cpu_ms_without_client"))
        rows.append((f"Fluxora, {kind}", mix, _of(runs, "sagas_per_s"), *both, *alone))
    head = ("", "mix", "sagas/s", "CPU ms a saga", "without load client", "p50 ms alone", "p99 ms alone")
    return table(head, rows)


def _ratios(lines: list[Result]) -> str:
    fields = ("sagas_per_s", "cpu", "cpu_without_clients", "p50_ms", "p99_ms")
    rows = [
        (one["kind"], one["peer"], one["mix"], *(one.get(field, "–") for field in fields))
        for one in select(lines, "ratio")
    ]
    return table(("ours", "to", "mix", "sagas/s", "CPU", "CPU without load clients", "p50", "p99"), rows)


#: For each place in the template: whose lines it needs, and what makes its table of them.
TABLES: dict[str, tuple[str, Callable[[list[Result]], str]]] = {
    "runs": (RUN, _runs),
    "throughput": (throughput.BENCH, _throughput),
    "cpu": (throughput.BENCH, _cpu),
    "latency": (latency.BENCH, _latency),
    "hops": (latency.BENCH, _hops),
    "two-phase": (two_phase.BENCH, _two_phase),
    "relay": (relay.BENCH, _relay),
    "publish": ("publish", _publish),
    "idle": ("idle", _idle),
    "processors": (growth.PROCESSORS, _processors),
    "stored": (growth.STORED, _stored),
    "timers": (timers.BENCH, _timers),
    "overload": (overload.BENCH, _overload),
    "peers": ("peer", _peers),
    "ratios": ("ratio", _ratios),
}


if __name__ == "__main__":
    typer.run(main)
