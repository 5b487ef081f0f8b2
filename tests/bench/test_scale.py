"""``matroot bench scale``: its model, its command at the smallest size, and its page."""

import itertools
import math
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

import matroot
import processes
from bench.examples import CPU, QUICK, run
from matroot.bench import layout, rows, scale, scale_model, scale_report, shampoo
from matroot.bench.scale_model import HugePlan, Link, Traffic, traffic
from matroot.methods import Minimax

ROOT = Path(__file__).parents[2]
ROWS = ROOT / "benchmarks/results/scale-cpu.jsonl"
PAGE = ROOT / "docs/scaling.md"


def test_traffic_of_collectives():
    assert traffic("all_reduce", 1000, 2) == Traffic(2, 1000)
    assert traffic("all_reduce", 1000, 8) == Traffic(14, 1750)
    assert traffic("all_reduce by a tree", 1000, 512) == Traffic(18, 2000)
    assert traffic("all_gather", 1000, 4) == Traffic(3, 3000)
    assert traffic("broadcast", 1000, 6) == Traffic(3, 1000)
    assert traffic("all_gather", 1000, 1) == Traffic(0, 0)
    assert Traffic(1, 10) * 3 + Traffic(2, 1) == Traffic(5, 31)
    assert Link(1e-6, 1e9).seconds(Traffic(5, 2e9)) == pytest.approx(2.000005)


def test_a_link_is_found_from_its_own_times():
    link = Link(3e-5, 2e9)
    sent = [traffic("all_reduce", 4.0**k, ranks) for k in range(5, 13) for ranks in (2, 4)]
    found = scale_model.fitted((t, link.seconds(t)) for t in sent)
    assert found.latency == pytest.approx(3e-5, rel=1e-9)
    assert found.bandwidth == pytest.approx(2e9, rel=1e-9)
    # Neither is negative, whatever the noise.
    assert (
        scale_model.fitted([(Traffic(1, 1000), 2.0), (Traffic(1, 2000), 1.0)]).bandwidth == math.inf
    )
    assert scale_model.fitted([(Traffic(1, 1000), 1.0), (Traffic(1, 2000), 3.0)]).latency == 0


def test_the_plan_for_one_matrix():
    n = 65_536
    plan = HugePlan(n, (2, 4), 21, 67e12)
    assert plan.compute == pytest.approx(21 * 2 * n**3 / 8 / 67e12)
    assert plan.traffic.bytes == pytest.approx(21 * 4 * (n**2 / 2 + n**2 / 4))
    # 64 panels along four processes and along two, as trees.
    assert plan.traffic.messages == 21 * 64 * (2 + 1)
    assert plan.memory == 6 * n**2 / 8 * 4
    assert plan.seconds == (plan.compute, plan.compute + plan.communication)
    # Along one process nothing is sent.
    assert HugePlan(n, (1, 2), 1, 1.0).traffic.bytes == 4 * n**2


def test_the_plan_for_whitening():
    assert scale_model.whitening_bytes(2, 3, 4) == 8 * (2 * (6 + 3) + 1 + 4)
    times = scale_model.all_reduce_over_nodes(50e3, 512)
    ring = (1022 - 126) * 0.47e-6 * 1.8 + 126 * 2.7e-6 + 2 * 511 / 512 * 50e3 / 50e9
    tree = 14 * 0.52e-6 * 1.8 + 12 * 5e-6 + 2 * 50e3 / 50e9
    assert times == pytest.approx({"ring": ring, "tree": tree})
    # Within a machine there is no network.
    ring = 14 * 0.47e-6 * 1.8 + 14 / 8 * 50e3 / 450e9
    assert scale_model.all_reduce_over_nodes(50e3, 8)["ring"] == pytest.approx(ring)


def test_every_published_constant_has_a_source():
    for known in scale_model.PUBLISHED.values():
        assert known.value > 0
        assert re.search("NVIDIA", known.source)


def test_the_layers_are_those_of_the_networks():
    torchvision = pytest.importorskip("torchvision")
    timm = pytest.importorskip("timm")
    for shapes, network in (
        (shampoo.resnet50(), torchvision.models.resnet50()),
        (shampoo.vit_small(), timm.create_model("vit_small_patch16_224")),
    ):
        assert Counter(shapes) == Counter(tuple(p.shape) for p in network.parameters())


def test_blocks_of_parameters():
    assert shampoo.preconditioners((1000, 64)) == [512, 64, 488, 64]
    assert shampoo.preconditioners((64, 3, 7, 7)) == [64, 3, 7, 7]
    drawn = shampoo.sizes(300)
    assert len(drawn) == 300
    assert (min(drawn), max(drawn)) == (1, 512)
    every = [
        n
        for s in itertools.chain(shampoo.resnet50(), shampoo.vit_small())
        for n in shampoo.preconditioners(s)
    ]
    assert not Counter(drawn) - Counter(every)
    assert drawn == shampoo.sizes(300)


def measured(path, only):
    result = run(["bench", "scale", "--quick", "--only", only, "-o", str(path)])
    assert result.exit_code == 0, result.output
    return rows.load(path)[0], result.output


@pytest.mark.slow
def test_the_command_at_its_smallest(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "_started", lambda settings: (2,))
    threads = torch.get_num_threads()
    found, output = measured(tmp_path / "rows.jsonl", "balance,collectives,map")
    assert torch.get_num_threads() == threads
    assert all(row["threads"] == 1 for row in found)
    assert "65,536 rows on 8 H100" in " ".join(output.split())
    collectives = rows.pick(found, experiment="collectives")
    assert len(collectives) == 3 * 6
    assert {row["error"] for row in collectives} == {0.0}
    one, two = rows.pick(found, experiment="map")
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert one["digest"] == two["digest"]
    assert two["passed"]
    assert two["error"] < 1e-5
    assert one["traffic"] == {}
    assert two["traffic"]["all_gather"]["calls"] == 2
    # Half of the triangles, and as many bytes as the fuller half has.
    triangles = 4 * sum(n * (n + 1) // 2 for n in shampoo.sizes(30))
    assert triangles / 2 <= two["traffic"]["all_gather"]["bytes"] - 2048 < 0.6 * triangles
    known = scale_report.links(found)
    assert scale_report.predicted(two, known) > two["local_ms"]
    for row in rows.pick(found, experiment="balance"):
        assert len(row["loads"]) == row["ranks"]
        assert row["spread"] >= 1
    report = tmp_path / "report"
    assert run(["bench", "report", str(tmp_path / "rows.jsonl"), "-o", str(report)]).exit_code == 0
    names = {path.name for path in report.glob("plots/*.svg")}
    assert names == {f"scaling-{name}.svg" for name in ("collectives", "huge", "whitening")}
    assert "Shares of map, one after the other" in (report / "report.md").read_text()
    # What is there is not measured again.
    before = (tmp_path / "rows.jsonl").read_bytes()
    measured(tmp_path / "rows.jsonl", "map")
    assert (tmp_path / "rows.jsonl").read_bytes() == before


def test_whitening_and_one_matrix_in_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "_started", lambda settings: (2,))
    found, _ = measured(tmp_path / "rows.jsonl", "whitening,huge")
    one, two = rows.pick(found, experiment="whitening")
    assert one["error"] == 0
    assert two["error"] < 1e-6
    size = 2 * scale_model.whitening_bytes(1, two["channels"], 2)
    assert two["traffic"] == {
        "all_reduce": {"calls": 2, "messages": 4, "bytes": pytest.approx(size, abs=8 * 3)}
    }
    one, two = rows.pick(found, experiment="huge")
    assert one["traffic"] == {}
    assert two["error"] <= max(one["error"], 1e-6)
    assert one["products"] == two["products"]
    # In rows alone a process gets the rows of others: n² numbers a product at most.
    assert two["traffic"]["broadcast"]["bytes"] <= (two["products"] + 1) * 4 * two["n"] ** 2


def test_cases_name_their_processes():
    made = [case for make in scale.EXPERIMENTS.values() for case in make(scale.Settings(CPU))]
    assert len({case.key(QUICK) for case in made}) == len(made)
    assert {case.fields["ranks"] for case in made if case.experiment == "huge"} == {2, 4, 8}


# The page.


@pytest.fixture(scope="module")
def recorded():
    found, complaints = rows.load(ROWS)
    assert not complaints
    assert len(layout.groups(found)) == 1  # One machine, one version.
    return found


def test_the_tables_of_the_page_are_those_of_its_rows(recorded):
    text = PAGE.read_text(encoding="utf-8")
    for title, table in scale_report.tables(recorded).items():
        start, end = f"<!-- table: {title} -->", f"<!-- end of {title} -->"
        assert text.split(start)[1].split(end)[0].strip() == scale_report.markdown(table)
    for plot in scale_report.plots(recorded):
        assert f"images/{plot.name}.svg" in text
        assert (ROOT / f"docs/images/{plot.name}.svg").exists()


def test_the_model_predicts_the_timed_rows_within_30_per_cent(recorded):
    known = scale_report.links(recorded)
    timed = [row for row in recorded if row.get("local_ms") is not None]
    assert {(row["experiment"], row["ranks"]) for row in timed} == {
        ("map", 1),
        ("map", 2),
        ("whitening", 2),
        ("huge", 1),
        ("huge", 2),
    }
    for row in timed:
        ratio = scale_report.predicted(row, known) / row["ms"]["call"][0]
        assert 0.7 <= ratio <= 1.3, (row["case"], row["candidate"], ratio)


def test_what_the_recorded_rows_hold(recorded):
    assert not any(row["quick"] for row in recorded)
    balance = rows.pick(recorded, experiment="balance")
    assert {row["ranks"] for row in balance} == {2, 3, 4, 8}
    assert max(row["spread"] for row in balance) <= 1.1
    many = rows.pick(recorded, experiment="map")
    assert {row["ranks"] for row in many} == {1, 2, 4, 8}
    assert len({row["digest"] for row in many}) == 1
    assert all(row["passed"] for row in many)
    for row in rows.pick(recorded, experiment="whitening")[1:]:
        assert row["error"] < 1e-6
        assert row["traffic"]["all_reduce"]["calls"] == 2
    for row in rows.pick(recorded, experiment="huge"):
        assert row["error"] < 1e-5


def _page(rank):
    """The page's code, on CPUs and fewer of them."""
    x = torch.randn(16, 24, 96, generator=torch.Generator().manual_seed(0))
    covariances = x @ x.mT / 96
    names = {
        "matroot": matroot,
        "Minimax": Minimax,
        "covariances": covariances,
        "a": covariances[0],
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    for block in blocks:
        for there, here in (("cuda", "cpu"), ("(8,)", "(2,)"), ("(2, 4)", "(1, 2)")):
            block = block.replace(f'"{there}"', f'"{here}"').replace(there, here)
        exec(compile(block, str(PAGE), "exec"), names)
    return [
        len(blocks),
        torch.stack([(x - a).norm() for x, a in zip(*map(names.get, MAPPED), strict=True)]),
        names["whitening"].full_tensor() - matroot.inv_sqrtm(covariances, eps=1e-5),
        names["root"].full_tensor() - matroot.inv_sqrtm(covariances[0], eps=1e-4),
        bool(names["result"].converged.to_local()),
    ]


MAPPED = ("preconditioners", "statistics")


def test_the_code_of_the_page_runs(tmp_path):
    for count, *errors, converged in processes.run(_page, 2, tmp_path):
        assert count == 3
        assert max(float(error.abs().max()) for error in errors) < 1e-5
        assert converged
