"""Calls with DTensors: each process computes the matrices that it holds."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, distributed
from torch.linalg import LinAlgError

from matroot import checks, context, spd

P = ParamSpec("P")
R = TypeVar("R")


def per_matrix(
    whole: Callable[..., Any] | None = None, **dims: int
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A function of batches of matrices, which it treats one by one, takes DTensors too.

    Sharded on batch dimensions, or replicated, the result is placed as the arguments are. Nothing
    is sent, but for one number a mesh dimension where errors are checked: all processes raise what
    one of them finds.

    Args:
        whole: does the call where the first argument is sharded on the matrices' own dimensions.
        dims: by argument, how many dimensions are no batch dimensions; 2 where it is not named, and
            −k stands for all but k.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def calling(*args: P.args, **kwargs: P.kwargs) -> R:
            if not (_has_dtensor(args) or _has_dtensor(kwargs.values())):
                return function(*args, **kwargs)
            given = signature.bind(*args, **kwargs).arguments
            first = next(iter(given.values()))
            if whole is not None and context.is_dtensor(first) and _is_split(first):
                done: R = whole(**given)
                return done
            local: R = _locally(function, dims, given)
            return local

        return calling

    return decorate


# Of most arguments, which need not be asked.
_NO_DTENSORS = frozenset({*context.PLAIN, float, int, str, bool, type(None)})


def _has_dtensor(arguments: Iterable[object]) -> bool:
    # A generator takes longer than all of it.
    for a in arguments:  # noqa: SIM110
        if type(a) not in _NO_DTENSORS and context.is_dtensor(a):
            return True
    return False


def _is_split(a: Any) -> bool:
    """Whether a dimension of the matrices themselves is sharded."""
    return any(_sharded_dim(a, i) in (a.ndim - 2, a.ndim - 1) for i in range(len(a.placements)))


def _sharded_dim(a: Any, mesh_dim: int) -> int | None:
    """The dimension that is sharded over this one of the mesh; None where it is replicated."""
    from torch.distributed.tensor import Replicate, Shard

    placement = a.placements[mesh_dim]
    if type(placement) is Shard:
        dim: int = placement.dim % a.ndim
        return dim
    if type(placement) is Replicate:
        return None
    raise ValueError(
        f"DTensors must be placed as Shard(dim) or Replicate(), got {tuple(a.placements)}: give "
        "a.redistribute(placements=…)"
    )


def _locally(function: Callable[..., R], dims: dict[str, int], given: dict[str, Any]) -> R:
    """The call by the tensors' local parts, and its result as DTensors."""
    name = function.__name__
    tensors: dict[str, Any] = {key: a for key, a in given.items() if isinstance(a, Tensor)}
    mesh = _mesh(name, tensors)
    least = {key: dims.get(key, 2) for key in tensors}
    least = {key: d if d > 0 else tensors[key].ndim + d for key, d in least.items()}
    for key, a in tensors.items():
        if a.ndim < least[key]:
            raise ValueError(
                f"{name}: {key} must have at least {least[key]} dimensions, got shape "
                f"{tuple(a.shape)}"
            )
    batches = {key: a.shape[: a.ndim - least[key]] for key, a in tensors.items()}
    try:
        batch = spd.broadcast_shapes(*batches.values())
    except RuntimeError:
        shapes = " and ".join(str(tuple(shape)) for shape in batches.values())
        raise ValueError(f"{name}: batch dimensions must be equal or 1, got {shapes}") from None
    from torch.distributed.tensor import Partial, Replicate, Shard

    split = [_split_dim(name, tensors, least, batch, i) for i in range(mesh.ndim)]
    parts = dict(given)
    for key, a in tensors.items():
        place: list[Any] = []
        gradient: list[Any] = []
        for from_end in split:
            own = -1 if from_end is None else len(batches[key]) - from_end
            if own >= 0 and batches[key][own] == batch[own - len(batches[key])]:
                place.append(Shard(own))
                gradient.append(Shard(own))
            else:
                # One matrix for the shares of all processes has the sum of their gradients.
                place.append(Replicate())
                gradient.append(Replicate() if from_end is None else Partial())
        # The redistribution, which may do nothing, takes gradients back to a's own placements.
        local = a.redistribute(mesh, place).to_local(grad_placements=gradient)
        parts[key] = local
    placements = [
        Replicate() if from_end is None else Shard(len(batch) - from_end) for from_end in split
    ]

    def result(x: Any) -> Any:
        if isinstance(x, tuple):
            made = [result(part) for part in x]
            return type(x)(*made) if hasattr(x, "_fields") else tuple(made)
        return _placed(x, mesh, placements, batch) if isinstance(x, Tensor) else x

    locals_ = [part for part in parts.values() if isinstance(part, Tensor)]
    if not checks.checking(given.get("check_errors"), *locals_):
        return result(function(**parts))  # type: ignore[no-any-return]
    return result(agreed(mesh, lambda: function(**parts)))  # type: ignore[no-any-return]


def _mesh(name: str, tensors: dict[str, Any]) -> Any:
    """The mesh of all of them."""
    meshes = {key: a.device_mesh if context.is_dtensor(a) else None for key, a in tensors.items()}
    (first, mesh), *others = meshes.items()
    for key, other in others:
        if other != mesh:
            raise ValueError(
                f"{name}: {first} and {key} must be DTensors on one mesh, got "
                f"{mesh or 'an ordinary tensor'} and {other or 'an ordinary tensor'}: "
                "torch.distributed.tensor.distribute_tensor makes one of an ordinary tensor"
            )
    check_member(name, mesh)
    return mesh


def check_member(name: str, mesh: Any) -> None:
    """Raise ValueError in a process that is not in the mesh."""
    if mesh.get_coordinate() is None:
        raise ValueError(f"{name}: this process is not in the mesh of its argument, {mesh}")


def _split_dim(
    name: str,
    tensors: dict[str, Any],
    least: dict[str, int],
    batch: Sequence[int],
    mesh_dim: int,
) -> int | None:
    """The batch dimension, the last counts as 1, that is sharded over this one of the mesh."""
    found: dict[int, str] = {}
    for key, a in tensors.items():
        dim = _sharded_dim(a, mesh_dim)
        if dim is None:
            continue
        own = a.ndim - least[key]
        if dim >= own:
            raise ValueError(
                f"{name}: {key}, shape {tuple(a.shape)}, is sharded on dimension {dim}, which is "
                "none of its batch dimensions; what helps: "
                f"{key}.redistribute(placements=[Replicate()]), or Shard of a batch dimension "
                "(matroot.distributed says which functions take one matrix in blocks)"
            )
        # One matrix that is broadcast goes to every process.
        if a.shape[dim] == batch[len(batch) - (own - dim)]:
            found.setdefault(own - dim, key)
    if len(found) > 1:
        (p, first), (q, second) = list(found.items())[:2]
        raise ValueError(
            f"{name}: {first} and {second} are sharded on different batch dimensions, -{p} and "
            f"-{q}, over dimension {mesh_dim} of the mesh: redistribute one of them"
        )
    return next(iter(found), None)


def _placed(x: Tensor, mesh: Any, placements: Sequence[Any], batch: Sequence[int]) -> Tensor:
    """The DTensor of local parts with this batch in all."""
    from torch.distributed.tensor import DTensor

    shape = torch.Size((*batch, *x.shape[len(batch) :]))
    stride = torch.empty(shape, device="meta").stride()
    made: Tensor = DTensor.from_local(
        x.contiguous(), mesh, placements, run_check=False, shape=shape, stride=stride
    )
    # It does nothing but take gradients that are placed otherwise to these placements, and so that
    # they can be differentiated again.
    return made.redistribute(mesh, placements)  # type: ignore[attr-defined, no-any-return]


# Bytes of an error's text that other processes are told.
_TEXT = 1024
# The types that an error keeps in other processes; all else becomes the last of them.
ERRORS: tuple[type[Exception], ...] = (LinAlgError, ValueError, TypeError, RuntimeError)


def kind_of(error: Exception) -> int:
    """The place of an error's type in ``ERRORS``."""
    kinds = [i for i, kind in enumerate(ERRORS) if isinstance(error, kind)]
    return min([*kinds, len(ERRORS) - 1])


def agreed(mesh: Any, call: Callable[[], R]) -> R:
    """The result of a call; an error in one process is raised in all, which waits for all.

    Raises:
        torch.linalg.LinAlgError: what the first process with one has found, with its rank.
        Exception: another error: in the process that has one its own, in others the first one's,
            of the same type if it is one of ``ERRORS``.
    """
    groups = [mesh.get_group(i) for i in range(mesh.ndim) if mesh.size(i) > 1]
    failed: Exception | None = None
    try:
        result = call()
    except Exception as error:  # It is raised below, once the others know.
        failed = error
    none = distributed.get_world_size()
    rank = distributed.get_rank()
    word = torch.zeros(_TEXT + 2, dtype=torch.int64, device=mesh.device_type)
    first = torch.full_like(word[:1], none if failed is None else rank)
    for group in groups:
        distributed.all_reduce(first, distributed.ReduceOp.MIN, group=group)
    culprit = int(first)
    if culprit == none:
        return result
    if failed is not None and culprit == rank:
        told = str(failed).encode()[:_TEXT]
        word[0] = kind_of(failed)
        word[1] = len(told)
        word[2 : 2 + len(told)] = torch.tensor(list(told), dtype=torch.int64)
    for group in groups:
        distributed.all_reduce(word, distributed.ReduceOp.MAX, group=group)
    if failed is not None and not isinstance(failed, LinAlgError):
        raise failed
    text = bytes(word[2 : 2 + int(word[1])].tolist()).decode(errors="replace")
    raise ERRORS[int(word[0])](f"rank {culprit}: {text}") from failed
