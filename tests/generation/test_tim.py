"""Thinking in modalities: what the encoder sees, where gradients go, and what TerraTorch is told."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from generation_helpers import tokenizer_refs
from torch import Tensor

from tmcodec.errors import ConditionError, GenerationError, MissingDependencyError, TargetError
from tmcodec.generation.models import LoadedGenerator, load_generator
from tmcodec.generation.weights import save_generator
from tmcodec.modalities import get_modality
from tmcodec.networks.generator.config import GeneratorConfig, pixel_spec, sequence_spec, token_spec
from tmcodec.networks.generator.model import Generator, Part
from tmcodec.tim import ThinkingEncoder, register, tmcodec_thinking_encoder

SPECS = (pixel_spec("S1GRD"), token_spec("S2L2A"), token_spec("LULC"), token_spec("DEM"),
         sequence_spec("coords", 40))  # fmt: skip


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write random weights of a small generator."""
    torch.manual_seed(8)
    cfg = GeneratorConfig(32, 3, 1, 4, True, False, SPECS, embedding="codes", grid=4)
    path = tmp_path_factory.mktemp("generator") / "tiny.safetensors"
    save_generator(path, Generator(cfg), "tiny", {})
    return path


@pytest.fixture(scope="module")
def generator(weights: Path) -> LoadedGenerator:
    """Return it, ready."""
    return load_generator(str(weights), "cpu", precision="fp32")


def tokens(seed: int = 0) -> Tensor:
    """Return random S2L2A tokens ``(2, 4, 4)``."""
    return torch.randint(0, 15360, (2, 4, 4), generator=torch.Generator().manual_seed(seed))


def pixels(seed: int = 0) -> Tensor:
    """Return random S1GRD pixels ``(2, 2, 64, 64)`` in dB."""
    return -15 + 3 * torch.randn(2, 2, 64, 64, generator=torch.Generator().manual_seed(seed))


def test_it_sees_inputs_and_thoughts(generator: LoadedGenerator) -> None:
    """The layers are those of the generator's encoder on inputs plus what the generator generates."""
    net = ThinkingEncoder(generator, ["LULC"], merge=None, seed=5)
    found = net({"S2L2A": tokens()})
    thought = generator.generate({"S2L2A": tokens()}, ["LULC"], decoding_steps=1, temperature=1.0, top_p=0.8,
                                 seed=5).tokens["LULC"]  # fmt: skip
    parts = [Part("tok_sen2l2a@224", tokens().flatten(1)), Part("tok_lulc@224", thought.flatten(1).long())]
    expected = generator.net.encode(parts, layers=True).features
    assert len(found) == 3 and found[0].shape == (2, 32, 32)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_one_name_is_one_modality(generator: LoadedGenerator) -> None:
    """As ``think: LULC`` in a TerraTorch configuration."""
    one = ThinkingEncoder(generator, "LULC", inputs="S2L2A")
    assert (one.think, one.inputs) == (("LULC",), ("S2L2A",))


def test_merges(generator: LoadedGenerator) -> None:
    """Mean, maximum, concatenation and dictionary of the same embeddings."""
    kinds = {m: ThinkingEncoder(generator, ["LULC"], inputs=["S2L2A"], merge=m)
             for m in ("mean", "max", "concat", "dict")}  # fmt: skip
    found = {m: net({"S2L2A": tokens()})[-1] for m, net in kinds.items()}
    parts = list(found["dict"].values())
    assert list(found["dict"]) == ["S2L2A", "LULC"]
    torch.testing.assert_close(found["mean"], (parts[0] + parts[1]) / 2)
    torch.testing.assert_close(found["max"], torch.maximum(*parts))
    torch.testing.assert_close(found["concat"], torch.cat(parts, -1))
    assert kinds["concat"].out_channels == [64] * 3 and kinds["mean"].out_channels == [32] * 3
    assert kinds["mean"].feature_info[0] == {"num_chs": 32, "reduction": 16, "module": "encoder.encoder.0"}
    assert kinds["mean"].patch_size == 16  # by which TerraTorch pads


def test_gradients_reach_the_encoder_alone(generator: LoadedGenerator) -> None:
    """All that is left of the encoder learns; the generator is no part of the module, and does not change."""
    net = ThinkingEncoder(generator, ["LULC", "DEM"], inputs=["S1GRD"])
    before = {k: v.clone() for k, v in generator.net.state_dict().items()}
    net(pixels())[-1].square().mean().backward()
    missing = [k for k, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []
    assert not any("decoder" in k for k in net.state_dict())
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1)
    assert all(torch.equal(v, generator.net.state_dict()[k]) for k, v in before.items())
    assert all(p.grad is None for p in generator.net.parameters())


def test_copies_and_pickles_answer_alike(generator: LoadedGenerator) -> None:
    """Moving averages copy the backbone, spawned processes pickle it; copies share the generator alone."""
    net = ThinkingEncoder(generator, ["LULC"]).eval()
    with torch.no_grad():
        expected = net({"S2L2A": tokens()})[-1]
        again = copy.deepcopy(net)
        assert again.generator is generator
        for other in (again, pickle.loads(pickle.dumps(net))):
            assert torch.equal(other({"S2L2A": tokens()})[-1], expected)
            for parameter in other.parameters():
                parameter.zero_()
        assert torch.equal(net({"S2L2A": tokens()})[-1], expected)


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_put_in_unseen_are_used(generator: LoadedGenerator, frozen: bool) -> None:
    """Moving averages swap weights through ``.data``, which counts no version."""
    net = ThinkingEncoder(generator, ["LULC"]).eval().requires_grad_(not frozen)
    other = ThinkingEncoder(generator, ["LULC"]).eval()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(0.5)
        first = net({"S2L2A": tokens()})[-1].clone()
        for parameter in net.parameters():
            parameter.data.mul_(0.5)
        found = net({"S2L2A": tokens()})[-1]
        assert not torch.allclose(found, first, atol=0.1)
        torch.testing.assert_close(found, other({"S2L2A": tokens()})[-1])


def test_what_is_given_is_not_thought(generator: LoadedGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Land cover among the inputs is taken as it is."""
    asked: list[list[str]] = []
    original = LoadedGenerator.generate

    def spy(self: LoadedGenerator, inputs: object, targets: list[str], **kwargs: object) -> object:
        asked.append(targets)
        return original(self, inputs, targets, **kwargs)

    monkeypatch.setattr(LoadedGenerator, "generate", spy)
    net = ThinkingEncoder(generator, ["LULC", "DEM"], merge="dict")
    land = torch.zeros(2, 4, 4, dtype=torch.int64)
    found = net({"S2L2A": tokens(), "LULC": land})
    assert asked == [["DEM"]]
    assert list(found[0]) == ["S2L2A", "LULC", "DEM"]


def test_names_are_those_of_the_table_however_written(generator: LoadedGenerator) -> None:
    """In lower case as in capitals, among thoughts as among inputs."""
    net = ThinkingEncoder(generator, ["lulc"], inputs=["s2l2a"], merge="dict")
    expected = ThinkingEncoder(generator, ["LULC"], inputs=["S2L2A"], merge="dict")({"S2L2A": tokens()})[-1]
    found = net({"s2l2a": tokens()})[-1]
    assert list(found) == ["S2L2A", "LULC"]
    assert all(torch.equal(found[name], expected[name]) for name in found)
    given = net({"s2l2a": tokens(), "lulc": torch.zeros(2, 4, 4, dtype=torch.int64)})[-1]
    assert list(given) == ["S2L2A", "LULC"]


def test_equal_inputs_think_alike(generator: LoadedGenerator) -> None:
    """By the seed, whatever the global random state."""
    net = ThinkingEncoder(generator, ["LULC"])
    torch.manual_seed(1)
    first = net({"S2L2A": tokens()})[-1]
    torch.manual_seed(2)
    torch.testing.assert_close(net({"S2L2A": tokens()})[-1], first, atol=0, rtol=0)
    assert not torch.allclose(ThinkingEncoder(generator, ["LULC"], seed=9)({"S2L2A": tokens()})[-1], first)


def test_mixed_precision_is_the_encoders_alone(generator: LoadedGenerator) -> None:
    """Under a trainer's autocast the thoughts stay those of the generator's own precision."""
    inputs = {"S1GRD": pixels()}
    settings = {"decoding_steps": 4, "seed": 3}
    net = ThinkingEncoder(generator, ["LULC"], **settings)
    plain = generator.generate(inputs, ["LULC", "DEM"], choice="mean", **settings)
    exact, thought = net(inputs)[-1].detach(), net._thoughts(inputs)["LULC"]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = generator.generate(inputs, ["LULC", "DEM"], choice="mean", **settings)
        rough, again = net(inputs)[-1].detach(), net._thoughts(inputs)["LULC"]
        assert net.encoder.encoder[0].attn.qkv(torch.zeros(1, 32)).dtype == torch.bfloat16
    for name, tokens in plain.tokens.items():
        assert torch.equal(mixed.tokens[name], tokens)
        assert torch.equal(mixed.log_probabilities[name], plain.log_probabilities[name])
    assert torch.equal(again, thought)
    assert 0 < float((rough - exact).abs().max()) < 0.2


def test_standardised_pixels_are_the_physical_ones(generator: LoadedGenerator) -> None:
    """What TerraTorch's data modules give."""
    row = get_modality("S1GRD")
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (row.mean, row.std))
    physical = ThinkingEncoder(generator, inputs=["S1GRD"])(pixels())
    standard = ThinkingEncoder(generator, inputs=["S1GRD"], standardized=True)((pixels() - mean) / std)
    torch.testing.assert_close(physical[-1], standard[-1], atol=1e-3, rtol=1e-3)
    net = ThinkingEncoder(generator, inputs=["S1GRD"], standardized=True)
    array = ((pixels() - mean) / std).numpy()
    torch.testing.assert_close(net({"S1GRD": array})[-1], standard[-1])


def test_hidden_places_count_nothing(generator: LoadedGenerator) -> None:
    """Mean and maximum are over what is seen at a place; where nothing is, they are zero."""
    some, land = tokens(), torch.arange(32).view(2, 4, 4)
    some[:, :2], land[:, 1:3] = -1, -1  # rows 0 to 3 show: land alone, nothing, S2L2A alone, both
    found = {merge: ThinkingEncoder(generator, ["LULC"], merge=merge)({"S2L2A": some, "LULC": land})[-1]
             for merge in ("dict", "mean", "max")}  # fmt: skip
    s2, lulc = (part.unflatten(1, (4, 4)) for part in found["dict"].values())
    for merge, both in (("mean", (s2 + lulc) / 2), ("max", torch.maximum(s2, lulc))):
        merged = found[merge].unflatten(1, (4, 4))
        for row, expected in enumerate((lulc, torch.zeros_like(s2), s2, both)):
            torch.testing.assert_close(merged[:, row], expected[:, row])
    assert not s2[:, 0].any() and bool((lulc[:, 0] < 0).any())


def test_pixels_with_gaps_are_taken(weights: Path, tiny_tokenizer: Callable[[str], Path]) -> None:
    """As `generate` takes them: a patch with a pixel that is not finite is not seen."""
    generator = load_generator(str(weights), "cpu", precision="fp32")
    generator.tokenizers.update(tokenizer_refs({"S2L2A": tiny_tokenizer("S2L2A")}))
    x = 2000 + 500 * torch.rand(1, 12, 64, 64, generator=torch.Generator().manual_seed(0))
    x[0, 3, 20, 40] = torch.nan
    net = ThinkingEncoder(generator, ["LULC"], inputs=["S2L2A"], merge="dict")
    found = net({"S2L2A": x})[-1]["S2L2A"].unflatten(1, (4, 4))
    seen = torch.ones(4, 4, dtype=torch.bool)
    seen[1, 2] = False
    assert torch.equal(found[0].any(-1), seen)
    thought = generator.generate({"S2L2A": x}, ["LULC"], decoding_steps=1, seed=0).tokens["LULC"]
    assert torch.equal(net._thoughts(net._tokenized({"S2L2A": x}))["LULC"], thought)


def test_channels_lie_in_the_order_of_the_inputs(generator: LoadedGenerator) -> None:
    """However the caller's dictionary is ordered; one that is missing is named."""
    net = ThinkingEncoder(generator, ["LULC"], inputs=["S2L2A", "DEM"], merge="concat")
    split = ThinkingEncoder(generator, ["LULC"], inputs=["S2L2A", "DEM"], merge="dict")
    one, two = tokens(), tokens(1)
    found = net({"DEM": two, "S2L2A": one})[-1]
    parts = split({"S2L2A": one, "DEM": two})[-1]
    expected = torch.cat([parts[name] for name in ("S2L2A", "DEM", "LULC")], -1)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(ConditionError, match="DEM is not given"):
        net({"S2L2A": one})


def test_what_does_not_fit_is_refused(generator: LoadedGenerator) -> None:
    """Unknown merges, modalities that the generator does not know, numbers, a tensor without a name."""
    wrong: list[dict[str, Any]] = [{"decoding_steps": 0}, {"decoding_steps": "x"}, {"temperature": -1.0},
                                   {"top_p": 2.0}, {"decoding_steps": {"DEM": 2}}]  # fmt: skip
    for how in wrong:
        with pytest.raises(GenerationError, match=next(iter(how)).split("_")[0]):
            ThinkingEncoder(generator, ["LULC"], **how)
    with pytest.raises(GenerationError, match="merge"):
        ThinkingEncoder(generator, merge="sum")
    with pytest.raises(GenerationError, match="inputs"):
        ThinkingEncoder(generator, merge="concat")
    with pytest.raises(TargetError):
        ThinkingEncoder(generator, ["NDVI"])
    with pytest.raises(ConditionError, match="NDVI"):
        ThinkingEncoder(generator, inputs=["NDVI"])
    for thoughts in (["coords"], ["Coords"], ["LULC", "lulc"]):
        with pytest.raises(TargetError):
            ThinkingEncoder(generator, thoughts)
    with pytest.raises(ConditionError, match="dictionary"):
        ThinkingEncoder(generator)(tokens())


def test_what_may_be_given_may_be_thought(generator: LoadedGenerator) -> None:
    """Land cover is an input where it is there, and a thought where it is not."""
    net = ThinkingEncoder(generator, ["lulc"], inputs=["S2L2A", "LULC"], merge="dict").eval()
    with torch.no_grad():
        alone, both = net({"S2L2A": tokens()}), net({"S2L2A": tokens(), "LULC": tokens() % 100})
    assert list(alone[-1]) == list(both[-1]) == ["S2L2A", "LULC"]
    assert not torch.equal(alone[-1]["LULC"], both[-1]["LULC"])


# --------------------------------------------------------------------------- TerraTorch


def test_registration(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    """The registry gets the builder under its name, and the builder builds."""
    registered = []

    class Registry:
        def register(self, builder: object) -> None:
            registered.append(builder)

    package, module = ModuleType("terratorch"), ModuleType("terratorch.registry")
    module.TERRATORCH_BACKBONE_REGISTRY = Registry()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "terratorch", package)
    monkeypatch.setitem(sys.modules, "terratorch.registry", module)
    register()
    assert [builder.__name__ for builder in registered] == ["tmcodec_thinking_encoder"]
    net = registered[0](str(weights), ["LULC"], ["S1GRD"], device="cpu")
    assert isinstance(net, ThinkingEncoder) and net.standardized
    assert net(pixels())[0].shape == (2, 16, 32)


def test_registration_without_terratorch(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so."""
    monkeypatch.setitem(sys.modules, "terratorch", None)
    monkeypatch.setitem(sys.modules, "terratorch.registry", None)
    with pytest.raises(MissingDependencyError):
        register()
    with pytest.raises(GenerationError, match="pretrained"):
        tmcodec_thinking_encoder(pretrained=False)
