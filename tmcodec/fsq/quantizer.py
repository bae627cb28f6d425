"""Finite scalar quantization as a module of a network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tmcodec.fsq import levels as lv
from tmcodec.fsq import ops, reference
from tmcodec.fsq.grid import make_grid


class FSQ(nn.Module):
    """Quantize latents to a product grid of ``levels`` and back.

    Parameters
    ----------
    levels
        Number of values of each latent channel, e.g. ``(8, 8, 8, 6, 5)``.
    form
        ``"sigmoid"`` (TerraMind's) or ``"tanh"`` (the FSQ paper's); see `tmcodec.fsq.levels`.
    axis
        Where the channels are in latents and codes: -1 for channel-last, 1 for channel-first.
    backend
        ``"native"``, ``"numba"`` or ``"torch"``; None for the fastest there is.

    Notes
    -----
    Latents and codes are ``(..., d)`` (or have d channels at `axis`), indices ``(...)``. Latents
    may have any float type; float32 decides, NaN has digit 0, codes are float32, indices int32.
    Buffers are not persistent, so checkpoints hold no quantizer keys (as TerraMind's).

    Raises
    ------
    ValueError
        If the levels do not fit; see `tmcodec.fsq.levels.check_levels`.

    Examples
    --------
    >>> FSQ((8, 8, 8, 6, 5)).latents_to_indices(torch.zeros(2, 5))
    tensor([7460, 7460], dtype=torch.int32)
    """

    spans: Tensor
    basis: Tensor
    moduli: Tensor

    def __init__(
        self, levels: Sequence[int], form: lv.Form = "sigmoid", axis: int = -1, backend: str | None = None
    ) -> None:
        super().__init__()
        self._grid = make_grid(levels, form)
        self.levels, self.form, self.axis, self.backend = self._grid.levels, form, axis, backend
        self.codebook_size = lv.codebook_size(self.levels)
        # Not computed by torch: on the meta device, where shapes are checked, that would import its compiler.
        spans = [float(level - 1) for level in self.levels]
        self.register_buffer("spans", torch.tensor(spans, dtype=torch.float32), persistent=False)
        self.register_buffer("basis", torch.tensor(lv.basis(self.levels)), persistent=False)
        self.register_buffer("moduli", torch.tensor(self.levels), persistent=False)

    def extra_repr(self) -> str:
        """Return what ``print`` shows between the parentheses."""
        return f"levels={self.levels}, form={self.form!r}, axis={self.axis}"

    def digits(self, latents: Tensor) -> Tensor:
        """Return int64 digits of `latents`, in their shape."""
        return reference.latents_to_digits(latents.movedim(self.axis, -1), self._grid).movedim(-1, self.axis)

    def quantize(self, latents: Tensor) -> Tensor:
        """Return the nearest codes; the gradient passes straight through to the squashing."""
        return ops.quantize(latents, self.levels, self.form, self.axis, self.backend)[0]

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Return the codes of `quantize` and the indices of `latents_to_indices`, in one pass."""
        return ops.quantize(latents, self.levels, self.form, self.axis, self.backend)

    def latents_to_indices(self, latents: Tensor) -> Tensor:
        """Return int32 indices of `latents`."""
        return ops.quantize_indices(latents, self.levels, self.form, self.axis, self.backend)

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        """Pack codes into int32 indices; codes may have passed through half precision.

        Codes are not checked to be of the grid: others give the index of nearby or no codes.

        Raises
        ------
        ValueError
            If there is no code for each level along the axis.
        """
        if codes.ndim == 0 or codes.shape[self.axis] != len(self.levels):
            raise ValueError(
                f"codes of shape {tuple(codes.shape)}; axis {self.axis} needs {len(self.levels)}, one a level"
            )
        digits = reference.codes_to_digits(codes.movedim(self.axis, -1), self._grid)
        return reference.digits_to_indices(digits, self._grid)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """Unpack indices into float32 codes; the inverse of `codes_to_indices`."""
        return ops.dequantize(indices, self.levels, self.form, self.axis, self.backend)
