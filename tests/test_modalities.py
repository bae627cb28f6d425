"""The modality table: consistent in itself, TerraMind's numbers, and the same as its page in docs/."""

from __future__ import annotations

from pathlib import Path

import pytest

from tmcodec.errors import ModalityError
from tmcodec.modalities import MODALITIES, canonical_band, get_modality

PAGE = Path(__file__).resolve().parent.parent / "docs" / "modalities.md"


@pytest.mark.parametrize("name", list(MODALITIES))
def test_each_row_is_consistent(name: str) -> None:
    row = MODALITIES[name]
    assert row.name == name
    assert len(row.bands) == len(set(row.bands)) == len(row.mean) == len(row.std)
    assert all(s > 0 for s in row.std)
    low, high = row.valid_range
    assert low < high
    assert all(low <= m <= high for m in row.mean)
    assert len(row.classes) == len(row.colors)
    assert all(b == "VV-VH" or b in row.bands for b in row.rendering.bands)
    assert all(alias == alias.lower() and band[0] in "BVDNL" for alias, band in row.aliases.items())


def test_band_counts_levels_and_some_statistics_are_terraminds() -> None:
    counts = {name: len(row.bands) for name, row in MODALITIES.items()}
    assert counts == {
        "S2L2A": 12,
        "S2L1C": 13,
        "S2RGB": 3,
        "S1GRD": 2,
        "S1RTC": 2,
        "DEM": 1,
        "NDVI": 1,
        "LULC": 1,
    }
    assert {row.levels for name, row in MODALITIES.items() if name != "LULC"} == {(8, 8, 8, 6, 5)}
    assert MODALITIES["LULC"].levels == (7, 5, 5, 5, 5)
    # S2L1C is S2L2A with B10 between B09 and B11
    assert tuple(b for b in MODALITIES["S2L1C"].bands if b != "B10") == MODALITIES["S2L2A"].bands
    s2, dem = MODALITIES["S2L2A"], MODALITIES["DEM"]
    # the ranges of +-1 standard deviation that official reconstructions are confined to
    red = s2.bands.index("B04")
    assert (round(s2.mean[red] - s2.std[red]), round(s2.mean[red] + s2.std[red])) == (-280, 3988)
    assert (round(dem.mean[0] - dem.std[0]), round(dem.mean[0] + dem.std[0])) == (-281, 1622)


def test_the_page_shows_the_table() -> None:
    text = PAGE.read_text()
    prices = [f"{row.name} {row.bit_price:g}" for row in MODALITIES.values() if row.bit_price]
    assert ", ".join(prices) + "." in text.replace("\n", " ")
    for row in MODALITIES.values():
        ends = f"{row.valid_range[0]:g} … {row.valid_range[1]:g}"
        nodata = "none" if row.nodata is None else f"{row.nodata:g}"
        levels = "-".join(map(str, row.levels))
        bands = " ".join(row.bands)
        assert f"| {row.name} | {bands} | {row.units} | {row.dtype} | {ends} | {nodata} | {levels} |" in text
        mean, std = (" ".join(map(str, s)) for s in (row.mean, row.std))
        assert f"| {row.name} | {mean} | {std} |" in text


def test_names_in_any_spelling() -> None:
    assert get_modality("s2l2a") is MODALITIES["S2L2A"]
    with pytest.raises(ModalityError, match="S2L2A, S2L1C"):
        get_modality("S3")
    s2 = MODALITIES["S2L2A"]
    assert [canonical_band(s2, b) for b in ("B4", "b08", "NIR", "swir16", "B10", "red ")] == [
        "B04",
        "B08",
        "B08",
        "B11",
        None,
        "B04",
    ]


@pytest.mark.parametrize(("name", "band"), [
    ("T33UUP_20200101T100031_B02", "B02"), ("T33UUP_20200101T100031_B8A_20m", "B8A"), ("B02_10m", "B02"),
    ("b8a_20m", "B8A"), ("B02 (10m)", "B02"), ("B11 (20 m)", "B11"), ("B9 60m", "B09"), ("B10_60m", None),
    ("B02_mean", None), ("SR_B2", None), ("B02_30m", None), ("B8A_20m_mask", None), ("B02_10", None),
    ("B028", None), ("LC08_B02", None), ("NB02_10m", None), ("B02 (10m", None),
])
def test_bands_as_products_call_them(name: str, band: str | None) -> None:
    assert canonical_band(MODALITIES["S2L2A"], name) == band
    assert canonical_band(MODALITIES["DEM"], name) is None
