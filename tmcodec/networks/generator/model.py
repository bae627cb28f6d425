"""The transformer: an encoder over all visible parts together, a decoder that asks it about targets.

Weight-compatible with TerraMind 1.0 (arXiv 2504.11171), whose halves are those of 4M (arXiv 2312.06647). What
is visible of each modality enters the encoder once per set of conditions; any number of targets can then be
asked for. The decoder sees the encoder's output, projected, plus position and modality once more.

Legend: B samples, N visible values of all parts, m values asked for, D = ``dim``, V tokens of a vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tmcodec.errors import ShapeError
from tmcodec.networks.generator.config import GeneratorConfig
from tmcodec.networks.generator.embeddings import PixelEmbedding, TargetEmbedding, TokenEmbedding, fresh
from tmcodec.networks.generator.layers import Block, DecoderBlock, KeyValue, LayerNorm, Segment
from tmcodec.networks.linear import Linear

Grid = tuple[int, int]
Query = tuple[str, Tensor, Grid | None, Tensor | None]
"""Key, positions ``(B, m)``, grid and padding of a target; for a sequence its words so far and no grid."""


@dataclass
class Part:
    """The visible part of one modality.

    Attributes
    ----------
    key
        Key of the configuration's modality.
    values
        Tokens and words: int64 ``(B, n)``. Pixels: float32, normalised, ``(B, C, H, W)``.
    positions
        int64 ``(B, n)``: where in the grid the tokens lie, or which patches of the pixels are visible, row
        by row. None: all, in order. Words are numbered in order always.
    grid
        Rows and columns of the whole grid, for tokens; pixels have it from their size. None: the grid that
        the model was trained on.
    padding
        Bool ``(B, n)``, True where there is nothing: for samples that show different numbers of values.
    """

    key: str
    values: Tensor
    positions: Tensor | None = None
    grid: Grid | None = None
    padding: Tensor | None = None


@dataclass
class Encoded:
    """What the decoder looks at.

    Attributes
    ----------
    context
        ``(B, N, D)``, the encoder's output projected, plus positions and modalities.
    padding
        Bool ``(B, N)``, True where there is nothing, or None.
    features
        Where asked for: the output of each block ``(B, N, D)``, the last one normalised.
    """

    context: Tensor
    padding: Tensor | None = None
    features: list[Tensor] = field(default_factory=list)

    @property
    def mask(self) -> Tensor | None:
        """True where a key may be seen, ``(B, 1, 1, N)``, or None."""
        return None if self.padding is None else ~self.padding[:, None, None, :]


class Generator(nn.Module):
    """Encoder, decoder and the embeddings of all modalities.

    Attributes
    ----------
    cfg
        Sizes and modalities.
    autocast
        Data type that `encode` and the predictions compute products in, or None: as the weights are, and as
        an autocast around the call says.

    Notes
    -----
    A modality that is input and target has one vector of its own, shared by both embeddings.
    """

    def __init__(self, cfg: GeneratorConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.autocast: torch.dtype | None = None
        self.encoder_embeddings = nn.ModuleDict(
            {s.key: (PixelEmbedding if s.kind == "pixels" else TokenEmbedding)(s, cfg)
             for s in cfg.modalities if s.encoder}
        )  # fmt: skip
        self.decoder_embeddings = nn.ModuleDict(
            {s.key: TargetEmbedding(s, cfg) for s in cfg.modalities if s.decoder}
        )
        self.encoder = nn.ModuleList(Block(cfg) for _ in range(cfg.encoder_depth))
        self.encoder_norm = LayerNorm(cfg.dim)
        self.decoder_proj_context = Linear(cfg.dim, cfg.dim)
        self.decoder = nn.ModuleList(DecoderBlock(cfg) for _ in range(cfg.decoder_depth))
        self.decoder_norm = LayerNorm(cfg.dim)
        self.mask_token = nn.Parameter(fresh(1, 1, cfg.dim))
        self._initialise()
        self.tie()

    def _initialise(self) -> None:
        """Fill linear layers as MAE does: Xavier's, each of query, key and value by itself."""
        tied = {id(e.to_logits) for e in self.decoder_embeddings.values() if hasattr(e, "to_logits")}
        for name, layer in self.named_modules():
            if not isinstance(layer, nn.Linear) or id(layer) in tied:
                continue
            parts = 3 if name.endswith("qkv") else 2 if name.endswith("kv") else 1
            bound = math.sqrt(6 / (layer.out_features // parts + layer.in_features))
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def tie(self) -> None:
        """Share what the two embeddings of a modality share; needed after weights were replaced."""
        for key, target in self.decoder_embeddings.items():
            assert isinstance(target, TargetEmbedding)
            target.tie()
            if key in self.encoder_embeddings:
                target.mod_emb = self.encoder_embeddings[key].mod_emb  # type: ignore[assignment]

    def compile_blocks(self, backend: str = "inductor") -> None:
        """Compile each block with ``torch.compile``, for any batch and number of tokens."""
        for block in (*self.encoder, *self.decoder):
            block.compile(dynamic=True, backend=backend)

    # ----------------------------------------------------------------------- encoder

    def encode(self, parts: Sequence[Part], layers: bool = False) -> Encoded:
        """Encode all parts together, in one pass.

        Parameters
        ----------
        parts
            At least one; a part may have no values at all.
        layers
            Whether to keep every block's output.

        Raises
        ------
        ShapeError
            If a part is of an unknown key, or its tensors do not fit.
        """
        with self._computing():
            x, places, padding, features = self._encode(parts, layers)
            return Encoded(self.decoder_proj_context(x) + places, padding, features)

    def features(self, parts: Sequence[Part]) -> tuple[list[Tensor], Tensor | None]:
        """Return `Encoded.features` and `Encoded.padding` alone, for use as a backbone."""
        with self._computing():
            _, _, padding, features = self._encode(parts, True)
            return features, padding

    def keep_encoder(self, keys: Sequence[str]) -> None:
        """Drop the decoder, and all input embeddings but those of some keys: `features` is what is left."""
        embeddings = {key: self.encoder_embeddings[key] for key in keys}
        self.encoder_embeddings = nn.ModuleDict(embeddings)
        self.decoder_embeddings, self.decoder = nn.ModuleDict(), nn.ModuleList()
        del self.decoder_proj_context, self.decoder_norm, self.mask_token

    def _encode(
        self, parts: Sequence[Part], layers: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
        """Return the encoder's output, places, padding, and the outputs of blocks where asked for."""
        if not parts:
            raise ShapeError("no parts to encode; for none at all use `nothing`")
        if len({part.values.shape[0] for part in parts}) > 1:
            raise ShapeError("all parts must be of one batch size")
        embedded = [self._embed(part) for part in parts]
        values, places = (torch.cat(tensors, 1) for tensors in zip(*embedded, strict=True))
        padding = _joined_padding(parts, [x.shape[1] for x, _ in embedded])
        if padding is not None:
            shown = ~padding[..., None]
            values, places = values * shown, places * shown
        x, features = self._run_encoder(values + places, padding, layers)
        return x, places, padding, features

    def nothing(self, batch: int) -> Encoded:
        """Return the context of no conditions at all."""
        return Encoded(self.mask_token.new_zeros(batch, 0, self.cfg.dim))

    def _run_encoder(
        self, x: Tensor, padding: Tensor | None, layers: bool
    ) -> tuple[Tensor, list[Tensor]]:
        mask = None if padding is None else ~padding[:, None, None, :]
        features = []
        for block in self.encoder if x.shape[1] else ():
            x = block(x, mask)
            if layers:
                features.append(x)
        x = self.encoder_norm(x)
        return x, [*features[:-1], x] if layers else []

    def _embed(self, part: Part) -> tuple[Tensor, Tensor]:
        """Return values and places of a part, ``(B, n, D)`` each."""
        if part.key not in self.encoder_embeddings:
            known = ", ".join(self.encoder_embeddings)
            raise ShapeError(f"the model takes no {part.key!r}; it takes {known}")
        embedding = self.encoder_embeddings[part.key]
        _check_part(part)
        if isinstance(embedding, PixelEmbedding):
            grid = embedding.grid(part.values)
            x = embedding(part.values, part.positions)
            place = embedding.where(grid, part.positions)
        else:
            assert isinstance(embedding, TokenEmbedding)
            x = embedding(part.values)
            if embedding.length:
                place = embedding.when(_counted(part.values, part.padding))
            else:
                place = embedding.where(part.grid or self._own_grid, part.positions)
        if place.shape[1] != x.shape[1]:
            raise ShapeError(
                f"{part.key} has {x.shape[1]} values for {place.shape[1]} places; give positions or a grid"
            )
        return x, place.expand(x.shape[0], -1, -1)

    @property
    def _own_grid(self) -> Grid:
        return self.cfg.grid, self.cfg.grid

    def _computing(self) -> AbstractContextManager[object]:
        """Return the context in which products are computed."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.encoder_norm.weight.device.type, self.autocast)

    # ----------------------------------------------------------------------- decoder

    def predict(
        self, encoded: Encoded, key: str, positions: Tensor, grid: Grid | None = None,
        padding: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the logits of one image modality's tokens at some positions.

        Parameters
        ----------
        encoded
            Of `encode`.
        key
            The target.
        positions
            int64 ``(B, m)``, row by row in `grid`. Those asked for together see one another, as mask tokens.
        grid
            Rows and columns; None is the grid that the model was trained on.
        padding
            Bool ``(B, m)``, True where nothing is asked for.

        Returns
        -------
        Tensor
            float32 ``(B, m, V)``.

        Raises
        ------
        ShapeError
            If the model has no such target, or shapes or positions are wrong.
        """
        return self.predict_many(encoded, [(key, positions, grid, padding)])[0]

    def predict_many(self, encoded: Encoded, queries: Sequence[Query]) -> list[Tensor]:
        """Return the logits of several targets, in one pass of the decoder.

        Each target's values see one another, not those of other targets, as in TerraMind's pre-training;
        words of a sequence see themselves and earlier ones, and are given: the logits are those of the next.
        """
        with self._computing():
            return [
                self._target(query[0]).logits(part).float()
                for query, part in zip(queries, self.look(encoded, queries), strict=True)
            ]

    def look(self, encoded: Encoded, queries: Sequence[Query]) -> list[Tensor]:
        """Return what `predict_many` makes its logits of, ``(B, m, D)`` each: training may want some only."""
        with self._computing():
            asked = [self._ask(encoded, query) for query in queries]
            y = torch.cat([x for x, _ in asked], 1)
            segments = [segment for _, segment in asked]
            for block in self.decoder:
                y = block(y, encoded.context, segments, encoded.mask)
            return list(self.decoder_norm(y).split([segment.size for segment in segments], 1))

    def _ask(self, encoded: Encoded, query: Query) -> tuple[Tensor, Segment]:
        """Return the decoder's input ``(B, m, D)`` for a target, and who sees whom in it."""
        key, values, grid, padding = query
        target = self._target(key)
        batch = encoded.context.shape[0]
        if values.ndim != 2 or values.shape[0] != batch:
            raise ShapeError(f"{key}: ({batch}, m) positions are expected, not {tuple(values.shape)}")
        if padding is not None and padding.shape != values.shape:
            raise ShapeError(f"{key}: padding {tuple(padding.shape)} for {tuple(values.shape)} values")
        count = values.shape[1]
        if target.length:
            # Padding stands at the end, where causal attention never looks.
            words = target(values) + target.when(_counted(values, None))
            return words, Segment(count, causal=True)
        y = self.mask_token + target.where(grid or self._own_grid, values)
        return y, Segment(count, None if padding is None else ~padding[:, None, None, :])

    def _target(self, key: str) -> TargetEmbedding:
        if key not in self.decoder_embeddings:
            known = ", ".join(self.decoder_embeddings)
            raise ShapeError(f"the model has no target {key!r}; it has {known}")
        target = self.decoder_embeddings[key]
        assert isinstance(target, TargetEmbedding)
        return target

    def predict_sequence(
        self,
        encoded: Encoded,
        key: str,
        start: int,
        stop: int,
        choose: Callable[[Tensor], Tensor] | None = None,
        length: int | None = None,
    ) -> Tensor:
        """Write a sequence word by word; keys and values of earlier words and of the context are kept.

        Parameters
        ----------
        encoded
            Of `encode`.
        key
            ``"coords"`` or ``"caption"``.
        start, stop
            The first word, and the one after which a sample is finished.
        choose
            Maps logits ``(B, V)`` of the next word to words ``(B,)``; None takes the likeliest.
        length
            Most words to write; None is one less than the modality's own limit, as officially.

        Returns
        -------
        Tensor
            int64 ``(B, 1 + n)``, `start` first. It ends when all samples have a `stop`; what a sample has
            after its own is to be ignored.

        Raises
        ------
        ShapeError
            If it is no sequence of the model.
        """
        target = self._target(key)
        if not target.length:
            raise ShapeError(f"{key} is no sequence; use `predict`")
        pick = choose or (lambda logits: logits.argmax(-1))
        batch, device = encoded.context.shape[0], encoded.context.device
        words = torch.full((batch, 1), start, dtype=torch.int64, device=device)
        done = torch.zeros(batch, dtype=torch.bool, device=device)
        with self._computing():
            blocks = [block for block in self.decoder if isinstance(block, DecoderBlock)]
            keys = [block.keys(encoded.context) for block in blocks]
            past: list[KeyValue | None] = [None] * len(keys)
            for place in range(target.length - 1 if length is None else length):
                at = torch.full((1, 1), place, dtype=torch.int64, device=device)
                y = target(words[:, -1:]) + target.when(at)
                for i, block in enumerate(blocks):
                    y, past[i] = block.extend(y, keys[i], encoded.mask, past[i])
                chosen = pick(target.logits(self.decoder_norm(y))[:, -1].float())
                words = torch.cat([words, chosen[:, None]], 1)
                done |= chosen == stop
                if bool(done.all()):
                    break
        return words


def _counted(values: Tensor, padding: Tensor | None) -> Tensor:
    """Number the words of ``(B, n)`` from 0, passing over padding."""
    if padding is None:
        return torch.arange(values.shape[1], device=values.device)[None]
    return ((~padding).cumsum(1) - 1).clamp_min(0)


def _check_part(part: Part) -> None:
    """Raise ShapeError where tensors of a part do not fit one another."""
    count = part.values.shape[1] if part.values.ndim == 2 else None
    shapes = [t.shape for t in (part.positions, part.padding) if t is not None]
    if part.positions is not None and count is None:  # pixels, of which some patches are visible
        count = part.positions.shape[-1]
    if part.values.ndim not in (2, 4) or any(s[0] != part.values.shape[0] or len(s) != 2 for s in shapes):
        raise ShapeError(f"{part.key}: values, positions and padding must be of one batch, (B, n)")
    if count is not None and any(s[1] != count for s in shapes):
        raise ShapeError(f"{part.key}: {count} values, but positions or padding of another number")


def _joined_padding(parts: Sequence[Part], counts: list[int]) -> Tensor | None:
    """Return the padding of all parts ``(B, N)``, or None where no part has any."""
    if all(part.padding is None for part in parts):
        return None
    columns = []
    for part, count in zip(parts, counts, strict=True):
        if part.padding is not None and part.padding.shape[1] != count:
            raise ShapeError(f"{part.key}: padding of {part.padding.shape[1]} for {count} values")
        shape = (part.values.shape[0], count)
        absent = torch.zeros(shape, dtype=torch.bool, device=part.values.device)
        columns.append(absent if part.padding is None else part.padding)
    return torch.cat(columns, 1)
