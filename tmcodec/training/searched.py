"""Codes as files hold them: what the search of `tmcodec.codec.search` makes of the encoder's.

A decoder that is trained on the encoder's own tokens has never seen those that it asks for. One that sees
those alone forgets the encoder's, which large rasters and generators have; so the rounds are drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tmcodec.codec.lineage import Lineage
from tmcodec.codec.search.bits import TokenBits
from tmcodec.codec.search.descent import Descent
from tmcodec.codec.search.error import TokenError
from tmcodec.errors import ConfigError
from tmcodec.modalities import get_modality
from tmcodec.networks.mini import MiniDecoder, MiniNet
from tmcodec.tokenfile.context.coder import tables_alone
from tmcodec.tokenfile.context.model import ContextModel


class SearchedCodes:
    """Searches the codes of a network that keeps its tokens.

    Parameters
    ----------
    net
        Its decoder may change meanwhile.
    lineage
        Whose tokens they are, which finds the tables that price them.
    most
        Rounds of the search: from none to so many.

    Raises
    ------
    ConfigError
        If the network's tokens are heights, which are searched by other means.
    """

    def __init__(self, net: MiniNet, lineage: Lineage | None, most: int) -> None:
        if not isinstance(net.decoder, MiniDecoder):
            raise ConfigError("model.search is for tokens of patches, not of heights; leave it out")
        self.net, self.most = net, most
        self.tables = tables_of(lineage, net.cfg.levels)
        self.modality = get_modality(net.cfg.modality)
        self._bits: dict[torch.device, TokenBits] = {}

    def __call__(self, codes: Tensor, z: Tensor, generator: torch.Generator) -> Tensor:
        """Return better codes ``(B, rows, cols, d)`` for normalised pictures (one-hot classes) `z`."""
        rounds = int(torch.randint(0, self.most + 1, (), generator=generator, device=generator.device))
        if rounds == 0:
            return codes
        # Validation runs in inference mode, whose tensors take no gradients.
        with torch.inference_mode(False), torch.no_grad():
            z = z.clone()
            classes = self.modality.categorical
            values = z.argmax(1, keepdim=True).float() if classes else self.net.compander.expand(z)
            error = TokenError(self.net, values, torch.ones_like(values, dtype=torch.bool))
            top = torch.tensor(self.net.cfg.levels, device=z.device) - 1
            digits = (codes.float() * top).round().long()
            found = Descent(error, self._bits_on(z.device), self.modality.bit_price).run(digits, rounds)
            return (found / top).to(codes.dtype)

    def _bits_on(self, device: torch.device) -> TokenBits:
        """Return what prices tokens there; it is made of many small tensors, once."""
        if device not in self._bits:
            self._bits[device] = TokenBits(self.tables, device)
        return self._bits[device]


def tables_of(lineage: Lineage | None, levels: tuple[int, ...]) -> ContextModel:
    """Return the newest tables of a lineage's tokens; generic ones where there are none."""
    origins = [] if lineage is None else [origin.sha256 for origin in lineage.origins]
    found = [tables_alone(sha256, levels) for sha256 in [*origins, b""]]
    return next((tables for tables in found if tables.network is not None), found[-1])
