"""Targets that cannot be written are refused before any work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import tmcodec
from tmcodec import errors


def test_a_missing_folder_is_named_at_once(make_scene: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(errors.TargetFolderError, match="nowhere does not exist; create it"):
        tmcodec.encode(make_scene(), tmp_path / "nowhere" / "a.tmc", tokenizer="/not/loaded.safetensors")


def test_salvage_reads_a_file_that_was_cut_short(
    make_scene: Callable[..., Path], tiny_tokenizer: Callable[[str], Path], tmp_path: Path
) -> None:
    path, out = tmp_path / "a.tmc", tmp_path / "a.tif"
    tmcodec.encode(make_scene(nodata=0), path, tokenizer=tiny_tokenizer("S2L2A"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.TruncatedFileError):
        tmcodec.decode(path, out, tokenizer=tiny_tokenizer("S2L2A"))
    assert tmcodec.decode(path, out, tokenizer=tiny_tokenizer("S2L2A"), salvage=True).lost_chunks == 1
