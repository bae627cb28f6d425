"""Any-to-any generation in memory: conditions in, tokens of other modalities out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from operator import index
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tmcodec.errors import ConditionError, GenerationError, GridMismatchError
from tmcodec.generation.conditions import (
    MAX_TOKENS,
    Grid,
    Image,
    as_tensor,
    image_inputs,
    sequence_inputs,
    some_without,
)
from tmcodec.generation.engine import Request, Stream, run_in_batches
from tmcodec.generation.settings import DECODING_STEPS, TOP_P, Settings, condition_name, target_spec
from tmcodec.generation.texts import write_texts
from tmcodec.generation.tokenizers import numbered, tokenizer_of
from tmcodec.networks.generator.config import SEQUENCES
from tmcodec.networks.precision import inference
from tmcodec.texts import shown

if TYPE_CHECKING:
    from tmcodec.codec.tokenizer import Tokenizer
    from tmcodec.generation.models import LoadedGenerator



@dataclass(frozen=True)
class Generated:
    """What was generated. Keys are modalities, K samples of B items.

    Attributes
    ----------
    sampled_tokens
        int32 ``(K, B, rows, cols)``.
    sampled_log_probabilities
        float32, same shape: natural logarithm of the probability that the network gave each token when it
        was drawn, before temperature and filters; 0 for tokens that were given.
    sampled_rasters
        float32 ``(K, B, C, H, W)`` in physical units, class ids for LULC; empty unless asked for.
    texts
        Of ``"coords"`` and ``"caption"``: K lists of B texts.
    """

    sampled_tokens: dict[str, Tensor] = field(default_factory=dict)
    sampled_log_probabilities: dict[str, Tensor] = field(default_factory=dict)
    sampled_rasters: dict[str, Tensor] = field(default_factory=dict)
    texts: dict[str, list[list[str]]] = field(default_factory=dict)

    @property
    def tokens(self) -> dict[str, Tensor]:
        """Tokens of the first sample, int32 ``(B, rows, cols)``."""
        return {name: value[0] for name, value in self.sampled_tokens.items()}

    @property
    def log_probabilities(self) -> dict[str, Tensor]:
        """Log-probabilities of the first sample, float32 ``(B, rows, cols)``."""
        return {name: value[0] for name, value in self.sampled_log_probabilities.items()}

    @property
    def rasters(self) -> dict[str, Tensor]:
        """Rasters of the first sample, float32 ``(B, C, H, W)``."""
        return {name: value[0] for name, value in self.sampled_rasters.items()}


def generate(
    loaded: LoadedGenerator,
    inputs: Mapping[str, Any],
    targets: str | Sequence[str],
    *,
    order: str = "chained",
    schedule: str = "nearest",
    token_schedule: str | None = None,
    decoding_steps: int | Mapping[str, int] | Sequence[int] = DECODING_STEPS,
    temperature: float = 1.0,
    top_p: float | None = TOP_P,
    top_k: int | None = None,
    filtering: str = "tempered",
    guidance: float | Mapping[str, float] | None = None,
    samples: int = 1,
    choice: str = "draw",
    trust: float | None = None,
    seed: int | Sequence[int] = 0,
    decode: bool = False,
    steps: int = 1,
    grid: Grid | None = None,
) -> Generated:
    """Generate tokens of modalities from others.

    Parameters
    ----------
    loaded
        From `tmcodec.load_generator`.
    inputs
        By modality: tokens, integers ``(B, rows, cols)`` or ``(rows, cols)``; or pixels ``(B, C, H, W)`` in
        physical units. ``"coords"``: (longitude, latitude) in degrees, one or one an item, None for those
        without. ``"caption"``: a text, or one an item. Tokens of -1, and patches with values that are not
        finite, are not known, and are not shown to the encoder; where the modality is a target too, they are
        what is made.
    targets
        Modality to make, or several, in this order; ``"coords"`` and ``"caption"`` come last, as texts.
    order
        ``"chained"``: each target is a condition of the next. ``"independent"``: none is.
    schedule
        ``"nearest"``: each step draws all that are missing and keeps those nearest to what the network
        expects; ``"roar"``: random order; ``"maskgit"``: the likeliest of the draws first.
    token_schedule
        How many tokens a step fills in: ``"linear"`` (default), ``"cosine"`` (default of MaskGIT) or
        ``"half-cosine"``; see `tmcodec.generation.schedules`.
    decoding_steps
        Steps of each target: one number, one a target, or by name.
    temperature
        Divides the logits; 0 takes the likeliest token.
    top_p, top_k
        Keep the fewest of the likeliest tokens that reach this share, and so many at most; None keeps all.
    filtering
        ``"tempered"``: temperature before top-p; ``"official"``: after it, as TerraTorch.
    guidance
        Classifier-free guidance: a weight for all conditions together, or one for each of several; see
        `tmcodec.generation.guidance`.
    samples
        How many to draw of each item, 1..64.
    choice
        ``"draw"``; ``"mean"``: the token nearest to the mean of what is possible, nearer to the truth pixel
        by pixel and smoother; best in one decoding step.
    trust
        In a chain, what the targets made before count for as conditions of the next, 0..1, 1 being as much as
        what was given; less than 1 costs a pass. None: what is best for this generator
        (`LoadedGenerator.trust`).
    seed
        Decides everything drawn, together with the sample's number and the target; one for all items, or
        one each. Torch's global random state is neither read nor changed.
    decode
        Also decode to rasters, with the tokenizers that the generator knows.
    steps
        Sampling steps of that; 1 is the mean. More draw noise by the seed, the same for all samples.
    grid
        Rows and columns where no image is given; None is the model's own.

    Returns
    -------
    Generated

    Raises
    ------
    ModalityError, ConditionError, VocabularyError
        If an input is unknown, not taken by the model, or of the wrong form.
    TokenRangeError
        If a token lies outside its codebook.
    GridMismatchError
        If inputs have different grids.
    TargetError
        If the model does not make a target, or has no way to be shown it.
    GenerationError
        If another parameter is out of range, or several samples are asked for and nothing is drawn.
    TokenizerError
        If a tokenizer is needed and cannot be had, or has other weights than the generator was trained with.
    """
    images_to, texts_to = split_targets(targets)
    settings = Settings(order, schedule, token_schedule, decoding_steps, temperature, top_p, top_k, filtering,
                        guidance, samples, choice, trust)  # fmt: skip
    conditions = [condition_name(name) for name in inputs]
    plans = settings.plans(loaded.cfg, images_to, conditions, bool(texts_to), numbered(loaded), loaded.trust)
    if not texts_to:
        settings.check_drawn(plans)
    sequences = [target_spec(loaded.cfg, name) for name in texts_to]
    with inference(loaded.device):
        images = image_inputs(loaded, inputs)
        batch, at = _sizes(loaded, images, inputs, grid)
        words = sequence_inputs(loaded, inputs, batch)
        request = Request(loaded.net, images, words, plans, settings.chained, samples, batch, at)
        seeds = _seeds(seed, batch)
        # Before anything is generated: they may not be there.
        toks = {plan.spec.modality: tokenizer_of(loaded, plan.spec.modality) for plan in plans if decode}
        streams = [Stream(s) for s in seeds]
        made = run_in_batches(request, streams)
        texts = write_texts(loaded, request, sequences, settings.sampling, streams, made)
        rasters = {name: decode_tokens(tok, made[name].tokens, steps, seeds) for name, tok in toks.items()}
    return Generated(
        {name: m.tokens.to(torch.int32) for name, m in made.items()},
        {name: m.log_probabilities for name, m in made.items()},
        rasters,
        texts,
    )


def split_targets(targets: str | Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the image targets and the texts among targets; a single name is one target."""
    names = [targets] if isinstance(targets, str) else targets
    texts = [name.lower() for name in names if name.lower() in SEQUENCES]
    return [name for name in names if name.lower() not in SEQUENCES], texts


def _sizes(
    loaded: LoadedGenerator, images: Mapping[str, Image], inputs: Mapping[str, Any], grid: Grid | None
) -> tuple[int, Grid]:
    """Return the number of items and their grid."""
    for image in images.values():
        if grid is not None and tuple(grid) != image.grid:
            raise GridMismatchError(f"grid {tuple(grid)}, but the inputs have {image.grid}; leave grid out")
        return len(image.values), image.grid
    if not inputs:
        raise ConditionError("no inputs; give tokens, pixels, coords or a caption")
    rows, cols = grid or (loaded.cfg.grid, loaded.cfg.grid)
    if rows < 1 or cols < 1 or rows * cols > MAX_TOKENS:
        raise GenerationError(f"grid {rows} x {cols}; give rows and columns of 1 to {MAX_TOKENS} tokens")
    counts = {_count(condition_name(name), value) for name, value in inputs.items()} - {1}
    if len(counts) > 1:
        raise ConditionError(f"inputs of {', '.join(map(str, sorted(counts)))} items; give equally many")
    return max(counts, default=1), (rows, cols)


def _count(name: str, value: Any) -> int:
    """Return how many items a sequence input speaks of."""
    if name == "caption":
        return 1 if isinstance(value, str) else len(value)
    if some_without(value):
        return len(value)
    pairs = as_tensor(name, value)
    return len(pairs) if pairs.ndim > 1 else 1


def _seeds(seed: int | Sequence[int], batch: int) -> list[int]:
    try:
        seeds = [index(seed)] * batch if isinstance(seed, int | Integral) else [index(s) for s in seed]
    except TypeError:
        raise GenerationError(f"seed {shown(seed)}; give a whole number, or one for each item") from None
    if len(seeds) != batch or not all(0 <= s < 2**64 for s in seeds):
        raise GenerationError(f"seeds {seeds[:4]} for {batch} items; give one, or one each, in 0..2**64-1")
    return seeds


def decode_tokens(tok: Tokenizer, tokens: Tensor, steps: int, seeds: Sequence[int]) -> Tensor:
    """Decode tokens ``(K, B, rows, cols)`` to rasters ``(K, B, C, H, W)``.

    The samples of an item see the same noise, as in files: equal tokens are equal rasters, and what samples
    differ by is what the generator left open.
    """
    if not tok.draws_noise(steps):
        return tok.decode(tokens.flatten(0, 1), steps).unflatten(0, tokens.shape[:2])
    pictures = [
        tok.decode(item[None], steps, seed)[0]
        for items in tokens
        for seed, item in zip(seeds, items, strict=True)
    ]
    return torch.stack(pictures).unflatten(0, tokens.shape[:2])
