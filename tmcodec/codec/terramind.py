"""TerraMind's tokenizers as the codec sees them.

Attention looks at a whole tile, so the tile is part of the contract: every token is encoded in a full tile
of real pixels (the last tile of a row is moved inwards rather than cut; pictures smaller than a tile are
extended by reflection). Decoding works on tiles that straddle the encoder's, with overlaps that are blended,
so that tile borders do not show.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from tmcodec.codec.lineage import parse_decodes
from tmcodec.codec.terramind_models import legend
from tmcodec.codec.terramind_weights import DECODER, ENCODER, Checkpoint
from tmcodec.codec.tokenizer import Classes, Tokenizer, likeliest, pick_device
from tmcodec.codec.weights import check_finite
from tmcodec.errors import ShapeError
from tmcodec.fsq import FSQ
from tmcodec.modalities import get_modality
from tmcodec.networks.precision import inference
from tmcodec.networks.terramind.compiled import check_compiler, compile_half
from tmcodec.networks.terramind.inference import pick_dtype, prepare
from tmcodec.networks.terramind.net import DecoderHalf, EncoderHalf
from tmcodec.rasters.blend import ramp_weights
from tmcodec.rasters.windows import Window
from tmcodec.samplers.noise import block_noise
from tmcodec.samplers.sample import DEFAULT, OFFICIAL, sample

Half = TypeVar("Half", EncoderHalf, DecoderHalf)

TILES = (256, 224)
"""Native tile sides in pixels: the tokenizers' own, and the one of TerraMind's transformer."""

OVERLAP = 4
"""Tokens that neighbouring decoded tiles share: 64 pixels to blend over."""

BATCH_PIXELS = 8 * 256 * 256
"""Pixels that go through a network at once."""


class TerraMindTokenizer(Tokenizer):
    """A tokenizer of TerraMind's layout with the weights of a checkpoint.

    Parameters
    ----------
    checkpoint
        Opened by `tmcodec.codec.terramind_weights.open_checkpoint`. Encoding loads its first half when it is
        first needed, decoding its second.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.
    precision
        ``"fp32"``, ``"bf16"`` or ``"auto"``: float32 for encoding and for the official sampler, bfloat16
        for other decoding where the processor has it. Tokens of float32 are the contract.
    tile
        Side in pixels that rasters are cut into, 256 or 224.
    compile
        Whether the networks go through ``torch.compile``, once for each size of input. Sums are in another
        order: latents agree within 1e-4 in float32.

    Raises
    ------
    ShapeError
        If `tile` is another number.
    DeviceError
        If the device is not there, or cannot be compiled for.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: str = "auto",
        precision: str = "auto",
        tile: int = 256,
        compile: bool = False,
    ) -> None:
        if tile not in TILES:
            raise ShapeError(f"tile {tile} is none of {', '.join(map(str, TILES))}; tokens depend on it")
        self.device = pick_device(device)
        self.precision = precision
        pick_dtype(precision, self.device)  # refuses an unknown one
        self._compile = compile
        if compile:
            check_compiler(self.device)
        self.checkpoint, self.cfg = checkpoint, checkpoint.config
        self.name, self.sha256 = checkpoint.name, checkpoint.sha256
        self.decodes = parse_decodes(checkpoint.notes, checkpoint.path)
        row = get_modality(self.cfg.modality)
        own = row if self.cfg.categorical else replace(row, mean=self.cfg.mean, std=self.cfg.std)
        self.modality = legend(own, self.cfg.channels)
        self.levels, self.patch, self.tile = self.cfg.levels, self.cfg.patch, tile
        self._lock = threading.Lock()
        self._encoders: dict[torch.dtype, EncoderHalf] = {}
        self._decoders: dict[torch.dtype, DecoderHalf] = {}
        self.mean, self.std = (
            torch.tensor(v, dtype=torch.float32, device=self.device).view(-1, 1, 1)
            for v in (self.cfg.mean, self.cfg.std)
        )

    # ----------------------------------------------------------------------- networks

    @property
    def encoder(self) -> EncoderHalf:
        """The encoding half; its weights are read at the first use."""
        dtype = pick_dtype("fp32" if self.precision == "auto" else self.precision, self.device)
        with self._lock:
            if dtype not in self._encoders:
                with torch.device("meta"):
                    net = EncoderHalf(self.cfg)
                net.fsq = FSQ(self.levels)  # its buffers are in no checkpoint
                self._encoders[dtype] = self._filled(net, ENCODER, dtype)
            return self._encoders[dtype]

    def decoder(self, sampler: str = DEFAULT) -> DecoderHalf:
        """Return the decoding half in the precision that a sampler calls for, read at its first use."""
        exact = self.precision == "auto" and (sampler == OFFICIAL or self.cfg.categorical)
        dtype = pick_dtype("fp32" if exact else self.precision, self.device)
        with self._lock:
            if dtype not in self._decoders:
                with torch.device("meta"):
                    net = DecoderHalf(self.cfg)
                net.fsq = FSQ(self.levels, axis=1)
                self._decoders[dtype] = self._filled(net, DECODER, dtype)
            return self._decoders[dtype]

    def _filled(self, net: Half, which: str, dtype: torch.dtype) -> Half:
        """Give an empty half its weights and its fast layers."""
        tensors = {k: v.to(torch.float32) for k, v in self.checkpoint.half(which).items()}
        check_finite(tensors, self.checkpoint.path)
        net.load_state_dict(tensors, assign=True)
        ready = prepare(net.to(self.device).eval(), dtype, pack=not self._compile)
        if self._compile:
            compile_half(ready, self.device)
        return ready

    # ----------------------------------------------------------------------- encoding

    def latents(self, x: Tensor) -> Tensor:
        """Return what is quantized, float32 ``(B, rows, cols, d)``; takes what `encode` takes."""
        with inference(self.device):
            z = self._normalise(x.to(self.device, torch.float32))
            return torch.cat([self.encoder.latents(part) for part in z.split(self._batch(z))])

    def _normalise(self, x: Tensor) -> Tensor:
        """Return network input: standardised bands, or one-hot classes."""
        if not self.cfg.categorical:
            return (x - self.mean) / self.std
        classes = self.cfg.channels
        ids = x[:, 0].long()
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= classes):
            raise ShapeError(f"{self.name} knows classes 0..{classes - 1}; map others to them first")
        return F.one_hot(ids, classes).permute(0, 3, 1, 2).float()

    def _encode(self, x: Tensor) -> Tensor:
        z = self._normalise(x)
        return torch.cat([self.encoder(part) for part in z.split(self._batch(z))])

    def _batch(self, x: Tensor) -> int:
        """Return how many pictures like those of `x` go through the network at once."""
        return max(1, BATCH_PIXELS // max(1, x.shape[-2] * x.shape[-1]))

    def encoder_context(self, square: Window, width: int, height: int) -> Window:
        """Grow a square at the far borders to a full tile, where the raster has the pixels."""
        col, w = self._grow(square.col, square.width, width)
        row, h = self._grow(square.row, square.height, height)
        return Window(col, row, w, h)

    def _grow(self, start: int, size: int, limit: int) -> tuple[int, int]:
        """Move the start of an interval backwards until it is as long as a tile, in whole patches."""
        missing = self.tile - -(-size // self.patch) * self.patch
        if missing > 0 and start + size == limit:
            earlier = max(0, start - missing)
            return earlier, size + start - earlier
        return start, size

    def encode_context(self, x: Tensor) -> Tensor:
        """Encode a picture in full tiles; see `Tokenizer.encode_context`."""
        rows, cols = (side // self.patch for side in x.shape[-2:])
        full = reflect_to(x, self.tile)
        tile = self.tile // self.patch
        places = [
            (row, col)
            for row in starts(full.shape[-2] // self.patch, tile, tile)
            for col in starts(full.shape[-1] // self.patch, tile, tile)
        ]
        tokens = torch.empty(1, full.shape[-2] // self.patch, full.shape[-1] // self.patch, dtype=torch.int32)
        step = self._batch(full[..., : self.tile, : self.tile])
        # From the last to the first, so that a tile moved inwards keeps only what no other has.
        for part in (places[::-1][i : i + step] for i in range(0, len(places), step)):
            tiles = torch.cat([_cut(full, row, col, self.tile, self.patch) for row, col in part])
            for (row, col), found in zip(part, self.encode(tiles).cpu(), strict=True):
                tokens[0, row : row + tile, col : col + tile] = found
        return tokens[:, :rows, :cols]

    # ----------------------------------------------------------------------- decoding

    def decoder_halo(self, steps: int) -> int:
        """Return a whole tile: what a square's own tiles may reach beyond it."""
        return self.tile // self.patch

    def draws_noise(self, steps: int) -> bool:
        """Tell whether the decoder is a diffusion; its answer to pure noise varies a little, too."""
        return not self.cfg.categorical

    def _decode(
        self, tokens: Tensor, steps: int, seed: int, origin: tuple[int, int], sampler: str,
        classes: Classes | None,
    ) -> Tensor:
        drawn = self._draw(tokens, steps, [seed] * len(tokens), [origin] * len(tokens), sampler)
        return self._finish(drawn, classes)

    def _draw(
        self, tokens: Tensor, steps: int, seeds: list[int], origins: list[tuple[int, int]], sampler: str
    ) -> Tensor:
        """Return normalised bands, or class logits, ``(B, C, H, W)``, in batches."""
        net = self.decoder(sampler)
        even, (height, width) = self._pad_grid(tokens), (n * self.patch for n in tokens.shape[-2:])
        noise = None
        if not self.cfg.categorical:
            noise = self._noise(even.shape, seeds, origins, sampler)
        step = max(1, BATCH_PIXELS // (even.shape[1] * even.shape[2] * self.patch**2))
        parts = []
        for i in range(0, len(even), step):
            some = slice(i, i + step)
            codes = net.codes(even[some])
            if noise is None:
                parts.append(net.logits(codes))
                continue
            parts.append(self._sample(net, codes, noise[some], steps, seeds[some], origins[some], sampler))
        return torch.cat(parts)[..., :height, :width]

    def _sample(
        self, net: DecoderHalf, codes: Tensor, noise: Tensor, steps: int, seeds: list[int],
        origins: list[tuple[int, int]], sampler: str,
    ) -> Tensor:  # fmt: skip
        """Return normalised bands drawn from one batch's noise."""

        def added(step: int) -> Tensor:
            return self._noise(codes.shape, seeds, origins, sampler, step).to(self.device)

        def denoise(noisy: Tensor, times: Tensor) -> Tensor:
            return net.denoise(noisy, times.to(self.device), codes)

        return sample(denoise, noise.to(self.device), steps, sampler, added)

    def _pad_grid(self, tokens: Tensor) -> Tensor:
        """Repeat the last row and column up to a size that the decoder takes."""
        multiple = self.cfg.decode_multiple // self.patch
        short = [(-n) % multiple for n in tokens.shape[-2:]]
        if not any(short):
            return tokens
        # Tokens lie below 2**24, so float32 holds them exactly.
        padded = F.pad(tokens[:, None].float(), (0, short[1], 0, short[0]), mode="replicate")
        return padded[:, 0].to(tokens.dtype)

    def _noise(
        self, grid: torch.Size, seeds: list[int], origins: list[tuple[int, int]], sampler: str, step: int = 0
    ) -> Tensor:
        """Return a step's noise on the CPU: TerraTorch's for `OFFICIAL`, else addressed by place."""
        height, width = grid[-2] * self.patch, grid[-1] * self.patch
        shape = (self.cfg.channels, height, width)
        if sampler == OFFICIAL and len(set(zip(seeds, origins, strict=True))) == 1:
            generator = torch.Generator().manual_seed(seeds[0] % 2**63)
            return torch.randn((len(seeds), *shape), generator=generator, dtype=torch.float32, device="cpu")
        pictures = {}
        # In the order of the tiles: neighbours share blocks of noise, of which the latest are kept.
        for seed, (row, col) in dict.fromkeys(zip(seeds, origins, strict=True)):
            if sampler == OFFICIAL:
                generator = torch.Generator().manual_seed(place_seed(seed, row, col))
                drawn = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")
                pictures[seed, (row, col)] = drawn
            else:
                window = (row * self.patch, col * self.patch, height, width)
                found = block_noise(shape[0], *window, seed, step, torch.get_num_threads())
                pictures[seed, (row, col)] = torch.from_numpy(found)
        return torch.stack([pictures[key] for key in zip(seeds, origins, strict=True)])

    def _finish(self, drawn: Tensor, classes: Classes | None) -> Tensor:
        """Return physical values within the modality's range, or class ids."""
        if self.cfg.categorical:
            return likeliest(drawn, classes)
        return (drawn * self.std + self.mean).clamp(*self.modality.valid_range)

    # ----------------------------------------------------------------------- decoding parts of rasters

    def _overlap(self, sampler: str) -> int:
        return 0 if sampler == OFFICIAL else OVERLAP  # TerraTorch decodes each tile alone

    def _starts(self, count: int, sampler: str) -> list[int]:
        """Return the first tokens of the tiles that cover `count` tokens, wherever a window lies."""
        tile = self.tile // self.patch
        return starts(count, tile, tile - self._overlap(sampler))

    def decoder_context(self, square: Window, width: int, height: int, steps: int, sampler: str) -> Window:
        """Return the pixels of all tiles that touch the square."""
        tile = self.tile // self.patch

        def reach(start: int, size: int, limit: int) -> tuple[int, int]:
            count = -(-limit // self.patch)
            first, last = start // self.patch, -(-(start + size) // self.patch)
            touching = [s for s in self._starts(count, sampler) if s < last and s + tile > first]
            low, high = touching[0] * self.patch, min((touching[-1] + tile) * self.patch, limit)
            return low, high - low

        col, w = reach(square.col, square.width, width)
        row, h = reach(square.row, square.height, height)
        return Window(col, row, w, h)

    def decode_context(
        self,
        tokens: Tensor,
        steps: int,
        seed: int,
        origin: tuple[int, int],
        grid: tuple[int, int],
        sampler: str = DEFAULT,
        samples: int = 1,
        classes: Classes | None = None,
    ) -> Tensor:
        """Decode in overlapping tiles of the raster's lattice, blended; see `Tokenizer.decode_context`."""
        tokens = self._checked(tokens, steps, samples, classes)
        tile = self.tile // self.patch
        places = [
            (row - origin[0], col - origin[1])
            for row in self._inside(grid[0], origin[0], tokens.shape[1], sampler)
            for col in self._inside(grid[1], origin[1], tokens.shape[2], sampler)
        ]
        tiles = torch.cat([tokens[:, row : row + tile, col : col + tile] for row, col in places])
        at = [(row + origin[0], col + origin[1]) for row, col in places]

        def blended(s: int) -> Tensor:
            drawn = self._draw(tiles, steps, [s] * len(at), at, sampler)
            return self._finish(self._blend(drawn, places, tokens.shape[1:], sampler), classes)

        with inference(self.device):
            return self._average(blended, steps, seed, samples)

    def _inside(self, count: int, first: int, size: int, sampler: str) -> Iterator[int]:
        """Yield the starts of the tiles that lie inside a context."""
        tile = min(self.tile // self.patch, count)
        return (s for s in self._starts(count, sampler) if first <= s and s + tile <= first + size)

    def _blend(self, drawn: Tensor, places: list[tuple[int, int]], grid: torch.Size, sampler: str) -> Tensor:
        """Return the weighted mean of overlapping tiles ``(1, C, H, W)``."""
        height, width = (n * self.patch for n in grid)
        if len(places) == 1 and drawn.shape[-2:] == (height, width):
            return drawn
        h, w = drawn.shape[-2:]
        down, across = (min(self._overlap(sampler) * self.patch, side // 2) for side in (h, w))
        weights = torch.from_numpy(ramp_weights(h, w, down, down, across, across)).to(drawn.device)
        total = drawn.new_zeros(1, drawn.shape[1], height, width)
        # Pixels of the context that no whole tile covers are never used; they must not divide by zero.
        share = drawn.new_full((height, width), torch.finfo(torch.float32).tiny)
        for (row, col), picture in zip(places, drawn, strict=True):
            top, left = row * self.patch, col * self.patch
            total[0, :, top : top + h, left : left + w] += picture * weights
            share[top : top + h, left : left + w] += weights
        return total / share


def starts(count: int, tile: int, stride: int) -> list[int]:
    """Return where tiles begin that cover `count` tokens: every `stride`, the last one moved inwards.

    >>> starts(40, 16, 12)
    [0, 12, 24]
    >>> starts(41, 16, 12)
    [0, 12, 24, 25]
    """
    return [*range(0, count - tile, stride), max(0, count - tile)]


def reflect_to(x: Tensor, tile: int) -> Tensor:
    """Extend ``(1, C, H, W)`` at the far sides by reflection until both are a tile at least."""
    for axis in (-2, -1):
        while x.shape[axis] < tile:
            size = x.shape[axis]
            take = min(tile - size, max(size - 1, 1))
            mirrored = x.flip(axis).narrow(axis, 1 if size > 1 else 0, take)
            x = torch.cat([x, mirrored], axis)
    return x


def place_seed(seed: int, row: int, col: int) -> int:
    """Return a seed for the tile at a place; the one at the origin keeps `seed` itself."""
    if row == col == 0:
        return seed % 2**63
    mixed = seed ^ (row * 0x9E3779B97F4A7C15) ^ (col * 0xC2B2AE3D27D4EB4F)
    return (mixed * 0xFF51AFD7ED558CCD % 2**64) >> 1


def _cut(x: Tensor, row: int, col: int, tile: int, patch: int) -> Tensor:
    return x[..., row * patch : row * patch + tile, col * patch : col * patch + tile]
