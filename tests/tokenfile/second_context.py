"""Coders 2 to 4 a second time, from docs/format.md alone, with Python's integers and nothing of tmcodec."""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import google_crc32c
import zstandard

FULL, LOW = 2**48, 2**40
TABLES = Path(__file__).parents[2] / "tmcodec" / "tokenfile" / "tables"
GENERIC = ((1890, 9454), (2836, 28360), (2836, 28360), (2836, 28360), (2836, 37815), (5672, 56720))
Grid = list[list[list[int]]]


def exp2(i: int) -> int:
    """Return 65536 * 2 ** (-i / 1024) to nearest by comparing powers: x <= y iff x**1024 <= y**1024."""
    guess = int(65536 * 2 ** (-i / 1024))
    exact = Fraction(2) ** (16 * 1024 - i)
    return max(
        g for g in (guess - 1, guess, guess + 1, guess + 2) if (Fraction(2 * g - 1, 2)) ** 1024 <= exact
    )


@dataclass
class Model:
    """One model: numbers as the document names them; `net` is empty without a network."""

    levels: list[int]
    order: list[int]
    predictor: list[int] = field(default_factory=list)
    last_rate: int = 0
    rates: list[tuple[int, int]] = field(default_factory=lambda: [*GENERIC[:5], (0, 0)])
    slots: list[tuple[int, int, int]] = field(default_factory=list)
    net: dict[str, list[int]] = field(default_factory=dict)
    widths: tuple[int, int, int] = (0, 0, 0)
    beside: list[int] = field(default_factory=list)

    def of_source(self, source: int) -> list[int]:
        """Return the levels of a source; those of the reference may be others (coder 4)."""
        return self.beside if source == 1 and self.beside else self.levels


class Cursor:
    """Varints and arrays out of bytes."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at, value, shift = self.at + 1, value + ((byte & 127) << shift), shift + 7
            if byte < 128:
                return value

    def signed(self) -> int:
        value = self.varint()
        return value // 2 if value % 2 == 0 else -(value + 1) // 2

    def array(self, kind: str, count: int) -> list[int]:
        found = struct.unpack_from(f"<{count}{kind}", self.data, self.at)
        self.at += struct.calcsize(f"<{count}{kind}")
        return list(found)


def read_tables(tokenizer: bytes, number: int, reference: bytes = b"") -> list[Model]:
    """Return the models of a tokenizer's table file, or of a pair's."""
    head = bytes([2 if reference else 1, number]) + tokenizer + reference
    for path in TABLES.glob("*.ctx"):
        data = path.read_bytes()
        if data[8 : 8 + len(head)] == head:
            assert data[:8] == b"\x89TMX\r\n\x1a\n"
            assert struct.unpack("<I", data[-4:])[0] == google_crc32c.value(data[:-4])
            cursor = Cursor(zstandard.ZstdDecompressor().decompress(data[8 + len(head) : -4]))
            beside = [cursor.varint() for _ in range(cursor.varint())] if reference else []
            models = []
            while cursor.at < len(cursor.data):
                models.append(read_model(cursor, beside))
            return models
    raise AssertionError("no such tables")


def read_model(c: Cursor, beside: list[int]) -> Model:
    """Read one model."""
    d = c.varint()
    levels, order = [c.varint() for _ in range(d)], [c.varint() for _ in range(d)]
    predictor = [c.signed() for _ in range(c.varint())]
    last_rate = c.varint()
    rates = [(c.varint(), c.varint()) for _ in range(6)]
    slots = [(c.signed(), c.signed(), c.signed()) for _ in range(c.varint())]
    h1, h2, hg = c.varint(), c.varint(), c.varint()
    rows = sum(sum(beside if source and beside else levels) + d for source, _, _ in slots)
    before = sum(levels[m] for n in range(d) for m in order[:n])
    shapes = {
        "first": ("h", rows * h1), "first_bias": ("h", h1), "second": ("h", h1 * h2),
        "second_bias": ("i", h2),
        "heads": ("h", d * h2 * hg), "head_bias": ("i", d * hg),
        "previous": ("h", before * hg),
        "last": ("h", sum(levels) * hg), "bias": ("i", sum(levels)),
    }  # fmt: skip
    net = {name: c.array(*shape) for name, shape in shapes.items()}
    return Model(levels, order, predictor, last_rate, rates, slots, net, (h1, h2, hg), beside)


class Decoder:
    """Decodes the digits of one chunk."""

    def __init__(self, model: Model, shape: tuple[int, int], reference: Grid | None) -> None:
        self.m, self.shape = model, shape
        self.grids: list[Grid | None] = [
            [[list(model.levels) for _ in range(shape[1])] for _ in range(shape[0])]
        ]
        self.grids.append(reference)
        self.z: dict[tuple[int, int, int], list[int]] = {}
        self.uses: dict[tuple[int, int, int], int] = {}
        self.v = [16 * x for x in model.net.get("last", [])]
        self.exp2 = [exp2(i) for i in range(1024)]

    def cell(self, source: int, r: int, c: int) -> list[int]:
        grid = self.grids[source]
        if grid is None or not (0 <= r < self.shape[0] and 0 <= c < self.shape[1]):
            return self.m.of_source(source)
        return grid[r][c]

    def hidden(self, r: int, c: int) -> list[int]:
        m, (h1, h2, _) = self.m, self.m.widths
        sums, row = list(m.net["first_bias"]), 0
        for source, dy, dx in m.slots:
            for level, digit in zip(m.of_source(source), self.cell(source, r + dy, c + dx), strict=True):
                at = (row + digit) * h1
                sums = [s + w for s, w in zip(sums, m.net["first"][at : at + h1], strict=True)]
                row += level + 1
        a1 = [min(max(s >> 1, 0), 1023) for s in sums]
        w = m.net["second"]
        totals = [m.net["second_bias"][j] + sum(w[i * h2 + j] * a1[i] for i in range(h1)) for j in range(h2)]
        return [min(max(t >> 10, 0), 1023) for t in totals]

    def head(self, n: int, own: list[int], a2: list[int]) -> list[int]:
        m, (_, h2, hg), k = self.m, self.m.widths, self.m.order[n]
        row = sum(m.levels[x] for i in range(n) for x in m.order[:i])
        near = [0] * hg
        for x in m.order[:n]:
            at = (row + own[x]) * hg
            near = [s + w for s, w in zip(near, m.net["previous"][at : at + hg], strict=True)]
            row += m.levels[x]
        w, base = m.net["heads"], k * h2 * hg
        dots = [sum(w[base + i * hg + j] * a2[i] for i in range(h2)) for j in range(hg)]
        return [
            min(max(m.net["head_bias"][k * hg + j] + dots[j] + 256 * near[j] >> 10, 0), 1023)
            for j in range(hg)
        ]

    def digits(self, data: bytes) -> Grid:
        m = self.m
        low, span, place = 0, FULL - 1, 6
        value = int.from_bytes(data[:6].ljust(6, b"\0"), "big")
        grid = self.grids[0]
        assert grid is not None
        for r, c in itertools.product(range(self.shape[0]), range(self.shape[1])):
            a2 = self.hidden(r, c) if m.net else []
            for n, k in enumerate(m.order):
                g = self.head(n, grid[r][c], a2) if m.net else []
                keys = self.keys(n, k, r, c)
                f = self.frequencies(k, g, keys)
                part, target, symbol = span // sum(f), 0, 0
                target = value // part
                assert target < sum(f)
                while target >= sum(f[: symbol + 1]):
                    symbol += 1
                value -= sum(f[:symbol]) * part
                low, span = (low + sum(f[:symbol]) * part) % FULL, f[symbol] * part
                while span < LOW:
                    value = value * 256 + (data[place] if place < len(data) else 0)
                    place, low, span = place + 1, low % LOW * 256, span * 256
                grid[r][c][k] = symbol
                self.learn(k, g, keys, f, symbol)
        rests = [FULL >> 8 * t for t in range(7)]
        tail, mark = next(
            (t, u) for t, rest in enumerate(rests) if (u := -(-low // rest) * rest) < low + span
        )
        assert data[place - 6 :] == (mark % FULL).to_bytes(6, "big")[:tail]
        return grid

    def keys(self, n: int, k: int, r: int, c: int) -> list[tuple[int, int, int]]:
        left, up, own = self.cell(0, r, c - 1)[k], self.cell(0, r - 1, c)[k], self.cell(0, r, c)
        before = own[self.m.order[n - 1]] if n else 0
        pair = left * (self.m.levels[k] + 1) + up
        values = (0, left, up, before, pair, self.cell(1, r, c)[k])
        on = [x for x in range(6) if max(self.m.rates[x]) > 0 and (x != 4 or self.m.levels[k] <= 16)]
        return [(x, k, values[x]) for x in on]

    def frequencies(self, k: int, g: list[int], keys: list[tuple[int, int, int]]) -> list[int]:
        m, hg, row, logits = self.m, self.m.widths[2], sum(self.m.levels[:k]), []
        for s in range(m.levels[k]):
            at = (row + s) * hg
            first = sum((self.v[at + j] >> 4) * g[j] for j in range(hg)) >> 10
            bias = m.net["bias"][row + s] if m.net else 0
            logits.append(first + (bias + sum(self.z.get(key, [0] * 256)[s] for key in keys) >> 6))
        gaps = [max(logits) - x for x in logits]
        return [1 + (self.exp2[b % 1024] >> min(b >> 10, 31)) for b in gaps]

    def learn(self, k: int, g: list[int], keys: list[tuple[int, int, int]], f: list[int], y: int) -> None:
        m, hg, row, share = self.m, self.m.widths[2], sum(self.m.levels[:k]), 2**32 // sum(f)
        errors = [(65536 if s == y else 0) - (f[s] * share >> 16) for s in range(len(f))]
        for key in keys:
            n = self.uses.get(key, 0)
            self.uses[key] = min(n + 1, 63)
            rate = max(m.rates[key[0]][0], m.rates[key[0]][1] // (n + 1))
            old = self.z.get(key, [0] * len(f))
            moved = [z + (e * rate + 32768 >> 16) for z, e in zip(old, errors, strict=True)]
            self.z[key] = [min(max(z, -(2**30)), 2**30) for z in moved]
        for s, j in itertools.product(range(len(f) if m.last_rate else 0), range(hg)):
            at = (row + s) * hg + j
            moved_v = self.v[at] + ((errors[s] * m.last_rate >> 8) * g[j] + 32768 >> 16)
            self.v[at] = min(max(moved_v, -(2**19)), 2**19 - 1)


def numbers_of(errors: list[list[int]], weights: list[int], size: int) -> list[list[int]]:
    """Undo the prediction of numbers: folded errors to numbers."""
    out: list[list[int]] = []
    for r, line in enumerate(errors):
        out.append([])
        for c, folded in enumerate(line):
            n = out[r - 1][c] if r else None
            w = out[r][c - 1] if c else None
            w, n = (w if w is not None else n or 0), (n if n is not None else w or 0)
            nw = w if not r else out[r - 1][c - 1] if c else n
            ne = out[r - 1][c + 1] if r and c + 1 < len(line) else n
            near = (w, n, nw, ne, out[r][c - 2] if c > 1 else w, out[r - 2][c] if r > 1 else n)
            total = sum(k * x for k, x in zip(weights, near, strict=True))
            p = min(max(total + 128 >> 8, 0), size - 1)
            q = min(p, size - 1 - p)
            sides = [x for x in (p - folded + q, p + folded - q) if 0 <= x < size]
            inner = p + (folded + 1) // 2 if folded % 2 else p - folded // 2
            out[r].append(inner if folded <= 2 * q else sides[0])
    return out


def reflected(number: int, levels: list[int]) -> int:
    """Return the token whose digits are a number in the reflected code."""
    token, above, weight = 0, 0, math.prod(levels)
    for level in reversed(levels):
        weight //= level
        digit, number = divmod(number, weight)
        token += (level - 1 - digit if above % 2 else digit) * weight
        above = above * level + digit
    return token


def decode(
    data: bytes,
    shape: tuple[int, int],
    levels: list[int],
    tokenizer: bytes,
    reference: list[list[int]] | None,
    source: tuple[list[int], bytes] | None = None,
) -> list[int]:
    """Decode coder 2, or coders 3 and 4 after their varints; `reference` holds that chunk's tokens.

    `source` has the levels and the tokenizer of the reference's layer (coder 4).
    """
    beside, tokenizer_beside = source or ([], b"")
    if data[0]:
        models = read_tables(tokenizer, data[0], tokenizer_beside)
        model = models[-1] if reference else models[0]
        assert source is None or (len(models) == 1 and beside == model.beside)
        assert reference is None or source is not None or len(models) == 2
    else:
        model = Model(levels, list(range(len(levels)))[::-1], beside=beside)
        model.rates = list(GENERIC) if reference else model.rates
    seen = beside or levels
    places = [math.prod(levels[:k]) for k in range(len(levels))]
    theirs = [math.prod(seen[:k]) for k in range(len(seen))]
    other = reference and [
        [[t // p % n for p, n in zip(theirs, seen, strict=True)] for t in row] for row in reference
    ]
    grid = Decoder(model, shape, other).digits(data[1:-4])
    tokens = [[sum(x * p for x, p in zip(cell, places, strict=True)) for cell in row] for row in grid]
    if model.predictor:
        numbers = numbers_of(tokens, model.predictor, math.prod(levels))
        tokens = [[reflected(n, levels) for n in row] for row in numbers]
    flat = [t for row in tokens for t in row]
    assert google_crc32c.value(struct.pack(f"<{len(flat)}I", *flat)) == struct.unpack("<I", data[-4:])[0]
    return flat
