"""From pixels, tokens and words to vectors, and from vectors to logits.

Every embedding gives two tensors: what the values say (``x``) and where and what they are (``emb``: position
plus modality). The decoder's context adds the second once more, so they stay apart.

Legend: B samples, n values of one modality, D = ``dim``, V tokens of the vocabulary.
"""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tmcodec.errors import ShapeError
from tmcodec.fsq import indices_to_digits
from tmcodec.networks.generator.config import MAX_LENGTH, GeneratorConfig, ModalitySpec
from tmcodec.networks.linear import Linear
from tmcodec.networks.terramind.vit import sincos_position

STD = 0.02
"""Standard deviation of fresh embeddings, TerraMind's."""

CODE_STD = 0.1
"""That of each digit's vector as an input. Positions have a root mean square of 0.7: five digits of 0.02
would be drowned by them at first."""


def fresh(*shape: int, std: float = STD) -> Tensor:
    """Return a tensor of normal random values; on the meta device, of none.

    There, PyTorch's own filling would import its compiler, which takes seconds.
    """
    values = torch.empty(shape)
    return values if values.is_meta else values.normal_(std=std)


def image_positions(side: int, dim: int) -> Tensor:
    """Return the 2-D sin-cos embedding of a square grid, ``(1, side * side, D)``, float32."""
    return sincos_position(side, side, dim).flatten(2).transpose(1, 2).contiguous()


def sequence_positions(count: int, dim: int) -> Tensor:
    """Return the 1-D sin-cos embedding ``(1, count, D)``, float32: halves of sines and cosines."""
    omega = 1.0 / 10000.0 ** (torch.arange(dim // 2, dtype=torch.float32) / (dim // 2))
    angles = torch.arange(count, dtype=torch.float32)[:, None] * omega
    return torch.cat([angles.sin(), angles.cos()], 1)[None]


def stretched(table: Tensor, rows: int, cols: int) -> Tensor:
    """Return the embedding of a square grid ``(1, side * side, D)`` for any other, ``(rows * cols, D)``."""
    side = round(table.shape[1] ** 0.5)
    if (rows, cols) == (side, side):
        return table[0]
    square = table.transpose(1, 2).unflatten(2, (side, side))
    with torch.autocast(table.device.type, enabled=False):
        wide = F.interpolate(square.float(), size=(rows, cols), mode="bicubic", align_corners=False)
    return wide.flatten(2)[0].t()


def gather_rows(table: Tensor, positions: Tensor | None, what: str) -> Tensor:
    """Return rows of ``(N, D)`` at ``(B, n)``, or all as ``(1, N, D)``.

    Raises
    ------
    ShapeError
        If a position lies outside the grid.
    """
    if positions is None:
        return table[None]
    check_range(positions, table.shape[0], f"positions of {what}")
    return table[positions]


def check_range(values: Tensor, limit: int, what: str) -> None:
    """Raise ShapeError where integers are not in 0 .. limit-1; on the CPU alone, as others would wait."""
    if values.device.type != "cpu" or torch.compiler.is_compiling() or not values.numel():
        return
    low, high = values.aminmax()
    if int(low) < 0 or int(high) >= limit:
        raise ShapeError(f"{what} lie in {int(low)}..{int(high)}; 0..{limit - 1} are known")


class _Positioned(nn.Module):
    """What all embeddings have: a vector of the modality, and positions.

    Positions are computed, not learned; the official checkpoints store them all the same.
    """

    pos_emb: Tensor

    def __init__(self, spec: ModalitySpec, cfg: GeneratorConfig) -> None:
        super().__init__()
        self.key = spec.key
        self.mod_emb = nn.Parameter(fresh(1, 1, cfg.dim))
        if self.mod_emb.is_meta:
            count = MAX_LENGTH if spec.kind == "sequence" else cfg.grid**2
            table = torch.empty(1, count, cfg.dim)
        elif spec.kind == "sequence":
            table = sequence_positions(MAX_LENGTH, cfg.dim)
        else:
            table = image_positions(cfg.grid, cfg.dim)
        self.register_buffer("pos_emb", table)

    def where(self, grid: tuple[int, int], positions: Tensor | None) -> Tensor:
        """Return position plus modality of image cells, ``(B or 1, n, D)``."""
        return gather_rows(stretched(self.pos_emb, *grid), positions, self.key) + self.mod_emb

    def when(self, positions: Tensor) -> Tensor:
        """Return position plus modality of words at ``(B, n)``, ``(B, n, D)``."""
        return gather_rows(self.pos_emb[0], positions, self.key) + self.mod_emb


class PixelEmbedding(_Positioned):
    """Patches of pixels; the order within a patch is row, column, band."""

    def __init__(self, spec: ModalitySpec, cfg: GeneratorConfig) -> None:
        super().__init__(spec, cfg)
        self.patch, self.channels = cfg.patch, spec.channels
        self.proj = Linear(spec.channels * cfg.patch**2, cfg.dim, bias=False)

    def grid(self, pixels: Tensor) -> tuple[int, int]:
        """Return rows and columns of patches of ``(B, C, H, W)``.

        Raises
        ------
        ShapeError
            If the bands or sides are wrong.
        """
        height, width = pixels.shape[-2:]
        if pixels.ndim != 4 or pixels.shape[1] != self.channels or height % self.patch or width % self.patch:
            raise ShapeError(
                f"{self.key} takes (B, {self.channels}, H, W) with sides that are multiples of {self.patch}, "
                f"not {tuple(pixels.shape)}"
            )
        return height // self.patch, width // self.patch

    def forward(self, pixels: Tensor, positions: Tensor | None) -> Tensor:
        """Map ``(B, C, H, W)`` to ``(B, n, D)``, the patches at `positions` or all."""
        rows, cols = self.grid(pixels)
        p = self.patch
        cells = pixels.unflatten(3, (cols, p)).unflatten(2, (rows, p)).permute(0, 2, 4, 3, 5, 1)
        patches = cells.reshape(pixels.shape[0], rows * cols, -1)
        if positions is not None:
            check_range(positions, rows * cols, f"positions of {self.key}")
            patches = patches.gather(1, positions[..., None].expand(-1, -1, patches.shape[2]))
        return self.proj(patches)


class TokenEmbedding(_Positioned):
    """Image tokens or words, by a table."""

    code_std = CODE_STD

    def __init__(self, spec: ModalitySpec, cfg: GeneratorConfig) -> None:
        super().__init__(spec, cfg)
        self.vocabulary, self.length = spec.vocabulary, spec.length
        self.token_emb: nn.Embedding | CodeTable
        if cfg.embedding == "codes" and spec.kind == "tokens":
            self.token_emb = CodeTable(spec.levels, cfg.dim, cfg.codes_hidden, self.code_std)
        else:
            padding = 0 if spec.kind == "sequence" else None
            table = fresh(spec.vocabulary, cfg.dim)
            self.token_emb = nn.Embedding.from_pretrained(table, freeze=False, padding_idx=padding)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(B, n)`` to ``(B, n, D)``.

        Raises
        ------
        ShapeError
            If a token is none of the vocabulary.
        """
        check_range(tokens, self.vocabulary, f"tokens of {self.key}")
        return self.token_emb(tokens)


class TargetEmbedding(TokenEmbedding):
    """A `TokenEmbedding` whose table also gives the logits."""

    code_std = STD  # so that the first logits are nearly uniform

    def __init__(self, spec: ModalitySpec, cfg: GeneratorConfig) -> None:
        super().__init__(spec, cfg)
        if isinstance(self.token_emb, nn.Embedding):
            self.to_logits = Linear(cfg.dim, spec.vocabulary, bias=False)
            self.tie()

    def tie(self) -> None:
        """Let the logits' weight be the table."""
        if isinstance(self.token_emb, nn.Embedding):
            self.to_logits.weight = self.token_emb.weight

    def logits(self, y: Tensor) -> Tensor:
        """Map ``(B, m, D)`` to ``(B, m, V)``."""
        if isinstance(self.token_emb, CodeTable):
            return F.linear(y, self.token_emb.table())
        return self.to_logits(y)


class CodeTable(nn.Module):
    """Vectors of FSQ tokens, made from their digits by a small perceptron plus a vector for each digit.

    A table of 15,360 vectors is most of a small model's weights, and of a small corpus most tokens occur
    a few times or never. Digits are shared by thousands of tokens.

    The whole table is computed once in evaluation without gradients, and kept until a weight changes or
    training begins; any number of threads may ask for it. Copies and pickles are without it. Off the CPU a
    change through ``.data`` in evaluation, which counts no version, goes unseen.
    """

    digits: Tensor

    def __init__(self, levels: tuple[int, ...], dim: int, hidden: int, std: float = STD) -> None:
        super().__init__()
        self.levels = levels
        total = sum(levels)
        self.linear = nn.Parameter(fresh(total, dim, std=std))
        self.enter = nn.Parameter(fresh(total, hidden, std=len(levels) ** -0.5))
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.leave = nn.Parameter(fresh(dim, hidden, std=std * hidden**-0.5))
        self.make_digits()
        self._forget()

    def _forget(self) -> None:
        """Begin without a table."""
        self._lock = threading.Lock()
        self._kept: tuple[list[_Before], Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_kept")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def train(self, mode: bool = True) -> CodeTable:
        """Set the mode; training forgets the table, whatever way its weights will change."""
        if mode:
            with self._lock:
                self._kept = None
        return super().train(mode)

    def make_digits(self) -> None:
        """Compute, per token, the rows of its digits; `linear` and `enter` have a row for each digit."""
        digits = indices_to_digits(np.arange(math.prod(self.levels)), self.levels)
        rows = digits.astype(np.int64) + np.cumsum([0, *self.levels[:-1]])
        self.register_buffer("digits", torch.from_numpy(rows), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map ``(B, n)`` to ``(B, n, D)``."""
        if self._keeps():
            return self.table()[tokens]
        return self._vectors(self.digits[tokens])

    def table(self) -> Tensor:
        """Return all vectors, ``(V, D)``; with gradients while they are recorded."""
        if not self._keeps():
            return self._vectors(self.digits)
        weights = (self.linear, self.enter, self.bias, self.leave)
        with self._lock:
            if self._kept is None or not all(map(_Before.still, self._kept[0], weights)):
                with torch.autocast(self.linear.device.type, enabled=False):
                    self._kept = [_Before(w) for w in weights], self._vectors(self.digits)
            return self._kept[1]

    def _keeps(self) -> bool:
        """Tell whether the table may be kept: nothing trains, differentiates or compiles."""
        return not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())

    def _vectors(self, digits: Tensor) -> Tensor:
        """Return the vectors ``(..., D)`` of digits ``(..., d)``."""
        hidden = F.gelu(_sum_rows(self.enter, digits) + self.bias)
        return _sum_rows(self.linear, digits) + F.linear(hidden, self.leave)


class _Before:
    """What a weight was when the table was computed.

    On the CPU values are compared: they are few, and moving averages are put in through ``.data``, which
    counts no version. Elsewhere that would wait for the device in every pass, and versions are compared.
    """

    def __init__(self, weight: Tensor) -> None:
        counts = weight.device.type != "cpu" and not weight.is_inference()
        self.version = weight._version if counts else None
        # Uncopied, it holds the memory, so that no other weight can come to lie there.
        self.value = weight.detach() if counts else weight.detach().clone()

    def still(self, weight: Tensor) -> bool:
        """Tell whether a weight of that shape is the same, in type and place, too."""
        value = self.value
        if value.dtype != weight.dtype or value.device != weight.device:
            return False
        if self.version is None or weight.is_inference():
            return torch.equal(value, weight)
        return value.data_ptr() == weight.data_ptr() and self.version == weight._version


def _sum_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Return the sum over the last axis of rows ``(..., d)`` of a table ``(N, D)``: ``(..., D)``."""
    return F.embedding_bag(rows.reshape(-1, rows.shape[-1]), table, mode="sum").view(*rows.shape[:-1], -1)
