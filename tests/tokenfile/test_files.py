"""Writing and reading whole files."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import threading
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenfile_helpers import CountingFile, layer_meta, random_tokens, write_file

from tmcodec import tokenfile
from tmcodec.errors import (
    ChunkError,
    LayerNotFoundError,
    LimitExceededError,
    SourceError,
    StackError,
    TargetExistsError,
    TargetWriteError,
    TokenRangeError,
    WindowError,
)
from tmcodec.modalities import MODALITIES
from tmcodec.tokenfile import FileMeta, LayerMeta, TokenFile, TokenFileWriter

META = layer_meta()
TOKENS = random_tokens(META)


@st.composite
def windows(draw: st.DrawFn) -> tuple[int, int, int, int]:
    col, row = draw(st.integers(0, META.cols - 1)), draw(st.integers(0, META.rows - 1))
    return col, row, draw(st.integers(1, META.cols - col)), draw(st.integers(1, META.rows - row))


def masks() -> np.ndarray:
    """Chunk (0, 0) full, (0, 1) partial alike in all bands, (1, 0) by band, (1, 1) empty."""
    valid = np.ones((1, 3, META.height, META.width), bool)
    valid[0, :, 5:9, 22:30] = False
    valid[0, 1, 22:25, 3:7] = False
    valid[0, :, 20:, 20:] = False
    return valid


MASKED = write_file(META, [TOKENS], [masks()])


@given(windows())
@settings(max_examples=60)
def test_windows_equal_slices(window: tuple[int, int, int, int]) -> None:
    col, row, width, height = window
    expected = TOKENS[0].copy()
    expected[5:, 5:] = 0
    with TokenFile.open(io.BytesIO(MASKED)) as file:
        layer = file["a"]
        tokens, valid, empty = layer.tokens(window), layer.valid(window), layer.empty(window)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, expected[row : row + height, col : col + width])
    mask = masks()[0][:, row * 4 : (row + height) * 4, col * 4 : (col + width) * 4]
    if valid is None:
        assert mask.all()
    else:
        assert valid.shape[1:] == mask.shape[1:]
        np.testing.assert_array_equal(np.broadcast_to(valid, mask.shape), mask)
    inside = np.zeros((7, 9), bool)
    inside[5:, 5:] = True
    np.testing.assert_array_equal(empty, inside[row : row + height, col : col + width])


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_any_layer_round_trips(data: st.DataObject) -> None:
    patch = data.draw(st.integers(1, 5))
    meta = layer_meta(
        patch=patch,
        tile=patch,
        chunk=data.draw(st.integers(1, 8)),
        width=data.draw(st.integers(1, 40)),
        height=data.draw(st.integers(1, 40)),
        levels=data.draw(st.sampled_from([(2,), (8, 8, 8, 6, 5), (7, 5, 5, 5, 5), (256, 256, 256)])),
        times=(None,) * data.draw(st.integers(1, 2)),
    )
    tokens = random_tokens(meta)
    share = data.draw(st.sampled_from([0.01, 0.5, 0.999]))
    planes = data.draw(st.sampled_from([1, 3]))
    valid = np.random.default_rng(1).random((len(meta.times), planes, meta.height, meta.width)) < share
    with TokenFile.open(io.BytesIO(write_file(meta, [tokens], [valid]))) as file:
        for time in range(len(meta.times)):
            read = file["a"].read(time=time)
            np.testing.assert_array_equal(read.tokens, np.where(read.empty, 0, tokens[time]))
            back = np.ones((1, 1, 1), bool) if read.valid is None else read.valid
            np.testing.assert_array_equal(np.broadcast_to(back, (3, *valid.shape[2:])), np.broadcast_to(
                valid[time], (3, *valid.shape[2:])))  # fmt: skip
            assert read.intact.all()


def test_states_cost_what_they_should() -> None:
    ones = np.ones((1, 1, META.height, META.width), bool)
    assert write_file(META, [TOKENS], [ones]) == write_file(META, [TOKENS])
    with TokenFile.open(io.BytesIO(write_file(META, [TOKENS], [~ones]))) as file:
        assert file["a"].payload_bytes == 0
        assert file["a"].empty().all()
        assert file["a"].valid() is not None and not file["a"].valid().any()
        assert not file["a"].tokens().any()


def test_empty_chunks_are_free() -> None:
    big = layer_meta(width=2000, height=2000)
    small = layer_meta(width=20, height=20)
    sizes = []
    for meta in (big, small):
        file = io.BytesIO()
        with TokenFileWriter(file, FileMeta((meta,))) as writer:
            for row, col in np.ndindex(meta.grid.chunk_rows, meta.grid.chunk_cols):
                writer.write_chunk(0, 0, row, col, None)
        sizes.append(len(file.getvalue()))
    assert sizes[0] - sizes[1] <= 6  # ten thousand empty chunks


def test_overhead_of_a_chip() -> None:
    row = MODALITIES["S2L2A"]
    meta = LayerMeta(
        name="S2L2A", modality="S2L2A", tokenizer="mini-s2l2a-v1", weights_sha256=b"\xab" * 32,
        levels=row.levels, width=256, height=256, dtype="uint16", bands=row.bands, units="DN",
        crs="EPSG:32632", transform=(10, 0, 399960, 0, -10, 4900020), nodata=0, s2_offset="present",
        times=(datetime(2023, 6, 1, 10, 20, 31),),
    )  # fmt: skip
    data = write_file(meta, [random_tokens(meta)])
    with TokenFile.open(io.BytesIO(data)) as file:
        assert file.header_bytes < 115
        assert file.size == len(data) == file.header_bytes + 446  # 256 * log2(15360) / 8, rounded up
    assert len(data) * 1000 < 256 * 256 * 12 * 2


def test_attributes() -> None:
    with tokenfile.open(io.BytesIO(MASKED)) as file:
        layer = file["a"]
        assert list(file) == ["a"] and len(file) == 1 and "a" in file and "b" not in file
        assert file.layers["a"] is layer
        assert layer.shape == (7, 9)
        assert (layer.bands, layer.tokenizer, layer.width) == (META.bands, "mini-s2rgb-v1", 34)
        assert layer.crs is None and layer.transform is None
        assert file.meta == FileMeta((META,))
        with pytest.raises(AttributeError):
            layer.colour  # noqa: B018


# --------------------------------------------------------------------------- reads


def big_file() -> tuple[bytes, np.ndarray]:
    meta = layer_meta(width=2400, height=2400, chunk=20)
    tokens = random_tokens(meta)
    return write_file(meta, [tokens]), tokens[0]


@pytest.mark.parametrize("window", [None, (100, 200, 50, 60), (0, 0, 1, 600), (599, 599, 1, 1)])
def test_two_reads(window: tuple[int, int, int, int] | None) -> None:
    data, tokens = big_file()
    counting = CountingFile(data)
    with TokenFile.open(counting) as file:
        assert len(counting.reads) == 1
        assert counting.reads[0] == (0, 65536)
        layer = file["a"]
        col, row, width, height = window or (0, 0, 600, 600)
        np.testing.assert_array_equal(layer.tokens(window), tokens[row : row + height, col : col + width])
        assert layer.valid(window) is None
        assert layer.intact(window).all()
    assert len(counting.reads) <= 2


def test_long_header_takes_one_more_read() -> None:
    meta = layer_meta(tags={str(i): "x" * 60000 for i in range(3)})
    counting = CountingFile(write_file(meta, [TOKENS]))
    with TokenFile.open(counting) as file:
        assert len(counting.reads) == 2
        assert file.meta.layers[0] == meta


def test_threads() -> None:
    data, tokens = big_file()
    wrong: list[object] = []
    with TokenFile.open(io.BytesIO(data)) as file:

        def work(k: int) -> None:
            window = (k * 37 % 500, k * 91 % 500, 90, 80)
            got = file["a"].tokens(window)
            if not np.array_equal(got, tokens[window[1] :, window[0] :][:80, :90]):
                wrong.append(window)

        threads = [threading.Thread(target=work, args=(k,)) for k in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_sources(tmp_path: Path) -> None:
    path = tmp_path / "x.tmc"
    path.write_bytes(MASKED)
    with path.open("rb") as opened:
        for source in (path, str(path), opened, path.as_uri()):
            with TokenFile.open(source) as file:
                assert file.size == len(MASKED)
                assert file["a"].tokens((0, 0, 5, 5)).tolist() == TOKENS[0, :5, :5].tolist()
        assert not opened.closed


def test_fsspec_memory() -> None:
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://dir/x.tmc", "wb") as out:
        out.write(MASKED)
    with TokenFile.open("memory://dir/x.tmc") as file:
        assert file["a"].tokens((0, 0, 5, 5)).tolist() == TOKENS[0, :5, :5].tolist()


def _no_seek(*_: object) -> int:
    raise io.UnsupportedOperation("underlying stream is not seekable")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (5, "neither a path nor a binary file object"),
        (type("Pipe", (), {"read": lambda *_: b"", "seek": _no_seek})(), "read at random places"),
        (io.StringIO("text"), "the file object reads text; open it as 'rb'"),
    ],
)
def test_not_a_source(source: Any, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        TokenFile.open(source)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("memory://no/such.tmc", "cannot open memory://no/such.tmc: there is no such file"),
        ("nosuch://x/y.tmc", "cannot open nosuch://x/y.tmc: .*nosuch"),
        ("filecache://x.tmc", "cannot open filecache://x.tmc: "),
    ],
)
def test_urls_that_cannot_be_opened(url: str, message: str) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(SourceError, match=message) as found:
        TokenFile.open(url)
    assert "\n" not in str(found.value)


def test_a_closed_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.tmc"
    path.write_bytes(MASKED)
    with TokenFile.open(path) as file:
        layer = file["a"]
    with pytest.raises(SourceError, match=r"a\.tmc is closed; open it again"):
        layer.tokens()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks")
def test_forked_processes_read_for_themselves(tmp_path: Path) -> None:
    path, (data, tokens) = tmp_path / "a.tmc", big_file()
    path.write_bytes(data)

    def reads_well(seed: int) -> bool:
        places = np.random.default_rng(seed).integers(0, 500, (300, 2)).tolist()
        return all(layer.tokens((col, row, 1, 1))[0, 0] == tokens[row, col] for col, row in places)

    with TokenFile.open(path) as file:
        layer, children = file["a"], []
        for seed in range(3):
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    os._exit(0 if reads_well(seed) else 1)
                os._exit(2)
            children.append(child)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]


def test_an_open_file_is_opened_again_where_it_is_unpickled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.tmc").write_bytes(MASKED)
    monkeypatch.chdir(tmp_path)
    with TokenFile.open("x.tmc") as file:
        pickled = pickle.dumps((file, file["a"]))
    with pytest.raises(SourceError, match=r"x\.tmc is closed; open it again"):
        pickle.dumps(file)
    monkeypatch.chdir("/")
    again, layer = pickle.loads(pickled)
    with again:
        assert again["a"] is layer and layer.file_name == "x.tmc" and again.meta == file.meta
        np.testing.assert_array_equal(layer.tokens((0, 0, 5, 5)), TOKENS[0, :5, :5])
    (tmp_path / "x.tmc").write_bytes(MASKED + b"0")
    with pytest.raises(SourceError, match=rf"x\.tmc has {len(MASKED) + 1} bytes, and had {len(MASKED)}"):
        pickle.loads(pickled)
    with TokenFile.open(io.BytesIO(MASKED)) as unnamed, pytest.raises(SourceError, match="a file object"):
        pickle.dumps(unnamed)


def test_stacking_one_path_is_no_list() -> None:
    with pytest.raises(StackError, match=r"stack takes a list of token files; give \['a\.tmc', \.\.\.\]"):
        tokenfile.stack("a.tmc", "b.tmc")


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        TokenFile.open(tmp_path / "none.tmc")


# --------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "window",
    [(-1, 0, 1, 1), (0, 0, 10, 1), (0, 7, 1, 1), (0, 0, 0, 1), (0, 0, 1, -1), (0, 0, 1), (0.5, 0, 1, 1), 5],
)
def test_bad_window(window: Any) -> None:
    with TokenFile.open(io.BytesIO(MASKED)) as file:
        for method in (file["a"].tokens, file["a"].valid, file["a"].intact, file["a"].empty):
            with pytest.raises(WindowError):
                method(window)


def test_bad_layer_and_time() -> None:
    with TokenFile.open(io.BytesIO(MASKED)) as file:
        with pytest.raises(LayerNotFoundError, match="no layer 'b'; it has 'a'"):
            file["b"]
        for time in (-1, 1):
            with pytest.raises(LayerNotFoundError, match="no time step"):
                file["a"].tokens(time=time)
        with pytest.raises(WindowError):
            file["a"].raw_chunk(0, 2, 0)


def test_max_pixels() -> None:
    with TokenFile.open(io.BytesIO(MASKED), max_pixels=400) as file:
        assert file["a"].tokens((0, 0, 5, 5)).shape == (5, 5)
        with pytest.raises(LimitExceededError, match="max_pixels"):
            file["a"].tokens((0, 0, 6, 5))
        with pytest.raises(LimitExceededError, match="max_pixels"):
            file["a"].valid((0, 5, 5, 1))  # three planes of 20 x 20, for a window of one row


def test_the_cap_counts_the_planes_that_a_mask_has() -> None:
    """A window of one token decodes the mask of its chunk: one plane of 20 x 20, or three that differ."""
    meta = layer_meta(width=20, height=20)
    one = np.ones((3, 20, 20), np.bool_)
    one[:, 3:9, 4:6] = False
    three = one.copy()
    three[1, 0, 0] = False
    for mask, values in ((one, 400), (three, 1200)):
        data = io.BytesIO(write_file(meta, [random_tokens(meta)], [mask[None]]))
        with TokenFile.open(data, max_pixels=values) as file:
            np.testing.assert_array_equal(
                np.broadcast_to(file["a"].valid((0, 0, 1, 1)), (3, 4, 4)), mask[:, :4, :4]
            )
        with TokenFile.open(data, max_pixels=values - 1) as file:
            with pytest.raises(LimitExceededError, match=f"{values} values, more than"):
                file["a"].valid((0, 0, 1, 1))


@pytest.mark.parametrize(
    ("tokens", "valid", "error", "why"),
    [
        (np.zeros((5, 4), int), None, ChunkError, r"tokens have shape \(5, 4\); this chunk has \(5, 5\)"),
        (np.zeros((5, 5)), None, ChunkError, "tokens have dtype float64"),
        (np.full((5, 5), 15360), None, TokenRangeError, "token 15360 lies outside the codebook of 15360"),
        (np.diag([15360] * 5), None, TokenRangeError, "token 15360 lies"),
        (np.full((5, 5), -1), None, TokenRangeError, "token -1 lies"),
        (np.full((5, 5), 2**40), None, TokenRangeError, "token 1099511627776 lies"),
        (np.zeros((5, 5), int), np.ones((2, 20, 20), bool), ChunkError, "mask has dtype bool and shape"),
        (np.zeros((5, 5), int), np.ones((1, 5, 5), bool), ChunkError, "pass bool of shape"),
        (np.zeros((5, 5), int), np.ones((1, 20, 20), np.uint8), ChunkError, "mask has dtype uint8"),
        (None, np.ones((1, 20, 20), bool), ChunkError, "a chunk with valid pixels needs tokens"),
    ],
)
def test_writer_refuses(
    tokens: np.ndarray | None, valid: np.ndarray | None, error: type[Exception], why: str
) -> None:
    with TokenFileWriter(io.BytesIO(), FileMeta((META,)), sparse=True) as writer:
        with pytest.raises(error, match=why):
            writer.write_chunk(0, 0, 0, 0, tokens, valid)


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ((1, 0, 0, 0), LayerNotFoundError),
        ((0, 1, 0, 0), LayerNotFoundError),
        ((0, 0, 2, 0), WindowError),
        ((0, 0, 0, -1), WindowError),
    ],
)
def test_writer_refuses_place(place: tuple[int, int, int, int], error: type[Exception]) -> None:
    with pytest.raises(error), TokenFileWriter(io.BytesIO(), FileMeta((META,))) as writer:
        writer.write_chunk(*place, None)


def test_chunk_twice() -> None:
    with (
        pytest.raises(ChunkError, match="before"),
        TokenFileWriter(io.BytesIO(), FileMeta((META,))) as writer,
    ):
        writer.write_chunk(0, 0, 0, 0, None)
        writer.write_chunk(0, 0, 0, 0, None)


def test_chunk_missing() -> None:
    target = io.BytesIO()
    with (
        pytest.raises(ChunkError, match=r"3 chunks were never written.*\(0, 1\)"),
        TokenFileWriter(target, FileMeta((META,))) as writer,
    ):
        writer.write_chunk(0, 0, 0, 0, None)
    assert target.getvalue() == b""


def test_chunks_never_written_of_a_sparse_file_are_empty(version: int) -> None:
    """The same bytes as of a file whose empty chunks are written one by one, wherever they are."""
    meta = layer_meta(times=(None, None))
    for kept in ([], [0], [7], [1, 2, 6], [0, 1, 2, 3, 4, 5, 6, 7]):
        files = [io.BytesIO(), io.BytesIO()]
        for file, sparse in zip(files, (False, True), strict=True):
            with TokenFileWriter(file, FileMeta((meta,)), version=version, sparse=sparse) as writer:
                for number, place in enumerate(np.ndindex(2, 2, 2)):
                    shape = meta.grid.token_shape(*place[1:])
                    if number in kept:
                        writer.write_chunk(0, *place, np.full(shape, number))
                    elif not sparse:
                        writer.write_chunk(0, *place, None)
        assert files[0].getvalue() == files[1].getvalue()
        with TokenFile.open(files[1]) as opened:
            assert opened["a"].index.ordinals.tolist() == kept
            assert [4 * t + 2 * r + c for t, r, c in opened["a"].places()] == kept
            assert [2 * r + c for r, c in opened["a"].filled(time=1)] == [n - 4 for n in kept if n > 3]
            right = [n for n in kept if n in (1, 3)]
            assert [2 * r + c for r, c in opened["a"].filled((5, 0, 4, 7))] == right


def test_dates_without_a_chunk_take_no_time() -> None:
    """Two dates of 1024 places, and a quarter of a million without anything: minutes, were each asked for."""
    meta = layer_meta(
        width=32, height=32, patch=1, tile=1, chunk=1, levels=(2, 2), times=(None,) * 2**18, tags={}
    )
    file = io.BytesIO()
    with TokenFileWriter(file, FileMeta((meta,)), sparse=True) as writer:
        for time, row, col in np.ndindex(2, 32, 32):
            writer.write_chunk(0, time, row, col, np.full((1, 1), (row + col + time) % 4))
    with TokenFile.open(file) as opened:
        rows, cols = np.indices((32, 32))
        assert np.array_equal(opened["a"].tokens(time=1), (rows + cols + 1) % 4)
        assert opened["a"].index.ordinals.size == 2048


# --------------------------------------------------------------------------- determinism and safety


def test_any_order_same_bytes() -> None:
    chunks = [(0, 0), (0, 1), (1, 0), (1, 1)]
    files = []
    for order in (chunks, chunks[::-1]):
        file = io.BytesIO()
        with TokenFileWriter(file, FileMeta((META,), {"b": "1", "a": "2"})) as writer:
            for r, c in order:
                writer.write_chunk(0, 0, r, c, TOKENS[0, r * 5 :, c * 5 :][:5, :5])
        files.append(file.getvalue())
        assert writer.size == len(files[-1]) == writer.header_bytes + writer.payload_bytes
    assert files[0] == files[1]
    other = FileMeta((META,), {"a": "2", "b": "1"})
    assert files[0] == write_file(other, [TOKENS])


def test_target_exists(tmp_path: Path) -> None:
    path = tmp_path / "x.tmc"
    path.write_bytes(b"old")
    with pytest.raises(TargetExistsError):
        TokenFileWriter(path, FileMeta((META,)))
    assert path.read_bytes() == b"old"
    with TokenFileWriter(path, FileMeta((META,)), overwrite=True) as writer:
        for r, c in np.ndindex(2, 2):
            writer.write_chunk(0, 0, r, c, None)
    with TokenFile.open(path) as file:
        assert file.meta.layers[0] == META
    assert [p.name for p in tmp_path.iterdir()] == ["x.tmc"]


class Slow(io.RawIOBase):
    """A raw file, pipe or socket: takes seven bytes at a time, and no more than `room`."""

    def __init__(self, room: int) -> None:
        self.room, self.data = room, b""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int | None:
        part = bytes(data[: min(7, self.room - len(self.data))])
        self.data += part
        return len(part) or None


def test_targets_that_take_less_at_a_time() -> None:
    meta = layer_meta(width=20, height=20)  # one chunk
    tokens = random_tokens(meta)
    whole = write_file(meta, [tokens])
    for room in (10**9, len(whole), len(whole) - 1):
        target = Slow(room)
        writer = TokenFileWriter(target, FileMeta((meta,)))  # type: ignore[arg-type]
        writer.write_chunk(0, 0, 0, 0, tokens[0])
        if room >= len(whole):
            writer.finish()
            assert (target.data, writer.size) == (whole, len(whole))
        else:
            with pytest.raises(TargetWriteError, match="takes no more bytes"):
                writer.finish()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_interrupted_write_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), TokenFileWriter(tmp_path / "x.tmc", FileMeta((META,))) as writer:
        writer.write_chunk(0, 0, 0, 0, None)
        raise error
    assert list(tmp_path.iterdir()) == []


def test_failure_while_finishing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tmcodec.atomic.os.fsync", full_disk)
    with (
        pytest.raises(TargetWriteError, match=r"x\.tmc: no space left on device; nothing was written"),
        TokenFileWriter(tmp_path / "x.tmc", FileMeta((META,))) as writer,
    ):
        for r, c in np.ndindex(2, 2):
            writer.write_chunk(0, 0, r, c, TOKENS[0, r * 5 :, c * 5 :][:5, :5])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "says"), [(28, "temporary files: no space .*; set"), (5, "output")])
def test_a_full_folder_of_temporary_files_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, says: str
) -> None:
    """Chunks wait there for the end of a large file; other errors stay what they are."""

    def fails(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.write", fails)
    with (
        pytest.raises(OSError, match=says) as caught,
        TokenFileWriter(tmp_path / "x.tmc", FileMeta((META,))) as writer,
    ):
        writer.write_chunk(0, 0, 0, 0, TOKENS[0, :5, :5])
    assert isinstance(caught.value, TargetWriteError) == (number == 28)
    assert list(tmp_path.iterdir()) == []
