"""Measuring, recording, resuming, comparing and reporting."""

import json
import math
import re
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from typer.testing import CliRunner

import matroot
from matroot import cli
from matroot.bench import cases, claims, compare, paper, report, rows
from matroot.bench.candidates import Candidate, once, side_by_side
from matroot.bench.cases import Case, Settings
from matroot.bench.measure import APPROXIMATE, Problem, Stopwatch, in_turns, judged, milliseconds
from matroot.testing import random_spd

CPU = torch.device("cpu")
QUICK = Settings(CPU, quick=True)
run = partial(CliRunner().invoke, cli.app)


def row(candidate="matroot", **fields):
    made = {
        "case": "speed n=8",
        "of": 2,
        "experiment": "speed",
        "candidate": candidate,
        "batch": 4,
        "n": 8,
        "root": "sqrt",
        "cond": 100.0,
        "dtype": "float32",
        "quick": False,
        "error": 1e-7,
        "gradient_error": 2e-7,
        "gate": 1e-5,
        "passed": True,
        "why": None,
        "ms": {"forward": [1.0, 0.9, 1.1], "both": [2.0, 1.9, 2.2]},
        **rows.provenance(CPU),
    }
    return {**made, **fields}


# Rows.


def test_rows_come_back(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    rows.append(path, [row(), row("other", error=math.nan)])
    found, complaints = rows.load(path)
    assert complaints == []
    first, second = found
    assert first == {**dict.fromkeys(rows.FIELDS), **row(measured=first["measured"])}
    assert (second["candidate"], second["error"]) == ("other", None)


def test_the_newest_row_counts(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.append(path, [row(error=0.5), row("other")])
    rows.append(path, [row(error=0.25)])
    assert [r["error"] for r in rows.load(path)[0]] == [1e-7, 0.25]


BROKEN = {
    "{": "",
    "[1]": "expected an object, got list",
    "null": "expected an object",
    json.dumps({"case": "x"}): "'experiment' must be a string",
    json.dumps(row(of="2")): "'of' must be a whole number",
    json.dumps(row(error="low")): "'error' must be a number or null, got 'low'",
    json.dumps(row(error=True)): "'error' must be a number",
    json.dumps(row(why=3)): "'why' must be a string",
    json.dumps(row(ms={"both": [1.0, 2.0]})): "three positive numbers",
    json.dumps(row(ms={"both": [1.0, -1.0, 2.0]})): "three positive numbers",
    json.dumps(row(ms=[1])): "'ms' must be an object",
    json.dumps(row(error=math.nan)): "NaN is not JSON",
    json.dumps(row(experiment="mae", n=None)): "'n' is missing from a row of 'mae'",
    json.dumps(row(experiment="scalar", curve={"x": [1], "y": []})): "two lists of numbers",
    "[" * 100_000: "",
    "\ufffd\x00": "",
}


@pytest.mark.parametrize("line", BROKEN)
def test_a_corrupt_line_is_reported_with_its_number_and_skipped(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row()) + "\n\n" + line + "\n" + json.dumps(row("last")) + "\n")
    found, complaints = rows.load(path)
    assert [r["candidate"] for r in found] == ["matroot", "last"]
    (complaint,) = complaints
    assert complaint.startswith(f"{path}, line 3: skipped, ")
    assert BROKEN[line] in complaint


def test_bytes_that_are_no_text_are_a_corrupt_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe{}\n" + json.dumps(row()).encode())
    found, complaints = rows.load(path)
    assert len(found) == 1
    assert "line 1" in complaints[0]


def test_a_line_that_was_cut_off_spoils_only_itself(tmp_path):
    path = tmp_path / "rows.jsonl"
    text = json.dumps(row())
    path.write_text(text + "\n" + text[:50])
    rows.append(path, [row("next")])
    found, complaints = rows.load(path)
    assert [r["candidate"] for r in found] == ["matroot", "next"]
    assert "line 2" in complaints[0]


def test_a_case_is_finished_when_all_its_rows_are_there():
    assert rows.finished([row()]) == set()
    assert rows.finished([row(), row("other")]) == {"speed n=8"}


def test_provenance_names_what_ran():
    origin = rows.provenance(CPU)
    assert origin["torch"] == torch.__version__
    assert origin["matroot"] == matroot.__version__
    assert origin["threads"] == torch.get_num_threads()
    assert origin["device_name"]
    assert origin["commit"] is None or re.fullmatch(r"[0-9a-f]{7,}\+?", origin["commit"])


# Cases.


def counted(names, log, fail_at=None):
    def measure(name):
        if name == fail_at:
            raise KeyboardInterrupt
        log.append(name)
        return [{"candidate": "a"}, {"candidate": "b"}]

    return [Case("test", {"name": name}, partial(measure, name), 1.0) for name in names]


def test_a_run_resumes_where_it_was(tmp_path):
    path, log = tmp_path / "rows.jsonl", []
    with pytest.raises(KeyboardInterrupt):
        list(cases.run(counted("xyz", log, fail_at="y"), path, QUICK))
    assert log == ["x"]
    steps = list(cases.run(counted("xyz", log), path, QUICK))
    assert log == ["x", "y", "z"]
    assert [step.done for step in steps] == [1.0, 2.0, 3.0]
    assert all(step.total == 3.0 for step in steps)
    assert [step.done for step in cases.run(counted("xyz", log), path, QUICK)] == [3.0]
    found, complaints = rows.load(path)
    assert complaints == []
    assert [(r["name"], r["candidate"]) for r in found] == [(n, c) for n in "xyz" for c in "ab"]


def test_half_a_case_is_measured_again(tmp_path):
    path, log = tmp_path / "rows.jsonl", []
    list(cases.run(counted("x", log), path, QUICK))
    first, second = path.read_text().splitlines()
    path.write_text(first + "\n" + second[:40])
    list(cases.run(counted("x", log), path, QUICK))
    assert log == ["x", "x"]
    assert len(rows.load(path)[0]) == 2


@pytest.mark.parametrize("field", ["torch", "commit", "threads", "device_name"])
def test_rows_of_another_environment_do_not_mix(tmp_path, field):
    path = tmp_path / "rows.jsonl"
    rows.append(path, [row(**{field: "other"} if field != "threads" else {field: 77})])
    with pytest.raises(ValueError, match=f"measured elsewhere .*{field}.*--fresh"):
        list(cases.run(counted("x", []), path, QUICK))


def test_quick_and_full_dtype_and_device_are_different_cases():
    (case,) = counted("x", [])
    keys = {
        case.key(settings)
        for settings in (QUICK, Settings(CPU), Settings(CPU, torch.float64, quick=True))
    }
    assert len(keys) == 3


def test_set_aside_never_overwrites(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert cases.set_aside(path) is None
    for text in ("one", "two"):
        path.write_text(text)
        cases.set_aside(path)
    assert (tmp_path / "rows.1.jsonl").read_text() == "one"
    assert (tmp_path / "rows.2.jsonl").read_text() == "two"


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_keeps_its_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "matroot.cli", "bench", "paper", "--quick", "-o", str(path)]
    command = [sys.executable, "-c", "from matroot.cli import main; main()", *command[3:]]
    process = subprocess.Popen(
        [*command, "--only", "convergence,scalar,lyapunov,degree"], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_bytes().count(b"\n") >= 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = path.read_bytes()
    kept = rows.finished(rows.load(path)[0])
    assert kept
    result = run(["bench", "paper", "--quick", "-o", str(path), "--only", "convergence,scalar"])
    assert result.exit_code == 0, result.output
    assert path.read_bytes().startswith(before)
    after = rows.load(path)[0]
    assert kept <= rows.finished(after)
    assert len([r for r in after if r["experiment"] == "scalar"]) == 8


# Measuring.


def test_every_phase_is_timed():
    def work(lap):
        time.sleep(0.004)
        lap()
        time.sleep(0.008)
        lap()

    first, second = Stopwatch(CPU)(work)
    assert first >= 4
    assert second >= 8
    samples = in_turns({"a": work, "b": work}, CPU, seconds=0.05)
    assert samples.keys() == {"a", "b"}
    table = milliseconds(samples["a"], ("forward", "backward"))
    assert table.keys() == {"forward", "backward", "total"}
    for median, low, high in table.values():
        assert 0 < low <= median <= high
    assert table["total"][0] >= 12


def test_turns_are_taken():
    order = []
    runs = {
        name: lambda lap, name=name: (order.append(name), time.sleep(0.003), lap()) for name in "ab"
    }
    samples = in_turns(runs, CPU, seconds=10, most=3)
    assert "".join(order) == "ab" * 4  # the first warms up
    assert len(samples["a"]) == 3


def test_who_is_slow_is_measured_once():
    runs = {
        "slow": lambda lap: (time.sleep(0.05), lap()),
        "fast": lambda lap: (time.sleep(0.001), lap()),
    }
    samples = in_turns(runs, CPU, seconds=0.02)
    assert len(samples["slow"]) == 1
    assert len(samples["fast"]) >= 3


def problem(root="sqrt"):
    a = random_spd(6, 3, cond=100, dtype=torch.float32)
    return Problem(a, torch.eye(6).expand(3, 6, 6), root)


@pytest.mark.parametrize("root", ["sqrt", "inv_sqrt"])
def test_the_gate_lets_the_right_root_pass(root):
    given = problem(root)
    function = matroot.sqrtm if root == "sqrt" else matroot.inv_sqrtm
    found = judged(given, lambda: once(function, given.a, given.g), truncated=False)
    assert found["passed"]
    assert found["error"] < 1e-6
    assert found["gradient_error"] < 1e-5
    assert found["why"] is None
    assert given.cond == pytest.approx(100, rel=1e-3)


@pytest.mark.parametrize(
    ("wrong", "truncated", "why"),
    [
        (lambda s: 1.001 * s, False, "error 1.0e-03, allowed"),
        (lambda s: 1.2 * s, True, "error 2.0e-01, allowed 1.0e-01"),
        (lambda s: s * math.nan, True, "not finite"),
        (lambda s: 1 / 0, False, "raises ZeroDivisionError: division by zero"),
        (lambda s: s[:, :2], False, "shape (3, 2, 6), expected (3, 6, 6)"),
    ],
)
def test_the_gate_stops_what_is_wrong(wrong, truncated, why):
    given = problem()
    found = judged(given, lambda: (wrong(given.value), None), truncated=truncated)
    assert found["passed"] is False
    assert why in found["why"]


def test_a_truncated_method_may_be_an_approximation():
    given = problem()
    found = judged(given, lambda: (1.05 * given.value, None), truncated=True)
    assert found["passed"]
    assert found["gate"] == APPROXIMATE


def test_a_gradient_that_is_not_finite_is_told():
    given = problem()
    found = judged(given, lambda: (given.value, given.value * math.nan), truncated=False)
    assert found["passed"]
    assert found["why"] == "gradient not finite"


def test_failures_are_kept_and_timed():
    given = problem()
    candidates = {
        "right": Candidate(matroot.sqrtm),
        "wrong": Candidate(lambda a: 1.5 * matroot.sqrtm(a)),
        "broken": Candidate(lambda a: a.no_such_method()),
    }
    found = {r["candidate"]: r for r in side_by_side(given, candidates, QUICK)}
    assert found["right"]["passed"]
    assert not found["wrong"]["passed"]
    assert found["wrong"]["ms"]["total"][0] > 0
    assert found["broken"]["ms"] is None
    assert "AttributeError" in found["broken"]["why"]


# The paper.


def test_the_smallest_headline_case():
    case = paper.headline(QUICK)[0]
    found = {r["candidate"]: r for r in case.measure()}
    assert case.fields["batch"], case.fields["n"] == (1, 64)
    assert found.keys() >= {"SVD", "SVD-Clip", "SVD-Taylor", "SVD-Padé", "SVD-PI", "eigh"}
    assert found.keys() >= {"NS, published", "NS", "MPA-Lya", "MTP-Lya", "matroot"}
    assert found["matroot"]["passed"]
    assert found["eigh"]["passed"]
    assert not found["MTP-Lya"]["passed"]  # two thirds off at κ = 100
    assert all(set(r["ms"]) == {"forward", "backward", "total"} for r in found.values())


def test_all_experiments_of_the_paper_are_there():
    headline = {(c.fields["batch"], c.fields["n"]) for c in paper.headline(Settings(CPU))}
    assert headline == {(1, 64), (64, 48), (256, 256), (10, 64), (16, 128), (4, 256)}
    for make in paper.EXPERIMENTS.values():
        found = make(Settings(CPU))
        assert found
        assert len({case.key(QUICK) for case in found}) == len(found)


def headline_rows(**milliseconds):
    shape = {"experiment": "headline", "application": "second-order vision transformer"}
    shape |= {"batch": 64, "n": 48, "case": "headline 64"}
    return [
        row(name, **shape, ms={"total": [t, t, t], "forward": [t, t, t], "backward": [t, t, t]})
        for name, t in milliseconds.items()
    ]


def test_claims_follow_the_rows():
    fast = headline_rows(**{"NS, published": 10, "SVD-Taylor": 100, "MPA-Lya": 3, "MTP-Lya": 2})
    slow = headline_rows(**{"NS, published": 2, "SVD-Taylor": 2, "MPA-Lya": 3, "MTP-Lya": 4})
    for found, expected in ((fast, "confirmed"), (slow, "refuted")):
        verdicts = {c.statement: c.verdict for c in claims.claims(found)}
        for statement in ("MPA is faster than SVD", "MPA is faster than NS as published"):
            assert verdicts[statement] == expected
        assert verdicts["MTP is faster than MPA"] == expected
        ratio = next(v for s, v in verdicts.items() if s.startswith("At 64×48×48"))
        assert ratio == expected
    assert not any("eigh" in c.statement for c in claims.claims(fast))


def test_claims_of_speed_leave_out_who_failed():
    found = headline_rows(matroot=2, eigh=5, PI=1)
    found[2]["passed"] = False
    verdicts = [c for c in claims.claims(found) if c.statement.startswith("Not of the paper")]
    assert [c.verdict for c in verdicts] == ["confirmed", "refuted"]
    assert "2.5× (eigh)" in verdicts[0].evidence
    assert "0.5× (PI)" in verdicts[1].evidence


def test_a_figure_that_is_off_is_told():
    wrong = row("MPA", experiment="mae", n=16, mae=0.05)
    assert [within for *_, within in claims.agreement([wrong])] == [False]
    assert [within for *_, within in claims.agreement([{**wrong, "mae": 0.0417}])] == [True]


# The report.


def page_of(found, folder, complaints=()):
    report.write(found, list(complaints), folder)
    return (folder / "index.html").read_text(), (folder / "report.md").read_text()


def test_a_failed_root_is_shown_as_failed_also_in_the_plot(tmp_path):
    good, bad = row(), row("other", error=0.5, passed=False, why="error 5.0e-01, allowed 1.0e-05")
    html, markdown = page_of([good, bad], tmp_path)
    assert "1, 1× FAILED" in html
    assert "FAILED" in markdown
    svg = (tmp_path / "plots/speed-4x8-error.svg").read_text()
    assert "failed its accuracy gate" in svg
    html, _ = page_of([good, row("other")], tmp_path / "all good")
    svg = (tmp_path / "all good/plots/speed-4x8-error.svg").read_text()
    assert "failed its accuracy gate" not in svg


def test_what_is_not_finite_is_named_below_the_plot(tmp_path):
    lost = row("other", error=None, passed=False, why="not finite")
    html, markdown = page_of([row(), lost], tmp_path)
    assert "Not drawn: other (not finite)" in html
    assert "Not drawn: other (not finite)" in markdown


def test_the_page_is_one_file_and_harmless(tmp_path):
    evil = '<script>alert(1)</script>|`"'
    found = [
        row(evil, why=evil, version=evil),
        row(
            evil,
            experiment="capability",
            probe="x",
            case="capability x",
            question=evil,
            answer="n",
            why=evil,
        ),
    ]
    html, markdown = page_of(found, tmp_path, [evil])
    for text in (html, markdown):
        assert "<script" not in text
        assert "&lt;script&gt;" in text
    assert not re.search(r'(src|href)="(?!data:image/svg|#)', html)
    assert "@import" not in html
    assert 'name="viewport"' in html
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert all(re.search(r"(?<!\\)\|\s*$", line) for line in lines)


def test_every_plot_is_there_three_times(tmp_path):
    found = [row(), row("other", ms={"forward": [3.0, 2.9, 3.1]})]
    html, markdown = page_of(found, tmp_path)
    names = sorted(path.stem for path in (tmp_path / "plots").glob("*.svg"))
    assert names == ["speed-4x8-error", "speed-4x8-gradient_error"]
    assert names == sorted(path.stem for path in (tmp_path / "plots").glob("*.png"))
    assert html.count("data:image/svg+xml") == 2
    assert all(f"(plots/{name}.svg)" in markdown for name in names)
    origin = rows.provenance(CPU)
    for text in (html, (tmp_path / "plots/speed-4x8-error.svg").read_text()):
        assert origin["torch"].split("+")[0] in text
        assert f"{origin['threads']} threads" in text


def test_environments_are_kept_apart(tmp_path):
    other = row(device_name="Another One", ms={"forward": [9.0, 9.0, 9.0]})
    html, _ = page_of([row(), other, row(quick=True)], tmp_path)
    assert html.count("<h2") == 3
    assert "2. Another One" in html
    assert html.count("A look, not a result") == 1
    assert (tmp_path / "plots/speed-4x8-error-3.svg").exists()


def test_the_same_rows_give_the_same_report(tmp_path):
    for name in "ab":
        page_of([row(measured="then")], tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    for path in files:
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_the_report_tells_how_far_it_is(tmp_path):
    steps = []
    written = report.write(
        [row(measured="then")], [], tmp_path, progress=lambda *step: steps.append(step)
    )
    plots = sum(path.suffix == ".svg" for path in written)
    assert plots > 0
    assert steps == [(i, plots) for i in range(plots + 1)]


def test_nothing_to_report(tmp_path):
    with pytest.raises(ValueError, match="no rows"):
        report.write([], [], tmp_path)


# Comparing.


def test_only_what_leaves_the_noise_counts():
    before = row(ms={"forward": [10, 9, 11], "backward": [10, 9, 11], "total": [10, 9, 11]})
    after = row(ms={"forward": [5, 4.5, 5.5], "backward": [10.5, 9, 12], "both": [1, 1, 1]})
    forward, backward = compare.changes([before], [after, row("unknown")])
    assert (forward.verdict, forward.ratio) == ("faster", 0.5)
    assert (forward.low, forward.high) == (4.5 / 11, 5.5 / 9)
    assert backward.verdict == "within noise"
    assert compare.changes([after], [before])[0].verdict == "slower"
    assert compare.mean_ratio([forward, forward]) == pytest.approx(0.5)


def test_gates_that_changed():
    failed = row(passed=False, why="error 1")
    assert "fails its gate now (error 1)" in compare.changed_gates([row()], [failed])[0]
    assert "passes its gate now" in compare.changed_gates([failed], [row()])[0]
    assert compare.changed_gates([row()], [row()]) == []


# The command line.


def test_a_run_a_report_and_a_comparison(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(["bench", "paper", "--quick", "--only", "convergence, scalar,lyapunov"])
    assert result.exit_code == 0, result.output
    assert "Eight iterations" in result.output
    path = tmp_path / "bench/paper-cpu-quick.jsonl"
    with path.open("a") as file:
        file.write("no row\n")
    result = run(["bench", "report"])
    assert result.exit_code == 0, result.output
    assert "plots" in result.stderr
    assert "plots ━" not in result.stdout
    number = path.read_text().count("\n")
    assert f"line {number}: skipped" in result.output.replace("\n", "")
    assert f"line {number}: skipped" in (tmp_path / "bench/report/index.html").read_text()
    result = run(["bench", "compare", str(path), str(path)])
    assert result.exit_code == 0, result.output
    assert "0 faster, 0 slower" in result.output
    assert "geometric mean of B over A 1.000" in " ".join(result.output.split())


def test_ctrl_c_keeps_what_is_done(tmp_path, monkeypatch):
    log = []
    monkeypatch.setitem(paper.EXPERIMENTS, "mae", lambda settings: counted("xyz", log, fail_at="y"))
    path = tmp_path / "rows.jsonl"
    result = run(["bench", "paper", "--quick", "--only", "mae", "-o", str(path)])
    assert result.exit_code == 130
    assert "the same command goes on from there" in result.output.replace("\n", " ")
    assert len(rows.load(path)[0]) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paper", "--only", "speeed"], "unknown speeed; known: headline, batch"),
        (["paper", "--device", "cuda"], "no CUDA device"),
        (["report", "missing.jsonl"], "missing.jsonl"),
        (["report"], "no files of rows"),
        (["compare", "a.jsonl", "a.jsonl"], "no timed case"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, arguments, message):
    (tmp_path / "a.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["matroot", "bench", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    # Python prints this and returns 1.
    assert message in ended.value.code
    assert ended.value.code.startswith("matroot: ")
    assert "\n" not in ended.value.code


def test_fresh_keeps_the_old_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.append(path, [row(torch="1.0")])
    options = ["bench", "paper", "--quick", "--only", "convergence", "-o", str(path)]
    refused = run(options)
    assert isinstance(refused.exception, ValueError)
    assert "torch 1.0 there" in str(refused.exception)
    assert run([*options, "--fresh"]).exit_code == 0
    assert rows.load(tmp_path / "rows.1.jsonl")[0][0]["torch"] == "1.0"
    assert len(rows.load(path)[0]) == 3


class FakeEvent:
    """A CUDA event on the clock of the host, in a world where a millisecond passes a record."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self, stream):
        FakeEvent.now += 1.0
        self.time = FakeEvent.now

    def elapsed_time(self, end):
        return end.time - self.time


def test_a_gpu_is_timed_by_its_events(monkeypatch):
    synchronized = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "stream")
    monkeypatch.setattr(torch.cuda, "synchronize", synchronized.append)

    def work(lap):
        lap()
        FakeEvent.now += 5.0
        lap()

    device = torch.device("cuda")
    assert Stopwatch(device)(work, 3) == [1.0, 6.0]
    assert synchronized == [device, device]  # before the first event and after the last
