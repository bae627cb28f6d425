"""Files as conditions: layers of token files, and rasters as pixels, read tile by tile."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from tmcodec.codec.encode import encode, reflect_to_patch
from tmcodec.codec.report import Stopwatch
from tmcodec.errors import ConditionError, GridMismatchError, LayerNotFoundError, LimitExceededError
from tmcodec.generation.conditions import check_taken, encoder_spec
from tmcodec.generation.decoding import MISSING
from tmcodec.generation.tokenizers import check_layer, tokenizer_of
from tmcodec.modalities import MODALITIES
from tmcodec.rasters import RasterSource, Window, fill_invalid, open_raster
from tmcodec.rasters.windows import IDENTITY, Transform
from tmcodec.texts import printable
from tmcodec.tokenfile import Layer, TokenFile

if TYPE_CHECKING:
    from tmcodec.codec.tokenizer import Tokenizer
    from tmcodec.generation.models import LoadedGenerator

Mask = npt.NDArray[np.bool_]

HASHED = 2**16
"""Chunks whose checksums are hashed at once."""


@dataclass(frozen=True)
class MapGrid:
    """Where a raster lies.

    Attributes
    ----------
    width, height
        In pixels.
    crs
        ``"EPSG:n"``, WKT or None.
    transform
        Affine 6-tuple, None for the identity.
    """

    width: int
    height: int
    crs: str | None
    transform: Transform | None

    def same(self, other: MapGrid) -> bool:
        """Whether pixels coincide, to a thousandth of one."""
        if (self.width, self.height, self.crs) != (other.width, other.height, other.crs):
            return False
        one, two = self.transform or IDENTITY, other.transform or IDENTITY
        pixel = max(map(abs, (one[0], one[1], one[3], one[4])))
        # Coefficients of columns and rows add up over the whole raster.
        extent = (self.width, self.height, 1, self.width, self.height, 1)
        return all(abs(a - b) * n <= pixel * 1e-3 for a, b, n in zip(one, two, extent, strict=True))

    def __str__(self) -> str:
        a, b, c, d, e, f = self.transform or IDENTITY
        size = f"{self.width} x {self.height} pixels of {math.hypot(a, d):g} x {math.hypot(b, e):g}"
        return f"{size} at ({c:g}, {f:g}) in {_short(self.crs)}"


class Source(Protocol):
    """One condition that is read in parts; windows are in tokens."""

    name: str
    modality: str
    map_grid: MapGrid
    time: datetime | None
    masked: bool
    provenance: str

    def tile(self, window: Window) -> npt.NDArray[np.generic]:
        """Return tokens ``(rows, cols)`` or pixels ``(C, H, W)`` as `image_input` takes them."""
        ...

    def valid(self, window: Window) -> Mask | None:
        """Return which pixels ``(h, w)`` within the raster are valid, None where all are."""
        ...


def may_be_masked(nodata: float | None, mask_kind: str, dtype: str) -> bool:
    """Tell whether pixels may be invalid: by a nodata value, a mask band, or NaN, which needs neither."""
    return nodata is not None or mask_kind == "mask" or np.dtype(dtype).kind == "f"


def has_no_data(layer: Layer, time: int) -> bool:
    """Tell whether a class map has gaps: class 0 marks them, without a nodata value."""
    modality, grid = MODALITIES.get(layer.meta.modality), layer.meta.grid
    if modality is None or not modality.zero_is_no_data:
        return False
    found = layer.filled(time=time)
    places = ((col * grid.chunk, row * grid.chunk, *grid.token_shape(row, col)[::-1]) for row, col in found)
    return len(found) < grid.chunks or any(layer.valid(place, time) is not None for place in places)


class LayerSource:
    """A layer of an open token file at one time; the attributes are those of `Source`."""

    def __init__(self, name: str, layer: Layer, time: int) -> None:
        self.name, self.layer, self._layer, self._time = name, layer.meta.name, layer, time
        meta = layer.meta
        self.modality = meta.modality
        self.map_grid = MapGrid(meta.width, meta.height, meta.crs, meta.transform)
        self.patch = meta.patch
        layer.empty((0, 0, 1, 1), time)  # refuses a time that is not there
        self.time = meta.times[time]
        self.masked = may_be_masked(meta.nodata, meta.mask_kind, meta.dtype) or has_no_data(layer, time)
        self.provenance = f"{meta.modality}:{meta.tokenizer}:{layer_hash(layer, time)}"

    def tile(self, window: Window) -> npt.NDArray[np.int32]:
        """Return the tokens, `MISSING` where no pixel of a token is valid."""
        place = (window.col, window.row, window.width, window.height)
        read = self._layer.read(place, self._time)
        tokens = read.tokens.copy()
        tokens[read.empty] = MISSING
        valid = self.valid(window) if read.valid is not None else None
        if valid is not None:
            tokens[~some_valid(valid, self.patch)] = MISSING
        return tokens

    def valid(self, window: Window) -> Mask | None:
        """Return which pixels have a valid band."""
        place = (window.col, window.row, window.width, window.height)
        mask = self._layer.valid(place, self._time)
        return None if mask is None else any_band(mask)


class PixelSource:
    """An open raster that goes in as pixels; the attributes are those of `Source`."""

    def __init__(self, name: str, raster: RasterSource, patch: int) -> None:
        self.name, self._raster, self.patch = name, raster, patch
        self.modality = raster.modality.name
        self.map_grid = MapGrid(raster.width, raster.height, raster.crs, raster.transform)
        self.time = raster.time
        self.masked = may_be_masked(raster.nodata, raster.mask_kind, raster.dtype)
        self.provenance = f"{self.modality}:pixels"

    def tile(self, window: Window) -> npt.NDArray[np.float32]:
        """Return physical values, gaps filled, NaN in patches without any valid pixel."""
        values, valid = self._raster.read(self._pixels(window))
        filled = reflect_to_patch(fill_invalid(values, valid, self._raster.modality.mean), self.patch)
        gone = ~some_valid(any_band(valid), self.patch)
        if gone.any():
            filled = filled.copy()
            filled[:, gone.repeat(self.patch, 0).repeat(self.patch, 1)] = np.nan
        return filled

    def valid(self, window: Window) -> Mask | None:
        """Return which pixels have a valid band."""
        valid = any_band(self._raster.read(self._pixels(window))[1])
        return None if valid.all() else valid

    def _pixels(self, window: Window) -> Window:
        col, row = window.col * self.patch, window.row * self.patch
        width = min(window.width * self.patch, self._raster.width - col)
        return Window(col, row, width, min(window.height * self.patch, self._raster.height - row))


def some_valid(valid: Mask, patch: int) -> Mask:
    """Return which patches ``(rows, cols)`` have a valid pixel."""
    h, w = valid.shape
    rows, cols = -(-h // patch), -(-w // patch)
    padded = np.zeros((rows * patch, cols * patch), np.bool_)
    padded[:h, :w] = valid
    found: Mask = np.any(padded.reshape(rows, patch, cols, patch), axis=(1, 3))
    return found


def any_band(valid: Mask) -> Mask:
    """Return which pixels ``(h, w)`` have a valid band ``(C, h, w)``."""
    found: Mask = np.any(valid, axis=0)
    return found


def layer_hash(layer: Layer, time: int) -> str:
    """Return a hash of a layer's contents at one time: of its tokenizer's hash and its chunks' checksums."""
    digest = hashlib.sha256(layer.meta.weights_sha256)
    digest.update(np.array([layer.meta.width, layer.meta.height], "<u8").tobytes())
    chunks, index = layer.meta.grid.chunks, layer.index
    for first in range(0, chunks, HASHED):
        # 0 for an empty chunk, else its checksum and one more, in 32 bits.
        sums = np.zeros(min(HASHED, chunks - first), "<u8")
        at = time * chunks + first
        start, stop = np.searchsorted(index.ordinals, [at, at + len(sums)])
        sums[index.ordinals[start:stop] - at] = index.crcs[start:stop] + np.uint32(1)
        digest.update(sums.tobytes())
    return digest.hexdigest()[:16]


# --------------------------------------------------------------------------- opening


def is_token_file(path: str) -> bool:
    """Tell token files from rasters, by their first bytes or, where those are out of reach, their suffix."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x89TMC"
    except OSError:
        return path.lower().endswith(".tmc")


def split_modality(src: str | os.PathLike[str]) -> tuple[str, str | None]:
    """Split ``"S2L2A=scene.tif"`` into the path and the modality, None where none is named."""
    text = os.fspath(src)
    name, equals, path = text.partition("=")
    if equals and path and name.upper() in MODALITIES and not Path(text).exists():
        return path, name.upper()
    return text, None


def open_layers(
    loaded: LoadedGenerator,
    path: str | os.PathLike[str],
    stack: ExitStack,
    *,
    name: str,
    max_pixels: int,
    layers: Sequence[str] | None = None,
    time: int = 0,
    given: Mapping[str, Tokenizer] | None = None,
) -> list[LayerSource]:
    """Open the layers of a token file, all (None) or those named, and check the generator knows their tokens.

    `given` are loaded tokenizers by modality, whose own tokens count as those that they decode.

    Raises
    ------
    TokenFileError
        If the file is bad, or has no layer of that name.
    ConditionError
        If the generator takes no such tokens.
    TokenizerMismatchError
        If they are of another tokenizer.
    LimitExceededError
        If they have more than `max_pixels` pixels.
    """
    file = stack.enter_context(TokenFile.open(path, max_pixels=max_pixels))
    found = []
    for key in file if layers is None else [name for name in layers if name in file]:
        layer = file[key]
        spec = encoder_spec(loaded.cfg, layer.meta.modality, "tokens")
        called, modality = printable(key), printable(layer.meta.modality)
        if spec is None:
            raise ConditionError(
                f"{name}: the generator takes no {modality} tokens, as layer {called} has; "
                "choose others with --layer"
            )
        check_layer(loaded, layer.meta, given or {})
        if layer.meta.patch != loaded.cfg.patch or layer.meta.codebook_size != spec.vocabulary:
            raise ConditionError(
                f"{name}: layer {called} has {layer.meta.codebook_size} tokens of {layer.meta.patch} pixels, "
                f"the generator {spec.vocabulary} of {loaded.cfg.patch}; encode with its own tokenizer"
            )
        refuse_large(layer.meta.width, layer.meta.height, max_pixels)
        found.append(LayerSource(f"{name} ({key})", layer, time))
    return found


def refuse_large(width: int, height: int, max_pixels: int) -> None:
    """Raise where a raster has more pixels than the caller allows, before anything goes through them.

    Raises
    ------
    LimitExceededError
    """
    if width * height > max_pixels:
        raise LimitExceededError(
            f"{width} x {height} pixels are more than the limit of {max_pixels}; "
            "raise max_pixels if you trust the file"
        )


def check_sources(sources: Sequence[Source]) -> None:
    """Refuse sources that do not lie on the same pixels, or are of the same modality.

    Raises
    ------
    ConditionError
        If there is none, or two are of one modality.
    GridMismatchError
        If footprints or resolutions differ.
    """
    if not sources:
        raise ConditionError("no layer to generate from; choose one that the files have with --layer")
    first, seen = sources[0], dict[str, str]()
    for source in sources:
        if source.modality in seen:
            raise ConditionError(
                f"{seen[source.modality]} and {source.name} are both {source.modality}; give one of them"
            )
        seen[source.modality] = source.name
        if not first.map_grid.same(source.map_grid):
            raise GridMismatchError(
                f"{first.name} has {first.map_grid}, but {source.name} {source.map_grid}; "
                "bring them to the same pixels first"
            )


def _short(crs: str | None) -> str:
    return "no CRS" if crs is None else crs if len(crs) < 20 else "another CRS"


@dataclass
class Opener:
    """Opens sources; its attributes are parameters of `generate_files`, and where drafts go."""

    loaded: LoadedGenerator
    given: Mapping[str, Tokenizer]
    stage: Path
    stack: ExitStack
    watch: Stopwatch
    layers: Sequence[str]
    time: int
    s2_offset: str
    scale: float | None
    max_pixels: int

    def open(self, paths: Sequence[str | os.PathLike[str]]) -> list[Source]:
        """Open and check all sources.

        Raises
        ------
        TmcodecError
        """
        sources: list[Source] = []
        for path in paths:
            file, modality = split_modality(path)
            sources += self._layers(file, modality) if is_token_file(file) else [self._raster(file, modality)]
        check_sources(sources)
        found = {source.layer for source in sources if isinstance(source, LayerSource)}
        missing = [name for name in self.layers if name not in found]
        if missing:
            known = ", ".join(sorted(found)) or "none"
            raise LayerNotFoundError(f"no source has a layer {missing[0]!r}; they have {known}")
        return sources

    def _layers(self, path: str, modality: str | None) -> list[LayerSource]:
        """Open the layers of a token file, those of one modality where it is named before the path."""
        name, layers = Path(path).name, self.layers or None
        if modality is not None:
            with TokenFile.open(path) as file:
                layers = [key for key in file if file[key].meta.modality == modality]
                held = ", ".join(sorted({layer.meta.modality for layer in file.layers.values()}))
            if not layers:
                raise ConditionError(f"{name}: it holds {held}, not {modality}; name one of these, or none")
            own = ", ".join(layers)
            layers = [key for key in layers if key in self.layers] if self.layers else layers
            if not layers:
                raise ConditionError(
                    f"{name}: --layer names none of its {modality} layers ({own}); name one, or leave it out"
                )
        return open_layers(
            self.loaded, path, self.stack, name=name, max_pixels=self.max_pixels, layers=layers,
            time=self.time, given=self.given,
        )  # fmt: skip

    def _raster(self, path: str, modality: str | None) -> Source:
        """Open a raster as pixels where the generator takes them, else encode it."""
        name = Path(path).name
        raster = self.stack.enter_context(
            open_raster(path, modality, s2_offset=self.s2_offset, scale=self.scale)
        )
        refuse_large(raster.width, raster.height, self.max_pixels)
        found = raster.modality.name
        if encoder_spec(self.loaded.cfg, found, "pixels") is not None:
            return PixelSource(name, raster, self.loaded.cfg.patch)
        check_taken(self.loaded.cfg, found)
        draft = self.stage / f"source-{found}.tmc"
        with self.watch("encode"):
            encode(
                path, draft, modality=found, tokenizer=tokenizer_of(self.loaded, found, self.given),
                s2_offset=self.s2_offset, scale=self.scale, balance=False, exact=True, overwrite=True,
            )  # fmt: skip
        return open_layers(
            self.loaded, draft, self.stack, name=name, max_pixels=self.max_pixels, given=self.given
        )[0]
