"""The search for better tokens: its bits are the coder's, its error the decoder's, and both get less."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import tmcodec
from tmcodec.cli import cli
from tmcodec.codec import tokenizer
from tmcodec.codec.balance import BalanceProbe, gain_planes
from tmcodec.codec.search import default_effort, search
from tmcodec.codec.search.bits import TokenBits
from tmcodec.codec.search.descent import Descent
from tmcodec.codec.search.error import TokenError
from tmcodec.codec.search.places import around, near, summit
from tmcodec.codec.tokenizer import MiniTokenizer, Tokenizer
from tmcodec.errors import SearchError
from tmcodec.modalities import MODALITIES
from tmcodec.tokenfile.context.backends import choose
from tmcodec.tokenfile.context.coder import context_encode, tables_alone
from tmcodec.tokenfile.context.model import generic_model
from tmcodec.tokenfile.context.reference import pad_planes

CPU = torch.device("cpu")
MakeTokenizer = Callable[[str], Path]
MakeScene = Callable[..., Path]
SEARCHED = ["S2L2A", "S2L1C", "S2RGB", "S1GRD", "S1RTC", "NDVI", "LULC"]


@pytest.fixture(scope="module")
def embedded() -> Callable[[str], MiniTokenizer]:
    def load(modality: str) -> MiniTokenizer:
        tok = tmcodec.load_tokenizer(tmcodec.codec.models.default_model(modality), "cpu")
        assert isinstance(tok, MiniTokenizer)
        return tok

    return load


def hills(modality: str, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Return a smooth picture in physical units, or blobs of classes."""
    row = MODALITIES[modality]
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / 40
    waves = sum(np.sin(a * y + b * x + c) for a, b, c in rng.normal(0, 2, (5, 3)))
    if row.categorical:
        return np.digitize(waves, [-1.5, 0, 1.5])[None].astype(np.float32) + 1
    mean, std = (np.array(s)[:, None, None] for s in (row.mean, row.std))
    return np.clip(mean + 0.3 * std * waves, *row.valid_range).astype(np.float32)


def digits_of(tokens: np.ndarray, levels: tuple[int, ...]) -> torch.Tensor:
    """Return the digits of one grid, a batch."""
    place = np.concatenate([[1], np.cumprod(levels)[:-1]])
    return torch.from_numpy(tokens[None, ..., None] // place % levels)


def error_of(tok: MiniTokenizer, picture: np.ndarray, valid: np.ndarray | None = None) -> TokenError:
    mask = np.ones(picture.shape, np.bool_) if valid is None else valid
    return TokenError(tok.net, torch.from_numpy(picture)[None], torch.from_numpy(mask)[None])


def one_hot(digits: torch.Tensor, levels: tuple[int, ...]) -> torch.Tensor:
    parts = [torch.nn.functional.one_hot(digits[..., k], n) for k, n in enumerate(levels)]
    return torch.cat(parts, -1).float()


# --------------------------------------------------------------------------- bits


@pytest.mark.parametrize("modality", ["S2L2A", "LULC"])
def test_bits_are_those_of_the_coder_that_does_not_adapt(
    modality: str, embedded: Callable[[str], MiniTokenizer]
) -> None:
    tok = embedded(modality)
    tables = tables_alone(tok.sha256, tok.levels)
    still = replace(tables, rates=np.zeros_like(tables.rates), last_rate=0)
    rng = np.random.default_rng(0)
    picture = hills(modality, 24 * 16, 24 * 16)
    for tokens in (tok.encode(torch.from_numpy(picture)[None])[0].numpy(),
                   rng.integers(0, tok.codebook_size, (9, 31)).astype(np.int32)):  # fmt: skip
        digits = digits_of(tokens, tok.levels)
        planes = pad_planes(tok.levels, tokens.shape, (digits[0].numpy().astype(np.int32), None), None)
        coded = choose("python").code_chunk(still, planes, None)
        assert coded is not None
        mine = float(TokenBits(tables, CPU)(one_hot(digits, tok.levels)).sum())
        assert mine == pytest.approx(8 * len(coded), abs=8 + 0.004 * mine)


def test_gradients_of_bits_tell_what_the_last_token_would_cost(
    embedded: Callable[[str], MiniTokenizer],
) -> None:
    # Nothing comes after the last digit of the last token, so its gradient is the cost itself.
    tok = embedded("S2L2A")
    tables = tables_alone(tok.sha256, tok.levels)
    bits, k = TokenBits(tables, CPU), tables.order[-1]
    digits = digits_of(np.random.default_rng(1).integers(0, tok.codebook_size, (5, 6)), tok.levels)
    hot = one_hot(digits, tok.levels).requires_grad_()
    (slope,) = torch.autograd.grad(bits(hot).sum(), hot)
    costs = bits.part(slope, k)[0, -1, -1]
    assert torch.exp2(-costs).sum().item() == pytest.approx(1, abs=1e-5)
    for digit in range(tok.levels[k]):
        other = digits.clone()
        other[0, -1, -1, k] = digit
        with torch.no_grad():
            change = bits(one_hot(other, tok.levels)).sum() - bits(hot).sum()
        assert change.item() == pytest.approx(float(costs[digit] - costs[digits[0, -1, -1, k]]), abs=1e-3)


def test_without_tables_bits_are_free() -> None:
    bits = TokenBits(generic_model((4, 3)), CPU)
    assert bits(one_hot(torch.zeros(1, 2, 3, 2, dtype=torch.int64), (4, 3))).tolist() == [[[0.0] * 3] * 2]


# --------------------------------------------------------------------------- error


def codes_of(tok: Tokenizer, picture: np.ndarray) -> torch.Tensor:
    tokens = tok.encode(torch.from_numpy(picture)[None])[0].numpy()
    return digits_of(tokens, tok.levels) / (torch.tensor(tok.levels) - 1)


def test_errors_are_one_on_average_and_halve_where_pictures_do(
    embedded: Callable[[str], MiniTokenizer],
) -> None:
    tok, picture = embedded("S2L2A"), hills("S2L2A", 96, 128)
    error = error_of(tok, picture)
    codes = codes_of(tok, picture)
    with torch.no_grad():
        found = error(codes)
        assert found.shape == (1, 6, 8)
        assert found.mean().item() == pytest.approx(1, abs=0.02)  # the floor takes a little
        # By hand, from the decoder's own means at half resolution.
        half = tok.net.decoder.sketch(codes * 2 - 1)[0]
    x = torch.from_numpy(picture)[None]
    pooled = [torch.nn.functional.avg_pool2d(v, 2) for v in (tok.net.compander.compress(x), x)]
    squares = [(half - pooled[0]).square(), (tok.net.compander.expand(half) - pooled[1]).square()]
    shares = [s.sum(1).reshape(6, 8, 8, 8).sum((1, 3)) for s in squares]
    expected = sum(s / s.mean() for s in shares) / 2
    assert torch.corrcoef(torch.stack([found.flatten(), expected.flatten()]))[0, 1] > 0.999


def test_directions_of_red_and_infrared_are_those_of_angles(
    embedded: Callable[[str], MiniTokenizer],
) -> None:
    tok, picture = embedded("S2L1C"), hills("S2L1C", 32, 48)
    error = error_of(tok, picture)
    found = error.truth.roll(7, -1) * 1.1
    with torch.no_grad():
        *_, apart = error._kinds(tok.net.compander.compress(found), found)
    # Between unit vectors lies 2 - 2 cos of the angle between them. Sentinel-2 counts from 1000.
    bands = MODALITIES["S2L1C"].bands
    red, nir = bands.index("B04"), bands.index("B08")
    one, two = (np.arctan2(v[0, nir] - 1000, v[0, red] - 1000) for v in (error.truth.numpy(), found.numpy()))
    np.testing.assert_allclose(apart[0].numpy(), 2 - 2 * np.cos(one - two), atol=2e-5)


def test_vegetation_is_nearer_where_its_direction_counts(
    embedded: Callable[[str], MiniTokenizer],
) -> None:
    tok = embedded("S2L1C")
    picture = hills("S2L1C", 192, 192, seed=5)
    bands = MODALITIES["S2L1C"].bands
    red, nir = bands.index("B04"), bands.index("B08")
    picture[red] = 1100 + 0.2 * (hills("S2L1C", 192, 192, seed=6)[red] - 1000).clip(0)
    tokens = tok.encode(torch.from_numpy(picture)[None])
    bits = TokenBits(tables_alone(tok.sha256, tok.levels), CPU)

    def ndvi_error(shares: tuple[float, ...]) -> float:
        error = error_of(tok, picture)
        error.shares, error.pair = shares, error.pair if len(shares) > 2 else []
        found = Descent(error, bits, 0.0).run(digits_of(tokens[0].numpy(), tok.levels), 8)
        place = np.concatenate([[1], np.cumprod(tok.levels)[:-1]])
        back = tok.decode((found * torch.from_numpy(place)).sum(-1).int())[0].numpy()
        one, two = ((v[nir] - v[red]) / (v[nir] + v[red] - 2000) for v in (picture, back))
        return float(np.abs(one - two).mean())

    assert MODALITIES["S2L1C"].ndvi_share == 0.5
    assert ndvi_error((0.5, 0.5, 0.5)) < 0.97 * ndvi_error((0.5, 0.5))


@pytest.mark.parametrize("modality", ["S1GRD", "LULC"])
def test_masked_pixels_count_nothing(modality: str, embedded: Callable[[str], MiniTokenizer]) -> None:
    tok, picture = embedded(modality), hills(modality, 64, 80)
    valid = np.ones(picture.shape, np.bool_)
    valid[:, 10:40, 20:70] = False
    junk = np.where(valid, picture, np.nan).astype(np.float32)
    codes = codes_of(tok, picture)
    other = codes.clone()
    other[0, 1:3, 2:4] = 1 - other[0, 1:3, 2:4]
    with torch.no_grad():
        for values in (picture, junk):
            error = error_of(tok, values, valid)
            assert torch.isfinite(error(codes)).all()
            result = error(other)
            if values is picture:
                expected = result
        torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
        nothing = error_of(tok, junk, np.zeros_like(valid))
        assert float(nothing(codes).abs().max()) == 0


@pytest.mark.parametrize("modality", ["S2L2A", "LULC"])
def test_bends_are_gauss_and_newtons(
    modality: str, tiny_tokenizer: MakeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tmcodec.codec.search.error.has_bf16", lambda device: False)
    tok = tmcodec.load_tokenizer(str(tiny_tokenizer(modality)), "cpu")
    assert isinstance(tok, MiniTokenizer)
    picture = hills(modality, 16, 32)
    error = error_of(tok, picture)
    codes = codes_of(tok, picture).float()
    with torch.no_grad():
        error(codes)
    assert error.scales is not None
    # (1, C, h, w, 1, rows, cols, d)
    jacobian = torch.autograd.functional.jacobian(lambda c: error.draw(c)[0], codes)
    found = error.draw(codes)[0]
    if modality == "LULC":
        p = found.softmax(1)[..., None, None, None, None]
        each = (p * jacobian.square()).sum(1) - (p * jacobian).sum(1).square()
        weight = error.weight[:, 0, ..., None, None, None, None]
        exact = error.scales[0] * (weight * each).sum((0, 1, 2))
    else:
        slope = tok.net.compander.slope(tok.net.compander.expand(found))
        weight = 2 * (error.scales[0] + error.scales[1] * slope.square())
        exact = (weight[..., None, None, None, None] * jacobian.square()).sum((0, 1, 2, 3))
    # One row of two tokens: the mean over 3 x 3 places, the border repeated, weighs them 2 to 1.
    left, right = exact[:, :, 0], exact[:, :, 1]
    smooth = torch.stack([2 * left + right, left + 2 * right], 2) / 3
    torch.testing.assert_close(error.bends(codes, draws=1500), smooth, rtol=0.15, atol=1e-6)


# --------------------------------------------------------------------------- search


def test_neighbourhoods_by_hand() -> None:
    gain = torch.tensor([[[1.0, 0, 0], [0, 2, 0], [0, 0, 3]]])
    assert summit(gain, corners=True)[0].tolist() == [[2, 2, 2], [2, 3, 3], [2, 3, 3]]
    assert summit(gain, corners=False)[0].tolist() == [[1, 2, 0], [2, 2, 3], [0, 3, 3]]
    assert around(gain)[0].tolist() == [[3, 3, 2], [3, 6, 5], [2, 5, 5]]
    assert near(gain > 2)[0].tolist() == [[False] * 3, [False, True, True], [False, True, True]]


def test_effort_falls_with_the_number_of_tokens() -> None:
    assert [default_effort(n) for n in (1, 9709, 9710, 32768, 65536, 65537)] == [24, 24, 23, 5, 1, 0]


@pytest.mark.parametrize("modality", SEARCHED)
def test_what_is_weighed_gets_less(modality: str, embedded: Callable[[str], MiniTokenizer]) -> None:
    tok, picture = embedded(modality), hills(modality, 160, 192, seed=3)
    valid = np.ones(picture.shape, np.bool_)
    valid[:, :20, :50] = False
    tokens = tok.encode(torch.from_numpy(picture)[None])[0].numpy()
    found = search(tok, tokens, picture, valid, 6)
    assert found.shape == tokens.shape
    assert found.dtype == np.int32
    assert found.min() >= 0
    assert found.max() < tok.codebook_size
    bits = TokenBits(tables_alone(tok.sha256, tok.levels), CPU)
    descent = Descent(error_of(tok, picture, valid), bits, MODALITIES[modality].bit_price)
    before, after = (float(descent.look(digits_of(t, tok.levels)).cost.sum()) for t in (tokens, found))
    assert after < 0.99 * before
    np.testing.assert_array_equal(search(tok, tokens, picture, valid, 6), found)
    assert MODALITIES[modality].bit_price > 0
    assert tok.searched


def test_a_price_buys_bits_and_none_buys_nearness(embedded: Callable[[str], MiniTokenizer]) -> None:
    tok, picture = embedded("S2L2A"), hills("S2L2A", 256, 256, seed=5)
    valid = np.ones(picture.shape, np.bool_)
    tokens = tok.encode(torch.from_numpy(picture)[None])[0].numpy()

    def measure(t: np.ndarray) -> tuple[int, float]:
        decoded = tok.decode(torch.from_numpy(t)[None])[0].numpy()
        coded = context_encode(t, tok.levels, tok.sha256)
        assert coded is not None
        return len(coded), float(np.square(decoded - picture).mean())

    size, mse = measure(tokens)
    near_size, near_mse = measure(search(tok, tokens, picture, valid, 8, price=0.0))
    short_size, short_mse = measure(search(tok, tokens, picture, valid, 8, price=0.5))
    assert near_mse < 0.95 * mse
    assert short_size < 0.9 * size
    assert near_mse < short_mse
    assert short_size < near_size


def test_what_cannot_be_searched_stays(embedded: Callable[[str], MiniTokenizer]) -> None:
    tokens = np.arange(6, dtype=np.int32).reshape(2, 3)
    for modality, effort, some in (("DEM", 0, True), ("NDVI", 0, True), ("NDVI", 5, False)):
        tok = embedded(modality)
        picture = np.ones((1, 32, 48), np.float32)
        assert search(tok, tokens, picture, np.full(picture.shape, some), effort) is tokens


def test_partial_patches_at_the_edge(embedded: Callable[[str], MiniTokenizer]) -> None:
    tok, picture = embedded("NDVI"), hills("NDVI", 48, 48)
    tokens = tok.encode(torch.from_numpy(picture)[None])[0].numpy()
    cut = picture[:, :37, :41]
    found = search(tok, tokens, cut, np.ones(cut.shape, np.bool_), 4)
    # What lies beyond the edge counts nothing, so it may be anything.
    valid = np.zeros(picture.shape, np.bool_)
    valid[:, :37, :41] = True
    other = np.where(valid, picture, -1).astype(np.float32)
    np.testing.assert_array_equal(found, search(tok, tokens, other, valid, 4))


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize("modality", ["NDVI", "DEM", "LULC"])
def test_the_callers_modes_of_torch_do_not_matter(
    modality: str, make_scene: MakeScene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    src, out = make_scene(modality, 64, 48), tmp_path / "a.tmc"

    def there_and_back() -> tuple[bytes, np.ndarray]:
        tmcodec.encode(src, out, modality=modality, effort=2, device="cpu", overwrite=True)
        return out.read_bytes(), tmcodec.decode_array(out, steps=3, device="cpu")[0]

    def same() -> bool:
        file, array = there_and_back()
        return file == expected[0] and np.array_equal(array, expected[1])

    expected = there_and_back()
    for mode in (torch.inference_mode, torch.no_grad, float64, partial(torch.device, "meta")):
        monkeypatch.setattr(tokenizer, "_cache", {})  # loaded in that mode, and used after it
        with mode():
            assert same()
        assert same()


@contextlib.contextmanager
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "spectrum",
    [
        (300, 500, 1500, 3500, 3800, 4200, 4500, 4600, 4700, 4600, 2500, 1500),  # of flowers
        (300, 350, 420, 500, 600, 750, 850, 900, 1000, 1050, 1900, 2100),  # of burnt ground
    ],
)
def test_no_bits_are_spent_on_what_the_balance_mends(spectrum: tuple[int, ...], tmp_path: Path) -> None:
    # One material, hardly varied: nearly all of the error is a cast.
    relief = hills("DEM", 128, 128)[0]
    field = np.array(spectrum)[:, None, None] * (1 + 0.01 * (relief - relief.mean()) / relief.std())
    scene = np.rint(field).astype(np.uint16)
    found = []
    for effort in (0, 8):
        path = tmp_path / f"{effort}.tmc"
        tmcodec.encode(scene, path, modality="S2L2A", s2_offset="absent", effort=effort)
        error = np.square(tmcodec.decode_array(path)[0].astype(float) - scene).mean()
        found.append((path.stat().st_size, float(error)))
    assert found[1][0] <= found[0][0] or found[1][1] < found[0][1]


@pytest.mark.parametrize("valid_rows", [96, 50])
def test_the_error_is_that_of_the_balanced_picture(
    valid_rows: int, embedded: Callable[[str], MiniTokenizer]
) -> None:
    tok, scale = embedded("S2L2A"), MODALITIES["S2L2A"].balance
    assert scale is not None
    tokens = tok.encode(torch.from_numpy(hills("S2L2A", 96, 96))[None])[0].numpy()
    codes = digits_of(tokens, tok.levels) / (torch.tensor(tok.levels) - 1)
    drawn = error_of(tok, hills("S2L2A", 96, 96))
    means = drawn.compander.expand(drawn.draw(codes)[0])[0].detach().numpy()
    gains, offsets = 1 + np.arange(-4, 8)[:, None, None] / 16, 32.0 * np.arange(12)[:, None, None]
    cast = 2000 + gains * (means - 2000) + offsets
    picture = cast.repeat(2, 1).repeat(2, 2).astype(np.float32)
    valid = np.ones(picture.shape, np.bool_)
    valid[:, valid_rows:] = False
    picture[~valid] = np.nan
    error = TokenError(tok.net, torch.from_numpy(picture)[None], torch.from_numpy(valid)[None], scale)
    first = error(codes).sum().item()
    assert error.rebalance(codes) and not drawn.rebalance(codes)
    seen = error.compander.expand(error.draw(codes)[0])[0].detach().numpy()
    np.testing.assert_allclose(seen[:, : valid_rows // 2], cast[:, : valid_rows // 2], rtol=1e-3)
    assert error(codes).sum().item() < 1e-4 * first


def test_the_search_leaves_to_the_balance_what_it_mends(embedded: Callable[[str], MiniTokenizer]) -> None:
    tok, scale = embedded("S2L2A"), MODALITIES["S2L2A"].balance
    assert scale is not None
    spectrum = (400, 500, 1000, 2600, 3000, 3200, 3300, 3400, 3500, 3500, 4200, 3800)  # of red soil
    relief = hills("DEM", 192, 192)[0]
    scene = np.array(spectrum)[:, None, None] * (1 + 0.08 * (relief - relief.mean()) / relief.std())
    picture = scene.astype(np.float32)
    valid = np.ones(picture.shape, np.bool_)
    tokens = tok.encode(torch.from_numpy(picture)[None])[0].numpy()
    bits = TokenBits(tables_alone(tok.sha256, tok.levels), CPU)
    left, price = [], []
    for how in (None, scale):
        found = search(tok, tokens, picture, valid, 24, None, how)
        probe = BalanceProbe(tok, 192, 192, scale)
        probe.add(tmcodec.rasters.Window(0, 0, 192, 192), found, picture, valid)
        balance = probe.fit.solve(mixing=False)
        decoded = tok.decode(torch.from_numpy(found)[None], 1, 0)[0].numpy()
        gains, offsets = gain_planes(balance, (12, 12), tmcodec.rasters.Window(0, 0, 192, 192), 12, 16)
        left.append(np.square(decoded + gains * (decoded - scale.pivot) + offsets - picture).mean())
        price.append(bits(one_hot(digits_of(found, tok.levels), tok.levels)).sum().item())
    assert left[1] < left[0] and price[1] < price[0]


def test_files_are_searched_unless_told(make_scene: MakeScene, tmp_path: Path) -> None:
    src = make_scene("S2L2A", 150, 90)
    for name, how in (("a", {}), ("none", {"effort": 0}), ("exact", {"exact": True}), ("one", {"effort": 1})):
        tmcodec.encode(src, tmp_path / f"{name}.tmc", balance=False, **how)
    arguments = ["encode", str(src), str(tmp_path / "cli.tmc"), "--effort", "0", "--no-balance", "--quiet"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    files = {p.stem: p.read_bytes() for p in tmp_path.glob("*.tmc")}
    assert files["none"] == files["exact"] == files["cli"]
    assert len({files["a"], files["none"], files["one"]}) == 3
    with tmcodec.open(tmp_path / "none.tmc") as file:
        tokens, meta = file["S2L2A"].tokens(), file["S2L2A"].meta
    with tmcodec.rasters.open_raster(src) as raster:
        values, _ = raster.read(tmcodec.rasters.Window(0, 0, 150, 90))
    padded = np.pad(values, ((0, 0), (0, 6), (0, 10)), mode="reflect")
    own = tmcodec.load_tokenizer(meta.tokenizer, "cpu").encode(torch.from_numpy(padded)[None])[0].numpy()
    np.testing.assert_array_equal(tokens, own)


def test_tokens_do_not_depend_on_the_batch_size(make_scene: MakeScene, tmp_path: Path) -> None:
    src = make_scene("S2L1C", 300, 280)
    for size in (1, 16):
        tmcodec.encode(src, tmp_path / f"{size}.tmc", batch_size=size, effort=3)
    assert (tmp_path / "1.tmc").read_bytes() == (tmp_path / "16.tmc").read_bytes()


@pytest.mark.parametrize("how", [{"effort": -1}, {"bit_price": -0.1}, {"bit_price": float("nan")}])
def test_odd_searches_write_nothing(how: dict[str, float], make_scene: MakeScene, tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="give 0 or more"):
        tmcodec.encode(make_scene("NDVI"), tmp_path / "a.tmc", **how)  # type: ignore[arg-type]
    assert not (tmp_path / "a.tmc").exists()


def test_the_price_can_be_given(make_scene: MakeScene, tmp_path: Path) -> None:
    src, out = make_scene("S2RGB", 160, 160), tmp_path / "a.tmc"
    sizes = []
    for price in ("0", "1"):
        arguments = ["encode", str(src), str(out), "--bit-price", price, "--overwrite", "--quiet"]
        assert CliRunner().invoke(cli, arguments).exit_code == 0
        sizes.append(out.stat().st_size)
    assert sizes[1] < sizes[0]


@pytest.mark.parametrize("effort", ["-1", "1001", "much"])
def test_odd_efforts_are_usage_errors(effort: str, make_scene: MakeScene, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        cli, ["encode", str(make_scene("NDVI")), str(tmp_path / "a.tmc"), f"--effort={effort}"]
    )
    assert done.exit_code == 2
    assert "--effort" in done.output
    assert not (tmp_path / "a.tmc").exists()
