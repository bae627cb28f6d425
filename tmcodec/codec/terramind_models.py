"""The table of TerraMind's official image tokenizers: where they are and what they were trained with.

No torch here. Statistics of version 1 are those of the modality table; version 0.1 has its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from tmcodec.modalities import Modality, get_modality
from tmcodec.networks.terramind.config import TerraMindConfig

REVISION = "main"
"""Revision of the repositories on the Hub. A commit id here would pin the files before they are fetched;
what pins tokens to weights in any case is the content hash that every token file stores."""


@dataclass(frozen=True)
class OfficialModel:
    """One official tokenizer.

    Attributes
    ----------
    name
        What `tmcodec.load_tokenizer` takes, e.g. ``"terramind-v1-s2l2a"``.
    repo, filename
        Repository on the Hugging Face Hub and the checkpoint in it.
    gated
        Whether access must be asked for, and needs ``HF_TOKEN``.
    config
        Sizes and statistics.
    """

    name: str
    repo: str
    filename: str
    gated: bool
    config: TerraMindConfig

    @property
    def modality(self) -> str:
        """Key of the modality table."""
        return self.config.modality


def _v1(modality: str) -> OfficialModel:
    row = get_modality(modality)
    config = TerraMindConfig(
        modality=modality,
        channels=len(row.classes) or len(row.bands),
        levels=row.levels,
        decoder="vit" if row.categorical else "unet",
        mean=() if row.categorical else row.mean,
        std=() if row.categorical else row.std,
    )
    return OfficialModel(
        name=f"terramind-v1-{modality.lower()}",
        repo=f"ibm-esa-geospatial/TerraMind-1.0-Tokenizer-{modality}",
        filename=f"TerraMind_Tokenizer_{modality}.pt",
        gated=False,
        config=config,
    )


_V01_S2L2A_MEAN = (
    794.311, 925.161, 1183.128, 1338.041, 1667.254, 2233.633,
    2460.96, 2555.569, 2619.542, 2703.298, 2406.497, 1841.645,
)  # fmt: skip
_V01_S2L2A_STD = (
    1164.883, 1205.586, 1223.713, 1399.638, 1403.298, 1378.513,
    1434.924, 1491.141, 1454.089, 1660.395, 1473.248, 1365.08,
)  # fmt: skip

V01_LULC_CLASSES = (
    "water",
    "trees",
    "grass",
    "flooded vegetation",
    "crops",
    "shrub and scrub",
    "built area",
    "bare ground",
    "snow/ice",
)
"""Dynamic World's classes by id, which version 0.1 was trained with; not the legend of the modality table."""


V01_LULC_COLORS = (
    (65, 155, 223),
    (57, 125, 73),
    (136, 176, 83),
    (122, 135, 198),
    (228, 150, 53),
    (223, 195, 90),
    (196, 40, 27),
    (165, 155, 143),
    (179, 159, 225),
)
"""Dynamic World's colours (doi 10.1038/s41597-022-01307-4)."""


def legend(row: Modality, channels: int) -> Modality:
    """Return a modality with the classes of a tokenizer of so many channels: version 0.1's are others."""
    if not row.categorical or channels != len(V01_LULC_CLASSES):
        return row
    return replace(
        row, classes=V01_LULC_CLASSES, colors=V01_LULC_COLORS, valid_range=(0.0, len(V01_LULC_CLASSES) - 1.0)
    )


def modality_of(tokenizer: str, modality: str) -> Modality:
    """Return the modality of a layer, with the legend of the tokenizer that is named."""
    row, known = get_modality(modality), OFFICIAL.get(tokenizer)
    return row if known is None else legend(row, known.config.channels)


def _v01(modality: str, mean: tuple[float, ...], std: tuple[float, ...]) -> OfficialModel:
    row = get_modality(modality)
    config = TerraMindConfig(
        modality=modality,
        channels=len(V01_LULC_CLASSES) if row.categorical else len(row.bands),
        levels=row.levels,
        decoder="vit" if row.categorical else "unet",
        mean=mean,
        std=std,
    )
    return OfficialModel(
        name=f"terramind-v01-{modality.lower()}",
        repo=f"FAST-EO/TerraMind-v0.1-Tokenizer-{modality}",
        filename=f"TerraMind_v01_Tokenizer_{modality}.pt",
        gated=True,
        config=config,
    )


OFFICIAL: dict[str, OfficialModel] = {
    m.name: m
    for m in (
        *map(_v1, ("S2L2A", "S1GRD", "S1RTC", "DEM", "NDVI", "LULC")),
        _v01("S2L2A", _V01_S2L2A_MEAN, _V01_S2L2A_STD),
        _v01("S1GRD", get_modality("S1GRD").mean, get_modality("S1GRD").std),
        _v01("DEM", (435.726,), (560.326,)),
        _v01("LULC", (), ()),
    )
}


def model_of_file(path: Path) -> OfficialModel | None:
    """Return the model whose checkpoint has this file name (with any suffix), or None."""
    for model in OFFICIAL.values():
        if path.stem in (Path(model.filename).stem, model.name):
            return model
    return None
