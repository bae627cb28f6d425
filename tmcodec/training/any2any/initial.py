"""First weights that make attention look at the same place."""

from __future__ import annotations

import torch

from tmcodec.networks.generator.layers import Block, DecoderBlock
from tmcodec.networks.generator.model import Generator


@torch.no_grad()
def align_attention(net: Generator, gain: float) -> None:
    """Let the keys of each attention begin as its queries, both scaled by `gain`.

    Then alike vectors attend to one another from the first step. What is alike at first are positions, so a
    mask token looks at what is shown around its place; otherwise hundreds of steps pass until a network finds
    that out. After Trockman and Kolter's mimetic initialisation (arXiv 2305.09828), which does it for
    self-attention.

    Parameters
    ----------
    net
        Fresh.
    gain
        Above 1 sharpens: logits grow with its square.
    """
    for block in net.encoder:
        assert isinstance(block, Block)
        _alike(block.attn.qkv.weight, gain)
    for block in net.decoder:
        assert isinstance(block, DecoderBlock)
        _alike(block.self_attn.qkv.weight, gain)
        queries, keys = block.cross_attn.q.weight, block.cross_attn.kv.weight
        queries.mul_(gain)
        keys[: len(queries)] = queries


def _alike(qkv: torch.Tensor, gain: float) -> None:
    """Scale the queries' third of a matrix, and copy it to the keys' third."""
    dim = len(qkv) // 3
    qkv[:dim] *= gain
    qkv[dim : 2 * dim] = qkv[:dim]
