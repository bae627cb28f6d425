"""What is trained on what, for how long: one recipe a modality."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """How to train ``mini-<modality>-v1``.

    Attributes
    ----------
    folders
        Folders of the corpus and their share of the crops.
    net
        Arguments of `tmcodec.networks.mini.MiniConfig`.
    peak
        The range in which PSNR is stated, in physical units (0: categorical).
    crop, batch
        Side of a crop in pixels; crops a step.
    warp, blend
        See `tmcodec.training.corpus.CropSampler`.
    balance
        Whether the codec stores a radiometric balance, which the loss then takes into account.
    start
        Modality whose trained weights are the starting point, or None.
    """

    folders: Mapping[str, float]
    peak: float
    net: Mapping[str, Any] = field(default_factory=dict)
    crop: int = 160
    batch: int = 8
    warp: float = 0.5
    blend: float = 0.15
    balance: bool = False
    start: str | None = None


_REFLECTANCE = {"compand": "sqrt", "origin": 1000.0, "knee": 60.0}
_WIDE = {"dim": 256, "refine": 64, "denoiser_dim": 112, "components": 5, "smooth": True, "antialias": True}

RECIPES: dict[str, Recipe] = {
    "S2L2A": Recipe(
        folders={"S2L2A": 0.5, "S2L1C": 0.3, "S2L1C_no_B10": 0.2},
        peak=10000.0,
        net={**_REFLECTANCE, **_WIDE},
        balance=True,
    ),
    "S2L1C": Recipe(
        folders={"S2L1C": 0.7, "S2L1C_reflectance": 0.1, "S2L2A": 0.2},
        peak=10000.0,
        net={**_REFLECTANCE, **_WIDE},
        balance=True,
        start="S2L2A",
    ),
    "S2RGB": Recipe(folders={"S2RGB": 0.3, "S2L2A": 0.4, "S2L1C": 0.2, "S2L1C_no_B10": 0.1}, peak=255.0),
    "S1GRD": Recipe(folders={"S1GRD": 0.9, "S1RTC": 0.1}, peak=50.0, warp=0.0, blend=0.0),
    "S1RTC": Recipe(folders={"S1RTC": 0.6, "S1GRD": 0.4}, peak=50.0, warp=0.0, blend=0.0, start="S1GRD"),
    "DEM": Recipe(
        folders={"DEM": 1.0},
        peak=1000.0,
        net={"kind": "height", "compand": "asinh", "origin": 0.0, "knee": 1000.0, "dim": 160, "smooth": True,
             "antialias": True, "slopes": True},
        blend=0.0,
    ),
    "NDVI": Recipe(folders={"NDVI": 0.3, "S2L2A": 0.5, "S2L1C": 0.2}, peak=2.0),
    "LULC": Recipe(
        folders={"LULC": 0.3, "LULC_worldcover": 0.7},
        peak=0.0,
        net={"channels": 10, "denoiser_blocks": 0},
        warp=0.0,
        blend=0.0,
    ),
}
