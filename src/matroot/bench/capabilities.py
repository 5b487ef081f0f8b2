"""What a package's square root can do, found by running it: a probe for each question."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from matroot.bench.adapters import Absent, Adapter, Function
from matroot.bench.measure import APPROXIMATE, ROOTS, RootName, describe
from matroot.bench.rows import Row
from matroot.testing import (
    Quantity,
    exact,
    exact_gradient,
    random_spd,
    relative_error,
    tolerance,
)


def tied(*eigenvalues: float) -> Tensor:
    """A matrix with these eigenvalues whose eigenvectors are not axes, float64."""
    q = torch.linalg.qr(random_spd(len(eigenvalues), seed=4)).Q
    a = (q * torch.tensor(eigenvalues, dtype=torch.float64)) @ q.mT
    symmetric: Tensor = (a + a.mT) / 2
    return symmetric


def least_gradient(s: Tensor, g: Tensor) -> Tensor:
    """The solution of least norm of S X + X S = G: 0 on null × null space.

    S may have the eigenvalue 0, and others that are at least 1e-3.
    """
    values, q = torch.linalg.eigh(s)
    values = values.clamp(min=0)
    sums = values[..., :, None] + values[..., None, :]
    h = q.mH @ g @ q
    solution: Tensor = q @ torch.where(sums > 1e-3, h / sums.clamp(min=1e-3), 0) @ q.mH
    return solution


def exact_second(a: Tensor, g: Tensor, e: Tensor, root: RootName) -> Tensor:
    """What ``Adapter.second`` should return, for symmetric G and E.

    With f(A) the root and L its derivative:  D²f*(G ∘ f(A), E) + L(G ∘ L(E)),  where in the basis
    of A's eigenvectors  D²f*(H, E)_ij = Σ_k f[λ_i, λ_k, λ_j] (E_ik H_kj + H_ik E_kj)  with the
    second divided differences, d = (s_i + s_k)(s_k + s_j)(s_i + s_j):  −1/d  for the root and
    (s_i + s_k + s_j)/(s_i s_k s_j d)  for the inverse root.
    """
    values, q = torch.linalg.eigh(a)
    s = values.sqrt()
    i, k, j = s[..., :, None, None], s[..., None, :, None], s[..., None, None, :]
    below = (i + k) * (k + j) * (i + j)
    differences: Tensor = -1 / below if root == "sqrt" else (i + k + j) / (i * k * j * below)
    h, d = q.mT @ (g * exact(a, root)) @ q, q.mT @ e @ q
    pairs = [torch.einsum("...ikj,...ik,...kj->...ij", differences, *x) for x in ((d, h), (h, d))]
    curved: Tensor = q @ (pairs[0] + pairs[1]) @ q.mT
    return curved + exact_gradient(a, g * exact_gradient(a, e, root), root)


@dataclass(frozen=True)
class Subject:
    """The functions that the probes test.

    Attributes:
        functions: some of ``"sqrt"``, ``"inv_sqrt"``, ``"both"``, and ``"unchecked"``, a square
            root that does not raise for a bad matrix, where there is a choice.
        adapter: how they are called.
        truncated: they are approximations, and may be off by ``APPROXIMATE``.
        device: where the matrices lie.
    """

    functions: Mapping[str, Function]
    adapter: Adapter
    truncated: bool
    device: torch.device

    def values(self, name: str, a: Tensor) -> tuple[Tensor, ...]:
        """The roots."""
        found = self.adapter.value(self.functions[name], a.to(self.device))
        return tuple(x.cpu() for x in found)

    def gradient(self, name: str, a: Tensor, g: Tensor) -> Tensor:
        """The gradient for this cotangent."""
        function, device = self.functions[name], self.device
        return self.adapter.gradient(function, a.to(device), (g.to(device),))[1].cpu()

    def second(self, name: str, a: Tensor, g: Tensor, e: Tensor) -> Tensor:
        """The second derivative: see ``Adapter``."""
        inputs = (x.to(self.device) for x in (a, g, e))
        return self.adapter.second(self.functions[name], *inputs).cpu()

    def jvp(self, name: str, a: Tensor, e: Tensor) -> Tensor:
        """The derivative along E."""
        inputs = (x.to(self.device) for x in (a, e))
        return self.adapter.jvp(self.functions[name], *inputs).cpu()

    def judge(self, found: Tensor, truth: Tensor, allowed: float) -> str | None:
        """What is wrong with the worst of the batch, None if nothing."""
        return judge(found, truth, max(allowed, APPROXIMATE) if self.truncated else allowed)


@dataclass(frozen=True)
class Probe:
    """A question, and the test that answers it.

    Attributes:
        name: the short name.
        question: what a ``y`` means.
        ask: returns what is wrong, None if nothing, with the first function of ``needs`` that the
            subject has. An exception counts as wrong.
        needs: names of functions; one of them is required.
        dtype: of the matrices.
    """

    name: str
    question: str
    ask: Callable[[Subject, str], str | None]
    needs: tuple[str, ...] = ROOTS
    dtype: str = "float64"

    def answer(self, subject: Subject) -> Row:
        """``answer``, ``"y"``, ``"n"`` or ``"–"`` (no such function), and ``why`` if it is n."""
        name = next((name for name in self.needs if name in subject.functions), None)
        if name is None:
            return {"answer": "–", "why": None}
        try:
            why = self.ask(subject, name)
        except Absent as error:
            why = str(error)
        # A peer may raise anything, and the run goes on; Ctrl-C is no Exception.
        except Exception as error:
            why = f"raises {describe(error)}"
        return {"answer": "n" if why else "y", "why": why}


def judge(found: Tensor, truth: Tensor, allowed: float) -> str | None:
    """What is wrong with the worst of the batch, None if nothing."""
    if found.shape != truth.shape:
        return f"shape {tuple(found.shape)} instead of {tuple(truth.shape)}"
    if not found.isfinite().all():
        return "not finite"
    error = float(relative_error(found, truth).max())
    return None if error <= allowed else f"error {error:.1e}, allowed {allowed:.1e}"


def _each(matrices: Mapping[str, Tensor], ask: Callable[[Tensor], str | None]) -> str | None:
    """The first failure, with the name of its matrix."""
    for label, a in matrices.items():
        try:
            why = ask(a)
        except Absent:
            raise
        # As in ``Probe.answer``, but with the name of the matrix.
        except Exception as error:
            why = f"raises {describe(error)}"
        if why:
            return f"{label}: {why}"
    return None


def _root_of(name: str) -> RootName:
    return "inv_sqrt" if name == "inv_sqrt" else "sqrt"


def _gradient_of(name: str) -> Quantity:
    return "inv_gradient" if name == "inv_sqrt" else "gradient"


# Matrices come in pairs wherever batches are not the question: some packages take exactly three
# dimensions, and JAX compiles once for every shape.
def _random(*batch: int, cond: float = 10.0, dtype: torch.dtype = torch.float64) -> Tensor:
    return random_spd(4, *(batch or (2,)), cond=cond, dtype=dtype)


def _pair(a: Tensor) -> Tensor:
    return a.expand(2, 4, 4).contiguous()


# A cotangent and a direction.
_G, _E = (random_spd(4, 2, cond=10.0, seed=seed) for seed in (7, 8))
_TIES = {"3·identity": _pair(3 * torch.eye(4).double()), "λ = 1, 1, 4, 4": _pair(tied(1, 1, 4, 4))}
_NEAR = {"λ = 1, 1 + 1e-12, 4, 4 + 1e-10": _pair(tied(1, 1 + 1e-12, 4, 4 + 1e-10))}
_SINGULAR = {  # S of S²
    "diagonal": _pair(torch.diag(torch.tensor([2.0, 1.0, 0.0, 0.0]).double())),
    "zero": _pair(torch.zeros(4, 4).double()),
    # Zero eigenvalues are rounded to either sign, and many packages take them for small positive
    # ones; with a few matrices it would be a matter of chance whether this shows.
    **{
        f"rank 2 of 4, no. {i + 1}": _pair(s)
        for i, s in enumerate(random_spd(4, 16, cond=2.0, spectrum="half_zero"))
    },
}
# The root of a zero that is rounded to u is √u: as accurate as at κ = 1/u. The gradient divides by
# the sum of this and another root, which is at least 1/2 here, and is as accurate.
_SINGULAR_TOLERANCE = tolerance(torch.float64, 1 / torch.finfo(torch.float64).eps, "sqrt")


def _value(subject: Subject, name: str, a: Tensor, cond: float = 10.0) -> str | None:
    root = _root_of(name)
    allowed = tolerance(a.dtype, cond, root)
    return subject.judge(subject.values(name, a)[0], exact(a, root), allowed)


def _plain(subject: Subject, name: str) -> str | None:
    return _value(subject, name, _random())


def _both(subject: Subject, name: str) -> str | None:
    a = _random()
    for root, found in zip(ROOTS, subject.values(name, a), strict=True):
        why = subject.judge(found, exact(a, root), tolerance(a.dtype, 10.0, root))
        if why:
            return f"{root}: {why}"
    return None


def _batches(subject: Subject, name: str) -> str | None:
    return _value(subject, name, _random(2, 3))


def _empty(subject: Subject, name: str) -> str | None:
    a = _random()[:0]
    (found,) = subject.values(name, a)
    return None if found.shape == a.shape else f"shape {tuple(found.shape)}"


def _single(subject: Subject, name: str) -> str | None:
    a, root = _random(cond=1e4, dtype=torch.float32), _root_of(name)
    # Without the allowance for truncated methods.
    return judge(subject.values(name, a)[0], exact(a, root), tolerance(a.dtype, 1e4, root))


def _half(subject: Subject, name: str) -> str | None:
    for dtype in (torch.float16, torch.bfloat16):
        a = _random(dtype=dtype)
        (found,) = subject.values(name, a)
        if found.dtype != dtype:
            return f"{found.dtype} for {dtype}".replace("torch.", "")
        why = _value(subject, name, a)
        if why:
            return f"{dtype}: {why}".removeprefix("torch.")
    return None


def _complex(subject: Subject, name: str) -> str | None:
    return _value(subject, name, _random(dtype=torch.complex128))


def _tiny(subject: Subject, name: str) -> str | None:
    return _value(subject, name, 1e-20 * _random())


def _gradients(subject: Subject, name: str, matrices: Mapping[str, Tensor]) -> str | None:
    allowed = tolerance(torch.float64, 10.0, _gradient_of(name))

    def ask(a: Tensor) -> str | None:
        truth = exact_gradient(a, _G, _root_of(name))
        return subject.judge(subject.gradient(name, a, _G), truth, allowed)

    return _each(matrices, ask)


def _gradient(subject: Subject, name: str) -> str | None:
    return _gradients(subject, name, {"κ = 10": _random()})


def _tied_gradient(subject: Subject, name: str) -> str | None:
    return _gradients(subject, name, _TIES)


def _near_gradient(subject: Subject, name: str) -> str | None:
    return _gradients(subject, name, _NEAR)


def _seconds(subject: Subject, name: str, matrices: Mapping[str, Tensor]) -> str | None:
    # The second derivative loses as many more digits as the first.
    allowed = tolerance(torch.float64, 100.0, _gradient_of(name))

    def ask(a: Tensor) -> str | None:
        truth = exact_second(a, _G, _E, _root_of(name))
        return subject.judge(subject.second(name, a, _G, _E), truth, allowed)

    return _each(matrices, ask)


def _second(subject: Subject, name: str) -> str | None:
    return _seconds(subject, name, {"κ = 10": _random()})


def _tied_second(subject: Subject, name: str) -> str | None:
    return _seconds(subject, name, _TIES)


def _jvp(subject: Subject, name: str) -> str | None:
    a = _random()
    # The derivative is its own adjoint.
    truth = exact_gradient(a, _E, _root_of(name))
    allowed = tolerance(a.dtype, 10.0, _gradient_of(name))
    return subject.judge(subject.jvp(name, a, _E), truth, allowed)


def _vmap(subject: Subject, name: str) -> str | None:
    mapped = subject.adapter.vmapped(subject.functions[name])
    return _value(replace(subject, functions={name: mapped}), name, _random(3, 2))


def _compile(subject: Subject, name: str) -> str | None:
    function = subject.adapter.compiled(subject.functions[name])
    compiled = replace(subject, functions={name: function})
    why = _plain(compiled, name)
    # Where there is no gradient without compilation, it is not asked for here.
    return why or (None if _fails(_gradient, subject, name) else _gradient(compiled, name))


def _fails(ask: Callable[[Subject, str], str | None], subject: Subject, name: str) -> bool:
    try:
        return ask(subject, name) is not None
    # Any exception is a failure.
    except Exception:
        return True


def _singular(subject: Subject, name: str) -> str | None:
    def ask(s: Tensor) -> str | None:
        return subject.judge(subject.values(name, s @ s)[0], s, _SINGULAR_TOLERANCE)

    return _each(_SINGULAR, ask)


def _singular_gradient(subject: Subject, name: str) -> str | None:
    def ask(s: Tensor) -> str | None:
        truth = least_gradient(s, _G)
        return subject.judge(subject.gradient(name, s @ s, _G), truth, _SINGULAR_TOLERANCE)

    return _each(_SINGULAR, ask)


def _not_refused(subject: Subject, name: str, a: Tensor) -> str | None:
    """None where the peer raises or returns what is not finite."""
    try:
        (found,) = subject.values(name, a)
    # Any exception refuses the matrix.
    except Exception:
        return None
    if not found.isfinite().all():
        return None
    kind = "complex" if found.is_complex() else "finite"
    return f"a {kind} matrix, entries up to {float(found.abs().max()):.1e}"


def _singular_inverse(subject: Subject, name: str) -> str | None:
    return _each(_SINGULAR, lambda s: _not_refused(subject, name, s @ s))


def _indefinite(subject: Subject, name: str) -> str | None:
    return _not_refused(subject, name, _pair(tied(1, 0.5, 0.2, -0.1)))


def _nan(subject: Subject, name: str) -> str | None:
    # Ill-conditioned, to catch iterations that stop for the whole batch where they see NaN.
    a = _random(cond=1e4)
    broken, root = a.clone(), _root_of(name)
    broken[1] = torch.nan
    (found,) = subject.values(name, broken)
    return subject.judge(found[0], exact(a[0], root), tolerance(a.dtype, 1e4, root))


PROBES: tuple[Probe, ...] = (
    Probe("root", "square root", _plain, ("sqrt",)),
    Probe("inverse", "inverse square root", _plain, ("inv_sqrt",)),
    Probe("both", "both roots at once", _both, ("both",)),
    Probe("batches", "batches, shape (2, 3, n, n)", _batches),
    Probe("empty", "an empty batch, shape (0, n, n)", _empty),
    Probe("single", "float32 to rounding at κ = 1e4", _single, dtype="float32"),
    Probe("half", "float16 and bfloat16, in and out", _half, dtype="float16, bfloat16"),
    Probe("complex", "complex Hermitian matrices", _complex, dtype="complex128"),
    Probe("tiny", "tiny units, 1e-20·A", _tiny),
    Probe("gradient", "right gradient", _gradient),
    Probe("repeated", "finite, right gradient at repeated eigenvalues", _tied_gradient),
    Probe("near", "right gradient near repeated eigenvalues", _near_gradient),
    Probe("second", "right second derivative", _second),
    Probe("second_repeated", "right second derivative at repeated eigenvalues", _tied_second),
    Probe("jvp", "forward-mode derivative (jvp)", _jvp),
    Probe("vmap", "vmap", _vmap),
    Probe("compile", "compiled in one piece, with its gradient", _compile),
    Probe("singular", "root of a singular matrix", _singular, ("sqrt",)),
    Probe("singular_gradient", "its gradient, of minimum norm", _singular_gradient, ("sqrt",)),
    Probe(
        "singular_inverse",
        "inverse root of a singular matrix refused (an error, or not finite)",
        _singular_inverse,
        ("inv_sqrt",),
    ),
    Probe(
        "indefinite",
        "indefinite matrix refused (an error, or not finite)",
        _indefinite,
    ),
    Probe("nan", "NaN in one matrix leaves the others right", _nan, ("unchecked", *ROOTS)),
)
