"""Times, and the gate of accuracy."""

import math
import time

import pytest
import torch

import matroot
from bench.examples import CPU, QUICK
from matroot.bench.candidates import Candidate, once, side_by_side
from matroot.bench.measure import APPROXIMATE, Problem, Stopwatch, in_turns, judged, milliseconds
from matroot.testing import random_spd


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


def test_candidates_take_turns():
    order = []
    runs = {
        name: lambda lap, name=name: (order.append(name), time.sleep(0.003), lap()) for name in "ab"
    }
    samples = in_turns(runs, CPU, seconds=10, most=3)
    assert "".join(order) == "ab" * 4  # the first warms up
    assert len(samples["a"]) == 3


def test_slow_candidates_are_measured_once():
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


def test_a_gradient_that_is_not_finite_is_reported():
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


class FakeEvent:
    """A CUDA event for which each record takes a millisecond."""

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
