"""Which tokenizers there are, and loading them by name. No torch until one is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tmcodec.codec.store import FORMAT, local_weights, make_store, stored_path
from tmcodec.codec.terramind_models import OFFICIAL, OfficialModel, model_of_file
from tmcodec.errors import TokenizerNotFoundError, WeightsError
from tmcodec.modalities import MODALITIES
from tmcodec.texts import shown

if TYPE_CHECKING:
    from tmcodec.codec.terramind_weights import Checkpoint
    from tmcodec.codec.tokenizer import Tokenizer

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True)
class Model:
    """A tokenizer in the package.

    Attributes
    ----------
    name, modality
        Its name, and the key of the modality table.
    path
        Weights file.
    """

    name: str
    modality: str
    path: Path

    @property
    def size(self) -> int:
        """Size of the weights file in bytes."""
        return self.path.stat().st_size


VERSIONS = {
    "S2L2A": (2,), "S2L1C": (2, 3), "S1GRD": (2,), "S1RTC": (2,), "NDVI": (2,), "LULC": (2,), "DEM": (1, 2)
}  # fmt: skip
"""Generations of embedded weights where it is not the first alone; files name the one that made them."""

RETIRED = frozenset(f"mini-{m.lower()}-v1" for m, known in VERSIONS.items() if 1 not in known)
"""Replaced before the first release. Their token files can be read, and decoded with the old weights file."""


def _embedded(modality: str, version: int) -> Model:
    name = f"mini-{modality.lower()}-v{version}"
    return Model(name, modality, WEIGHTS / f"{name}.safetensors")


EMBEDDED = {
    model.name: model for m in MODALITIES for model in (_embedded(m, v) for v in VERSIONS.get(m, (1,)))
}


def default_model(modality: str) -> str:
    """Return the name of the newest embedded tokenizer of a modality."""
    return _embedded(modality, VERSIONS.get(modality, (1,))[-1]).name


def looks_at_tiles(name: str) -> bool:
    """Tell whether tokens may depend on the tile that they were encoded in: those of the package do not."""
    return name not in EMBEDDED and name not in RETIRED


def find_weights(name: str) -> Path:
    """Return the weights file of an embedded or imported name, or of a path; nothing is fetched.

    Raises
    ------
    TokenizerNotFoundError
        If `name` is none of them.
    """
    if name in EMBEDDED:
        return EMBEDDED[name].path
    if name in RETIRED:
        newer = f"{name.rpartition('-')[0]}-v2"
        raise TokenizerNotFoundError(
            f"{name} was replaced by {newer} before the first release; "
            "encode the raster again, or give the old weights file with --tokenizer"
        )
    return local_weights(name, OFFICIAL, "tokenizer", (*EMBEDDED, *OFFICIAL))


def texture_path(weights: Path) -> Path:
    """Return where the texture of a weights file lies, if there is one (`tmcodec.codec.textures`)."""
    return weights.parent / "textures" / weights.name


def load_tokenizer(
    name: str | os.PathLike[str],
    device: str = "auto",
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    precision: str = "auto",
    tile: int = 256,
    compile: bool = False,
) -> Tokenizer:
    """Load a tokenizer by name or from a weights file.

    Parameters
    ----------
    name
        An embedded name such as ``"mini-s2l2a-v2"``, an official one such as ``"terramind-v1-s2l2a"``, or
        the path of a weights file.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    checkpoint
        Weights of an official name, ``.pt`` or ``.safetensors``. None takes those imported before, or
        fetches them from the Hugging Face Hub and imports them.
    precision
        ``"fp32"``, ``"bf16"`` or ``"auto"``, for TerraMind's tokenizers (the others run in float32): auto
        is float32 for encoding and, where the hardware has it, bfloat16 for decoding.
    tile
        For TerraMind's tokenizers: side in pixels of the tiles that rasters are cut into, 256 or 224.
    compile
        For TerraMind's tokenizers: whether the networks go through ``torch.compile``.

    Raises
    ------
    TokenizerNotFoundError, WeightsError, DeviceError, PrecisionError, ShapeError
    DownloadError, MissingDependencyError, TargetWriteError
        Where weights must be fetched and cannot.
    """
    from tmcodec.networks.terramind.inference import check_precision

    if not isinstance(name, str | os.PathLike):
        raise TokenizerNotFoundError(f"no tokenizer {shown(name)}; give a name or the path of a weights file")
    check_precision(precision)  # a typing error is one also where the precision is not used
    name = os.fspath(name)
    if name in OFFICIAL:
        opened = _open_official(OFFICIAL[name], checkpoint)
        from tmcodec.codec.terramind import TerraMindTokenizer

        return TerraMindTokenizer(opened, device, precision, tile, compile)
    if checkpoint is not None:
        raise TokenizerNotFoundError(
            f"checkpoint goes with one of {', '.join(OFFICIAL)}, not with {name!r}; give the file as the name"
        )
    path = find_weights(name)
    if _is_mini(path):
        from tmcodec.codec.tokenizer import cached

        return cached(path, device)
    from tmcodec.codec.terramind import TerraMindTokenizer
    from tmcodec.codec.terramind_weights import open_checkpoint

    return TerraMindTokenizer(open_checkpoint(path), device, precision, tile, compile)


def _open_official(model: OfficialModel, checkpoint: str | os.PathLike[str] | None) -> Checkpoint:
    """Open the weights given, imported before, or fetched now."""
    from tmcodec.codec.terramind_weights import open_checkpoint

    if checkpoint is not None:
        return open_checkpoint(Path(checkpoint), model)
    if stored_path(model.name).is_file():
        return open_checkpoint(stored_path(model.name), model)
    return pull(model.name)


def _is_mini(path: Path) -> bool:
    """Tell whether a file holds a small tokenizer; what is unreadable is for its loader to refuse."""
    if path.suffix != ".safetensors":
        return False
    from tmcodec.codec.terramind_weights import read_notes

    notes = read_notes(path)
    plain = "format" not in notes and "config" not in notes
    return not plain and notes.get("format") != FORMAT


def pull(name: str) -> Checkpoint:
    """Fetch an official tokenizer from the Hub (or its cache) and import it.

    Raises
    ------
    TokenizerNotFoundError
        If `name` is not official.
    DownloadError, MissingDependencyError, WeightsError, TargetWriteError
    """
    if name not in OFFICIAL:
        raise TokenizerNotFoundError(f"no official tokenizer {name!r}; choose one of {', '.join(OFFICIAL)}")
    from tmcodec.codec.hub import fetch_with_source
    from tmcodec.codec.terramind_weights import import_checkpoint

    model = OFFICIAL[name]
    make_store()
    path, notes = fetch_with_source(model)
    return import_checkpoint(path, stored_path(name), model, notes)


def import_weights(path: str | os.PathLike[str], name: str | None = None) -> Checkpoint:
    """Convert a checkpoint to safetensors under the name of an official tokenizer, for `load_tokenizer`.

    Parameters
    ----------
    path
        ``.pt`` or ``.safetensors``.
    name
        E.g. ``"terramind-v1-s2l2a"``; None where the file has its official name, or was imported before.

    Raises
    ------
    TokenizerNotFoundError, WeightsError, TargetWriteError
    """
    if name is not None and name not in OFFICIAL:
        raise TokenizerNotFoundError(f"no official tokenizer {name!r}; choose one of {', '.join(OFFICIAL)}")
    from tmcodec.codec.terramind_weights import import_checkpoint, open_checkpoint

    source = Path(path)
    if source.is_file() and _is_mini(source):
        raise WeightsError(f"{source}: weights of tmcodec's own formats need no import; "
                           "pass the file itself where a tokenizer or model is asked for")
    model = OFFICIAL[name] if name is not None else model_of_file(source)
    if model is None:
        found = open_checkpoint(source).name
        if found not in OFFICIAL:
            raise TokenizerNotFoundError(
                f"{source} is {found}, no official tokenizer; give its name with --as"
            )
        model = OFFICIAL[found]
    make_store()
    return import_checkpoint(source, stored_path(model.name), model)
