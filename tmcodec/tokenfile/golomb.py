"""Exponential Golomb codes: small integers in few bits, without a table.

Of order k, an unsigned n is coded as the binary digits of n + 2**k after as many zeros as it has digits
beyond the first k + 1 (Teuhola 1978, doi 10.1016/0020-0190(78)90024-8).
"""

from __future__ import annotations

from collections.abc import Sequence

from tmcodec.tokenfile.binary import Cursor


def golomb_bits(value: int, order: int) -> str:
    """Return the code of an unsigned integer as a text of zeros and ones."""
    digits = f"{value + (1 << order):b}"
    return "0" * (len(digits) - order - 1) + digits


def pack_golomb(values: Sequence[int], orders: Sequence[int]) -> bytes:
    """Pack unsigned integers, the orders taken in turn; the last byte is filled with zeros.

    The first bit is the highest of the first byte.
    """
    bits = "".join(golomb_bits(v, orders[i % len(orders)]) for i, v in enumerate(values))
    size = -(-len(bits) // 8)
    return int(bits.ljust(8 * size, "0") or "0", 2).to_bytes(size, "big")


def unpack_golomb(cursor: Cursor, orders: Sequence[int]) -> list[int]:
    """Invert `pack_golomb` on all that is left. Every code has a one, so zeros alone are the filling.

    Raises
    ------
    MetadataError
        Or the cursor's own error, where a code is cut off or the filling is a byte or more.
    """
    data = bytes(cursor.rest())
    bits = f"{int.from_bytes(data, 'big'):0{8 * len(data)}b}" if data else ""
    values: list[int] = []
    at = 0
    while (one := bits.find("1", at)) >= 0:
        order = orders[len(values) % len(orders)]
        end = 2 * one - at + order + 1
        if end > len(bits):
            raise cursor.fail("a code is cut off")
        values.append(int(bits[one:end], 2) - (1 << order))
        at = end
    if len(bits) - at >= 8:
        raise cursor.fail("more filling than a byte needs")
    return values
