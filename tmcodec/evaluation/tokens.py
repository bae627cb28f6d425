"""How a tokenizer uses its codebook, counted over all scenes."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.evaluation.report import TokenUse
from tmcodec.fsq import codebook_size


def entropy(counts: npt.NDArray[np.int64]) -> float:
    """Return the entropy in bits of the frequencies `counts`; 0 without any."""
    total = int(counts.sum())
    shares = counts[counts > 0] / max(total, 1)
    return max(0.0, float(-(shares * np.log2(shares)).sum()))


class TokenCount:
    """Adds up the tokens of one tokenizer's files."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.name, self.sha256 = tokenizer.name, tokenizer.sha256.hex()
        self.counts = np.zeros(codebook_size(tokenizer.levels), np.int64)
        self.payload = self.file = 0

    def add(self, tokens: npt.NDArray[np.int32], payload_bytes: int, file_bytes: int) -> None:
        """Count one file's tokens, without those of empty chunks, which are not there."""
        self.counts += np.bincount(tokens.ravel(), minlength=len(self.counts))
        self.payload += payload_bytes
        self.file += file_bytes

    def result(self) -> TokenUse:
        """Return what was counted."""
        bits, total = entropy(self.counts), int(self.counts.sum())
        return TokenUse(
            tokenizer=self.name,
            weights_sha256=self.sha256,
            tokens=total,
            codebook=len(self.counts),
            used=int((self.counts > 0).sum()),
            entropy=bits,
            perplexity=math.pow(2, bits),
            bits=8 * self.payload / max(total, 1),
            file_bits=8 * self.file / max(total, 1),
        )
