"""Tokenizers as the codec sees them: physical values in, tokens out, and back."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from numbers import Integral
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tmcodec.codec.lineage import Origin, parse_decodes
from tmcodec.codec.models import texture_path
from tmcodec.codec.textures import Texture, load_texture
from tmcodec.codec.weights import load_weights
from tmcodec.errors import DeviceError, SamplerError, ShapeError, TokenRangeError
from tmcodec.fsq import codebook_size
from tmcodec.modalities import Modality, get_modality
from tmcodec.networks.height import HeightDecoder
from tmcodec.networks.mini import PATCH, MiniNet
from tmcodec.networks.precision import inference
from tmcodec.rasters.windows import Window, align_out
from tmcodec.samplers.noise import block_noise
from tmcodec.samplers.sample import DEFAULT, OFFICIAL, sample
from tmcodec.texts import shown

Classes = Sequence[int]

MAX_CONTEXT_TOKENS = 32
"""Cap on the context of a decoded window; only ten steps or more would want more."""

MAX_SAMPLES = 64
"""Most pictures that one decode averages."""

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
"""Integers for which torch has neither minimum nor comparison."""

SEED_STRIDE = 0x9E3779B97F4A7C15
"""Seeds of averaged pictures lie this far apart: 2**64 over the golden ratio."""


def pick_device(device: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:1`` into a device.

    Raises
    ------
    DeviceError
        If the device is unknown or not there.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as err:
        raise DeviceError(f"unknown device {device!r}; use auto, cpu or cuda") from err
    if chosen.type not in ("cpu", "cuda"):
        raise DeviceError(f"device {device!r} is not supported; use auto, cpu or cuda")
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device is available; use --device cpu")
    if chosen.type == "cuda" and (chosen.index or 0) >= (count := torch.cuda.device_count()):
        raise DeviceError(f"there is no device {device!r}; this machine has {count}, counted from cuda:0")
    return chosen


def check_samples(samples: int) -> None:
    """Raise unless so many pictures can be averaged.

    Raises
    ------
    SamplerError
    """
    if not isinstance(samples, Integral) or not 1 <= samples <= MAX_SAMPLES:
        raise SamplerError(f"{shown(samples)} samples to average; give 1 to {MAX_SAMPLES}")


def _check_tensor(x: object) -> None:
    if not isinstance(x, Tensor):
        raise ShapeError(f"give a torch tensor, not {type(x).__name__}; torch.from_numpy makes one of arrays")


def likeliest(logits: Tensor, classes: Classes | None) -> Tensor:
    """Return which of `classes` have the largest logits ``(B, C, H, W)``: float32 ``(B, 1, H, W)``."""
    if classes is None:
        return logits.argmax(1, keepdim=True).float()
    ids = torch.tensor(classes, device=logits.device)
    return ids[logits[:, ids].argmax(1, keepdim=True)].float()


class Tokenizer(ABC):
    """One modality's encoder and decoder.

    Attributes
    ----------
    name
        E.g. ``"mini-s2l2a-v2"``.
    modality
        Row of the modality table.
    levels
        FSQ levels.
    sha256
        Content hash of the weights, 32 bytes.
    decodes
        Earlier tokenizers whose tokens this one decodes, because its encoder is theirs.
    patch, tile
        Pixels per token and native tile side.
    encoder_halo
        Tokens of real context that the encoder wants around a window.
    balanced
        Whether decoding is cheap enough to fit a radiometric balance whenever something is encoded.
    searched
        Whether `tmcodec.codec.search` can look for better tokens than the encoder's.
    least_effort
        Rounds of search that are worth their time on rasters of any size.
    texture
        What is used in place of the weights' own diffusion decoder, or None.
    device
        Where the networks run.
    """

    name: str
    modality: Modality
    levels: tuple[int, ...]
    sha256: bytes
    decodes: tuple[Origin, ...] = ()
    patch: int = PATCH
    tile: int = 256
    encoder_halo: int = 0
    balanced: bool = False
    searched: bool = False
    least_effort: int = 0
    texture: Texture | None = None
    device: torch.device

    @property
    def codebook_size(self) -> int:
        """Number of distinct tokens."""
        return codebook_size(self.levels)

    def reads(self, sha256: bytes) -> bool:
        """Tell whether this tokenizer decodes the tokens of weights with that content hash."""
        return sha256 == self.sha256 or any(sha256 == origin.sha256 for origin in self.decodes)

    @abstractmethod
    def decoder_halo(self, steps: int) -> int:
        """Return the tokens of context that the decoder wants around a window."""

    @abstractmethod
    def _encode(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _decode(
        self, tokens: Tensor, steps: int, seed: int, origin: tuple[int, int], sampler: str,
        classes: Classes | None,
    ) -> Tensor: ...

    def check_sampler(self, name: str) -> str:
        """Return the sampler's name; raise `SamplerError` where this tokenizer cannot decode with it."""
        return name

    def draws_noise(self, steps: int) -> bool:
        """Tell whether decoding in so many steps depends on the seed."""
        return True

    def encode(self, x: Tensor) -> Tensor:
        """Encode pictures.

        Parameters
        ----------
        x
            ``(B, C, H, W)``, any float or integer dtype, physical units (see
            `tmcodec.modalities`), finite; H and W multiples of `patch`. Class ids have C = 1.

        Returns
        -------
        Tensor
            int32 ``(B, H / patch, W / patch)``.

        Raises
        ------
        ShapeError
            If the shape does not fit, `x` is no tensor, a value is not finite, or a class id is none of the
            tokenizer's.
        """
        _check_tensor(x)
        bands = len(self.modality.bands)
        fits = x.ndim == 4 and x.shape[1] == bands and not any(n % self.patch or not n for n in x.shape[2:])
        if not fits or x.is_complex():
            raise ShapeError(
                f"{self.name} takes (B, {bands}, H, W) with H and W multiples of {self.patch}, "
                f"not {tuple(x.shape)}{' of complex numbers' if x.is_complex() else ''}"
            )
        x = x.to(self.device, torch.float32)
        if not bool(torch.isfinite(x.sum())):  # one NaN or infinity spoils the sum
            raise ShapeError("values are not finite; fill nodata before encoding")
        with inference(self.device):
            return self._encode(x)

    def decode(
        self,
        tokens: Tensor,
        steps: int = 1,
        seed: int = 0,
        origin: tuple[int, int] = (0, 0),
        sampler: str = DEFAULT,
        samples: int = 1,
        classes: Classes | None = None,
    ) -> Tensor:
        """Decode token grids.

        Parameters
        ----------
        tokens
            Integers ``(B, rows, cols)``, each below `codebook_size`.
        steps
            Sampling steps; 1 gives the mean.
        seed
            Decides the noise where `steps` > 1.
        origin
            Row and column of the grid's first token in a larger picture, so that windows of it
            see its noise.
        sampler
            ``"ddim"``, or another name that `tmcodec.samplers.sample.sample` takes.
        samples
            Average of so many pictures from different noise, nearer to the mean; 1..64.
        classes
            Ids that class maps may come out with, in ascending order; None for all. Others ignore it.

        Returns
        -------
        Tensor
            float32 ``(B, C, rows * patch, cols * patch)`` in physical units; class ids for LULC.

        Raises
        ------
        ShapeError
            If `tokens` are no tensor of integers, not three-dimensional, without rows or columns, or `steps`
            is no whole number in 1..1000; if `classes` of a class map are none, or none of the tokenizer's.
        TokenRangeError
            If a token lies outside the codebook.
        SamplerError
            If the sampler is unknown where one is needed, which one step of most tokenizers does not; if
            `samples` is no whole number in 1..64, or `seed` none.
        """
        tokens = self._checked(tokens, steps, samples, classes)
        if not isinstance(seed, Integral):
            raise SamplerError(f"seed {shown(seed)}; give a whole number")
        with inference(self.device):
            return self._average(
                lambda s: self._decode(tokens, steps, s, origin, sampler, classes), steps, seed, samples
            )

    def _checked(self, tokens: Tensor, steps: int, samples: int, classes: Classes | None) -> Tensor:
        """Return valid tokens on the device; refuse what `decode` refuses."""
        _check_tensor(tokens)
        if self.modality.categorical and classes is not None:
            legend = range(len(self.modality.classes))
            if not classes or not set(classes) <= set(legend):
                raise ShapeError(f"classes {shown(classes)}; give some of 0..{len(legend) - 1}, or None")
        if tokens.dtype.is_floating_point or tokens.dtype.is_complex or tokens.dtype == torch.bool:
            raise ShapeError(f"tokens must be integers, not {tokens.dtype}; convert whole ones by long()")
        whole = isinstance(steps, Integral) and 1 <= steps <= 1000
        if tokens.ndim != 3 or 0 in tokens.shape[1:] or not whole:
            raise ShapeError(
                f"tokens must be (B, rows, cols), steps 1..1000; not {tuple(tokens.shape)}, {shown(steps)}"
            )
        check_samples(samples)
        tokens = tokens.to(self.device, torch.int64 if tokens.dtype in UNSIGNED else tokens.dtype)
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= self.codebook_size):
            raise TokenRangeError(f"a token lies outside 0..{self.codebook_size - 1} of {self.name}")
        return tokens

    def _average(self, draw: Callable[[int], Tensor], steps: int, seed: int, samples: int) -> Tensor:
        """Return ``draw(seed)``, or the mean over as many seeds where they matter."""
        if samples == 1 or self.modality.categorical or not self.draws_noise(steps):
            return draw(seed)
        total = draw(seed)
        for i in range(1, samples):
            total += draw((seed + i * SEED_STRIDE) % 2**64)
        return total / samples

    # What the codec calls: parts of a raster, with the surroundings that the networks want. The defaults
    # suit networks whose context is bounded; transformers, which look at whole tiles, have their own.

    def encoder_context(self, square: Window, width: int, height: int) -> Window:
        """Return the part of a raster of `width` x `height` pixels to read for encoding `square`."""
        return square.expand(self.encoder_halo * self.patch, width, height)

    def encode_context(self, x: Tensor) -> Tensor:
        """Encode what `encoder_context` said, ``(1, C, H, W)``, padded to patches; ``(1, rows, cols)``."""
        return self.encode(x)

    def decoder_context(self, square: Window, width: int, height: int, steps: int, sampler: str) -> Window:
        """Return the part of a raster, aligned to patches, whose tokens decoding `square` needs."""
        inner = align_out(square, self.patch, width, height)
        return inner.expand(self.decoder_halo(steps) * self.patch, width, height)

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
        """Decode what `decoder_context` said, ``(1, rows, cols)``; `grid` is the whole raster's, in tokens.

        Returns float32 ``(1, C, rows * patch, cols * patch)``; only the square is meant to be used.
        """
        return self.decode(tokens, steps, seed, origin, sampler, samples, classes)


class MiniTokenizer(Tokenizer):
    """The small convolutional tokenizer of `tmcodec.networks.mini`."""

    def __init__(
        self,
        net: MiniNet,
        name: str,
        sha256: bytes,
        device: str = "auto",
        decodes: tuple[Origin, ...] = (),
        texture: Texture | None = None,
    ) -> None:
        self.device = pick_device(device)
        self.net = net.to(self.device)
        self.name, self.sha256, self.decodes, self.texture = name, sha256, decodes, texture
        self.modality = get_modality(net.cfg.modality)
        self.levels = tuple(net.cfg.levels)
        self.encoder_halo = net.encoder_halo
        self.balanced = self.searched = True
        self.least_effort = int(isinstance(net.decoder, HeightDecoder))

    @classmethod
    def from_file(cls, path: Path, device: str = "auto") -> MiniTokenizer:
        """Load a weights file, and the texture that lies beside it (`tmcodec.codec.textures`).

        See `tmcodec.codec.weights.load_weights` for the errors.
        """
        # What is loaded may outlive the caller's modes. Made in inference mode it could not be searched with.
        with torch.inference_mode(False), torch.device("cpu"):
            net, name, sha256, notes = load_weights(path)
            beside = texture_path(path)
            texture = load_texture(beside, net, sha256) if beside.is_file() else None
            # Gradients are asked for by tokens at most: weights without them save the search half its memory.
            net = net.float().requires_grad_(False)  # float, whatever the default data type is
            return cls(net, name, sha256, device, parse_decodes(notes, path), texture)

    def decoder_halo(self, steps: int) -> int:
        """Return the context in tokens: the mean decoder's, and the denoiser's once a step."""
        denoiser = self.net.denoiser
        if denoiser is None or steps == 1:
            return self.net.decoder_halo
        pixels = max(denoiser.halo_pixels * (steps - 1), denoiser.gain_halo_pixels)
        return min(self.net.decoder_halo + math.ceil(pixels / self.patch), MAX_CONTEXT_TOKENS)

    def _encode(self, x: Tensor) -> Tensor:
        if self.modality.categorical:
            ids, classes = x[:, 0].long(), self.net.cfg.channels
            if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= classes):
                raise ShapeError(f"{self.name} knows classes 0..{classes - 1}; map others to them first")
            z = F.one_hot(ids, classes).permute(0, 3, 1, 2).float()
            return self.net.fsq.latents_to_indices(self.net.encoder(z))
        return self.net.fsq.latents_to_indices(self.net.latents(x))

    def check_sampler(self, name: str) -> str:
        """Refuse the official sampler: it clamps what it draws, which here is no picture."""
        if name == OFFICIAL:
            raise SamplerError(f"sampler official clamps pictures, {self.name} draws residuals; use ddim")
        return name

    def draws_noise(self, steps: int) -> bool:
        """One step is the mean, and needs no noise."""
        return steps > 1 and self.net.denoiser is not None

    def _decode(
        self, tokens: Tensor, steps: int, seed: int, origin: tuple[int, int], sampler: str,
        classes: Classes | None,
    ) -> Tensor:
        codes, (low, high) = self.net.fsq.indices_to_codes(tokens), self.modality.valid_range
        if not self.modality.categorical and not self.draws_noise(steps):
            return self.net.picture(codes, low, high)
        mean, features = self.net.decoder(codes)
        if self.modality.categorical:
            return likeliest(mean, classes)
        residual = self._sample_residual(features, mean.shape, steps, seed, origin, sampler)
        if isinstance(self.net.decoder, HeightDecoder):
            deviation = self.net.cfg.residual_std or (1.0,)  # as the components have it
            residual = residual * self.net.decoder.texture(codes, deviation[0])
        mean = mean + residual
        return self.net.compander.expand_bands(mean, low, high)

    def _sample_residual(
        self,
        features: Tensor,
        shape: torch.Size,
        steps: int,
        seed: int,
        origin: tuple[int, int],
        sampler: str,
    ) -> Tensor:
        """Draw what the mean misses; the answer to pure noise is zero by construction."""
        denoiser = self.net.denoiser
        assert denoiser is not None
        self.check_sampler(sampler)
        batch, _, height, width = shape
        row, col = (n * self.patch for n in origin)
        channels = self.net.cfg.residual_channels

        def noise(step: int) -> Tensor:  # 0: what sampling begins with
            threads = torch.get_num_threads()
            drawn = block_noise(channels, row, col, height, width, seed, step, threads)
            return torch.from_numpy(drawn).to(self.device).expand(batch, -1, -1, -1)

        drawn = sample(denoiser.guess_with(features), noise(0), steps, sampler, noise)
        parts = denoiser.strengthen(drawn, features)
        return self.net.from_components(parts)


_cache: dict[tuple[str, str], tuple[list[tuple[int, ...]], MiniTokenizer]] = {}
_cache_lock = threading.Lock()


def cached(path: Path, device: str) -> MiniTokenizer:
    """Load a weights file once for each device; tokenizers hold no state, so threads may share them.

    A file that was replaced, or got another texture, is loaded again, and what was loaded before forgotten.
    """
    key = (str(path.resolve()), str(pick_device(device)))
    with _cache_lock:
        states = [_state(path), _state(texture_path(path))]  # before they are read
        known = _cache.get(key)
        if known is None or known[0] != states:
            known = _cache[key] = states, MiniTokenizer.from_file(path, device)
        return known[1]


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes with a file; nothing where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_mtime_ns, found.st_size, found.st_ino
