"""TerraTorch's classes with random weights, and comparisons with ours."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tmcodec.codec.terramind import TerraMindTokenizer
from tmcodec.codec.terramind_models import OFFICIAL
from tmcodec.codec.terramind_weights import DECODER, ENCODER, Checkpoint, tensors_digest
from tmcodec.fsq import indices_to_digits, thresholds
from tmcodec.networks.terramind.net import ENCODER_PREFIXES

_library: torch.library.Library | None = None


def import_terratorch() -> Any:
    """Return TerraTorch's module of tokenizers, or skip; its precision for products is undone."""
    global _library
    if importlib.util.find_spec("terratorch") is None:
        pytest.skip("terratorch is not installed: pip install 'tmcodec[parity]'")
    if torch.version.cuda is None and _library is None:
        # PyPI's torchvision is built for CUDA; beside a CPU-only PyTorch it misses two operators of its own.
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from terratorch.models.backbones.terramind.tokenizer import tokenizer_register

    torch.set_float32_matmul_precision("highest")  # importing terratorch sets "medium"
    return tokenizer_register


@contextmanager
def no_initialisation() -> Iterator[None]:
    """Build networks without filling their weights, which takes ten seconds each."""
    names = [n for n in dir(nn.init) if n.endswith("_") and not n.startswith("_")]
    kept = {n: getattr(nn.init, n) for n in names}
    for n in names:
        setattr(nn.init, n, lambda tensor, *args, **kwargs: tensor)
    try:
        yield
    finally:
        for n, function in kept.items():
            setattr(nn.init, n, function)


def randomise(net: nn.Module, seed: int) -> None:
    """Fill all weights: the official initialisation leaves 46 of them zero, and then outputs are zero too."""
    generator = torch.Generator().manual_seed(seed)
    for key, tensor in net.state_dict().items():
        if key.endswith("pos_emb"):
            continue
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.ndim > 1:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        else:
            tensor.copy_(0.1 * noise + (1.0 if key.endswith("weight") else 0.0))


def build_official(module: Any, name: str, seed: int = 0) -> Any:
    """Return TerraTorch's tokenizer of one of our names, with random weights."""
    _, version, modality = name.split("-")
    with no_initialisation():
        official = getattr(module, f"terramind_{version}_tokenizer_{modality}")()
    randomise(official, seed)
    return official.eval().requires_grad_(False)


@dataclass
class Pair:
    """The same weights twice."""

    name: str
    official: Any
    ours: TerraMindTokenizer

    def pictures(self, batch: int, height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
        """Return physical values for ours, and what TerraTorch takes."""
        generator = torch.Generator().manual_seed(seed)
        cfg = self.ours.cfg
        if cfg.categorical:
            x = torch.randint(0, cfg.channels, (batch, 1, height, width), generator=generator)
            return x, x
        x = (
            torch.randn(batch, cfg.channels, height, width, generator=generator) * self.ours.std
            + self.ours.mean
        )
        return x, (x - self.ours.mean) / self.ours.std

    def tokens(self, batch: int, rows: int, cols: int, seed: int = 0) -> Tensor:
        """Return random tokens."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, self.ours.codebook_size, (batch, rows, cols), generator=generator)


def as_checkpoint(name: str, state: dict[str, Tensor]) -> Checkpoint:
    """Return the weights in memory as a checkpoint of that name."""
    halves = {
        ENCODER: {k: v for k, v in state.items() if k.startswith(ENCODER_PREFIXES)},
        DECODER: {k: v for k, v in state.items() if not k.startswith(ENCODER_PREFIXES)},
    }
    model = OFFICIAL[name]
    digests = {which: tensors_digest(half) for which, half in halves.items()}
    return Checkpoint(__file__, name, model.config, digests, state, {})  # type: ignore[arg-type]


def assert_at_edges(
    latents: Tensor, tokens: Tensor, expected: Tensor, levels: Sequence[int], tolerance: float
) -> None:
    """Assert that each differing token has a latent within `tolerance` of a decision edge, in each digit."""
    differ = tokens != expected
    mine = indices_to_digits(tokens[differ].numpy(), levels)
    other = indices_to_digits(expected[differ].numpy(), levels)
    for z, a, b in zip(latents[differ], mine, other, strict=True):
        for channel, level in enumerate(levels):
            if a[channel] != b[channel]:
                distance = abs(torch.from_numpy(thresholds(level)) - z[channel]).min()
                assert float(distance) <= tolerance


def round_trip(folder: Path) -> tuple[Any, Any, str]:
    """Encode and decode land cover by the command line with weights0.pt, and again after importing it.

    Returns both pictures and what decoding with weights1.pt said.
    """
    import numpy as np
    import rasterio
    from click.testing import CliRunner

    from tmcodec.cli import cli

    def run(*args: object, status: int = 0) -> str:
        result = CliRunner().invoke(cli, [str(a) for a in args])
        assert result.exit_code == status, result.output
        return result.output

    ids = np.random.default_rng(0).integers(0, 10, (1, 96, 64)).astype("uint8")
    scene, tokens, back = folder / "scene.tif", folder / "scene.tmc", folder / "back.tif"
    with rasterio.open(scene, "w", driver="GTiff", count=1, width=64, height=96, dtype="uint8") as d:
        d.write(ids)
    name = ("--tokenizer", "terramind-v1-lulc")
    right, wrong = ("--checkpoint", folder / "weights0.pt"), ("--checkpoint", folder / "weights1.pt")
    run("encode", scene, tokens, "--modality", "LULC", *name, *right, "-q")
    run("decode", tokens, back, *right, "-q")
    with rasterio.open(back) as d:
        assert d.shape == (96, 64)
        decoded = d.read()
    assert decoded.max() <= 9
    refusal = run("decode", tokens, folder / "no.tif", *wrong, status=1)
    assert not (folder / "no.tif").exists()
    run("models", "import", folder / "weights0.pt", "--as", "terramind-v1-lulc")
    again = folder / "again.tif"
    run("decode", tokens, again, "-q")  # now found by the name in the file
    with rasterio.open(again) as d:
        return decoded, d.read(), refusal
