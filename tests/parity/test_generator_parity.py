"""The any-to-any transformer against TerraTorch's, with the same random weights."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from generator_parity import GeneratorPair, empty_image, empty_sequence, pair_of, visible
from parity_helpers import import_terratorch
from torch import Tensor

from tmcodec.generation import decoding, models
from tmcodec.generation.sampling import Sampling
from tmcodec.generation.schedules import token_schedule
from tmcodec.generation.vocabulary import Vocabulary
from tmcodec.generation.weights import save_generator
from tmcodec.networks.generator.config import SIZES, GeneratorConfig, pixel_spec, token_spec
from tmcodec.networks.generator.model import Encoded, Generator, Part

PIXELS, S2, DEM, LULC = "untok_sen2l2a@224", "tok_sen2l2a@224", "tok_dem@224", "tok_lulc@224"
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=list(SIZES))
def pair(request: pytest.FixtureRequest) -> Iterator[GeneratorPair]:
    """Yield both networks in each official size, in full depth."""
    found = pair_of(request.param)
    yield found
    del found
    gc.collect()


@pytest.fixture(scope="module")
def small() -> Iterator[GeneratorPair]:
    """Yield both networks in one size, for what does not depend on it."""
    yield pair_of("tiny", seed=1)


def official_logits(pair: GeneratorPair, inputs: dict[str, Tensor], key: str, count: int) -> Tensor:
    """Return TerraTorch's logits of all tokens of an image target."""
    batch = next(iter(inputs.values())).shape[0]
    full = {name: visible(value) for name, value in inputs.items()}
    full[key] = empty_image(batch, count)
    logits, places = pair.sampler.forward_enc_dec_maskgit_batched(full, key)
    assert torch.equal(places, torch.arange(count).expand(batch, -1))
    return logits


def our_logits(
    pair: GeneratorPair, parts: list[Part], key: str, grid: tuple[int, int] = (14, 14)
) -> Tensor:
    """Return ours."""
    rows, cols = grid
    encoded = pair.ours.encode(parts)
    asked = torch.arange(rows * cols).expand(parts[0].values.shape[0], -1)
    return pair.ours.predict(encoded, key, asked, grid)


def assert_same(found: Tensor, expected: Tensor) -> None:
    """Compare logits, which must not be trivial."""
    assert float(expected.std()) > 0.5
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_pixels_and_tokens_and_coordinates(pair: GeneratorPair) -> None:
    """All kinds of conditions at once: the encoder's context and the logits, in each size."""
    x, tokens, words = pair.pixels(PIXELS, 2, 224, 224), pair.tokens(DEM, 2, 196), pair.tokens("coords", 2, 3)
    inputs = {PIXELS: x, DEM: tokens, "coords": words}
    parts = [Part(key, value) for key, value in inputs.items()]
    assert_same(our_logits(pair, parts, LULC), official_logits(pair, inputs, LULC, 196))
    encoder = pair.official.encoder_embeddings
    embedded = {key: encoder[key](visible(value)) for key, value in inputs.items()}
    values, places, mask, _ = pair.sampler.forward_mask_encoder_generation(embedded)
    expected = pair.official.forward_encoder(values + places, mask)
    features = pair.ours.encode(parts, layers=True).features
    assert len(features) == pair.cfg.encoder_depth
    torch.testing.assert_close(features[-1], expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_token_inputs(pair: GeneratorPair) -> None:
    """Tokens alone, by TerraTorch's inner sampler."""
    tokens = pair.tokens(S2, 2, 196)
    assert_same(our_logits(pair, [Part(S2, tokens)], DEM), official_logits(pair, {S2: tokens}, DEM, 196))


def test_another_size_of_the_picture(small: GeneratorPair) -> None:
    """160 pixels: positions are interpolated in encoder and decoder."""
    x = small.pixels(PIXELS, 1, 160, 160)
    assert_same(our_logits(small, [Part(PIXELS, x)], LULC, (10, 10)),
                official_logits(small, {PIXELS: x}, LULC, 100))  # fmt: skip


def test_rectangular_pixels_in_the_encoder(small: GeneratorPair) -> None:
    """TerraTorch's encoder takes them; its decoder does not."""
    x = small.pixels(PIXELS, 1, 128, 256)
    embedded = small.official.encoder_embeddings[PIXELS](visible(x, 128))
    expected = small.official.forward_encoder(embedded["x"] + embedded["emb"], None)
    found = small.ours.encode([Part(PIXELS, x)], layers=True).features[-1]
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_partly_decoded_targets(small: GeneratorPair) -> None:
    """What of the target is known enters the encoder; only the rest is asked for."""
    x, known = small.pixels(PIXELS, 2, 224, 224), small.tokens(LULC, 2, 196)
    target = empty_image(2, 196)
    order = torch.stack([torch.randperm(196, generator=torch.Generator().manual_seed(i)) for i in (0, 1)])
    shown, asked = order[:, :90], order[:, 90:].sort(1).values
    target["tensor"] = known
    target["input_mask"].scatter_(1, shown, False)
    target["target_mask"].scatter_(1, shown, True)
    full = {PIXELS: visible(x), LULC: target}
    expected, places = small.sampler.forward_enc_dec_maskgit_batched(full, LULC)
    assert torch.equal(places, asked)
    encoded = small.ours.encode([Part(PIXELS, x), Part(LULC, known.gather(1, shown), shown)])
    assert_same(small.ours.predict(encoded, LULC, asked), expected)


def test_samples_that_show_different_numbers(small: GeneratorPair) -> None:
    """Padding, which TerraTorch sorts to the end, gives the same."""
    tokens = small.tokens(S2, 2, 196)
    hidden = torch.zeros(2, 196, dtype=torch.bool)
    hidden[0, ::3] = True
    condition = visible(tokens)
    condition["input_mask"] = hidden
    full = {S2: condition, DEM: empty_image(2, 196)}
    expected, _ = small.sampler.forward_enc_dec_maskgit_batched(full, DEM)
    assert_same(our_logits(small, [Part(S2, tokens, padding=hidden)], DEM), expected)


def test_pretraining_mask_between_targets(small: GeneratorPair) -> None:
    """Several targets in one pass: TerraTorch's own forward, which masks attention between modalities."""
    tokens = small.tokens(S2, 2, 196)
    full = {S2: visible(tokens), LULC: empty_image(2, 196), DEM: empty_image(2, 196)}
    for key in (LULC, DEM):
        # In the packed form of pre-training the first token carries the number of its target's tokens.
        full[key]["decoder_attention_mask"] = torch.zeros(2, 196, dtype=torch.int64)
        full[key]["decoder_attention_mask"][:, 0] = 196
    full[S2]["target_mask"][:] = True
    net = small.official
    embedded = {S2: net.encoder_embeddings[S2](full[S2])}
    values, places, mask, _ = net.forward_mask_encoder(embedded, 196)
    context = net.decoder_proj_context(net.forward_encoder(values + places, mask)) + places
    targets = {key: net.decoder_embeddings[key].forward_embed(full[key]) for key in (LULC, DEM)}
    y, emb, _, _, attention, kinds = net.forward_mask_decoder(targets, 392)
    decoded = net.forward_decoder(y + emb, context, mask, attention)
    logits = net.forward_logits(decoded, targets, kinds)
    asked = torch.arange(196).expand(2, -1)
    found = small.ours.predict_many(
        small.ours.encode([Part(S2, tokens)]), [(key, asked, None, None) for key in (LULC, DEM)]
    )
    for key, ours in zip((LULC, DEM), found, strict=True):
        assert_same(ours, logits[key].view(2, 196, -1))


def test_greedy_step_of_all_tokens(small: GeneratorPair) -> None:
    """One step, top-k 1: the public class' schedule, by TerraTorch's own generate."""
    x = small.pixels(PIXELS, 2, 224, 224)
    full = {PIXELS: visible(x), LULC: empty_image(2, 196)}
    step = {"target_domain": LULC, "scheme": "roar", "num_tokens": 196, "temperature": 1.0, "cfg_scale": 1.0,
            "cfg_cond_domains": []}  # fmt: skip
    expected = small.sampler.generate(full, [step], top_k=1, top_p=0.0, seed=0)[LULC]["tensor"]
    found = our_logits(small, [Part(PIXELS, x)], LULC).argmax(-1)
    assert torch.equal(found, expected)
    assert expected.unique().numel() > 2


def test_words_one_by_one(small: GeneratorPair) -> None:
    """Greedy coordinates from pixels: with kept keys the same words as TerraTorch's full passes."""
    x = small.pixels(PIXELS, 2, 224, 224)
    full = {PIXELS: visible(x), "coords": empty_sequence(2, 4)}
    written: list[Tensor] = []

    class Text:
        """What the sampler asks of a text tokenizer, which here only keeps the words."""

    def keep(mod_dict: object, words: Tensor, *args: object, **kwargs: object) -> object:
        written.append(words)
        return mod_dict

    small.sampler.merge_sequences_batched = keep
    small.sampler.autoregressive_step_batched(full, "coords", 0.0, 0, 0.0, text_tokenizer=Text())
    shown = Part("coords", torch.full((2, 1), 5))
    encoded = small.ours.encode([Part(PIXELS, x), shown])
    found = small.ours.predict_sequence(encoded, "coords", start=5, stop=6)
    assert torch.equal(found, written[0])
    assert found.shape == (2, 4)


def test_official_layout_loads_strictly(small: GeneratorPair, tmp_path: Path) -> None:
    """TerraTorch's state dict, as it is and as its generating class saves it."""
    state = small.official.state_dict()
    torch.save(state, tmp_path / "TerraMind_v1_tiny.pt")
    torch.save({f"sampler.model.{k}": v for k, v in state.items()}, tmp_path / "generate.pt")
    x = small.pixels(PIXELS, 1, 224, 224)
    expected = our_logits(small, [Part(PIXELS, x)], DEM)
    for name in ("TerraMind_v1_tiny.pt", "generate.pt"):
        path = tmp_path / name
        loaded = models.load_generator("terramind-v1-tiny", "cpu", checkpoint=path, precision="fp32")
        assert loaded.cfg == small.cfg
        asked = torch.arange(196)[None]
        with torch.inference_mode():
            found = loaded.net.predict(loaded.net.encode([Part(PIXELS, x)]), DEM, asked)
        assert_same(found, expected)


def test_coordinates_in_words(tmp_path: Path) -> None:
    """The same words as TerraTorch's tokenizer of the same vocabulary, half quarters and signs included."""
    tokenizers = pytest.importorskip("tokenizers")
    package = "terratorch.models.backbones.terramind.tokenizer"
    text_tokenizer = pytest.importorskip(f"{package}.text.text_tokenizer")
    torch.set_float32_matmul_precision("highest")
    blank = text_tokenizer.build_blank_wordpiece()
    quarters = [f"{v / 4:.2f}" for v in range(-720, 721)]
    words = {f"{axis}={v}" for axis in ("lat", "lon") for v in (*quarters, "-0.00")}
    vocabulary = {**blank.get_vocab(), **{w: 7 + i for i, w in enumerate(sorted(words))}}
    blank.model = tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]")
    blank.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    blank.save(str(tmp_path / "config.json"))
    places = [[8.54, 47.38], [-0.125, 0.125], [179.99, -89.9], [-0.375, 0.0], [0.1, -0.1]]
    theirs = text_tokenizer.CoordsTokenizer(str(tmp_path / "config.json")).encode(torch.tensor(places))
    ours = Vocabulary({"coords": tmp_path / "config.json"})
    assert [ours.encode("coords", (lon, lat)) for lon, lat in places] == theirs["tensor"].tolist()
    assert len(set(theirs["tensor"].flatten().tolist())) > 8


def test_nothing_at_all_is_no_condition(small: GeneratorPair) -> None:
    """Without any condition TerraTorch's decoder has an empty context, too."""
    full = {DEM: empty_image(1, 196)}
    expected, _ = small.sampler.forward_enc_dec_maskgit_batched(full, DEM)
    asked = torch.arange(196)[None]
    found = small.ours.predict(Encoded(torch.zeros(1, 0, small.cfg.dim)), DEM, asked)
    torch.testing.assert_close(found, expected, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize(("scheme", "steps"), [("roar", 4), ("maskgit", 4)])
def test_schedules_by_the_engine(
    small: GeneratorPair, scheme: str, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several greedy steps, chained: the tokens of TerraTorch's inner sampler in the same order of places.

    Its places of a random order are recorded and replayed. Ranking in MaskGIT is by the probability of the
    likeliest token in both.
    """
    x, sampler = small.pixels(PIXELS, 1, 224, 224), small.sampler
    places: list[Tensor] = []
    original = sampler.forward_enc_dec_roar_batched

    def record(*args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        logits, where = original(*args, **kwargs)
        places.append(where)
        return logits, where

    def likeliest(logits: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        best = logits.softmax(-1).max(-1)
        return best.indices, best.values

    monkeypatch.setattr(sampler, "forward_enc_dec_roar_batched", record)
    monkeypatch.setattr(sampler, "sample_tokens", likeliest)
    full = {PIXELS: visible(x), LULC: empty_image(1, 196), DEM: empty_image(1, 196)}
    schedule = [
        {"target_domain": key, "scheme": scheme, "num_tokens": count, "temperature": 1.0, "cfg_scale": 1.0,
         "cfg_cond_domains": []}
        for key in (LULC, DEM) for count in token_schedule("linear", scheme, 196, steps)
    ]  # fmt: skip
    *_, expected = sampler.generate_iter(full, schedule, seed=0)
    queues = [torch.cat(places[:steps], 1), torch.cat(places[steps:], 1)] if places else []
    monkeypatch.setattr(decoding, "shuffled", lambda positions, noise: queues.pop(0))
    conditions = decoding.Conditions(small.ours, {"S2L2A": Part(PIXELS, x)}, 1, 1, (14, 14))
    for key, name in ((LULC, "LULC"), (DEM, "DEM")):
        plan = decoding.Plan(small.cfg.spec(key), steps, scheme, "linear", Sampling(temperature=0.0))
        empty = torch.full((1, 196), decoding.MISSING)
        tokens, _ = decoding.decode_target(conditions, plan, empty, [torch.Generator()])
        conditions.add(name, Part(key, tokens, None, (14, 14)))
        assert torch.equal(tokens, expected[key]["tensor"])


def test_backbone_in_terratorchs_registry(tmp_path: Path) -> None:
    """Registered by name, built by name, trained as a backbone of TerraTorch's own decoder and head."""
    import_terratorch()
    from terratorch.models import EncoderDecoderFactory
    from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY

    torch.set_float32_matmul_precision("highest")
    from tmcodec import tim

    tim.register()
    assert torch.get_float32_matmul_precision() == "highest"
    torch.manual_seed(0)
    specs = (pixel_spec("S1GRD"), token_spec("LULC"))
    cfg = GeneratorConfig(32, 4, 1, 4, True, False, specs, embedding="codes", grid=4)
    path = tmp_path / "tiny.safetensors"
    save_generator(path, Generator(cfg), "tiny", {})
    backbone = TERRATORCH_BACKBONE_REGISTRY.build(
        "tmcodec_thinking_encoder", str(path), ["LULC"], ["S1GRD"], device="cpu"
    )
    model = EncoderDecoderFactory().build_model(
        task="segmentation", backbone=backbone, decoder="FCNDecoder", num_classes=3,
        necks=[
            {"name": "SelectIndices", "indices": [-1]},
            {"name": "ReshapeTokensToImage", "remove_cls_token": False},
        ],
    )  # fmt: skip
    out = model(torch.randn(2, 2, 64, 64)).output
    assert out.shape == (2, 3, 64, 64)
    out.square().mean().backward()
    assert backbone.encoder.encoder[0].attn.qkv.weight.grad.any()
