"""Which generators there are, and loading them by name. No torch until one is loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmcodec.codec.store import GENERATOR_FORMAT, local_weights, make_store, read_stored, stored_path
from tmcodec.errors import TokenizerNotFoundError
from tmcodec.generation.vocabulary import VOCABULARIES, OfficialVocabulary, Vocabulary, vocabulary_path
from tmcodec.networks.generator.config import SIZES, official_config
from tmcodec.texts import shown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from tmcodec.generation.generate import Generated
    from tmcodec.generation.weights import GeneratorWeights, TokenizerRef
    from tmcodec.networks.generator.config import GeneratorConfig
    from tmcodec.networks.generator.model import Generator

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"

EMBEDDED_GENERATORS = {name: WEIGHTS / f"{name}.safetensors" for name in ("mini-any2any-v1",)}
DEFAULT_GENERATOR = "mini-any2any-v1"
EMBEDDED_TRUST = 0.25
"""What its own targets count for (docs/generation.md, *Chains*): taken for true, they lead it astray."""


@dataclass(frozen=True)
class OfficialGenerator:
    """One of TerraMind 1.0's transformers; attributes as `tmcodec.codec.terramind_models.OfficialModel`."""

    name: str
    repo: str
    filename: str
    size: str
    gated: bool = False

    @property
    def config(self) -> GeneratorConfig:
        """Sizes, and all modalities that there are."""
        return official_config(self.size)


OFFICIAL_GENERATORS = {
    g.name: g
    for g in (
        OfficialGenerator(
            name=f"terramind-v1-{size}",
            repo=f"ibm-esa-geospatial/TerraMind-1.0-{size}",
            filename=f"TerraMind_v1_{size}.pt",
            size=size,
        )
        for size in SIZES
    )
}


@dataclass
class LoadedGenerator:
    """A generator ready for use.

    Attributes
    ----------
    net
        The network, on its device, for inference: its layers may have no parameters to train.
    name, sha256
        Name and identity, 32 bytes.
    cfg
        Sizes and modalities.
    tokenizers
        Whose tokens it speaks, by modality.
    vocabulary
        Words of coordinates and captions; None where it takes neither.
    device
        Where it runs.
    weights
        What it was loaded from.
    trust
        What targets that it made count for as conditions of the next, 1 being as much as what is given. A
        model of little data takes its own for truer than they are.
    """

    net: Generator
    name: str
    sha256: bytes
    cfg: GeneratorConfig
    tokenizers: dict[str, TokenizerRef]
    vocabulary: Vocabulary | None
    device: torch.device
    weights: GeneratorWeights = field(repr=False)
    trust: float = 1.0

    def generate(
        self, inputs: Mapping[str, Any], targets: str | Sequence[str], **settings: Any
    ) -> Generated:
        """Generate modalities from others.

        Parameters
        ----------
        inputs
            By modality, tokens ``(B, rows, cols)`` or pixels ``(B, C, H, W)`` in physical units.
        targets
            Modality to make, or several, in this order.
        settings
            ``decoding_steps``, ``seed``, ``decode`` and all others of `tmcodec.generation.generate.generate`,
            which says more of every parameter.

        Raises
        ------
        TmcodecError
            As `tmcodec.generation.generate.generate`.
        """
        from tmcodec.generation.generate import generate

        return generate(self, inputs, targets, **settings)

    def trainable(self) -> Generator:
        """Return the network anew in float32 on the CPU, with weights of its own that can be trained."""
        return self.weights.build(copy=True)


def load_generator(
    name: str | os.PathLike[str] = DEFAULT_GENERATOR,
    device: str = "auto",
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    precision: str = "auto",
    compile: bool = False,
) -> LoadedGenerator:
    """Load an any-to-any transformer by name or from a weights file.

    Parameters
    ----------
    name
        ``"mini-any2any-v1"``, which is embedded; an official name such as ``"terramind-v1-base"``; or the
        path of a weights file.
    device
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
    checkpoint
        Weights of an official name, ``.pt`` or ``.safetensors``. None takes those imported before, or
        fetches them from the Hugging Face Hub and imports them.
    precision
        ``"fp32"``, ``"bf16"`` or ``"auto"``: bfloat16 products where the hardware has them, except for the
        embedded model, which is small. Softmax, norms and sums of the residual stream stay in float32.
    compile
        Whether ``torch.compile`` compiles the blocks: worth its minute for many tiles on a GPU.

    Raises
    ------
    TokenizerNotFoundError, WeightsError, DeviceError, PrecisionError
    DownloadError, MissingDependencyError, TargetWriteError
        Where weights must be fetched and cannot.
    """
    from tmcodec.codec.tokenizer import pick_device
    from tmcodec.networks.terramind.inference import pick_dtype, prepare

    if not isinstance(name, str | os.PathLike):
        raise TokenizerNotFoundError(f"no generator {shown(name)}; give a name or the path of a weights file")
    name = os.fspath(name)
    where = pick_device(device)
    embedded = name in EMBEDDED_GENERATORS and checkpoint is None
    dtype = pick_dtype("fp32" if embedded and precision == "auto" else precision, where)
    weights = _open(name, checkpoint)
    net = weights.build().to(where).requires_grad_(False)
    if compile:
        net.autocast = dtype if dtype.itemsize == 2 else None
        net.compile_blocks()
    elif dtype.itemsize == 2 if where.type != "cpu" else not embedded:
        # Cast once: an autocast keeps what it has cast of trained weights alone, and would cast in each pass.
        net = prepare(net, dtype)
    words = any(spec.kind == "sequence" for spec in weights.config.modalities)
    return LoadedGenerator(
        net, weights.name, weights.sha256, weights.config, dict(weights.tokenizers),
        Vocabulary() if words else None, where, weights, EMBEDDED_TRUST if embedded else 1.0,
    )  # fmt: skip


def _open(name: str, checkpoint: str | os.PathLike[str] | None) -> GeneratorWeights:
    """Open the weights given, embedded, imported before, or fetched now."""
    from tmcodec.generation.weights import open_weights

    if name in OFFICIAL_GENERATORS:
        official = OFFICIAL_GENERATORS[name]
        if checkpoint is not None:
            return open_weights(Path(checkpoint), name, official.config)
        if not stored_path(name).is_file():
            return pull_generator(name)
        return open_weights(stored_path(name), name, official.config)
    if checkpoint is not None:
        raise TokenizerNotFoundError(
            f"checkpoint goes with one of {', '.join(OFFICIAL_GENERATORS)}, not with {name!r}; "
            "give the file as the name"
        )
    return open_weights(find_generator(name))


def find_generator(name: str) -> Path:
    """Return the weights file of an embedded or imported name, or of a path; nothing is fetched.

    Raises
    ------
    TokenizerNotFoundError
        If `name` is none of them.
    """
    if name in EMBEDDED_GENERATORS:
        path = EMBEDDED_GENERATORS[name]
        if path.is_file():
            return path
        raise TokenizerNotFoundError(f"{path.name} is not in this package; reinstall tmcodec")
    return local_weights(
        name, OFFICIAL_GENERATORS, "generator", (*EMBEDDED_GENERATORS, *OFFICIAL_GENERATORS)
    )


# --------------------------------------------------------------------------- fetching and importing


def pull_generator(name: str) -> GeneratorWeights:
    """Fetch an official transformer from the Hub (or its cache) and import it.

    Raises
    ------
    TokenizerNotFoundError
        If `name` is not official.
    DownloadError, MissingDependencyError, WeightsError, TargetWriteError
    """
    if name not in OFFICIAL_GENERATORS:
        raise TokenizerNotFoundError(
            f"no official generator {name!r}; choose one of {', '.join(OFFICIAL_GENERATORS)}"
        )
    from tmcodec.codec.hub import fetch_with_source
    from tmcodec.generation.weights import import_generator

    official = OFFICIAL_GENERATORS[name]
    make_store()
    path, notes = fetch_with_source(official)
    return import_generator(path, stored_path(name), name, official.config, notes)


def import_generator_file(path: str | os.PathLike[str], name: str) -> GeneratorWeights:
    """Convert a checkpoint to safetensors under the name of an official transformer.

    Raises
    ------
    WeightsError, TargetWriteError
    """
    from tmcodec.generation.weights import import_generator

    make_store()
    return import_generator(Path(path), stored_path(name), name, OFFICIAL_GENERATORS[name].config)


def generator_of_file(path: Path) -> OfficialGenerator | None:
    """Return the generator whose checkpoint has this file name (with any suffix), or None."""
    for official in OFFICIAL_GENERATORS.values():
        if path.stem in (Path(official.filename).stem, official.name):
            return official
    header = read_stored(path, GENERATOR_FORMAT) if path.suffix == ".safetensors" else None
    return None if header is None else OFFICIAL_GENERATORS.get(header.notes.get("name", ""))


def pull_vocabulary(name: str) -> Path:
    """Fetch the words of coordinates or captions; return where they were stored.

    Raises
    ------
    DownloadError, MissingDependencyError, VocabularyError, TargetWriteError
    """
    from tmcodec.codec.hub import fetch

    make_store()
    return import_vocabulary(fetch(VOCABULARIES[name]), VOCABULARIES[name])


def import_vocabulary(path: Path, official: OfficialVocabulary) -> Path:
    """Store a vocabulary file under its name, after reading it; return where.

    Raises
    ------
    VocabularyError, MissingDependencyError, TargetWriteError
    """
    from tmcodec.atomic import atomic_path
    from tmcodec.generation.vocabulary import read_vocabulary

    read_vocabulary(path)
    target = vocabulary_path(official.name)
    make_store()
    with atomic_path(target, overwrite=True) as temporary:
        temporary.write_bytes(path.read_bytes())
    return target
