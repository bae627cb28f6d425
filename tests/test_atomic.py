"""Targets that appear complete or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tmcodec.atomic import atomic_path
from tmcodec.errors import TargetExistsError


def test_success(tmp_path: Path) -> None:
    target = tmp_path / "x.tif"
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".tif"
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_failure(tmp_path: Path) -> None:
    target = tmp_path / "x.tif"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target, overwrite=True) as temporary:
        temporary.write_bytes(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_failure_after_the_writer_removed_its_file(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "x.tif") as temporary:
        temporary.unlink()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_refuses_existing(tmp_path: Path) -> None:
    target = tmp_path / "x.tif"
    target.write_bytes(b"old")
    with pytest.raises(TargetExistsError, match=r"x\.tif exists"), atomic_path(target):
        pass
    assert target.read_bytes() == b"old"


def test_refuses_what_came_meanwhile(tmp_path: Path) -> None:
    target = tmp_path / "x.tif"
    with pytest.raises(TargetExistsError), atomic_path(target) as temporary:
        temporary.write_bytes(b"new")
        target.write_bytes(b"theirs")
    assert target.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.skipif(os.name == "nt", reason="no umask")
def test_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "x") as temporary:
            temporary.write_bytes(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_names_are_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    target = tmp_path / ("\u5730" * 80 + ".tmc")  # 80 characters of three bytes: 244 bytes of at most 255
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"x")
    assert target.read_bytes() == b"x"
