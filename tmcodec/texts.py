"""Numbers and texts as people read them."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable
from typing import Any


def human_bytes(count: int) -> str:
    """Return a size with three digits and decimal units: ``"4.21 kB"``, ``"872 bytes"``."""
    if abs(count) < 1000:
        return f"{count} byte" + ("" if count == 1 else "s")
    value = float(count)
    for unit in ("kB", "MB", "GB", "TB"):
        value /= 1000
        if abs(value) < 999.5 or unit == "TB":
            break
    return f"{three_digits(value)} {unit}"


def human_ratio(ratio: float) -> str:
    """Return ``"1 : 1532"``."""
    return f"1 : {ratio:.0f}" if ratio >= 100 else f"1 : {three_digits(ratio)}"


def human_seconds(seconds: float) -> str:
    """Return ``"0.42 s"``, ``"83 s"`` or ``"12 min 5 s"``."""
    if seconds < 99.5:
        return f"{three_digits(seconds) if seconds < 9.95 else round(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def three_digits(value: float) -> str:
    """Return a number with three significant digits and no exponent: 1.23, 12.3, 1234."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 6)}f}"


def plural(count: int, noun: str) -> str:
    """Return ``"1 band"``, ``"12 bands"``, ``"4 patches"``."""
    if count == 1:
        return f"{count:,} {noun}"
    return f"{count:,} {noun}{'es' if noun.endswith(('ch', 's', 'x')) else 's'}"


def shown(value: Any) -> str:
    """Return how a message of one line shows a value: itself where that is short, else its type."""
    text = repr(value)
    return text if len(text) <= 60 and "\n" not in text else f"a {type(value).__name__}"


def shortened(err: object, most: int = 500) -> str:
    """Return the message of another library's error in one line, cut where it repeats what was read.

    >>> print(shortened("cannot parse\\n  'aaaaaaaaaa'", most=20))
    cannot parse 'aaa...
    """
    text = " ".join(str(err).split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


def printable(text: str) -> str:
    """Return a text of a file fit for a terminal, which would act on its control characters.

    Those, line ends, and marks that turn the direction of writing stand as Python writes them: a text can
    neither hide what is beside it nor look like a line of its own.

    >>> print(printable("red\\x1b[31m\\n"))
    red\\x1b[31m\\n
    """
    return "".join(c if _is_plain(c) else c.encode("unicode_escape").decode() for c in text)


def listed(names: Iterable[str], most: int = 10) -> str:
    """Return how a message of one line lists names that a file has: the first ones, and how many more.

    >>> print(listed(["a", "b\\n", "c"], most=2))
    a, b\\n and 1 more
    """
    found = list(names)
    more = f" and {len(found) - most} more" if len(found) > most else ""
    short = (name if len(name) <= 60 else f"{name[:57]}..." for name in found[:most])
    return ", ".join(map(printable, short)) + more


def _is_plain(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"  # all kinds of blanks
