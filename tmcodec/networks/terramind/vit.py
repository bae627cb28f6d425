"""TerraMind's vision transformers: the encoder, and the decoder of land cover.

Pre-norm blocks, global attention over the picture, a fixed sin-cos position embedding that is *stretched*
bicubically to any grid, and one perceptron with tanh at the end (arXiv 2110.04627), always in float32.
Names of submodules are those of the official checkpoints' keys. Linear layers may compute in bfloat16
(`tmcodec.networks.terramind.inference`); the residual stream and all norms stay in float32.

Legend: B pictures, N = rows * cols tokens, D = ``dim``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tmcodec.networks.terramind.config import TerraMindConfig

EPS = 1e-6


def sincos_position(rows: int, cols: int, dim: int) -> Tensor:
    """Return the 2-D sin-cos embedding ``(1, D, rows, cols)``, float32 (as MoCo v3's).

    Quarters of D: sine and cosine of the first axis' index, then of the second's. The official code
    enumerates its grid with the first index along the *width* and reads it row by row: on square grids,
    the only ones stored, that transposes the picture. It is part of the trained weights.
    """
    omega = 1.0 / 10000.0 ** (torch.arange(dim // 4, dtype=torch.float32) / (dim // 4))
    first, second = torch.meshgrid(torch.arange(cols).float(), torch.arange(rows).float(), indexing="ij")
    a, b = first.flatten()[:, None] * omega, second.flatten()[:, None] * omega
    table = torch.cat([a.sin(), a.cos(), b.sin(), b.cos()], dim=1)
    return table.t().contiguous().view(1, dim, rows, cols)


class Mlp(nn.Module):
    """Two linear layers with an activation between them; ``(B, N, D)`` to the same."""

    def __init__(self, dim: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = activation
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Attention(nn.Module):
    """Multi-head self-attention; ``(B, N, D)`` to the same."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, count, dim = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv.unbind(0))
        return self.proj(mixed.transpose(1, 2).reshape(batch, count, dim))


class Block(nn.Module):
    """Attention and perceptron, each after a layer norm and added to a float32 residual stream."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=EPS)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=EPS)
        self.mlp = Mlp(dim, 4 * dim, nn.GELU())

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Transformer(nn.Module):
    """What encoder and decoder share: position embedding, blocks and the final perceptron."""

    def __init__(self, cfg: TerraMindConfig) -> None:
        super().__init__()
        self.pos_emb = nn.Parameter(sincos_position(cfg.grid, cfg.grid, cfg.dim), requires_grad=False)
        self.blocks = nn.ModuleList(Block(cfg.dim, cfg.heads) for _ in range(cfg.depth))
        self.norm_mlp = nn.LayerNorm(cfg.dim, eps=EPS)
        self.post_mlp = Mlp(cfg.dim, 4 * cfg.dim, nn.Tanh())

    def positions(self, rows: int, cols: int) -> Tensor:
        """Return the embedding stretched to a grid, ``(1, N, D)``."""
        table: Tensor = self.pos_emb
        if table.shape[-2:] != (rows, cols):
            table = F.interpolate(table, size=(rows, cols), mode="bicubic", align_corners=False)
        return table.flatten(2).transpose(1, 2)

    def transform(self, x: Tensor, rows: int, cols: int) -> Tensor:
        """Run ``(B, N, D)`` through all blocks and the final perceptron; float32."""
        x = x.float() + self.positions(rows, cols)
        for block in self.blocks:
            x = block(x)
        return x + self.post_mlp(self.norm_mlp(x))


class ViTEncoder(_Transformer):
    """Normalised picture ``(B, C, H, W)`` to features ``(B, rows, cols, D)``, float32."""

    def __init__(self, cfg: TerraMindConfig) -> None:
        super().__init__(cfg)
        self.patch = cfg.patch
        self.proj = nn.Conv2d(cfg.channels, cfg.dim, cfg.patch, stride=cfg.patch)

    def forward(self, z: Tensor) -> Tensor:
        """Encode; H and W are multiples of the patch, at any ratio."""
        rows, cols = z.shape[-2] // self.patch, z.shape[-1] // self.patch
        x = self.proj(z).flatten(2).transpose(1, 2)
        return self.transform(x, rows, cols).unflatten(1, (rows, cols))


class ViTDecoder(_Transformer):
    """Projected codes ``(B, rows, cols, D)`` to logits ``(B, C, H, W)``, float32."""

    def __init__(self, cfg: TerraMindConfig) -> None:
        super().__init__(cfg)
        self.patch, self.channels = cfg.patch, cfg.channels
        self.out_proj = nn.Linear(cfg.dim, cfg.channels * cfg.patch**2)

    def forward(self, x: Tensor) -> Tensor:
        """Decode any grid."""
        rows, cols = x.shape[1:3]
        x = self.transform(x.flatten(1, 2), rows, cols)
        cells = self.out_proj(x).float()
        cells = cells.view(-1, rows, cols, self.channels, self.patch, self.patch)
        return cells.permute(0, 3, 1, 4, 2, 5).reshape(
            -1, self.channels, rows * self.patch, cols * self.patch
        )
