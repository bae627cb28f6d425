"""Targets that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from tmcodec.atomic import SIDECARS, atomic_path
from tmcodec.errors import TargetExistsError, TargetNameError, TargetWriteError


def test_success(tmp_path: Path) -> None:
    target = tmp_path / "x.tif"
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".tif"
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_said_of_the_target(tmp_path: Path, number: int) -> None:
    target, words = tmp_path / "x.tif", os.strerror(number).lower()
    with pytest.raises(TargetWriteError, match=rf"x\.tif: {words}; nothing was written$"):
        with atomic_path(target) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(number, os.strerror(number))
    assert list(tmp_path.iterdir()) == []


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


def test_failure_removes_what_the_writer_made_beside_its_file(tmp_path: Path) -> None:
    other = tmp_path / ".[x].0123456789ab.part.tif"  # of another process
    other.write_bytes(b"theirs")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "[x].tif") as temporary:
        for name in (temporary.name + ".aux.xml", temporary.stem + ".draft.tif"):
            (tmp_path / name).write_bytes(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [other]


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


@pytest.mark.skipif(os.name == "nt", reason="no FIFOs")
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_file_is_not_replaced_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overwrite: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    (tmp_path / "null").symlink_to(os.devnull)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")  # such names have at most 108 bytes
    kinds = {"pipe": "pipe", "link": "pipe", "null": "device", "socket": "socket"}
    before = {name: (tmp_path / name).lstat() for name in kinds}
    for name, kind in kinds.items():
        message = f"{name} is a {kind}, which cannot be written in place; name a file"
        with pytest.raises(TargetNameError, match=message), atomic_path(tmp_path / name, overwrite):
            pass
    assert {name: (tmp_path / name).lstat() for name in kinds} == before


@pytest.mark.skipif(os.name == "nt", reason="links need rights")
def test_a_link_is_replaced_and_what_it_points_to_is_kept(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("theirs")
    for name, points_to in (("link", "a"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(points_to)
        with atomic_path(tmp_path / name, overwrite=True) as temporary:
            temporary.write_text("new")
        assert not (tmp_path / name).is_symlink() and (tmp_path / name).read_text() == "new"
    assert (tmp_path / "a").read_text() == "theirs"


@pytest.mark.skipif(os.name == "nt", reason="no umask")
def test_mode_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "x") as temporary:
            temporary.write_bytes(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(os.name == "nt", reason="no umask")
def test_mode_follows_the_umask_also_where_the_writer_puts_a_file_of_its_own_there(tmp_path: Path) -> None:
    """As safetensors does, so that others could not read a shared folder of weights."""
    before = os.umask(0o022)
    try:
        with atomic_path(tmp_path / "x") as temporary:
            own = temporary.with_name("own")
            os.close(os.open(own, os.O_CREAT | os.O_WRONLY, 0o600))
            os.replace(own, temporary)
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o644


def test_names_are_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    target = tmp_path / ("\u5730" * 80 + ".tmc")  # 80 characters of three bytes: 244 bytes of at most 255
    with atomic_path(target) as temporary:
        temporary.write_bytes(b"x")
    assert target.read_bytes() == b"x"


@pytest.mark.parametrize("name", ["\u5730" * 84 + ".tmc", "x" * 256 + "/x.tmc"])  # 256 bytes; a folder's
def test_longer_names_are_refused_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(TargetNameError, match="too long"), atomic_path(tmp_path / name):
        pytest.fail("the work began")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- sidecars


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a target that is there, with two sidecars and two files that are none."""
    target = tmp_path / "x.tif"
    for name in ("x.tif", "x.tif.msk", "x.tif.aux.xml", "x.msk", "x.tif.txt"):
        (tmp_path / name).write_text(f"old {name}")
    return target


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def write_with_sidecar(target: Path, overwrite: bool = True) -> None:
    with atomic_path(target, overwrite, SIDECARS) as temporary:
        temporary.write_text("new")
        temporary.with_name(temporary.name + ".aux.xml").write_text("new")


def test_sidecars_of_the_file_before_go_with_it(old: Path) -> None:
    with atomic_path(old, overwrite=True, sidecars=SIDECARS) as temporary:
        temporary.write_text("new")
    others = {"x.msk": "old x.msk", "x.tif.txt": "old x.tif.txt"}
    assert contents(old.parent) == {"x.tif": "new", **others}


def test_sidecars_of_a_file_that_is_gone_are_not_taken_over(old: Path) -> None:
    old.unlink()
    before = contents(old.parent)
    message = r"x\.tif\.aux\.xml and .*x\.tif\.msk would be read as part of the new file; pass overwrite"
    with pytest.raises(TargetExistsError, match=message), atomic_path(old, sidecars=SIDECARS):
        pass
    assert contents(old.parent) == before
    write_with_sidecar(old)
    assert {"x.tif", "x.tif.aux.xml"} == {
        name for name, text in contents(old.parent).items() if text == "new"
    }
    assert not (old.parent / "x.tif.msk").exists()


def test_sidecars_that_came_meanwhile_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetExistsError), atomic_path(tmp_path / "x.tif", sidecars=SIDECARS):
        (tmp_path / "x.tif.ovr").write_text("theirs")
    assert contents(tmp_path) == {"x.tif.ovr": "theirs"}


@pytest.mark.parametrize("there", [True, False])
def test_no_file_ever_stands_beside_sidecars_of_another(
    old: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    if not there:
        old.unlink()
    seen, rename = [], os.replace

    def watched(before: Path, after: Path) -> None:
        rename(before, after)
        now = {name: text for name, text in contents(old.parent).items() if name in parts}
        seen.append({text.split()[0] for text in now.values()} if "x.tif" in now else set())

    parts = {"x.tif", *("x.tif" + ending for ending in SIDECARS)}
    monkeypatch.setattr("tmcodec.atomic.os.replace", watched)
    write_with_sidecar(old)
    assert len(seen) == (5 if there else 4) and all(len(origins) <= 1 for origins in seen)
    assert seen[-1] == {"new"}


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("late", [True, False])
def test_an_interrupt_between_the_renames_leaves_all_as_it_was(
    old: Path, monkeypatch: pytest.MonkeyPatch, at: int, late: bool
) -> None:
    before, calls, rename = contents(old.parent), iter(range(1, 100)), os.replace

    def interrupted(source: Path, target: Path) -> None:
        now = next(calls) == at
        if not now or late:
            rename(source, target)
        if now:
            raise KeyboardInterrupt

    monkeypatch.setattr("tmcodec.atomic.os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_with_sidecar(old)
    assert contents(old.parent) == before
