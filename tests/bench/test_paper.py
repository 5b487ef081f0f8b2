"""The experiments of the paper, and its claims."""

from bench.examples import CPU, QUICK, row
from matroot.bench import claims, paper
from matroot.bench.cases import Settings


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


def test_claims_of_speed_leave_out_failed_candidates():
    found = headline_rows(matroot=2, eigh=5, PI=1)
    found[2]["passed"] = False
    verdicts = [c for c in claims.claims(found) if c.statement.startswith("Not of the paper")]
    assert [c.verdict for c in verdicts] == ["confirmed", "refuted"]
    assert "2.5× (eigh)" in verdicts[0].evidence
    assert "0.5× (PI)" in verdicts[1].evidence


def test_a_wrong_figure_is_reported():
    wrong = row("MPA", experiment="mae", n=16, mae=0.05)
    assert [within for *_, within in claims.agreement([wrong])] == [False]
    assert [within for *_, within in claims.agreement([{**wrong, "mae": 0.0417}])] == [True]
