"""``matroot bench`` on the command line."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from bench.examples import counted, row, run
from matroot import cli
from matroot.bench import hard_run, paper, rows


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["paper", "--only", "speeed"], "unknown speeed; known: headline, batch"),
        (["paper", "--device", "cuda"], "no CUDA device"),
        (["report", "missing.jsonl"], "missing.jsonl"),
        (["report"], "no files of rows"),
        (["report", "."], ".: is a folder; expected a file of rows"),
        (["compare", "a.jsonl", "a.jsonl"], "no timed case"),
        (["paper", "-o", "."], ".: cannot be written (not a regular file)"),
        (["hard", "-o", os.devnull], f"{os.devnull}: cannot be written (not a regular file)"),
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


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes with names")
def test_rows_are_not_written_into_a_pipe(tmp_path, monkeypatch):
    monkeypatch.setattr(hard_run, "run", lambda *_: pytest.fail("work has begun"))
    os.mkfifo(tmp_path / "pipe")
    result = run(["bench", "hard", "-o", str(tmp_path / "pipe")])
    assert "not a regular file" in str(result.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


@pytest.mark.parametrize("matrices", ["nan", "inf", "1e400", "-inf", "0", "1e300"])
def test_a_campaign_is_of_a_number_of_matrices(tmp_path, matrices):
    result = run(["bench", "hard", "--matrices", matrices, "-o", str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 2
    assert "Invalid value for '--matrices'" in result.output


def test_no_time_measures_nothing(tmp_path):
    result = run(["bench", "hard", "--minutes", "0", "-o", str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 0, result.output
    assert "nothing was measured" in result.stdout
    assert "rows in" not in result.stdout
    assert not (tmp_path / "rows.jsonl").exists()


def test_a_damaged_block_is_named_and_measured_again(tmp_path):
    path = tmp_path / "rows.jsonl"
    options = ["bench", "hard", "--matrices", "1", "-o", str(path)]
    assert run(options).exit_code == 0
    first = path.read_text().splitlines()
    path.write_text("\n".join([first[0].replace('"violations": {}', '"violations": {"x": "y"}')]))
    result = run(options)
    assert result.exit_code == 0, result.output
    assert f"{path}, line 1: skipped, violations must be whole numbers" in result.stdout
    assert len(rows.load(path)[0]) == len(first)


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
