"""Conversion of a model's batch normalisation to decorrelated batch normalisation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Unpack

from torch import nn

from matroot.nn.running import MATRICES
from matroot.nn.whitening import (
    DecorrelatedBatchNorm,
    DecorrelatedBatchNorm1d,
    DecorrelatedBatchNorm2d,
    DecorrelatedBatchNorm3d,
    DecorrelatedBatchNormAct,
    WhiteningOptions,
    _DecorrelatedBatchNorm,
    check_group,
)

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

_COUNTERPARTS: dict[type[nn.Module], type[_DecorrelatedBatchNorm]] = {
    nn.BatchNorm1d: DecorrelatedBatchNorm1d,
    nn.BatchNorm2d: DecorrelatedBatchNorm2d,
    nn.BatchNorm3d: DecorrelatedBatchNorm3d,
    nn.SyncBatchNorm: DecorrelatedBatchNorm,
}


def convert_batchnorm(
    module: nn.Module,
    which: Literal["first", "all"] | Callable[[str, nn.Module], bool] = "first",
    **options: Unpack[WhiteningOptions],
) -> nn.Module:
    """Replace the batch normalisation of a model by decorrelated batch normalisation.

    In evaluation the outputs stay what they were, to rounding: the covariance starts as the
    diagonal matrix of the running variances. Parameters, statistics, dtype, device and mode are
    kept, hooks are not. Checkpoints of the original model can be loaded into the new one.

    ``torch.nn.SyncBatchNorm`` becomes a DecorrelatedBatchNorm with the same process group, or
    ``"world"`` where it has none.
    Batch normalisation that holds an activation, as timm's does (modules ``drop`` and ``act``
    after it), becomes a DecorrelatedBatchNormAct with the same ones.

    Args:
        module: the model; changed in place, unless it is itself such a layer.
        which: the ``"first"`` layer (the default) in the order of ``named_modules``, as the paper
            does, ``"all"``, or a function of name and layer.
        options: by keyword, arguments of the new layers, see DecorrelatedBatchNorm2d: ``groups``,
            ``method`` and so on. A ``group_size`` must divide the channels of every layer that is
            converted. Another ``eps`` than the layer had changes the outputs accordingly.

    Returns:
        The model.

    Raises:
        ValueError: nothing to convert, another subclass of batch normalisation, or options that do
            not fit a layer; the model is not changed.

    Example:
        >>> from torch import nn
        >>> from matroot.nn import convert_batchnorm
        >>> convert_batchnorm(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), groups=2)[1]
        DecorrelatedBatchNorm2d(8, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True, groups=2, method='auto')
    """  # noqa: E501 (a doctest's output)
    if not (which in ("first", "all") or callable(which)):
        raise ValueError(f"which must be 'first', 'all' or a function, got {which!r}")
    # A layer that is used in two places is found in both, and converted once.
    named = module.named_modules(remove_duplicate=False)
    found = [(name, m) for name, m in named if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if which == "first":
        found = [(name, m) for name, m in found if m is found[0][1]]
    elif callable(which):
        found = [(name, m) for name, m in found if which(name, m)]
    if not found:
        raise ValueError("convert_batchnorm: found no layer of batch normalisation to convert")
    converted: dict[nn.Module, nn.Module] = {}
    for name, old in found:  # All before replacing the first: an error changes nothing.
        if old not in converted:
            converted[old] = _converted(name, old, dict(options))
    for name, old in found:
        if not name:
            return converted[old]
        parent, _, own = name.rpartition(".")
        setattr(module.get_submodule(parent), own, converted[old])
    return module


def convert_sync_whitening(
    module: nn.Module, process_group: ProcessGroup | None = None
) -> nn.Module:
    """Let a model's whitening layers take their statistics over several processes in training.

    It does for them what ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` does for batch
    normalisation, which it leaves alone, and like it is silent where there is nothing to convert.

    Args:
        module: the model, or a layer; changed in place. Before it is wrapped for parallel training
            or after.
        process_group: whose samples are counted; None (the default): those of all processes.

    Returns:
        The model.

    Raises:
        TypeError: not a process group.
        ValueError: one that this process does not belong to.

    Note:
        Communication: see ``process_group`` of DecorrelatedBatchNorm2d. Without
        torch.distributed, or in one process, layers compute as they did, and so do subclasses with
        a method ``statistics`` of their own.

    Example:
        >>> from torch import nn
        >>> from matroot.nn import DecorrelatedBatchNorm1d, convert_sync_whitening
        >>> model = nn.Sequential(nn.Linear(4, 8), DecorrelatedBatchNorm1d(8), nn.ReLU())
        >>> convert_sync_whitening(model)[1].process_group
        'world'
    """
    check_group("convert_sync_whitening: process_group", process_group)
    for layer in module.modules():
        if isinstance(layer, _DecorrelatedBatchNorm):
            layer.process_group = "world" if process_group is None else process_group
    return module


def _converted(name: str, old: Any, options: dict[str, Any]) -> _DecorrelatedBatchNorm:
    kind = _COUNTERPARTS.get(type(old))
    held = dict(old.named_children())
    if kind is None and held.keys() == {"drop", "act"} and isinstance(old, tuple(_COUNTERPARTS)):
        # timm's, recognised by its submodules.
        kind, options = DecorrelatedBatchNormAct, options | held
    if kind is None:
        known = ", ".join(kind.__name__ for kind in _COUNTERPARTS)
        raise ValueError(
            f"convert_batchnorm: {name or 'the module'} is a {type(old).__name__}; only {known} "
            "and subclasses with modules drop and act have a counterpart: choose layers by which="
        )
    example = old.weight if old.weight is not None else old.running_mean
    where = {} if example is None else {"device": example.device, "dtype": example.dtype}
    tracked = old.running_mean is not None and old.running_var is not None
    same = {
        "eps": old.eps,
        "momentum": old.momentum,
        "affine": old.weight is not None,
        "bias": old.bias is not None,
        "track_running_stats": tracked,
    }
    if isinstance(old, nn.SyncBatchNorm):
        same["process_group"] = old.process_group or "world"
    try:
        new = kind(old.num_features, **{**same, **where, **options})
    except ValueError as error:
        raise ValueError(f"convert_batchnorm: {name or 'the module'}: {error}") from None
    if new.weight is not None and old.weight is not None:
        new.weight = old.weight
    if new.bias is not None and old.bias is not None:
        new.bias = old.bias
    if tracked and new.running_mean is not None:
        new.running_mean = old.running_mean.clone()
        if old.num_batches_tracked is not None:
            new.num_batches_tracked = old.num_batches_tracked.clone()
        for matrices in MATRICES:
            if new._buffers[matrices] is not None:
                setattr(new, matrices, new.of_variances(matrices, old.running_var))
    if "track_running_stats" not in options:
        new.track_running_stats = old.track_running_stats
    return new.train(old.training)
