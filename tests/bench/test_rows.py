"""Recording rows, and resuming where a run was."""

import json
import math
import re

import pytest
import torch

import matroot
from bench.examples import CPU, QUICK, counted, row
from matroot.bench import cases, hard_report, rows
from matroot.bench.cases import Settings


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


NONE_SENT = {"calls": 0, "messages": 0, "bytes": 0}
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
    json.dumps(row(traffic={"reduce": {"calls": 1}})): "must hold calls, messages, bytes",
    json.dumps(row(loads=[])): "loads must be numbers",
    json.dumps(row()).replace("100.0", "1e999"): "beyond 1e+300",
    json.dumps(row()).replace("100.0", "1" * 400): "beyond 1e+300",
    json.dumps(row(experiment="scalar", curve={"x": [0], "y": [1]})): "must hold positive x",
    json.dumps(row(cond=0)): "'cond' must be positive",
    json.dumps(row(of=10**200)): "'of' must be a whole number",
    json.dumps(row(operation=["reduce"])): "'operation' must be a string",
    json.dumps(row(experiment="map", ranks=2, traffic={})): "the phase 'call'",
    json.dumps(row(experiment="map", ranks=2, traffic={"gossip": NONE_SENT}, ms=None)): "'gossip'",
    json.dumps(
        row(
            experiment="collectives",
            operation="broadcast",
            size=1,
            ms={"call": [1.0, 1.0, 1.0]},
            traffic={"reduce": NONE_SENT},
        )
    ): "must hold the operation, 'broadcast'",
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


HISTOGRAM = {"count": 3, "max": 2.5, "bins": {"-1": 1, "3": 2}}
HARD = {
    **row(experiment="hard", method="auto", backend="native", family="log", matrices=3),
    "failed": 0,
    "violations": {"root wrong": 1},
    "ratios": {"sqrt_ratio": HISTOGRAM},
}
# Fields, and what they must not be.
DAMAGED = {
    "violations": (None, [], 1, {"x": "y"}, {"x": None}, {"x": 1.5}, {"x": -1}, {"x": True}),
    "ratios": (None, "x", *({"sqrt_ratio": x} for x in ("x", None, 1, [1], {}))),
    "matrices": (None, "x", 1.5, -1, True),
    "failed": ("x", [], {}),
    **dict.fromkeys(("method", "backend"), (None, 1, ["auto"], {})),
    **dict.fromkeys(("family", "dtype"), (None, 1, ["log"], {}, "int8")),
}
DAMAGED_HISTOGRAMS = {
    "count": (None, "x", 3.0, -3, 4, True, [3]),
    "max": ("x", -1, True, [2.5], {}),
    "bins": (
        *(None, "x", 3, [3], {}, {"1": "3"}, {"1": None}, {"1": 3.0}, {"1": -1, "2": 4}),
        *({"99999999": 3}, {"a": 3}, {"": 3}, {"1.5": 3}, {" 1": 3}, {"1": 2**63}),
    ),
}


@pytest.mark.parametrize(
    "damage",
    [{name: x} for name, values in DAMAGED.items() for x in values]
    + [
        {"ratios": {"sqrt_ratio": {**HISTOGRAM, name: x}}}
        for name, values in DAMAGED_HISTOGRAMS.items()
        for x in values
    ]
    + [{"ratios": {"inv_ratio": {k: HISTOGRAM[k] for k in ("count", "bins")}}}],
    ids=str,
)
def test_a_damaged_block_of_hard_matrices_is_skipped(tmp_path, damage):
    path = tmp_path / "rows.jsonl"
    rows.append(path, [HARD, {**HARD, "candidate": "x", **damage}])
    found, complaints = rows.load(path)
    assert [r["candidate"] for r in found] == ["matroot"]
    (complaint,) = complaints
    assert f"{path}, line 2: skipped, " in complaint
    assert next(iter(damage)) in complaint


@pytest.mark.parametrize(
    "ratios",
    [{}, {"sqrt_ratio": {"count": 0, "max": None, "bins": {}}}]
    + [{"sqrt_ratio": {**HISTOGRAM, "max": most}} for most in (None, 0, 1e300)],
    ids=str,
)
def test_a_block_without_numbers_to_show_is_reported(tmp_path, ratios):
    # Of a package that raised, of one whose errors are infinite, of exact roots.
    path = tmp_path / "rows.jsonl"
    rows.append(path, [{**HARD, "ratios": ratios}])
    found, complaints = rows.load(path)
    assert complaints == []
    assert hard_report.tables(found)["By dtype and method"].body
    assert hard_report.plot(found).figure.axes


def test_what_is_written_can_be_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows.append(path, [row(error=x) for x in (math.inf, -math.inf, math.nan, 1e301)])
    assert rows.load(path)[1] == []


def test_bytes_that_are_not_text_are_a_corrupt_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xff\xfe{}\n" + json.dumps(row()).encode())
    found, complaints = rows.load(path)
    assert len(found) == 1
    assert "line 1" in complaints[0]


def test_only_the_unfinished_line_is_lost(tmp_path):
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


def test_an_incomplete_case_is_measured_again(tmp_path):
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
