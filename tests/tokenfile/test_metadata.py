"""Metadata: round trips, defaults, and every way it can be wrong."""

from __future__ import annotations

import math
import struct
from datetime import datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenfile_helpers import layer_meta, section, varint

from tmcodec.errors import MetadataError, UnknownSectionError
from tmcodec.modalities import MODALITIES
from tmcodec.tokenfile import VERSIONS, FileMeta, LayerMeta
from tmcodec.tokenfile.fields import MODALITY_IDS, pack_layer, unpack_layer
from tmcodec.tokenfile.header import pack_header, unpack_header
from tmcodec.tokenfile.metadata import DTYPE_IDS
from tmcodec.tokenfile.registered import REGISTERED
from tmcodec.tokenfile.sections import pack_crs, unpack_crs

SHA = bytes(range(32))


def names(low: int = 0) -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"]), min_size=low, max_size=20)


finite = st.floats(allow_nan=False, allow_infinity=False)
times = st.none() | st.datetimes() | st.datetimes(timezones=st.just(timezone(timedelta(hours=2))))


@st.composite
def layers(draw: st.DrawFn) -> LayerMeta:
    patch, chunk = draw(st.integers(1, 32)), draw(st.integers(1, 256))
    dates = tuple(draw(st.lists(times, min_size=1, max_size=4)))
    sets = st.tuples(*[st.just(0) | st.integers(0, 2**64 - 1)] * len(dates))
    return LayerMeta(
        name=draw(names(1)),
        modality=draw(st.sampled_from(list(MODALITY_IDS)) | names(1)),
        tokenizer=draw(
            names(1) | st.sampled_from(["mini-dem-v1", "mini-dem-v2", "mini-dem-v01", "mini-dem-v"])
        ),
        weights_sha256=draw(st.binary(min_size=32, max_size=32)),
        levels=tuple(draw(st.lists(st.integers(2, 256), min_size=1, max_size=3))),
        patch=patch,
        tile=patch * draw(st.integers(1, 50)),
        chunk=chunk,
        width=draw(st.integers(1, 2**20)),
        height=draw(st.integers(1, 2**18)),
        dtype=draw(st.sampled_from(list(DTYPE_IDS))),
        bands=tuple(draw(st.lists(names(), min_size=1, max_size=5))),
        units=draw(names()),
        scale=draw(finite.filter(bool)),
        offset=draw(finite),
        s2_offset=draw(st.sampled_from(["", "present", "absent"])),
        nodata=draw(st.none() | st.floats() | st.integers(-(2**63), 2**63 - 1)),
        mask_kind=draw(st.sampled_from(["nodata", "mask"])),
        crs=draw(st.none() | st.integers(1, 99999).map("EPSG:{}".format) | names(1)),
        transform=draw(st.none() | st.tuples(*[finite | st.just(0.0)] * 6)),
        times=dates,
        sampler=draw(names()),
        steps=draw(st.integers(1, 65535)),
        seed=draw(st.integers(0, 2**64 - 1)),
        tags=draw(st.dictionaries(names(1), names(), max_size=4)),
        description=draw(names()),
        class_sets=draw(st.just(()) | sets),
    )


def round_trip(meta: LayerMeta) -> LayerMeta:
    """Pack and unpack a layer in both versions, where they differ with and without another layer's CRS."""
    found = []
    for version, others in ((1, []), (2, []), (2, ["EPSG:1"])):
        crs = others + ([meta.crs] if meta.crs else [])
        found.append(unpack_layer(memoryview(pack_layer(meta, crs, version)), crs, "layer 0", version))
    assert repr(found[0]) == repr(found[1]) == repr(found[2])
    return found[0]


@given(layers())
@settings(max_examples=150, deadline=None)
def test_round_trip(meta: LayerMeta) -> None:
    back = round_trip(meta)
    assert back == meta
    assert repr(back) == repr(meta)  # tells 0 from 0.0 and from -0.0


@given(st.lists(st.none() | names(1), min_size=1, max_size=4), st.dictionaries(names(1), names(), max_size=3))
@settings(max_examples=40, deadline=None)
def test_file_round_trip(crs: list[str | None], tags: dict[str, str]) -> None:
    meta = FileMeta(tuple(layer_meta(name=str(i), crs=c) for i, c in enumerate(crs)), tags)
    # One run of 4 chunks with tag 0: 0 << 1 | 1, then 4 - 2.
    for version in VERSIONS:
        header = pack_header(meta, [b"\x01\x02"] * len(crs), version)
        back, indexes = unpack_header(header, version)
        assert back == meta
        assert len(indexes) == len(crs)


@pytest.mark.parametrize(
    "value",
    [
        None, 0, 0.0, -0.0, 255, -32768, -9223372036854775808, math.inf, -math.inf, 1e20,
        -3.4028230607370965e38, np.float32(0.1), np.int16(-1), np.uint8(0),
    ],
)  # fmt: skip
def test_nodata_is_exact(value: Any) -> None:
    back = round_trip(layer_meta(nodata=value)).nodata
    if value is None:
        assert back is None
    else:
        assert isinstance(back, int if isinstance(value, int | np.integer) else float)
        assert struct.pack("<d", back) == struct.pack("<d", value)
        assert back == value


def test_nodata_nan() -> None:
    meta = layer_meta(nodata=float("nan"))
    assert math.isnan(round_trip(meta).nodata or 0)
    assert round_trip(meta) == meta
    assert hash(round_trip(meta)) == hash(meta)
    without = layer_meta()
    assert [len(pack_layer(meta, [], v)) - len(pack_layer(without, [], v)) for v in (1, 2)] == [2 + 10, 1 + 1]


def test_standard_layer_by_hand() -> None:
    m = MODALITIES["S2L2A"]
    meta = LayerMeta(
        name="S2L2A", modality="S2L2A", tokenizer="mini-s2l2a-v1", weights_sha256=SHA, levels=m.levels,
        width=256, height=300, dtype="uint16", bands=m.bands, units="DN",
    )  # fmt: skip
    # grid 256 x 300; modality 1; hash. Nothing else differs from its default.
    assert pack_layer(meta, [], 1).hex() == "01048002ac02" + "030101" + "0720" + SHA.hex()
    # Keys of version 2: 1 * 8 + 4, 3 * 8 + 1, 7 * 8 + 7 and 32 - 7.
    assert pack_layer(meta, [], 2).hex() == "0c8002ac02" + "1901" + "3f19" + SHA.hex()


def test_what_version_2_leaves_out() -> None:
    m, (tokenizer, sha256) = MODALITIES["S2L2A"], REGISTERED[1]
    meta = LayerMeta(
        name="S2L2A", modality="S2L2A", tokenizer=tokenizer, weights_sha256=bytes.fromhex(sha256),
        levels=m.levels, width=256, height=256, dtype="uint16", bands=m.bands, units="DN", scale=1.0,
        offset=1000.0, s2_offset="absent", crs="EPSG:32632", transform=(10, 0, 399960, 0, -10, 4900020),
    )  # fmt: skip
    # Grid; offset absent, which says how values are scaled; transform of kind 3: 10, 39996 and 490002 pixels;
    # tokenizer 1, which says the modality. The CRS is the file's first.
    by_hand = "0c80028002" + "9902" + "dd" + "03" + "50" + varint(2 * 39996).hex() + varint(2 * 490002).hex()
    assert pack_layer(meta, ["EPSG:32632"], 2).hex() == by_hand.replace("dd", "df01") + "f901"
    assert round_trip(meta) == meta
    for other in (
        meta.replace(offset=0.0),
        meta.replace(s2_offset="present", offset=0.0),
        meta.replace(crs=None),
        meta.replace(modality="S2L1C", name="x"),
        meta.replace(transform=(10, 0, 399960.5, 0, -10, 4900020)),
        meta.replace(transform=(0.1, 0, 0.1 * 3, 0, -0.1, 0.3)),
        meta.replace(transform=(-10, 0, 0.0, 0, 10, -0.0)),
        meta.replace(transform=(1e-300, 0, 1e300, 0, -1e-300, 0.0)),
        # Whole pixels from the origin, but not north up with square pixels.
        meta.replace(transform=(10, 0, 30, 0, 10, 50)),
        meta.replace(transform=(10, 0, 30, 0, -20, 50)),
        meta.replace(transform=(10, 5, 30, 0, -10, 50)),
        meta.replace(transform=(10, 0, 30, 5, -10, 50)),
        meta.replace(transform=(10, -0.0, 30, 0, -10, 50)),
    ):
        assert repr(round_trip(other)) == repr(other)


def test_transforms_of_whole_pixels_at_the_limits() -> None:
    """Up to 2^31 pixels from the origin, found even where the quotient of the product falls short."""

    def field(a: float, col: int, row: int) -> bytes:
        meta = layer_meta(transform=(a, 0, col * a, 0, -a, row * a))
        packed = pack_layer(meta, [], 2)
        assert repr(unpack_layer(memoryview(packed), [], "layer 0", 2)) == repr(meta)
        return packed

    def by_hand(a: bytes, col: int, row: int) -> bytes:
        places = b"".join(varint(2 * n if n >= 0 else -2 * n - 1) for n in (col, row))
        return section(27, b"\x03" + a + places, 2)

    ten, tenth = b"\x50", b"\x09\x01"
    assert by_hand(ten, 2**31, -(2**31)) in field(10.0, 2**31, -(2**31))
    assert by_hand(ten, 2**31 + 1, 0) not in field(10.0, 2**31 + 1, 0)
    assert by_hand(ten, 0, -(2**31) - 1) not in field(10.0, 0, -(2**31) - 1)
    assert 43 * 0.1 / 0.1 < 43
    assert by_hand(tenth, 43, -43) in field(0.1, 43, -43)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("03", "transform needs 1"),
        ("03 50 81", "transform needs 1"),
        ("03 50 00", "transform needs 1"),
        ("03 50 00 00 00", "1 bytes too many"),
        ("03 50 80 80 80 80 20 00", "too far"),
        ("04 50 00 00", "kind 4"),
    ],
)
def test_bad_transforms_of_whole_pixels(data: str, why: str) -> None:
    with pytest.raises(MetadataError, match=why):
        unpack_layer(memoryview(minimal(2) + section(27, bytes.fromhex(data), 2)), [], "layer 0", 2)


def test_a_key_of_version_2_is_as_short_as_can_be() -> None:
    with pytest.raises(MetadataError, match="fits into the first byte"):
        unpack_layer(memoryview(b"\x01\x1f" + b"x"), [], "layer 0", 2)
    with pytest.raises(MetadataError, match="left"):
        unpack_layer(memoryview(b"\x0f\xff\xff\x03"), [], "layer 0", 2)


def test_tokenizer_version() -> None:
    for version in VERSIONS:
        with_2 = pack_layer(layer_meta(tokenizer="mini-s2rgb-v2"), [], version)
        assert len(with_2) == len(pack_layer(layer_meta(), [], version)) + 4 - version
        assert section(5, b"\x02", version) in with_2
        for other in ("v0", "v02", "v", "vx", "v1000000000", "v2 "):  # texts, none of them a number
            packed = pack_layer(layer_meta(tokenizer=f"mini-s2rgb-{other}"), [], version)
            assert section(5, b"\0mini-s2rgb-" + other.encode(), version) in packed


# The defaults by modality are part of the bitstream. A change of the table would change what
# old files mean: it needs a new modality number, not a new row here.
FROZEN = {
    "S2L2A": (1, "uint16", "DN", (8, 8, 8, 6, 5), "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B11 B12"),
    "S2L1C": (2, "uint16", "DN", (8, 8, 8, 6, 5), "B01 B02 B03 B04 B05 B06 B07 B08 B8A B09 B10 B11 B12"),
    "S2RGB": (3, "uint8", "1", (8, 8, 8, 6, 5), "B04 B03 B02"),
    "S1GRD": (4, "float32", "dB", (8, 8, 8, 6, 5), "VV VH"),
    "S1RTC": (5, "float32", "dB", (8, 8, 8, 6, 5), "VV VH"),
    "DEM": (6, "int16", "m", (8, 8, 8, 6, 5), "DEM"),
    "NDVI": (7, "float32", "1", (8, 8, 8, 6, 5), "NDVI"),
    "LULC": (8, "uint8", "class", (7, 5, 5, 5, 5), "LULC"),
}


@pytest.mark.parametrize("name", FROZEN)
def test_defaults_by_modality_are_frozen(name: str) -> None:
    number, dtype, units, levels, bands = FROZEN[name]
    row = MODALITIES[name]
    assert MODALITY_IDS[name] == number
    assert (row.dtype, row.units, row.levels, " ".join(row.bands)) == (dtype, units, levels, bands)


def test_crs_forms() -> None:
    assert pack_crs("EPSG:32632").hex() == "00" + "f8fe01"
    assert pack_crs("EPSG:032632")[0] == 1  # not the canonical spelling, kept as text
    wkt = "PROJCS[" + "UNIT," * 100
    assert pack_crs(wkt)[0] == 2
    for crs in ("EPSG:32632", "EPSG:032632", wkt, "x"):
        assert unpack_crs(memoryview(pack_crs(crs))) == crs


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x00", b"\x00\x00", b"\x00\x01\x01", b"\x03x", b"\x01\xff", b"\x02x",
        b"\x02" + zstandard.compress(b"x" * 2**24),
    ],
)  # fmt: skip
def test_crs_rejects(data: bytes) -> None:
    with pytest.raises(MetadataError, match="crs"):
        unpack_crs(memoryview(data))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", "x" * 256), ("name", "\ud800"), ("name", 5), ("modality", ""),
        ("tokenizer", ""),
        ("weights_sha256", b"x"), ("weights_sha256", "x" * 32), ("levels", ()), ("levels", (1,)),
        ("levels", (257,)), ("levels", (2.5,)), ("levels", (256, 256, 256, 256)), ("levels", (2,) * 31),
        ("patch", 0), ("patch", 1025), ("tile", 30), ("tile", 0), ("tile", 2**17), ("chunk", 0),
        ("chunk", 257),
        ("width", 0), ("width", 2**31), ("width", 1.5), ("height", -1), ("dtype", "int64"), ("bands", ()),
        ("bands", (5,)), ("bands", ("x" * 256,)), ("bands", ("",) * 65536), ("units", "x" * 256),
        ("scale", 0.0), ("scale", math.nan), ("scale", "x"), ("offset", math.inf), ("s2_offset", "maybe"),
        ("nodata", 2**63), ("nodata", "0"), ("mask_kind", "alpha"), ("crs", ""), ("crs", "x" * 65536),
        ("transform", (1.0,) * 5), ("transform", (math.nan,) * 6), ("times", ()),
        ("times", (None,) * (2**20 + 1)),
        ("steps", 0), ("steps", 65536), ("seed", -1), ("seed", 2**64), ("tags", {"": "x"}),
        ("tags", {"x": 5}),
        ("tags", {"x": "y" * 65536}), ("description", "x" * 65536),
    ],
)  # fmt: skip
def test_out_of_range(field: str, value: object) -> None:
    with pytest.raises(
        MetadataError, match="tag" if field == "tags" else "band" if field == "bands" else field
    ):
        layer_meta(**{field: value})


LONG = "é" * 127 + "x"
"""Of 255 bytes in UTF-8."""


@pytest.mark.parametrize(
    "changes",
    [
        {"name": LONG, "modality": LONG, "tokenizer": LONG, "units": LONG, "sampler": LONG},
        {"description": "x" * 65535, "crs": "x" * 65535, "tags": {LONG: "x" * 65535}},
        {"bands": ("",) * 65534 + (LONG,), "levels": (2,) * 30},
        {"levels": (256, 256, 256, 127), "steps": 65535, "seed": 2**64 - 1, "nodata": 2**63 - 1},
        {"levels": (2,), "nodata": -(2**63), "offset": -1.7976931348623157e308},
        {"patch": 1024, "tile": 65536, "chunk": 8, "width": 2**31 - 1, "height": 2**31 - 1},
        {"patch": 32, "tile": 32, "chunk": 256, "width": 1, "height": 1, "scale": 5e-324},
        {"patch": 1, "tile": 1, "chunk": 1, "width": 2**20, "height": 2**20},  # 2^40 chunks
        {"tokenizer": "mini-s2rgb-v999999999", "times": (datetime.min, datetime.max)},
        {"tokenizer": "mini-s2rgb-v1000000000"},
    ],
)  # fmt: skip
def test_the_most_that_fits(changes: dict[str, Any]) -> None:
    meta = layer_meta(**changes)
    assert {name: getattr(meta, name) for name in changes if name != "times"} == {
        name: value for name, value in changes.items() if name != "times"
    }
    assert repr(round_trip(meta)) == repr(meta)


def test_the_most_dates_that_fit() -> None:
    assert layer_meta(times=(None,) * 2**20).chunks == 2**22


def test_a_million_levels_are_refused_in_a_short_line() -> None:
    with pytest.raises(MetadataError, match=r"^levels: a tuple are not 1 to 31 levels of 2 to 256$"):
        layer_meta(levels=(2,) * 10**6)


def test_chunk_in_pixels_is_bounded() -> None:
    with pytest.raises(MetadataError, match="8224 pixels a side"):
        layer_meta(patch=257, tile=257, chunk=32)


def test_too_many_chunks() -> None:
    with pytest.raises(MetadataError, match="chunks"):
        layer_meta(width=2**31 - 1, height=2**31 - 1, patch=1, tile=1, chunk=1)


def test_derived() -> None:
    meta = layer_meta(times=(None, datetime(2020, 1, 1)))
    assert (meta.rows, meta.cols) == (7, 9)  # 27 / 4 and 34 / 4, rounded up
    assert (meta.grid.chunk_rows, meta.grid.chunk_cols, meta.chunks) == (2, 2, 8)
    assert meta.grid.token_shape(1, 1) == (2, 4)
    assert meta.grid.pixel_shape(1, 1) == (7, 14)
    assert meta.codebook_size == 15360
    assert meta.times[1] == datetime(2020, 1, 1, tzinfo=timezone.utc)


def test_names_must_differ() -> None:
    with pytest.raises(MetadataError, match="same name"):
        FileMeta((layer_meta(), layer_meta()))
    with pytest.raises(MetadataError, match="0 layers"):
        FileMeta(())


GRID, MODALITY, WEIGHTS = section(1, varint(34) + varint(27)), section(3, b"\x03"), section(7, SHA)


def unpack(*fields: bytes) -> LayerMeta:
    return unpack_layer(memoryview(b"".join(fields)), ["EPSG:4326"], "layer 0", 1)


def minimal(version: int) -> bytes:
    fields = [(1, varint(34) + varint(27)), (3, b"\x03"), (7, SHA)]
    return b"".join(section(number, data, version) for number, data in fields)


def test_minimal_layer(version: int) -> None:
    meta = unpack_layer(memoryview(minimal(version)), [], "layer 0", version)
    assert (meta.name, meta.tokenizer, meta.bands) == ("S2RGB", "mini-s2rgb-v1", ("B04", "B03", "B02"))
    assert (meta.patch, meta.tile, meta.chunk, meta.times, meta.sampler) == (16, 256, 64, (None,), "ddim")


def test_optional_field_is_skipped() -> None:
    assert unpack(GRID, MODALITY, WEIGHTS, section(1000, b"future")) == unpack(GRID, MODALITY, WEIGHTS)


@pytest.mark.parametrize("number", REGISTERED)
def test_a_registered_tokenizer_takes_three_bytes(number: int) -> None:
    name, sha256 = REGISTERED[number]
    modality = next(m for m in MODALITY_IDS if name.startswith(f"mini-{m.lower()}-"))
    meta = layer_meta(
        name=modality, modality=modality, tokenizer=name, weights_sha256=bytes.fromhex(sha256),
        dtype=MODALITIES[modality].dtype, bands=MODALITIES[modality].bands,
        levels=MODALITIES[modality].levels, units=MODALITIES[modality].units,
    )  # fmt: skip
    for version in VERSIONS:
        packed, field = pack_layer(meta, [], version), section(31, varint(number), version)
        assert field in packed and len(field) == 4 - version
        assert unpack_layer(memoryview(packed), [], "layer 0", version) == meta
        # Another checksum under the same name is written out.
        other = meta.replace(weights_sha256=SHA)
        assert len(pack_layer(other, [], version)) >= len(packed) + 31
        assert round_trip(other) == other


@pytest.mark.parametrize("fields", [(WEIGHTS,), (section(5, b"\x02"),), (section(5, b"\x02"), WEIGHTS)])
def test_a_registered_tokenizer_has_no_other_name_or_checksum(fields: tuple[bytes, ...]) -> None:
    with pytest.raises(MetadataError, match="beside another name or checksum"):
        unpack(GRID, MODALITY, *fields, section(31, b"\x03"))


@pytest.mark.parametrize("number", [0, 10_000])
def test_a_tokenizer_registered_later_is_refused_by_its_number(number: int) -> None:
    with pytest.raises(UnknownSectionError, match=f"tokenizer number {number} is not registered; a newer"):
        unpack(GRID, MODALITY, section(31, varint(number)))


def test_mandatory_field_is_not() -> None:
    with pytest.raises(UnknownSectionError, match="mandatory section 1001"):
        unpack(GRID, MODALITY, WEIGHTS, section(1001, b"future"))


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ((), "name, modality"),
        ((MODALITY, WEIGHTS), "width, height missing"),
        ((GRID, WEIGHTS), "modality"),
        ((GRID, MODALITY), "weights_sha256 missing"),
        ((GRID, section(3, b"\x00own"), WEIGHTS), "levels, dtype, bands missing"),
        ((GRID, section(3, b"\x09"), WEIGHTS), "number 9"),
        ((GRID, GRID, MODALITY, WEIGHTS), "repeated"),
        ((MODALITY, GRID, WEIGHTS), "order"),
        ((section(1, varint(34) + varint(27) + b"\x00"), MODALITY, WEIGHTS), "1 bytes too many"),
        ((section(1, varint(34)), MODALITY, WEIGHTS), "height needs 1"),
        ((section(1, varint(34) + b"\x00"), MODALITY, WEIGHTS), "height: 0"),
        ((GRID, MODALITY, section(7, SHA[:31])), "SHA-256 needs 32"),
        ((GRID, MODALITY, WEIGHTS, section(9, b"\x01")), "levels"),
        ((GRID, MODALITY, WEIGHTS, section(11, b"\x10\x10\x00")), "chunk: 0"),
        ((GRID, MODALITY, WEIGHTS, section(13, b"\x63")), "dtype: number 99"),
        ((GRID, MODALITY, WEIGHTS, section(15, b"")), "0 bands"),
        ((GRID, MODALITY, WEIGHTS, section(19, b"\x03")), "s2_offset"),
        ((GRID, MODALITY, WEIGHTS, section(21, b"\x02\x00")), "nodata: kind 2"),
        ((GRID, MODALITY, WEIGHTS, section(23, b"\x02")), "mask_kind"),
        ((GRID, MODALITY, WEIGHTS, section(25, b"\x01")), "number 1 of 1"),
        ((GRID, MODALITY, WEIGHTS, section(27, b"\x03")), "transform: kind 3"),
        ((GRID, MODALITY, WEIGHTS, section(29, b"\x03")), "not a time"),
        ((GRID, MODALITY, WEIGHTS, section(29, varint(2**63 | 1))), "not a time"),
        ((GRID, MODALITY, WEIGHTS, b"\x0f\xff\xff\xff\x07"), "left"),
    ],
)
def test_malformed(fields: tuple[bytes, ...], why: str) -> None:
    with pytest.raises(MetadataError, match=why):
        unpack(*fields)


def test_tags_must_be_sorted() -> None:
    tags = section(12, b"\x01b\x00\x01a\x00")
    with pytest.raises(MetadataError, match="not sorted"):
        unpack(GRID, MODALITY, WEIGHTS, tags)
