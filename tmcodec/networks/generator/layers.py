"""Layers of the any-to-any transformer; names of submodules are those of the official checkpoints' keys.

Pre-norm blocks with PyTorch's scaled dot product attention. Masks are True where a key may be seen. Norms
have no trained bias, and yet a buffer of that name, which the checkpoints store.

Legend: B samples, N tokens of the context, M of the queries, D = ``dim``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tmcodec.networks.generator.config import GeneratorConfig
from tmcodec.networks.linear import Linear

EPS = 1e-6

KeyValue = tuple[Tensor, Tensor]
"""Keys and values of attention, ``(B, heads, N, D / heads)`` each."""


class LayerNorm(nn.Module):
    """Normalisation with a trained weight; the bias is a buffer, zero where it was never stored."""

    bias: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.register_buffer("bias", torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, EPS)


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias=bias)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class GatedMlp(nn.Module):
    """SwiGLU (arXiv 2002.05202)."""

    def __init__(self, dim: int, hidden: int, bias: bool) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden, bias=bias)
        self.fc2 = Linear(hidden, dim, bias=bias)
        self.fc3 = Linear(dim, hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


def _mlp(cfg: GeneratorConfig) -> nn.Module:
    return (GatedMlp if cfg.gated else Mlp)(cfg.dim, cfg.hidden, cfg.biases)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """Return attention ``(B, heads, M, d)``; queries that see nothing get zeros."""
    if k.shape[2] == 0:
        return torch.zeros_like(q)
    if mask is None and not causal and _plain_is_faster(q):
        return torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), -1) @ v
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
    if mask is None:
        return mixed
    # Kernels differ in what a row of masked keys gives; NaN must not spread.
    return torch.where(mask.any(-1, keepdim=True), mixed, 0.0)


def _plain_is_faster(q: Tensor) -> bool:
    """Tell where products and a softmax beat the fused kernel: training in bfloat16 on a CPU, 2.7 times."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled()


@dataclass
class Segment:
    """Queries that attend to one another: those of one target.

    Attributes
    ----------
    size
        How many; segments follow one another.
    mask
        Bool, broadcastable to ``(B, heads, size, size)``: True where a key may be seen. None: all.
    causal
        Whether each sees itself and earlier ones alone; not together with a mask.
    """

    size: int
    mask: Tensor | None = None
    causal: bool = False


class Attention(nn.Module):
    """Self-attention, within segments; ``(B, N, D)`` to the same."""

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim, bias=bias)
        self.proj = Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, segments: list[Segment]) -> Tensor:
        q, k, v = self._split(x)
        parts, start = [], 0
        for segment in segments:
            own = slice(start, start + segment.size)
            start += segment.size
            parts.append(_attend(q[:, :, own], k[:, :, own], v[:, :, own], segment.mask, segment.causal))
        return self._join(parts[0] if len(parts) == 1 else torch.cat(parts, 2))

    def extend(self, x: Tensor, past: KeyValue | None) -> tuple[Tensor, KeyValue]:
        """Attend from new tokens ``(B, n, D)`` to earlier ones and themselves, causally if `past` is None.

        Returns the result and the keys and values of all tokens so far.
        """
        q, k, v = self._split(x)
        causal = past is None
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        return self._join(_attend(q, k, v, None, causal)), (k, v)

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        batch, count, dim = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return q, k, v

    def _join(self, mixed: Tensor) -> Tensor:
        return self.proj(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Attention from queries ``(B, M, D)`` to a context ``(B, N, D)``."""

    def __init__(self, dim: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(dim, dim, bias=bias)
        self.kv = Linear(dim, 2 * dim, bias=bias)
        self.proj = Linear(dim, dim, bias=bias)

    def keys(self, context: Tensor) -> KeyValue:
        """Return keys and values of a context, which many queries can share."""
        batch, count, dim = context.shape
        kv = self.kv(context).view(batch, count, 2, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        k, v = kv.unbind(0)
        return k, v

    def forward(self, x: Tensor, keys: KeyValue, mask: Tensor | None) -> Tensor:
        batch, count, dim = x.shape
        q = self.q(x).view(batch, count, self.heads, dim // self.heads).transpose(1, 2)
        return self.proj(_attend(q, *keys, mask, False).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Encoder block: self-attention and perceptron, each added to the residual stream."""

    def __init__(self, cfg: GeneratorConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(cfg.dim)
        self.attn = Attention(cfg.dim, cfg.heads, cfg.biases)
        self.norm2 = LayerNorm(cfg.dim)
        self.mlp = _mlp(cfg)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.norm1(x), [Segment(x.shape[1], mask)])
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Decoder block: self-attention within each target, attention to the context, perceptron."""

    def __init__(self, cfg: GeneratorConfig) -> None:
        super().__init__()
        self.norm1 = LayerNorm(cfg.dim)
        self.self_attn = Attention(cfg.dim, cfg.heads, cfg.biases)
        self.cross_attn = CrossAttention(cfg.dim, cfg.heads, cfg.biases)
        self.query_norm = LayerNorm(cfg.dim)
        self.context_norm = LayerNorm(cfg.dim)
        self.norm2 = LayerNorm(cfg.dim)
        self.mlp = _mlp(cfg)

    def keys(self, context: Tensor) -> KeyValue:
        """Return this block's keys and values of a context ``(B, N, D)``."""
        return self.cross_attn.keys(self.context_norm(context))

    def forward(self, x: Tensor, context: Tensor, segments: list[Segment], mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.norm1(x), segments)
        return self._look(x, self.keys(context), mask)

    def extend(
        self, x: Tensor, keys: KeyValue, mask: Tensor | None, past: KeyValue | None
    ) -> tuple[Tensor, KeyValue]:
        """Do what `forward` does for the next tokens of a sequence; also return its keys and values."""
        mixed, past = self.self_attn.extend(self.norm1(x), past)
        return self._look(x + mixed, keys, mask), past

    def _look(self, x: Tensor, keys: KeyValue, mask: Tensor | None) -> Tensor:
        x = x + self.cross_attn(self.query_norm(x), keys, mask)
        return x + self.mlp(self.norm2(x))
