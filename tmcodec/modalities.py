"""The one table of everything that differs by modality.

Statistics, band order and FSQ levels are TerraMind 1.0's (see ``docs/modalities.md``), so
that a token grid made here lies on TerraMind's own. No torch, no rasterio in this file.

Physical values are what the statistics speak of: Sentinel-2 in digital numbers x 10000
*with* the +1000 offset of processing baseline 04.00, Sentinel-1 in dB, DEM in metres, LULC
as class ids.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tmcodec.errors import ModalityError
from tmcodec.texts import shown

S2_OFFSET = 1000.0
"""Added to Sentinel-2 digital numbers since processing baseline 04.00 (January 2022)."""

IMAGE_LEVELS = (8, 8, 8, 6, 5)
CLASS_LEVELS = (7, 5, 5, 5, 5)


@dataclass(frozen=True)
class Rendering:
    """How to show a modality as an RGB picture.

    Parameters
    ----------
    bands
        Three band names, or one that goes through ``colormap``. For Sentinel-1 the third
        name may be ``"VV-VH"``, a difference in dB.
    ranges
        ``(low, high)`` in physical units for each band, mapped to 0..255. ``None`` means
        the 2nd and 98th percentile of the picture.
    gamma
        Exponent on the stretched 0..1 value; below 1 brightens dark land.
    colormap
        ``"terrain"``, ``"ndvi"`` or ``"classes"`` for a single band.
    """

    bands: tuple[str, ...]
    ranges: tuple[tuple[float, float], ...] | None = None
    gamma: float = 1.0
    colormap: str | None = None


@dataclass(frozen=True)
class BalanceScale:
    """Which physical values a modality's radiometric balance is made of.

    Parameters
    ----------
    pivot
        Value that a gain leaves alone: where colours matter most.
    divisor, step
        Stored integers that make a gain of one, and physical units that one makes in an offset.
    noise
        Contrast (standard deviation) below which nothing can be said about a gain.
    low, high
        Values beyond count as broken and nowhere.
    """

    pivot: float
    divisor: int
    step: float
    noise: float
    low: float = 0.0
    high: float = 25000.0


@dataclass(frozen=True)
class Modality:
    """One row of the table.

    Attributes
    ----------
    name
        The key, in capitals.
    title
        What it is, in words.
    bands
        Band names in the order that tokenizers take them.
    units
        Unit of the physical values: ``"DN"``, ``"dB"``, ``"m"``, ``"1"`` or ``"class"``.
    dtype
        The natural dtype of a raster of this modality.
    valid_range
        Lowest and highest physical value; decoded values are clipped to it.
    nodata
        The usual nodata value of such rasters, or None.
    mean, std
        TerraMind 1.0's statistics in physical units, one a band.
    levels
        FSQ levels.
    optical
        True where Sentinel-2's radiometric offset matters.
    classes
        Class names by id for categorical modalities, else empty.
    colors
        RGB of each class.
    rendering
        How to show it.
    balance
        Scale of the radiometric balance that encoding fits, or None where it brings nothing.
    bit_price
        What a bit is worth when better tokens are searched (`tmcodec.codec.search`), in parts of the mean
        error of a token: about what classical codecs lose for it on such pictures, more where pictures are
        piecewise smooth, little where they are speckle.
    ndvi_share
        What the direction of B04 and B08 counts when better tokens are searched, where squares of companded
        and of physical errors count half each. More makes NDVI better and files larger.
    aliases
        Other spellings of band names seen in files, lower case, to the table's name.
    """

    name: str
    title: str
    bands: tuple[str, ...]
    units: str
    dtype: str
    valid_range: tuple[float, float]
    nodata: float | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rendering: Rendering
    levels: tuple[int, ...] = IMAGE_LEVELS
    optical: bool = False
    classes: tuple[str, ...] = ()
    colors: tuple[tuple[int, int, int], ...] = ()
    balance: BalanceScale | None = None
    bit_price: float = 0.0
    ndvi_share: float = 0.0
    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def categorical(self) -> bool:
        """True where values are class ids."""
        return bool(self.classes)

    @property
    def zero_is_no_data(self) -> bool:
        """True where the legend calls class 0 "no data": a gap, and nothing for a tokenizer to invent."""
        return self.classes[:1] == ("no data",)


_S2_ALIASES = {
    **{f"b{n}": f"B{n:02d}" for n in range(1, 13)},
    **{f"b{n:02d}": f"B{n:02d}" for n in range(1, 13)},
    "b8a": "B8A",
    "b08a": "B8A",
    "coastal": "B01",
    "coastal aerosol": "B01",
    "blue": "B02",
    "green": "B03",
    "red": "B04",
    "rededge1": "B05",
    "rededge2": "B06",
    "rededge3": "B07",
    "nir": "B08",
    "nir08": "B8A",
    "nir09": "B09",
    "cirrus": "B10",
    "swir16": "B11",
    "swir22": "B12",
}
_S1_ALIASES = {
    f"{front}{band.lower()}{unit}": band  # SNAP's names have the quantity in front
    for band in ("VV", "VH")
    for front in ("", "sigma0_", "gamma0_", "beta0_")
    for unit in ("", "_db", " (db)")
}
_L2A = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_L1C = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
# Digital numbers with the offset: 1000 is black, 4000 is 30 % reflectance.
_TRUE_COLOUR = Rendering(("B04", "B03", "B02"), ((1000.0, 4000.0),) * 3, gamma=0.8)
# Dark land and water, where a hundred digital numbers change the colour.
_REFLECTANCE_BALANCE = BalanceScale(pivot=2000.0, divisor=16, step=32.0, noise=40.0)
_SAR = Rendering(("VV", "VH", "VV-VH"), ((-20.0, 0.0), (-27.0, -7.0), (0.0, 15.0)))

MODALITIES: dict[str, Modality] = {
    m.name: m
    for m in (
        Modality(
            name="S2L2A",
            title="Sentinel-2 L2A surface reflectance",
            bands=_L2A,
            units="DN",
            dtype="uint16",
            valid_range=(0.0, 65535.0),
            nodata=0.0,
            mean=(
                1390.458,
                1503.317,
                1718.197,
                1853.91,
                2199.1,
                2779.975,
                2987.011,
                3083.234,
                3132.22,
                3162.988,
                2424.884,
                1857.648,
            ),
            std=(
                2106.761,
                2141.107,
                2038.973,
                2134.138,
                2085.321,
                1889.926,
                1820.257,
                1871.918,
                1753.829,
                1797.379,
                1434.261,
                1334.311,
            ),
            bit_price=0.06,
            rendering=_TRUE_COLOUR,
            optical=True,
            balance=_REFLECTANCE_BALANCE,
            aliases=_S2_ALIASES,
        ),
        Modality(
            name="S2L1C",
            title="Sentinel-2 L1C top-of-atmosphere reflectance",
            bands=_L1C,
            units="DN",
            dtype="uint16",
            valid_range=(0.0, 65535.0),
            nodata=0.0,
            mean=(
                2357.089,
                2137.385,
                2018.788,
                2082.986,
                2295.651,
                2854.537,
                3122.849,
                3040.56,
                3306.481,
                1473.847,
                506.07,
                2472.825,
                1838.929,
            ),
            std=(
                1624.683,
                1675.806,
                1557.708,
                1833.702,
                1823.738,
                1733.977,
                1732.131,
                1679.732,
                1727.26,
                1024.687,
                442.165,
                1331.411,
                1160.419,
            ),
            bit_price=0.05,
            ndvi_share=0.5,
            rendering=_TRUE_COLOUR,
            optical=True,
            balance=_REFLECTANCE_BALANCE,
            aliases=_S2_ALIASES,
        ),
        Modality(
            name="S2RGB",
            title="Sentinel-2 true-colour picture",
            bands=("B04", "B03", "B02"),
            units="1",
            dtype="uint8",
            valid_range=(0.0, 255.0),
            nodata=None,
            mean=(87.271, 80.931, 66.667),
            std=(58.767, 47.663, 42.631),
            bit_price=0.05,
            rendering=Rendering(("B04", "B03", "B02"), ((0.0, 255.0),) * 3),
            aliases={**_S2_ALIASES, "r": "B04", "g": "B03", "b": "B02"},
        ),
        Modality(
            name="S1GRD",
            title="Sentinel-1 ground range detected backscatter",
            bands=("VV", "VH"),
            units="dB",
            dtype="float32",
            valid_range=(-60.0, 40.0),
            nodata=float("nan"),
            mean=(-12.599, -20.293),
            std=(5.195, 5.890),
            bit_price=0.03,
            rendering=_SAR,
            aliases=_S1_ALIASES,
        ),
        Modality(
            name="S1RTC",
            title="Sentinel-1 radiometrically terrain-corrected backscatter",
            bands=("VV", "VH"),
            units="dB",
            dtype="float32",
            valid_range=(-60.0, 40.0),
            nodata=float("nan"),
            mean=(-10.93, -17.329),
            std=(4.391, 4.459),
            bit_price=0.03,
            rendering=_SAR,
            aliases=_S1_ALIASES,
        ),
        Modality(
            name="DEM",
            title="Digital elevation model",
            bands=("DEM",),
            units="m",
            dtype="int16",
            valid_range=(-12000.0, 9000.0),
            nodata=-32768.0,
            mean=(670.665,),
            std=(951.272,),
            bit_price=0.05,
            rendering=Rendering(("DEM",), None, colormap="terrain"),
            aliases={"dem": "DEM", "elevation": "DEM", "height": "DEM", "altitude": "DEM"},
        ),
        Modality(
            name="NDVI",
            title="Normalised difference vegetation index",
            bands=("NDVI",),
            units="1",
            dtype="float32",
            valid_range=(-1.0, 1.0),
            nodata=float("nan"),
            mean=(0.327,),
            std=(0.322,),
            bit_price=0.12,
            rendering=Rendering(("NDVI",), ((-0.2, 1.0),), colormap="ndvi"),
            aliases={"ndvi": "NDVI"},
        ),
        Modality(
            name="LULC",
            title="Land use and land cover",
            bands=("LULC",),
            units="class",
            dtype="uint8",
            valid_range=(0.0, 9.0),
            nodata=None,
            mean=(0.0,),
            std=(1.0,),
            bit_price=0.03,
            levels=CLASS_LEVELS,
            rendering=Rendering(("LULC",), colormap="classes"),
            classes=(
                "no data",
                "water",
                "trees",
                "flooded vegetation",
                "crops",
                "built area",
                "bare ground",
                "snow/ice",
                "clouds",
                "rangeland",
            ),
            colors=(
                (0, 0, 0),
                (65, 155, 223),
                (57, 125, 73),
                (122, 135, 198),
                (228, 150, 53),
                (196, 40, 27),
                (165, 155, 143),
                (168, 235, 255),
                (97, 97, 97),
                (227, 226, 195),
            ),
            aliases={"lulc": "LULC", "landcover": "LULC", "land cover": "LULC", "classes": "LULC"},
        ),
    )
}


def get_modality(name: str) -> Modality:
    """Return the table's row for `name` (any case).

    Raises
    ------
    ModalityError
        If the table has no such row; the message lists those it has.
    """
    row = MODALITIES.get(name.upper()) if isinstance(name, str) else None
    if row is None:
        raise ModalityError(f"unknown modality {shown(name)}; choose one of {', '.join(MODALITIES)}")
    return row


_PRODUCT_BAND = re.compile(
    r"(?:T\d{2}[A-Z]{3}_\d{8}T\d{6}_)?(B(?:\d{1,2}|0?8A))(?:[_ ][126]0 ?m| ?\([126]0 ?m\))?", re.IGNORECASE
)
"""A Sentinel-2 band as the product's files are called, or with its resolution."""


def canonical_band(modality: Modality, name: str) -> str | None:
    """Return the table's spelling of band `name`, or None where it is not a band of `modality`."""
    key = name.strip()
    if key in modality.bands:
        return key
    if (found := _PRODUCT_BAND.fullmatch(key)) is not None:
        key = found[1]
    alias = modality.aliases.get(key.lower())
    return alias if alias in modality.bands else None
