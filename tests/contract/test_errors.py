"""Bad input of every kind gets its error, or NaN where errors are not checked."""

from functools import partial

import pytest
import torch

import matroot
from instances import FUNCTIONS, METHOD_OBJECTS, calls
from matroot import spd
from matroot.gradients import Lyapunov, SpectralClipped, SpectralTaylor
from matroot.methods import Eigh, NewtonSchulz, Pade, Taylor
from matroot.testing import random_spd, relative_error

LinAlgError = torch.linalg.LinAlgError


@pytest.mark.parametrize("function", FUNCTIONS.values())
@pytest.mark.parametrize("shape", [(3,), (), (3, 4), (2, 3, 4)])
def test_shape(function, shape):
    with pytest.raises(ValueError, match=r"a must have shape \(\.\.\., n, n\), got "):
        function(torch.ones(shape))


@pytest.mark.parametrize("function", FUNCTIONS.values())
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([[1.0]], "a must be a torch.Tensor, got list"),
        (torch.ones(2, 2, dtype=torch.int64), "got int64"),
        (torch.ones(2, 2, dtype=torch.bool), "got bool"),
        (torch.eye(2).to_sparse(), "sparse"),
    ],
)
def test_type(function, bad, message):
    with pytest.raises(TypeError, match=message):
        function(bad)


@pytest.mark.parametrize("function", FUNCTIONS.values())
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"method": "padé"}, ValueError, "unknown method 'padé'; known: 'auto', 'taylor', 'pade'"),
        ({"gradient": "lyapunow"}, ValueError, "unknown gradient 'lyapunow'; known: "),
        (
            {"backend": "cuda"},
            ValueError,
            "unknown backend 'cuda'; known: 'auto', 'torch', 'native'",
        ),
        ({"method": Pade}, TypeError, r"the class Pade; write Pade\(\)"),
        ({"method": 5}, TypeError, "method must be a name or a Method object, got int"),
        ({"gradient": Pade()}, TypeError, "gradient must be a name or a GradientRule object"),
        (
            {"eps": -1e-3},
            ValueError,
            "eps must be finite in torch.float32 and at least 0, got -0.001",
        ),
        ({"eps": float("nan")}, ValueError, "eps must be finite"),
        ({"eps": "1"}, TypeError, "eps must be a float, got str"),
        ({"check_errors": 1}, TypeError, "check_errors must be None or a bool, got int"),
        ({"epsilon": 1e-3}, TypeError, "epsilon"),
        (
            {"method": "pade", "gradient": "spectral_naive"},
            ValueError,
            "needs the eigenpairs of a spectral method .'eigh', 'svd'.*, got method 'pade'",
        ),
    ],
)
def test_options(function, options, error, message):
    with pytest.raises(error, match=message):
        function(torch.eye(2), **options)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Taylor(degree=0), ValueError, r"Taylor\(degree=…\) must be at least 1, got 0"),
        (lambda: Taylor(degree=2.0), TypeError, "must be an int, got float"),
        (lambda: Taylor(True), TypeError, "must be an int, got bool"),
        (lambda: Pade(order=33), ValueError, "must be between 1 and 32, got 33"),
        (lambda: Pade(ordre=3), TypeError, "ordre"),
        (lambda: NewtonSchulz(normalize="max"), ValueError, "'trace', 'frobenius'; got 'max'"),
        (lambda: Lyapunov(steps=0), ValueError, "at least 1"),
        (lambda: SpectralTaylor(terms=-1), ValueError, "at least 1"),
        (lambda: SpectralClipped(limit=0), ValueError, "above 0"),
    ],
)
def test_options_of_objects(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("method", ["pade", "taylor", "newton_schulz"])
def test_pseudo_inverse_needs_a_spectral_method(method):
    with pytest.raises(ValueError, match='singular="pinv" needs a spectral method'):
        matroot.inv_sqrtm(torch.eye(2), method=method, singular="pinv")
    with pytest.raises(ValueError, match="singular must be one of 'raise', 'pinv'; got 'ignore'"):
        matroot.inv_sqrtm(torch.eye(2), singular="ignore")


def broken(kind, dtype=torch.float64):
    a = random_spd(4, cond=5, dtype=dtype)
    if kind == "nan":
        a[1, 2] = torch.nan
    elif kind == "inf":
        a[3, 3] = torch.inf
    elif kind == "asymmetric":
        a[0, 1] += 0.1
    elif kind == "indefinite":
        a = a - 0.5 * torch.eye(4, dtype=dtype)
    elif kind == "negative":
        a = -a
    elif kind == "singular":
        a[0], a[:, 0] = 0, 0
    return a


MESSAGES = {
    "nan": "not finite",
    "inf": "not finite",
    "asymmetric": "not symmetric",
    "indefinite": "indefinite",
    "negative": "indefinite",
    "singular": 'singular.*eps=.*singular="pinv"',
}


@pytest.mark.parametrize("kind", MESSAGES)
@pytest.mark.parametrize(
    ("method", "backend", "dtype"),
    calls(METHOD_OBJECTS, torch.float32, torch.float64, torch.complex64),
)
@pytest.mark.parametrize("root", FUNCTIONS)
def test_bad_matrices(root, method, backend, kind, dtype):
    function = partial(FUNCTIONS[root], method=method, backend=backend)
    good = random_spd(4, 6, cond=5, dtype=dtype)
    batch = good.clone()
    batch[2] = batch[5] = broken(kind, dtype)
    if kind == "singular" and root == "sqrt":
        assert function(batch).isfinite().all()
        return
    with pytest.raises(LinAlgError, match=MESSAGES[kind]):
        function(broken(kind, dtype))
    with pytest.raises(LinAlgError, match=f"2 of the 6 .*{MESSAGES[kind]}.*batch index 2, 5"):
        function(batch)
    found = function(batch, check_errors=False)
    clean = function(good)
    for x, y in zip(
        found if root == "both" else (found,), clean if root == "both" else (clean,), strict=True
    ):
        assert x[[2, 5]].isnan().all()
        assert torch.equal(x[[0, 1, 3, 4]], y[[0, 1, 3, 4]])


@pytest.mark.parametrize(("method", "backend", "dtype"), calls(METHOD_OBJECTS, torch.float32))
@pytest.mark.parametrize("root", FUNCTIONS)
def test_the_62_good_matrices_of_a_batch_of_64(root, method, backend, dtype):
    function = partial(FUNCTIONS[root], method=method, backend=backend)
    a = random_spd(8, 64, cond=20, dtype=dtype)
    a[10], a[40] = torch.nan, -a[40]
    good = [i for i in range(64) if i not in (10, 40)]
    identities = a.clone()
    identities[[10, 40]] = torch.eye(8)
    found = function(a, check_errors=False)
    clean = function(identities, check_errors=False)
    alone = [function(a[i]) for i in good]
    for part in range(2 if root == "both" else 1):
        x, y = (found[part], clean[part]) if root == "both" else (found, clean)
        z = torch.stack([m[part] if root == "both" else m for m in alone])
        assert torch.equal(x[good], y[good])
        # Not bit for bit: PyTorch's products differ with the alignment of a batch.
        assert relative_error(x[good], z).max() < 1e-4
        assert x[[10, 40]].isnan().all()


def test_the_worst_reason_is_named_first_and_indices_are_tuples():
    a = random_spd(3, 2, 3, cond=5)
    a[0, 1] = -a[0, 1]
    a[1, 2, 0, 0] = torch.inf
    with pytest.raises(LinAlgError, match=r"1 of the 6 matrices in a is not finite.*\(1, 2\)"):
        matroot.sqrtm(a)


@pytest.mark.parametrize("n", [2, 8, 64])
@pytest.mark.parametrize(
    ("method", "backend", "dtype"),
    calls([Eigh(), Pade(), NewtonSchulz(20)], torch.float32, torch.float64),
)
def test_thresholds(method, backend, dtype, n):
    options = {"method": method, "backend": backend}
    u = torch.finfo(dtype).eps
    values = torch.ones(n, dtype=dtype)

    def diagonal(smallest):
        return torch.diag(torch.cat([values[1:], values.new_tensor([smallest])]))

    assert matroot.sqrtm(diagonal(-0.3 * n * u), **options).isfinite().all()
    with pytest.raises(LinAlgError, match="indefinite"):
        matroot.sqrtm(diagonal(-8 * n * u), **options)
    null = spd.null_share(n, dtype)
    assert matroot.inv_sqrtm(diagonal(4 * null), **options).isfinite().all()
    with pytest.raises(LinAlgError, match="singular"):
        matroot.inv_sqrtm(diagonal(0.25 * null), **options)


def test_a_ridge_mends_a_singular_and_an_indefinite_matrix():
    a = torch.diag(torch.tensor([1.0, 0.0, -1e-3]))
    z = matroot.inv_sqrtm(a, eps=1e-2)
    assert relative_error(z @ z @ (a + 1e-2 * torch.eye(3)), torch.eye(3)) < 1e-5


def test_checking_is_refused_where_values_cannot_be_seen():
    a = random_spd(3, 2, cond=5)
    with pytest.raises(ValueError, match="check_errors=True needs the values on the host"):
        torch.func.vmap(lambda a: matroot.sqrtm(a, check_errors=True))(a)


@pytest.mark.parametrize(
    ("s", "g", "error", "message"),
    [
        (torch.eye(2), torch.eye(3), ValueError, "one shape"),
        (torch.eye(2), torch.eye(2).double(), TypeError, "one dtype"),
        (torch.ones(2, 3), torch.eye(2), ValueError, "s must have shape"),
        (torch.eye(2), None, TypeError, "g must be a torch.Tensor"),
        (-torch.eye(2), torch.eye(2), LinAlgError, "s is indefinite"),
        (torch.tensor([[1.0, torch.nan], [0.0, 1.0]]), torch.eye(2), LinAlgError, "not finite"),
    ],
)
def test_solve_lyapunov(s, g, error, message):
    with pytest.raises(error, match=message):
        matroot.solve_lyapunov(s, g)
    if error is LinAlgError:
        assert matroot.solve_lyapunov(s, g, check_errors=False).isnan().all()
