"""Means in place of draws: the token of the mean code, and of the mean height."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import tmcodec
from tmcodec.cli import cli
from tmcodec.errors import GenerationError
from tmcodec.generation.means import CodeMeans
from tmcodec.generation.sampling import Sampling, choose
from tmcodec.generation.settings import Settings
from tmcodec.generation.tokenizers import numbered
from tmcodec.networks.generator.model import Part
from tmcodec.tokenfile.context.heights import number_to_reflected, reflected_to_number

LEVELS = (4, 3, 2)


def token(*digits: int) -> int:
    return digits[0] + 4 * digits[1] + 12 * digits[2]


def test_the_mean_of_codes_by_hand() -> None:
    chances = torch.zeros(3, 24)
    chances[0, token(3, 2, 1)] = 1.0
    # Digit 0: 0.6 * 0 + 0.4 * 3 = 1.2; digit 1: 0.6 * 2 = 1.2; digit 2: 0.4.
    chances[1, token(0, 2, 0)], chances[1, token(3, 0, 1)] = 0.6, 0.4
    # 0.9 * 3 = 2.7; 0.9 * 1 = 0.9; 0.9.
    chances[2, token(3, 1, 1)], chances[2, 0] = 0.9, 0.1
    expected = [token(3, 2, 1), token(1, 1, 0), token(3, 1, 1)]
    assert CodeMeans(LEVELS, False).tokens(chances).tolist() == expected


@given(st.lists(st.floats(0.01, 1), min_size=24, max_size=24))
def test_no_token_is_nearer_to_the_mean(weights: list[float]) -> None:
    chances = torch.tensor([weights], dtype=torch.float64)
    chances = (chances / chances.sum()).float()
    codes = np.array([d[::-1] for d in itertools.product(*map(range, LEVELS[::-1]))], float)
    mean = chances.numpy()[0].astype(float) @ codes
    distances = np.square(codes - mean).sum(1)
    found = int(CodeMeans(LEVELS, False).tokens(chances)[0])
    assert distances[found] <= distances.min() + 1e-5


def test_heights_are_numbers() -> None:
    # Halfway between two numbers lie others, whose reflected digits have nothing to do with means of digits.
    numbers = np.array([5, 15], np.int32)
    chances = torch.zeros(1, 24)
    chances[0, torch.from_numpy(number_to_reflected(numbers, LEVELS)).long()] = 0.5
    found = CodeMeans(LEVELS, True).tokens(chances).numpy().astype(np.int32)
    assert reflected_to_number(found, LEVELS).tolist() == [10]


@given(st.lists(st.floats(0.01, 1), min_size=24, max_size=24), st.booleans())
def test_keeping_a_token_saves_what_another_would_cost_more(weights: list[float], numbers: bool) -> None:
    chances = np.array(weights) / sum(weights)
    if numbers:
        codes = reflected_to_number(np.arange(24, dtype=np.int32), LEVELS)[:, None] / 23
    else:
        codes = np.array([d[::-1] for d in itertools.product(*map(range, LEVELS[::-1]))]) / (3, 2, 1)
    # What token t costs if v is true is their squared distance; v is as likely as the network says.
    costs = np.square(codes[:, None] - codes[None]).sum(-1) @ chances
    means, rows = CodeMeans(LEVELS, numbers), torch.tensor(chances, dtype=torch.float32).expand(24, -1)
    np.testing.assert_allclose(means.savings(rows, torch.arange(24)), chances @ costs - costs, atol=1e-5)


def test_savings_by_hand() -> None:
    # Digits 0, 1, 2 are 0, 1/2 and 1. Mean 1/2, variance 1/4; the ends are as far from the mean as draws are.
    chances = torch.tensor([[0.5, 0.0, 0.5]]).expand(3, -1)
    means = CodeMeans((3,), False)
    assert means.savings(chances, torch.arange(3)).tolist() == [0, 0.25, 0]
    # A mean of 0.1: the likelier end is near, the other far, and nothing is between them.
    chances = torch.tensor([[0.9, 0.0, 0.1]]).expand(3, -1)
    assert means.savings(chances, torch.arange(3)).tolist() == pytest.approx([0.08, -0.07, -0.72])


def test_ranks_of_draws_of_the_likeliest_and_of_means() -> None:
    logits = torch.log(torch.tensor([[0.9, 1e-9, 0.1]]))
    codes, uniform = CodeMeans((3,), False), torch.tensor([0.95], dtype=torch.float64)

    def rank(sampling: Sampling, means: CodeMeans | None = None, at: float = 0.95) -> tuple[int, float]:
        found = choose(logits, torch.full_like(uniform, at), sampling, means, codes)
        return int(found.tokens), float(found.confidence)

    every = Sampling(top_p=None)
    assert rank(every) == (2, pytest.approx(0.09 - 0.81, abs=1e-6))
    assert rank(every, at=0.5) == (0, pytest.approx(0.09 - 0.01, abs=1e-6))
    assert rank(Sampling(temperature=0)) == (0, pytest.approx(0.09 - 0.01, abs=1e-6))
    assert rank(Sampling(choice="mean"), codes) == (0, pytest.approx(0.09 - 0.01, abs=1e-6))


def test_nothing_is_drawn_and_log_probabilities_are_the_networks() -> None:
    logits = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4]]))
    means = CodeMeans((4,), False)
    for uniform in (0.0, 0.99):
        choice = choose(logits, torch.tensor([uniform], dtype=torch.float64), Sampling(choice="mean"), means)
        assert choice.tokens.tolist() == [2]  # 0.2 + 0.6 + 1.2
        assert choice.log_probabilities.item() == pytest.approx(math.log(0.3), abs=1e-6)


def test_the_embedded_generator_takes_means(tmp_path) -> None:  # type: ignore[no-untyped-def]
    gen = tmcodec.load_generator("mini-any2any-v1", device="cpu")
    assert numbered(gen) == {"DEM"}
    shown = torch.arange(36).view(1, 6, 6) * 400
    one, two = (
        gen.generate({"S2L2A": shown}, ["NDVI"], choice="mean", decoding_steps=1, seed=seed).tokens["NDVI"]
        for seed in (0, 1)
    )
    assert torch.equal(one, two)
    drawn = gen.generate({"S2L2A": shown}, ["NDVI"], decoding_steps=1, seed=0).tokens["NDVI"]
    assert not torch.equal(one, drawn)
    # The network's own probabilities, asked directly, and their mean digits.
    keys = {spec.modality: spec.key for spec in gen.cfg.modalities if spec.kind == "tokens"}
    with torch.no_grad():
        encoded = gen.net.encode([Part(keys["S2L2A"], shown.flatten(1), None, (6, 6))])
        logits = gen.net.predict(encoded, keys["NDVI"], torch.arange(36)[None], (6, 6))[0]
    levels = (8, 8, 8, 6, 5)
    place = np.concatenate([[1], np.cumprod(levels)[:-1]])
    digits = np.arange(15360)[:, None] // place % levels
    mean = logits.double().softmax(-1).numpy() @ digits
    expected = (np.rint(mean) * place).sum(-1)
    assert np.count_nonzero(expected != one.flatten().numpy()) <= 1  # float32 may round a half away


def test_means_through_the_command_line(tmp_path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    values = (1500 + 300 * rng.random((12, 64, 64))).astype(np.uint16)
    bands = tmcodec.modalities.MODALITIES["S2L2A"].bands
    profile = {"descriptions": bands}
    tmcodec.encode(values, tmp_path / "a.tmc", modality="S2L2A", s2_offset="present", profile=profile)
    files = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.tmc"
        arguments = ["generate", str(tmp_path / "a.tmc"), "--to", "NDVI", "-o", str(out), "--choice", "mean"]
        done = CliRunner().invoke(cli, [*arguments, "--seed", seed, "--quiet"])
        assert done.exit_code == 0, done.output
        with tmcodec.open(out) as file:
            files.append(file["NDVI"].tokens())
            assert "mean of the codes" in str({**file.meta.tags, **file["NDVI"].meta.tags})
    np.testing.assert_array_equal(*files)


def test_unknown_choices_are_refused() -> None:
    with pytest.raises(GenerationError, match="unknown choice 'median'"):
        Settings(choice="median")
