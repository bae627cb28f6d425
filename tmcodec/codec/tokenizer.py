"""Tokenizers as the codec sees them: physical values in, tokens out, and back."""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from tmcodec.codec.weights import load_weights
from tmcodec.errors import DeviceError, ShapeError, TokenRangeError
from tmcodec.fsq import codebook_size
from tmcodec.modalities import Modality, get_modality
from tmcodec.networks.mini import PATCH, MiniNet
from tmcodec.samplers import block_noise, make_scheduler

MAX_CONTEXT_TOKENS = 32
"""Cap on the context of a decoded window; only more than ten steps would want more."""


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
    except RuntimeError as err:
        raise DeviceError(f"unknown device {device!r}; use auto, cpu or cuda") from err
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError("no CUDA device is available; use --device cpu")
    return chosen


class Tokenizer(ABC):
    """One modality's encoder and decoder.

    Attributes
    ----------
    name
        E.g. ``"mini-s2l2a-v1"``.
    modality
        Row of the modality table.
    levels
        FSQ levels.
    sha256
        Content hash of the weights, 32 bytes.
    patch, tile
        Pixels per token and native tile side.
    encoder_halo
        Tokens of real context that the encoder wants around a window.
    balanced
        Whether decoding is cheap enough to fit a radiometric balance whenever something is encoded.
    """

    name: str
    modality: Modality
    levels: tuple[int, ...]
    sha256: bytes
    patch: int = PATCH
    tile: int = 256
    encoder_halo: int = 0
    balanced: bool = False
    device: torch.device

    @property
    def codebook_size(self) -> int:
        """Number of distinct tokens."""
        return codebook_size(self.levels)

    @abstractmethod
    def decoder_halo(self, steps: int) -> int:
        """Return the tokens of context that the decoder wants around a window."""

    @abstractmethod
    def _encode(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def _decode(self, tokens: Tensor, steps: int, seed: int, origin: tuple[int, int]) -> Tensor: ...

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
            If the shape does not fit or a value is not finite.
        """
        bands = len(self.modality.bands)
        if x.ndim != 4 or x.shape[1] != bands or x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ShapeError(
                f"{self.name} takes (B, {bands}, H, W) with H and W multiples of {self.patch}, "
                f"not {tuple(x.shape)}"
            )
        x = x.to(self.device, torch.float32)
        if not bool(torch.isfinite(x.sum())):  # one NaN or infinity spoils the sum
            raise ShapeError("values are not finite; fill nodata before encoding")
        with torch.inference_mode():
            return self._encode(x)

    def decode(
        self, tokens: Tensor, steps: int = 1, seed: int = 0, origin: tuple[int, int] = (0, 0)
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

        Returns
        -------
        Tensor
            float32 ``(B, C, rows * patch, cols * patch)`` in physical units; class ids for LULC.

        Raises
        ------
        ShapeError
            If `tokens` is not three-dimensional, or `steps` lies outside 1..1000.
        TokenRangeError
            If a token lies outside the codebook.
        """
        if tokens.ndim != 3 or not 1 <= steps <= 1000:
            raise ShapeError(
                f"tokens must be (B, rows, cols), steps 1..1000; not {tuple(tokens.shape)}, {steps}"
            )
        tokens = tokens.to(self.device)
        if tokens.numel() and (int(tokens.min()) < 0 or int(tokens.max()) >= self.codebook_size):
            raise TokenRangeError(f"a token lies outside 0..{self.codebook_size - 1} of {self.name}")
        with torch.inference_mode():
            return self._decode(tokens, steps, seed, origin)


class MiniTokenizer(Tokenizer):
    """The small convolutional tokenizer of `tmcodec.networks.mini`."""

    def __init__(self, net: MiniNet, name: str, sha256: bytes, device: str = "auto") -> None:
        self.device = pick_device(device)
        self.net = net.to(self.device)
        self.name, self.sha256 = name, sha256
        self.modality = get_modality(net.cfg.modality)
        self.levels = tuple(net.cfg.levels)
        self.encoder_halo = net.encoder_halo
        self.balanced = True

    @classmethod
    def from_file(cls, path: Path, device: str = "auto") -> MiniTokenizer:
        """Load a weights file; see `tmcodec.codec.weights.load_weights` for the errors."""
        net, name, sha256, _ = load_weights(path)
        return cls(net, name, sha256, device)

    def decoder_halo(self, steps: int) -> int:
        """Return the context in tokens: the mean decoder's, and the denoiser's once a step."""
        denoiser = self.net.denoiser
        pixels = denoiser.halo_pixels * (steps - 1) if denoiser is not None else 0
        return min(self.net.decoder_halo + math.ceil(pixels / self.patch), MAX_CONTEXT_TOKENS)

    def _encode(self, x: Tensor) -> Tensor:
        if self.modality.categorical:
            ids = x[:, 0].long().clamp(0, self.net.cfg.channels - 1)
            z = F.one_hot(ids, self.net.cfg.channels).permute(0, 3, 1, 2).float()
        else:
            z = self.net.compander.compress_bands(x)
        return self.net.fsq.latents_to_indices(self.net.encoder(z))

    def _decode(self, tokens: Tensor, steps: int, seed: int, origin: tuple[int, int]) -> Tensor:
        mean, features = self.net.decoder(self.net.fsq.indices_to_codes(tokens))
        if self.modality.categorical:
            return mean.argmax(1, keepdim=True).float()
        if steps > 1 and self.net.denoiser is not None:
            mean = mean + self._sample_residual(features, mean.shape, steps, seed, origin)
        low, high = self.modality.valid_range
        return self.net.compander.expand_bands(mean, low, high)

    def _sample_residual(
        self, features: Tensor, shape: torch.Size, steps: int, seed: int, origin: tuple[int, int]
    ) -> Tensor:
        """Draw what the mean misses by DDIM; the first step's guess is zero by construction."""
        assert self.net.denoiser is not None
        batch, _, height, width = shape
        channels = self.net.cfg.residual_channels
        row, col = (n * self.patch for n in origin)
        noise = torch.from_numpy(block_noise(channels, row, col, height, width, seed))
        sample = noise.to(self.device).expand(batch, -1, -1, -1)
        scheduler = make_scheduler(steps)
        for t in scheduler.timesteps:
            signal = scheduler.alphas_cumprod[t].sqrt().to(self.device)
            if float(signal) == 0:
                clean = torch.zeros_like(sample)
            else:
                times = t.to(self.device).expand(batch)
                clean = self.net.denoiser(sample, features, times, signal.expand(batch))
            sample = scheduler.step(clean, t, sample, return_dict=False)[0]
        return self.net.from_components(sample)


_cache: dict[tuple[str, str], MiniTokenizer] = {}
_cache_lock = threading.Lock()


def cached(path: Path, device: str) -> MiniTokenizer:
    """Load a weights file once for each device; tokenizers hold no state, so threads may share them."""
    key = (str(path.resolve()), str(pick_device(device)))
    with _cache_lock:
        if key not in _cache:
            _cache[key] = MiniTokenizer.from_file(path, device)
        return _cache[key]
