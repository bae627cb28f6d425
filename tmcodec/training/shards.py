"""TerraMesh's shards: tar archives of zipped Zarr samples, opened at random places."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tmcodec.errors import CorpusError, UnitsError
from tmcodec.modalities import S2_OFFSET
from tmcodec.training.sources import Crop, CropSource, random_window
from tmcodec.training.zarr_zip import MAX_BYTES, read_array

SUFFIX = ".zarr.zip"
Entry = tuple[int, int, int, str]
"""Shard, offset of the bytes, their number, key of the sample."""


class TerraMeshShards(CropSource):
    """Samples of WebDataset shards in TerraMesh's layout, one modality a folder.

    A shard's table of contents is read once (tar headers alone), after that samples are read where they lie:
    no shuffle buffer is needed, and the order is reproducible. Shards are local or mounted files.

    Parameters
    ----------
    path
        A folder of ``*.tar``, e.g. ``TerraMesh/train/S2L2A``, or one shard.
    modality
        Of the samples.
    s2_offset
        ``"darkest"``: Sentinel-2's offset is added to samples whose darkest percent lies below 900;
        ``"present"``, ``"absent"``: as the words say.
    key
        Array of the Zarr group.
    weight, skip_bad, min_valid
        See `tmcodec.training.sources.CropSource`. A shard cut short is bad as a whole.

    Notes
    -----
    Values are physical already (S1 and NDVI float16 with NaN where there is nothing). Sentinel-2 pixels that
    are 0 in all bands count as invalid. Of samples with several times, ``(T, C, H, W)``, one is drawn.

    Raises
    ------
    CorpusError
        If there is no shard or no sample, or a shard is unreadable and `skip_bad` is off.
    """

    def __init__(
        self,
        path: str,
        modality: str,
        weight: float = 1.0,
        s2_offset: Literal["darkest", "present", "absent"] = "darkest",
        key: str = "bands",
        skip_bad: bool = False,
        min_valid: float = 0.1,
    ) -> None:
        super().__init__(modality, weight, skip_bad, min_valid)
        self.s2_offset, self.key = s2_offset, key
        self.shards = [Path(path)] if Path(path).is_file() else sorted(Path(path).glob("*.tar"))
        if not self.shards:
            raise CorpusError(f"{path}: no shard (*.tar) there; check the path")
        self.entries: list[Entry] = []
        for number, shard in enumerate(self.shards):
            try:
                self.entries += list(list_samples(number, shard))
            except CorpusError as error:
                if not skip_bad:
                    raise
                self.bad[str(shard)] = str(error)
        if not self.entries:
            why = f" ({next(iter(self.bad.values()))})" if self.bad else ""
            raise CorpusError(
                f"{path}: no sample (*{SUFFIX}) in its {len(self.shards)} shards{why}; check the path"
            )
        self._shares = np.full(len(self.entries), 1 / len(self.entries))

    @property
    def shares(self) -> npt.NDArray[np.float64]:
        """See `CropSource`; all samples count alike."""
        return self._shares

    def name_of(self, item: int) -> str:
        """Return shard and key."""
        shard, _, _, key = self.entries[item]
        return f"{self.shards[shard]}:{key}"

    def load(self, item: int) -> npt.NDArray[np.float32]:
        """Return a sample ``(T, C, H, W)``, float32.

        Raises
        ------
        CorpusError
            If it is damaged or has other bands than the modality.
        """
        shard, offset, size, _ = self.entries[item]
        with open(self.shards[shard], "rb") as f:
            f.seek(offset)
            data = f.read(size)
        values = read_array(data, self.key).astype(np.float32)
        values = values[None] if values.ndim == 2 else values  # class maps and indices may have no band axis
        values = values[None] if values.ndim == 3 else values
        bands = len(self.modality.bands)
        if values.ndim != 4 or values.shape[1] != bands:
            raise CorpusError(f"{self.key} has shape {values.shape[1:]}, not ({bands}, H, W)")
        return values

    def physical(self, stored: npt.NDArray[np.float32]) -> Crop:
        """Return physical values and validity of one time, ``(C, H, W)``; UnitsError for unknown classes."""
        valid = np.isfinite(stored)
        values = np.where(valid, stored, np.float32(0))
        if self.modality.optical:
            valid = valid & values.any(axis=0)
            if self._lacks_offset(values, valid):
                values = values + np.float32(S2_OFFSET)
        elif self.modality.categorical and not self._known(values):
            raise UnitsError(f"class ids outside 0..{len(self.modality.classes) - 1}")
        if self.modality.zero_is_no_data:
            valid = valid & (values != 0)
        return values, valid

    def _lacks_offset(self, values: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]) -> bool:
        if self.s2_offset == "darkest":
            return bool(valid.any()) and float(np.percentile(values[valid], 1)) < 900
        return self.s2_offset == "absent"

    def _known(self, values: npt.NDArray[np.float32]) -> bool:
        return bool(((values >= 0) & (values < len(self.modality.classes))).all())

    def read(self, item: int, rng: np.random.Generator, side: int) -> Crop:
        """See `CropSource`."""
        times = self.load(item)
        values, valid = self.physical(times[int(rng.integers(len(times)))])
        w = random_window(values.shape[2], values.shape[1], side, rng)
        window = (slice(None), slice(w.row, w.row + w.height), slice(w.col, w.col + w.width))
        return values[window], valid[window]

    def windows(self, item: int) -> Iterator[Crop]:
        """See `CropSource`; a sample is one window, each of its times."""
        for stored in self.load(item):
            yield self.physical(stored)


def list_samples(number: int, shard: Path) -> Iterator[Entry]:
    """Yield the samples of a shard from its tar headers."""
    try:
        with tarfile.open(shard, "r:") as tar:
            size = shard.stat().st_size
            for member in tar:
                if member.isreg() and member.name.endswith(SUFFIX):
                    if member.size > MAX_BYTES or member.offset_data + member.size > size:
                        raise CorpusError(f"{shard}: cut short or damaged at {member.name}; copy it again")
                    yield number, member.offset_data, member.size, member.name.removesuffix(SUFFIX)
    except (tarfile.TarError, OSError, EOFError) as err:
        raise CorpusError(f"{shard}: not a readable tar archive ({err}); copy it again") from err
