"""Whole solves on a CPU by compiled kernels, one matrix at a time in its caches."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from matroot import context, screen, spd
from matroot.functions import Exp, InvSqrt, Log, OnRange, Power, SpectralFunction, Sqrt
from matroot.gradients import GradientRule, Kept, Lyapunov, Spectral
from matroot.gradients.rule import Cotangents
from matroot.kernels.kernel import Family, GradientKernel, Solved, ValueKernel
from matroot.methods import Eigh, Minimax, Pade, Taylor
from matroot.request import Request
from matroot.roots import Functions, belonging, roots_in_order, wanted_roots
from matroot.schedules import OCTAVE, OCTAVES, schedules
from matroot.screen import Status, Thresholds
from matroot.spectrum import Spectrum

# Beyond, one matrix no longer fits the caches, nor the work one thread: LAPACK and PyTorch's
# products do the work, and kernels only the passes between.
LARGEST = 256


def _load() -> ModuleType | None:
    """The compiled module; None where it was not built."""
    name = "matroot.kernels._native"
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
    if context.on_accelerator(a):
        return f"its kernels run on a CPU, not on {a.device.type}"
    if spd.computing_dtype(a.dtype) not in (torch.float32, torch.float64):
        return f"its kernels know real numbers, not {a.dtype}"
    if context.jit_tracing():
        return "torch.jit.trace records PyTorch's operations"
    if torch.compiler.is_compiling():
        return "torch.compile and torch.export trace PyTorch's operations"
    return context.operations_are_watched(a)


def _have_memory(*tensors: Tensor | None) -> bool:
    """Whether a kernel can be given these."""
    for t in tensors:
        # PyTorch offers no public question for storage; what vmap wraps has none.
        if t is None:
            continue
        if not (t.device.type == "cpu" and context.is_plain(t) and torch._C._has_storage(t)):
            return False
    return True


def _in_memory(a: Tensor) -> Tensor:
    """A with its numbers one after the other as they are: no lazy sign, no unwritten zeros."""
    if a._is_zerotensor():
        return torch.zeros_like(a, memory_format=torch.contiguous_format)
    return a.resolve_neg().contiguous()


def _address(a: Tensor | None) -> int:
    return 0 if a is None else a.data_ptr()


def _batch(a: Tensor) -> Any:
    """The matrices (..., n, n) of a task, and the threads for them."""
    n = a.shape[-1]
    return _MODULE.Batch(
        is_double=a.dtype == torch.float64,
        count=a.numel() // (n * n),
        n=n,
        threads=torch.get_num_threads(),
    )


@functools.lru_cache(1024)
def _thresholds(limits: Thresholds) -> Any:
    """As the kernels take them, below 0 for None."""
    return _MODULE.Thresholds(**{k: -1.0 if x is None else x for k, x in limits._asdict().items()})


@functools.lru_cache(1024)
def _function(function: SpectralFunction) -> Any:
    """As the kernels know it; None where they do not."""
    kinds = _MODULE.Kind
    if type(function) is OnRange:
        # They leave null eigenvalues out wherever singular matrices are not refused.
        return None if function.function.domain == "semidefinite" else _function(function.function)
    if type(function) is Power:
        return _MODULE.Function(kind=kinds.POWER, exponent=function.p)
    known = {Sqrt: kinds.SQRT, InvSqrt: kinds.INV_SQRT, Log: kinds.LOG, Exp: kinds.EXP}
    kind = known.get(type(function))
    return None if kind is None else _MODULE.Function(kind=kind)


def _info(a: Tensor) -> Tensor:
    return a.new_empty((*a.shape[:-2], 3), dtype=torch.int64)


def _memory(request: Request, a: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """For S and Z, those that are wanted."""
    sqrt, inv_sqrt = wanted_roots(request.solved)
    return torch.empty_like(a) if sqrt else None, torch.empty_like(a) if inv_sqrt else None


def _is_exact(rule: GradientRule | None) -> bool:
    """Whether the gradient is that of the Lyapunov equation solved to rounding."""
    return type(rule) is Lyapunov and rule.steps is None


def _solved(
    info: Tensor, values: tuple[Tensor, ...], constants: tuple[Tensor, ...], statuses: int
) -> Solved:
    """What was found; ``statuses`` has bit k where status k occurs."""
    left = info[..., 0] == Status.LEFT if statuses & 1 << Status.LEFT else None
    return Solved(info, values, constants, statuses == 1 << Status.OK, left)


def _eigh(
    a: Tensor,
    outputs: list[Any],
    info: Tensor,
    limits: Thresholds,
    *,
    roots: Tensor | None = None,
    vectors: Tensor | None = None,
    values: Tensor | None = None,
    of_root: bool = False,
    eps: float = 0.0,
) -> int:
    """The kernel by eigendecomposition; see EighTask in native/isa.hpp."""
    task = _MODULE.EighTask(
        batch=_batch(a),
        a=a.data_ptr(),
        outputs=outputs,
        roots=_address(roots),
        vectors=_address(vectors),
        values=_address(values),
        of_root=of_root,
        info=info.data_ptr(),
        eps=eps,
        thresholds=_thresholds(limits),
    )
    statuses: int = _MODULE.eigh(task)
    return statuses


def _outputs(functions: Functions, values: Iterable[Tensor]) -> list[Any]:
    """Where the functions go."""
    return [
        _MODULE.Output(function=_function(function), x=value.data_ptr())
        for function, value in zip(functions, values, strict=True)
    ]


def _unknown(request: Request) -> str | None:
    """Why the functions are not for the kernels by eigenpairs."""
    if not request.roots_only and None in map(_function, request.solved):
        return "its kernels do not know that function"
    return None


def _eigh_declines(request: Request, a: Tensor) -> str | None:
    rule = request.rule
    if rule is not None and type(rule) is not Spectral and not _is_exact(rule):
        return "its kernel for Eigh does not know what that gradient needs"
    if not request.roots_only and a.shape[-1] > LARGEST:
        return f"its kernel for functions other than roots holds matrices up to n = {LARGEST}"
    return _unknown(request)


def _by_eigh(request: Request, a: Tensor) -> Solved | None:
    if not _have_memory(a):
        return None
    a = _in_memory(a)
    if a.shape[-1] > LARGEST:
        return _by_lapack(request, a)
    info, wanted = _info(a), tuple([torch.empty_like(a) for _ in request.solved])
    roots = vectors = values = None
    constants: tuple[Tensor, ...] = ()
    if type(request.rule) is Spectral:
        vectors = torch.empty_like(a)
        if request.roots_only:
            roots = a.new_empty(a.shape[:-1])
            constants = (roots, vectors)
        else:
            values = a.new_empty(a.shape[:-1], dtype=torch.float64)
            constants = (values, vectors)
    statuses = _eigh(
        a,
        _outputs(request.solved, wanted),
        info,
        request.thresholds(a.shape[-1]),
        roots=roots,
        vectors=vectors,
        values=values,
        eps=request.eps,
    )
    return _solved(info, wanted, constants, statuses)


def _by_lapack(request: Request, a: Tensor) -> Solved:
    n, limits = a.shape[-1], request.thresholds(a.shape[-1])
    x = torch.empty_like(a).view(-1, n, n)
    found = a.new_empty((len(x), 2), dtype=torch.int64)
    task = _MODULE.PrepareTask(
        batch=_batch(x),
        a=a.data_ptr(),
        x=x.data_ptr(),
        info=found.data_ptr(),
        eps=request.eps,
        thresholds=_thresholds(limits),
    )
    _MODULE.prepare(task)
    pairs = Spectrum.of(x)
    definite = screen.definiteness(x, limits, eigenvalues=pairs.values)
    status = torch.maximum(found[:, 0], definite)
    ok = status == Status.OK
    scale = torch.where(ok, spd.power_of_two(found[:, 1] // 2, a), torch.nan)[:, None]
    s = pairs.values.clamp(min=0).sqrt() * scale
    left_out = pairs.null | (pairs.values < 0)

    def assembled(eigenvalues: Tensor) -> Tensor:
        root = torch.bmm(pairs.vectors * eigenvalues[:, None, :], pairs.vectors.mT)
        _symmetrise(root)
        return root.view(a.shape)

    wanted = wanted_roots(request.solved)
    values = roots_in_order(
        request.solved,
        assembled(s) if wanted.sqrt else None,
        assembled(torch.where(left_out, 0 * s, 1 / s)) if wanted.inv_sqrt else None,
    )
    constants: tuple[Tensor, ...] = ()
    if type(request.rule) is Spectral:
        constants = (s.view(a.shape[:-1]), pairs.vectors.view(a.shape))
    info = torch.stack([status, torch.ones_like(status), ok.long()], -1).view(*a.shape[:-2], 3)
    diverged = status == Status.DIVERGED
    left = diverged.view(a.shape[:-2]) if diverged.any() else None
    return Solved(info, values, constants, bool(ok.all()), left)


def _symmetrise(x: Tensor) -> None:
    """X becomes (X + Xᵀ)/2."""
    _MODULE.symmetrise(_MODULE.SymmetriseTask(batch=_batch(x), x=x.data_ptr()))


def _minimax_declines(request: Request, a: Tensor) -> str | None:
    method, rule = request.method, request.rule
    assert isinstance(method, Minimax)
    if a.shape[-1] > LARGEST:
        return f"its kernel for Minimax holds matrices up to n = {LARGEST}"
    if method.step_degree != 5 or method.max_cond is not None:
        return "its kernel for Minimax knows neither max_cond nor steps of degree 3"
    if request.input_dtype != request.computing_dtype:
        return "its kernel for Minimax knows no half precision"
    if rule is not None and not _is_exact(rule):
        return "its kernel for Minimax does not know what that gradient needs"
    return None


def _by_minimax(request: Request, a: Tensor) -> Solved | None:
    if not _have_memory(a):
        return None
    a, method = _in_memory(a), request.method
    assert isinstance(method, Minimax)
    table, limits = schedules(5, a.dtype, a.device), request.thresholds(a.shape[-1])
    info, roots = _info(a), _memory(request, a)
    constants = (a.new_empty((*a.shape[:-2], 2)),) if request.rule else ()
    sqrt, inv_sqrt = roots
    task = _MODULE.MinimaxTask(
        batch=_batch(a),
        a=a.data_ptr(),
        sqrt=_address(sqrt),
        inv_sqrt=_address(inv_sqrt),
        bounds=constants[0].data_ptr() if constants else 0,
        info=info.data_ptr(),
        eps=request.eps,
        thresholds=_thresholds(limits),
        table=table.data_ptr(),
        table_steps=table.shape[1],
        octave=OCTAVE,
        octaves=OCTAVES,
        tol=2 * spd.real_eps(a.dtype) if method.tol is None else method.tol,
        max_steps=method.max_steps or 0,
    )
    statuses = _MODULE.minimax(task)
    left = 1 << Status.LEFT
    if statuses & left:
        others = statuses & ~left
        statuses = others | _singular_by_eigh(request, a, info, roots, constants)
    return _solved(info, roots_in_order(request.solved, *roots), constants, statuses)


def _singular_by_eigh(
    request: Request,
    a: Tensor,
    info: Tensor,
    roots: tuple[Tensor | None, Tensor | None],
    constants: tuple[Tensor, ...],
) -> int:
    """Those that may be singular, which the iteration left, as ``Minimax`` has them: by ``Eigh``.

    In place; returns which statuses occur among them.
    """
    left = info[..., 0] == Status.LEFT
    x = a[left]
    s = x.new_empty(x.shape[:-1]) if constants else None
    x_info, x_roots = _info(x), _memory(request, x)
    limits = request.thresholds(x.shape[-1])
    outputs = _outputs(request.solved, roots_in_order(request.solved, *x_roots))
    statuses = _eigh(x, outputs, x_info, limits, roots=s, eps=request.eps)
    info[left] = x_info
    for whole, part in zip(roots, x_roots, strict=True):
        if whole is not None and part is not None:
            whole[left] = part
    if s is not None:
        high = s.amax(-1)
        null = math.sqrt(2 * limits.null) * high
        low = s.amin(-1)
        constants[0][left] = torch.stack([torch.where(low <= null, 0.0 * low, low), high], -1)
    return statuses


def _published_declines(request: Request, a: Tensor) -> str | None:
    method, rule = request.method, request.rule
    assert isinstance(method, (Pade, Taylor))
    if a.shape[-1] > LARGEST:
        return f"its kernel for polynomials holds matrices up to n = {LARGEST}"
    if method.polynomials is None:
        return "its kernel evaluates polynomials, which lose too much at this order"
    if rule is not None and type(rule) is not Lyapunov:
        return "its kernel for polynomials does not know what that gradient needs"
    return None


def _by_published(request: Request, a: Tensor) -> Solved | None:
    polynomials = _polynomials(request.method)
    if polynomials is None or not _have_memory(a):
        return None
    a, n, limits = _in_memory(a), a.shape[-1], request.thresholds(a.shape[-1])
    info, roots = _info(a), _memory(request, a)
    norms = type(request.rule) is Lyapunov and request.rule.steps is not None
    constants = (a.new_empty(a.shape[:-2]),) if norms else ()
    # Beyond doubt on the side where the reference has a root; what is closer is left to it.
    units = -(2 * spd.null_units(n, a.dtype) + n / 8) if request.regular else n / 2
    sqrt, inv_sqrt = roots
    task = _MODULE.PublishedTask(
        batch=_batch(a),
        a=a.data_ptr(),
        sqrt=_address(sqrt),
        inv_sqrt=_address(inv_sqrt),
        norms=constants[0].data_ptr() if constants else 0,
        info=info.data_ptr(),
        eps=request.eps,
        thresholds=_thresholds(limits),
        shift=units * spd.real_eps(a.dtype),
        coefficients=polynomials.data_ptr(),
        degree=polynomials.shape[1] - 1,
        quotient=type(request.method) is Pade,
    )
    statuses = _MODULE.published(task)
    return _solved(info, roots_in_order(request.solved, *roots), constants, statuses)


@functools.cache
def _polynomials(method: Any) -> Tensor | None:
    """The coefficients of P and Q, shape (2, degree + 1); None where it does not use them."""
    found = method.polynomials
    return None if found is None else torch.tensor(found, dtype=torch.float64, device="cpu")


def _spectral_declines(request: Request, a: Tensor) -> str | None:
    return _unknown(request)


def _by_spectrum(request: Request, kept: Kept, g: Cotangents) -> Tensor | None:
    if not _have_memory(*kept.values, *kept.constants, *g):
        return None
    first, vectors = kept.constants
    if not request.roots_only:
        return _by_divided_differences(request, first, vectors, g)
    return _divided(first, vectors, None, None, 0, kept, g)


def _by_divided_differences(
    request: Request, values: Tensor, vectors: Tensor, g: Cotangents
) -> Tensor:
    """Σ U [f[λ_i, λ_j] (Uᵀ G_f U)_ij] Uᵀ; see FrechetTask."""
    n = vectors.shape[-1]
    limits = request.thresholds(n)
    given = [
        (_function(function), _in_memory(x))
        for function, x in zip(request.solved, g, strict=True)
        if x is not None
    ]
    values, vectors = _in_memory(values.to(torch.float64)), _in_memory(vectors)
    if n > LARGEST:
        r = sum(_weighed(values, vectors.mT @ x @ vectors, f, limits) for f, x in given)
        x = vectors @ r @ vectors.mT
        _symmetrise(x)
        return x
    x = torch.empty_like(vectors)
    task = _MODULE.FrechetTask(
        batch=_batch(x),
        values=values.data_ptr(),
        vectors=vectors.data_ptr(),
        cotangents=[_MODULE.Cotangent(function=f, g=y.data_ptr()) for f, y in given],
        x=x.data_ptr(),
        thresholds=_thresholds(limits),
    )
    _MODULE.frechet(task)
    return x


def _weighed(values: Tensor, r: Tensor, function: Any, limits: Thresholds) -> Tensor:
    """f[λ_i, λ_j] r_ij, in the memory of R, of which the symmetric part is taken."""
    _symmetrise(r)
    task = _MODULE.WeighTask(
        batch=_batch(r),
        r=r.data_ptr(),
        values=values.data_ptr(),
        function=function,
        thresholds=_thresholds(limits),
    )
    _MODULE.weigh(task)
    return r


def _lyapunov_declines(request: Request, a: Tensor) -> str | None:
    if a.shape[-1] > LARGEST:
        return f"its kernel for Lyapunov holds matrices up to n = {LARGEST}"
    return None


def _by_lyapunov(request: Request, kept: Kept, g: Cotangents) -> Tensor | None:
    """By the eigenpairs of S, found again: as exact as S, and faster than products.

    So are the steps of the sign iteration: they are taken on the eigenvalues.
    """
    rule, root = request.rule, kept.sqrt
    assert isinstance(rule, Lyapunov)
    steps, norms = rule.steps or 0, None
    if root is None or not _have_memory(*kept.values, *kept.constants, *g):
        return None
    if steps:
        if not kept.constants:
            return None
        norms = _in_memory(kept.constants[0])
    root = _in_memory(root)
    z = None if kept.inv_sqrt is None else _in_memory(kept.inv_sqrt)
    info, s, vectors = _info(root), root.new_empty(root.shape[:-1]), torch.empty_like(root)
    limits = screen.thresholds(root.shape[-1], root.dtype)._replace(skew=1.0)
    statuses = _eigh(root, [], info, limits, roots=s, vectors=vectors, of_root=True)
    if statuses & 1 << Status.LEFT:
        return None
    return _divided(s, vectors, z, norms, steps, kept, g)


def _divided(
    s: Tensor,
    vectors: Tensor,
    z: Tensor | None,
    norms: Tensor | None,
    steps: int,
    kept: Kept,
    g: Cotangents,
) -> Tensor:
    """Division by s_i + s_j in the basis of the eigenvectors, or steps; see SpectralTask."""
    n = vectors.shape[-1]
    # A matrix that has an inverse root has no null space.
    null = math.sqrt(spd.null_share(n, s.dtype)) if kept.inv_sqrt is None else 0.0
    s, vectors = _in_memory(s), _in_memory(vectors)
    g_sqrt, g_inv = (belonging(kind, kept.functions, g) for kind in (Sqrt, InvSqrt))
    g_sqrt, g_inv = (None if x is None else _in_memory(x) for x in (g_sqrt, g_inv))
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


def squared_distances(
    a: Tensor, b: Tensor, limits: Thresholds, eps: float, *, gradients: bool
) -> tuple[Tensor, ...] | None:
    """The squared Bures–Wasserstein distances of pairs, and if asked for their two gradients.

    See DistanceTask in native/isa.hpp.

    Args:
        a: shape (..., n, n), in the computing dtype.
        b: shape (..., n, n), as many dimensions; those of the batch broadcast.
        limits: the thresholds.
        eps: the ridge on both.
        gradients: whether they are wanted.

    Returns:
        The squares in double precision, shape (...), and the gradients, twice (..., n, n). A square
        is NaN, and its gradients mean nothing, where a matrix has no root or may be singular. None
        where no kernel takes such matrices.
    """
    n = a.shape[-1]
    # Of matrices of double precision the kernel would lose half the digits.
    if a.dtype != torch.float32 or n > LARGEST:
        return None
    if _declines(a) is not None or not _have_memory(a, b):
        return None
    # PyTorch's function has no annotations.
    pairs = torch.broadcast_tensors(a, b)  # type: ignore[no-untyped-call]
    first, second = map(_in_memory, pairs)
    square = first.new_empty(first.shape[:-2], dtype=torch.float64)
    by = (torch.empty_like(first), torch.empty_like(first)) if gradients else ()
    task = _MODULE.DistanceTask(
        batch=_batch(first),
        a=first.data_ptr(),
        b=second.data_ptr(),
        square=square.data_ptr(),
        by_a=by[0].data_ptr() if by else 0,
        by_b=by[1].data_ptr() if by else 0,
        eps=eps,
        thresholds=_thresholds(limits),
    )
    _MODULE.distance(task)
    return (square, *by)


_PUBLISHED = (ValueKernel("published", _published_declines, _by_published),)

NATIVE = Family(
    name="native",
    declines=_declines,
    values={
        Eigh: (ValueKernel("eigh", _eigh_declines, _by_eigh),),
        Minimax: (ValueKernel("minimax", _minimax_declines, _by_minimax),),
        Pade: _PUBLISHED,
        Taylor: _PUBLISHED,
    },
    gradients={
        Spectral: (GradientKernel("spectral", _spectral_declines, _by_spectrum),),
        Lyapunov: (GradientKernel("lyapunov", _lyapunov_declines, _by_lyapunov),),
    },
    method=Eigh(),
)
