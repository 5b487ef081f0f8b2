"""Functions of matrices by the compiled kernels."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from matroot import screen, spd
from matroot.gradients import GradientRule, Lyapunov, Spectral
from matroot.kernels.kernel import Solved, ValueKernel
from matroot.kernels.native import tasks
from matroot.methods import Minimax, Pade, Taylor
from matroot.request import Request
from matroot.roots import roots_in_order, wanted_roots
from matroot.schedules import OCTAVE, OCTAVES, schedules
from matroot.screen import Status
from matroot.spectrum import Spectrum


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


def unknown_function(request: Request) -> str | None:
    """Why the functions are not for the kernels by eigenpairs."""
    if not request.roots_only and None in map(tasks.lookup, request.solved):
        return "its kernels do not know that function"
    return None


def _eigh_declines(request: Request, a: Tensor) -> str | None:
    rule = request.rule
    if rule is not None and type(rule) is not Spectral and not _is_exact(rule):
        return "its kernel for Eigh does not know what that gradient needs"
    largest = tasks.LARGEST_BY_EIGENPAIRS[request.computing_dtype]
    if not request.roots_only and a.shape[-1] > largest:
        return f"its kernel for functions other than roots holds matrices up to n = {largest}"
    return unknown_function(request)


def _by_eigh(request: Request, a: Tensor) -> Solved | None:
    if not tasks.have_memory(a):
        return None
    a = tasks.in_memory(a)
    if a.shape[-1] > tasks.LARGEST_BY_EIGENPAIRS[a.dtype]:
        return _by_lapack(request, a)
    info, wanted = tasks.info(a), tuple([torch.empty_like(a) for _ in request.solved])
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
    statuses = tasks.eigh(
        a,
        tasks.outputs(request.solved, wanted),
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
    task = tasks.MODULE.PrepareTask(
        batch=tasks.batch(x),
        a=a.data_ptr(),
        x=x.data_ptr(),
        info=found.data_ptr(),
        eps=request.eps,
        thresholds=tasks.thresholds(limits),
    )
    tasks.MODULE.prepare(task)
    wanted = wanted_roots(request.solved)
    # Zeros are the same in a root as small numbers; a division or a derivative must tell them.
    pairs = Spectrum.of(x, sharp=wanted.inv_sqrt or request.rule is not None)
    definite = screen.definiteness(x, limits, eigenvalues=pairs.values)
    status = torch.maximum(found[:, 0], definite)
    ok = status == Status.OK
    scale = torch.where(ok, spd.power_of_two(found[:, 1] // 2, a), torch.nan)[:, None]
    s = pairs.values.clamp(min=0).sqrt() * scale

    def assembled(eigenvalues: Tensor) -> Tensor:
        scaled = pairs.vectors * eigenvalues[:, None, :]
        return tasks.symmetric_product(scaled, pairs.vectors.mT).view(a.shape)

    values = roots_in_order(
        request.solved,
        assembled(s) if wanted.sqrt else None,
        assembled(torch.where(pairs.kept, 1 / s, 0 * s)) if wanted.inv_sqrt else None,
    )
    constants: tuple[Tensor, ...] = ()
    if type(request.rule) is Spectral:
        constants = (s.view(a.shape[:-1]), pairs.vectors.view(a.shape))
    info = torch.stack([status, torch.ones_like(status), ok.long()], -1).view(*a.shape[:-2], 3)
    diverged = status == Status.DIVERGED
    left = diverged.view(a.shape[:-2]) if diverged.any() else None
    return Solved(info, values, constants, bool(ok.all()), left)


def _minimax_declines(request: Request, a: Tensor) -> str | None:
    method, rule = request.method, request.rule
    assert isinstance(method, Minimax)
    if a.shape[-1] > tasks.LARGEST:
        return f"its kernel for Minimax holds matrices up to n = {tasks.LARGEST}"
    if method.step_degree != 5 or method.max_cond is not None:
        return "its kernel for Minimax knows neither max_cond nor steps of degree 3"
    if request.rounded:
        return "its kernel for Minimax knows no half precision"
    if rule is not None and not _is_exact(rule):
        return "its kernel for Minimax does not know what that gradient needs"
    return None


def _by_minimax(request: Request, a: Tensor) -> Solved | None:
    if not tasks.have_memory(a):
        return None
    a, method = tasks.in_memory(a), request.method
    assert isinstance(method, Minimax)
    table, limits = schedules(5, a.dtype, a.device), request.thresholds(a.shape[-1])
    info, roots = tasks.info(a), _memory(request, a)
    constants = (a.new_empty((*a.shape[:-2], 2)),) if request.rule else ()
    sqrt, inv_sqrt = roots
    task = tasks.MODULE.MinimaxTask(
        batch=tasks.batch(a),
        a=a.data_ptr(),
        sqrt=tasks.address(sqrt),
        inv_sqrt=tasks.address(inv_sqrt),
        bounds=constants[0].data_ptr() if constants else 0,
        info=info.data_ptr(),
        eps=request.eps,
        thresholds=tasks.thresholds(limits),
        table=table.data_ptr(),
        table_steps=table.shape[1],
        octave=OCTAVE,
        octaves=OCTAVES,
        tol=2 * spd.real_eps(a.dtype) if method.tol is None else method.tol,
        max_steps=method.max_steps or 0,
    )
    statuses = tasks.MODULE.minimax(task)
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
    x_info, x_roots = tasks.info(x), _memory(request, x)
    limits = request.thresholds(x.shape[-1])
    outputs = tasks.outputs(request.solved, roots_in_order(request.solved, *x_roots))
    statuses = tasks.eigh(x, outputs, x_info, limits, roots=s, eps=request.eps)
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
    if a.shape[-1] > tasks.LARGEST:
        return f"its kernel for polynomials holds matrices up to n = {tasks.LARGEST}"
    if method.polynomials is None:
        return "its kernel evaluates polynomials, which lose too much at this order"
    if rule is not None and type(rule) is not Lyapunov:
        return "its kernel for polynomials does not know what that gradient needs"
    return None


def _by_published(request: Request, a: Tensor) -> Solved | None:
    polynomials = _polynomials(request.method)
    if polynomials is None or not tasks.have_memory(a):
        return None
    a, n, limits = tasks.in_memory(a), a.shape[-1], request.thresholds(a.shape[-1])
    info, roots = tasks.info(a), _memory(request, a)
    norms = type(request.rule) is Lyapunov and request.rule.steps is not None
    constants = (a.new_empty(a.shape[:-2]),) if norms else ()
    # Beyond doubt on the side where the reference has a root; what is closer is left to it.
    units = -(2 * spd.null_units(n, a.dtype) + n / 8) if request.regular else n / 2
    sqrt, inv_sqrt = roots
    task = tasks.MODULE.PublishedTask(
        batch=tasks.batch(a),
        a=a.data_ptr(),
        sqrt=tasks.address(sqrt),
        inv_sqrt=tasks.address(inv_sqrt),
        norms=constants[0].data_ptr() if constants else 0,
        info=info.data_ptr(),
        eps=request.eps,
        thresholds=tasks.thresholds(limits),
        shift=units * spd.real_eps(a.dtype),
        coefficients=polynomials.data_ptr(),
        degree=polynomials.shape[1] - 1,
        quotient=type(request.method) is Pade,
    )
    statuses = tasks.MODULE.published(task)
    return _solved(info, roots_in_order(request.solved, *roots), constants, statuses)


@functools.cache
def _polynomials(method: Pade | Taylor) -> Tensor | None:
    """The coefficients of P and Q, shape (2, degree + 1); None where it does not use them."""
    found = method.polynomials
    return None if found is None else torch.tensor(found, dtype=torch.float64, device="cpu")


PUBLISHED = (ValueKernel("published", _published_declines, _by_published),)
EIGH = (ValueKernel("eigh", _eigh_declines, _by_eigh),)
MINIMAX = (ValueKernel("minimax", _minimax_declines, _by_minimax),)
