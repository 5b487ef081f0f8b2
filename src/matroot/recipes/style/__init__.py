"""Style transfer: a generator that whitens a photograph's features and colors them as a style's.

As published: the generator of GD-WCT (Cho et al., CVPR 2019) with the exact transforms in place of
learned matrices, five of them one after the other at a quarter of the size; trained on unpaired
pictures in both directions, with a least-squares GAN. Unlike there, the style encoder keeps its
map: pooled to one pixel, as published, a style has no covariance.

A small network that trains in a minute ends with ``sweeps`` instead of some of the transforms: the
picture goes through a learned filter bank of patches, is whitened and colored there, and comes back
(what ``matroot.recipes.stylize`` does with all of a patch's pixels).
"""

from matroot.recipes.style.learner import DISTRIBUTED_STRATEGY, Learner
from matroot.recipes.style.pairs import datasets
from matroot.recipes.style.settings import Settings

__all__ = ["DISTRIBUTED_STRATEGY", "Learner", "Settings", "datasets"]
