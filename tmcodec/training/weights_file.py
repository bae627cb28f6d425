"""From a run to the weights file that ``--tokenizer`` takes: one way for callbacks and for publishing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tmcodec.atomic import atomic_path
from tmcodec.codec.lineage import Origin, format_decodes, tokens_digest
from tmcodec.codec.terramind_weights import save_checkpoint
from tmcodec.codec.weights import save_weights
from tmcodec.errors import WeightsError
from tmcodec.networks.mini import MiniNet
from tmcodec.training.starting import SavedRun, net_of_run
from tmcodec.training.terramind_net import TerraMindNet
from tmcodec.training.terramind_start import terramind_of_run

Net = MiniNet | TerraMindNet


def rebuild(run: SavedRun) -> Net:
    """Make the network of a run, with its weights.

    Raises
    ------
    WeightsError
        If its layout is unknown, or its weights do not fit.
    """
    if run.layout == "mini":
        return net_of_run(run)
    if run.layout == "terramind":
        return terramind_of_run(run)
    raise WeightsError(f"{run.path}: unknown layout {run.layout!r}; it needs a later version of tmcodec")


def origins_of(run: SavedRun, net: Net) -> tuple[Origin, ...]:
    """Return the tokenizers whose tokens the run's network decodes.

    What decides tokens is compared bit by bit (by its SHA-256) with that of the starting point; where
    anything differs, nothing is returned.
    """
    if run.lineage is None:
        return ()
    digest = net.tokens_digest() if isinstance(net, TerraMindNet) else tokens_digest(net)
    return run.lineage.decoded_by(digest)


def write_run(
    run: SavedRun, target: Path, name: str, notes: Mapping[str, str], overwrite: bool = True
) -> tuple[Net, bytes, tuple[Origin, ...]]:
    """Write a run's weights, complete or not at all.

    Returns
    -------
    net, sha256, origins
        The network, the tokenizer's content hash, and whose tokens it decodes beside its own.

    Raises
    ------
    WeightsError
        If the run's weights do not fit its configuration.
    """
    net = rebuild(run)
    origins = origins_of(run, net)
    notes = {**notes, **format_decodes(origins)}
    with atomic_path(target, overwrite=overwrite) as temporary:
        if isinstance(net, TerraMindNet):
            sha256 = save_checkpoint(temporary, net.cfg, dict(net.state_dict()), name, notes)
        else:
            sha256 = save_weights(temporary, net, name, dict(notes))
    return net, sha256, origins


def plain(config: object) -> object:
    """Return a configuration as JSON would give it back."""
    return json.loads(json.dumps(config))
