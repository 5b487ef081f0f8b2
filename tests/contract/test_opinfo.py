"""PyTorch's own suites around every public function: what its operators are tested with."""

import itertools

import pytest
import torch

import matroot
from matroot.testing import random_spd

core = pytest.importorskip("torch.testing._internal.opinfo.core")
optests = pytest.importorskip("torch.testing._internal.optests")
fake_utils = pytest.importorskip("torch._subclasses.fake_utils")


def hermitian(*tensors):
    return tuple((t + t.mH) / 2 for t in tensors)


def spd_samples(count):
    """Samples of ``count`` tensors of positive definite matrices: batches, broadcasting, views."""

    def samples(op, device, dtype, requires_grad, **kwargs):
        def make(*shape, seed):
            a = random_spd(shape[-1], *shape[:-2], cond=5, dtype=dtype, device=device, seed=seed)
            # Different ones: at equal matrices the distance has no derivative.
            return (a * (1 + seed)).requires_grad_(requires_grad)

        shapes = [((3, 3),) * count, ((2, 3, 3),) * count, ((1, 1),) * count]
        if count == 2 and op.name != "solve_lyapunov":
            shapes.append(((2, 1, 2, 2), (3, 2, 2)))
        for group in shapes:
            first, *rest = (make(*shape, seed=i) for i, shape in enumerate(group))
            yield core.SampleInput(first, args=tuple(rest))

    return samples


def gaussian_samples(op, device, dtype, requires_grad, **kwargs):
    for batch in ((), (2,)):
        mu1, mu2 = (
            torch.randn(*batch, 3, dtype=dtype, device=device).requires_grad_(requires_grad)
            for _ in range(2)
        )
        cov1, cov2 = (
            random_spd(3, *batch, cond=5, dtype=dtype, device=device, seed=i).requires_grad_(
                requires_grad
            )
            for i in range(2)
        )
        yield core.SampleInput(mu1, args=(cov1, mu2, cov2))


REAL_AND_COMPLEX = core._dispatch_dtypes((torch.float64, torch.complex128))


def info(name, function, samples, **options):
    return core.OpInfo(
        name,
        op=function,
        dtypes=REAL_AND_COMPLEX,
        sample_inputs_func=samples,
        supports_forward_ad=True,
        supports_fwgrad_bwgrad=True,
        supports_out=False,
        **options,
    )


OPS = [
    info("sqrtm", lambda a: matroot.sqrtm(*hermitian(a)), spd_samples(1)),
    info("inv_sqrtm", lambda a: matroot.inv_sqrtm(*hermitian(a)), spd_samples(1)),
    info("sqrtm_pair", lambda a: matroot.sqrtm_pair(*hermitian(a)), spd_samples(1)),
    info("sqrtm_ex", lambda a: matroot.sqrtm_ex(*hermitian(a), root="both")[:2], spd_samples(1)),
    info("solve_lyapunov", lambda s, g: matroot.solve_lyapunov(*hermitian(s), g), spd_samples(2)),
    info(
        "bures_wasserstein_distance",
        lambda a, b: matroot.bures_wasserstein_distance(*hermitian(a, b)),
        spd_samples(2),
    ),
    info(
        "bures_wasserstein_distance unsquared",
        lambda a, b: matroot.bures_wasserstein_distance(*hermitian(a, b), squared=False),
        spd_samples(2),
    ),
    info(
        "frechet_distance",
        lambda m, a, n, b: matroot.frechet_distance(m, *hermitian(a), n, *hermitian(b)),
        gaussian_samples,
    ),
]
DTYPES = [torch.float64, torch.complex128]


@pytest.fixture(params=OPS, ids=lambda op: op.name)
def op(request):
    return request.param


def each(op, dtype, requires_grad=False):
    for sample in op.sample_inputs("cpu", dtype, requires_grad=requires_grad):
        yield (sample.input, *sample.args)


def outputs(value):
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_derivatives(op, dtype):
    for inputs in each(op, dtype, requires_grad=True):
        assert torch.autograd.gradcheck(
            op.op,
            inputs,
            check_forward_ad=True,
            check_batched_grad=not dtype.is_complex,
            check_batched_forward_grad=not dtype.is_complex,
            check_undefined_grad=True,
        )


def test_second_derivatives(op):
    inputs = next(each(op, torch.float64, requires_grad=True))
    assert torch.autograd.gradgradcheck(
        op.op, inputs, check_fwd_over_rev=True, check_rev_over_rev=True
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inputs_are_unchanged_and_outputs_own_their_memory(op, dtype):
    for inputs in each(op, dtype):
        before = [t.clone() for t in inputs]
        found = outputs(op.op(*inputs))
        assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
        assert not any(y._is_view() for y in found)
        owners = {t.untyped_storage().data_ptr() for t in inputs}
        assert not owners & {y.untyped_storage().data_ptr() for y in found}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_views_are_read_as_their_copies(op, dtype):
    def strided(t):
        wide = torch.full((*t.shape[:-1], 2 * t.shape[-1]), torch.nan, dtype=dtype)
        wide[..., ::2] = t
        return wide[..., ::2]

    for inputs in each(op, dtype):
        expected = outputs(op.op(*inputs))
        for view in (strided, lambda t: t.mT.contiguous().mT if t.ndim > 1 else t):
            found = outputs(op.op(*map(view, inputs)))
            for x, y in zip(found, expected, strict=True):
                torch.testing.assert_close(x, y, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vmap_over_any_of_the_arguments(op, dtype):
    inputs = next(each(op, dtype))
    others = [t * 1.5 for t in inputs]
    stacks = [torch.stack(pair, -1) for pair in zip(inputs, others, strict=True)]
    for mapped in itertools.product((False, True), repeat=len(inputs)):
        if not any(mapped):
            continue
        dims = tuple(-1 if one else None for one in mapped)
        given = [s if one else t for s, t, one in zip(stacks, inputs, mapped, strict=True)]
        found = outputs(torch.func.vmap(op.op, in_dims=dims)(*given))
        for i in range(2):
            alone = [
                s[..., i] if one else t for s, t, one in zip(stacks, inputs, mapped, strict=True)
            ]
            for x, y in zip(found, outputs(op.op(*alone)), strict=True):
                torch.testing.assert_close(x[i], y, rtol=1e-10, atol=1e-11)


def test_vmap_of_the_gradient_by_any_of_the_arguments(op):
    inputs = next(each(op, torch.float64))

    def total(*tensors):
        return sum(y.sum() for y in outputs(op.op(*tensors)))

    for place in range(len(inputs)):
        by_one = torch.func.grad(total, argnums=place)
        for mapped in range(len(inputs)):
            stack = torch.stack([inputs[mapped], 1.5 * inputs[mapped]])
            dims = tuple(0 if i == mapped else None for i in range(len(inputs)))
            given = [stack if i == mapped else t for i, t in enumerate(inputs)]
            found = torch.func.vmap(by_one, in_dims=dims)(*given)
            for i in range(2):
                alone = [stack[i] if j == mapped else t for j, t in enumerate(inputs)]
                torch.testing.assert_close(found[i], by_one(*alone), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_fake_tensors_have_the_shapes_of_real_ones(op, dtype):
    inputs = next(each(op, dtype))
    expected = outputs(op.op(*inputs))
    with torch._subclasses.FakeTensorMode() as mode:
        found = outputs(op.op(*(mode.from_tensor(t) for t in inputs)))
    for x, y in zip(found, expected, strict=True):
        assert (x.shape, x.dtype, x.device) == (y.shape, y.dtype, y.device)
    # And every operation inside has the metadata that PyTorch expects of it.
    with fake_utils.CrossRefFakeMode():
        op.op(*inputs)


def test_aot_autograd_with_unknown_sizes(op):
    inputs = next(each(op, torch.float64, requires_grad=True))
    optests.aot_autograd_check(op.op, inputs, {}, dynamic=True)
