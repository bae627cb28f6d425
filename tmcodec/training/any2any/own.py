"""Shows a network in training its own tokens among the true ones, as generation will.

A step of generation looks at what the steps before have made, and a link of a chain at what the link before
has. A network that was shown the truth alone trusts such tokens too much (exposure bias); drawing some of
what is shown from the network itself is the usual cure (scheduled sampling, arXiv 1506.03099).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tmcodec.networks.generator.model import Generator, Part
from tmcodec.training.any2any.data import Batch

CANDIDATES = 32
"""A token is drawn among so many likeliest: near enough to a nucleus, and ten times as fast."""


def show_own(net: Generator, keys: Mapping[str, str], batch: Batch, chance: float) -> Batch:
    """Return a batch in which a share of one modality's shown tokens is the network's own.

    They are drawn from what the network makes of the other modalities that are shown. The modality that
    shows most stands for a measurement and stays. Which other one, and how large a share, follows from the
    number of the batch; the batch given is left as it is.

    Parameters
    ----------
    net
        The network, as far as it has learned.
    keys
        The network's key of each modality whose tokens it takes and makes.
    batch
        Of `tmcodec.training.any2any.data.TokenBatches`.
    chance
        Share of the batches to which this happens; those that show one modality alone stay as they are.
    """
    rng = np.random.default_rng([int(batch["number"]), 2])
    shown = [m for m in batch["inputs"] if m in keys]
    if rng.random() >= chance or len(shown) < 2:
        return batch
    shown.sort(key=lambda m: batch["inputs"][m]["values"].shape[1])
    modality = shown[int(rng.integers(len(shown) - 1))]
    part = batch["inputs"][modality]
    count = part["values"].shape[1]
    columns = torch.from_numpy(rng.permutation(count)[: int(rng.integers(count + 1))])
    if not len(columns):
        return batch
    rows, cols = batch["grid"].tolist()
    others = [
        Part(keys[m], p["values"], p["positions"], (rows, cols), p["padding"])
        for m, p in batch["inputs"].items()
        if m in keys and m != modality
    ]
    with torch.no_grad():
        logits = net.predict(
            net.encode(others), keys[modality], part["positions"][:, columns], (rows, cols)
        )
    torch.clear_autocast_cache()  # older versions would use weights cast here, without gradients, again
    values = part["values"].clone()
    values[:, columns] = draw(logits, torch.Generator(logits.device).manual_seed(int(batch["number"])))
    return {**batch, "inputs": {**batch["inputs"], modality: {**part, "values": values}}}


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Draw tokens ``(B, n)`` among the likeliest of logits ``(B, n, V)``."""
    best, tokens = logits.topk(min(CANDIDATES, logits.shape[-1]))
    chosen = torch.multinomial(best.softmax(-1).flatten(0, 1), 1, generator=generator)
    return tokens.gather(-1, chosen.view(*tokens.shape[:2], 1))[..., 0]
