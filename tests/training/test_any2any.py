"""Pre-training of generators: corpora of token files, batches, the module, resume. Needs the extra
``train``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from rasterio.transform import Affine
from training_helpers import write_raster

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

import yaml
from click.testing import CliRunner
from lightning.pytorch.strategies import DDPStrategy

from tmcodec.cli import cli
from tmcodec.codec.encode import encode
from tmcodec.codec.models import default_model, load_tokenizer
from tmcodec.codec.search import search
from tmcodec.codec.terramind_weights import save_checkpoint
from tmcodec.errors import ConfigError, CorpusError, RasterOpenError, TargetExistsError, WeightsError
from tmcodec.generation.models import load_generator
from tmcodec.modalities import MODALITIES
from tmcodec.networks.terramind.config import TerraMindConfig
from tmcodec.tokenfile import FileMeta, LayerMeta, TokenFile, TokenFileWriter
from tmcodec.training.any2any import run as training
from tmcodec.training.any2any import tokens as token_corpora
from tmcodec.training.any2any.aligned import AlignedRasters
from tmcodec.training.any2any.budgets import Budgets, Mixture
from tmcodec.training.any2any.data import TokenData, TokenSource, WindowSizes
from tmcodec.training.any2any.grids import TokenizerId, read_corpus, token_validity
from tmcodec.training.any2any.module import Any2AnyModule, Layout, find_unused_parameters
from tmcodec.training.any2any.own import show_own
from tmcodec.training.any2any.starting import generator_of_checkpoint
from tmcodec.training.any2any.tokens import write_shard
from tmcodec.training.sources import RasterFolder
from tmcodec.training.terramind_net import TerraMindNet

Make = Callable[..., Path]
EVERYTHING = {"S2L2A": 1.0, "NDVI": 1.0}


def layer(
    modality: str, side: int, count: int, sha: bytes = b"\1" * 32, tile: int = 256,
    names: dict[str, str] | None = None,
) -> LayerMeta:  # fmt: skip
    """Return a layer of `count` grids of `side` tokens."""
    row, name = MODALITIES[modality], (names or {}).get(modality, f"toy-{modality.lower()}")
    return LayerMeta(modality, modality, name, sha, row.levels, side * 16, side * 16, row.dtype, row.bands,
                     times=(None,) * count, tile=tile)  # fmt: skip


def write_tokens(
    path: Path, grids: dict[str, np.ndarray], valid: np.ndarray | None = None, **how: Any
) -> Path:
    """Write aligned grids ``(n, side, side)`` by modality."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count, side, _ = next(iter(grids.values())).shape
    layers = tuple(layer(m, side, count, **how) for m in grids)
    with TokenFileWriter(path, FileMeta(layers), coders=(0,)) as writer:
        for i, tokens in enumerate(grids.values()):
            for time in range(count):
                writer.write_chunk(i, time, 0, 0, tokens[time], valid)
    return path


def toy_grids(count: int = 4, side: int = 6, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random Sentinel-2 tokens of sixteen kinds, and NDVI tokens that follow from them."""
    kinds = np.random.default_rng(seed).integers(0, 16, (count, side, side))
    return {"S2L2A": kinds * 900 + 7, "NDVI": (15 - kinds) * 800 + 3}


@pytest.fixture
def config(tmp_path: Path) -> Make:
    """Return a function that writes a corpus of toy tokens and a configuration, and returns its path."""
    write_tokens(tmp_path / "tokens" / "a.tmc", toy_grids())

    def make(name: str = "run", **changes: dict[str, Any]) -> Path:
        sections: dict[str, dict[str, Any]] = {
            "trainer": {
                "accelerator": "cpu", "max_steps": 4, "enable_progress_bar": False, "logger": False,
                "enable_model_summary": False, "num_sanity_val_steps": 0, "gradient_clip_val": 1.0,
                "default_root_dir": str(tmp_path / name),
                "callbacks": [
                    {"class_path": "MovingAverage", "init_args": {"decay": 0.9}},
                    {"class_path": "ModelCheckpoint", "init_args": {
                        "dirpath": str(tmp_path / name), "save_last": True, "every_n_train_steps": 1}},
                ],
            },
            "model": {
                "net": {"tokens": ["S2L2A", "NDVI"], "dim": 16, "encoder_depth": 1, "decoder_depth": 1,
                        "heads": 2, "codes_hidden": 8, "grid": 6},
                "optimizer": {"lr": 0.01}, "negatives": 64,
            },
            "data": {
                "train": [{"paths": [str(tmp_path / "tokens")]}],
                "val": [{"paths": [str(tmp_path / "tokens")]}],
                "batch": 2, "epoch": 10, "val_batches": 2,
                "window": {"side": 5, "smallest": 3, "others": 0.3},
                "budgets": {"inputs": [2, 20], "targets": [2, 8],
                            "mixtures": [{"inputs": EVERYTHING, "targets": EVERYTHING}]},
            },
        }  # fmt: skip
        for section, values in changes.items():
            sections[section] = {**sections[section], **values}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(sections))
        return path

    return make


def fit(path: Path, *args: str) -> Any:
    """Train in this process."""
    return training.run("fit", ["-c", str(path), *args])


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint as plain tensors."""
    return torch.load(path, weights_only=True)


# --------------------------------------------------------------------------- corpora


def test_a_corpus_is_what_was_written(tmp_path: Path) -> None:
    grids = toy_grids()
    write_tokens(tmp_path / "b.tmc", grids)
    corpus = read_corpus([tmp_path])
    assert corpus.stacks[0].modalities == ("NDVI", "S2L2A")
    for modality, tokens in grids.items():
        assert np.array_equal(corpus.stacks[0].tokens[modality], tokens)
        assert corpus.stacks[0].valid[modality].all()
    assert corpus.tokenizers["NDVI"].name == "toy-ndvi"
    assert corpus.tokenizers["NDVI"].sha256 == "01" * 32
    assert read_corpus([tmp_path], ["NDVI"]).stacks[0].modalities == ("NDVI",)


def test_tokens_of_nodata_are_marked(tmp_path: Path) -> None:
    valid = np.ones((1, 32, 32), bool)
    valid[:, :9, :16] = False  # 9 of 16 rows: more than half of the first token
    write_tokens(tmp_path / "a.tmc", {"DEM": np.zeros((1, 2, 2), int)}, valid)
    assert read_corpus([tmp_path]).stacks[0].valid["DEM"].tolist() == [[[False, True], [True, True]]]
    assert token_validity(valid[:, :24, :20], 2, 2, 16).tolist() == [[False, False], [True, False]]


def test_tokens_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    write_tokens(tmp_path / "a.tmc", toy_grids())
    write_tokens(tmp_path / "b.tmc", toy_grids(), sha=b"\2" * 32)
    with pytest.raises(CorpusError, match=r"b\.tmc: its S2L2A is by toy-s2l2a \(020202020202\)"):
        read_corpus([tmp_path])
    budgets = Budgets((1, 2), (1, 2), [Mixture(EVERYTHING, EVERYTHING)])
    data = TokenData([TokenSource([str(tmp_path / x)]) for x in ("a.tmc", "b.tmc")], budgets)
    with pytest.raises(ConfigError, match="S2L2A is by toy-s2l2a"):
        data.tokenizers()


def test_tokens_of_two_tiles_are_refused_where_it_matters(tmp_path: Path) -> None:
    for name, tile in (("a", 224), ("b", 256)):
        write_tokens(tmp_path / "toy" / f"{name}.tmc", toy_grids(), tile=tile)
    said = r"b\.tmc: .* in tiles of 256 pixels, other files' .* in tiles of 224 pixels; encode all with one"
    with pytest.raises(CorpusError, match=said):
        read_corpus([tmp_path / "toy"])
    made = read_corpus([tmp_path / "toy" / "a.tmc"]).tokenizers["NDVI"]
    assert made.tile == 224
    # Checkpoints of older runs do not know it.
    older = TokenizerId.from_plain({"name": made.name, "sha256": made.sha256, "levels": list(made.levels)})
    assert older.agrees(made) and made.agrees(older) and not made.agrees(replace(made, tile=256))
    assert not older.agrees(replace(made, sha256="00" * 32))
    embedded = {"S2L2A": "mini-s2l2a-v2", "NDVI": "mini-ndvi-v2"}
    for name, tile in (("a", 224), ("b", 256)):
        write_tokens(tmp_path / "mini" / f"{name}.tmc", toy_grids(), tile=tile, names=embedded)
    assert read_corpus([tmp_path / "mini"]).tokenizers["NDVI"].tile is None


@pytest.mark.parametrize("damage", ["missing", "garbage", "nothing wanted"])
def test_bad_corpora_are_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tmc"
    if damage == "garbage":
        path.write_bytes(b"no token file at all")
    elif damage == "nothing wanted":
        write_tokens(path, {"DEM": np.zeros((1, 2, 2), int)})
    with pytest.raises(
        CorpusError, match=r"no token file" if damage[0] == "n" else r"a\.tmc"
    ):
        read_corpus([path], ["NDVI"])


# --------------------------------------------------------------------------- batches


def batches(tmp_path: Path, **how: Any) -> Any:
    """Return batches of toy tokens by number."""
    if not (tmp_path / "a.tmc").exists():
        write_tokens(tmp_path / "a.tmc", toy_grids(side=6))
    budgets = Budgets((4, 30), (3, 12), [Mixture(EVERYTHING, EVERYTHING)])
    window = WindowSizes(side=5, smallest=3, others=0.5)
    data = TokenData([TokenSource([str(tmp_path / "a.tmc")])], budgets, window=window, batch=3, **how)
    return data.loader("train", 10, endless=True).source


def test_batches_show_and_ask_for_the_corpus_tokens(tmp_path: Path) -> None:
    source, kinds = batches(tmp_path), set()
    for number in range(30):
        batch = source[number]
        rows, cols = batch["grid"].tolist()
        kinds.add((rows, cols))
        assert 3 <= rows <= 5 and 3 <= cols <= 5
        shown = sum(p["values"].shape[1] for p in batch["inputs"].values())
        asked = sum(p["values"].shape[1] for p in batch["targets"].values())
        assert 4 <= shown <= 30 and 3 <= asked <= 12
        # NDVI follows from Sentinel-2 at the same place: 900 k + 7 goes with 800 (15 - k) + 3.
        for name, other in (("inputs", "targets"), ("targets", "inputs"), ("inputs", "inputs")):
            if "S2L2A" in batch[name] and "NDVI" in batch[other]:
                pairs_agree(batch[name]["S2L2A"], batch[other]["NDVI"])
    assert len(kinds) > 2
    assert (5, 5) in kinds


def pairs_agree(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    """Compare tokens of both modalities where they stand at one place."""
    for places, tokens, others, ndvi in zip(
        first["positions"].tolist(), first["values"].tolist(), second["positions"].tolist(),
        second["values"].tolist(), strict=True,
    ):  # fmt: skip
        known = dict(zip(places, tokens, strict=True))
        for place, token in zip(others, ndvi, strict=True):
            if place in known:
                assert token == (15 - (known[place] - 7) // 900) * 800 + 3


def test_a_small_grid_does_not_cut_the_others_down(tmp_path: Path) -> None:
    for name, side, count in (("small", 3, 4), ("larger", 7, 2), ("largest", 9, 2)):
        write_tokens(tmp_path / f"{name}.tmc", toy_grids(count, side))
    budgets = Budgets((4, 30), (3, 12), [Mixture(EVERYTHING, EVERYTHING)])
    window = WindowSizes(side=5, smallest=2, others=0.0)
    data = TokenData([TokenSource([str(tmp_path)])], budgets, window=window, batch=3)
    source = data.loader("train", 10, endless=True).source
    found = [tuple(source[number]["grid"].tolist()) for number in range(200)]
    assert set(found) == {(5, 5), (3, 3)}  # the two larger ones share their batches
    assert 70 <= found.count((3, 3)) <= 130  # half of the places; four deviations of a coin


def test_nothing_asked_for_is_shown(tmp_path: Path) -> None:
    source = batches(tmp_path)
    for number in range(20):
        batch = source[number]
        for modality in batch["inputs"].keys() & batch["targets"].keys():
            shown, asked = (batch[x][modality]["positions"] for x in ("inputs", "targets"))
            assert all(not set(a.tolist()) & set(b.tolist()) for a, b in zip(shown, asked, strict=True))


def test_a_batch_is_a_function_of_seed_and_number(tmp_path: Path) -> None:
    one, two = batches(tmp_path), batches(tmp_path)
    two[3]  # what was drawn before does not matter
    a, b, c = one[7], two[7], one[8]
    assert torch.equal(a["grid"], b["grid"])
    assert all(
        torch.equal(part[k], b[x][m][k])
        for x in ("inputs", "targets")
        for m, part in a[x].items()
        for k in part
    )
    assert str(a) != str(c)


def test_noise_touches_only_what_is_shown_of_a_target(tmp_path: Path) -> None:
    budgets = Budgets((20, 30), (10, 12), [Mixture({"S2L2A": 9.0, "NDVI": 1.0}, {"NDVI": 1.0})])
    write_tokens(tmp_path / "a.tmc", toy_grids(side=5))
    sources = [TokenSource([str(tmp_path / "a.tmc")])]
    window = WindowSizes(5, 5, 0.0)
    data = [TokenData(sources, budgets, window=window, batch=4, noise=n) for n in (0.0, 1.0)]
    clean, noisy = (d.loader("train", 9, True).source for d in data)
    changed = []
    for number in range(12):
        a, b = clean[number], noisy[number]
        assert torch.equal(a["inputs"]["S2L2A"]["values"], b["inputs"]["S2L2A"]["values"])
        assert torch.equal(a["targets"]["NDVI"]["values"], b["targets"]["NDVI"]["values"])
        if "NDVI" in a["inputs"]:
            shown = [x["inputs"]["NDVI"]["values"] for x in (a, b)]
            changed.append(float((shown[0] != shown[1]).float().mean()))
    assert 0 < np.mean(changed) < 0.9
    untouched = TokenData(sources, budgets, val=sources, noise=1.0).loader("val", 9, False).source
    assert untouched.noise == 0


# --------------------------------------------------------------------------- training

KILLED = """
import os, signal, sys
from tmcodec.training.any2any import run
from lightning.pytorch import Callback

class Kill(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 3 and batch_idx % 2:  # in the middle of an accumulated step
            os.kill(os.getpid(), signal.SIGKILL)

sys.modules["killing"] = type(sys)("killing")
sys.modules["killing"].Kill = Kill
Kill.__module__ = "killing"
run.run("fit", ["-c", sys.argv[1], "--trainer.callbacks+=killing.Kill"])
"""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums depend on how many threads share them, so runs to be equal to the bit must agree on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_goes_on_to_the_same_weights(config: Make, tmp_path: Path) -> None:
    trainer = {
        "max_steps": 6, "accumulate_grad_batches": 2, "val_check_interval": 2,
        "check_val_every_n_epoch": None, "callbacks": None,
    }  # fmt: skip
    paths = {}
    for name in ("whole", "broken"):
        base = yaml.safe_load(config(name).read_text())["trainer"]
        paths[name] = config(name, trainer={**trainer, "callbacks": base["callbacks"]})
    fit(paths["whole"])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(paths["broken"])], capture_output=True, timeout=120, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    last = tmp_path / "broken" / "last.ckpt"
    assert load(last)["global_step"] == 3
    fit(paths["broken"], f"--ckpt_path={last}")
    a, b = load(tmp_path / "whole" / "last.ckpt"), load(last)
    assert a["global_step"] == b["global_step"] == 6
    for part in ("state_dict", "moving_average"):
        assert a[part].keys() == b[part].keys()
        assert all(torch.equal(v, b[part][k]) for k, v in a[part].items())
    assert a["generator_tokenizers"] == b["generator_tokenizers"]


@pytest.mark.usefixtures("one_thread")
def test_a_run_goes_on_in_the_middle_of_a_step(config: Make, tmp_path: Path) -> None:
    often = {"accumulate_grad_batches": 3, "val_check_interval": 2, "check_val_every_n_epoch": None}
    place = {"dirpath": str(tmp_path / "kept"), "save_top_k": -1}
    kept = {"class_path": "ModelCheckpoint", "init_args": place}
    options = [f"--trainer.{key}={'null' if value is None else value}" for key, value in often.items()]
    fit(config("whole"), *options, "--data.epoch=12", f"--trainer.callbacks+={kept}")
    middle = tmp_path / "kept" / "epoch=0-step=1.ckpt"
    assert load(middle)["TokenData"] == {"given": 4}  # a step of three, and the first batch of the next
    fit(config("again"), *options, "--data.epoch=12", f"--ckpt_path={middle}")
    a, b = (load(tmp_path / n / "last.ckpt") for n in ("whole", "again"))
    assert a["global_step"] == b["global_step"] == 4
    assert all(torch.equal(v, b["state_dict"][k]) for k, v in a["state_dict"].items())


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="AdamW alone takes longer")
def test_it_learns_what_follows_from_what(config: Make) -> None:
    mixture = {"inputs": {"S2L2A": 1.0}, "targets": {"NDVI": 1.0}}
    path = config(
        trainer={"max_steps": 200, "callbacks": []},
        model={"net": {"tokens": ["S2L2A", "NDVI"], "dim": 64, "encoder_depth": 1, "decoder_depth": 1,
                       "heads": 4, "codes_hidden": 16, "grid": 6},
               "optimizer": {"lr": 0.005, "kind": "muon"}, "negatives": 256},
        data={"batch": 16, "window": {"side": 6, "smallest": 6, "others": 0.0},
              "budgets": {"inputs": [36, 36], "targets": [36, 36], "mixtures": [mixture]}},
    )  # fmt: skip
    module = fit(path).model.eval()
    batch = module.trainer.datamodule.loader("train", 1, endless=True).source[10_000]
    with torch.no_grad():
        losses, _ = module.cross_entropies(batch)
        part = batch["targets"]["NDVI"]
        logits = module.net.predict(module.encode(batch), module.keys["NDVI"], part["positions"], (6, 6))
    # Chance is 9.6 nats, one of sixteen kinds 2.8.
    assert float(losses["NDVI"]) < 1.0
    assert (logits.argmax(-1) == part["values"]).float().mean() > 0.8


def test_the_checkpoint_rebuilds_the_averaged_network(config: Make, tmp_path: Path) -> None:
    module = fit(config()).model
    net, made = generator_of_checkpoint(tmp_path / "run" / "last.ckpt")
    assert net.cfg == module.net.cfg
    assert made["S2L2A"].name == "toy-s2l2a"
    average = load(tmp_path / "run" / "last.ckpt")["moving_average"]
    own = dict(net.named_parameters())
    assert all(torch.equal(own[name.removeprefix("net.")], value) for name, value in average.items())
    assert not any(torch.equal(p, own[n]) for n, p in module.net.named_parameters() if "mlp.fc1.weight" in n)
    (tmp_path / "bad.ckpt").write_bytes(b"nothing")
    with pytest.raises(WeightsError, match="not a checkpoint"):
        generator_of_checkpoint(tmp_path / "bad.ckpt")


def test_the_weights_file_is_a_generator(config: Make, tmp_path: Path) -> None:
    path = config()
    writer = {"class_path": "GeneratorFile", "init_args": {"name": "mine"}}
    callbacks = [{"class_path": "MovingAverage"}, writer]
    module = fit(path, "--trainer.max_steps=2", f"--trainer.callbacks={callbacks}").model
    file = tmp_path / "run" / "mine.safetensors"
    made = load_generator(str(file), "cpu")
    assert (made.name, made.cfg) == ("mine", module.net.cfg)
    assert made.tokenizers["NDVI"].name == "toy-ndvi"
    assert made.tokenizers["NDVI"].sha256 == b"\1" * 32
    assert made.tokenizers["NDVI"].tile == 256
    again = fit(config("again"), "--trainer.max_steps=1", f"--model.start={file}")
    assert again.model.copied > 10


def test_a_file_of_another_kind_is_refused_before_the_first_step(config: Make, tmp_path: Path) -> None:
    writer = {"class_path": "tmcodec.training.callbacks.WeightsFile", "init_args": {"name": "mine"}}
    with pytest.raises(ConfigError, match="WeightsFile cannot write what Any2AnyModule trains"):
        fit(config(), f"--trainer.callbacks={[writer]}")


def test_a_checkpoint_of_no_generator_is_refused(config: Make, tmp_path: Path) -> None:
    fit(config(), "--trainer.max_steps=1")
    last = tmp_path / "run" / "last.ckpt"
    found = load(last)
    del found["generator_config"]
    torch.save(found, last)
    with pytest.raises(ConfigError, match="not of a generator"):
        fit(config(), f"--ckpt_path={last}")


def test_attention_begins_at_the_same_place() -> None:
    net = Any2AnyModule(Layout(["NDVI"], dim=32, encoder_depth=1, decoder_depth=1, heads=4), alike=2.0).net
    plain = Any2AnyModule(Layout(["NDVI"], dim=32, encoder_depth=1, decoder_depth=1, heads=4), alike=0.0).net
    for attention, before in (
        (net.encoder[0].attn, plain.encoder[0].attn),
        (net.decoder[0].self_attn, plain.decoder[0].self_attn),
    ):
        query, key, value = attention.qkv.weight.chunk(3)
        assert torch.equal(query, key)
        assert torch.equal(query, 2 * before.qkv.weight[:32])
        assert torch.equal(value, before.qkv.weight[64:])
    cross = net.decoder[0].cross_attn
    assert torch.equal(cross.q.weight, cross.kv.weight[:32])


def test_a_run_starts_from_another_with_other_tokens(config: Make, tmp_path: Path) -> None:
    fit(config("first"))
    write_tokens(tmp_path / "other" / "a.tmc", toy_grids(), sha=b"\3" * 32)
    sources = {"train": [{"paths": [str(tmp_path / "other")]}], "val": None}
    last = str(tmp_path / "first" / "last.ckpt")
    with pytest.raises(ConfigError, match=r"give it as model\.start"):
        fit(config("second", data=sources), f"--ckpt_path={last}")
    module = fit(config("third", data=sources), f"--model.start={last}").model
    assert module.copied == len(module.net.state_dict())
    assert module.tokenizers["NDVI"].sha256 == "03" * 32


def test_pixels_are_shown_as_patches(config: Make, tmp_path: Path) -> None:
    grids = toy_grids(count=2)
    path = write_tokens(tmp_path / "pixels" / "a.tmc", grids)
    pixels = np.random.default_rng(0).normal(0.3, 0.3, (2, 1, 96, 96)).astype(np.float32)
    np.save(path.with_name("a.NDVI.npy"), pixels)
    mixture = {"inputs": {"NDVI/pixels": 1.0}, "targets": {"S2L2A": 1.0}}
    source = {"paths": [str(path)]}
    made = config(
        data={"train": [source], "val": [source], "window": {"side": 5, "smallest": 5, "others": 0.0},
              "budgets": {"inputs": [7, 7], "targets": [2, 8], "mixtures": [mixture]}},
        model={"net": {"tokens": ["S2L2A", "NDVI"], "pixels": ["NDVI"], "dim": 16, "encoder_depth": 1,
                       "decoder_depth": 1, "heads": 2, "codes_hidden": 8, "grid": 6}},
    )  # fmt: skip
    module = fit(made).model
    batch = module.trainer.datamodule.loader("train", 1, endless=True).source[0]
    part = batch["inputs"]["NDVI/pixels"]
    assert part["values"].shape == (2, 1, 80, 80)
    assert part["positions"].shape == (2, 7)
    row = MODALITIES["NDVI"]
    windows = (pixels - row.mean[0]) / row.std[0]
    found = part["values"][0, 0, :16, :16].numpy()
    starts = [(i, r * 16, c * 16) for i in range(2) for r in (0, 1) for c in (0, 1)]
    assert any(np.allclose(windows[i, 0, r : r + 16, c : c + 16], found, atol=1e-6) for i, r, c in starts)
    assert torch.isfinite(module.total(*module.cross_entropies(batch)))
    # What is not among the visible positions changes nothing.
    hidden = sorted(set(range(25)) - set(part["positions"][0].tolist()))[0]
    before = module.eval().cross_entropies(batch)[0]["S2L2A"]
    r, c = divmod(hidden, 5)
    part["values"][0, :, r * 16 : r * 16 + 16, c * 16 : c * 16 + 16] += 5
    assert torch.equal(module.cross_entropies(batch)[0]["S2L2A"], before)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model": {"net": {"tokens": ["S2L2A"]}}}, "the data have NDVI"),
        ({"model": {"net": {"tokens": ["S2L2A", "NDVI"], "dim": 30, "heads": 4}}}, "dim or heads"),
        ({"model": {"start": "nowhere.ckpt"}}, "no checkpoint nowhere.ckpt"),
        ({"model": {"negativez": 3}}, "negativez"),
        ({"data": {"train": [{"paths": ["nowhere"]}]}}, "nowhere: no such folder"),
        ({"data": {"window": {"side": 2, "smallest": 3}}}, "smallest"),
        ({"trainer": {"max_steps": -1, "max_epochs": -1}}, "max_steps"),
    ],
)
def test_wrong_configurations_are_one_line(change: dict[str, Any], says: str, config: Make) -> None:
    result = CliRunner().invoke(cli, ["train", "generator", "fit", "-c", str(config(**change))])
    assert result.exit_code == 1, result.output
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("tmcodec: error: ")
    assert says in message


# --------------------------------------------------------------------------- tokens


@pytest.fixture
def plan(tmp_path: Path) -> Make:
    """Return a function that writes two aligned rasters and a token configuration, and returns its path."""
    for i, side in enumerate((80, 96)):
        for modality in ("S2L2A", "DEM"):
            write_raster(tmp_path / modality / f"{i}.tif", modality, side, seed=i)

    def make(**changes: Any) -> Path:
        rasters = [
            {"path": str(tmp_path / m), "modality": m, "s2_offset": "present"} for m in ("S2L2A", "DEM")
        ]
        group = {"rasters": rasters, "compute": ["NDVI"], "side": 64, "crops": 5, **changes.pop("group", {})}
        sections = {"out": str(tmp_path / "out"), "groups": [group], "shard": 3, **changes}
        path = tmp_path / "tokens.yaml"
        path.write_text(yaml.safe_dump(sections))
        return path

    return make


def test_shards_hold_the_tokens_of_the_crops(plan: Make, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["train", "tokens", "-c", str(plan(pixels=["NDVI", "S2L2A"]))])
    assert result.exit_code == 0, result.output
    shards = sorted((tmp_path / "out").glob("*.tmc"))
    assert [s.name for s in shards] == ["group00-000000.tmc", "group00-000003.tmc"]
    corpus = read_corpus(shards)
    assert [s.shape for s in corpus.stacks] == [(3, 4, 4), (2, 4, 4)]
    for modality in ("NDVI", "S2L2A"):
        tok = load_tokenizer(default_model(modality), "cpu")
        assert corpus.tokenizers[modality].name == tok.name
        assert corpus.tokenizers[modality].sha256 == tok.sha256.hex()
        for stack in corpus.stacks:
            again = tok.encode(torch.from_numpy(np.array(stack.pixels[modality]))).numpy()
            assert np.array_equal(again, stack.tokens[modality])
    # NDVI was computed from the changed Sentinel-2 crop, offset taken off.
    stack = corpus.stacks[0]
    bands = MODALITIES["S2L2A"].bands
    red, nir = (np.maximum(stack.pixels["S2L2A"][:, bands.index(b)] - 1000, 0) for b in ("B04", "B08"))
    assert np.allclose(stack.pixels["NDVI"][:, 0], (nir - red) / np.maximum(nir + red, 1), atol=1e-5)
    with TokenFile.open(shards[0]) as file:
        assert file.meta.tags["first"] == "0"


def test_shards_may_hold_searched_tokens(plan: Make, tmp_path: Path) -> None:
    training.tokens(["-c", str(plan(pixels=["NDVI"], search=2))], (0, 1))
    (stack, _) = read_corpus(sorted((tmp_path / "out").glob("*.tmc"))).stacks
    tok = load_tokenizer(default_model("NDVI"), "cpu")
    for pixels, tokens in zip(stack.pixels["NDVI"], stack.tokens["NDVI"], strict=True):
        own = tok.encode(torch.from_numpy(np.array(pixels))[None])[0].numpy()
        expected = search(tok, own, np.array(pixels), np.ones(pixels.shape, np.bool_), 2)
        assert np.array_equal(tokens, expected)
        assert not np.array_equal(tokens, own)


def tiny_terramind(path: Path) -> Path:
    """Write random weights of TerraMind's layout for NDVI, lively enough that the context matters."""
    torch.manual_seed(5)
    row = MODALITIES["NDVI"]
    cfg = TerraMindConfig("NDVI", 1, row.levels, "unet", row.mean, row.std, dim=24, depth=1, heads=2,
                          unet_channels=32, unet_blocks=1)  # fmt: skip
    state = {k: 3 * v if v.ndim > 1 else v for k, v in TerraMindNet(cfg).state_dict().items()}
    save_checkpoint(path, cfg, state, "tiny-terramind", {})
    return path


@pytest.mark.parametrize(("side", "tile"), [(224, 224), (112, 224), (240, 256), (256, 256), (288, 256)])
def test_terraminds_tokens_are_those_of_rasters(side: int, tile: int, plan: Make, tmp_path: Path) -> None:
    weights = str(tiny_terramind(tmp_path / "tiny.safetensors"))
    group = {"side": side, "crops": 2, "warp": 0.0}
    training.tokens(["-c", str(plan(pixels=["NDVI"], group=group, tokenizers={"NDVI": weights}))], (0, 1))
    (shard,) = (tmp_path / "out").glob("*.tmc")
    (stack,) = read_corpus([shard]).stacks
    with TokenFile.open(shard) as file:
        assert file["NDVI"].meta.tile == tile
    for pixels, tokens in zip(stack.pixels["NDVI"], stack.tokens["NDVI"], strict=True):
        encode(np.array(pixels), tmp_path / "a.tmc", modality="NDVI", tokenizer=weights, tile=tile,
               exact=True, overwrite=True)  # fmt: skip
        with TokenFile.open(tmp_path / "a.tmc") as file:
            assert np.array_equal(file["NDVI"].tokens(), tokens)


def test_all_groups_have_tiles_of_one_size(plan: Make) -> None:
    path = plan()
    sections = yaml.safe_load(path.read_text())
    (group,) = sections["groups"]
    for sides, tile in (((320,), 256), ((320, 224), 224), ((256, 240), 256)):
        path.write_text(yaml.safe_dump({**sections, "groups": [{**group, "side": s} for s in sides]}))
        assert training.read_plan(["-c", str(path)]).tile == tile


def test_shards_do_not_depend_on_who_writes_them(plan: Make, tmp_path: Path) -> None:
    path = plan()
    training.tokens(["-c", str(path)], (0, 1))
    for part in ((0, 2), (1, 2)):
        training.tokens(["-c", str(path), "--out", str(tmp_path / "parts")], part)
    for shard in sorted((tmp_path / "out").glob("*.tmc")):
        assert (tmp_path / "parts" / shard.name).read_bytes() == shard.read_bytes()
    result = CliRunner().invoke(cli, ["train", "tokens", "-c", str(path)])
    assert result.exit_code == 1
    assert "exists" in result.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shards": 3}, "shards"),
        ({"tokenizers": {"LULC": "mini-lulc-v2"}}, "LULC is in none of the groups"),
        ({"tokenizers": {"DEM": "mini-ndvi-v2"}}, "mini-ndvi-v2 is for NDVI"),
        ({"group": {"compute": ["LULC"]}}, "LULC cannot be computed"),
        ({"group": {"names": "7*"}}, "no file '7*'"),
        ({"group": {"side": 50}}, "side must be a multiple of 16"),
        ({"search": -1}, "give 0 or more"),
    ],
)
def test_wrong_token_configurations_are_one_line(
    change: dict[str, Any], says: str, plan: Make, tmp_path: Path
) -> None:
    result = CliRunner().invoke(cli, ["train", "tokens", "-c", str(plan(**change))])
    assert result.exit_code == 1, result.output
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("tmcodec: error: ")
    assert says in message
    assert not list(tmp_path.glob("out/*"))


def test_rasters_of_one_name_must_be_of_one_size(plan: Make, tmp_path: Path) -> None:
    path = plan()
    write_raster(tmp_path / "DEM" / "1.tif", "DEM", 64)
    with pytest.raises(CorpusError, match=r"1\.tif: \(64, 64\) pixels, S2L2A has \(96, 96\)"):
        training.read_plan(["-c", str(path)])


def test_a_corpus_that_was_stopped_goes_on(
    plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = str(plan(pixels=["NDVI"], shard=2)), tmp_path / "out"
    training.tokens(["-c", path, "--out", str(tmp_path / "whole")], (0, 1))
    written: list[str] = []

    def write(target: Path, *rest: Any) -> None:
        if len(written) == 1:
            raise RuntimeError("stopped")
        written.append(target.name)
        write_shard(target, *rest)

    monkeypatch.setattr(token_corpora, "write_shard", write)
    with pytest.raises(RuntimeError, match="stopped"):
        training.tokens(["-c", path], (0, 1))
    assert written == ["group00-000000.tmc"]
    np.save(out / "group00-000002.NDVI.npy", np.zeros(1))  # pixels come first: a kill may leave them alone
    with pytest.raises(TargetExistsError, match=r"group00-000000\.tmc exists"):
        training.tokens(["-c", path], (0, 1))
    with pytest.raises(TargetExistsError, match=r"group00-000002\.NDVI\.npy exists"):
        training.tokens(["-c", path], (1, 3))
    monkeypatch.setattr(token_corpora, "write_shard", write_shard)
    done: list[tuple[int, int]] = []
    first = (out / "group00-000000.tmc").stat().st_mtime_ns
    paths = training.tokens(["-c", path, "--resume", "true"], (0, 1), lambda *n: done.append(n))
    assert done == [(2, 3), (3, 3)]
    assert (out / "group00-000000.tmc").stat().st_mtime_ns == first
    names = [f"group00-00000{n}.tmc" for n in (0, 2, 4)]
    assert [p.name for p in paths] == names
    for file in (tmp_path / "whole").iterdir():
        assert (out / file.name).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("change", [{"seed": 1}, {"group": {"warp": 0.0}}, {"search": 1}])
def test_a_corpus_does_not_go_on_by_another_plan(change: dict[str, Any], plan: Make, tmp_path: Path) -> None:
    small = {"side": 32, "crops": 1}
    training.tokens(["-c", str(plan(group=small))], (0, 1))
    before = (tmp_path / "out" / "group00-000000.tmc").read_bytes()
    path = plan(**{**change, "group": {**small, **change.get("group", {})}})
    with pytest.raises(TargetExistsError, match=r"group00-000000\.tmc is of another plan"):
        training.tokens(["-c", str(path), "--resume=true"], (0, 1))
    with pytest.raises(ConfigError, match="give one of the two"):
        training.tokens(["-c", str(path), "--resume=true", "--overwrite=true"], (0, 1))
    assert (tmp_path / "out" / "group00-000000.tmc").read_bytes() == before


def aligned(folder: Path, **how: Any) -> AlignedRasters:
    """Return a group of S2L2A and DEM below a folder."""
    return AlignedRasters([RasterFolder(str(folder / m), m, **how) for m in ("S2L2A", "DEM")], side=64)


def test_rasters_belong_together_by_their_paths(tmp_path: Path) -> None:
    for name in ("S2L2A/2020/t", "S2L2A/2021/t", "DEM/2020/t", "S2L2A/flat", "DEM/flat"):
        write_raster(tmp_path / f"{name}.tif", name.split("/")[0], 80)
    group = aligned(tmp_path)
    found = [{m: group.rasters[m].name_of(i) for m, i in place.items()} for place in group.places]
    assert found == [
        {m: str(tmp_path / m / name) for m in ("S2L2A", "DEM")} for name in ("2020/t.tif", "flat.tif")
    ]
    write_raster(tmp_path / "DEM" / "flat.tiff", "DEM", 80)
    with pytest.raises(CorpusError, match=r"flat\.tif and .*flat\.tiff have one name"):
        aligned(tmp_path)
    (tmp_path / "DEM" / "2020").rename(tmp_path / "DEM" / "2022")
    alone = r"all of S2L2A, DEM \(.*2020.t\.tif, .*2022.t\.tif\); paths below the folders must be equal"
    with pytest.raises(CorpusError, match=alone):
        AlignedRasters([RasterFolder(str(tmp_path / m), m) for m in ("S2L2A", "DEM")], names="t")
    (tmp_path / "DEM" / "2022" / "t.tif").unlink()
    with pytest.raises(CorpusError, match=r"2020.t\.tif, none in DEM\)"):
        AlignedRasters([RasterFolder(str(tmp_path / m), m) for m in ("S2L2A", "DEM")], names="t")


@pytest.mark.parametrize("by_size", [True, False])
def test_a_quicklook_beside_a_raster_is_a_bad_file(by_size: bool, tmp_path: Path) -> None:
    for modality in ("S2L2A", "DEM"):
        write_raster(tmp_path / modality / "t.tif", modality, 80)
    quicklook = tmp_path / "S2L2A" / "t.png"
    with rasterio.open(quicklook, "w", driver="PNG", width=8, height=8, count=3, dtype="uint8") as dataset:
        dataset.write(np.zeros((3, 8, 8), np.uint8))
    group = aligned(tmp_path, skip_bad=True, by_size=by_size)
    assert [group.rasters["S2L2A"].name_of(p["S2L2A"]) for p in group.places] == [
        str(tmp_path / "S2L2A" / "t.tif")
    ]
    assert (list(group.rasters["S2L2A"].bad), group.left_out) == ([str(quicklook)], [])
    with pytest.raises(CorpusError, match=r"t\.png"):
        aligned(tmp_path, by_size=by_size)
    (tmp_path / "S2L2A" / "t.tif").rename(tmp_path / "S2L2A" / "t.tiff")
    write_raster(tmp_path / "S2L2A" / "t.tif", "S2L2A", 80)  # two good ones
    with pytest.raises(CorpusError, match=r"t\.tif and .*t\.tiff have one name"):
        aligned(tmp_path, skip_bad=True, by_size=by_size)


@pytest.mark.parametrize(
    ("crs", "east", "fits"),
    [
        ("EPSG:32633", 5e5, True),
        ("EPSG:32633", 5e5 + 0.005, True),  # half of a thousandth of a pixel of 10 m
        ("EPSG:32633", 5e5 + 0.02, False),
        ("EPSG:32634", 5e5, False),
        (None, None, True),
    ],
)
def test_rasters_of_a_place_must_lie_on_the_same_pixels(
    crs: str | None, east: float | None, fits: bool, tmp_path: Path
) -> None:
    write_raster(tmp_path / "S2L2A" / "a.tif", "S2L2A", 80)
    place = {} if east is None else {"crs": crs, "transform": Affine(10, 0, east, 0, -10, 5e6)}
    (tmp_path / "DEM").mkdir()
    with rasterio.open(
        tmp_path / "DEM" / "a.tif", "w", driver="GTiff", count=1, width=80, height=80, dtype="int16", **place
    ) as dataset:
        dataset.write(np.full((1, 80, 80), 300, np.int16))
    if fits:
        assert aligned(tmp_path).places == [{"S2L2A": 0, "DEM": 0}]
        return
    with pytest.raises(CorpusError, match=r"DEM.a\.tif: 80 x 80 pixels .* S2L2A has .* same pixels"):
        aligned(tmp_path)


def test_places_with_a_bad_file_are_left_out_where_asked(
    plan: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = plan()
    (tmp_path / "DEM" / "1.tif").write_bytes(b"II*\0garbage")
    with pytest.raises(CorpusError, match=r"DEM.1\.tif: .*skip_bad"):
        training.read_plan(["-c", str(path)])
    sections = yaml.safe_load(path.read_text())
    for source in sections["groups"][0]["rasters"]:
        source["skip_bad"] = True
    path.write_text(yaml.safe_dump(sections))
    group = training.read_plan(["-c", str(path)]).groups[0]
    assert (group.places, group.left_out) == ([{"S2L2A": 0, "DEM": 0}], ["1"])
    with caplog.at_level("INFO"):
        assert len(training.tokens(["-c", str(path)], (0, 2))) == 1
    assert "1 places are left out, whose files are bad: 1" in caplog.text


@pytest.mark.parametrize("skip_bad", [True, False])
def test_windows_that_cannot_be_read_are_drawn_again_where_asked(
    skip_bad: bool, plan: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan()
    group = aligned(tmp_path, skip_bad=skip_bad)

    def fail(_: Any) -> Any:
        raise RasterOpenError("cannot read")

    monkeypatch.setattr(group.rasters["DEM"].opened(1), "read", fail)
    if not skip_bad:
        with pytest.raises(CorpusError, match=r"DEM.1\.tif: cannot read; mend it, or set skip_bad"):
            [group.draw(np.random.default_rng(i)) for i in range(20)]
        return
    assert all(group.draw(np.random.default_rng(i))["DEM"][0].shape == (1, 64, 64) for i in range(20))
    assert list(group.rasters["DEM"].bad) == [str(tmp_path / "DEM" / "1.tif")]
    monkeypatch.setattr(group.rasters["DEM"].opened(0), "read", fail)
    with pytest.raises(CorpusError, match=r"could not be read .*DEM.[01]\.tif: cannot read\); mend"):
        group.draw(np.random.default_rng(0))


# --------------------------------------------------------------------------- what ships

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "any2any"


@pytest.mark.parametrize("name", ["mini", "base"])
def test_configurations_instantiate(name: str, config: Make, tmp_path: Path) -> None:
    config()  # writes the tokens
    sections = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    small = {"dim": 48, "encoder_depth": 1, "decoder_depth": 1, "heads": 4}
    sections["model"]["net"].update(small)
    for part in ("train", "val"):
        sections["data"][part][0]["paths"] = [str(tmp_path / "tokens")]
    sections["data"].update(batch=2)
    sections["trainer"].update(accelerator="cpu", logger=False, precision="32-true")
    sections["trainer"]["callbacks"] = [
        c for c in sections["trainer"]["callbacks"] if "Monitor" not in c["class_path"]
    ]
    path = tmp_path / "shipped.yaml"
    path.write_text(yaml.safe_dump(sections))
    built = training.build(["-c", str(path)], run_it=False)
    cfg = built.model.net.cfg
    named = set(sections["model"]["net"]["tokens"])
    assert {s.modality for s in cfg.modalities if s.kind == "tokens"} == named
    assert cfg.gated == (name == "base")
    batch = built.datamodule.loader("train", 1, endless=True).source[0]
    losses, counts = built.model.cross_entropies(batch)
    assert torch.isfinite(built.model.total(losses, counts))


@pytest.mark.parametrize("name", ["mini-tokens", "mini-val-tokens"])
def test_token_configurations_find_their_rasters(name: str, tmp_path: Path) -> None:
    sections = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    stems = {"terramesh_*": "terramesh_a", "ssl4eos12_*": "ssl4eos12_a", "bigearthnet_*": "bigearthnet_a"}
    for group in sections["groups"]:
        for source in group["rasters"]:
            stem = stems.get(group.get("names", "*"), "b")
            modality = source.get("derive", source["modality"])
            source["path"] = str(tmp_path / source["path"])
            write_raster(Path(source["path"]) / f"{stem}.tif", modality)
            if source.get("class_map"):
                source["class_map"] = "1:1,2:2,3:3,4:4,5:5,6:6,7:7,8:8,9:9"
    path = tmp_path / "tokens.yaml"
    path.write_text(yaml.safe_dump(sections))
    plan = training.read_plan(["-c", str(path), "--out", str(tmp_path / "out")])
    everything = {"DEM", "LULC", "NDVI", "S1RTC", "S2L2A", "S2RGB"}
    assert set(plan.groups[0].modalities) == everything == set(plan.modalities)
    crop = plan.groups[0].draw(np.random.default_rng(0))
    assert {v.shape[1:] for v, _ in crop.values()} == {(224, 224)}


def test_what_a_step_decides_by_stays_on_the_cpu() -> None:
    """A step reads nothing from the device: on meta, which has no values, it would fail."""
    layout = Layout(list(EACH[:2]), dim=16, encoder_depth=1, decoder_depth=1, heads=2, codes_hidden=8, grid=2)
    module, batch = Any2AnyModule(layout).eval(), shown_batch(3)
    batch["targets"] = {"NDVI": batch["inputs"].pop("NDVI")}
    expected, _ = module.cross_entropies(batch)
    here = module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert torch.equal(module.cross_entropies(here)[0]["NDVI"], expected["NDVI"])
    there = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert there["number"].device.type == there["grid"].device.type == "cpu"
    assert there["inputs"]["S2L2A"]["values"].is_meta
    assert module.to("meta").cross_entropies(there)[0]["NDVI"].shape == ()


@pytest.mark.parametrize("side", ["inputs", "targets"])
def test_padding_is_told_before_a_batch_is_moved(side: str) -> None:
    layout = Layout(list(EACH[:2]), dim=16, encoder_depth=1, decoder_depth=1, heads=2, codes_hidden=8, grid=2)
    module, batch = Any2AnyModule(layout).eval(), shown_batch(3)
    batch["targets"] = {"NDVI": batch["inputs"].pop("NDVI")}
    name = next(iter(batch[side]))
    batch[side][name]["padding"][0, -1] = True
    moved = module.transfer_batch_to_device(batch, torch.device("cpu"), 0)
    assert {part["padded"] for part in moved[side].values()} == {True}
    losses, counts = module.cross_entropies(moved)
    before, count = module.cross_entropies(batch)
    assert int(counts["NDVI"]) == int(count["NDVI"]) == (5 if side == "targets" else 6)
    assert torch.equal(losses["NDVI"], before["NDVI"])


# --------------------------------------------------------------------------- its own tokens


EACH = ("S2L2A", "NDVI", "LULC")


def shown_batch(number: int, modalities: tuple[str, ...] = ("S2L2A", "NDVI")) -> dict[str, Any]:
    """Return a batch of two samples that shows four tokens of the first modality, three of others."""
    inputs = {
        m: {"positions": torch.arange(n).expand(2, -1), "padding": torch.zeros(2, n, dtype=torch.bool),
            "values": torch.full((2, n), 7)}
        for m, n in zip(modalities, (4, 3, 3), strict=False)
    }  # fmt: skip
    return {"number": torch.tensor(number), "grid": torch.tensor([2, 2]), "inputs": inputs, "targets": {}}


def certain_net(token: int) -> Any:
    """Return a small transformer that makes one token whatever it is shown, and its keys."""
    layout = Layout(list(EACH), dim=16, encoder_depth=1, decoder_depth=1, heads=2, codes_hidden=8, grid=2)
    module = Any2AnyModule(layout)
    net = module.net

    def predict(encoded: Any, key: str, positions: torch.Tensor, *_: Any) -> torch.Tensor:
        logits = torch.zeros(*positions.shape, 15360 if key.startswith('tok_ndvi') else 4375)
        logits[..., token] = 1000.0
        return logits

    net.predict = predict  # type: ignore[method-assign]
    return net, module.keys


def test_some_of_one_modality_are_the_networks_own() -> None:
    net, keys = certain_net(99)
    replaced = set()
    for number in range(40):
        batch = shown_batch(number, EACH)
        got = show_own(net, keys, batch, chance=1.0)
        again = show_own(net, keys, shown_batch(number, EACH), chance=1.0)
        own = {m: int((part["values"] == 99).sum()) for m, part in got["inputs"].items()}
        assert own == {m: int((part["values"] == 99).sum()) for m, part in again["inputs"].items()}
        assert all(set(part["values"].unique().tolist()) <= {7, 99} for part in got["inputs"].values())
        assert own["S2L2A"] == 0  # what shows most is a measurement
        assert min(own["NDVI"], own["LULC"]) == 0  # one at most
        assert all(bool((part["values"] == 7).all()) for part in batch["inputs"].values())  # as it was
        replaced.add((next((m for m, n in own.items() if n), None), max(own.values()) // 2))
    assert {m for m, _ in replaced} == {None, "NDVI", "LULC"}
    assert {n for _, n in replaced} == {0, 1, 2, 3}  # any share, of both samples alike


@pytest.mark.parametrize(("modalities", "chance"), [(("S2L2A", "NDVI"), 0.0), (("NDVI",), 1.0)])
def test_without_chance_or_another_modality_all_stay(modalities: tuple[str, ...], chance: float) -> None:
    net, keys = certain_net(99)
    batch = shown_batch(3, modalities)
    assert show_own(net, keys, batch, chance) is batch


def test_own_tokens_leave_no_gradients_and_no_half_precision_behind(config: Make) -> None:
    # Weights cast for the drawing, without gradients, must not be what the training step multiplies with.
    path = config(model={**yaml.safe_load(config("base").read_text())["model"], "own": 1.0})
    data = yaml.safe_load(path.read_text())["data"]
    source = TokenData(
        [TokenSource(**data["train"][0])], Budgets((20, 20), (4, 4), [Mixture(EVERYTHING, EVERYTHING)]),
        window=WindowSizes(5, 5, 0.0), batch=2,
    ).loader("train", 9, True).source  # fmt: skip
    gradients = {}
    for own in (0.0, 1.0):
        module = Any2AnyModule(Layout(["S2L2A", "NDVI"], dim=16, encoder_depth=1, decoder_depth=1, heads=2,
                                      codes_hidden=8, grid=6), own=own)  # fmt: skip
        module.log = lambda *_, **__: None  # type: ignore[method-assign]
        with torch.autocast("cpu", torch.bfloat16):
            module.training_step(source[1], 0).backward()
        moved = {n: p.grad is not None and bool(p.grad.any()) for n, p in module.named_parameters()}
        gradients[own] = {name for name, it_did in moved.items() if it_did}
    assert gradients[1.0] == gradients[0.0] != set()


def test_data_parallel_training_may_leave_modalities_out() -> None:
    """A mixture that shows a part of the modalities leaves the others without gradients."""
    strategy = DDPStrategy()
    find_unused_parameters(SimpleNamespace(strategy=strategy))
    assert strategy._ddp_kwargs == {"find_unused_parameters": True}
    told = DDPStrategy(find_unused_parameters=False)
    find_unused_parameters(SimpleNamespace(strategy=told))
    assert told._ddp_kwargs == {"find_unused_parameters": False}


def test_means_of_validation_are_those_of_all_tokens_of_all_processes(config: Make) -> None:
    """Two processes that met other modalities log the same figures: sums over tokens by their number."""
    module = fit(config(), "--trainer.max_steps=1").model
    seen = [torch.tensor([[6.0, 2], [9, 3], [0, 0]]), torch.tensor([[2.0, 2], [0, 0], [20, 4]])]
    logged: dict[str, float] = {}
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: sum(seen))
    module._trainer = SimpleNamespace(strategy=strategy)
    module.log = lambda name, value, **_: logged.update({name: float(value)})
    module.on_validation_epoch_start()
    module.on_validation_epoch_end()
    assert module.figures() == ["loss", "S2L2A", "NDVI"]
    assert logged == {"val/loss": 2.0, "val/S2L2A": 3.0, "val/NDVI": 5.0}


@pytest.mark.slow
def test_two_processes_train_a_generator_to_its_end(config: Make, tmp_path: Path) -> None:
    """Of mixtures that leave a modality out, each process in an order of its own, and with the callback that
    writes the weights at the end.
    """
    pairs = (("S2L2A", "NDVI"), ("NDVI", "S2L2A"))
    ways = [{"inputs": {one: 1.0}, "targets": {other: 1.0}} for one, other in pairs]
    data = {"budgets": {"inputs": [2, 20], "targets": [2, 8], "mixtures": ways}, "seed": 1, "val_batches": 4}
    path = config(data=data)
    raw = yaml.safe_load(path.read_text())
    raw["trainer"]["callbacks"].append({"class_path": "GeneratorFile", "init_args": {"name": "made"}})
    path.write_text(yaml.safe_dump(raw))
    command = [sys.executable, "-m", "tmcodec", "train", "generator", "fit", "-c", str(path)]
    found = subprocess.run(
        [*command, "--trainer.devices=2", "--trainer.strategy=ddp"],
        capture_output=True, text=True, timeout=300, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert list((tmp_path / "run").rglob("made.safetensors"))
