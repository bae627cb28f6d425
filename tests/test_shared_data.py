"""Every real raster of the shared corpus there and back with the embedded tokenizers.

Skipped where the corpus is not beside the checkout. Quality is asserted against the floors that
`benchmarks/floors.py` computes without any network.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.errors import NotGeoreferencedWarning

import tmcodec
from tmcodec.modalities import MODALITIES

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
RASTERS = sorted(DATA.glob("*/*/*.tif"))
# Folders whose name is not their modality's.
NAMED = {
    "S2L1C_no_B10": "S2L2A",
    "S2L1C_reflectance": "S2L1C",
    "LULC_worldcover": "LULC",
    "LULC_nlcd8": "LULC",
}
WITH_OFFSET = ("S2L2A/terramesh_433D", "S2L1C/terramesh_282D", "S2L1C/terramesh_433D", "S2L1C/terramesh_609U")

pytestmark = pytest.mark.skipif(not RASTERS, reason=f"no shared rasters in {DATA}")


def encode(path: Path, dst: Path, effort: int | None = None) -> Any:
    """Encode with the flags that the corpus' manifest asks for."""
    modality = NAMED.get(path.parent.name, path.parent.name)
    present = any(name in str(path) for name in WITH_OFFSET)
    offset = ("present" if present else "absent") if MODALITIES[modality].optical else "auto"
    class_map = "worldcover" if path.parent.name == "LULC_worldcover" else None
    return tmcodec.encode(
        path, dst, modality=modality, s2_offset=offset, class_map=class_map, effort=effort
    )


@pytest.mark.parametrize("path", RASTERS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_there_and_back(path: Path, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        report = encode(path, tmp_path / "a.tmc", effort=1)  # the whole search: where quality is asserted
        tmcodec.decode(tmp_path / "a.tmc", tmp_path / "a.tif")
        with rasterio.open(path) as a, rasterio.open(tmp_path / "a.tif") as b:
            assert (a.crs, a.transform, a.shape, a.count) == (b.crs, b.transform, b.shape, b.count)
            assert a.descriptions == b.descriptions
            assert a.dtypes == b.dtypes
            np.testing.assert_equal(b.nodatavals, a.nodatavals)
            masks = a.read_masks() > 0
            if np.dtype(a.dtypes[0]).kind == "f":
                masks &= np.isfinite(a.read())
            back = b.read_masks() > 0
            if np.dtype(b.dtypes[0]).kind == "f":
                back &= np.isfinite(b.read())
            np.testing.assert_array_equal(masks, back)
            assert back.any()
    rows, cols = (-(-n // 16) for n in (report.height, report.width))
    assert report.tokens <= rows * cols


def psnr(path: Path, folder: Path, peak: float) -> float:
    """PSNR of one step over all valid values, through a real file."""
    encode(path, folder / "q.tmc")
    got, profile = tmcodec.decode_array(folder / "q.tmc")
    with rasterio.open(path) as src:
        error = got.astype(np.float64) - src.read()
    (folder / "q.tmc").unlink()
    return 10 * math.log10(peak**2 / float(np.square(error[profile["valid"]]).mean()))


def mean_psnr(modality: str, folder: Path, peak: float, keep: str = "") -> float:
    """Mean over the validation scenes of a modality."""
    paths = [p for p in RASTERS if p.parent == DATA / "val" / modality and keep in p.name]
    return float(np.mean([psnr(p, folder, peak) for p in paths]))


def test_s2l2a_reaches_its_goal(tmp_path: Path) -> None:
    large = [p for p in RASTERS if p.parent == DATA / "val" / "S2L2A" and "bigearthnet" not in p.name]
    assert len(large) == 5
    assert float(np.mean([psnr(p, tmp_path, 10000) for p in large])) >= 33.5


# modality, peak, mean PSNR of the k-means floor on the validation scenes (benchmarks/floors.py)
FLOORS = [
    ("S1GRD", 50, 25.302),
    ("S2RGB", 255, 18.324),
    ("NDVI", 2, 28.608),
    ("DEM", 1000, 38.569),
]


@pytest.mark.parametrize(("modality", "peak", "floor"), FLOORS)
def test_the_others_beat_their_floor(modality: str, peak: float, floor: float, tmp_path: Path) -> None:
    assert mean_psnr(modality, tmp_path, peak) >= floor


def test_small_s2_chips_stay_under_a_thousandth(tmp_path: Path) -> None:
    path = DATA / "val" / "S2L2A" / "ssl4eos12_val_0121563_0.tif"
    report = tmcodec.encode(
        path, tmp_path / "c.tmc", modality="S2L2A", s2_offset="absent", window=(0, 0, 256, 256)
    )
    assert report.raw_bytes == 256 * 256 * 12 * 2
    assert report.file_bytes < report.raw_bytes / 1000


def test_reconstructions_are_not_confined_to_one_standard_deviation(tmp_path: Path) -> None:
    path = DATA / "val" / "S2L2A" / "bigearthnet_S2B_MSIL2A_20180204T94161_57_38.tif"  # snow
    encode(path, tmp_path / "s.tmc")
    got, _ = tmcodec.decode_array(tmp_path / "s.tmc")
    row = MODALITIES["S2L2A"]
    above = [band > mean - 1000 + std for band, mean, std in zip(got, row.mean, row.std, strict=True)]
    assert float(np.mean(above[1:4])) > 0.1  # blue, green and red of snow, beyond what a clamp would leave
