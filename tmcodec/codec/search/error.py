"""How far the decoded mean is from the picture, token by token, with gradients.

Pictures are compared at half resolution, where the mean's details end. Half of the error is taken in the
companded space, where each decade of brightness has its share, half in physical units, which PSNR is of;
both are relative to the error at the start, so that prices in bits mean the same everywhere. Where the table
of modalities asks for it, the direction of red and near infrared counts, too, of which NDVI is a function.
The error of classes is nearly the share of wrong pixels, in which those of rare classes count a little more.
Where the raster gets a radiometric balance, what counts is the picture after it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tmcodec.codec.search.balanced import SearchBalance
from tmcodec.modalities import S2_OFFSET, BalanceScale, get_modality
from tmcodec.networks.mini import PATCH, MiniDecoder, MiniNet
from tmcodec.networks.terramind.inference import has_bf16

FLOOR = 1e-4
"""Squared error in normalised units, and share of wrong pixels, that needs no improvement."""

DARK = 300.0
"""Digital numbers: red and near infrared that are shorter together have no direction worth a token."""

MILD = 0.1
"""Root mean square of differing directions (about of NDVI) from where on they count less and less."""

NEVER = -1e4
"""Logit of a class that decoding will not name."""

SHARP = 3.0
"""Logits of classes are multiplied by it: the softmax comes near to the largest, and keeps a gradient."""


RARE = 0.15
"""A wrong pixel counts by the share of its class to the power of minus this: of one per cent twice."""


class TokenError:
    """Error of each token of grids; 1 on average over a grid's valid ground for the codes looked at first.

    Parameters
    ----------
    net
        Its decoder has to be a `MiniDecoder`.
    values
        float32 ``(B, C, H, W)`` of whole patches, physical units; class ids have C = 1.
    valid
        bool ``(B, C, H, W)``; other pixels count nothing, whatever they hold.
    scale
        Of the radiometric balance, where the raster gets one; B is 1 then.
    classes
        Ids that decoding will name, of a class map; None for all.
    """

    def __init__(
        self, net: MiniNet, values: Tensor, valid: Tensor, scale: BalanceScale | None = None,
        classes: Sequence[int] | None = None,
    ) -> None:
        assert isinstance(net.decoder, MiniDecoder)
        self.compander, self.decoder = net.compander, net.decoder
        x, weight = torch.where(valid, values, 0.0), valid.float()
        self.tokens = weight.amax(1).sum((1, 2)) / PATCH**2
        row = get_modality(net.cfg.modality)
        self.classes = row.categorical
        self.shares: tuple[float, ...] = (1.0,) if self.classes else (0.5, 0.5)
        self.pair: list[int] = []
        if row.ndvi_share:
            self.shares = (*self.shares, row.ndvi_share)
            self.pair = [row.bands.index("B04"), row.bands.index("B08")]
        self.scales: tuple[Tensor, ...] | None = None
        self.balance: SearchBalance | None = None
        if self.classes:
            self.truth = x[:, 0].long()
            self.weight = weight * rarity(self.truth, weight[:, 0], net.cfg.channels)[:, None]
            self.never = torch.ones(net.cfg.channels, 1, 1, dtype=torch.bool, device=x.device)
            self.never[slice(None) if classes is None else list(classes)] = False
            return
        self.weight = F.avg_pool2d(weight, 2)
        share = self.weight.clamp_min(1e-9)
        z = torch.where(valid, self.compander.compress(x), 0.0)
        self.truth, self.normalised = (F.avg_pool2d(v, 2) / share for v in (x, z))
        if scale is not None:
            # Means of pixels that are not all valid are of other ground than what is decoded.
            self.balance = SearchBalance(scale, self.truth[0], self.weight[0] == 1)

    def draw(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Decode codes ``(B, rows, cols, d)`` to the balanced mean at half resolution.

        Normalised, and in physical units. Of classes both are the logits.
        """
        found = self._decode(codes)
        if self.classes:
            return found, found
        values = self.compander.expand(found)
        if self.balance is not None:
            values = self.balance(values)
            found = self.compander.compress(values)
        return found, values

    @torch.no_grad()
    def rebalance(self, codes: Tensor) -> bool:
        """Fit the balance to codes, after `__call__`; return whether there is one."""
        if self.balance is not None:
            self.balance.fit(self.compander.expand(self._decode(codes))[0])
        return self.balance is not None

    def _decode(self, codes: Tensor) -> Tensor:
        device = codes.device.type
        with torch.autocast(device, torch.bfloat16, enabled=has_bf16(codes.device)):
            cells = codes * 2 - 1
            found = self.decoder.paint(cells)[0] if self.classes else self.decoder.sketch(cells)[0]
        return found.float().masked_fill(self.never, NEVER) if self.classes else found.float()

    def __call__(self, codes: Tensor) -> Tensor:
        """Return the errors ``(B, rows, cols)`` of codes ``(B, rows, cols, d)`` in 0..1."""
        errors = self._kinds(*self.draw(codes))
        if self.scales is None:
            floors = self._floors()
            self.scales = tuple(
                (self.tokens / (e.detach().sum((1, 2)) + f).clamp_min(1e-12))[:, None, None] * share
                for e, f, share in zip(errors, floors, self.shares, strict=True)
            )
        total = torch.stack([e * s for e, s in zip(errors, self.scales, strict=True)]).sum(0)
        side = total.shape[-1] // codes.shape[2]
        return F.avg_pool2d(total[:, None], side)[:, 0] * side**2

    def _kinds(self, found: Tensor, values: Tensor) -> list[Tensor]:
        """Return the kinds of error ``(B, h, w)``, each pixel's, of what `draw` returns."""
        if self.classes:
            chances = (SHARP * found).softmax(1).gather(1, self.truth[:, None])[:, 0]
            return [(1 - chances) * self.weight[:, 0]]
        normalised = (found - self.normalised).square() * self.weight
        physical = (values - self.truth).square() * self.weight
        kinds = [normalised.sum(1), physical.sum(1)]
        if self.pair:
            apart = self._direction(values) - self._direction(self.truth)
            kinds.append((apart.square() * self.weight[:, self.pair]).sum(1))
        return kinds

    def _length(self, values: Tensor) -> Tensor:
        """Return how long red and near infrared are together, ``(B, 1, h, w)``, `DARK` at least."""
        pair = values[:, self.pair] - S2_OFFSET
        return pair.square().sum(1, keepdim=True).clamp_min(DARK**2).sqrt()

    def _direction(self, values: Tensor) -> Tensor:
        """Return where red and near infrared ``(B, 2, h, w)`` point; both have to be bright to point far."""
        return (values[:, self.pair] - S2_OFFSET) / self._length(values)

    def _floors(self) -> list[Tensor]:
        """Return what of each kind's sum ``(B,)`` needs no improvement."""
        plain = FLOOR * self.weight.sum((1, 2, 3))
        if self.classes:
            return [plain]
        slope = self.compander.slope(self.truth)
        floors = [plain, FLOOR * (slope.square() * self.weight).sum((1, 2, 3))]
        if self.pair:
            floors.append(MILD**2 * self.weight[:, self.pair].mean(1).sum((1, 2)))
        return floors

    def bends(self, codes: Tensor, draws: int = 2) -> Tensor:
        """Return the second derivatives ``(B, rows, cols, d)`` of the error by each digit's code, about.

        Those of Gauss and Newton, from gradients of random projections (Hutchinson's estimator), averaged
        over 3 x 3 tokens. For classes Fisher's information stands in, from labels drawn as the decoder says.
        After `__call__`.
        """
        assert self.scales is not None
        generator = torch.Generator().manual_seed(0)
        codes = codes.detach().requires_grad_()
        with torch.enable_grad():
            found, values = self.draw(codes)
            total = torch.zeros_like(codes)
            for left in reversed(range(draws)):
                probe = self._probe(found, values.detach(), generator)
                (slope,) = torch.autograd.grad(probe, codes, retain_graph=left > 0)
                total += slope.square()
        grid = F.pad((total / draws).permute(0, 3, 1, 2), (1, 1, 1, 1), mode="replicate")
        return F.avg_pool2d(grid, 3, 1).permute(0, 2, 3, 1)

    def _probe(self, found: Tensor, values: Tensor, generator: torch.Generator) -> Tensor:
        """Return a number whose gradient squared is on average the second derivative."""
        assert self.scales is not None
        if self.classes:
            chances = found.detach().softmax(1)
            uniform = torch.rand(self.truth.shape, generator=generator, dtype=torch.float32, device="cpu")
            uniform = uniform.to(found.device)
            drawn = (chances.cumsum(1) < uniform[:, None]).sum(1).clamp_max(found.shape[1] - 1)
            nats = F.cross_entropy(found, drawn, reduction="none")
            return (nats * (self.scales[0] * self.weight[:, 0]).sqrt()).sum()
        slope = self.compander.slope(values)
        plain, physical, *direction = (scale[:, None] for scale in self.scales)
        bend = plain + physical * slope.square()
        if self.pair:
            # Errors along the direction do not turn it; counting them, too, makes steps a little shorter.
            bend[:, self.pair] += direction[0] * (slope[:, self.pair] / self._length(self.truth)).square()
        weight = 2 * self.weight * bend
        signs = torch.randint(0, 2, found.shape, generator=generator, device="cpu").to(found) * 2 - 1
        return (found * weight.sqrt() * signs).sum()


def rarity(truth: Tensor, weight: Tensor, classes: int) -> Tensor:
    """Return what each pixel ``(B, h, w)`` counts by the share of its class, about 1 on valid ground."""
    counts = torch.bincount(truth.flatten(), weight.flatten(), classes)
    shares = counts / counts.sum().clamp_min(1)
    factors = shares.clamp_min(torch.finfo(shares.dtype).tiny) ** -RARE
    return (factors / (factors * shares).sum().clamp_min(1))[truth]
