"""Starting points and weights files of TerraMind's layout."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from tmcodec.codec.lineage import Lineage, Origin, parse_decodes
from tmcodec.codec.terramind_models import OFFICIAL, OfficialModel
from tmcodec.codec.terramind_weights import (
    DECODER,
    ENCODER,
    Checkpoint,
    halves_of,
    identity,
    open_checkpoint,
    tensors_digest,
)
from tmcodec.codec.weights import check_shapes
from tmcodec.errors import ConfigError, WeightsError
from tmcodec.networks.terramind.config import TerraMindConfig
from tmcodec.networks.terramind.net import expected_shapes
from tmcodec.training.starting import SavedRun, find_start, read_run
from tmcodec.training.terramind_net import TerraMindNet


def config_of(raw: Any, path: Path = Path("the checkpoint")) -> TerraMindConfig:
    """Rebuild a configuration from JSON.

    Raises
    ------
    WeightsError
        If it is malformed.
    """
    try:
        return TerraMindConfig.from_dict(raw)
    except (TypeError, ValueError, AttributeError) as err:
        raise WeightsError(f"{path}: the configuration in it is malformed ({err})") from err


def terramind_of_run(run: SavedRun) -> TerraMindNet:
    """Rebuild the network of a run's checkpoint, with the averaged weights where there are any.

    Raises
    ------
    WeightsError
        If it is of another layout, or damaged.
    """
    if run.layout != "terramind":
        raise WeightsError(f"{run.path}: it is of layout {run.layout}, not of TerraMind's")
    cfg = config_of(run.config, run.path)
    check_shapes(expected_shapes(cfg), {k: tuple(v.shape) for k, v in run.weights.items()}, run.path)
    return filled(cfg, run.weights)


def filled(cfg: TerraMindConfig, tensors: dict[str, Tensor]) -> TerraMindNet:
    """Return a network with these weights, in float32."""
    net = TerraMindNet(cfg)
    net.load_state_dict({k: v.float() for k, v in tensors.items()})
    return net


def open_terramind(start: str, wanted: TerraMindConfig | None) -> tuple[TerraMindNet, Lineage]:
    """Open a starting point.

    Parameters
    ----------
    start
        Imported official name, ``.pt`` or ``.safetensors`` in official keys, or a run's ``.ckpt``.
    wanted
        Sizes that it must have; it also tells what a plain official file is that does not say so itself.

    Returns
    -------
    net, lineage
        The network, and whose tokens it makes.

    Raises
    ------
    ConfigError
        If there is no such file, or it has other sizes.
    TokenizerNotFoundError, WeightsError
    """
    if start.endswith(".ckpt"):
        net, origins = _of_run(Path(start))
    else:
        opened = _opened(find_start(start), wanted)
        tensors = {k: v for which in (ENCODER, DECODER) for k, v in opened.half(which).items()}
        net = filled(opened.config, tensors)
        own = Origin(opened.name, opened.sha256)
        origins = (own, *parse_decodes(opened.notes, opened.path))
    if wanted is not None and net.cfg != wanted:
        raise ConfigError(f"model.start: {start} is not of model.net's sizes; leave model.net out")
    return net, Lineage(net.tokens_digest(), origins)


def _of_run(path: Path) -> tuple[TerraMindNet, tuple[Origin, ...]]:
    if not path.is_file():
        raise ConfigError(f"model.start: no checkpoint {path}; check the path")
    run = read_run(path)
    net = terramind_of_run(run)
    own = Origin(path.stem, identity_of(net))
    return net, (own, *(run.lineage.decoded_by(net.tokens_digest()) if run.lineage else ()))


def _opened(path: Path, wanted: TerraMindConfig | None) -> Checkpoint:
    """Open a checkpoint; a plain one is what its name, its tensors or the wanted sizes say."""
    if wanted is None:
        return open_checkpoint(path)
    known = OFFICIAL.get(f"terramind-v1-{wanted.modality.lower()}")
    if known is not None and known.config == wanted:
        return open_checkpoint(path, known)
    try:
        return open_checkpoint(path)
    except WeightsError:
        if known is None:
            raise
        return open_checkpoint(path, _named(known, path.stem, wanted))


def _named(known: OfficialModel, name: str, config: TerraMindConfig) -> OfficialModel:
    """Return a model of other sizes, for a plain file that states none."""
    return replace(known, name=name, config=config)


def identity_of(net: TerraMindNet) -> bytes:
    """Return the content hash that a weights file of this network has."""
    halves = halves_of(net.state_dict())
    return identity(net.cfg, {which: tensors_digest(tensors) for which, tensors in halves.items()})
