"""``matroot bench hard``: its families, its truth, its rules, and the campaign at small size."""

import collections
import fractions
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench.examples import run
from matroot import spd
from matroot.bench import hard, hard_balls, hard_cases, hard_report, hard_run, rows
from matroot.bench.hard import Subject
from matroot.bench.hard_families import FAMILIES, Draw, matrices
from matroot.bench.hard_truth import Results, by_eigh, by_residuals, hermitian, product
from matroot.bench.scale_report import markdown
from matroot.terminal import one_line
from matroot.testing import exact, random_spd, relative_error

NATIVE = Subject("auto", "native", 0)
ROOT = Path(__file__).parents[2]
FILES = Path(__file__).parent / "hard_violations"
VIOLATIONS = sorted(FILES.iterdir())
DTYPES = (torch.float32, torch.float64, torch.float16, torch.complex64)


def eigenvalues(a):
    return torch.linalg.eigvalsh(spd.hermitian_part(spd.in_double(a)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_are_hermitian_finite_and_the_same_again(family, dtype):
    for n in (1, 2, 5, 40):
        draw = Draw(70, n, dtype, 3)
        a = matrices(family, draw)
        assert a.shape == (70, n, n)
        assert a.dtype == dtype
        assert a.isfinite().all()
        assert torch.equal(a, matrices(family, draw))
        skew = (a - a.mH).abs().amax((-2, -1))
        assert (skew <= (1e-2 if dtype == torch.float16 else 1e-3) * spd.max_abs(a)).all()
        assert (skew == 0).all() or family == "asymmetric"


def drawn(family, dtype=torch.float32, n=12, count=200):
    return matrices(family, Draw(count, n, dtype, 1))


def test_families_are_what_they_say():
    u, n = 2.0**-23, 12
    for family in ("log", "outlier", "graded"):
        values = eigenvalues(drawn(family))
        cond = values[:, -1] / values[:, 0].clamp(min=1e-12)
        assert cond.min() < 10
        assert cond.max() > 1 / u
    clusters = eigenvalues(drawn("clusters", torch.float64))
    assert ((clusters.diff(dim=1) > 1e-12).sum(1) <= 3).all()
    for family in ("rank-deficient", "samples"):
        values = eigenvalues(drawn(family))
        assert (values[:, 0].abs() < 2 * n * u * values[:, -1].clamp(min=1e-30)).all()
    blocks = drawn("blocks")
    assert (blocks == 0).any(-1).any(-1).float().mean() > 0.5
    zero = (drawn("zero rows") == 0).all(-1)
    assert zero.any(-1).all()
    assert (drawn("minij").abs() * n).amax() <= n * (1 + 0.1)
    assert torch.equal(drawn("integers").round(), drawn("integers"))
    assert (drawn("diagonal") - torch.diag_embed(drawn("diagonal").diagonal(0, 1, 2)) == 0).all()
    ties = eigenvalues(drawn("ties"))
    assert (ties.unique(dim=1).shape[1] > 2) or ties.numel()
    assert ((ties[:, : n // 2].amax(1) - ties[:, 0]) < 1e-14).all()
    tiny = torch.finfo(torch.float32).tiny
    assert spd.max_abs(drawn("denormals")).min() < tiny
    assert spd.max_abs(drawn("overflow")).min() > torch.finfo(torch.float32).max / 17
    values = eigenvalues(drawn("indefinite"))
    share = -values[:, 0] / values[:, -1] / (n * u)
    assert share.min() < 0.1
    assert share.max() > 10
    skew = drawn("asymmetric")
    assert ((skew - skew.mH).abs().amax((-2, -1)) > 0).all()


def test_one_unit_in_the_last_place():
    a = drawn("ulp", torch.float32)
    # Of the known matrices, before the perturbation, all entries are whole numbers.
    whole = a.round()
    off = (a - whole).abs()
    exponent = torch.frexp(whole).exponent
    place = torch.ldexp(torch.full_like(a, torch.finfo(torch.float32).eps / 2), exponent)
    assert ((off == 0) | (off == place)).all()
    assert (off > 0).any(-1).any(-1).all()
    assert torch.equal(a, a.mT)


def test_special_matrices():
    i = torch.arange(6.0, dtype=torch.float64)
    known = {
        "hilbert": 1 / (i[:, None] + i + 1),
        "minij": (torch.minimum(i[:, None], i) + 1) / 6,
        "pascal": torch.tensor(
            [[math.comb(i + j, i) / 252 for i in range(6)] for j in range(6)], dtype=torch.float64
        ),
        "lehmer": (torch.minimum(i[:, None], i) + 1) / (torch.maximum(i[:, None], i) + 1),
    }
    for family, expected in known.items():
        a = drawn(family, torch.float64, n=6)
        # Half of them have no ridge; signs and order are drawn.
        found = a.abs().flatten(1).sort(1).values
        same = (found - expected.flatten().sort().values).abs().amax(1) < 1e-15
        assert 0.3 < same.float().mean() < 0.7


@pytest.mark.parametrize("double", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("n", [1, 3, 17])
def test_products_to_70_bits(n, double):
    generator = torch.Generator().manual_seed(n)
    x, y = torch.randn(2, 2, n, n, dtype=double, generator=generator).unbind()
    # Graded, as roots of hard matrices are.
    x = x * torch.logspace(0, -6, n, dtype=torch.float64)[:, None]
    high, low = product(x, y)

    def entries(a):
        parts = a[0].tolist()
        f = fractions.Fraction
        return [[(f(z.real), f(z.imag)) for z in map(complex, row)] for row in parts]

    (x, y), (high, low) = map(entries, (x, y)), map(entries, (high, low))
    for i in range(n):
        for j in range(n):
            terms = [(x[i][k], y[k][j]) for k in range(n)]
            re = sum(a[0] * b[0] - a[1] * b[1] for a, b in terms)
            im = sum(a[0] * b[1] + a[1] * b[0] for a, b in terms)
            size = sum((abs(a[0]) + abs(a[1])) * (abs(b[0]) + abs(b[1])) for a, b in terms)
            for part, truth in enumerate((re, im)):
                assert abs(high[i][j][part] + low[i][j][part] - truth) <= size * n / 2**70
                assert abs(low[i][j][part]) <= size * n / 2**17


def test_the_hermitian_part_is_exact():
    a = torch.randn(1, 3, 3, dtype=torch.float64)
    high, low = hermitian(a)
    for i in range(3):
        for j in range(3):
            f = fractions.Fraction
            found = f(high[0, i, j].item()) + f(low[0, i, j].item())
            assert found == (f(a[0, i, j].item()) + f(a[0, j, i].item())) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_both_truths_agree_on_single_precision(dtype):
    a = random_spd(7, 20, cond=1e4, dtype=dtype)
    found = hard.compute(a, Subject("auto", "torch", 0))
    g = spd.in_double(hard.cotangent(7, dtype, 0))
    results = Results(*(spd.in_double(getattr(found, name)) for name in hard._ERRORS))
    first, second = (f(spd.in_double(a), g, results) for f in (by_eigh, by_residuals))
    for name, expected in vars(first).items():
        if name not in ("least", "sqrt_change", "inv_change"):
            torch.testing.assert_close(getattr(second, name), expected, rtol=0.01, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("cond", [1e1, 1e6, 1e10])
def test_errors_in_double_precision_beside_certified_ones(cond, dtype):
    a = random_spd(5, cond=cond, dtype=dtype)
    found = hard.compute(a[None], Subject("auto", "torch", 0))
    t = hard.truth(a[None], found, 0)
    certified = hard_balls.enclosed(a)
    for error, x, root in (
        (t.sqrt_error, found.sqrt, "sqrt"),
        (t.inv_error, found.inv_sqrt, "inv_sqrt"),
    ):
        low, high = certified.error(x[0], root)
        assert high < low * (1 + 1e-9)
        assert float(error) == pytest.approx(high, rel=1e-3)


def test_balls_hold_a_known_root_and_refuse_an_indefinite_matrix():
    s = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    low, high = hard_balls.enclosed(s @ s).error(s, "sqrt")
    assert high < 1e-100
    assert hard_balls.enclosed(s @ s).error(1.25 * s, "sqrt") == pytest.approx((0.25, 0.25))
    with pytest.raises(ValueError, match="not certified"):
        hard_balls.enclosed(torch.diag(torch.tensor([1.0, -1e-7])))
    assert low == 0


def test_blocks_are_the_same_and_mostly_small_and_of_the_default():
    assert hard.block(0, 5) == hard.block(0, 5) != hard.block(1, 5)
    found = list(hard.blocks(0, 3_000_000))
    assert sum(b.draw.count for b in found) == 3_000_000
    share = collections.Counter()
    for b in found:
        share["small"] += b.draw.count * (b.draw.n <= 32)
        default = (b.subject.method, b.subject.backend) == ("auto", "native")
        share["default"] += b.draw.count * default
    assert share["small"] / 3e6 == pytest.approx(0.9, abs=0.02)
    assert share["default"] / 3e6 == pytest.approx(0.83, abs=0.05)
    assert {b.family for b in found} == set(FAMILIES)
    assert {b.draw.dtype for b in found} >= {torch.bfloat16, torch.complex128}
    assert {b.subject.method for b in found} == set(hard.METHOD_OPTIONS)


def planted(monkeypatch, change):
    """Have ``compute`` return something else; ``change`` is given A and what was computed."""
    right = hard.compute

    def wrong(a, subject):
        found = right(a, subject)
        change(a, found)
        return found

    for module in (hard, hard_cases):
        monkeypatch.setattr(module, "compute", wrong)


def one_in_a_thousand(a, found):
    """Where the first entry is large, S is off by 1e-3."""
    found.sqrt[a[:, 0, 0] > 0.5] *= 1.001


def test_a_planted_fault_is_found_saved_minimised_and_replayed(monkeypatch, tmp_path):
    a = random_spd(9, 60, cond=10)
    a[17] *= 3 / a[17, 0, 0]
    a[[i for i in range(60) if i != 17]] *= 0.1
    with monkeypatch.context() as patch:
        planted(patch, one_in_a_thousand)
        seen = hard.examine(a, NATIVE)
        for kind in ("root wrong", "root beyond LAPACK's threshold", "bound of S below error"):
            assert seen.violations[kind].nonzero().flatten().tolist() == [17]
        origin = {"seed": 0, "block": 4, "family": "log"}
        case = next(hard_cases.cases(a, NATIVE, seen, origin))
        # One matrix of one row is left of it.
        assert case.a.shape == (1, 1, 1)
        path = hard_cases.save(case, tmp_path)
        again = hard_cases.load(path)
        assert torch.equal(again.a, case.a)
        assert replace(again, a=case.a) == case
        replayed = hard_cases.replay(again)
        assert replayed.findings.violations["root wrong"].all()
        assert replayed.certified["sqrt"] == pytest.approx((1e-3, 1e-3), rel=1e-6)
        result = run(["bench", "hard", "--replay", str(path)])
        assert result.exit_code == 1
        assert "broken: root wrong" in result.output
    result = run(["bench", "hard", "--replay", str(path)])
    assert result.exit_code == 0
    assert "no rule is broken now" in result.output


def test_planted_faults_of_other_kinds(monkeypatch):
    a = random_spd(6, 30, cond=100)
    a[3] = a[3] - 2 * torch.eye(6, dtype=a.dtype)
    a[4, :, 2] = a[4, 2, :] = 0

    def seen(change):
        with monkeypatch.context() as patch:
            planted(patch, change)
            return {k: v.nonzero().flatten().tolist() for k, v in examined().violations.items()}

    def examined():
        return hard.examine(a, NATIVE)

    def set_nan(_, found):
        found.sqrt[5:6] = torch.nan

    def set_root(_, found):
        found.sqrt[3:4] = torch.eye(6, dtype=a.dtype)

    def set_inverse(_, found):
        found.inv_sqrt[4:5] = torch.eye(6, dtype=a.dtype)

    def by_position(_, found):
        found.sqrt[0:1] *= 1 + 1e-15

    def transposed(_, found):
        found.sqrt[7:8, 0, 1] += 1e-12

    def negative(_, found):
        found.sqrt[8:9] *= -1

    def gradient(_, found):
        found.gradient[9:10] *= 1 + 1e-9
        found.inv_gradient[10:11] *= 1 + 1e-9

    def inverse(_, found):
        found.inv_sqrt[11:12] *= 1 + 1e-10

    def residual(_, found):
        found.sqrt[12:13] *= 1 + 1e-6
        found.converged[12:13] = False

    assert examined().violations == {}
    assert seen(set_nan)["no root"] == [5]
    assert seen(set_root)["root where there is none"] == [3]
    assert seen(set_inverse)["inverse root where there is none"] == [4]
    assert 0 in seen(by_position)["other company, other result"]
    assert seen(transposed)["root not Hermitian"] == [7]
    assert seen(negative)["root wrong"] == [8]
    assert seen(gradient)["gradient wrong"] == [9]
    assert seen(gradient)["gradient of the inverse wrong"] == [10]
    assert seen(inverse)["inverse root wrong"] == [11]
    assert seen(residual)["residual untrue"] == [12]

    def raises(*_):
        raise RuntimeError("planted")

    assert list(seen(raises)) == ["raised RuntimeError"]


def test_overflow_of_a_result_is_no_difference(monkeypatch):
    """Of a method that is only the same to rounding; inf − inf is NaN."""
    a = torch.tensor([[1e-5, 0.0], [0.0, 0.01]], dtype=torch.float16).expand(2, 2, 2)
    subject = Subject("svd", "torch", 0)
    found = hard.compute(a, subject)
    assert found.inv_gradient.isinf().any()
    unit = hard.units(hard.truth(a, found, 0), 2, torch.finfo(torch.float32).eps)

    def differs(x):
        monkeypatch.setattr(hard, "compute", lambda *_: replace(found, inv_gradient=x))
        return hard._differs(a, subject, found, 2, unit).all()

    assert not differs(found.inv_gradient * (1 + 2**-10))
    assert differs(found.inv_gradient.nan_to_num(posinf=-1.0, neginf=1.0))


WRONG = {
    "kind": (None, 3, [], {}, "\x1b[2J"),
    "dtype": (None, 3, [], {}, "int32", "float8_e4m3fn", "nn", "Tensor"),
    "shape": (
        *(None, "x", 4, [], [4], [2, 2], [1, 1, 2, 2], [1, 4, 1], [0, 2, 2], [1, 0, 0]),
        *([-1, 2, 2], [1, 2.0, 2], [True, 2, 2], [2, 2, 2], [1, 10**9, 10**9]),
    ),
    "bits": (None, 3, [], "zz", "0", "", "00" * 16 + " x", "0000c07f" * 4, "0000807f" * 4),
    "method": (None, 3, [], {}, "nope"),
    "backend": (None, 3, [], {}, "auto", "triton"),
    "cotangent": (None, "x", 1.5, [], {}, -1, True, 2**64, math.inf),
    "origin": (None, "x", 3, [], {"seed": "\x9b2J"}, {"\x00": 1}),
    "seen": (None, "x", 3, [], {"sqrt_error": "x"}, {"sqrt_error": True}, {"x": math.inf}),
}


@pytest.mark.parametrize(
    ("name", "value"), [(k, x) for k, values in WRONG.items() for x in values], ids=str
)
def test_a_file_of_wrong_content_is_named(tmp_path, name, value):
    good = hard_cases.Case("x", torch.eye(2)[None], NATIVE, {"seed": 0, "block": 0, "index": 0}, {})
    path = hard_cases.save(good, tmp_path)
    content = json.loads(path.read_text())
    hard_cases.load(path)
    path.write_text(json.dumps({**content, name: value}))
    with pytest.raises(ValueError, match="holds no violation of matroot bench hard: ") as found:
        hard_cases.load(path)
    assert str(found.value).startswith(str(path))
    assert one_line(str(found.value)) == str(found.value)


def test_what_balls_cannot_hold_is_replayed_without_them():
    a = torch.tensor([[1e-235, 1e-33], [1e-33, 1e223]], dtype=torch.float64)
    with pytest.raises(ZeroDivisionError):
        hard_balls.enclosed(a)
    assert hard_cases.replay(hard_cases.Case("x", a[None], NATIVE, {}, {})).certified is None


@pytest.mark.parametrize(
    "text", ["", "{", "{}", "[]", "null", "[" * 100_000, '{"kind": ' * 100_000, "\xff"]
)
def test_a_file_that_holds_no_violation(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="holds no violation"):
        hard_cases.load(path)


def test_a_folder_holds_no_violation(tmp_path):
    result = run(["bench", "hard", "--replay", str(tmp_path)])
    assert "holds no violation" in str(result.exception)


def test_infinite_ratios_are_saved_as_null(tmp_path):
    seen = {"a": math.inf, "b": math.nan, "c": 1e301, "d": 2.0}
    case = hard_cases.Case(
        "x", torch.eye(2)[None], NATIVE, {"seed": 0, "block": 0, "index": 0}, seen
    )
    path = hard_cases.save(case, tmp_path)
    assert hard_cases.load(path).seen == {**dict.fromkeys("abc"), "d": 2.0}
    assert run(["bench", "hard", "--replay", str(path)]).exit_code == 0


def test_histograms_keep_the_maximum_and_add_up():
    x = torch.tensor([1.0, 1.1, 50.0, 0.0, torch.nan], dtype=torch.float64)
    found = hard.histogram(x)
    assert found["count"] == 4
    assert found["max"] == 50
    assert found["bins"]["0"] == 2
    row = {"candidate": "matroot", "matrices": 5, "ratios": {"sqrt_ratio": found}, "violations": {}}
    (total,) = hard_report.summed([row, row], ("candidate",))
    histogram = total["ratios"]["sqrt_ratio"]
    assert histogram["count"] == 8
    assert hard_report.quantile(histogram, 0.99) == 50
    assert 1 <= hard_report.quantile(histogram, 0.5) <= 10**0.1
    assert hard_report.quantile(None, 0.5) is None


def test_a_campaign_goes_on_where_it_was(tmp_path):
    path, folder = tmp_path / "rows.jsonl", tmp_path / "violations"
    list(hard_run.run(3, 600, path, folder, minutes=0))
    assert not path.exists()
    steps = hard_run.run(3, 600, path, folder)
    for _ in range(4):
        next(steps)
    steps.close()
    begun = path.read_text()
    assert len(hard_report.summed(rows.load(path)[0], ("block",))) == 3
    last = list(hard_run.run(3, 600, path, folder))[-1]
    assert last.done == last.total == 600
    assert path.read_text().startswith(begun)
    found = rows.load(path)[0]
    assert sum(row["matrices"] for row in rows.pick(found, candidate="matroot")) == 600
    complete = path.read_text()
    list(hard_run.run(3, 600, path, folder))
    assert path.read_text() == complete
    rows.append(path, [{**found[0], "commit": "another", "case": "another"}])
    with pytest.raises(ValueError, match="measured elsewhere"):
        list(hard_run.run(3, 600, path, folder))


def test_another_seed_goes_on_in_no_rows_of_the_first(tmp_path):
    path, folder = tmp_path / "rows.jsonl", tmp_path / "violations"
    for seed in (0, 1):
        for _ in range(2):
            list(hard_run.run(seed, 1, path, folder))
    own = rows.pick(rows.load(path)[0], candidate="matroot")
    sizes = [next(hard.blocks(seed, 1)).draw.n for seed in (0, 1)]
    assert sizes[0] != sizes[1]
    assert [row["n"] for row in own] == sizes


def test_ten_thousand_matrices(tmp_path):
    path = tmp_path / "hard.jsonl"
    result = run(["bench", "hard", "--quick", "-o", str(path)])
    assert result.exit_code == 0, result.output
    assert not (tmp_path / "hard-violations").exists()
    found = rows.load(path)[0]
    own = rows.pick(found, candidate="matroot")
    assert sum(row["matrices"] for row in own) == 10_000
    assert {row["family"] for row in own} == set(FAMILIES)
    assert {row["candidate"] for row in found} > {"matroot", "torch eigh", "scipy sqrtm"}
    tables = hard_report.tables(found)
    assert all(table.body for table in tables.values())
    assert hard_report.plot(found).figure.axes
    # JSON, and small.
    assert all(len(json.dumps(row)) < 20_000 for row in own)


@pytest.mark.slow
def test_a_hundred_thousand_matrices_by_two_processes(tmp_path):
    path = tmp_path / "hard.jsonl"
    arguments = ["bench", "hard", "--matrices", "1e5", "--seed", "1", "--processes", "2"]
    result = run([*arguments, "-o", str(path)])
    assert result.exit_code == 0, result.output
    own = rows.pick(rows.load(path)[0], candidate="matroot")
    assert sum(row["matrices"] for row in own) == 100_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_error_of_a_wrong_root_is_measured(dtype):
    a = random_spd(6, 4, cond=100, dtype=dtype)
    found = hard.compute(a, NATIVE)
    found.sqrt = found.sqrt + 1e-3 * torch.eye(6, dtype=dtype)
    t = hard.truth(a, found, 0)
    torch.testing.assert_close(
        t.sqrt_error, relative_error(found.sqrt, exact(a)), rtol=2e-3, atol=0
    )


def test_the_page_is_made_of_its_rows():
    recorded, complaints = rows.load(ROOT / "benchmarks/results/hard-cpu.jsonl")
    assert not complaints
    text = (ROOT / "docs/hard.md").read_text(encoding="utf-8")
    for title, table in hard_report.tables(recorded).items():
        start, end = f"<!-- table: {title} -->", f"<!-- end of {title} -->"
        assert text.split(start)[1].split(end)[0].strip() == markdown(table)
    name = hard_report.plot(recorded).name
    assert f"images/{name}.svg" in text
    assert (ROOT / f"docs/images/{name}.svg").exists()


@pytest.mark.parametrize("file", VIOLATIONS, ids=lambda file: file.stem)
def test_what_was_broken_once_is_not_now(file):
    assert not hard_cases.replay(hard_cases.load(file)).findings.violations


def test_the_first_result_of_a_process_has_the_bits_of_the_second():
    # Found as a difference in other company: divide and conquer read memory never written to.
    program = (
        "import sys, pathlib, torch, matroot\n"
        "from matroot.bench import hard_cases\n"
        "torch.set_num_threads(1)\n"
        "a = hard_cases.load(pathlib.Path(sys.argv[1])).a\n"
        "first, second = (matroot.sqrtm_pair(a.clone()) for _ in range(2))\n"
        "assert all(map(torch.equal, first, second))\n"
    )
    path = FILES / "first-of-a-process.json"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, timeout=300)
