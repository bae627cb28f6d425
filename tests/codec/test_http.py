"""Rasters and token files behind a real HTTP server: how many requests, and the same bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tmcodec
from tmcodec.errors import RasterOpenError, SourceError

pytest.importorskip("aiohttp", reason="needs the extra [remote]")


Gets = Callable[[], list[int]]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Gets]]:
    """A server of `tmp_path`: its address, and a function that returns the sizes of what was sent."""
    log = tmp_path / "requests.log"
    log.touch()
    command = [sys.executable, str(Path(__file__).with_name("range_server.py")), str(tmp_path), str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}", lambda: [int(line.split()[1]) for line in log.open()]
        process.kill()


def write_tokens(path: Path) -> np.ndarray:
    """Write a DEM of 4096 x 4096 pixels, 256 x 256 random tokens in 16 chunks; return the tokens."""
    from tmcodec.tokenfile import FileMeta, LayerMeta, TokenFileWriter

    meta = LayerMeta(
        name="DEM", modality="DEM", tokenizer="mini-dem-v1", weights_sha256=bytes(32), levels=(8, 8, 8, 6, 5),
        width=4096, height=4096, dtype="int16", bands=("DEM",), units="m",
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, 15360, (256, 256), np.int32)
    with TokenFileWriter(path, FileMeta((meta,))) as writer:
        for row, col in np.ndindex(4, 4):
            part = tokens[row * 64 : row * 64 + 64, col * 64 : col * 64 + 64]
            writer.write_chunk(0, 0, row, col, part)
    return tokens


def test_a_window_of_a_remote_token_file_costs_two_requests(
    server: tuple[str, Gets], tmp_path: Path
) -> None:
    address, gets = server
    tokens = write_tokens(tmp_path / "dem.tmc")
    with tmcodec.open(f"{address}/dem.tmc") as file:
        got = file["DEM"].tokens(window=(70, 130, 40, 30))
    np.testing.assert_array_equal(got, tokens[130:160, 70:110])
    assert len(gets()) <= 2
    assert sum(gets()) < (tmp_path / "dem.tmc").stat().st_size


def test_a_remote_raster_is_encoded_and_decoded(
    server: tuple[str, Gets], tmp_path: Path
) -> None:
    address, gets = server
    demo = Path(tmcodec.__file__).parent / "data" / "demo_s2l2a.tif"
    (tmp_path / "scene.tif").write_bytes(demo.read_bytes())
    tmcodec.encode(f"/vsicurl/{address}/scene.tif", tmp_path / "remote.tmc", modality="S2L2A")
    assert sum(gets()) >= demo.stat().st_size / 2
    tmcodec.encode(demo, tmp_path / "local.tmc", modality="S2L2A")
    assert (tmp_path / "remote.tmc").read_bytes() == (tmp_path / "local.tmc").read_bytes()
    remote, _ = tmcodec.decode_array(f"{address}/remote.tmc")
    local, _ = tmcodec.decode_array(tmp_path / "local.tmc")
    np.testing.assert_array_equal(remote, local)


def test_what_is_not_there_is_one_clear_error(
    server: tuple[str, Gets], tmp_path: Path
) -> None:
    address, _ = server
    with pytest.raises(RasterOpenError, match=r"missing\.tif"):
        tmcodec.encode(f"/vsicurl/{address}/missing.tif", tmp_path / "a.tmc", modality="S2L2A")
    with pytest.raises((tmcodec.TmcodecError, OSError), match=r"missing\.tmc"):
        tmcodec.open(f"{address}/missing.tmc")
    assert not (tmp_path / "a.tmc").exists()


def test_a_connection_that_breaks_is_one_clear_error(server: tuple[str, Gets], tmp_path: Path) -> None:
    address, _ = server
    tokens = write_tokens(tmp_path / "cut.tmc")
    with tmcodec.open(f"{address}/cut.tmc") as file:
        first = file["DEM"].tokens(window=(0, 0, 64, 64))  # came with the header
        with pytest.raises(SourceError, match=r"cannot read .*cut\.tmc: .*; try again"):
            file["DEM"].tokens()
    np.testing.assert_array_equal(first, tokens[:64, :64])


def test_a_server_that_fails_is_no_missing_file(server: tuple[str, Gets]) -> None:
    address, _ = server
    with pytest.raises(SourceError, match="503"):
        tmcodec.open(f"{address}/broken.tmc")
    with pytest.raises(SourceError, match="no such file"):
        tmcodec.open(f"{address}/missing.tmc")
    with pytest.raises(SourceError, match=r"(?i)connect"):
        tmcodec.open("http://127.0.0.1:1/nobody.tmc")
