"""Whole solves on a CPU by compiled kernels, one matrix at a time in its caches."""

from __future__ import annotations

import functools
import importlib
import math
from dataclasses import replace
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from matroot import checks, normalize, spd, spectrum
from matroot.backends.backend import Backend, FusedRoots, GradientProblem, RootProblem, kind
from matroot.backends.torch_ops import TORCH
from matroot.schedules import OCTAVE, OCTAVES, schedules

# Beyond, one matrix no longer fits the caches, nor the work one thread: LAPACK and PyTorch's
# products do the work, and kernels only the passes between.
LARGEST = 256


def _load() -> ModuleType | None:
    """The compiled module; None where it was not built."""
    name = "matroot.backends._native"
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


_MODULE: Any = _load()


def available() -> bool:
    """Whether the kernels were built."""
    return _MODULE is not None


def _declines(a: Tensor) -> str | None:
    if _MODULE is None:
        return "its kernels were not built: installation found no C++ compiler that could"
    if spd.on_accelerator(a):
        return f"its kernels run on a CPU, not on {a.device.type}"
    if checks.computing_dtype(a.dtype) not in (torch.float32, torch.float64):
        return f"its kernels know real numbers, not {a.dtype}"
    if checks.jit_tracing():
        return "torch.jit.trace records PyTorch's operations"
    if torch.compiler.is_compiling():
        return "torch.compile and torch.export trace PyTorch's operations"
    return checks.operations_are_watched(a)


def _has_memory(*tensors: Tensor) -> bool:
    """Whether a kernel can be given these."""
    # PyTorch offers no public question for storage; what vmap wraps has none.
    return checks.operations_are_watched(*tensors) is None and all(
        checks.host_reads_are_free(t) and torch._C._has_storage(t) for t in tensors
    )


def _in_memory(a: Tensor) -> Tensor:
    """A with its numbers one after the other as they are: no lazy sign, no unwritten zeros."""
    if a._is_zerotensor():
        return torch.zeros_like(a, memory_format=torch.contiguous_format)
    return a.resolve_neg().contiguous()


def _address(a: Tensor | None) -> int:
    return 0 if a is None else a.data_ptr()


def _roots(problem: RootProblem, a: Tensor) -> FusedRoots | None:
    kernel = _ROOTS.get(kind(problem.method))
    if _MODULE is None or kernel is None or not _has_memory(a):
        return None
    return kernel(problem, _in_memory(a))


def _batch(a: Tensor) -> Any:
    n = a.shape[-1]
    return _MODULE.Batch(
        is_double=a.dtype == torch.float64,
        # Where n = 0 there is nothing to solve.
        count=a.numel() // (n * n) if n else 0,
        n=n,
        threads=torch.get_num_threads(),
    )


@functools.cache
def _thresholds(n: int, dtype: torch.dtype, input_dtype: torch.dtype, regular: bool = False) -> Any:
    null = spd.null_share(n, dtype)
    return _MODULE.Thresholds(
        skew=checks.max_skew(input_dtype),
        indefinite=n * spd.real_eps(input_dtype),
        singular=null if regular else -1.0,
        null=null,
    )


@functools.cache
def _null_of_root(n: int, dtype: torch.dtype) -> float:
    return math.sqrt(spd.null_share(n, dtype))


@functools.cache
def _root(inverse: bool) -> Any:
    kind = _MODULE.Kind.INV_SQRT if inverse else _MODULE.Kind.SQRT
    return _MODULE.Function(kind=kind)


def _outputs(sqrt: Tensor | None, inv_sqrt: Tensor | None) -> list[Any]:
    outputs = []
    if sqrt is not None:
        outputs.append(_MODULE.Output(function=_root(False), x=sqrt.data_ptr()))
    if inv_sqrt is not None:
        outputs.append(_MODULE.Output(function=_root(True), x=inv_sqrt.data_ptr()))
    return outputs


def _info(a: Tensor) -> Tensor:
    return a.new_empty((*a.shape[:-2], 3), dtype=torch.int64)


def _roots_memory(problem: RootProblem, a: Tensor) -> tuple[Tensor | None, Tensor | None]:
    return (
        torch.empty_like(a) if problem.sqrt else None,
        torch.empty_like(a) if problem.inv_sqrt else None,
    )


def _by_eigh(problem: RootProblem, a: Tensor) -> FusedRoots | None:
    constants: tuple[Tensor, Tensor] | tuple[()] = ()
    if kind(problem.rule) == "Spectral":
        constants = (a.new_empty(a.shape[:-1]), torch.empty_like(a))
    elif problem.rule is not None and not _is_exact_lyapunov(problem.rule):
        return None
    if a.shape[-1] > LARGEST:
        return _by_lapack(problem, a)
    return _solved_by_eigh(problem, a, *constants)


def _solved_by_eigh(
    problem: RootProblem, a: Tensor, roots: Tensor | None = None, vectors: Tensor | None = None
) -> FusedRoots:
    """The roots by the kernel, and the eigenvalues of S and its eigenvectors where wanted."""
    info, (sqrt, inv_sqrt) = _info(a), _roots_memory(problem, a)
    constants = () if roots is None or vectors is None else (roots, vectors)
    task = _MODULE.EighTask(
        batch=_batch(a),
        a=a.data_ptr(),
        outputs=_outputs(sqrt, inv_sqrt),
        roots=_address(roots),
        vectors=_address(vectors),
        info=info.data_ptr(),
        eps=problem.eps,
        thresholds=_thresholds(a.shape[-1], a.dtype, problem.input_dtype, problem.regular),
    )
    return FusedRoots(info, sqrt, inv_sqrt, constants, _MODULE.eigh(task))


def _by_lapack(problem: RootProblem, a: Tensor) -> FusedRoots:
    n = a.shape[-1]
    x = torch.empty_like(a).view(-1, n, n)
    found = a.new_empty((len(x), 2), dtype=torch.int64)
    task = _MODULE.PrepareTask(
        batch=_batch(x),
        a=a.data_ptr(),
        x=x.data_ptr(),
        info=found.data_ptr(),
        eps=problem.eps,
        thresholds=_thresholds(n, a.dtype, problem.input_dtype),
    )
    _MODULE.prepare(task)
    values, vectors = spectrum.eigh(x)
    definite = normalize.definiteness(
        x, problem.input_dtype, inverse=problem.regular, eigenvalues=values
    )
    status = torch.maximum(found[:, 0], definite)
    ok = status == checks.Status.OK
    scale = torch.where(ok, spd.power_of_two(found[:, 1] // 2, a), torch.nan)[:, None]
    kept = values > spd.null_share(n, a.dtype) * values.abs().amax(-1, keepdim=True)
    s = values.clamp(min=0).sqrt() * scale

    def assembled(eigenvalues: Tensor) -> Tensor:
        root = torch.bmm(vectors * eigenvalues[:, None, :], vectors.mT)
        _symmetrise(root)
        return root.view(a.shape)

    constants = (s.view(a.shape[:-1]), vectors.view(a.shape))
    return FusedRoots(
        torch.stack([status, torch.ones_like(status), ok.long()], -1).view(*a.shape[:-2], 3),
        assembled(s) if problem.sqrt else None,
        assembled(torch.where(kept, 1 / s, 0 * s)) if problem.inv_sqrt else None,
        constants if kind(problem.rule) == "Spectral" else (),
        sum(1 << k for k in set(status.tolist())),
    )


def _symmetrise(x: Tensor) -> None:
    """X becomes (X + Xᵀ)/2."""
    _MODULE.symmetrise(_MODULE.SymmetriseTask(batch=_batch(x), x=x.data_ptr()))


def _by_minimax(problem: RootProblem, a: Tensor) -> FusedRoots | None:
    method = problem.method
    if a.shape[-1] > LARGEST:
        return None
    if method.step_degree != 5 or method.max_cond is not None or problem.input_dtype != a.dtype:
        return None
    if problem.rule is not None and not _is_exact_lyapunov(problem.rule):
        return None
    table = schedules(5, a.dtype, a.device)
    info, (sqrt, inv_sqrt) = _info(a), _roots_memory(problem, a)
    constants = (a.new_empty((*a.shape[:-2], 2)),) if problem.rule else ()
    task = _MODULE.MinimaxTask(
        batch=_batch(a),
        a=a.data_ptr(),
        sqrt=_address(sqrt),
        inv_sqrt=_address(inv_sqrt),
        bounds=constants[0].data_ptr() if constants else 0,
        info=info.data_ptr(),
        eps=problem.eps,
        thresholds=_thresholds(a.shape[-1], a.dtype, a.dtype),
        table=table.data_ptr(),
        table_steps=table.shape[1],
        octave=OCTAVE,
        octaves=OCTAVES,
        tol=2 * spd.real_eps(a.dtype) if method.tol is None else method.tol,
        max_steps=method.max_steps or 0,
    )
    statuses = _MODULE.minimax(task)
    left = 1 << checks.Status.LEFT
    if statuses & left:
        others = statuses & ~left
        statuses = others | _singular_by_eigh(problem, a, info, sqrt, inv_sqrt, constants)
    return FusedRoots(info, sqrt, inv_sqrt, constants, statuses)


def _singular_by_eigh(
    problem: RootProblem,
    a: Tensor,
    info: Tensor,
    sqrt: Tensor | None,
    inv_sqrt: Tensor | None,
    constants: tuple[Tensor, ...],
) -> int:
    """Those that may be singular, which the iteration left, as ``Minimax`` has them: by ``Eigh``.

    In place; returns which statuses occur among them.
    """
    left = info[..., 0] == checks.Status.LEFT
    few = replace(problem, method=None, rule=None)
    x = a[left]
    s = x.new_empty(x.shape[:-1]) if constants else None
    found = _solved_by_eigh(few, x, s)
    info[left] = found.info
    if sqrt is not None and found.sqrt is not None:
        sqrt[left] = found.sqrt
    if inv_sqrt is not None and found.inv_sqrt is not None:
        inv_sqrt[left] = found.inv_sqrt
    if s is not None:
        high = s.amax(-1)
        null = math.sqrt(2 * spd.null_share(x.shape[-1], x.dtype)) * high
        low = s.amin(-1)
        constants[0][left] = torch.stack([torch.where(low <= null, 0.0 * low, low), high], -1)
    return found.statuses or 0


def _by_published(problem: RootProblem, a: Tensor) -> FusedRoots | None:
    polynomials = None if a.shape[-1] > LARGEST else _polynomials(problem.method)
    published = kind(problem.rule) == "Lyapunov" and problem.rule.steps is not None
    if polynomials is None or not (
        published or problem.rule is None or _is_exact_lyapunov(problem.rule)
    ):
        return None
    info, (sqrt, inv_sqrt) = _info(a), _roots_memory(problem, a)
    constants = (a.new_empty(a.shape[:-2]),) if published else ()
    # Beyond doubt on the side where the reference has a root; what is closer is left to it.
    n = a.shape[-1]
    units = -(2 * spd.null_units(n, a.dtype) + n / 8) if problem.regular else n / 2
    task = _MODULE.PublishedTask(
        batch=_batch(a),
        a=a.data_ptr(),
        sqrt=_address(sqrt),
        inv_sqrt=_address(inv_sqrt),
        norms=constants[0].data_ptr() if constants else 0,
        info=info.data_ptr(),
        eps=problem.eps,
        thresholds=_thresholds(n, a.dtype, problem.input_dtype),
        shift=units * spd.real_eps(a.dtype),
        coefficients=polynomials.data_ptr(),
        degree=polynomials.shape[1] - 1,
        quotient=kind(problem.method) == "Pade",
    )
    return FusedRoots(info, sqrt, inv_sqrt, constants, _MODULE.published(task))


@functools.cache
def _polynomials(method: Any) -> Tensor | None:
    """The coefficients of P and Q, shape (2, degree + 1); None where it does not use them."""
    found = method.polynomials
    return None if found is None else torch.tensor(found, dtype=torch.float64, device="cpu")


def _is_exact_lyapunov(rule: Any) -> bool:
    return kind(rule) == "Lyapunov" and rule.steps is None


_ROOTS = {
    "Eigh": _by_eigh,
    "Minimax": _by_minimax,
    "Pade": _by_published,
    "Taylor": _by_published,
}


def _gradient(problem: GradientProblem) -> Tensor | None:
    kernel = _GRADIENTS.get(kind(problem.rule))
    given = (problem.sqrt, *problem.constants, problem.g_sqrt, problem.g_inv)
    if _MODULE is None or kernel is None or not _has_memory(*(t for t in given if t is not None)):
        return None
    return kernel(problem)


def _by_spectrum(problem: GradientProblem) -> Tensor:
    s, vectors = problem.constants
    return _divided(s, vectors, None, problem)


def _by_lyapunov(problem: GradientProblem) -> Tensor | None:
    """By the eigenpairs of S, found again: as exact as S, and faster than products.

    So are the steps of the sign iteration: they are taken on the eigenvalues.
    """
    if problem.sqrt is None or (problem.rule.steps is not None and not problem.constants):
        return None
    if problem.sqrt.shape[-1] > LARGEST:
        return None
    root = _in_memory(problem.sqrt)
    z = None if problem.inv_sqrt is None else _in_memory(problem.inv_sqrt)
    info, s, vectors = _info(root), root.new_empty(root.shape[:-1]), torch.empty_like(root)
    n = root.shape[-1]
    task = _MODULE.EighTask(
        batch=_batch(root),
        a=root.data_ptr(),
        outputs=[],
        roots=s.data_ptr(),
        vectors=vectors.data_ptr(),
        of_root=True,
        info=info.data_ptr(),
        thresholds=_MODULE.Thresholds(indefinite=n * spd.real_eps(root.dtype)),
    )
    left = _MODULE.eigh(task) & 1 << checks.Status.LEFT
    return None if left else _divided(s, vectors, z, problem)


def _divided(s: Tensor, vectors: Tensor, z: Tensor | None, problem: GradientProblem) -> Tensor:
    """Division by s_i + s_j in the basis of the eigenvectors, or steps; see SpectralTask."""
    steps = getattr(problem.rule, "steps", None) or 0
    norms = _in_memory(problem.constants[0]) if steps else None
    n = vectors.shape[-1]
    # A matrix that has an inverse root has no null space.
    null = _null_of_root(n, s.dtype) if problem.inv_sqrt is None else 0.0
    s, vectors = _in_memory(s), _in_memory(vectors)
    g_sqrt, g_inv = (None if g is None else _in_memory(g) for g in (problem.g_sqrt, problem.g_inv))
    if n > LARGEST:
        return _divided_by_passes(s, vectors, g_sqrt, g_inv, null)
    x = torch.empty_like(vectors)
    task = _MODULE.SpectralTask(
        batch=_batch(x),
        roots=s.data_ptr(),
        vectors=vectors.data_ptr(),
        z=_address(z),
        g_sqrt=_address(g_sqrt),
        g_inv=_address(g_inv),
        x=x.data_ptr(),
        null=null,
        norms=_address(norms),
        steps=steps,
    )
    _MODULE.spectral(task)
    return x


def _divided_by_passes(
    s: Tensor, vectors: Tensor, g_sqrt: Tensor | None, g_inv: Tensor | None, null: float
) -> Tensor:
    """``_divided`` of large matrices, Z exact."""

    def rotated(g: Tensor) -> Tensor:
        r = vectors.mT @ g @ vectors
        _symmetrise(r)
        return r

    q = None if g_inv is None else rotated(g_inv)
    r = rotated(g_sqrt) if g_sqrt is not None else torch.zeros_like(vectors)
    task = _MODULE.DivideTask(
        batch=_batch(r), r=r.data_ptr(), q=_address(q), roots=s.data_ptr(), null=null
    )
    _MODULE.divide(task)
    x = vectors @ r @ vectors.mT
    _symmetrise(x)
    return x


_GRADIENTS = {"Spectral": _by_spectrum, "Lyapunov": _by_lyapunov}


NATIVE = Backend(
    name="native",
    matmul=TORCH.matmul,
    addmm=TORCH.addmm,
    declines=_declines,
    roots=_roots,
    gradient=_gradient,
    method="eigh",
)
