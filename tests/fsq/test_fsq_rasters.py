"""The raster steps against NumPy written out, bit for bit on every backend."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fsq_helpers import BACKENDS, ISAS, instruction_set
from hypothesis import given, settings
from hypothesis import strategies as st

from tmcodec.fsq import blend, blend_weights, normalize_patchify
from tmcodec.fsq.rasters import RASTER_DTYPES, TILE_DTYPES
from tmcodec.rasters.blend import Blender, ramp_weights
from tmcodec.rasters.windows import Window

MEAN, STD = [1390.458, -10.93, 0.0], [2106.761, 4.391, 1.0]
ROWS, COLS = [0, 6, 12], [-2, 7, 14, 40]
TILE, HEIGHT, WIDTH = 8, 17, 23


def raster_of(dtype, seed=0):
    gen = torch.Generator().manual_seed(seed)
    if dtype.is_floating_point:
        values = torch.randn(3, HEIGHT, WIDTH, generator=gen) * 1000
        values[0, 3, 4] = torch.nan
        values[1, 5, 6] = torch.inf
        return values
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max
    return torch.randint(low, high + 1, (3, HEIGHT, WIDTH), generator=gen).to(dtype)


def numpy_tiles(raster, mask, fill):
    """Every pixel on its own, as the docstring says it."""
    tiles = np.full((len(ROWS), len(COLS), 3, TILE, TILE), fill, np.float32)
    values = raster.numpy().astype(np.float32)
    for (r, c, ch, i, j), _ in np.ndenumerate(tiles):
        y, x = ROWS[r] + i, COLS[c] + j
        if (
            0 <= y < HEIGHT
            and 0 <= x < WIDTH
            and (mask is None or mask[y, x])
            and not np.isnan(values[ch, y, x])
        ):
            tiles[r, c, ch, i, j] = (values[ch, y, x] - np.float32(MEAN[ch])) / np.float32(STD[ch])
    return tiles


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("tile_dtype", TILE_DTYPES)
@pytest.mark.parametrize("dtype", RASTER_DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_normalize_patchify(masked, dtype, tile_dtype, backend):
    raster = raster_of(dtype)
    mask = torch.rand(HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1)) > 0.3 if masked else None
    tiles = normalize_patchify(raster, MEAN, STD, TILE, ROWS, COLS, mask, 0.5, tile_dtype, backend)
    expected = torch.from_numpy(numpy_tiles(raster, mask, 0.5)).to(tile_dtype)
    assert tiles.dtype == tile_dtype
    assert torch.equal(tiles, expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", RASTER_DTYPES)
@pytest.mark.parametrize("tile_dtype", TILE_DTYPES)
@pytest.mark.parametrize("masked", [False, True])
def test_blend_is_the_same_on_all(masked, tile_dtype, dtype, backend):
    gen = torch.Generator().manual_seed(2)
    tiles = (torch.randn(3, 4, 3, TILE, TILE, generator=gen) * 3).to(tile_dtype)
    tiles[0, 1, 0, 2, 2] = torch.nan
    mask = torch.rand(HEIGHT + 4, WIDTH, generator=gen) > 0.2 if masked else None
    weights = blend_weights(ROWS, TILE), blend_weights(COLS, TILE)
    found = [
        blend(tiles, ROWS, COLS, *weights, HEIGHT + 4, WIDTH, MEAN, STD, mask, 7.0, dtype, name)
        for name in (backend, "torch")
    ]
    assert found[0].dtype == dtype
    assert torch.equal(found[0], found[1])
    assert (found[0][:, HEIGHT + 3] == 7).all()  # tiles end at row 20
    if masked:
        assert (found[0].numpy()[:, ~mask.numpy()] == 7).all()  # torch 2.4 indexes no uint16


@pytest.mark.parametrize("backend", BACKENDS)
def test_blend_is_the_codecs_blender(backend):
    starts, tile, size = [0, 12, 24], 16, 40
    tiles = torch.randn(3, 3, 2, tile, tile, generator=torch.Generator().manual_seed(3))
    blender = Blender(2, size, size)
    for r, row in enumerate(starts):
        for c, col in enumerate(starts):
            sides = {"top": 4 * (r > 0), "bottom": 4 * (r < 2), "left": 4 * (c > 0), "right": 4 * (c < 2)}
            blender.add(Window(col, row, tile, tile), tiles[r, c].numpy(), ramp_weights(tile, tile, **sides))
    expected = blender.release(size)[1]
    weights = blend_weights(starts, tile)
    found = blend(tiles, starts, starts, weights, weights, size, size, backend=backend)
    np.testing.assert_array_equal(found.numpy(), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.uint8, [0, 2, 2, 4, 255, 255, 9, 0]),
        (torch.uint16, [0, 2, 2, 4, 300, 65535, 9, 0]),
        (torch.int16, [-2, 2, 2, 4, 300, 32767, 9, -32768]),
    ],
)
def test_integers_are_rounded_half_to_even_and_saturate(dtype, expected, backend):
    values = torch.tensor([-1.5, 1.5, 2.5, 3.5, 300.4, torch.inf, torch.nan, -torch.inf])
    tiles = values.expand(8, 8)[None, None, None].contiguous()
    ones = torch.ones(1, 8)
    raster = blend(tiles, [0], [0], ones, ones, 1, 8, fill=9, dtype=dtype, backend=backend)
    assert raster.flatten().tolist() == expected


@pytest.mark.parametrize("backend", BACKENDS)
def test_round_trip(backend):
    raster = raster_of(torch.uint16, 5)
    tiles = normalize_patchify(raster, MEAN, STD, TILE, ROWS, [0, 8, 15], backend=backend)
    weights = blend_weights(ROWS, TILE), blend_weights([0, 8, 15], TILE)
    back = blend(
        tiles, ROWS, [0, 8, 15], *weights, HEIGHT, WIDTH, MEAN, STD, dtype=torch.uint16, backend=backend
    )
    assert torch.equal(back, raster)


@pytest.mark.parametrize("backend", BACKENDS)
@given(
    height=st.integers(0, 12), width=st.integers(0, 12), tile=st.integers(1, 9), channels=st.integers(0, 3),
    starts=st.lists(st.integers(-12, 14), max_size=4),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_size(backend, height, width, tile, channels, starts):
    raster = torch.arange(channels * height * width, dtype=torch.int16).view(channels, height, width)
    mean, std = [1.5] * channels, [0.7] * channels
    args = (mean, std, tile, starts, starts[:2])
    tiles = normalize_patchify(raster, *args, backend=backend)
    assert torch.equal(tiles, normalize_patchify(raster, *args, backend="torch"))
    weights = torch.rand(len(starts), tile), torch.rand(len(starts[:2]), tile)
    found = [
        blend(tiles, starts, starts[:2], *weights, height, width, mean, std, fill=-1, backend=name)
        for name in (backend, "torch")
    ]
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("isa", ISAS)
def test_instruction_sets_agree(isa):
    raster = torch.randn(2, 70, 131, generator=torch.Generator().manual_seed(6)) * 100
    args = ([1.0, 2.0], [3.0, 4.0], 37, [0, 30], [0, 31, 60, 94])
    weights = blend_weights(args[3], 37), blend_weights(args[4], 37)
    with instruction_set(isa):
        for dtype in TILE_DTYPES:
            tiles = normalize_patchify(raster, *args, dtype=dtype, backend="native")
            assert torch.equal(tiles, normalize_patchify(raster, *args, dtype=dtype, backend="torch"))
            out = [
                blend(tiles, *args[3:], *weights, 67, 131, *args[:2], backend=name)
                for name in ("native", "torch")
            ]
            assert torch.equal(*out)


@pytest.mark.parametrize("tile_dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("isa", ISAS)
def test_half_precision_conversions_are_torchs(isa, tile_dtype):
    """Every 2^16 pattern to float32, and float32 around every rounding edge back."""
    patterns = (
        torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(tile_dtype).reshape(256, 256)
    )
    ones = torch.ones(1, 256)
    with instruction_set(isa):
        up = blend(
            patterns[None, None, None], [0], [0], ones, ones, 256, 256, fill=float("nan"), backend="native"
        )
        expected = patterns.float()
        assert torch.equal(up[0].isnan(), expected.isnan())
        assert torch.equal(up[0][~expected.isnan()], expected[~expected.isnan()])
        exact = expected.nan_to_num(0, torch.inf, -torch.inf)
        neighbours = torch.sort(exact.flatten().unique()).values
        middles = (neighbours[1:-2] + neighbours[2:-1]) / 2
        wanted = torch.cat(
            [middles, middles.nextafter(torch.tensor(1e38)), middles.nextafter(torch.tensor(-1e38))]
        )
        wanted = wanted[: wanted.numel() // 256 * 256].view(1, -1, 256)
        starts = list(range(0, wanted.shape[1], 256))
        down = normalize_patchify(wanted, [0.0], [1.0], 256, starts, [0], dtype=tile_dtype, backend="native")
    rows = down[:, 0, 0].reshape(-1, 256)[: wanted.shape[1]]
    assert torch.equal(rows, wanted[0].to(tile_dtype))


def test_what_does_not_fit_is_refused():
    raster, ones = torch.zeros(3, 4, 4), torch.ones(1, 4)
    with pytest.raises(ValueError, match="2 numbers for 3 channels"):
        normalize_patchify(raster, [0, 0], [1, 1, 1], 4, [0], [0])
    with pytest.raises(ValueError, match="mask"):
        normalize_patchify(raster, [0] * 3, [1] * 3, 4, [0], [0], torch.ones(4, 5, dtype=torch.bool))
    with pytest.raises(TypeError, match="int64"):
        normalize_patchify(raster.long(), [0] * 3, [1] * 3, 4, [0], [0])
    with pytest.raises(ValueError, match="tiles"):
        blend(raster, [0], [0], ones, ones, 4, 4)
    with pytest.raises(ValueError, match="weights"):
        blend(raster[None, None], [0], [0], ones, torch.ones(1, 5), 4, 4)
    with pytest.raises(TypeError, match="float64"):
        blend(raster[None, None], [0], [0], ones, ones, 4, 4, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_mask_on_another_device_is_refused(backend):
    raster, ones = torch.zeros(3, 4, 4), torch.ones(1, 4)
    mask = torch.ones(4, 4, dtype=torch.bool, device="meta")
    with pytest.raises(ValueError, match="lie on cpu and meta; move them to one device"):
        normalize_patchify(raster, [0] * 3, [1] * 3, 4, [0], [0], mask, backend=backend)
    with pytest.raises(ValueError, match="lie on cpu and meta; move them to one device"):
        blend(raster[None, None], [0], [0], ones, ones, 4, 4, mask=mask, backend=backend)
