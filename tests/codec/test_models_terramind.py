"""TerraMind's tokenizers in the codec, with networks so small that a test can afford them."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner, Result
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import tmcodec
from tmcodec import errors
from tmcodec.cli import cli
from tmcodec.codec import hub
from tmcodec.codec.models import find_weights, import_weights, pull, texture_path
from tmcodec.codec.store import read_stored, stored_path
from tmcodec.codec.terramind import TerraMindTokenizer, reflect_to, starts
from tmcodec.codec.terramind_models import OFFICIAL, modality_of
from tmcodec.codec.terramind_weights import Checkpoint, identity, open_checkpoint, tensors_digest
from tmcodec.codec.tokenizer import pick_device
from tmcodec.modalities import MODALITIES
from tmcodec.networks.terramind.net import ENCODER_PREFIXES, DecoderHalf, EncoderHalf
from tmcodec.rasters import Window

Write = Callable[..., Path]

S1, LULC, S2 = "terramind-v1-s1grd", "terramind-v1-lulc", "terramind-v1-s2l2a"


@pytest.fixture(autouse=True)
def small_and_apart(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Shrink the official configurations, and keep the store in the test's folder."""
    for name, model in list(OFFICIAL.items()):
        config = replace(model.config, dim=48, depth=2, heads=4, unet_channels=32, unet_blocks=1)
        monkeypatch.setitem(OFFICIAL, name, replace(model, config=config))
    monkeypatch.setenv("TMCODEC_HOME", str(tmp_path / "home"))


def state_of(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Return random weights of a (small) official tokenizer."""
    torch.manual_seed(seed)
    cfg = OFFICIAL[name].config
    return {**EncoderHalf(cfg).state_dict(), **DecoderHalf(cfg).state_dict()}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes an official-layout checkpoint."""

    def make(name: str = S1, file: str | None = None, seed: int = 0) -> Path:
        path = tmp_path / (file or OFFICIAL[name].filename)
        state = state_of(name, seed)
        if path.suffix == ".safetensors":
            save_file(state, path)
        else:
            torch.save(state, path)
        return path

    return make


def load(name: str, path: Path, **kwargs: Any) -> TerraMindTokenizer:
    tok = tmcodec.load_tokenizer(name, device="cpu", checkpoint=path, **kwargs)
    assert isinstance(tok, TerraMindTokenizer)
    return tok


def physical(tok: TerraMindTokenizer, batch: int, height: int, width: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(batch, tok.cfg.channels, height, width) * tok.std + tok.mean


# --------------------------------------------------------------------------- weights


def test_one_identity_in_all_three_kinds_of_files(write: Write) -> None:
    pt, plain = write(), write(file="plain.safetensors")
    imported = import_weights(pt)
    identities = {load(S1, p).sha256 for p in (pt, plain, imported.path)}
    assert identities == {imported.sha256}
    assert load(S1, write(file="other.pt", seed=1)).sha256 not in identities


def test_the_identity_is_what_the_docstring_says(write: Write) -> None:
    found = open_checkpoint(write())
    text = json.dumps(found.config.to_dict(), sort_keys=True, separators=(",", ":")).encode() + b"\0"
    halves = [tensors_digest(found.half(which)) for which in ("encoder", "decoder")]
    assert found.sha256 == hashlib.sha256(text + halves[0] + halves[1]).digest()
    other = replace(found.config, mean=(0.0, 0.0))
    assert identity(other, found.digests) != found.sha256  # other statistics make other tokens


def test_weights_that_are_not_finite_are_refused_where_they_are_used(tmp_path: Path) -> None:
    """The half that is read is checked: decoding needs no encoder."""
    state, name = state_of(S1), "encoder.blocks.0.attn.qkv.weight"
    state[name][0, 0] = torch.nan
    torch.save(state, tmp_path / "a.pt")
    tok = load(S1, tmp_path / "a.pt")
    with pytest.raises(errors.WeightsError, match=f"a.pt: not all numbers are finite in {name}"):
        tok.encode(torch.zeros(1, 2, 32, 32))
    assert tok.decode(torch.zeros(1, 2, 2, dtype=torch.int64)).isfinite().all()


def test_weights_of_other_formats_of_ours_need_no_import() -> None:
    for path in (find_weights("mini-ndvi-v2"), texture_path(find_weights("mini-s1grd-v2"))):
        with pytest.raises(errors.WeightsError, match=f"{path.name}: weights of tmcodec's own .* no import"):
            import_weights(path)
        with pytest.raises(errors.WeightsError, match="need no import"):
            import_weights(path, S1)


def test_encoding_reads_the_encoder_alone(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    import_weights(write())
    tok = tmcodec.load_tokenizer(S1, device="cpu")
    read: list[str] = []
    whole = Checkpoint.half

    def half(self: Checkpoint, which: str) -> dict[str, Tensor]:
        read.append(which)
        return whole(self, which)

    monkeypatch.setattr(Checkpoint, "half", half)
    assert isinstance(tok, TerraMindTokenizer)
    tokens = tok.encode(physical(tok, 1, 32, 32))
    assert read == ["encoder"]
    tok.decode(tokens)
    tok.decode(tokens)
    assert read == ["encoder", "decoder"]


def test_an_imported_file_keeps_every_tensor_and_says_where_it_is_from(write: Write) -> None:
    pt = write()
    found = import_weights(pt)
    state = state_of(S1)
    assert found.path == stored_path(S1)
    stored = load_file(found.path)
    assert stored.keys() == state.keys()
    assert all(torch.equal(stored[k], state[k]) for k in state)
    notes = read_stored(found.path)
    assert notes is not None
    assert notes.notes["source_file"] == pt.name
    assert notes.parameters == sum(t.numel() for t in state.values())
    assert notes.sha256 == found.sha256.hex()


def test_a_damaged_half_is_noticed_when_it_is_read(write: Write) -> None:
    path = import_weights(write()).path
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1  # the last tensor by name belongs to the encoder: quant_proj.weight
    path.write_bytes(raw)
    tok = tmcodec.load_tokenizer(S1, device="cpu")
    with pytest.raises(errors.WeightsError, match="encoder is damaged"):
        tok.encode(torch.zeros(1, 2, 32, 32))


def test_a_cut_off_file_says_how_to_go_on(write: Write) -> None:
    path = import_weights(write()).path
    path.write_bytes(path.read_bytes()[:-1000])
    assert read_stored(path) is None
    listed = {m["name"]: m["where"] for m in json.loads(run("models", "list", "--json").stdout)}
    assert listed[S1] != "imported"
    with pytest.raises(errors.WeightsError, match=r"not a readable safetensors .*; fetch or import it again"):
        tmcodec.load_tokenizer(S1)


def test_each_way_to_be_wrong(write: Write, tmp_path: Path) -> None:
    bad = tmp_path / "bad.pt"
    state = state_of(S1)
    cases: list[tuple[object, str]] = [
        ({k: v for k, v in state.items() if k != "quant_proj.bias"}, r"missing: quant_proj\.bias"),
        ({**state, "extra": torch.zeros(1)}, "unexpected: extra"),
        ({**state, "quant_proj.bias": torch.zeros(6)}, r"misshapen: quant_proj\.bias"),
        ({**state, "quant_proj.bias": torch.zeros(5, dtype=torch.int64)}, "tensors of torch.int64"),
        ({k: v for k, v in state.items() if "decoder" not in k}, "and [0-9]+ more"),
        ({"model": state}, "not a flat dictionary"),
        ([1, 2], "not a flat dictionary"),
        ({}, "not a flat dictionary"),
    ]
    for content, message in cases:
        torch.save(content, bad)
        with pytest.raises(errors.WeightsError, match=message):
            load(S1, bad)
    cut = b"\x80\x02J\x01\x00"  # within an integer of four bytes
    for raw in (b"", b"nonsense", write().read_bytes()[:2000], pickle.dumps(print), cut):
        bad.write_bytes(raw)
        with pytest.raises(errors.WeightsError, match="not readable"):
            load(S1, bad)
    with pytest.raises(errors.TokenizerNotFoundError, match="no checkpoint"):
        load(S1, tmp_path / "none.pt")


def test_an_official_file_is_not_taken_for_another_of_the_same_shapes(write: Write) -> None:
    """S1GRD and S1RTC have the same tensors and other statistics: tokens would be wrong, and nothing said."""
    path = write(S1)
    message = f"{path.name}: {S1} by its file name, not terramind-v1-s1rtc; give the right file, or rename it"
    with pytest.raises(errors.WeightsError, match=message):
        load("terramind-v1-s1rtc", path)
    with pytest.raises(errors.WeightsError, match=message):
        import_weights(path, "terramind-v1-s1rtc")
    assert not stored_path("terramind-v1-s1rtc").exists()
    assert load("terramind-v1-s1rtc", path.rename(path.with_name("mine.pt"))).name == "terramind-v1-s1rtc"


def test_pickled_code_never_runs(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"encoder.pos_emb": Attack()}, tmp_path / "attack.pt")
    with pytest.raises(errors.WeightsError, match="not readable"):
        load(S1, tmp_path / "attack.pt")
    assert not (tmp_path / "ran").exists()


def test_a_wild_header_allocates_nothing(write: Write, tmp_path: Path) -> None:
    path = import_weights(write()).path
    stored = read_stored(path)
    assert stored is not None
    for change in ({"dim": 10**9}, {"unet_channels": 10**9}, {"levels": None}, {"surprise": 1}):
        notes = {**stored.notes, "config": json.dumps({**stored.config, **change}), "sha256": stored.sha256}
        save_file(load_file(path), tmp_path / "wild.safetensors", notes)
        with pytest.raises(errors.WeightsError, match="configuration"):
            tmcodec.load_tokenizer(str(tmp_path / "wild.safetensors"))


def test_a_name_is_never_guessed(write: Write, tmp_path: Path) -> None:
    with pytest.raises(errors.WeightsError, match="terramind-v1-s1grd or terramind-v1-s1rtc"):
        tmcodec.load_tokenizer(str(write(file="mine.pt")))
    with pytest.raises(errors.WeightsError, match="terramind-v1-s2l2a or terramind-v01-s2l2a"):
        tmcodec.load_tokenizer(str(write(S2, file="mine.pt")))
    assert tmcodec.load_tokenizer(str(write(S2))).name == S2  # its official file name says it
    assert tmcodec.load_tokenizer(str(write(LULC, file="mine.safetensors"))).name == LULC
    with pytest.raises(errors.WeightsError, match="not terramind-v1-s2l2a"):
        load(S2, import_weights(write()).path)
    with pytest.raises(errors.TokenizerNotFoundError, match="checkpoint goes with"):
        tmcodec.load_tokenizer("mini-s2l2a-v2", checkpoint=write())


def test_versions_differ_by_statistics_alone(write: Write) -> None:
    path = write(S2, file="mine.pt")
    new, old = load(S2, path), load("terramind-v01-s2l2a", path)
    assert new.sha256 != old.sha256
    assert new.modality.mean[0] == 1390.458
    assert old.modality.mean[0] == 794.311
    x = physical(new, 1, 32, 32)
    shifted = (x - new.mean) / new.std * old.std + old.mean
    assert torch.allclose(new.latents(x), old.latents(shifted), atol=1e-4)


# --------------------------------------------------------------------------- encoding and decoding


def test_classes_are_one_hot_and_others_are_refused(write: Write) -> None:
    tok = load(LULC, write(LULC))
    ids = torch.randint(0, 10, (2, 1, 32, 48))
    hot = torch.stack([(ids[:, 0] == c).float() for c in range(10)], dim=1)
    with torch.inference_mode():
        assert torch.equal(tok.encode(ids), tok.encoder(hot))
    with pytest.raises(errors.ShapeError, match=r"classes 0\.\.9"):
        tok.encode(torch.full((1, 1, 32, 32), 10))
    decoded = tok.decode(tok.encode(ids))
    assert decoded.shape == (2, 1, 32, 48)
    assert set(decoded.unique().tolist()) <= set(range(10))


def test_the_official_sampler_names_any_class_and_others_those_of_the_map(
    write: Write, tmp_path: Path
) -> None:
    tok = load(LULC, write(LULC))
    ids = np.random.default_rng(0).choice(np.array([3, 8], np.uint8), (1, 80, 300))
    tmcodec.encode(ids, tmp_path / "a.tmc", modality="LULC", tokenizer=tok)
    with tmcodec.open(tmp_path / "a.tmc") as file:
        assert file["LULC"].meta.class_sets == (1 << 3 | 1 << 8,)
    named, free = (
        tmcodec.decode_array(tmp_path / "a.tmc", tokenizer=tok, sampler=s)[0] for s in (None, "official")
    )
    assert set(np.unique(named)) <= {3, 8} and set(np.unique(free)) - {3, 8}
    tokens = tok.encode_context(torch.from_numpy(ids)[None])
    assert set(tok.decode(tokens, classes=(3, 8)).unique().tolist()) <= {3.0, 8.0}


@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (1, 1)])
def test_any_grid_decodes(write: Write, grid: tuple[int, int]) -> None:
    tok = load(S1, write())
    picture = tok.decode(torch.zeros(1, *grid, dtype=torch.int32), steps=2)
    assert picture.shape == (1, 2, 16 * grid[0], 16 * grid[1])
    assert bool(torch.isfinite(picture).all())


def test_official_noise_is_torch_randn_of_the_seed(write: Write) -> None:
    tok = load(S1, write(), precision="fp32")
    tokens = torch.randint(0, 15360, (2, 2, 4))
    net = tok.decoder("official")
    with torch.inference_mode():
        codes = net.codes(tokens)
        noise = torch.randn((2, 2, 32, 64), generator=torch.Generator().manual_seed(5))
        expected = net.denoise(noise, torch.tensor([999]), codes).clamp(-1, 1)
    found = (tok.decode(tokens, 1, seed=5, sampler="official") - tok.mean) / tok.std
    assert torch.allclose(found, expected, atol=1e-5)
    unclamped = (tok.decode(tokens, 3, seed=5) - tok.mean) / tok.std
    assert bool(torch.isfinite(unclamped).all())


def test_averaging_is_the_mean_over_seeds(write: Write) -> None:
    tok = load(S1, write(), precision="fp32")
    tokens = torch.randint(0, 15360, (1, 2, 2))
    seeds = [3, (3 + 0x9E3779B97F4A7C15) % 2**64, (3 + 2 * 0x9E3779B97F4A7C15) % 2**64]
    expected = sum(tok.decode(tokens, 2, seed) for seed in seeds) / 3
    assert torch.allclose(tok.decode(tokens, 2, seed=3, samples=3), torch.as_tensor(expected), atol=1e-4)
    for bad in (0, 65):
        with pytest.raises(errors.SamplerError, match="samples"):
            tok.decode(tokens, samples=bad)


def test_threads_and_the_global_random_state(write: Write) -> None:
    tok = load(S1, write())
    tokens = torch.randint(0, 15360, (1, 2, 2))
    torch.manual_seed(9)
    np.random.seed(9)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    jobs = [(s, sampler) for s in range(3) for sampler in ("ddim", "official", "DPMSolverMultistep", "DDPM")]
    alone = [tok.decode(tokens, 3, seed, sampler=sampler) for seed, sampler in jobs]
    together: list[Tensor | None] = [None] * len(jobs)

    def work(i: int) -> None:
        together[i] = tok.decode(tokens, 3, jobs[i][0], sampler=jobs[i][1])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, together, strict=True):
        assert b is not None
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_precisions_differ_a_little(write: Write) -> None:
    path = write()
    exact, half = load(S1, path, precision="fp32"), load(S1, path, precision="bf16")
    x = physical(exact, 1, 64, 64)
    gap = (exact.latents(x) - half.latents(x)).abs().max()
    assert 0 < float(gap) < 0.1
    assert torch.equal(load(S1, path, precision="auto").encode(x), exact.encode(x))  # the contract
    with pytest.raises(errors.PrecisionError):
        load(S1, path, precision="fp8")
    with pytest.raises(errors.ShapeError, match="tile 200"):
        load(S1, path, tile=200)


def test_mixed_precision_around_it_changes_nothing(write: Write) -> None:
    """A trainer's autocast is about its own network: bits are those of the precision asked for."""
    for precision in ("fp32", "bf16"):
        tok = load(S1, write(), precision=precision)
        x = physical(tok, 2, 64, 64)
        z, tokens = tok.latents(x), tok.encode(x)
        picture = tok.decode(tokens, steps=2)
        whole = tok.decode_context(tokens[:1], 2, 0, (0, 0), (4, 4))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(tok.latents(x), z)
            assert torch.equal(tok.encode(x), tokens)
            assert torch.equal(tok.decode(tokens, steps=2), picture)
            assert torch.equal(tok.decode_context(tokens[:1], 2, 0, (0, 0), (4, 4)), whole)


# --------------------------------------------------------------------------- rasters


def test_tiles_start_every_stride_and_the_last_is_moved_inwards() -> None:
    assert starts(16, 16, 12) == [0]
    assert starts(5, 16, 12) == [0]
    assert starts(17, 16, 12) == [0, 1]
    assert starts(64, 16, 16) == [0, 16, 32, 48]
    for count in range(1, 90):
        covered = {t for s in starts(count, 16, 12) for t in range(s, min(s + 16, count))}
        assert covered == set(range(count))


def test_reflection_up_to_a_tile_is_numpys() -> None:
    x = torch.arange(2 * 5 * 300.0).view(1, 2, 5, 300)
    expected = np.pad(x[0].numpy(), ((0, 0), (0, 11), (0, 0)), mode="reflect")
    assert np.array_equal(reflect_to(x, 16)[0].numpy(), expected)
    assert reflect_to(torch.ones(1, 1, 1, 1), 16).shape == (1, 1, 16, 16)


def test_every_token_is_that_of_a_full_tile(write: Write) -> None:
    tok = load(S1, write())
    x = physical(tok, 1, 256, 400)
    found = tok.encode_context(x)
    left, right = tok.encode(x[..., :256]), tok.encode(x[..., 144:])
    assert torch.equal(found[..., :16], left)
    assert torch.equal(found[..., 16:], right[..., 7:])  # columns 9.. of the raster are the right tile's
    short = physical(tok, 1, 64, 64)
    assert torch.equal(tok.encode_context(short), tok.encode(reflect_to(short, 256))[:, :4, :4])


def test_context_at_the_far_border_fills_a_tile(write: Write) -> None:
    tok = load(S1, write())
    assert tok.encoder_context(Window(1024, 0, 44, 256), 1068, 256) == Window(816, 0, 252, 256)
    assert tok.encoder_context(Window(0, 0, 256, 256), 1068, 256) == Window(0, 0, 256, 256)
    assert tok.encoder_context(Window(0, 0, 100, 90), 100, 90) == Window(0, 0, 100, 90)


def rasterio_round_trip(tmp_path: Path, tok: TerraMindTokenizer, **kwargs: Any) -> tuple[Path, np.ndarray]:
    rng = np.random.default_rng(0)
    values = (rng.standard_normal((2, 300, 420)) * 4 - 15).astype("float32")
    tmcodec.encode(values, tmp_path / "x.tmc", modality="S1GRD", tokenizer=tok, overwrite=True, **kwargs)
    with tmcodec.open(tmp_path / "x.tmc") as f:
        return tmp_path / "x.tmc", f["S1GRD"].tokens()


def test_tokens_do_not_depend_on_the_batch(write: Write, tmp_path: Path) -> None:
    tok = load(S1, write())
    one, many = (rasterio_round_trip(tmp_path, tok, batch_size=b)[1] for b in (1, 16))
    # Matrix products of other sizes round differently: a latent at an edge may flip, and no more.
    assert (one != many).mean() < 0.01


def test_windows_decode_as_the_whole(write: Write, tmp_path: Path) -> None:
    tok = load(S1, write(), precision="fp32")
    path, _ = rasterio_round_trip(tmp_path, tok)
    for sampler, steps in (("ddim", 2), ("official", 2), ("DDPM", 3)):
        whole, _ = tmcodec.decode_array(path, tokenizer=tok, steps=steps, sampler=sampler)
        window = (201, 90, 150, 70)
        part, _ = tmcodec.decode_array(
            path, tokenizer=tok, steps=steps, window=window, sampler=sampler, batch_size=1
        )
        assert np.allclose(part, whole[:, 90:160, 201:351], atol=1e-3)


def test_tile_224_is_stored_and_used(write: Write, tmp_path: Path) -> None:
    path = write()
    tok = load(S1, path, tile=224)
    file, _ = rasterio_round_trip(tmp_path, tok)
    with tmcodec.open(file) as f:
        assert (f["S1GRD"].tile, f["S1GRD"].chunk) == (224, 56)
    array, _ = tmcodec.decode_array(file, checkpoint=path)
    assert array.shape == (2, 300, 420)


# --------------------------------------------------------------------------- command line


def run(*args: object, status: int = 0) -> Result:
    result = CliRunner().invoke(cli, [str(a) for a in args])
    assert result.exit_code == status, result.output
    return result


def test_round_trip_and_refusal(write: Write, make_scene: Callable[..., Path], tmp_path: Path) -> None:
    scene, weights, other = make_scene("S1GRD", 70, 40), write(), write(file="other.pt", seed=1)
    tokens, back = tmp_path / "s.tmc", tmp_path / "back.tif"
    run("encode", scene, tokens, "-m", "S1GRD", "--tokenizer", weights, "--steps", 3, "--sampler", "official")
    with tmcodec.open(tokens) as f:
        layer = f["S1GRD"]
        assert (layer.tokenizer, layer.sampler, layer.steps) == (S1, "official", 3)
    run("decode", tokens, back, "--tokenizer", weights)
    with rasterio.open(scene) as a, rasterio.open(back) as b:
        assert (a.shape, a.transform, a.crs, a.count) == (b.shape, b.transform, b.crs, b.count)
        assert b.tags()["TMCODEC_SAMPLER"] == "official"
    run("decode", tokens, back, "--checkpoint", weights, "--sampler", "ddim", "--samples", 2, "--precision",
        "bf16", "--overwrite")  # fmt: skip
    refused = run("decode", tokens, tmp_path / "no.tif", "--checkpoint", other, status=1)
    assert "give the right weights" in refused.stderr
    assert not (tmp_path / "no.tif").exists()
    assert "unknown sampler" in run("decode", tokens, back, "--checkpoint", weights, "--sampler", "magic",
                                    "--overwrite", status=1).stderr  # fmt: skip


def test_models_commands(write: Write, tmp_path: Path) -> None:
    def where() -> dict[str, str]:
        return {m["name"]: m["where"] for m in json.loads(run("models", "list", "--json").stdout)}

    assert where()[S1] in ("obtainable", "cached")
    assert where()["terramind-v01-dem"] in ("gated", "cached")
    assert "mine.pt" in run("models", "import", write(file="mine.pt"), status=1).stderr
    report = json.loads(run("models", "import", write(file="mine.pt"), "--as", S1, "--json").stdout)
    assert report["sha256"] == load(S1, tmp_path / "mine.pt").sha256.hex()
    assert where()[S1] == "imported"
    assert "imported" in run("models", "list").stdout
    shown = json.loads(run("models", "show", S1, "--json").stdout)
    assert (shown["sha256"], shown["config"]["modality"]) == (report["sha256"], "S1GRD")
    assert "models pull" in run("models", "show", LULC, status=1).stderr
    strange = run("models", "pull", "mini-s2l2a-v2", status=1).stderr
    assert "no official tokenizer, generator or vocabulary 'mini-s2l2a-v2'" in strange
    assert all(name in strange for name in (S1, "terramind-v1-base", "terramind-v1-coords"))


# --------------------------------------------------------------------------- the Hub, stubbed


class FakeHub:
    """Stands in for ``huggingface_hub``: gives a file, or raises."""

    def __init__(self, answer: Path | Exception) -> None:
        import huggingface_hub.errors as real

        self.errors, self.answer = real, answer
        self.constants = SimpleNamespace(HF_HUB_OFFLINE=False)
        self.calls: list[dict[str, str]] = []

    def hf_hub_download(self, **kwargs: str) -> str:
        self.calls.append(kwargs)
        if isinstance(self.answer, Exception):
            raise self.answer
        return str(self.answer)

    def try_to_load_from_cache(self, repo: str, filename: str, revision: str) -> str | None:
        return None if isinstance(self.answer, Exception) else str(self.answer)


def test_pull_imports_what_the_hub_gives(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "hub" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    file = write().rename(snapshot / OFFICIAL[S1].filename)
    fake = FakeHub(file)
    monkeypatch.setattr(hub, "_hub", lambda: fake)
    tok = tmcodec.load_tokenizer(S1, device="cpu")
    assert fake.calls == [
        {
            "repo_id": "ibm-esa-geospatial/TerraMind-1.0-Tokenizer-S1GRD",
            "filename": "TerraMind_Tokenizer_S1GRD.pt",
            "revision": hub.REVISION,
        }
    ]
    stored = read_stored(stored_path(S1))
    assert stored is not None
    assert stored.notes["source_revision"] == "0123abcd"
    assert tmcodec.load_tokenizer(S1, device="cpu").sha256 == tok.sha256
    assert len(fake.calls) == 1  # the second time nothing is fetched


def test_a_download_that_is_not_what_the_hub_named_is_refused(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the Hub's cache a large file is a link to one that is called by its SHA-256."""
    good = write()
    digest = hashlib.sha256(good.read_bytes()).hexdigest()
    blob, link = tmp_path / "blobs" / digest, tmp_path / "snapshots" / "0123abcd" / good.name
    for path in (blob, link):
        path.parent.mkdir(parents=True)
    link.symlink_to(good.rename(blob))
    monkeypatch.setattr(hub, "_hub", lambda: FakeHub(link))
    raw = blob.read_bytes()
    blob.write_bytes(raw[:-1000] + bytes([raw[-1000] ^ 1]) + raw[-999:])
    with pytest.raises(errors.DownloadError, match=f"{digest}: damaged.*; delete it and run .*pull {S1}"):
        pull(S1)
    assert not stored_path(S1).exists()
    blob.write_bytes(raw)
    assert pull(S1).notes["source_sha256"] == digest


def test_a_store_that_takes_no_files_is_told_before_anything_is_fetched(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeHub(write())
    monkeypatch.setattr(hub, "_hub", lambda: fake)
    (tmp_path / "file").touch()
    monkeypatch.setenv("TMCODEC_HOME", str(tmp_path / "file"))
    message = "file/weights takes no weights (not a directory); set TMCODEC_HOME to a folder"
    with pytest.raises(errors.TargetWriteError, match=re.escape(message)):
        tmcodec.load_tokenizer(S1)
    for name in (S1, "terramind-v1-tiny", "terramind-v1-coords"):
        assert message in run("models", "pull", name, status=1).stderr
    assert message in run("models", "import", fake.answer, status=1).stderr
    assert fake.calls == []


def test_a_full_disk_is_one_line(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: object, path: object, metadata: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("tmcodec.codec.weights.save_file", full)
    said = run("models", "import", write(), status=1).stderr
    assert f"{stored_path(S1).parent}: the weights were not written (I/O error: No space left" in said
    assert list(stored_path(S1).parent.iterdir()) == []


def http_error(kind: str) -> Exception:
    import huggingface_hub.errors as real

    return getattr(real, kind).__new__(getattr(real, kind))


def answered(status: int) -> Exception:
    error = http_error("HfHubHTTPError")
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


def unreached(why: str) -> Exception:
    error = http_error("LocalEntryNotFoundError")
    error.__cause__ = ConnectionError(why)
    return error


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ConnectionError("no route.\nTry again"), r"DEM\.pt \(no route\);"),
        (OSError(28, "No space left on device"), r"\(\[Errno 28\] No space left on device\)"),
        (lambda: answered(500), r"\(the Hub answers with status 500\)"),
        (lambda: answered(401), r"\(the Hub refuses the token, that of HF_TOKEN or of an earlier login\)"),
        (lambda: unreached("Connection refused"), r"\(Connection refused\)"),
        ("GatedRepoError", "HF_TOKEN"),
        ("RepositoryNotFoundError", "not found on the Hub"),
        ("RevisionNotFoundError", f"has no revision {hub.REVISION}"),
        ("RemoteEntryNotFoundError", r"DEM has no file TerraMind_v01_Tokenizer_DEM\.pt"),
        ("LocalEntryNotFoundError", "cannot fetch"),
        ("OfflineModeIsEnabled", "HF_HUB_OFFLINE"),
    ],
)
def test_a_failed_download_is_one_line_that_says_how_to_go_on(
    failure: Exception | str | Callable[[], Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = http_error(failure) if isinstance(failure, str) else failure
    error = error if isinstance(error, Exception) else error()
    fake = FakeHub(error)
    monkeypatch.setattr(hub, "_hub", lambda: fake)
    with pytest.raises(errors.DownloadError, match=message) as caught:
        pull("terramind-v01-dem")
    text = str(caught.value)
    assert "\n" not in text
    assert "tmcodec models import TerraMind_v01_Tokenizer_DEM.pt --as terramind-v01-dem" in text
    assert not stored_path("terramind-v01-dem").exists()
    assert re.search(message, run("models", "pull", "terramind-v01-dem", status=1).stderr)


def test_offline_for_real(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(errors.DownloadError, match="HF_HUB_OFFLINE"):
        tmcodec.load_tokenizer(S1)


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(errors.MissingDependencyError, match=r"tmcodec\[hub\]"):
        pull(S1)
    assert hub.cached(OFFICIAL[S1]) is None


def test_keys_of_the_halves_do_not_overlap() -> None:
    encoder, decoder = EncoderHalf(OFFICIAL[S1].config), DecoderHalf(OFFICIAL[S1].config)
    assert all(k.startswith(ENCODER_PREFIXES) for k in encoder.state_dict())
    assert not any(k.startswith(ENCODER_PREFIXES) for k in decoder.state_dict())


def test_a_balance_is_fitted_only_where_it_is_asked_for(write: Write, tmp_path: Path) -> None:
    values = np.random.default_rng(0).uniform(1000, 4000, (12, 300, 280)).astype(np.uint16)
    tok = tmcodec.load_tokenizer(str(write(S2)), device="cpu")
    found = {}
    for balance in (None, True):
        path = tmp_path / f"{balance}.tmc"
        tmcodec.encode(values, path, modality="S2L2A", s2_offset="present", tokenizer=tok, balance=balance)
        with tmcodec.open(path) as file:
            found[balance] = file["S2L2A"].balance
        picture, _ = tmcodec.decode_array(path, tokenizer=tok)
        assert picture.shape == values.shape
    assert found[None] is None
    assert found[True] is not None and found[True].nodes(19, 18, 1, 12).shape == (1, 1, 1, 12, 2)


def test_version_01_has_classes_of_its_own(
    write: Write, make_scene: Callable[..., Path], tmp_path: Path
) -> None:
    """Dynamic World's: 0 is water and no gap, colours and names are its own."""
    name = "terramind-v01-lulc"
    tok = load(name, write(name))
    assert tok.modality.classes[:2] == ("water", "trees") and len(tok.modality.classes) == 9
    ids = np.random.default_rng(0).integers(0, 9, (1, 64, 64)).astype(np.uint8)
    tmcodec.encode(ids, tmp_path / "a.tmc", modality="LULC", tokenizer=tok)
    tmcodec.decode(tmp_path / "a.tmc", tmp_path / "a.tif", tokenizer=tok)
    found = tmcodec.compare(tmp_path / "a.tmc", ids, tokenizer=tok)
    assert (ids == 0).any() and found.metrics.pixels == ids.size
    assert tmcodec.decode_array(tmp_path / "a.tmc", tokenizer=tok)[1]["valid"].all()
    with rasterio.open(tmp_path / "a.tif") as made:
        assert made.colormap(1)[0][:3] == (65, 155, 223) and made.colormap(1)[8][:3] == (179, 159, 225)
    assert modality_of(name, "LULC").classes == tok.modality.classes
    assert modality_of("terramind-v1-lulc", "LULC").classes == MODALITIES["LULC"].classes
    assert modality_of("mini-lulc-v2", "LULC").classes == MODALITIES["LULC"].classes
    tens = np.full((1, 64, 64), 10, np.uint8)
    for map_name in ("worldcover", " WorldCover "):
        why = r"classes of its own \(0 water, 1 trees, .*--class-map OLD"
        with pytest.raises(errors.UnitsError, match=why):
            tmcodec.encode(tens, tmp_path / "b.tmc", modality="LULC", tokenizer=tok, class_map=map_name)
    with pytest.raises(errors.ShapeError, match=r"knows classes 0\.\.8"):
        tmcodec.encode(np.full((1, 64, 64), 9, np.uint8), tmp_path / "b.tmc", modality="LULC", tokenizer=tok)
    with pytest.raises(errors.UnitsError, match=r"'terramind-v01-lulc', 0 water, .* are 0 no data, 1 water"):
        tmcodec.encode(tmp_path / "a.tif", tmp_path / "b.tmc", modality="LULC")  # the embedded tokenizer
    assert not (tmp_path / "b.tmc").exists()
    tmcodec.encode(tmp_path / "a.tif", tmp_path / "b.tmc", modality="LULC", tokenizer=tok)  # its own
    to_ours = {0: 1, 1: 2, 2: 9, 3: 3, 4: 4, 5: 9, 6: 5, 7: 6, 8: 7}
    tmcodec.encode(tmp_path / "a.tif", tmp_path / "c.tmc", modality="LULC", class_map=to_ours, effort=0)


def test_messages_about_bad_checkpoints_give_no_dangerous_advice(tmp_path: Path) -> None:
    for content in (b"", b"<!DOCTYPE html>", b"garbage" * 100):
        path = tmp_path / "a.pt"
        path.write_bytes(content)
        with pytest.raises(errors.WeightsError, match="not readable as a checkpoint of tensors;") as found:
            open_checkpoint(path)
        assert "weights_only" not in str(found.value)


def test_other_devices_are_refused_by_name(write: Write) -> None:
    with pytest.raises(errors.DeviceError, match="device 'meta' is not supported; use auto, cpu or cuda"):
        tmcodec.load_tokenizer(S1, device="meta", checkpoint=write(S1))


def test_a_cuda_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda:1")
    with pytest.raises(errors.DeviceError, match="no device 'cuda:2'; this machine has 2"):
        pick_device("cuda:2")
