"""The settings of style transfer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from matroot.recipes.training.configuration import Common


class Settings(Common):
    """``data``: ``"photos"`` (embedded) or ``"folder"``, with photographs and styles of one's own.

    ``pairs``: how many are drawn for an epoch. ``size``: of crops in
    training; ``test_size``: of the shorter side before cropping. ``width``: channels at full size;
    the transforms see four times as many. ``cycle``: train the other direction too, and that both
    together give back the picture. The last four fields are weights of losses.
    """

    data: Literal["photos", "folder"]
    pairs: int = Field(ge=1)
    size: int = Field(216, multiple_of=4)
    test_size: int = Field(256, multiple_of=4)
    width: int = Field(64, ge=1)
    blocks: int = Field(4, ge=0)
    transforms: int = Field(5, ge=0)
    sweeps: int = Field(0, ge=0)
    filters: int = Field(48, ge=1)
    cycle: bool = True
    reconstruction: float = 10.0
    content: float = 1.0
    style: float = 10.0
    adversarial: float = 1.0

    def without_effect(self) -> dict[str, str]:
        """See ``Common``."""
        found = super().without_effect()
        if not self.sweeps:
            found["filters"] = "sweeps=0"
            if not self.transforms:
                found["eps"] = "transforms=0 and sweeps=0"
        return found
