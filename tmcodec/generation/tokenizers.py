"""The tokenizers that belong to a generator: found by name, checked by hash."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tmcodec.codec.models import looks_at_tiles
from tmcodec.codec.terramind_models import OFFICIAL
from tmcodec.errors import ConditionError, TokenizerMismatchError
from tmcodec.modalities import get_modality
from tmcodec.tokenfile.context.coder import predictor_of

if TYPE_CHECKING:
    from tmcodec.codec.tokenizer import Tokenizer
    from tmcodec.generation.models import LoadedGenerator
    from tmcodec.tokenfile import LayerMeta


def tokenizer_of(
    loaded: LoadedGenerator, modality: str, given: Mapping[str, Tokenizer] | None = None
) -> Tokenizer:
    """Load the tokenizer whose tokens the generator knows.

    Parameters
    ----------
    loaded
        The generator.
    modality
        Key of the modality table.
    given
        Loaded tokenizers by modality, instead of those found by name.

    Raises
    ------
    ConditionError
        If the generator does not say which one it is.
    TokenizerMismatchError
        If it has other weights than those that the generator was trained with.
    TokenizerError
        If it cannot be had.
    """
    tok = (given or {}).get(modality)
    if tok is None:
        ref = loaded.tokenizers.get(modality)
        if ref is None:
            raise ConditionError(
                f"generator {loaded.name} does not say which tokenizer its {modality} tokens are of; give one"
            )
        from tmcodec.codec.models import load_tokenizer

        tile = tile_of(loaded, modality) or usual_tile(loaded)
        tok = load_tokenizer(ref.name, str(loaded.device), tile=tile)
    if not _retrained(loaded, modality, tok):
        check_tokenizer(loaded, modality, tok.name, tok.sha256)
    return tok


def load_given(loaded: LoadedGenerator, name: str, device: str) -> Tokenizer:
    """Load a tokenizer that the caller names, with the tile of the generator's tokens of its modality.

    Raises
    ------
    TmcodecError
        See `tmcodec.load_tokenizer`.
    """
    from tmcodec.codec.models import load_tokenizer

    tok = load_tokenizer(name, device, tile=usual_tile(loaded))  # its modality is known from here on
    tile = tile_of(loaded, tok.modality.name)
    return tok if tile in (None, tok.tile) else load_tokenizer(name, device, tile=tile)


def tile_of(loaded: LoadedGenerator, modality: str) -> int | None:
    """Return the side in pixels of the tiles of the generator's tokens, None where it is not known.

    Weights files of a training say it. TerraMind's raw checkpoints, whose references have no hashes, were
    trained on tiles as large as the grid. Others may have been trained on any.
    """
    ref = loaded.tokenizers.get(modality)
    if ref is None or ref.tile is not None:
        return None if ref is None else ref.tile
    official = ref.sha256 is None and ref.name in OFFICIAL
    return usual_tile(loaded) if official else None


def usual_tile(loaded: LoadedGenerator) -> int:
    """Return the tile for TerraMind's tokenizers as large as the generator's grid, 256 where none is."""
    tile = loaded.cfg.grid * loaded.cfg.patch
    return tile if tile in (224, 256) else 256


def _retrained(loaded: LoadedGenerator, modality: str, tok: Tokenizer | None) -> bool:
    """Tell whether a tokenizer decodes the very tokens that the generator knows, and has another decoder."""
    ref = loaded.tokenizers.get(modality)
    return tok is not None and ref is not None and ref.sha256 is not None and tok.reads(ref.sha256)


def check_layer(loaded: LoadedGenerator, meta: LayerMeta, given: Mapping[str, Tokenizer]) -> None:
    """Refuse a layer of tokens that the generator does not know.

    Raises
    ------
    TokenizerMismatchError
        If they are of another tokenizer, or of tiles of another size, where it matters and is known.
    """
    tok = given.get(meta.modality)
    same = tok is not None and tok.sha256 == meta.weights_sha256
    if not (same and _retrained(loaded, meta.modality, tok)):
        check_tokenizer(loaded, meta.modality, meta.tokenizer, meta.weights_sha256)
    tile = tile_of(loaded, meta.modality)
    if tile not in (None, meta.tile) and looks_at_tiles(meta.tokenizer):
        raise TokenizerMismatchError(
            f"the {meta.modality} tokens are of tiles of {meta.tile} pixels, but generator {loaded.name} "
            f"knows those of {tile}; encode with --tile {tile}"
        )


def numbered(loaded: LoadedGenerator) -> frozenset[str]:
    """Return the modalities whose tokens are numbers, by the tables of the tokenizers that made them."""
    return frozenset(
        modality
        for modality, ref in loaded.tokenizers.items()
        if ref.sha256 is not None and predictor_of(ref.sha256, get_modality(modality).levels) is not None
    )


def check_tokenizer(loaded: LoadedGenerator, modality: str, name: str, sha256: bytes) -> None:
    """Refuse tokens of another tokenizer than the one that the generator was trained with.

    A reference without a hash means any weights under its name; a generator without a reference takes all.

    Raises
    ------
    TokenizerMismatchError
    """
    ref = loaded.tokenizers.get(modality)
    if ref is None or ref.sha256 == sha256 or (ref.sha256 is None and ref.name == name):
        return
    own = "any weights" if ref.sha256 is None else ref.sha256.hex()[:12]
    raise TokenizerMismatchError(
        f"the {modality} tokens are of {name} ({sha256.hex()[:12]}), but generator {loaded.name} was trained "
        f"with those of {ref.name} ({own}); encode with {ref.name}"
    )
