"""Values in messages of one line."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tmcodec
from tmcodec import errors
from tmcodec.atomic import check_target
from tmcodec.codec.chunks import check_batch_size
from tmcodec.codec.decode import check_seed
from tmcodec.codec.encode import check_steps
from tmcodec.rasters.windows import as_window
from tmcodec.texts import shown
from tmcodec.tokenfile import TokenFile

PACKAGE = Path(tmcodec.__file__).parent
ARRAY = np.zeros((3, 20, 20))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5, "1.5"), ("a\nb", r"'a\nb'"), (None, "None"), ((1, 2), "(1, 2)"),
        (np.arange(3), "array([0, 1, 2])"), ("x" * 58, repr("x" * 58)), ("x" * 59, "a str"),
        (np.zeros((2, 2)), "a ndarray"),
    ],
)  # fmt: skip
def test_values_are_shown_in_one_line(value: object, text: str) -> None:
    assert shown(value) == text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tmcodec.encode("a.tif", ARRAY), "a ndarray is neither a path nor a binary file object"),
        (lambda: check_target(ARRAY, False), "a ndarray is no path; name a file to write"),
        (lambda: TokenFile.open(ARRAY), "a ndarray is neither a path nor a binary file object; give one of"),
        (lambda: check_steps(ARRAY), "steps a ndarray; give a whole number"),
        (lambda: check_seed(ARRAY), "seed a ndarray; give a whole number"),
        (lambda: check_batch_size(ARRAY), "batch_size a ndarray; give a whole number"),
        (lambda: as_window(ARRAY), "window a ndarray; give four whole numbers"),
    ],
)
def test_arrays_in_the_wrong_place_are_named_in_one_line(call: Any, message: str) -> None:
    with pytest.raises(errors.TmcodecError, match=f"^{message}") as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(
    path.relative_to(PACKAGE.parent).with_suffix("").as_posix().replace("/", ".")
    for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text(encoding="utf-8")
))  # fmt: skip
def test_examples_in_docstrings_say_what_comes_out(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert tried > 0
    assert failed == 0
