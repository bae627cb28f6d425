"""A decoder that sees searched tokens while it learns, and corpora of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tmcodec.codec.models import load_tokenizer
from tmcodec.codec.search import error, search
from tmcodec.errors import ConfigError
from tmcodec.tokenfile.context.coder import tables_alone
from tmcodec.training.module import TokenizerModule
from tmcodec.training.searched import SearchedCodes, tables_of
from tmcodec.training.starting import open_start


def waves(bands: int = 1, side: int = 96) -> torch.Tensor:
    y, x = torch.meshgrid(torch.arange(side) / 17, torch.arange(side) / 23, indexing="ij")
    return (0.4 + 0.3 * torch.sin(x + y) * torch.cos(x - 2 * y)).expand(2, bands, -1, -1).clone()


def rounds_drawn(most: int, seed: int) -> int:
    return int(torch.randint(0, most + 1, (), generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("seed", range(6))
def test_codes_are_those_of_a_file(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # In bfloat16 a network in training rounds otherwise than the fused layers of a tokenizer; where errors
    # are small, as on a smooth picture, moves near a tie then go apart. In float32 there is no excuse.
    monkeypatch.setattr(error, "has_bf16", lambda device: False)
    net, lineage = open_start("mini-ndvi-v2")
    values = waves()[:1]
    z = net.compander.compress(values)
    with torch.no_grad():
        codes = net.fsq.quantize(net.encoder(z))
    generator = torch.Generator().manual_seed(seed)
    found = SearchedCodes(net, lineage, 3)(codes, z, generator)
    assert found.shape == codes.shape
    assert found.dtype == codes.dtype
    tok = load_tokenizer("mini-ndvi-v2", "cpu")
    indices = net.fsq.codes_to_indices(codes).numpy().astype(np.int32)
    valid = np.ones(values.shape[1:], np.bool_)
    # As training sees them: companding there and back moves values by a rounding, and near ties follow.
    shown = net.compander.expand(z)[0].numpy()
    expected = search(tok, indices[0], shown, valid, rounds_drawn(3, seed))
    assert np.array_equal(net.fsq.codes_to_indices(found)[0].numpy(), expected)


def test_prices_are_made_once_for_a_device() -> None:
    net, lineage = open_start("mini-ndvi-v2")
    better = SearchedCodes(net, lineage, 3)
    first = better._bits_on(torch.device("cpu"))
    assert better._bits_on(torch.device("cpu")) is first


def test_from_none_to_all_rounds_are_drawn() -> None:
    assert {rounds_drawn(3, seed) for seed in range(30)} == {0, 1, 2, 3}


def test_prices_are_those_of_the_starting_point() -> None:
    _, lineage = open_start("mini-ndvi-v2")
    tok = load_tokenizer("mini-ndvi-v2", "cpu")
    assert tables_of(lineage, tok.levels) is tables_alone(tok.sha256, tok.levels)
    assert tables_of(None, tok.levels).network is None


def test_it_trains_the_decoder_and_nothing_else() -> None:
    module = TokenizerModule(start="mini-ndvi-v2", stage="decoder", search=2)
    values = waves()
    valid = torch.ones_like(values, dtype=torch.bool)
    batch = {"values": values, "valid": valid, "number": torch.tensor([2, 3])}
    before = {k: v.clone() for k, v in module.net.state_dict().items()}
    losses, _ = module.losses_of(batch)  # type: ignore[arg-type]
    sum(losses.values()).backward()  # type: ignore[union-attr]
    with_gradient = {k.split(".")[0] for k, p in module.net.named_parameters() if p.grad is not None}
    assert with_gradient == {"decoder"}
    assert all(torch.equal(v, before[k]) for k, v in module.net.state_dict().items())
    with torch.inference_mode():  # as validation runs
        assert torch.isfinite(sum(module.losses_of(batch)[0].values()))  # type: ignore[arg-type]


def test_numbers_of_crops_stay_on_the_cpu() -> None:
    """So that seeding a step's generator reads nothing from the device."""
    module = TokenizerModule(start="mini-ndvi-v2", stage="decoder")
    batch = {"values": waves(), "number": torch.tensor([2, 3])}
    moved = module.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved["values"].is_meta
    assert moved["number"].tolist() == [2, 3]


@pytest.mark.parametrize("stage", ["mean", "denoiser", "chain"])
def test_other_stages_refuse_it(stage: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.search is for stage decoder"):
        TokenizerModule(start="mini-ndvi-v2", stage=stage, search=2)  # type: ignore[arg-type]


def test_negative_rounds_and_heights_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 0"):
        TokenizerModule(start="mini-ndvi-v2", stage="decoder", search=-1)
    with pytest.raises(ConfigError, match="not of heights"):
        TokenizerModule(start="mini-dem-v2", stage="decoder", search=1)
