"""Whitening of data sets against its definitions, and as a transformer of scikit-learn."""

import copy
import io
import json
import pickle
import warnings

import numpy as np
import pytest
import safetensors.torch
import torch
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator
from torch import nn

from matroot import inv_sqrtm
from matroot.compat import sklearn as compat_sklearn
from matroot.nn import Whitening
from matroot.nn.data_whitening import KINDS
from matroot.statistics import moments
from nn.layers import correlated

kinds = pytest.mark.parametrize("kind", KINDS)


def close(found, expected, tolerance=1e-10):
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@kinds
@pytest.mark.parametrize("correction", [0, 1])
def test_it_whitens_and_comes_back(kind, correction):
    x = correlated(80, 5) * torch.tensor([1.0, 1e2, 1, 1e-2, 1], dtype=torch.float64) + 100
    whitening = Whitening(5, kind=kind, correction=correction).fit(x)
    y = whitening(x)
    close(y.mean(0), torch.zeros(5, dtype=torch.float64), 1e-8)
    close(torch.cov(y.mT, correction=correction), torch.eye(5, dtype=torch.float64), 1e-3)
    back = whitening.inverse_transform(y)
    assert ((back - x) / x.std(0)).abs().max() < 1e-6


def test_the_kinds_are_what_they_say():
    x = correlated(60, 4)
    c = torch.cov(x.mT)
    v, p = c.diagonal().sqrt(), torch.corrcoef(x.mT)
    made = {k: Whitening(4, kind=k).fit(x).whitening_matrix for k in KINDS}
    close(made["zca"], inv_sqrtm(c))
    close(made["zca_cor"], inv_sqrtm(p) / v)
    close(made["cholesky"], torch.linalg.inv(torch.linalg.cholesky(c)))
    assert made["cholesky"].triu(1).eq(0).all()
    for kind, matrix, scale in (("pca", c, 1.0), ("pca_cor", p, v)):
        values, vectors = torch.linalg.eigh(matrix)
        expected = (vectors / values.sqrt()).mT.flip(0) / scale
        close(made[kind].abs(), expected.abs())
        close(made[kind].mT @ made[kind], torch.linalg.inv(c))


def test_correlation_kinds_do_not_depend_on_units():
    x, units = correlated(60, 4), torch.tensor([1e-6, 1.0, 1e3, 1e8], dtype=torch.float64)
    for kind in ("zca_cor", "pca_cor"):
        for options in ({}, {"shrinkage": "oas", "eps": 0.1}):
            first, second = (Whitening(4, kind=kind, **options) for _ in range(2))
            close(second.fit(x * units)(x * units), first.fit(x)(x))


def test_scikit_learns_pca():
    x = correlated(60, 5)
    expected = PCA(3, whiten=True).fit(x.numpy())
    whitening = Whitening(5, kind="pca", n_components=3).fit(x)
    y = whitening(x)
    close(y.abs(), torch.from_numpy(expected.transform(x.numpy())).abs())
    nearest = expected.inverse_transform(expected.transform(x.numpy()))
    close(whitening.inverse_transform(y), torch.from_numpy(nearest))


def test_fewer_components_of_the_other_kinds():
    x = correlated(60, 5)
    values, vectors = torch.linalg.eigh(torch.cov(x.mT))
    leading = vectors[:, -3:]
    expected = leading / values[-3:].sqrt() @ leading.mT
    few = correlated(3, 5)
    whitening = Whitening(5, n_components=3).fit(x)
    close(whitening.whitening_matrix, expected)
    # Two directions of three samples, whose covariance is singular.
    whitening = Whitening(5, n_components=2, kind="zca_cor").fit(few)
    close(whitening.inverse_transform(whitening(few)), few)
    with pytest.raises(torch.linalg.LinAlgError, match="take fewer n_components"):
        Whitening(5, n_components=3).fit(few)


def test_ridge_and_shrinkage():
    x = correlated(9, 6)
    c = torch.cov(x.mT, correction=0)
    identity = torch.eye(6, dtype=torch.float64)
    mean = c.trace() / 6
    ways = {
        c + 0.3 * identity: {"eps": 0.3},
        0.8 * c + 0.2 * mean * identity: {"shrinkage": 0.2},
        moments(x.mT, shrinkage="oas").covariance + identity: {"shrinkage": "oas", "eps": 1.0},
    }
    for s, options in ways.items():
        for kind in ("zca", "pca", "cholesky"):
            w = Whitening(6, kind=kind, correction=0, **options).fit(x).whitening_matrix
            close(w @ s @ w.mT, identity)
    v = c.diagonal().sqrt()
    s = 0.8 * c + 0.2 * torch.diag(v.square()) + 0.1 * torch.diag(v.square())
    w = Whitening(6, kind="zca_cor", correction=0, shrinkage=0.2, eps=0.1).fit(x).whitening_matrix
    close(w @ s @ w.mT, identity)


@kinds
def test_batches_in_any_order_are_all_samples(kind):
    x = correlated(200, 4) + 1e6
    expected = Whitening(4, kind=kind).fit(x)
    for order in ([7, 100, 0, 93], [1] * 200, [150, 50]):
        whitening = Whitening(4, kind=kind)
        parts = list(x.split(order))
        for part in reversed(parts):
            whitening.partial_fit(part)
        close(whitening(x), expected(x))
        close(whitening.mean, x.mean(0))
        assert whitening.samples == 200
    whitening.fit(x[:50])
    close(whitening(x), Whitening(4, kind=kind).fit(x[:50])(x))


def test_a_mean_far_from_zero_takes_no_digits():
    x = (correlated(5000, 3) * 64).round() / 64
    near, far = Whitening(3), Whitening(3)
    for part in x.split(100):
        near.partial_fit(part)
        far.partial_fit(part + 2.0**36)
    close(far(x + 2.0**36), near(x), 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_all_is_computed_in_double_precision(dtype):
    x = correlated(50, 4).to(dtype)
    whitening = Whitening(4, eps=1e-4).fit(x)
    expected = Whitening(4, eps=1e-4).fit(x.double())
    y = expected(x.double())
    assert torch.equal(whitening(x), y.to(dtype))
    assert torch.equal(copy.deepcopy(whitening).to(dtype)(x.double()), y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(whitening(x.double()), y)


def test_weights_and_masks():
    x = correlated(30, 3)
    counts = torch.arange(30) % 3
    expected = Whitening(3).fit(x.repeat_interleave(counts, 0))
    bad = torch.where(counts[:, None] == 0, torch.nan, x)
    for whitening in (
        Whitening(3).fit(bad, counts),
        Whitening(3).fit(bad.view(5, 6, 3), counts.view(5, 6).half()),
        Whitening(3).partial_fit(bad, counts > 0).partial_fit(bad, counts == 2),
    ):
        close(whitening(x), expected(x))
        assert whitening.samples == counts.sum()


@kinds
def test_state_needs_no_pickle(kind):
    x = correlated(30, 3)
    whitening = Whitening(3, kind=kind, shrinkage="oas").fit(x)
    expected = whitening(x)
    buffer = io.BytesIO()
    torch.save(whitening.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    loaded = Whitening.from_state_dict(state)
    safe = Whitening.from_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    fresh = Whitening(3, kind=kind, shrinkage="oas")
    fresh.load_state_dict(state)
    meta = Whitening(3, kind=kind, shrinkage="oas", device="meta")
    meta.load_state_dict(state, assign=True)
    copies = copy.deepcopy(whitening), pickle.loads(pickle.dumps(whitening))
    for twin in (loaded, safe, fresh, meta, *copies):
        assert repr(twin) == repr(whitening)
        assert torch.equal(twin(x), expected)
    loaded.partial_fit(x[:9])
    close(loaded(x), Whitening(3, kind=kind, shrinkage="oas").fit(torch.cat([x, x[:9]]))(x))
    # Samples of which no matrix has been made.
    half = Whitening(3, kind=kind).partial_fit(x)
    close(Whitening.from_state_dict(half.state_dict())(x), half(x))


def test_states_of_others_are_refused():
    state = Whitening(3, kind="pca").fit(correlated(9, 3)).state_dict()
    with pytest.raises(ValueError, match="the state is of one with kind='pca'"):
        Whitening(3).load_state_dict(state)
    for wrong in (None, torch.tensor([1, 2]), torch.tensor(list(b"{}")), "{}"):
        with pytest.raises(ValueError, match=r"none of a matroot\.nn\.Whitening"):
            Whitening.from_state_dict({**state, "_extra_state": wrong})
    huge = json.loads(bytes(state["_extra_state"].tolist())) | {"num_features": 10**9}
    state["_extra_state"] = torch.tensor(list(json.dumps(huge).encode()), dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"none of a .* of 1000000000 features"):
        Whitening.from_state_dict(state)


def test_in_a_network():
    x = correlated(40, 4, dtype=torch.float32)
    model = nn.Sequential(Whitening(4, kind="pca", n_components=3).fit(x), nn.Linear(3, 2))
    y = model(x)
    inputs = x.double().requires_grad_()
    assert torch.autograd.gradcheck(model[0], (inputs,))
    assert torch.autograd.gradcheck(
        model[0].inverse_transform, (model[0](inputs).detach().requires_grad_(),)
    )
    torch._dynamo.reset()
    assert torch.equal(torch.compile(model, fullgraph=True, backend="eager")(x), y)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), y)
    assert torch.equal(torch.fx.symbolic_trace(model)(x), y)
    assert torch.equal(torch.func.vmap(model[0])(x), model[0](x))
    model[0].partial_fit(x)
    with pytest.raises(Exception, match=r"call it once before .*torch\.compile"):
        torch.export.export(model, (x,))


def test_signs_are_the_same_whatever_the_rounding():
    # Two components with entries of equal size, ±1/√2, of which either may be the larger one.
    for seed in range(20):
        x = torch.randn(500, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        x = torch.stack([x, x.roll(seed + 1)], 1)
        rows = torch.cat([x, x.flip(1)])
        w = Whitening(2, kind="pca").fit(rows).whitening_matrix
        assert (w[:, 0] > 0).all()
        assert w[0, 1] * w[1, 1] < 0


@pytest.mark.parametrize(
    ("call", "kind", "message"),
    [
        (lambda w, x: w(x), RuntimeError, "not fitted: call fit"),
        (lambda w, x: w.inverse_transform(x), RuntimeError, "not fitted"),
        (lambda w, x: w.fit(x)(x[:, :2]), ValueError, r"expected shape \(..., 3\), got \(30, 2\)"),
        (lambda w, x: w.fit(x[:, :2]), ValueError, r"expected shape \(..., 3\), got \(30, 2\)"),
        (lambda w, x: w.fit(x[:1]), ValueError, r"more than 1 samples .*, got 1"),
        (lambda w, x: w.fit(x.long()), TypeError, "got torch.int64"),
        (lambda w, x: w.fit(x.tolist()), TypeError, "got list"),
        (lambda w, x: w.fit(x, -torch.ones(30)), ValueError, "at least 0, got -1.0"),
        (lambda w, x: w.fit(x, torch.ones(3)), ValueError, r"broadcast to \(30,\)"),
        (
            lambda w, x: w.fit(torch.where(x == x[2, 1], torch.inf, x)),
            torch.linalg.LinAlgError,
            r"1 of the 30 samples in x is not finite \(NaN or infinity\) \(batch index 2\)",
        ),
        (
            lambda w, x: w.fit(x[:3]),
            torch.linalg.LinAlgError,
            r"covariance of the 3 samples is singular \(rank 2 of 3, .* eps=, shrink with",
        ),
        (
            lambda w, x: w.fit(x * torch.tensor([1.0, 0, 1]) + 0.1),
            torch.linalg.LinAlgError,
            r"singular \(rank 2 of 3.*constant or follow from others",
        ),
        (lambda w, x: w.fit(1e200 * x), torch.linalg.LinAlgError, "covariance .* not finite"),
        (lambda w, x: Whitening(3, kind="ica"), ValueError, "'pca_cor'; got 'ica'"),
        (lambda w, x: Whitening(3, shrinkage="ledoit_wolf"), ValueError, "take 'oas'"),
        (lambda w, x: Whitening(3, shrinkage=2), ValueError, "'oas', got 2"),
        (lambda w, x: Whitening(3, eps=-1), ValueError, "at least 0, got -1"),
        (lambda w, x: Whitening(3, n_components=4), ValueError, "between 1 and 3, got 4"),
        (
            lambda w, x: Whitening(3, n_components=2, kind="cholesky"),
            ValueError,
            "takes no n_components",
        ),
    ],
)
def test_errors(call, kind, message):
    with pytest.raises(kind, match=message):
        call(Whitening(3), correlated(30, 3))


@kinds
def test_constant_features_are_no_rounding_noise(kind):
    # Without a word their rounding would come out as a feature of variance 1.
    for constant in (0.1, 1e9 / 3, 0.0):
        x = correlated(3000, 2)
        x = torch.cat([x, torch.full_like(x[:, :1], constant)], 1)
        whitening = Whitening(3, kind=kind)
        for part in x.split(7):
            whitening.partial_fit(part)
        with pytest.raises(torch.linalg.LinAlgError, match="rank 2 of 3"):
            whitening(x)
        y = Whitening(3, kind=kind, eps=1e-3).fit(x)(x)
        assert y[:, 2].abs().max() < 1e-3


def test_bad_samples_change_nothing():
    x = correlated(30, 3)
    whitening = Whitening(3).fit(x)
    before = copy.deepcopy(whitening.state_dict())
    for change in (whitening.fit, whitening.partial_fit):
        with pytest.raises(torch.linalg.LinAlgError, match="finite"):
            change(torch.where(x == x[2, 1], torch.nan, x))
    after = whitening.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)


# Of the one check that fits 30 features to fewer samples, see the transformer's docstring.
FEW = "check_sample_weight_equivalence_on_dense_data"


@pytest.mark.parametrize(
    ("estimator", "fails"),
    [
        (compat_sklearn.Whitening(eps=1e-3), {}),
        (compat_sklearn.Whitening("zca_cor", shrinkage="oas"), {}),
        (compat_sklearn.Whitening(), {FEW: "an error without a ridge"}),
        (compat_sklearn.Whitening("pca", eps=1e-3), {FEW: "components of equal variance"}),
    ],
    ids=repr,
)
def test_scikit_learns_checks(estimator, fails):
    with warnings.catch_warnings():
        # Of checks that need pandas, or a setting, and are left out.
        warnings.filterwarnings("ignore", "Skipping check")
        warnings.filterwarnings("ignore", "Estimator's parameters changed")
        results = check_estimator(estimator, expected_failed_checks=fails)
    failed = {result["check_name"] for result in results if result["status"] == "xfail"}
    assert failed == set(fails)
    assert sum(result["status"] == "passed" for result in results) > 40


def test_in_scikit_learn():
    x = correlated(50, 4).numpy()
    for dtype in (np.float32, np.float64):
        transformer = compat_sklearn.Whitening("cholesky").fit(x.astype(dtype))
        assert transformer.transform(x.astype(dtype)).dtype == dtype
    expected = Whitening(4, kind="cholesky").fit(torch.from_numpy(x))
    np.testing.assert_allclose(transformer.transform(x), expected(torch.from_numpy(x)).numpy())
    back = transformer.inverse_transform(transformer.transform(x))
    np.testing.assert_allclose(back, x, rtol=1e-9)
    pipeline = make_pipeline(StandardScaler(), clone(transformer).set_params(kind="zca"))
    np.testing.assert_allclose(np.cov(pipeline.fit_transform(x).T), np.eye(4), atol=1e-9)
    assert list(transformer.get_feature_names_out(["a", "b", "c", "d"])) == ["a", "b", "c", "d"]
    streamed = compat_sklearn.Whitening("pca", n_components=2)
    for part in np.split(x, 5):
        streamed.partial_fit(part)
    assert streamed.n_samples_seen_ == 50
    np.testing.assert_allclose(streamed.mean_, x.mean(0))
    assert list(streamed.get_feature_names_out()) == ["pca0", "pca1"]
    y = streamed.transform(x)
    assert streamed.inverse_transform(y).shape == x.shape
    state = streamed.module_.state_dict()
    again = compat_sklearn.Whitening.from_module(Whitening.from_state_dict(state))
    assert np.array_equal(again.transform(x), y)
    assert torch.equal(streamed.to_module()(torch.from_numpy(x)), torch.from_numpy(y))
    with pytest.raises(ValueError, match=r"n_components=9 must be at most .* n_features=4"):
        compat_sklearn.Whitening(n_components=9).fit(x)


def test_scikit_learns_numbers_and_weights_in_any_form():
    x = correlated(40, 4).numpy()
    expected = compat_sklearn.Whitening("pca", n_components=3, shrinkage=0.5).fit(x).transform(x)
    numbers = {"n_components": np.int64(3), "shrinkage": np.float32(0.5), "correction": np.int8(1)}
    given = compat_sklearn.Whitening("pca", **numbers)
    np.testing.assert_array_equal(clone(given).fit(x).transform(x), expected)
    search = GridSearchCV(
        make_pipeline(compat_sklearn.Whitening("pca"), LinearRegression()),
        {"whitening__n_components": np.arange(2, 4)},
    )
    assert search.fit(x, x[:, 0]).best_params_ == {"whitening__n_components": 3}
    with pytest.raises(TypeError, match="correction must be an int, got str"):
        compat_sklearn.Whitening(correction="a").fit(x)
    weight = np.arange(40.0)
    expected = compat_sklearn.Whitening().fit(x, sample_weight=weight[::-1].copy()).transform(x)
    for form in (weight[::-1], weight[::-1].astype(">f8"), weight[::-1].astype(object)):
        found = compat_sklearn.Whitening().fit(x, sample_weight=form)
        np.testing.assert_array_equal(found.transform(x), expected)


def test_options_are_fixed_and_scikit_learns_parameters_take_effect_when_fitted():
    x = correlated(40, 4)
    whitening = Whitening(4).fit(x)
    for name, value in (("eps", 5.0), ("kind", "pca"), ("n_components", 2), ("num_features", 3)):
        with pytest.raises(AttributeError, match=f"{name} is fixed when the module is made"):
            setattr(whitening, name, value)
    assert copy.deepcopy(whitening).eps == 0
    x = x.numpy()
    estimator = compat_sklearn.Whitening().fit(x[:30]).set_params(kind="pca", eps=5.0)
    assert list(estimator.get_feature_names_out()) == ["x0", "x1", "x2", "x3"]
    estimator.partial_fit(x[30:])
    assert list(estimator.get_feature_names_out()) == ["pca0", "pca1", "pca2", "pca3"]
    expected = compat_sklearn.Whitening("pca", eps=5.0).fit(x).transform(x)
    np.testing.assert_allclose(estimator.transform(x), expected, rtol=1e-10)
