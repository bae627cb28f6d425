"""Write a corpus of aligned token grids: tokenize once, train many times.

    tmcodec train tokens -c configs/any2any/mini-tokens.yaml

A shard is a token file like any other: its layers are the modalities, and each of its time steps is one
augmented crop. So `tmcodec info`, `verify` and `decode --time` look into it, and a run reads shards and
token files of real places alike.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tmcodec.atomic import atomic_path, check_target
from tmcodec.codec.models import default_model, load_tokenizer
from tmcodec.codec.search import search
from tmcodec.codec.terramind import TILES, TerraMindTokenizer
from tmcodec.codec.tokenizer import Tokenizer
from tmcodec.errors import ConfigError, TargetExistsError
from tmcodec.modalities import get_modality
from tmcodec.tokenfile import FileMeta, LayerMeta, TokenFile, TokenFileWriter
from tmcodec.training.any2any.aligned import AlignedRasters, Place
from tmcodec.training.any2any.grids import pixel_file

Report = Callable[[int, int], None]

BATCH = 8
"""Crops that a tokenizer encodes at once: more does not fit a core's cache."""
CHUNK = 64


@dataclass
class TokenPlan:
    """The configuration of a token corpus.

    Attributes
    ----------
    out
        Folder that the shards are written to, made if it is not there.
    groups
        Aligned rasters, each with its number of crops.
    tokenizers
        By modality: embedded or imported names, or files. Others take the newest embedded one.
    pixels
        Modalities whose pixels are kept beside the shards (``.npy``, float32, physical units), for
        transformers that take pixels.
    search
        Rounds of the search for better tokens (`tmcodec.codec.search`), which files have been through; 0
        keeps the encoder's.
    shard
        Crops a shard.
    seed
        Of places and augmentations.
    device
        Of the tokenizers.
    overwrite
        Whether shards that are there may be replaced.
    resume
        Whether to go on where a call with the same plan was stopped: shards that are there stay.
    """

    out: str
    groups: list[AlignedRasters]
    tokenizers: dict[str, str] = field(default_factory=dict)
    pixels: list[str] = field(default_factory=list)
    search: int = 0
    shard: int = 200
    seed: int = 0
    device: str = "cpu"
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        if not self.groups or self.shard < 1:
            raise ConfigError("a token corpus needs at least one group, and shards of at least one crop")
        if self.overwrite and self.resume:
            raise ConfigError("overwrite writes all shards again, resume keeps them; give one of the two")
        if self.search < 0:
            raise ConfigError(f"search: {self.search} rounds; give 0 or more")
        known = {m for group in self.groups for m in group.modalities}
        for modality in (*self.tokenizers, *self.pixels):
            if modality not in known:
                raise ConfigError(
                    f"{modality} is in none of the groups; they have {', '.join(sorted(known))}"
                )

    @property
    def modalities(self) -> list[str]:
        """Of all groups, sorted."""
        return sorted({m for group in self.groups for m in group.modalities})

    @property
    def tile(self) -> int:
        """Side in pixels of the tiles of TerraMind's tokens, one for all groups: a generator knows one.

        The smallest crop decides: one of 224 pixels is a tile, and would be mirrored to fill one of 256.
        """
        return next((tile for tile in sorted(TILES) if min(g.side for g in self.groups) <= tile), max(TILES))

    def load_tokenizers(self) -> dict[str, Tokenizer]:
        """Load each modality's tokenizer.

        Raises
        ------
        ConfigError
            If a tokenizer is for another modality.
        TmcodecError
            If one cannot be loaded.
        """
        loaded = {}
        for m in self.modalities:
            name = self.tokenizers.get(m) or default_model(m)
            loaded[m] = load_tokenizer(name, self.device, tile=self.tile)
            if loaded[m].modality.name != m:
                raise ConfigError(
                    f"{loaded[m].name} is for {loaded[m].modality.name}, not for {m}; mend tokenizers"
                )
        return loaded


@dataclass(frozen=True)
class Shard:
    """One file to be written: which group, the number of its first crop, how many."""

    group: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """File name."""
        return f"group{self.group:02d}-{self.first:06d}.tmc"


def shards_of(plan: TokenPlan) -> list[Shard]:
    """Return all shards of a plan."""
    return [
        Shard(i, first, min(plan.shard, group.crops - first))
        for i, group in enumerate(plan.groups)
        for first in range(0, group.crops, plan.shard)
    ]


def write_corpus(plan: TokenPlan, part: tuple[int, int] = (0, 1), report: Report | None = None) -> list[Path]:
    """Write the shards of a plan.

    Crop number n of a group is a function of the seed and n alone, so several processes may each write a
    part.

    Parameters
    ----------
    plan
        What to write.
    part
        ``(i, n)``: every n-th shard, beginning with shard i.
    report
        Called with (shards done, shards in all).

    Returns
    -------
    list of Path
        The files, in order.

    Raises
    ------
    TmcodecError
        What a raster or tokenizer raises; TargetExistsError, before anything is encoded, where a shard is
        there and `plan.overwrite` and `plan.resume` are off, or it is of another plan. Shards that are
        finished stay.
    """
    if not 0 <= part[0] < part[1]:
        raise ConfigError(f"part {part[0]}/{part[1]}: the first number counts from 0 and is below the second")
    tokenizers, out = plan.load_tokenizers(), Path(plan.out)
    out.mkdir(parents=True, exist_ok=True)
    mine = {out / shard.name: shard for shard in shards_of(plan)[part[0] :: part[1]]}
    missing = {p: s for p, s in mine.items() if not plan.resume or not is_written(p, plan, s, tokenizers)}
    for path, shard in missing.items():
        for target in (path, *(pixel_file(path, m) for m in kept_pixels(plan, shard))):
            check_target(target, plan.overwrite or plan.resume)
    for done, (path, shard) in enumerate(missing.items(), len(mine) - len(missing) + 1):
        write_shard(path, plan, shard, tokenizers)
        if report is not None:
            report(done, len(mine))
    return list(mine)


def kept_pixels(plan: TokenPlan, shard: Shard) -> list[str]:
    """Return the modalities of a shard whose pixels are kept."""
    return [m for m in plan.pixels if m in plan.groups[shard.group].modalities]


def meta_of(plan: TokenPlan, shard: Shard, tokenizers: Mapping[str, Tokenizer]) -> FileMeta:
    """Return the metadata of a shard; its tags tell shards of different plans apart."""
    group = plan.groups[shard.group]
    told = json.dumps([group.describe(), plan.search], sort_keys=True)
    tags = {
        "corpus": "augmented crops, one a time step", "seed": str(plan.seed), "first": str(shard.first),
        "plan": hashlib.sha256(told.encode()).hexdigest()[:16],
    }  # fmt: skip
    return FileMeta(tuple(layer_of(tokenizers[m], group.side, shard.count) for m in group.modalities), tags)


def is_written(path: Path, plan: TokenPlan, shard: Shard, tokenizers: Mapping[str, Tokenizer]) -> bool:
    """Whether a shard is there with all that belongs to it; TargetExistsError if it is of another plan."""
    if not path.exists():
        return False
    with TokenFile.open(path) as file:
        found = file.meta
    wanted = meta_of(plan, shard, tokenizers)
    if found.layers != wanted.layers or any(found.tags.get(k) != v for k, v in wanted.tags.items()):
        raise TargetExistsError(f"{path} is of another plan; pass overwrite, or name another folder with out")
    return all(pixel_file(path, m).exists() for m in kept_pixels(plan, shard))


def write_shard(path: Path, plan: TokenPlan, shard: Shard, tokenizers: Mapping[str, Tokenizer]) -> None:
    """Draw, encode and write the crops of one shard, and the pixels that are to be kept."""
    group = plan.groups[shard.group]
    kept: dict[str, list[np.ndarray]] = {m: [] for m in kept_pixels(plan, shard)}
    rows, overwrite = group.side // 16, plan.overwrite or plan.resume
    with TokenFileWriter(path, meta_of(plan, shard, tokenizers), overwrite, coders=(0,)) as writer:
        time = 0
        for batch in batches(group, shard, plan.seed):
            for index, modality in enumerate(group.modalities):
                values = np.stack([place[modality][0] for place in batch])
                found = encode_crops(tokenizers[modality], torch.from_numpy(values)).cpu().numpy()
                for i, (place, tokens) in enumerate(zip(batch, found, strict=True)):
                    picture, valid = place[modality]
                    mask = np.broadcast_to(valid, picture.shape)
                    better = search(tokenizers[modality], tokens, picture, mask, plan.search)
                    write_grid(writer, index, time + i, better, valid, rows)
                if modality in kept:
                    kept[modality].append(values)
            time += len(batch)
        for modality, parts in kept.items():
            with (
                atomic_path(pixel_file(path, modality), overwrite) as temporary,
                temporary.open("wb") as file,
            ):
                np.save(file, np.concatenate(parts), allow_pickle=False)


def encode_crops(tok: Tokenizer, crops: torch.Tensor) -> torch.Tensor:
    """Return the tokens ``(B, rows, cols)`` that rasters like the crops ``(B, C, side, side)`` would have.

    TerraMind's tokenizers look at all that they are given, and rasters go through them in tiles.
    """
    if isinstance(tok, TerraMindTokenizer) and crops.shape[-1] != tok.tile:
        return torch.cat([tok.encode_context(crop[None]) for crop in crops])
    return tok.encode(crops)


def batches(group: AlignedRasters, shard: Shard, seed: int) -> Iterator[list[Place]]:
    """Draw the crops of a shard, a few at a time."""
    numbers = iter(range(shard.first, shard.first + shard.count))
    while some := list(itertools.islice(numbers, BATCH)):
        yield [group.draw(np.random.default_rng([seed, shard.group, n])) for n in some]


def layer_of(tok: Tokenizer, side: int, count: int) -> LayerMeta:
    """Return the metadata of a shard's layer: `count` crops along the time axis."""
    row = get_modality(tok.modality.name)
    return LayerMeta(
        name=row.name, modality=row.name, tokenizer=tok.name, weights_sha256=tok.sha256, levels=tok.levels,
        width=side, height=side, dtype="float32", bands=row.bands, units=row.units,
        patch=tok.patch, tile=tok.tile, chunk=CHUNK,
        s2_offset="present" if row.optical else "", times=(None,) * count,
    )  # fmt: skip


def write_grid(
    writer: TokenFileWriter, layer: int, time: int, tokens: np.ndarray, valid: np.ndarray, rows: int
) -> None:
    """Write one crop's grid, chunk by chunk, with its mask where a pixel is invalid."""
    whole = bool(valid.all())
    for r in range(0, rows, CHUNK):
        for c in range(0, rows, CHUNK):
            part = tokens[r : r + CHUNK, c : c + CHUNK]
            pixels = valid[:, r * 16 : (r + CHUNK) * 16, c * 16 : (c + CHUNK) * 16]
            mask = None if whole else np.all(pixels, 0, keepdims=True)
            writer.write_chunk(layer, time, r // CHUNK, c // CHUNK, part, mask)
