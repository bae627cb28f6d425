"""From what a caller gives to what the encoder is shown: tokens, pixels, coordinates and captions.

An input is known by its modality. Tokens are whole numbers ``(B, rows, cols)``; pixels are ``(B, C, H, W)``
in physical units, and go in as pixels where the model has an embedding for them, else through the tokenizer
whose tokens the model knows. What is not known is -1 among tokens, and a patch that is not finite among
pixels; the encoder does not see it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tmcodec.errors import ConditionError, GridMismatchError, TokenRangeError, VocabularyError
from tmcodec.generation.decoding import MISSING
from tmcodec.generation.tokenizers import tokenizer_of
from tmcodec.modalities import get_modality
from tmcodec.networks.generator.config import SEQUENCES, GeneratorConfig, ModalitySpec
from tmcodec.networks.generator.model import Part
from tmcodec.rasters.fill import fill_invalid
from tmcodec.texts import shown

if TYPE_CHECKING:
    from tmcodec.generation.models import LoadedGenerator

Grid = tuple[int, int]

MAX_TOKENS = 4096
"""Most tokens of an image that are generated at once: 250 MB of logits. Larger rasters go in tiles."""


@dataclass(frozen=True)
class Image:
    """One image input, checked.

    Attributes
    ----------
    spec
        Tokens or pixels of the model.
    values
        Tokens int64 ``(B, rows * cols)`` without `MISSING`, or normalised pixels ``(B, C, H, W)``.
    hidden
        Bool ``(B, rows * cols)``, True where nothing is known.
    grid
        Rows and columns.
    """

    spec: ModalitySpec
    values: Tensor
    hidden: Tensor
    grid: Grid

    def part(self) -> Part:
        """Return what the encoder takes."""
        if not bool(self.hidden.any()):
            return Part(self.spec.key, self.values, None, self.grid)
        count = self.grid[0] * self.grid[1]
        positions = torch.arange(count, device=self.values.device).expand(len(self.values), -1)
        return Part(self.spec.key, self.values, positions, self.grid, self.hidden)

    def known(self) -> Tensor:
        """Return the tokens with `MISSING` where nothing is known."""
        return self.values.masked_fill(self.hidden, MISSING)

    def items(self, some: slice) -> Image:
        """Return some of the items."""
        return replace(self, values=self.values[some], hidden=self.hidden[some])


# --------------------------------------------------------------------------- images


def image_inputs(loaded: LoadedGenerator, inputs: Mapping[str, Any]) -> dict[str, Image]:
    """Return the image inputs by modality, all of one batch and one grid.

    Raises
    ------
    ModalityError
        If a modality is unknown.
    ConditionError
        If the model does not take it, or its shape or type is wrong.
    GridMismatchError
        If two have different grids or numbers of items.
    TokenRangeError
        If a token lies outside the codebook.
    """
    images: dict[str, Image] = {}
    for name, value in inputs.items():
        if name.lower() in SEQUENCES:
            continue
        modality = get_modality(name).name
        if modality in images:
            raise ConditionError(f"{modality} is given twice; give it once")
        images[modality] = image_input(loaded, modality, value)
    check_grids({name: (len(i.values), i.grid) for name, i in images.items()})
    return images


def check_grids(found: Mapping[str, tuple[int, Grid]]) -> None:
    """Raise `GridMismatchError` unless all items have one batch size and one grid."""
    if len(set(found.values())) > 1:
        sizes = ", ".join(f"{name} {b} x ({r}, {c})" for name, (b, (r, c)) in found.items())
        raise GridMismatchError(f"inputs have different token grids: {sizes}; cut them to the same pixels")
    for name, (_, (rows, cols)) in found.items():
        if rows * cols > MAX_TOKENS:
            raise ConditionError(
                f"{name}: {rows} x {cols} tokens, {MAX_TOKENS} go at once; generate from files, in tiles"
            )


def image_input(loaded: LoadedGenerator, modality: str, value: Any) -> Image:
    """Return one image input; see `image_inputs`."""
    tensor = as_tensor(modality, value)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ConditionError(f"{modality}: {tensor.dtype} is neither tokens nor pixels")
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim == 3 and not tensor.is_floating_point():
        return _tokens(loaded, modality, tensor)
    if tensor.ndim == 4:
        return _pixels(loaded, modality, tensor.float())
    raise ConditionError(
        f"{modality}: give tokens as integers (B, rows, cols) or pixels (B, C, H, W), "
        f"not {tensor.dtype} {tuple(tensor.shape)}"
    )


def as_tensor(name: str, value: Any) -> Tensor:
    """Return an input as a tensor, from arrays of any strides and byte order, too.

    What a masked array hides is not known: `MISSING` among tokens, of two or three axes, NaN among pixels.

    Raises
    ------
    ConditionError
        If it is no array of numbers.
    """
    try:
        if isinstance(value, np.ma.MaskedArray):
            tokens = value.dtype.kind in "iu" and value.ndim < 4
            dtype, gap = (np.int64, MISSING) if tokens else (np.float32, math.nan)
            value = np.where(np.ma.getmaskarray(value), gap, value.data.astype(dtype))
        if isinstance(value, np.ndarray):
            value = np.ascontiguousarray(value, value.dtype.newbyteorder("="))
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ConditionError(
            f"{name}: {type(value).__name__} is no array of numbers; give a tensor or an array"
        ) from None


def _tokens(loaded: LoadedGenerator, modality: str, tokens: Tensor) -> Image:
    check_taken(loaded.cfg, modality)
    spec = encoder_spec(loaded.cfg, modality, "tokens")
    if spec is None:
        raise ConditionError(f"the generator takes {modality} as pixels, not as tokens; give pixels")
    if tokens.numel() == 0:
        raise ConditionError(f"{modality}: there are no tokens in {tuple(tokens.shape)}; give some")
    tokens = tokens.to(loaded.device, torch.int64)
    low, high = int(tokens.min()), int(tokens.max())
    if low < MISSING or high >= spec.vocabulary:
        raise TokenRangeError(
            f"{modality}: tokens lie in {low}..{high}, the generator knows 0..{spec.vocabulary - 1}; "
            "give tokens of its own tokenizer"
        )
    flat = tokens.flatten(1)
    hidden = flat == MISSING
    return Image(spec, flat.masked_fill(hidden, 0), hidden, (tokens.shape[1], tokens.shape[2]))


def _pixels(loaded: LoadedGenerator, modality: str, pixels: Tensor) -> Image:
    check_taken(loaded.cfg, modality)
    row, patch = get_modality(modality), loaded.cfg.patch
    bands, (height, width) = len(row.bands), pixels.shape[-2:]
    if pixels.shape[1] != bands or height % patch or width % patch or not pixels.numel():
        raise ConditionError(
            f"{modality}: pixels are (B, {bands}, H, W) with H and W multiples of {patch}, "
            f"not {tuple(pixels.shape)}"
        )
    pixels = pixels.to(loaded.device)
    finite = torch.isfinite(pixels)
    hidden = F.max_pool2d((~finite).float().amax(1, keepdim=True), patch).flatten(1) > 0
    spec = encoder_spec(loaded.cfg, modality, "pixels")
    grid = (height // patch, width // patch)
    if spec is not None:
        return Image(spec, normalise(modality, pixels.masked_fill(~finite, 0)), hidden, grid)
    spec = encoder_spec(loaded.cfg, modality, "tokens")
    assert spec is not None  # `check_taken`
    # The tokenizer looks beyond a patch: gaps are filled as a raster's are, or they would spoil neighbours.
    tok = tokenizer_of(loaded, modality)
    if row.categorical:
        _check_classes(modality, pixels[finite], len(tok.modality.classes))
    tokens = tok.encode(_filled(pixels, finite, row.mean)).to(pixels.device, torch.int64)
    return Image(spec, tokens.flatten(1), hidden, grid)


def _check_classes(modality: str, known: Tensor, classes: int) -> None:
    """Raise `ConditionError` where an id is no class: of no data, most likely."""
    ids = known.long()
    wrong = ids[(ids < 0) | (ids >= classes)]
    if wrong.numel():
        raise ConditionError(
            f"{modality}: {int(wrong[0])} is none of the classes 0..{classes - 1}; map it to one, "
            "or give NaN (or mask it) where the class is unknown"
        )


def _filled(pixels: Tensor, finite: Tensor, mean: tuple[float, ...]) -> Tensor:
    """Return the pixels with gaps filled, item by item."""
    if bool(finite.all()):
        return pixels
    items = zip(pixels.detach().cpu().numpy(), finite.cpu().numpy(), strict=True)
    return torch.from_numpy(np.stack([fill_invalid(values, valid, mean) for values, valid in items]))


def normalise(modality: str, pixels: Tensor) -> Tensor:
    """Return standardised bands ``(B, C, H, W)``, with TerraMind 1.0's statistics."""
    row = get_modality(modality)
    mean, std = (
        torch.tensor(v, dtype=torch.float32, device=pixels.device).view(-1, 1, 1) for v in (row.mean, row.std)
    )
    return (pixels - mean) / std


def encoder_spec(cfg: GeneratorConfig, modality: str, kind: str) -> ModalitySpec | None:
    """Return how the encoder takes a modality in that kind, or None."""
    spec = cfg.find(modality, kind)
    return spec if spec is not None and spec.encoder else None


def check_taken(cfg: GeneratorConfig, modality: str) -> None:
    """Raise `ConditionError` where the encoder takes a modality neither as tokens nor as pixels."""
    taken = sorted({s.modality for s in cfg.modalities if s.encoder})
    if modality not in taken:
        raise ConditionError(f"the generator takes no {modality} as input; it takes {', '.join(taken)}")


# --------------------------------------------------------------------------- coordinates and captions


def sequence_inputs(loaded: LoadedGenerator, inputs: Mapping[str, Any], batch: int) -> dict[str, Part]:
    """Return coordinates and captions as parts.

    Raises
    ------
    ConditionError
        If the model does not take them, or there are not as many as items.
    VocabularyError
        If the words of the vocabulary are not there.
    """
    parts: dict[str, Part] = {}
    for given, value in inputs.items():
        name = given.lower()
        if name not in SEQUENCES:
            continue
        spec = encoder_spec(loaded.cfg, name, "sequence")
        if spec is None:
            raise VocabularyError(f"the generator has no vocabulary of {name}; leave {name} out")
        vocabulary = vocabulary_of(loaded, name)
        items = _coordinates(value, batch) if name == "coords" else _captions(value, batch)
        words = [[] if item is None else vocabulary.encode(name, item) for item in items]
        if not any(words):
            continue
        parts[name] = _padded(spec, words, loaded.device)
    return parts


def vocabulary_of(loaded: LoadedGenerator, name: str) -> Any:
    """Return the words of coordinates or captions.

    Raises
    ------
    VocabularyError
    """
    if loaded.vocabulary is None:
        raise VocabularyError(
            f"the words of {name} are not on this computer; see docs/generation.md, or leave {name} out"
        )
    return loaded.vocabulary


def some_without(value: Any) -> bool:
    """Tell whether coordinates are given item by item, and some items have none."""
    return isinstance(value, list | tuple) and any(item is None for item in value)


def _coordinates(value: Any, batch: int) -> Sequence[tuple[float, float] | None]:
    """Return (longitude, latitude) of each item, None for those without."""
    if some_without(value):
        if len(value) != batch:
            raise ConditionError(f"coords of {len(value)} items for {batch}; give (lon, lat) or None each")
        known = [item for item in value if item is not None]
        places = iter(_coordinates(known, len(known)) if known else ())
        return [None if item is None else next(places) for item in value]
    try:
        pairs = as_tensor("coords", value).double()
    except ConditionError:
        raise ConditionError(f"coords {shown(value)}; give (longitude, latitude) in degrees") from None
    pairs = pairs[None].expand(batch, -1) if pairs.ndim == 1 else pairs
    if pairs.shape != (batch, 2):
        raise ConditionError(f"coords of shape {tuple(pairs.shape)} for {batch} items; give (lon, lat) each")
    found = [(float(lon), float(lat)) for lon, lat in pairs]
    for lon, lat in found:
        if not (math.isfinite(lon) and -180 <= lon <= 180 and math.isfinite(lat) and -90 <= lat <= 90):
            raise ConditionError(f"coords ({lon}, {lat}) lie outside -180..180, -90..90; give lon, lat")
    return found


def _captions(value: Any, batch: int) -> list[str]:
    texts = [value] * batch if isinstance(value, str) else list(value)
    if len(texts) != batch or not all(isinstance(text, str) for text in texts):
        raise ConditionError(f"{len(texts)} captions for {batch} items; give one text, or one each")
    return texts


def _padded(spec: ModalitySpec, words: list[list[int]], device: torch.device) -> Part:
    longest = max(map(len, words))
    if longest > spec.length:
        raise ConditionError(f"{spec.modality}: {longest} words, {spec.length} fit; shorten it")
    if max(chain(*words)) >= spec.vocabulary:
        raise VocabularyError(f"the words of {spec.modality} are not those of this generator; import others")
    values = torch.zeros(len(words), longest, dtype=torch.int64)
    padding = torch.ones(values.shape, dtype=torch.bool)
    for i, item in enumerate(words):
        values[i, : len(item)] = torch.tensor(item)
        padding[i, : len(item)] = False
    return Part(spec.key, values.to(device), padding=padding.to(device) if bool(padding.any()) else None)
