"""Recording rows, and resuming where a run was."""

import json
import math
import re

import pytest
import torch

import matroot
from bench.examples import CPU, QUICK, counted, row
from matroot.bench import cases, rows
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
