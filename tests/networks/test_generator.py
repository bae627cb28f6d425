"""The any-to-any transformer: against plain formulas, and what it promises about parts and targets."""

from __future__ import annotations

import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tmcodec.errors import ShapeError
from tmcodec.networks.generator.config import (
    SIZES,
    GeneratorConfig,
    ModalitySpec,
    official_config,
    pixel_spec,
    sequence_spec,
    token_spec,
)
from tmcodec.networks.generator.embeddings import CodeTable, image_positions, sequence_positions, stretched
from tmcodec.networks.generator.layers import Attention, GatedMlp, LayerNorm, Segment
from tmcodec.networks.generator.model import Generator, Part
from tmcodec.networks.terramind.inference import prepare

S2, LULC, DEM = "tok_sen2l2a@224", "tok_lulc@224", "tok_dem@224"


def config(**changes: object) -> GeneratorConfig:
    """Return a small configuration with all kinds of modalities."""
    specs = (token_spec("S2L2A"), token_spec("LULC"), token_spec("DEM"), pixel_spec("S2L2A"),
             sequence_spec("coords", 40))  # fmt: skip
    sizes = {"dim": 32, "encoder_depth": 2, "decoder_depth": 2, "heads": 4, "gated": True, "biases": False,
             "modalities": specs, "grid": 4}  # fmt: skip
    return GeneratorConfig(**{**sizes, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["table", "codes"])
def net(request: pytest.FixtureRequest) -> Generator:
    """Return an untrained network with logits of ordinary size."""
    torch.manual_seed(0)
    found = Generator(config(embedding=request.param)).eval()
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return found.requires_grad_(False)


def tokens(count: int, key: str = S2, batch: int = 2, seed: int = 0) -> Tensor:
    """Return random tokens ``(batch, count)``."""
    generator = torch.Generator().manual_seed(seed)
    limit = {S2: 15360, DEM: 15360, LULC: 4375}[key]
    return torch.randint(0, limit, (batch, count), generator=generator)


def all_places(count: int, batch: int = 2) -> Tensor:
    """Return positions 0 .. count-1 for each sample."""
    return torch.arange(count).expand(batch, -1)


# --------------------------------------------------------------------------- configuration


def test_official_sizes_have_the_published_widths() -> None:
    """Sizes of TerraMind 1.0: hidden width of SwiGLU is int(2/3 * 4 * dim); head dimension 64 in all."""
    assert official_config("base").hidden == 2048
    assert official_config("large").hidden == 2730
    assert official_config("tiny").hidden == 768
    assert [row.dim // row.heads for row in SIZES.values()] == [64] * 4


def test_config_goes_through_json_and_back() -> None:
    """to_dict and from_dict are inverse, and defaults are left out."""
    cfg = config(embedding="codes")
    plain = cfg.to_dict()
    assert GeneratorConfig.from_dict(plain) == cfg
    assert "mlp_ratio" not in plain and plain["modalities"][0]["levels"] == [8, 8, 8, 6, 5]


@pytest.mark.parametrize("change", [
    {"dim": 30}, {"heads": 5}, {"dim": 1 << 20}, {"grid": 0}, {"embedding": "words"}, {"gated": 1},
    {"modalities": []}, {"mlp_ratio": 1e9}, {"encoder_depth": 1000},
    {"modalities": [{"key": "a.b", "modality": "DEM", "kind": "tokens", "vocabulary": 5}]},
    {"modalities": [{"key": "a", "modality": "DEM", "kind": "tokens", "vocabulary": 1 << 30}]},
    {"modalities": [{"key": "a", "modality": "DEM", "kind": "pixels", "channels": 3, "decoder": True}]},
    {"modalities": 2 * [{"key": "a", "modality": "DEM", "kind": "tokens", "vocabulary": 5}]},
])  # fmt: skip
def test_config_out_of_range_is_refused(change: dict[str, object]) -> None:
    """A header cannot make us allocate, or build what does not fit."""
    plain = {**config().to_dict(), **change}
    with pytest.raises(ValueError, match="out of range"):
        GeneratorConfig.from_dict(plain)


# --------------------------------------------------------------------------- layers by plain formulas


def test_attention_is_softmax_of_products_within_segments() -> None:
    """Two segments, the second with a hidden key, against the formula written out."""
    torch.manual_seed(1)
    layer, x = Attention(8, 2, True), torch.randn(1, 5, 8)
    hidden = torch.tensor([True, False, True])[None, None, None]
    found = layer(x, [Segment(2), Segment(3, hidden)])
    q, k, v = layer.qkv(x).reshape(1, 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(2, 3) / 2.0
    seen = torch.zeros(5, 5, dtype=torch.bool)
    seen[:2, :2] = True
    seen[2:, 2:] = hidden[0, 0]
    weights = scores.masked_fill(~seen, -math.inf).softmax(-1)
    expected = layer.proj((weights @ v).transpose(1, 2).reshape(1, 5, 8))
    torch.testing.assert_close(found, expected)


def test_gated_perceptron_is_swiglu() -> None:
    """fc2(silu(fc1 x) * fc3 x), arXiv 2002.05202."""
    torch.manual_seed(1)
    layer, x = GatedMlp(6, 10, False), torch.randn(3, 6)
    a, b = x @ layer.fc1.weight.t(), x @ layer.fc3.weight.t()
    torch.testing.assert_close(layer(x), (a * a.sigmoid() * b) @ layer.fc2.weight.t())


def test_positions_have_the_official_values() -> None:
    """Golden values by the formulas sin/cos(index / 10000^(i / quarter))."""
    table = image_positions(3, 8)[0]
    assert table.shape == (9, 8)
    # The second cell: first axis 0, second 1; the fourth: first axis 1, second 0.
    torch.testing.assert_close(
        table[1], torch.tensor([0, 0, 1, 1, math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01)])
    )
    torch.testing.assert_close(
        table[3], torch.tensor([math.sin(1), math.sin(0.01), math.cos(1), math.cos(0.01), 0, 0, 1, 1])
    )
    words = sequence_positions(4, 4)[0]
    torch.testing.assert_close(
        words[2], torch.tensor([math.sin(2), math.sin(0.02), math.cos(2), math.cos(0.02)])
    )


def test_stretched_positions_follow_rows_and_columns() -> None:
    """A rectangle is the square resized as a picture: transposing both gives the same."""
    table = torch.randn(1, 16, 4)
    wide = stretched(table, 3, 6).view(3, 6, 4)
    turned = table.view(4, 4, 4).transpose(0, 1).reshape(1, 16, 4)
    tall = stretched(turned, 6, 3).view(6, 3, 4)
    torch.testing.assert_close(wide, tall.transpose(0, 1))
    picture = table[0].t().view(1, 4, 4, 4)
    expected = F.interpolate(picture, size=(3, 6), mode="bicubic", align_corners=False)
    torch.testing.assert_close(wide, expected[0].permute(1, 2, 0))


# --------------------------------------------------------------------------- parts


def test_some_tokens_equal_all_tokens_with_the_rest_padded(net: Generator) -> None:
    """Visible tokens by position, in any order, give what a padded whole grid gives."""
    values, places = tokens(16), torch.tensor([[3, 7, 1], [15, 0, 2]])
    some = Part(S2, values.gather(1, places), places, (4, 4))
    padding = torch.ones(2, 16, dtype=torch.bool).scatter(1, places, False)
    whole = Part(S2, values, None, (4, 4), padding)
    asked = all_places(5)
    a, b = (net.predict(net.encode([part]), LULC, asked) for part in (some, whole))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert float(a.std()) > 0.05


def test_padding_never_matters(net: Generator) -> None:
    """What stands under the padding changes nothing; a sample without anything has no context."""
    padding = torch.zeros(2, 16, dtype=torch.bool)
    padding[0, 10:] = True
    padding[1] = True
    first, second = tokens(16), tokens(16, seed=1)
    second[0, :10] = first[0, :10]
    asked = all_places(6)
    a, b = (net.predict(net.encode([Part(S2, t, padding=padding)]), DEM, asked) for t in (first, second))
    torch.testing.assert_close(a, b)
    torch.testing.assert_close(a[1:], net.predict(net.nothing(1), DEM, asked[:1]), atol=1e-4, rtol=1e-4)
    assert not a.isnan().any()


def test_order_of_parts_does_not_matter(net: Generator) -> None:
    """The encoder sees a set."""
    parts = [Part(S2, tokens(16)), Part("coords", torch.tensor([[7, 8, 3], [9, 10, 3]]))]
    a, b = (net.predict(net.encode(p), LULC, all_places(4)) for p in (parts, parts[::-1]))
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_visible_patches_are_those_of_the_whole_picture(net: Generator) -> None:
    """A patch embedding is rows, columns, bands in this order, times the weight."""
    x = torch.randn(2, 12, 32, 48)
    embedding = net.encoder_embeddings["untok_sen2l2a@224"]
    places = torch.tensor([[4, 1], [5, 0]])
    found = embedding(x, places)
    patch = x[0, :, 16:32, 16:32].permute(1, 2, 0).reshape(-1)
    torch.testing.assert_close(found[0, 0], embedding.proj.weight @ patch, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[1], embedding(x, None)[1, [5, 0]])
    encoded = net.encode([Part("untok_sen2l2a@224", x)], layers=True)
    assert encoded.context.shape == (2, 6, 32) and len(encoded.features) == 2


def test_layers_are_the_outputs_of_the_blocks(net: Generator) -> None:
    """The first is one block's, the last is normalised."""
    part = Part(S2, tokens(16))
    features = net.encode([part], layers=True).features
    embedding = net.encoder_embeddings[S2]
    x = embedding(part.values) + embedding.where((4, 4), None)
    first = net.encoder[0](x, None)
    torch.testing.assert_close(features[0], first)
    torch.testing.assert_close(features[1], net.encoder_norm(net.encoder[1](first, None)))


@pytest.mark.parametrize("parts", [
    [], [Part("tok_nothing", tokens(16))], [Part(S2, tokens(16) + 15360)], [Part(S2, tokens(16) - 15360)],
    [Part(S2, tokens(15))], [Part(S2, tokens(3), torch.tensor([[0, 1, 16], [0, 1, 2]]))],
    [Part(S2, tokens(3), all_places(2))], [Part(S2, tokens(16), padding=torch.ones(2, 3, dtype=torch.bool))],
    [Part("untok_sen2l2a@224", torch.zeros(1, 3, 32, 32))],
    [Part("untok_sen2l2a@224", torch.zeros(1, 12, 33, 32))],
    [Part("untok_sen2l2a@224", torch.zeros(1, 12, 32, 32), torch.tensor([[4]]))],
    [Part(S2, tokens(16)), Part(DEM, tokens(16, DEM, batch=1))],
    [Part("coords", torch.tensor([[40]]))], [Part(S2, tokens(16)[0])],
])  # fmt: skip
def test_parts_that_do_not_fit_are_refused(net: Generator, parts: list[Part]) -> None:
    """One line, a class of ours, and no index error from below."""
    with pytest.raises(ShapeError) as caught:
        net.encode(parts)
    assert len(str(caught.value).splitlines()) == 1


def test_targets_that_do_not_fit_are_refused(net: Generator) -> None:
    """Unknown key, position outside the grid, wrong batch."""
    encoded = net.encode([Part(S2, tokens(16))])
    for key, asked in (("nothing", all_places(2)), (LULC, all_places(17)), (LULC, all_places(2, 3))):
        with pytest.raises(ShapeError):
            net.predict(encoded, key, asked)


# --------------------------------------------------------------------------- targets


def test_several_targets_at_once_equal_each_alone(net: Generator) -> None:
    """Targets do not see one another."""
    encoded = net.encode([Part(S2, tokens(16))])
    a = net.predict_many(encoded, [
        (LULC, all_places(5), (4, 4), None), (DEM, all_places(16), None, None),
        ("coords", torch.tensor([[5, 9], [5, 10]]), None, None),
    ])  # fmt: skip
    torch.testing.assert_close(a[0], net.predict(encoded, LULC, all_places(5)), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(a[1], net.predict(encoded, DEM, all_places(16)), atol=1e-4, rtol=1e-4)
    assert a[2].shape == (2, 2, 40)


def test_padded_queries_change_nothing_for_others(net: Generator) -> None:
    """A sample that asks for fewer positions gets what it gets alone."""
    encoded = net.encode([Part(S2, tokens(16))])
    padding = torch.tensor([[False, False, True, True], [False] * 4])
    both = net.predict(encoded, LULC, all_places(4), None, padding)
    alone = net.predict(net.encode([Part(S2, tokens(16)[:1])]), LULC, all_places(2, 1))
    torch.testing.assert_close(both[:1, :2], alone, atol=1e-4, rtol=1e-4)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 99), length=st.integers(1, 3))
def test_writing_with_kept_keys_equals_writing_anew(net: Generator, seed: int, length: int) -> None:
    """Greedy words by the cache are the likeliest next ones of a full causal pass."""
    encoded = net.encode([Part(S2, tokens(16, seed=seed))])
    words = net.predict_sequence(encoded, "coords", 5, stop=39, length=length)
    logits = net.predict_many(encoded, [("coords", words[:, :-1], None, None)])[0]
    assert torch.equal(logits.argmax(-1), words[:, 1:])
    assert words.shape[1] <= 1 + length


def test_writing_stops_where_all_have_stopped(net: Generator) -> None:
    """`choose` decides, and the last stop ends it."""
    encoded = net.encode([Part(S2, tokens(16))])
    script = iter([torch.tensor([7, 6]), torch.tensor([6, 9]), torch.tensor([0, 0])])
    words = net.predict_sequence(encoded, "coords", 5, stop=6, choose=lambda logits: next(script))
    assert words.tolist() == [[5, 7, 6], [5, 6, 9]]
    with pytest.raises(ShapeError):
        net.predict_sequence(encoded, LULC, 5, 6)


def test_logits_are_tied_to_the_table() -> None:
    """y W^T with the decoder's own table; the modality's vector is one parameter for both halves."""
    net = Generator(config())
    target = net.decoder_embeddings[LULC]
    y = torch.randn(1, 3, 32)
    torch.testing.assert_close(target.logits(y), y @ target.token_emb.weight.t())
    assert target.mod_emb is net.encoder_embeddings[LULC].mod_emb
    assert target.to_logits.weight is target.token_emb.weight


def test_bfloat16_is_close() -> None:
    """Products in bfloat16 differ by rounding alone, and logits come in float32."""
    torch.manual_seed(5)
    net, part = Generator(config()).eval().requires_grad_(False), [Part(S2, tokens(16))]
    exact = net.predict(net.encode(part), LULC, all_places(8))
    net.autocast = torch.bfloat16
    rough = net.predict(net.encode(part), LULC, all_places(8))
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).square().mean().sqrt()) < 0.03 * float(exact.std())


def test_layers_cast_once_answer_as_under_autocast_and_norms_stay_in_float32() -> None:
    torch.manual_seed(5)
    net, part = Generator(config()).eval().requires_grad_(False), [Part(S2, tokens(16))]
    exact = net.predict(net.encode(part), LULC, all_places(8))
    ready = prepare(copy.deepcopy(net), torch.bfloat16)
    net.autocast = torch.bfloat16
    rough = net.predict(net.encode(part), LULC, all_places(8))
    seen = []
    for module in ready.modules():
        if isinstance(module, LayerNorm):
            module.register_forward_hook(lambda _, x, y: seen.append((x[0].dtype, y.dtype)))
    found = ready.predict(ready.encode(part), LULC, all_places(8))
    assert set(seen) == {(torch.float32, torch.float32)}
    error, allowed = ((x - exact).square().mean().sqrt() for x in (found, rough))
    assert found.dtype == torch.float32
    assert 0 < error < 1.5 * allowed


@pytest.mark.slow
def test_compiled_blocks_answer_alike() -> None:
    """What the compiler traces of the blocks is what they compute, for several shapes; no code is made."""
    torch.manual_seed(6)
    net = Generator(config()).eval().requires_grad_(False)
    cases = [(tokens(16, batch=b), grid) for b, grid in ((1, (4, 4)), (3, (2, 8)))]
    cases.append((tokens(6, batch=2), (2, 3)))

    def answers() -> list[Tensor]:
        with torch.inference_mode():
            return [
                net.predict(net.encode([Part(S2, t, grid=grid)]), LULC, all_places(5, len(t)), grid)
                for t, grid in cases
            ]

    expected = answers()
    net.compile_blocks(backend="eager")
    for found, plain in zip(answers(), expected, strict=True):
        torch.testing.assert_close(found, plain, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------- vectors from digits


def test_vectors_of_digits_by_the_formula() -> None:
    """Sum of the digits' rows, plus the perceptron of the sum of its rows."""
    torch.manual_seed(2)
    table = CodeTable((3, 2), 4, 6)
    with torch.no_grad():
        table.bias.normal_()
    for token, digits in ((0, (0, 0)), (4, (1, 1)), (5, (2, 1))):
        rows = [digits[0], 3 + digits[1]]
        hidden = F.gelu(table.enter[rows].sum(0) + table.bias)
        expected = table.linear[rows].sum(0) + table.leave @ hidden
        torch.testing.assert_close(table(torch.tensor([[token]]))[0, 0], expected)
    assert table.table().shape == (6, 4)


def test_kept_table_equals_the_computed_one_and_follows_the_weights() -> None:
    """In evaluation without gradients the table is computed once, and again after a weight changed."""
    table = CodeTable((8, 8, 8, 6, 5), 8, 16)
    every = torch.arange(15360)[None]
    computed = table(every)[0]
    assert computed.requires_grad
    table.eval()
    with torch.no_grad():
        kept = table.table()
        torch.testing.assert_close(kept, computed)
        assert table.table() is kept
        table.bias.add_(1)
        assert not torch.equal(table.table(), kept)
    assert table.table().requires_grad  # gradients are wanted: nothing kept


def test_a_weight_changed_unseen_changes_the_kept_table() -> None:
    """Through ``.data``, which counts no version; twice the last layer is twice its share."""
    table = CodeTable((7, 5, 5), 8, 16).eval()
    with torch.no_grad():
        table.linear.zero_()
        kept = table.table()
        table.leave.data.mul_(2)
        torch.testing.assert_close(table.table(), 2 * kept)


def test_tables_are_copied_and_pickled_without_their_locks() -> None:
    """Before and after a table is kept."""
    table = CodeTable((7, 5, 5), 8, 16).eval()
    with torch.no_grad():
        for _ in range(2):
            for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
                assert other._kept is None
                assert torch.equal(other.table(), table.table())


def test_off_the_cpu_the_kept_table_goes_by_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read from the device: on meta, which has no values, a comparison of them would fail."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # knows no meta
    table = CodeTable((7, 5, 5), 8, 16).eval().to("meta")
    with torch.no_grad():
        kept = table.table()
        assert table.table() is kept
        table.leave.mul_(2)
        changed = table.table()
        assert changed is not kept
        table.leave = torch.nn.Parameter(table.leave.clone())
        assert table.table() is not changed
        assert table.double().table().dtype == torch.float64


def test_training_forgets_the_kept_table() -> None:
    table = CodeTable((7, 5, 5), 8, 16).eval()
    with torch.no_grad():
        kept = table.table()
        assert table.train().eval().table() is not kept


def test_threads_share_one_kept_table() -> None:
    """Many threads that ask at once get the same tensor."""
    table = CodeTable((7, 5, 5, 5, 5), 8, 16).eval()

    def ask(_: int) -> int:
        with torch.no_grad():
            return table.table().data_ptr()

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(ask, range(32)))) == 1


@pytest.mark.parametrize("embedding", ["table", "codes"])
def test_gradients_reach_every_weight(embedding: str) -> None:
    """Of a pass that uses all modalities; the first row of words is padding, by convention without one."""
    net = Generator(config(embedding=embedding))
    parts = [Part(S2, tokens(16)), Part(LULC, tokens(16, LULC)), Part(DEM, tokens(16, DEM)),
             Part("untok_sen2l2a@224", torch.randn(2, 12, 64, 64)), Part("coords", torch.tensor([[7], [8]]))]
    queries = [(key, all_places(4), None, None) for key in (S2, LULC, DEM)]
    found = net.predict_many(net.encode(parts), [*queries, ("coords", torch.tensor([[5], [5]]), None, None)])
    sum(logits.square().mean() for logits in found).backward()  # type: ignore[union-attr]
    missing = [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []


def test_specification_of_unknown_modalities_needs_no_table() -> None:
    """Tokens without levels are fine with a table of their own, not with codes."""
    spec = ModalitySpec("tok_x", "X", "tokens", vocabulary=7)
    plain = config(modalities=(spec,)).to_dict()
    assert GeneratorConfig.from_dict(plain).modalities == (spec,)
    with pytest.raises(ValueError, match="tok_x"):
        GeneratorConfig.from_dict({**plain, "embedding": "codes"})
