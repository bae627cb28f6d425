"""The golden files decode for ever, and today's writer makes the same bytes.

The second half is a small reader written from docs/format.md alone: it imports nothing of
tmcodec, so it also tests whether the document is complete.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import re
import struct
import sys
from functools import partial
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import second_context
import second_masks
import zstandard

from tmcodec.tokenfile import FileMeta, TokenFile, fields, verify
from tmcodec.tokenfile.masks import mask_pack

GOLDEN = Path(__file__).parents[1] / "golden"


def load(name: str) -> Any:
    """Import a module of the folder of golden files."""
    spec = importlib.util.spec_from_file_location(name, GOLDEN / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


make_v1, make_v2 = load("make_v1"), load("make_v2")
CASES = {f"v1/{case.name}": case for case in make_v1.cases()}
CASES |= {f"v2/{case.name}": case for case in make_v2.cases()}


def expected(name: str) -> Any:
    return json.loads((GOLDEN / f"{name}.json").read_text())


def version_of(name: str) -> int:
    return int(name[1])


def test_none_is_forgotten() -> None:
    assert sorted(f"{p.parent.name}/{p.stem}" for p in GOLDEN.glob("v*/*.tmc")) == sorted(CASES)


@pytest.mark.parametrize("name", CASES)
def test_decodes(name: str) -> None:
    path = GOLDEN / f"{name}.tmc"
    assert verify(path).ok
    with TokenFile.open(path) as file:
        assert file.version == version_of(name)
        assert file.meta == CASES[name].meta
        assert repr(file.meta) == repr(FileMeta(CASES[name].meta.layers, CASES[name].meta.tags))
        assert set(file.layers) == set(expected(name)["layers"])
        for layer_name, content in expected(name)["layers"].items():
            layer = file[layer_name]
            masks = []
            for time in range(len(layer.times)):
                np.testing.assert_array_equal(layer.tokens(time=time), content["tokens"][time])
                valid = layer.valid(time=time)
                full = np.ones((len(layer.bands), layer.height, layer.width), bool)
                masks.append(full if valid is None else full & valid)
            assert hashlib.sha256(np.packbits(masks)).hexdigest() == content["valid"]


@pytest.mark.parametrize("name", CASES)
def test_writer_makes_the_same_bytes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    golden = (GOLDEN / f"{name}.tmc").read_bytes()
    if case.before_numbers and version_of(name) == 1:
        assert len(make_v1.write(case)) < len(golden)
        monkeypatch.setattr(fields, "registered_number", lambda name, sha256: None)
    if case.plain_masks:
        plain = partial(mask_pack, coded=False)
        monkeypatch.setattr("tmcodec.tokenfile.chunks.mask_pack", lambda valid, coded: plain(valid))
    if case.needs_zstd and list(zstandard.ZSTD_VERSION) != expected(name)["zstd"]:
        pytest.skip("another zstandard may find other (equally valid) frames")
    assert make_v1.write(case, version_of(name)) == golden


@pytest.mark.parametrize("name", ["v1/tiny", "v2/tiny"])
def test_the_example_of_the_document(name: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "format.md").read_text()
    block = text.split(f"<!-- {name}.tmc -->")[1].split("```")[1].removeprefix("text")
    dump = "".join(line.split("|")[0] for line in block.splitlines())
    assert bytes.fromhex(dump) == (GOLDEN / f"{name}.tmc").read_bytes()


# --------------------------------------------------------------------------- a second reader


class Bytes:
    """Bytes and a place in them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        self.at += count
        assert self.at <= len(self.data)
        return self.data[self.at - count : self.at]

    def varint(self) -> int:
        value = shift = 0
        while True:
            (byte,) = self.take(1)
            value += (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def sections(self, version: int) -> list[tuple[int, bytes]]:
        found = []
        while self.at < len(self.data):
            if version == 1:
                number, length = self.varint(), self.varint()
            else:
                number, length = divmod(self.take(1)[0], 8)
                number = number or self.varint()
                length += self.varint() if length == 7 else 0
            found.append((number, self.take(length)))
        return found


REGISTERED = {  # the number, the modality in the name, and the checksum, as the document's table has them
    int(row[1]): (row[2].upper(), row[3])
    for row in re.finditer(
        r"^\| (\d+) \| `mini-([^`-]*)-v\d+` \| `([0-9a-f]{64})` \|$",
        (Path(__file__).parents[2] / "docs" / "format.md").read_text(), re.MULTILINE,
    )
}  # fmt: skip
LEVELS = {8: (7, 5, 5, 5, 5)}
BANDS = {1: 12, 2: 13, 3: 3, 4: 2, 5: 2, 6: 1, 7: 1, 8: 1}
MODALITIES = ("", "S2L2A", "S2L1C", "S2RGB", "S1GRD", "S1RTC", "DEM", "NDVI", "LULC")


def scale_of(fields: dict[int, bytes], kind: int, version: int) -> float | None:
    """Return the offset between stored and physical values where the file leaves scale and offset out."""
    if 17 in fields:
        return None
    return 1000.0 if version == 2 and kind in (1, 2) and fields.get(19) == b"\x02" else 0.0


def sets_of(fields: dict[int, bytes], times: int) -> tuple[int, ...]:
    """Return the classes of each time step as bits, one number for all where there is one; none without."""
    cursor, found = Bytes(fields.get(18, b"")), []
    while cursor.at < len(cursor.data):
        found.append(cursor.varint())
    return tuple(found * times if len(found) == 1 else found)


def crs_of(fields: dict[int, bytes], tables: list[bytes], version: int) -> bytes | None:
    """Return the section of a layer's CRS, or None."""
    if version == 1:
        return tables[Bytes(fields[25]).varint()] if 25 in fields else None
    number = Bytes(fields[25]).varint() if 25 in fields else min(1, len(tables))
    return tables[number - 1] if number else None


def layer_facts(data: bytes, tables: list[bytes], version: int) -> dict[str, Any]:
    """Return what is needed to decode the chunks of a layer, and a few defaults of its own."""
    fields = dict(Bytes(data).sections(version))
    grid = Bytes(fields[1])
    registered = REGISTERED[Bytes(fields[31]).varint()] if 31 in fields else ("", "")
    kind = MODALITIES.index(registered[0]) if 3 not in fields and version == 2 else Bytes(fields[3]).varint()
    sizes = Bytes(fields.get(11, b"\x10\x80\x02\x40"))
    levels, bands, times = (
        Bytes(fields.get(9, b"")),
        Bytes(fields.get(15, b"")),
        Bytes(fields.get(29, b"\x00")),
    )
    facts: dict[str, Any] = {
        "width": grid.varint(), "height": grid.varint(), "patch": sizes.varint(), "tile": sizes.varint(),
        "chunk": sizes.varint(),
        "modality": MODALITIES[kind], "levels": LEVELS.get(kind, (8, 8, 8, 6, 5)),
        "bands": BANDS.get(kind, 0), "times": 0,
        "weights": fields[7] if 7 in fields else bytes.fromhex(registered[1]),
        "crs": crs_of(fields, tables, version), "offset": scale_of(fields, kind, version),
    }  # fmt: skip
    if 9 in fields:
        facts["levels"] = tuple(levels.varint() for _ in range(sum(b < 128 for b in fields[9])))
    while bands.at < len(bands.data):
        bands.take(bands.varint())
        facts["bands"] += 1
    while times.at < len(times.data):
        times.varint()
        facts["times"] += 1
    facts["class_sets"] = sets_of(fields, facts["times"])
    return facts


def decode_index(data: bytes, count: int) -> list[tuple[int, int, int]]:
    """Return (tag, length, checksum) of every chunk."""
    index, tags = Bytes(data), []
    while len(tags) < count:
        code = index.varint()
        tags += [code >> 1] * (index.varint() + 2 if code & 1 else 1)
    lengths = [index.varint() if tag else 0 for tag in tags]
    sums = [struct.unpack("<I", index.take(4))[0] if tag else 0 for tag in tags]
    assert index.at == len(data)
    return list(zip(tags, lengths, sums, strict=True))


def decode_any(
    coder: int, data: bytes, shape: Any, facts: dict[str, Any], before: Any, layers: list[Any]
) -> list[int]:
    """Decode with any coder; `before` are earlier time steps at the same place, `layers` (facts, tokens)."""
    levels, cursor = list(facts["levels"]), Bytes(data)
    if coder < 2:
        return decode_tokens(coder, data, shape[0] * shape[1], facts["levels"])
    reference = source = None
    if coder == 3:
        reference = before[-cursor.varint()].tolist()
    elif coder == 4:
        other, tokens = layers[-cursor.varint()]
        assert all(other[key] == facts[key] for key in ("patch", "chunk", "width", "height"))
        reference, source = tokens[cursor.varint()].tolist(), (list(other["levels"]), other["weights"])
    return second_context.decode(data[cursor.at :], shape, levels, facts["weights"], reference, source)


def decode_tokens(coder: int, data: bytes, count: int, levels: tuple[int, ...]) -> list[int]:
    """Decode with coder 0 or 1, one token after the other."""
    size, tokens = math.prod(levels), []
    if coder == 0:
        value = int.from_bytes(data, "little")
        for _ in range(count):
            value, token = divmod(value, size)
            tokens.append(token)
        assert value == 0
        return tokens
    planes = zstandard.ZstdDecompressor().decompress(data)
    assert coder == 1 and len(planes) == count * len(levels)
    for i in range(count):
        digits = [planes[plane * count + i] for plane in range(len(levels))]
        tokens.append(sum(digit * math.prod(levels[:k]) for k, digit in enumerate(digits)))
    return tokens


def decode_mask(block: bytes, bands: int, h: int, w: int) -> np.ndarray:
    """Decode a mask, pixel by pixel: bool (bands, h, w)."""
    flags, row_bytes = block[0], -(-w // 8)
    if flags & 4:
        assert flags & 1 == 0
        step = 2 if flags & 8 else 1
        coded = second_masks.decode(block[1:], bands if flags & 2 else 1, -(-h // step), -(-w // step))
        rows, cols = (np.arange(n) // step for n in (h, w))
        return np.broadcast_to(np.array(coded, bool)[:, rows][:, :, cols], (bands, h, w))
    raw = bytearray(zstandard.ZstdDecompressor().decompress(block[1:]))
    planes = bands if flags & 2 else 1
    assert len(raw) == planes * h * row_bytes
    mask = np.zeros((planes, h, w), bool)
    for plane, row in np.ndindex(planes, h):
        start = (plane * h + row) * row_bytes
        if flags & 1 and row:
            for k in range(start, start + row_bytes):
                raw[k] ^= raw[k - row_bytes]
        for col in range(w):
            mask[plane, row, col] = raw[start + col // 8] >> (7 - col % 8) & 1
    return np.broadcast_to(mask, (bands, h, w))


def split(data: bytes) -> tuple[int, bytes, bytes]:
    """Return (version, header, payload), the header's checksum checked."""
    cursor = Bytes(data)
    assert cursor.take(8) == b"\x89TMC\r\n\x1a\n"
    version = cursor.take(1)[0]
    payload_length = None
    if version == 1:
        header_length, payload_length = struct.unpack("<IQ", cursor.take(12))
    else:
        header_length = cursor.varint()
    before = data[: cursor.at]
    (checksum,) = struct.unpack("<I", cursor.take(4))
    header = cursor.take(header_length)
    assert checksum == google_crc32c.value(before + header)
    assert payload_length in (None, len(data) - cursor.at)
    return version, header, data[cursor.at :]


def check(body: bytes, checksum: int, tag: int, tokens: np.ndarray, version: int) -> None:
    """Check what the index says of a chunk: its bytes, or from version 2 of full chunks bytes and tokens."""
    if version == 2 and tag in (5, 7, 9):
        checksum ^= google_crc32c.value(tokens.astype("<u4").tobytes())
    assert google_crc32c.value(body) == checksum


@pytest.mark.parametrize("name", CASES)
def test_second_reader(name: str) -> None:
    version, header, rest = split((GOLDEN / f"{name}.tmc").read_bytes())
    assert version == version_of(name)
    payload, sections = Bytes(rest), Bytes(header).sections(version)
    tables = [body for number, body in sections if number == 1]
    layers = [layer_facts(body, tables, version) for number, body in sections if number == 3]
    indexes = [body for number, body in sections if number == 5]
    for facts, meta in zip(layers, CASES[name].meta.layers, strict=True):
        assert (facts["crs"] is None) == (meta.crs is None)
        assert facts["offset"] in (None, meta.offset)
        assert facts["modality"] in ("", meta.modality)
        assert facts["class_sets"] == meta.class_sets
    done: list[tuple[Any, np.ndarray]] = []
    for facts, index, content in zip(layers, indexes, expected(name)["layers"].values(), strict=True):
        patch, chunk, side = facts["patch"], facts["chunk"], facts["patch"] * facts["chunk"]
        rows, cols = -(-facts["height"] // patch), -(-facts["width"] // patch)
        across, down = -(-cols // chunk), -(-rows // chunk)
        masks = np.zeros((facts["times"], facts["bands"], facts["height"], facts["width"]), bool)
        tokens = np.zeros((facts["times"], rows, cols), int)
        for i, (tag, length, checksum) in enumerate(decode_index(index, facts["times"] * across * down)):
            if tag == 0:
                continue
            time, row, col = i // (across * down), i // across % down, i % across
            body = payload.take(length)
            stored = body
            part = masks[time, :, row * side : (row + 1) * side, col * side : (col + 1) * side]
            part[:] = True
            if (tag - 1) % 2:
                cursor = Bytes(body)
                part[:] = decode_mask(cursor.take(cursor.varint()), facts["bands"], *part.shape[1:])
                body = cursor.data[cursor.at :]
            at = np.s_[:, row * chunk : (row + 1) * chunk, col * chunk : (col + 1) * chunk]
            here = tokens[at][time]
            layers_there = [(other, grids[at]) for other, grids in done]
            if version == 2 and tag in (5, 7, 9):
                body += struct.pack("<I", google_crc32c.value(stored) ^ checksum)  # as version 1 has it
            flat = decode_any((tag - 1) // 2, body, here.shape, facts, tokens[at][:time], layers_there)
            here[:] = np.reshape(flat, here.shape)
            check(stored, checksum, tag, here, version)
        done.append((facts, tokens))
        assert tokens.tolist() == content["tokens"]
        assert hashlib.sha256(np.packbits(masks)).hexdigest() == content["valid"]
    assert payload.at == len(rest)
