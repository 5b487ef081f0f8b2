"""The requirements on every layer."""

import copy
import io
import pickle

import pytest
import torch
from torch.func import functional_call

import matroot
from nn.layers import INSTANCES, quick, settled


@pytest.fixture(params=INSTANCES, ids=str)
def instance(request):
    return request.param


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_gradients(instance, training):
    inputs = instance.inputs(torch.float64)
    layer = settled(instance.make(dtype=torch.float64), inputs).train(training)
    # Running statistics change at every call; the differentiated function must not.
    state = {k: v.clone() for k, v in layer.state_dict().items()}
    names = [name for name, _ in layer.named_parameters()]
    parameters = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    inputs = [x.requires_grad_() for x in inputs]

    def function(*tensors):
        now = {k: v.clone() for k, v in state.items()}
        now.update(zip(names, tensors[len(inputs) :], strict=True))
        return functional_call(layer, now, tensors[: len(inputs)])

    assert torch.autograd.gradcheck(function, (*inputs, *parameters), nondet_tol=1e-12)


def test_inputs_are_not_changed_and_results_repeat(instance):
    inputs = instance.inputs()
    kept = [x.clone() for x in inputs]
    first, second = (settled(instance.make(), inputs)(*inputs) for _ in range(2))
    assert torch.equal(first, second)
    assert all(torch.equal(x, y) for x, y in zip(inputs, kept, strict=True))


def test_samples_are_independent_in_evaluation(instance):
    inputs = instance.inputs()
    layer = settled(instance.make(), inputs).eval()
    together = layer(*inputs)
    other = [torch.cat([x[:1], 7 * x[1:] + 1]) for x in inputs]
    torch.testing.assert_close(layer(*other)[0], together[0], rtol=1e-5, atol=1e-6)


def test_state_copies_and_pickles(instance):
    inputs = instance.inputs()
    layer = settled(instance.make(), inputs).eval()
    expected = layer(*inputs)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    buffer.seek(0)
    loaded = instance.make().eval()
    loaded.load_state_dict(torch.load(buffer, weights_only=True))
    for twin in (loaded, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(*inputs), expected)
    assert repr(layer).startswith(type(layer).__name__)


def test_dtypes(instance):
    inputs = instance.inputs(torch.float64)
    layer = settled(instance.make(), [x.float() for x in inputs]).eval()
    expected = copy.deepcopy(layer).double()(*inputs)
    assert expected.dtype == torch.float64
    single = layer(*(x.float() for x in inputs))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=1e-3, atol=1e-4)
    for dtype, tolerance in ((torch.float16, 0.05), (torch.bfloat16, 0.25)):
        half = copy.deepcopy(layer).to(dtype)(*(x.to(dtype) for x in inputs))
        assert half.dtype == dtype
        torch.testing.assert_close(half.double(), expected, rtol=tolerance, atol=tolerance)


def test_training_in_half_precision_and_autocast(instance):
    for dtype in (torch.bfloat16, torch.float16):
        layer = instance.make().to(dtype).train()
        inputs = [x.to(dtype).requires_grad_() for x in instance.inputs()]
        layer(*inputs).float().square().sum().backward()
        assert all(t.grad.isfinite().all() for t in (*inputs, *layer.parameters()))
    layer = instance.make().train()
    inputs = [x.requires_grad_() for x in instance.inputs()]
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(*inputs)
    y.float().square().sum().backward()
    assert all(t.grad.isfinite().all() for t in (*inputs, *layer.parameters()))
    assert all(b.dtype != torch.bfloat16 for b in layer.buffers())


def test_devices(instance):
    inputs = [x.to("meta") for x in instance.inputs()]
    for layer in (instance.make(device="meta"), instance.make().to("meta")):
        y = layer.eval()(*inputs)
        assert y.device.type == "meta"
        assert y.shape == instance.make().eval()(*instance.inputs()).shape


def test_no_pictures(instance):
    inputs = instance.inputs()
    layer = settled(instance.make(), inputs).eval()
    empty = layer(*(x[:0] if len(x) > 1 else x for x in inputs))
    assert empty.shape == (0, *layer(*inputs).shape[1:])


def test_a_ridge_is_checked_also_where_it_is_set_later(instance):
    layer = instance.make()
    if not hasattr(layer, "eps"):
        return
    for eps, error in (
        (-1.0, ValueError),
        (float("nan"), ValueError),
        ("a", TypeError),
        (torch.nn.Parameter(torch.tensor(0.1)), TypeError),
    ):
        before = layer.eps
        with pytest.raises(error, match=f"{type(layer).__name__}: eps must be"):
            layer.eps = eps
        assert layer.eps is before
    layer.eps = 0.25
    assert "eps" not in dict(layer.named_parameters())


@pytest.mark.parametrize("position", [0, -1])
def test_bad_numbers_are_errors(instance, position):
    inputs = list(instance.inputs())
    layer = settled(instance.make(), inputs)
    inputs[position] = torch.full_like(inputs[position], torch.nan)
    if "Attention" in str(instance) or "-none" in str(instance) or "-power" in str(instance):
        assert layer(*inputs).isnan().all()
        return
    with pytest.raises(torch.linalg.LinAlgError, match="NaN"):
        layer(*inputs)


@pytest.mark.parametrize(
    "instance",
    quick(
        "DecorrelatedBatchNorm2d",
        "DecorrelatedBatchNorm2d-whitening",
        "CovariancePooling2d-oas",
        "TemporalCovariancePooling",
        "WhiteningColoring2d",
    ),
)
def test_compiled_as_eager(instance):
    inputs = instance.inputs()
    layer = settled(instance.make(), inputs)
    twin = copy.deepcopy(layer)
    torch._dynamo.reset()
    # The trace is the same for every backend; generating code is up to PyTorch.
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    results = []
    for f, module in ((layer, layer), (compiled, twin)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        y = f(*leaves)
        g = torch.linspace(-1, 1, y.numel()).view_as(y)
        results.append((y, *torch.autograd.grad(y, [*leaves, *module.parameters()], g)))
    torch.testing.assert_close(results[0], results[1], rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(layer.state_dict(), twin.state_dict(), rtol=1e-3, atol=1e-3)


def test_shapes_are_named(instance):
    layer = instance.make()
    first = layer_input = instance.inputs()[0]
    rest = instance.inputs()[1:]
    for wrong in (first[0, 0], first[:, 1:], first[..., None]):
        if wrong.shape == layer_input.shape:
            continue
        if type(layer).__name__.startswith("Second") and wrong.dim() == 3:
            wrong = wrong[..., 1:]
        if type(layer).__name__.startswith("Token") and wrong.dim() == 3:
            wrong = wrong[..., 1:]
        if wrong.dim() in getattr(layer, "_dimensions", ()) and wrong.shape[1] == first.shape[1]:
            continue  # This layer accepts this number of dimensions, too.
        shape = ", ".join(map(str, wrong.shape))
        with pytest.raises(ValueError, match=rf"\({shape}"):
            layer(wrong, *rest)


def test_the_namespace():
    assert matroot.nn.CovariancePooling2d.__module__ == "matroot.nn.pooling"
