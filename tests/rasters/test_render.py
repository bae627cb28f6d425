"""Pictures of every modality."""

from __future__ import annotations

import numpy as np
import pytest

from tmcodec.modalities import MODALITIES
from tmcodec.rasters.render import INVALID_GREY, render_rgb


@pytest.mark.parametrize("name", MODALITIES)
def test_every_modality_renders_and_shows_invalid_pixels_grey(name: str) -> None:
    modality = MODALITIES[name]
    rng = np.random.default_rng(0)
    mean, std = (np.array(v, np.float32)[:, None, None] for v in (modality.mean, modality.std))
    values = (mean + std * rng.standard_normal((len(modality.bands), 20, 30))).astype(np.float32)
    valid = np.ones(values.shape, bool)
    valid[:, 3:5, 7:9] = False
    values[~valid] = np.nan
    picture, ranges = render_rgb(values, valid, modality)
    assert picture.shape == (3, 20, 30) and picture.dtype == np.uint8
    assert (picture[:, 3:5, 7:9] == INVALID_GREY).all()
    again, same = render_rgb(values, valid, modality, ranges)
    assert np.array_equal(picture, again) and same == ranges


def test_true_colour_by_hand() -> None:
    modality = MODALITIES["S2RGB"]
    values = np.array([255, 128, 0], np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    picture, _ = render_rgb(values, np.ones(values.shape, bool), modality)
    assert picture[:, 0, 0].tolist() == [255, 128, 0]


def test_sentinel2_takes_red_green_blue_and_the_offset() -> None:
    modality = MODALITIES["S2L2A"]
    values = np.full((12, 1, 1), 1000, np.float32)  # with the offset, 1000 is black
    values[modality.bands.index("B04")] = 4000
    picture, _ = render_rgb(values, np.ones(values.shape, bool), modality)
    assert picture[:, 0, 0].tolist() == [255, 0, 0]


def test_sentinel1_shows_the_difference_in_blue() -> None:
    values = np.array([-10, -17], np.float32)[:, None, None]
    picture, _ = render_rgb(values, np.ones(values.shape, bool), MODALITIES["S1GRD"])
    # (-10 + 20) / 20, (-17 + 27) / 20 and 7 / 15 of 255.
    assert picture[:, 0, 0].tolist() == [128, 128, 119]


def test_classes_take_their_palette() -> None:
    modality = MODALITIES["LULC"]
    values = np.arange(10, dtype=np.float32).reshape(1, 1, 10)
    picture, _ = render_rgb(values, np.ones(values.shape, bool), modality)
    assert [tuple(c) for c in picture[:, 0].T.tolist()] == list(modality.colors)


def test_ndvi_is_green_where_high_and_brown_where_low() -> None:
    values = np.array([[[-0.2, 1.0]]], np.float32)
    picture, _ = render_rgb(values, np.ones(values.shape, bool), MODALITIES["NDVI"])
    assert picture[1, 0, 1] > picture[0, 0, 1] and picture[0, 0, 0] > picture[1, 0, 0]


def test_hills_are_lit_from_the_north_west() -> None:
    rows, cols = np.mgrid[:64, :64].astype(np.float32)
    values = (1000 * np.exp(-((rows - 32) ** 2 + (cols - 32) ** 2) / 300))[None]
    picture, ranges = render_rgb(values, np.ones(values.shape, bool), MODALITIES["DEM"])
    luminance = picture.sum(axis=0).astype(int)
    assert luminance[24, 24] > luminance[40, 40]  # same height, opposite slopes
    assert 0 <= ranges[0][0] < ranges[0][1] <= 1000


def test_one_stretch_for_two_pictures() -> None:
    modality = MODALITIES["DEM"]
    values = np.linspace(0, 100, 256, dtype=np.float32).reshape(1, 16, 16)
    valid = np.ones(values.shape, bool)
    _, ranges = render_rgb(values, valid, modality)
    own, _ = render_rgb(values * 0.5, valid, modality)
    shared, used = render_rgb(values * 0.5, valid, modality, ranges)
    assert used == ranges and not np.array_equal(own, shared)


def test_a_picture_without_valid_pixels_is_grey() -> None:
    values, valid = np.zeros((1, 3, 3), np.float32), np.zeros((1, 3, 3), bool)
    picture, ranges = render_rgb(values, valid, MODALITIES["DEM"])
    assert (picture == INVALID_GREY).all() and len(ranges) == 1
