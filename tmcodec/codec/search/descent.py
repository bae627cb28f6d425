"""Move tokens to where error and bits together are least: rate-distortion optimised quantization.

The encoder rounds each latent by itself; it does not see what the decoder makes of the token beside its
neighbours, nor what it will take in the file. Here the decoder's gradient proposes single digits one up or
down, places apart from each other try theirs at once, and what did not pay is taken back. Encoders of video
do alike (Sullivan and Wiegand 1998, doi 10.1109/79.733497); the format and its decoders know nothing of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from tmcodec.codec.search.bits import TokenBits
from tmcodec.codec.search.error import TokenError
from tmcodec.codec.search.heights import search_heights
from tmcodec.codec.search.leaps import run_and_leap
from tmcodec.codec.search.places import LEAST, around, near, summit
from tmcodec.codec.tokenizer import MiniTokenizer, Tokenizer
from tmcodec.modalities import BalanceScale
from tmcodec.networks.height import HeightDecoder
from tmcodec.networks.mini import PATCH
from tmcodec.tokenfile.coders import digits_to_tokens, tokens_to_digits
from tmcodec.tokenfile.context.coder import tables_alone

Tokens = npt.NDArray[np.int32]

ROUNDS = 24
"""Twice as many bring another 1 % of the bits."""

OPENING = 3
"""What comes before the first round, in rounds: a look, and the bends."""

REBALANCE = (0, 2, 5, 10, 16)
"""Rounds that begin with a fit of the radiometric balance: often while much still moves, then seldom."""

BUDGET = 1 << 18
"""Tokens times rounds by default: 70 to 110 seconds on two cores of a Zen 3, by what smaller rasters take."""

DENSE = 2
"""Rounds in which tokens that touch at a corner may move at once."""

STEPS = (-1, 1)


def default_effort(tokens: int) -> int:
    """Return the rounds of search for a raster of so many tokens: 24 up to 9,709, none above 65,536."""
    return min(ROUNDS, max(BUDGET // max(tokens, 1) - OPENING, 0))


@torch.inference_mode(False)  # gradients are needed, and enable_grad alone does not leave the caller's
def search(
    tokenizer: Tokenizer,
    tokens: Tokens,
    values: npt.NDArray[np.float32],
    valid: npt.NDArray[np.bool_],
    effort: int,
    price: float | None = None,
    scale: BalanceScale | None = None,
    classes: Sequence[int] | None = None,
) -> Tokens:
    """Return tokens that decode nearer to the picture, are shorter to code, or both.

    Parameters
    ----------
    tokenizer
        Only small tokenizers can be searched; the tokens of others are returned as they are.
    tokens
        int32 ``(rows, cols)`` of a chunk.
    values
        float32 ``(C, H, W)``, physical units; the last patches may reach beyond.
    valid
        bool, the same shape: pixels that count.
    effort
        Rounds; each decodes the chunk and its gradient once. 0 returns the tokens as they are.
    price
        Of a bit, in parts of the mean error of a token; None takes the modality's.
    scale
        Of the radiometric balance that decoding will apply; None for none.
    classes
        Ids that decoding will name, of a class map; None for all.

    Returns
    -------
    ndarray of int32
        The same shape.
    """
    if effort < 1 or not valid.any() or not isinstance(tokenizer, MiniTokenizer):
        return tokens
    short = [(0, 0), *((0, n * PATCH - size) for n, size in zip(tokens.shape, values.shape[1:], strict=True))]
    padded = (np.pad(v, short)[None] for v in (values, valid))
    picture, mask = (torch.from_numpy(v).to(tokenizer.device) for v in padded)
    price = tokenizer.modality.bit_price if price is None else price
    with torch.autocast(tokenizer.device.type, enabled=False):  # the caller's; the decoders have their own
        if isinstance(tokenizer.net.decoder, HeightDecoder):
            decoder, weights = tokenizer.net.decoder, tokenizer.sha256
            return search_heights(decoder, weights, tokens, picture, mask, effort, price)
        error = TokenError(tokenizer.net, picture, mask, scale, classes)
        bits = TokenBits(tables_alone(tokenizer.sha256, tokenizer.levels), tokenizer.device)
        planes = torch.from_numpy(tokens_to_digits(tokens, tokenizer.levels)).to(picture.device, torch.int64)
        descent, digits = Descent(error, bits, price), planes.permute(1, 2, 0)[None]
        found = (run_and_leap(descent, digits, effort) if error.classes else descent.run(digits, effort))[0]
    return digits_to_tokens(found.permute(2, 0, 1).to(torch.uint8).cpu().numpy(), tokenizer.levels)


class Look(NamedTuple):
    """What is known of some digits.

    Attributes
    ----------
    cost
        ``(B, rows, cols)``: error and priced bits of each token.
    moves
        ``(B, rows, cols, 2 d)``: about how much each digit one down, one up would change the sum of costs.
    """

    cost: Tensor
    moves: Tensor


class Descent:
    """Search over the digits of chunks, int64 ``(B, rows, cols, d)``.

    Parameters
    ----------
    error, bits
        What is weighed.
    price
        Of a bit.
    """

    def __init__(self, error: TokenError, bits: TokenBits, price: float) -> None:
        self.error, self.bits, self.price, self.levels = error, bits, price, bits.levels
        self.bends: Tensor | None = None

    def run(self, digits: Tensor, rounds: int) -> Tensor:
        """Return the digits after so many rounds."""
        now = self.look(digits)
        tried = torch.zeros_like(now.moves, dtype=torch.bool)
        for n in range(rounds):
            if n in REBALANCE and self.error.rebalance(self.codes(digits)):
                now, tried = self.look(digits), torch.zeros_like(tried)
            gain, which = now.moves.masked_fill(tried, torch.inf).neg().max(-1)
            picked = (gain > LEAST) & (gain >= summit(gain, corners=n >= DENSE))
            if not picked.any():
                break
            trial = self.moved(digits, picked, which)
            then = self.look(trial)
            worse = picked & (around(then.cost - now.cost) > 0)
            better, failed = picked & ~worse, worse[..., None] & (F.one_hot(which, now.moves.shape[-1]) > 0)
            # A move that failed is not tried again until something beside it has changed.
            tried = (tried & ~near(better)[..., None]) | failed
            digits = torch.where(worse[..., None], digits, trial)
            # Beside what was taken back, the old look is nearer to the truth than the new one.
            old = near(worse) & ~better
            cost = torch.where(old, now.cost, then.cost)
            now = Look(cost, torch.where(old[..., None], now.moves, then.moves))
        return digits

    def look(self, digits: Tensor) -> Look:
        """Decode, and ask for gradients."""
        hot, codes = self._hot(digits), self.codes(digits).requires_grad_()
        with torch.enable_grad():
            error, bits = self.error(codes), self.bits(hot.requires_grad_())
            cost = error + self.price * bits
            by_code, by_hot = torch.autograd.grad(cost.sum(), (codes, hot), allow_unused=True)
        if self.bends is None:
            self.bends = self.error.bends(codes)
        by_hot = torch.zeros_like(hot) if by_hot is None else by_hot
        moves = [
            self._change(digits[..., k], by_code[..., k], self.bends[..., k], self.bits.part(by_hot, k), step)
            for k in range(len(self.levels))
            for step in STEPS
        ]
        return Look(cost.detach(), torch.stack(moves, -1))

    @torch.no_grad()
    def cost(self, digits: Tensor) -> Tensor:
        """Return error and priced bits ``(B, rows, cols)`` of each token."""
        return self.error(self.codes(digits)) + self.price * self.bits(self._hot(digits))

    def _hot(self, digits: Tensor) -> Tensor:
        return torch.cat([F.one_hot(digits[..., k], n) for k, n in enumerate(self.levels)], -1).float()

    def codes(self, digits: Tensor) -> Tensor:
        """Return the codes in 0..1 of digits."""
        top = torch.tensor(self.levels, dtype=torch.float32, device=digits.device) - 1
        return digits / top

    def _change(self, digit: Tensor, slope: Tensor, bend: Tensor, dear: Tensor, step: int) -> Tensor:
        """Return how much `step` of one digit changes the cost, about; infinite where it cannot move."""
        count = dear.shape[-1]
        other, delta = digit + step, step / (count - 1)
        costs = [dear.gather(-1, d.clamp(0, count - 1)[..., None])[..., 0] for d in (digit, other)]
        change = slope * delta + bend * (delta**2 / 2) + costs[1] - costs[0]
        return torch.where((other >= 0) & (other < count), change, torch.inf)

    def moved(self, digits: Tensor, picked: Tensor, which: Tensor) -> Tensor:
        """Return the digits after the move `which` at each place that is picked."""
        step = torch.tensor(STEPS, device=digits.device)[which % len(STEPS)] * picked
        return digits + F.one_hot(which // len(STEPS), digits.shape[-1]) * step[..., None]
