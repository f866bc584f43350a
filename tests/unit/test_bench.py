"""The benchmarks' arithmetic: percentiles, arrivals, hops, ratios, results and the report."""

import io
import json
import os
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench import cpu, hops, load
from bench.comparison import ratios
from bench.distribution import arrivals, percentile, summary
from bench.peers import run_peer
from bench.report import NOTHING, TABLES, TEMPLATE, UnknownTable, newest_run, report, table
from bench.results import Results, UnreadableResults, command_line, read
from bench.stage import BenchmarkFailed


@pytest.mark.parametrize(
    ("share", "expected"), [(0, 10), (0.25, 10), (0.26, 20), (0.5, 20), (0.75, 30), (0.99, 40), (1, 40)]
)
def test_a_percentile_is_the_nearest_rank(share: float, expected: float) -> None:
    assert percentile([40, 10, 30, 20], share) == expected


@pytest.mark.parametrize(("values", "share"), [([], 0.5), ([1.0], -0.1), ([1.0], 1.1)])
def test_there_is_no_percentile_of_nothing_and_none_outside_0_to_1(values: list[float], share: float) -> None:
    with pytest.raises(ValueError, match=r"percentile of nothing|between 0 and 1"):
        percentile(values, share)


def test_a_summary_of_a_hundred_times_has_the_second_longest_as_p99() -> None:
    assert summary([float(i) for i in range(1, 101)]) == {"n": 100, "p50_ms": 50.0, "p99_ms": 99.0, "max_ms": 100.0}
    assert summary([]) == {"n": 0}


def test_arrivals_come_at_their_rate_in_order_by_chance_and_the_same_again_with_a_seed() -> None:
    times = list(arrivals(100, 50, seed=1))
    assert times == sorted(times) and times[0] > 0 and times[-1] < 50
    assert 4_700 < len(times) < 5_300
    gaps = [b - a for a, b in pairwise(times)]
    # Of an exponential distribution about 63 % are shorter than the mean; of a fixed rate none or all.
    assert 0.6 < sum(gap < 0.01 for gap in gaps) / len(gaps) < 0.67
    assert times == list(arrivals(100, 50, seed=1)) != list(arrivals(100, 50, seed=2))


def test_an_open_loop_does_each_thing_once_and_not_before_it_is_due() -> None:
    late = load.at_times(3, lambda due: (due, time.time() - due), iter([0.0, 0.01, 0.02, 0.02, 0.05]))
    first = min(due for due, _ in late)
    assert sorted(round(due - first, 3) for due, _ in late) == [0.0, 0.01, 0.02, 0.02, 0.05]
    assert all(lateness >= 0 for _, lateness in late)


def test_every_tenth_saga_is_refused() -> None:
    assert [i for i in range(30) if load.refused(i, 10)] == [9, 19, 29]
    assert load.refusals(29, 10) == 2 == sum(load.refused(i, 10) for i in range(29))
    assert load.refusals(29, 0) == 0 == sum(load.refused(i, 0) for i in range(29))


TRACE = hops.Trace(
    due=0.0,
    began=0.001,
    committed=0.003,
    inputs=[0.010, 0.030, 0.050],
    commands=[0.012, 0.033],
    step_began=[0.015, 0.036],
    replied=[0.019, 0.038],
    ended=0.055,
)


def test_hops_add_up_to_the_whole() -> None:
    assert TRACE.complete
    assert sum(map(sum, TRACE.hops().values())) == pytest.approx(TRACE.ended - TRACE.due)
    assert list(TRACE.hops()) == list(hops.MEANINGS)


def test_hops_of_all_steps_are_pooled() -> None:
    found = hops.by_hop([TRACE, TRACE])
    assert found["fold"] == {"n": 4, "p50_ms": 2.0, "p99_ms": 3.0, "max_ms": 3.0, "times": 2.0, "share_percent": 9.1}
    assert found["capture of start"]["p50_ms"] == 7.0
    assert {name for name, one in found.items() if one["times"] == 2} == set(hops.PER_STEP)
    assert sum(one["share_percent"] for one in found.values()) == pytest.approx(100, abs=0.5)


@pytest.mark.parametrize(
    "missing", [{"inputs": [0.01, 0.03]}, {"replied": [0.019]}, {"commands": [], "inputs": [0.01]}]
)
def test_a_trace_with_a_moment_missing_is_not_complete(missing: dict[str, Any]) -> None:
    assert not replace(TRACE, **missing).complete


def test_cpu_of_a_saga_is_told_with_and_without_the_client() -> None:
    told = cpu.per_saga({"client": 1.0, "kafka": 5.0}, {"client": 1.2, "kafka": 5.3, "new": 0.1}, 100)
    assert told["cpu_ms"] == 6.0 and told["cpu_ms_without_client"] == 4.0
    assert told["cpu_ms_by_process"] == {"kafka": 3.0, "client": 2.0, "new": 1.0}


def ours(kind: str, rate: float, cpu_ms: float, without: float, mix: str = "success", run: str = "1") -> dict[str, Any]:
    return {
        "run": run,
        "bench": "throughput",
        "kind": kind,
        "mix": mix,
        "sagas_per_s": rate,
        "cpu_ms": cpu_ms,
        "cpu_ms_without_client": without,
        "cpu_ms_by_process": {"client": cpu_ms - without, "kafka": without},
    }


def theirs(rates: list[float], p50: float, run: str = "1") -> dict[str, Any]:
    return {
        "run": run,
        "bench": "peer",
        "system": "dtm",
        "mix": "success",
        "sagas_per_s": rates[1],
        "all_sagas_per_s": rates,
        "cpu_s_per_saga": 0.005,
        "cpu_ms_by_part": {"load": 1.0, "pg": 4.0},
        "p50_ms": p50,
        "p99_ms": 2 * p50,
    }


def test_ratios_are_of_medians_over_all_rounds() -> None:
    lines = [
        theirs([100, 200, 300], 5.0),
        *(ours("outbox", rate, 2.0, 1.0) for rate in (500, 600, 700)),
        {"run": "1", "bench": "latency", "kind": "outbox-alone", "p50_ms": 40.0, "p99_ms": 60.0},
        theirs([400, 200, 200], 5.0),
        *(ours("outbox", rate, 2.0, 1.0) for rate in (600, 800, 900)),
    ]
    assert ratios(lines) == [
        {
            "peer": "dtm",
            "mix": "success",
            "kind": "outbox",
            "sagas_per_s": 3.0,
            "cpu": 0.4,
            "cpu_without_clients": 0.25,
            "p50_ms": 8.0,
            "p99_ms": 6.0,
        }
    ]


def test_ratios_of_refusals_have_no_latency_and_what_we_did_not_measure_has_none() -> None:
    peer = {**theirs([100, 200, 300], 5.0), "mix": "10pct_fail"}
    found = ratios([peer, ours("rest", 300, 2.0, 1.0, mix="10pct_fail"), ours("outbox", 300, 2.0, 1.0)])
    assert [(one["kind"], one["mix"], one["sagas_per_s"], "p50_ms" in one) for one in found] == [
        ("rest", "10pct_fail", 1.5, False)
    ]


def test_results_are_written_line_by_line_and_read_again(tmp_path: Path) -> None:
    file, out = tmp_path / "new" / "results.jsonl", io.StringIO()
    results = Results(file, "python -m bench", {"warm_up": 7}, stdout=out)
    results.add("idle", percent_of_a_core=3.5)
    lines = read([file])
    assert [json.loads(line) for line in out.getvalue().splitlines()] == lines == results.lines
    assert (lines[0]["bench"], lines[0]["command"], lines[0]["warm_up"]) == ("run", "python -m bench", 7)
    assert lines[0]["run"] == lines[1]["run"] and {"date", "commit", "cpu", "cores", "memory_gb"} <= lines[0].keys()
    assert results.of("idle", percent_of_a_core=3.5) and not results.of("idle", percent_of_a_core=4)


@pytest.mark.parametrize("line", ["{", "[]", '{"bench": "idle"}'])
def test_a_line_that_is_no_result_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "results.jsonl"
    file.write_text('{"run": "1", "bench": "idle"}\n' + line + "\n")
    with pytest.raises(UnreadableResults, match=r"results\.jsonl:2: "):
        read([file])


def test_a_command_line_can_be_typed_again() -> None:
    assert command_line("bench", ["--only", "a b"]) == "python -m bench --only 'a b'"


def test_a_report_has_medians_and_says_what_was_not_measured() -> None:
    lines = [ours("outbox", rate, 2.0, 1.5) for rate in (900, 1234, 3000)]
    told = report("before\n{{throughput}}\n{{relay}}\nafter {{throughput}}\n", lines).splitlines()
    assert told[0] == "before" and told[-1] == "after {{throughput}}" and told[-2] == NOTHING
    assert told[3].endswith("| success | 1,234 | 900–3,000 | 3 | 2.00 | 1.50 |")


def test_a_place_for_a_table_that_nobody_makes_is_an_error() -> None:
    with pytest.raises(UnknownTable, match=r"\{\{thruput\}\}"):
        report("{{thruput}}", [])


def test_the_template_has_a_place_for_every_table_and_what_is_not_good() -> None:
    template = TEMPLATE.read_text()
    assert [name for name in TABLES if f"\n{{{{{name}}}}}\n" not in template] == []
    assert "## What is not as good as we want" in template
    assert report(template, []).count(NOTHING) == len(TABLES)


def test_the_newest_run_without_peers_goes_first() -> None:
    lines = [
        ours("outbox", 1, 1, 1, run="1"),
        ours("outbox", 2, 1, 1, run="2"),
        ours("outbox", 3, 1, 1, run="3"),
        theirs([1, 2, 3], 1, run="3"),
    ]
    assert [one["run"] for one in newest_run(lines, "throughput")] == ["2"]
    assert [one["run"] for one in newest_run(lines, "peer")] == ["3", "3"]
    assert newest_run(lines, "relay") == []


def test_the_growth_of_cost_is_a_ratio_to_the_smallest() -> None:
    def stored(wanted: int, again: bool, cpu_ms: float) -> dict[str, Any]:
        one = ours("outbox", 1000 / cpu_ms, cpu_ms, cpu_ms)
        return {**one, "bench": "stored", "measured": "rate", "wanted": wanted, "stored": wanted, "again": again} | {
            "tables_mb": 1
        }

    lines = [stored(1_000, False, 2.0), stored(1_000_000, False, 2.2), stored(1_000, True, 2.1)]
    rows = report("{{stored}}", lines).splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["1,000", "1,000,000", "1,000 again"]
    assert [row.split("|")[5].strip() for row in rows] == ["1.00", "1.10", "1.05"]


def test_timers_are_told_beside_the_same_load_without_them() -> None:
    def timers(measured: str, waiting: int, **figures: Any) -> dict[str, Any]:
        return {"run": "1", "bench": "timers", "measured": measured, "waiting": waiting, **figures}

    def idle(waiting: int, all_of_it: float, clock: float) -> dict[str, Any]:
        used = {"kafka": all_of_it - clock, "deadline-clock": clock}
        return timers("idle", waiting, percent_of_a_core=all_of_it, percent_of_a_core_by_process=used)

    lines = [
        timers("rate", 0, sagas_per_s=400.0, cpu_ms=4.0),
        idle(0, 9.0, 0.25),
        timers("rate", 10_000, sagas_per_s=390.0, cpu_ms=4.1),
        idle(10_000, 9.5, 0.5),
        timers("lateness", 10_000, p50_ms=80.0, p99_ms=300.0),
    ]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in report("{{timers}}", lines).splitlines()[2:]]
    assert rows[0] == ["0", "400", "4.00", "9.00", "0.25", "–", "–"]
    assert rows[1] == ["10,000", "390", "4.10", "9.50", "0.50", "80.0", "300"]


def test_an_overload_is_told_by_minute_and_process() -> None:
    ms = {"p50_ms": 1_000.0, "p99_ms": 1_000.0}
    one = {
        "run": "1",
        "bench": "overload",
        "asked_per_s": 400.0,
        "seconds": 120,
        "accepted": 30_000,
        "refused": 18_000,
        "not_sent": 0,
        "done_after_s": 41.5,
        "accepted_ms_by_minute": {"1": {"n": 9, "p50_ms": 5_500.0, "p99_ms": 7_000.0}, "10": {"n": 1, **ms}},
        "refused_ms_by_minute": {"1": {"n": 1_200, "p50_ms": 450.0, "p99_ms": 2_100.0}},
        "memory_mb_in_second_minute": {"kafka": 500.0},
        "memory_mb_at_the_end": {"kafka": 505.5},
    }
    told = report("{{overload}}", [one])
    assert "| 18,000 |" in told
    assert told.splitlines()[-2:] == [
        "| 1 | 9 | 5.50 | 7.00 | 1,200 | 0.45 | 2.10 |",
        "| 10 | 1 | 1.00 | 1.00 | 0 | – | – |",
    ]
    assert "| MB of kafka, second minute and last | 500.0 / 505.5 |" in told


def test_a_table_has_numbers_to_the_right() -> None:
    assert table(("a", "b"), [("x", 1), ("y", 12345.6)]).splitlines()[1:] == [
        "| :-- | --: |",
        "| x | 1 |",
        "| y | 12,346 |",
    ]


LINE = '{"system": "dtm", "mix": "success", "sagas_per_s": 1, "cpu_s_per_saga": 0.005, "ok": OK, "counts": [1]}'


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (f"echo '{LINE.replace('OK', 'false')}'", r"something else than it should: \[1\]"),
        ("echo no go >&2; exit 3", "run.sh ended with 3: no go"),
        ("echo installed", "ended with 0"),
        ("sleep 60", "took over 1 s"),
    ],
)
def test_a_peer_that_fails_ends_the_comparison_and_says_why(tmp_path: Path, script: str, told: str) -> None:
    (tmp_path / "run.sh").write_text(script)
    results = Results(tmp_path / "results.jsonl", "", {}, stdout=io.StringIO())
    with pytest.raises(BenchmarkFailed, match=told):
        run_peer(results, tmp_path / "run.sh", "dtm", 1, dict(os.environ), 1.0 if "sleep" in script else 30.0)


def test_a_peer_is_told_how_many_and_its_lines_are_results(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text(f"""echo '{LINE.replace("OK", "true")}' | sed "s/success/$N/" """)
    results = Results(tmp_path / "results.jsonl", "", {}, stdout=io.StringIO())
    run_peer(results, tmp_path / "run.sh", "dtm", 2, {**os.environ, "N": "77"}, 30)
    assert [(one["mix"], one["repetition"]) for one in results.of("peer")] == [("77", 2)]
