"""Bits in context a second time, from docs/format.md alone, with Python's integers and nothing of tmcodec."""

from __future__ import annotations

from collections import defaultdict

FIRST = ([(0, c) for c in (-4, -3, -2, -1)], [(-1, c) for c in range(-3, 4)], [(-2, c) for c in range(-2, 3)])
OTHERS = ([(0, c) for c in (-3, -2, -1)], [(-1, c) for c in range(-2, 3)])
BEFORE = ([(0, c) for c in range(-2, 3)], [(1, c) for c in (-1, 0, 1)])


class Stream:
    """The range decoder of coder 2 for bits of a given frequency."""

    def __init__(self, data: bytes) -> None:
        self.data, self.read = data, 6
        self.value = int.from_bytes((data + bytes(6))[:6], "big")
        self.low, self.span = 0, 2**48 - 1

    def bit(self, f: int) -> int:
        part = self.span // 65536
        assert self.value // part < 65536
        y = int(self.value // part >= 65536 - f)
        below, own = (65536 - f, f) if y else (0, 65536 - f)
        self.value -= below * part
        self.low, self.span = (self.low + below * part) % 2**48, own * part
        while self.span < 2**40:
            following = self.data[self.read] if self.read < len(self.data) else 0
            self.value, self.read = self.value * 256 + following, self.read + 1
            self.low, self.span = self.low % 2**40 * 256, self.span * 256
        return y

    def check_end(self) -> None:
        for n in range(7):
            unit = 2 ** (48 - 8 * n)
            m = -(-self.low // unit) * unit
            if m < self.low + self.span:
                assert self.data[self.read - 6 :] == (m % 2**48).to_bytes(6, "big")[:n]
                return


class Masks:
    """Planes of pixels, and chances by what they are of: (plane 0 or later, what, which)."""

    def __init__(self, data: bytes, planes: int, height: int, width: int) -> None:
        self.stream, self.height, self.width = Stream(data), height, width
        self.chances: dict[tuple[int, str, int], list[int]] = defaultdict(lambda: [2**23, 0])
        self.planes: list[list[list[int]]] = []
        for _ in range(planes):
            self.planes.append([])
            self.decode_plane()
        self.stream.check_end()

    def learn(self, key: tuple[int, str, int], y: int) -> None:
        p, n = self.chances[key]
        rate = max(655, 131072 // (2 * n + 5))
        self.chances[key] = [p + (((y << 24) - p) * rate >> 16), min(n + 1, 127)]

    def bit(self, key: tuple[int, str, int]) -> int:
        y = self.stream.bit(min(max(self.chances[key][0] >> 8, 1), 65535))
        self.learn(key, y)
        return y

    def pixel(self, plane: int, r: int, c: int) -> int:
        """Return a pixel that may lie outside; the row under way is the last one of its plane."""
        if r < 0:
            return 1
        rows = self.planes[plane]
        r = min(r, self.height - 1)
        if plane == len(self.planes) - 1 and r == len(rows) - 1 and c < 0:
            return self.pixel(plane, r - 1, 0)
        return rows[r][min(max(c, 0), self.width - 1)]

    def decode_plane(self) -> None:
        number, same = len(self.planes) - 1, 1
        later = int(number > 0)
        for r in range(self.height):
            same = self.bit((later, "row", same))
            if same:
                above = [self.pixel(0, r - 1, c) for c in range(self.width)]
                self.planes[number].append(list(self.planes[number - 1][r]) if later else above)
                continue
            self.planes[number].append([])
            for c in range(self.width):
                self.planes[number][r].append(self.decode_pixel(number, r, c))

    def decode_pixel(self, n: int, r: int, c: int) -> int:
        later = int(n > 0)
        groups = OTHERS if later else FIRST
        sixteen = [self.pixel(n, r + dy, c + dx) for group in groups for dy, dx in group]
        nearest = [(n, 0, -1), *((n, -1, dx) for dx in (-1, 0, 1))]
        if later:
            sixteen += [self.pixel(n - 1, r + dy, c + dx) for group in BEFORE for dy, dx in group]
            nearest = [(n, 0, -1), (n, -1, 0), (n - 1, 0, 0), (n - 1, 0, 1)]
        four = [self.pixel(plane, r + dy, c + dx) for plane, dy, dx in nearest]
        many, few = ((later, str(len(bits)), int("".join(map(str, bits)), 2)) for bits in (sixteen, four))
        if self.chances[many][1] == 0:
            self.chances[many][0] = self.chances[few][0]
        y = self.bit(many)
        self.learn(few, y)
        return y


def decode(data: bytes, planes: int, height: int, width: int) -> list[list[list[int]]]:
    """Return the pixels of all planes."""
    return Masks(data, planes, height, width).planes
