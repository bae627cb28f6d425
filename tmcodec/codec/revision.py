"""Which tokens a file holds: the encoder's, searched ones, or settled heights."""

from __future__ import annotations

import math
from numbers import Integral, Real

from tmcodec.codec.balance import BalanceProbe
from tmcodec.codec.chunks import ChunkBoard, Tokens
from tmcodec.codec.search import default_effort, search
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.errors import SearchError
from tmcodec.texts import shown
from tmcodec.tokenfile import LayerMeta
from tmcodec.tokenfile.context.settle import settle


class Revision:
    """Tokens to store in place of the encoder's: searched ones, or settled heights.

    Parameters
    ----------
    tok, layer
        Whose tokens.
    exact
        Whether to leave them all as they are.
    effort
        Rounds of search; None decides by the number of tokens.
    bit_price
        See `encode`.
    probe
        What fits the balance, where there is one.

    Raises
    ------
    SearchError
        If `effort` or `bit_price` is below zero or no number, or beside `exact`.
    """

    def __init__(
        self, tok: Tokenizer, layer: LayerMeta, exact: bool, effort: int | None, bit_price: float | None,
        probe: BalanceProbe | None = None,
    ) -> None:
        if effort is not None and (not isinstance(effort, Integral) or effort < 0):
            raise SearchError(f"{shown(effort)} rounds of search; give 0 or more, a whole number")
        if bit_price is not None and not (isinstance(bit_price, Real) and 0 <= bit_price < math.inf):
            raise SearchError(f"a bit cannot cost {shown(bit_price)}; give 0 or more")
        if exact and (effort or bit_price is not None):
            raise SearchError("exact tokens are not searched; leave out exact, or effort and bit price")
        self.tok, self.exact, self.price, self.probe = tok, exact, bit_price, probe
        self.whole = layer.chunks == 1
        usual = max(default_effort(layer.rows * layer.cols), tok.least_effort)
        wanted = usual if effort is None else effort
        self.effort = wanted if tok.searched and not exact else 0

    def of(self, tokens: Tokens, board: ChunkBoard) -> Tokens:
        """Return what to store of a chunk."""
        if self.exact:
            return tokens
        if self.effort == 0:
            return settle(tokens, self.tok.levels, self.tok.sha256)
        scale = None if self.probe is None else self.probe.fit.scale
        # What other chunks have decoding may name here, too.
        classes = sorted(board.classes) if self.whole and board.classes else None
        return search(self.tok, tokens, board.values, board.valid, self.effort, self.price, scale, classes)
