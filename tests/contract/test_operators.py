"""PyTorch's checks of its own operators (test_ops and functorch suites), for every function.

The machinery of those suites is not in PyTorch's packages, so the loops are written out here.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.fake_utils import CrossRefFakeMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import matroot
from matroot.nn import functional
from matroot.testing import random_spd

DOUBLE = [torch.float64, torch.complex128]
ALL_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.complex64, *DOUBLE]


@dataclass(frozen=True)
class Op:
    """A function of tensors, and the arguments for its tests.

    Attributes:
        function: of tensors alone, one tensor or a tuple as its result.
        kinds: of each argument "spd", "square", "vector" or "samples".
        batches: whether arguments may have different batch dimensions.
        dtypes: for derivatives.
    """

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    kinds: tuple[str, ...]
    batches: bool = False
    dtypes: tuple[torch.dtype, ...] = tuple(DOUBLE)

    def arguments(
        self, *batch: int, n: int = 3, dtype: torch.dtype = torch.float64, seed: int = 0
    ) -> tuple[Tensor, ...]:
        """One tensor for each argument, batch dimensions first."""
        return tuple(
            _sample(kind, batch, n, dtype, 10 * seed + i) for i, kind in enumerate(self.kinds)
        )


def _sample(kind, batch, n, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    if kind == "spd":
        return random_spd(n, *batch, cond=4, dtype=dtype, seed=seed)
    shape = {"square": (n, n), "vector": (n,), "samples": (2, n, 2 * n + 1)}[kind]
    double = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(*batch, *shape, dtype=double, generator=generator).to(dtype)


def _root_of_distance(*tensors):
    return matroot.frechet_distance(*tensors, squared=False)


OPS = {
    "sqrtm": Op(matroot.sqrtm, ("spd",)),
    "inv_sqrtm": Op(matroot.inv_sqrtm, ("spd",)),
    "inv_sqrtm pinv": Op(lambda a: matroot.inv_sqrtm(a, singular="pinv"), ("spd",)),
    "sqrtm minimax": Op(lambda a: matroot.sqrtm(a, method="minimax"), ("spd",)),
    "sqrtm_pair": Op(matroot.sqrtm_pair, ("spd",)),
    "sqrtm_ex": Op(lambda a: matroot.sqrtm_ex(a).sqrt, ("spd",)),
    "solve_lyapunov": Op(matroot.solve_lyapunov, ("spd", "square")),
    "bures_wasserstein_distance": Op(matroot.bures_wasserstein_distance, ("spd", "spd"), True),
    "frechet_distance": Op(matroot.frechet_distance, ("vector", "spd", "vector", "spd"), True),
    "frechet_distance root": Op(_root_of_distance, ("vector", "spd", "vector", "spd"), True),
    "whiten_and_color": Op(
        functional.whiten_and_color, ("samples", "samples"), dtypes=(torch.float64,)
    ),
    "inverse_root": Op(
        lambda a: functional.inverse_root(a, 1e-5), ("spd",), dtypes=(torch.float64,)
    ),
    "power_normalization": Op(functional.power_normalization, ("spd",), dtypes=(torch.float64,)),
}
WITH_DTYPES = [(name, dtype) for name, op in OPS.items() for dtype in op.dtypes]
# Those that are not thin wrappers of another one.
CORE = ["sqrtm_pair", "sqrtm minimax", "solve_lyapunov", "frechet_distance root"]


def as_tuple(x):
    return x if isinstance(x, tuple) else (x,)


def close(found, expected, dtype=torch.float64):
    within = {} if torch.finfo(dtype).eps < 1e-10 else {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(found, expected, **within)


def derivatives(op, tensors):
    """The gradients of a fixed real function of the result."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    total = sum(x.abs().square().sum() for x in as_tuple(op.function(*leaves)))
    return torch.autograd.grad(total, leaves)


@pytest.mark.parametrize(("name", "dtype"), WITH_DTYPES, ids=str)
def test_gradients_of_first_order(name, dtype):
    op = OPS[name]
    for batch in ((), (2,)):
        torch.autograd.gradcheck(
            op.function,
            [t.requires_grad_() for t in op.arguments(*batch, n=2, dtype=dtype)],
            check_forward_ad=True,
            check_batched_grad=True,
            # PyTorch fails an assertion of its own where a batched complex tangent is transposed.
            check_batched_forward_grad=(name, dtype) != ("solve_lyapunov", torch.complex128),
            fast_mode=True,
        )


@pytest.mark.parametrize(("name", "dtype"), WITH_DTYPES, ids=str)
def test_gradients_of_second_order(name, dtype):
    op = OPS[name]
    torch.autograd.gradgradcheck(
        op.function,
        [t.requires_grad_() for t in op.arguments(n=2, dtype=dtype)],
        check_fwd_over_rev=True,
        check_rev_over_rev=True,
        check_batched_grad=True,
        fast_mode=True,
    )


@pytest.mark.parametrize(
    "name", [name for name, op in OPS.items() if len(op.kinds) > 1 and op.batches]
)
def test_gradients_of_broadcast_arguments(name):
    op = OPS[name]
    single, several = op.arguments(1, n=2), op.arguments(2, n=2, seed=1)
    for mask in ((0, 1), (1, 0)):
        mixed = [(single, several)[mask[i % 2]][i] for i in range(len(op.kinds))]
        torch.autograd.gradcheck(
            op.function,
            [t.requires_grad_() for t in mixed],
            check_forward_ad=True,
            fast_mode=True,
        )


def some_at_a_time(count):
    """All non-empty subsets of ``count`` arguments, as masks."""
    return [mask for mask in itertools.product((False, True), repeat=count) if any(mask)]


@pytest.mark.parametrize("name", OPS)
def test_vmap_over_every_choice_of_arguments(name):
    op, size = OPS[name], 2
    whole = op.arguments(size)
    for mask in some_at_a_time(len(whole)):
        given = [t if m else t[0] for t, m in zip(whole, mask, strict=True)]
        transforms = {"itself": op.function}
        for i in range(len(given)):

            def total(*tensors):
                return sum(x.square().sum() for x in as_tuple(op.function(*tensors)))

            transforms[f"grad {i}"] = torch.func.grad(total, i)
        first = mask.index(True)
        transforms["jacfwd"] = torch.func.jacfwd(total, first)
        for kind, function in transforms.items():
            each = [
                as_tuple(function(*(t[i] if m else t for t, m in zip(given, mask, strict=True))))
                for i in range(size)
            ]
            expected = tuple(map(torch.stack, zip(*each, strict=True)))
            for place in (0, -1):
                moved = [t.movedim(0, place) if m else t for t, m in zip(given, mask, strict=True)]
                dims = tuple(place if m else None for m in mask)
                found = as_tuple(torch.func.vmap(function, dims)(*moved))
                torch.testing.assert_close(found, expected, msg=lambda m, k=kind: f"{k}: {m}")


@pytest.mark.parametrize("name", OPS)
def test_transforms_of_transforms(name):
    op = OPS[name]
    tensors = op.arguments(n=2)
    directions = op.arguments(n=2, seed=1)
    several = [torch.stack(x) for x in zip(directions, op.arguments(n=2, seed=2), strict=True)]

    def vjp(*cotangents):
        return torch.func.vjp(op.function, *tensors)[1](
            cotangents if len(cotangents) > 1 else cotangents[0]
        )

    def jvp(*directions):
        return as_tuple(torch.func.jvp(op.function, tensors, directions)[1])

    # The same products one by one, by the rule without batches.
    expected = [jvp(*(d[i] for d in several)) for i in range(2)]
    torch.testing.assert_close(
        torch.func.vmap(jvp)(*several), tuple(map(torch.stack, zip(*expected, strict=True)))
    )
    results = as_tuple(op.function(*tensors))
    cotangents = [torch.randn(2, *x.shape, dtype=x.dtype) for x in results]
    each = [vjp(*(c[i] for c in cotangents)) for i in range(2)]
    found = torch.func.vmap(vjp)(*cotangents)
    torch.testing.assert_close(found, tuple(map(torch.stack, zip(*each, strict=True))))
    # ⟨c, J d⟩ = ⟨Jᵀ c, d⟩.
    left = sum((c[0] * x).sum() for c, x in zip(cotangents, jvp(*directions), strict=True))
    right = sum((x * d).sum() for x, d in zip(each[0], directions, strict=True))
    torch.testing.assert_close(left, right)


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_dtypes_shapes_and_devices_are_told_without_values(name, dtype):
    op = OPS[name]
    if dtype.is_complex and not op.dtypes[-1].is_complex:
        pytest.skip("for real numbers only")
    if name in ("inverse_root", "power_normalization") and dtype.itemsize == 2:
        pytest.skip("for covariances in single precision at least")
    tensors = op.arguments(2, dtype=dtype)
    expected = as_tuple(op.function(*tensors))
    with FakeTensorMode() as mode:
        found = as_tuple(op.function(*map(mode.from_tensor, tensors)))
    meta = as_tuple(op.function(*(t.to("meta") for t in tensors)))
    for x, y, z in zip(found, expected, meta, strict=True):
        assert (x.shape, x.dtype, x.device, x.stride()) == (y.shape, y.dtype, y.device, y.stride())
        assert (z.shape, z.dtype, z.stride()) == (y.shape, y.dtype, y.stride())


# The mode reads the gradient of every tensor that it gets.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("name", OPS)
def test_every_operation_agrees_with_its_fake(name):
    op = OPS[name]
    tensors = [t.requires_grad_() for t in op.arguments(2)]
    with CrossRefFakeMode():
        total = sum(x.square().sum() for x in as_tuple(op.function(*tensors)))
        total.backward()


def noncontiguous(t):
    """The same numbers with gaps between, and NaN in the gaps."""
    wide = torch.full((*t.shape, 2), torch.nan, dtype=t.dtype)
    wide[..., 0] = t
    return wide[..., 0]


LAYOUTS = {
    "noncontiguous": noncontiguous,
    "column-major": lambda t: (
        t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.ndim > 1 else t
    ),
    "offset": lambda t: torch.cat([t.flatten()[:1], t.flatten()])[1:].view(t.shape),
    "negative": lambda t: torch._neg_view(-t),
    "conjugate": lambda t: t.conj().resolve_conj().conj(),
    "copy on write": torch._lazy_clone,
    "expanded": lambda t: t[:1].expand(t.shape),
    "parameter": lambda t: torch.nn.Parameter(t, requires_grad=False),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("name", "dtype"), WITH_DTYPES, ids=str)
def test_where_the_numbers_lie_does_not_matter(name, dtype, layout):
    op = OPS[name]
    tensors = op.arguments(2, dtype=dtype)
    laid = [LAYOUTS[layout](t) for t in tensors]
    plain = [
        t.resolve_neg().resolve_conj().clone(memory_format=torch.contiguous_format) for t in laid
    ]
    before = [t.clone() for t in laid]
    results = as_tuple(op.function(*laid))
    close(results, as_tuple(op.function(*plain)))
    close(derivatives(op, laid), derivatives(op, plain))
    for t, old in zip(laid, before, strict=True):
        assert torch.equal(t, old)
    memory = {t.untyped_storage().data_ptr() for t in laid}
    for x in results:
        assert x.untyped_storage().data_ptr() not in memory
    # Results of autograd functions may be changed in place, unless they are views.
    for x in as_tuple(op.function(*(t.detach().requires_grad_() for t in laid))):
        assert torch.equal(x.detach() * 2, x.mul_(2))


@pytest.mark.parametrize("name", OPS)
def test_empty_and_single(name):
    op = OPS[name]
    for batch, n in (((0,), 3), ((2, 0), 3), ((2,), 1), ((), 1), ((2,), 0), ((), 0)):
        if op.kinds[0] == "samples" and (n == 0 or 0 in batch):
            continue
        tensors = op.arguments(*batch, n=n)
        results = as_tuple(op.function(*tensors))
        gradients = derivatives(op, tensors)
        assert all(x.isfinite().all() for x in (*results, *gradients))
        assert [g.shape for g in gradients] == [t.shape for t in tensors]


@pytest.mark.parametrize("dynamic", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CORE)
def test_ahead_of_time_autograd_agrees(name, dynamic):
    optests = pytest.importorskip("torch.testing._internal.optests")
    op = OPS[name]
    tensors = tuple(t.requires_grad_() for t in op.arguments(2))
    optests.aot_autograd_check(op.function, tensors, {}, dynamic=dynamic)


@pytest.mark.parametrize("tracing", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("name", OPS)
def test_a_trace_by_make_fx_serves_other_matrices(name, tracing):
    op = OPS[name]

    # make_fx takes arguments with defaults for inputs.
    def function(*tensors):
        return op.function(*tensors)

    traced = make_fx(function, tracing_mode=tracing)(*op.arguments(2))
    others = op.arguments(2, seed=1)
    close(as_tuple(traced(*others)), as_tuple(op.function(*others)))


@pytest.mark.parametrize("name", ["sqrtm", "solve_lyapunov", "bures_wasserstein_distance"])
def test_a_traced_gradient_serves_other_matrices(name):
    op = OPS[name]

    def gradients(*tensors):
        return derivatives(op, tensors)

    traced = make_fx(gradients)(*op.arguments(2))
    others = op.arguments(2, seed=1)
    close(traced(*others), gradients(*others))


@pytest.mark.parametrize("name", OPS)
def test_operations_are_counted(name):
    op = OPS[name]
    counter = FlopCounterMode(display=False)
    with counter:
        op.function(*op.arguments(2))
    assert counter.get_total_flops() > 0
