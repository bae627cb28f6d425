"""Generators by name: the layouts of their weights, what is refused, and the command line."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

import tmcodec
from tmcodec.cli import cli
from tmcodec.errors import TokenizerNotFoundError, VocabularyError, WeightsError
from tmcodec.generation import models
from tmcodec.generation.layout import guess_config
from tmcodec.generation.models import find_generator, load_generator
from tmcodec.generation.vocabulary import Vocabulary, coordinates_text
from tmcodec.generation.weights import TokenizerRef, open_weights, save_generator
from tmcodec.networks.generator.config import (
    GeneratorConfig,
    Size,
    official_config,
    pixel_spec,
    sequence_spec,
    token_spec,
)
from tmcodec.networks.generator.model import Generator, Part

LULC = "tok_lulc@224"
SPECS = (pixel_spec("DEM"), token_spec("LULC"), sequence_spec("coords", 40))


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Import into a folder of the test; nothing is fetched."""
    monkeypatch.setenv("TMCODEC_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Generator:
    """Return a random network, and let the official name terramind-v1-tiny stand for its size."""
    monkeypatch.setitem(models.SIZES, "tiny", Size(2, 1, 64, 1, gated=False, biases=True))
    cfg = GeneratorConfig(64, 2, 1, 1, False, True, SPECS)
    torch.manual_seed(3)
    return Generator(cfg).eval().requires_grad_(False)


def answer(net: Generator) -> Tensor:
    """Return some logits."""
    tokens = torch.arange(196)[None] * 7
    with torch.no_grad():
        return net.predict(net.encode([Part(LULC, tokens)]), LULC, torch.arange(20)[None])


def state_of(net: Generator) -> dict[str, Tensor]:
    """Return a state dict with all that the official files have, cloned."""
    return {k: v.clone() for k, v in net.state_dict().items()}


def run(*args: object, status: int = 0) -> str:
    """Run the command line; return what it printed."""
    result = CliRunner().invoke(cli, [str(a) for a in args])
    assert result.exit_code == status, result.output
    return result.output


# --------------------------------------------------------------------------- layouts


def test_official_layouts_load_alike(tiny: Generator, tmp_path: Path) -> None:
    """.pt, .safetensors, with TerraTorch's prefix and tokenizers beside: the same generator."""
    state = state_of(tiny)
    prefixed = {f"sampler.model.{k}": v for k, v in state.items()}
    prefixed["tokenizer.tok_lulc@224.quant_proj.weight"] = torch.zeros(2)
    torch.save(state, tmp_path / "a.pt")
    torch.save(prefixed, tmp_path / "b.pt")
    save_file(state, tmp_path / "c.safetensors")
    found = [
        load_generator("terramind-v1-tiny", "cpu", checkpoint=tmp_path / name, precision="fp32")
        for name in ("a.pt", "b.pt", "c.safetensors")
    ]
    assert len({f.sha256 for f in found}) == 1
    assert found[0].cfg == tiny.cfg
    assert found[0].tokenizers == {"LULC": TokenizerRef("terramind-v1-lulc")}
    for loaded in found:
        torch.testing.assert_close(answer(loaded.net), answer(tiny), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(tiny: Generator, tmp_path: Path, bad: float) -> None:
    state, name = state_of(tiny), "encoder.1.attn.qkv.weight"
    state[name][3, 4] = bad
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=f"a.pt: not all numbers are finite in {name}; its training"):
        load_generator(str(tmp_path / "a.pt"), "cpu")


def test_what_can_be_derived_need_not_be_there(tiny: Generator, tmp_path: Path) -> None:
    """Positions, zero biases of norms, and the second of two shared tensors."""
    state = state_of(tiny)
    dropped = [k for k in state if k.endswith(("pos_emb", "to_logits.weight", "norm1.bias"))]
    dropped.append("decoder_embeddings.coords.mod_emb")
    torch.save({k: v for k, v in state.items() if k not in dropped}, tmp_path / "a.pt")
    torch.save(state, tmp_path / "b.pt")
    a, b = (open_weights(tmp_path / name) for name in ("a.pt", "b.pt"))
    assert a.sha256 == b.sha256
    assert len(dropped) > 10
    torch.testing.assert_close(answer(a.build()), answer(tiny))


def test_sizes_are_read_off_the_keys() -> None:
    """Of each official layout, without its weights."""
    for size in ("tiny", "small", "base", "large"):
        cfg = official_config(size)
        with torch.device("meta"):
            state = Generator(cfg).state_dict()
        assert guess_config(state, Path("x.pt")) == cfg


def test_unknown_modalities_load_by_their_shapes(tiny: Generator, tmp_path: Path) -> None:
    """A checkpoint with further modalities is no error: they can be used by their keys."""
    state = state_of(tiny)
    for name in ("mod_emb", "pos_emb", "token_emb.weight"):
        state[f"encoder_embeddings.tok_x@224.{name}"] = state[f"encoder_embeddings.{LULC}.{name}"].clone()
    state["encoder_embeddings.rgb@224.mod_emb"] = state["mask_token"].clone()
    state["encoder_embeddings.rgb@224.proj.weight"] = torch.zeros(64, 3 * 256)
    torch.save(state, tmp_path / "a.pt")
    cfg = open_weights(tmp_path / "a.pt").config
    assert cfg.spec("rgb@224").channels == 3 and not cfg.spec("rgb@224").decoder
    assert cfg.spec("tok_x@224").vocabulary == 4375


Change = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize(("change", "message"), [
    (lambda s: s.pop("encoder.1.mlp.fc1.weight"), "missing: encoder.1.mlp.fc1.weight"),
    (lambda s: s.update({"encoder.1.x": torch.zeros(1)}), "unexpected: encoder.1.x"),
    (lambda s: s.update({"encoder.0.attn.proj.bias": torch.zeros(3)}), "misshapen: encoder.0.attn.proj.bias"),
    (lambda s: s.pop("mask_token"), "not a checkpoint of TerraMind's transformer"),
    (lambda s: s.update({"mask_token": torch.zeros(1, 1, 64, dtype=torch.int64)}), "tensors of torch.int64"),
    (lambda s: s[f"decoder_embeddings.{LULC}.to_logits.weight"].add_(1), "must be the same tensor"),
    (lambda s: s[f"decoder_embeddings.{LULC}.mod_emb"].add_(1), "must be the same tensor"),
    (lambda s: s.update({"encoder.99.norm1.weight": torch.zeros(64)}), "TerraMind's transformer"),
])  # fmt: skip
def test_checkpoints_that_do_not_fit_are_refused(
    tiny: Generator, tmp_path: Path, change: Change, message: str
) -> None:
    """Strictly, by name, in groups, in one line."""
    state = state_of(tiny)
    change(state)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=message) as caught:
        open_weights(tmp_path / "a.pt")
    assert len(str(caught.value).splitlines()) == 1


def test_the_wrong_size_is_refused_by_name(tiny: Generator, tmp_path: Path) -> None:
    """terramind-v1-base has another width."""
    torch.save(state_of(tiny), tmp_path / "a.pt")
    with pytest.raises(WeightsError, match=r"not terramind-v1-base .dim 64, not 768"):
        load_generator("terramind-v1-base", checkpoint=tmp_path / "a.pt")


def test_files_of_other_kinds_are_refused(tmp_path: Path, tiny_tokenizer: Callable[[str], Path]) -> None:
    """A tokenizer's weights, text, pickled objects."""
    text, objects = tmp_path / "text.safetensors", tmp_path / "objects.pt"
    text.write_text("no weights")
    torch.save({"a": tmp_path}, objects)
    for path in (tiny_tokenizer("DEM"), text, objects):
        with pytest.raises(WeightsError):
            load_generator(str(path))
    for name in ("nothing", str(tmp_path / "absent.pt")):
        with pytest.raises(TokenizerNotFoundError, match="no generator"):
            load_generator(name)
    with pytest.raises(TokenizerNotFoundError, match="checkpoint goes with"):
        load_generator("mini-any2any-v1", checkpoint=text)


# --------------------------------------------------------------------------- our own files


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return a file of this library: digits' embeddings, half precision, tokenizers stated."""
    torch.manual_seed(4)
    cfg = GeneratorConfig(32, 2, 1, 4, True, False, SPECS[1:], embedding="codes", grid=4)
    path = tmp_path / "own.safetensors"
    refs = {"LULC": TokenizerRef("mini-lulc-v1", bytes(range(32)))}
    save_generator(path, Generator(cfg), "own-v1", refs, {"training": "none"})
    return path


def test_own_files_come_back(own: Path) -> None:
    """Name, configuration, tokenizers and notes; half the bytes of float32, nothing twice."""
    loaded = load_generator(str(own), "cpu", precision="fp32")
    assert (loaded.name, loaded.cfg.embedding) == ("own-v1", "codes")
    assert loaded.tokenizers == {"LULC": TokenizerRef("mini-lulc-v1", bytes(range(32)))}
    assert loaded.weights.notes["training"] == "none"
    with safe_open(own, framework="pt") as f:
        keys = set(f.keys())
        assert {f.get_tensor(k).dtype for k in keys} == {torch.float16}
        assert f.metadata()["sha256"] == loaded.sha256.hex()
    assert not any(k.endswith(("pos_emb", "to_logits.weight", "norm1.bias")) for k in keys)
    assert "decoder_embeddings.tok_lulc@224.mod_emb" not in keys


def test_tiles_are_in_the_header_where_they_are_known(own: Path, tmp_path: Path) -> None:
    """And nowhere else: the identity is the weights', and headers without them stay readable."""
    weights, again = open_weights(own), tmp_path / "again.safetensors"
    refs = {"LULC": TokenizerRef("a", bytes(32), 224), "DEM": TokenizerRef("b", bytes(32)),
            "NDVI": TokenizerRef("c")}  # fmt: skip
    assert save_generator(again, weights.build(), "again", refs) == weights.sha256
    assert open_weights(again).tokenizers == refs
    with safe_open(again, framework="pt") as f:
        assert json.loads(f.metadata()["tokenizers"]) == {
            "LULC": {"name": "a", "sha256": "00" * 32, "tile": 224},
            "DEM": {"name": "b", "sha256": "00" * 32}, "NDVI": {"name": "c", "sha256": None},
        }  # fmt: skip


def test_saved_weights_answer_alike(own: Path, tmp_path: Path) -> None:
    """A network written in float32 gives the same logits; its copy for training has its own memory."""
    net = open_weights(own).build()
    again = tmp_path / "again.safetensors"
    save_generator(again, net, "again", {}, dtype=torch.float32)
    loaded = load_generator(str(again), "cpu", precision="fp32")
    tokens, asked = torch.arange(16)[None], torch.arange(16)[None]

    def logits(of: Generator) -> Tensor:
        with torch.no_grad():
            return of.predict(of.encode([Part(LULC, tokens)]), LULC, asked)

    torch.testing.assert_close(logits(loaded.net), logits(net), atol=1e-5, rtol=1e-5)
    trained = loaded.trainable()
    with torch.no_grad():
        trained.mask_token.add_(1)
    torch.testing.assert_close(logits(loaded.net), logits(net), atol=1e-5, rtol=1e-5)
    assert all(p.requires_grad for p in trained.parameters())


def rewrite(path: Path, **header: str) -> None:
    """Change a file's header."""
    with safe_open(path, framework="pt") as f:
        tensors, meta = {k: f.get_tensor(k) for k in f.keys()}, f.metadata()  # noqa: SIM118
    save_file(tensors, path, metadata={**meta, **header})


@pytest.mark.parametrize("header", [
    {"config": "{}"}, {"config": "[1"}, {"config": '{"dim": 1e99}'}, {"tokenizers": "[]"},
    {"tokenizers": '{"LULC": {"name": "x", "sha256": "zz"}}'}, {"sha256": "00"},
    {"format": "tmcodec-any2any-9"},
])  # fmt: skip
def test_damaged_headers_are_refused(own: Path, header: dict[str, str]) -> None:
    """Before anything is built from them."""
    rewrite(own, **header)
    with pytest.raises(WeightsError):
        load_generator(str(own))


def test_a_header_cannot_make_us_allocate(own: Path) -> None:
    """The largest sizes that pass the limits still have to be in the file."""
    with safe_open(own, framework="pt") as f:
        config = json.loads(f.metadata()["config"])
    rewrite(own, config=json.dumps({**config, "dim": 4096, "encoder_depth": 64}))
    with pytest.raises(WeightsError, match="do not fit the architecture"):
        load_generator(str(own))


# --------------------------------------------------------------------------- the command line


def test_import_by_the_command_line(tiny: Generator, tmp_path: Path) -> None:
    """A checkpoint under its official name; after that the name is enough, and the identity the same."""
    path = tmp_path / "TerraMind_v1_tiny.pt"
    torch.save(state_of(tiny), path)
    direct = load_generator("terramind-v1-tiny", "cpu", checkpoint=path, precision="fp32")
    report = json.loads(run("models", "import", path, "--json"))
    assert (report["name"], report["sha256"]) == ("terramind-v1-tiny", direct.sha256.hex())
    listed = {m["name"]: m for m in json.loads(run("models", "list", "--json"))}
    assert listed["terramind-v1-tiny"]["where"] == "imported"
    assert listed["terramind-v1-base"]["where"] == "obtainable"
    shown = json.loads(run("models", "show", "terramind-v1-tiny", "--json"))
    assert shown["notes"]["source_file"] == path.name
    assert LULC in run("models", "show", "terramind-v1-tiny")
    loaded = load_generator("terramind-v1-tiny", "cpu", precision="fp32")
    assert loaded.sha256 == direct.sha256
    torch.testing.assert_close(answer(loaded.net), answer(direct.net))
    # The imported file again, under a name of its own choice.
    other = tmp_path / "other.safetensors"
    other.write_bytes(find_generator("terramind-v1-tiny").read_bytes())
    assert json.loads(run("models", "import", other, "--json"))["sha256"] == direct.sha256.hex()


def test_what_is_not_here_says_how_to_get_it() -> None:
    """Official names offline, and the embedded one from a package without it."""
    assert "models pull terramind-v1-base" in run("models", "show", "terramind-v1-base", status=1)
    refused = run("models", "pull", "terramind-v1-tiny", status=1)
    assert "tmcodec models import TerraMind_v1_tiny.pt --as terramind-v1-tiny" in refused


def test_off_the_cpu_half_precision_casts_its_weights_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is loaded, not in every pass; embeddings and norms stay what they are."""
    monkeypatch.setattr("tmcodec.codec.tokenizer.pick_device", torch.device)
    half = load_generator("mini-any2any-v1", "meta", precision="bf16").net
    assert half.autocast is None
    block = half.encoder[0]
    assert block.attn.qkv.weight.dtype == torch.bfloat16
    assert block.norm1.weight.dtype == half.mask_token.dtype == torch.float32
    plain = load_generator("mini-any2any-v1", "meta", precision="fp32").net
    assert isinstance(plain.encoder[0].attn.qkv, torch.nn.Linear)


def test_embedded_file_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is named."""
    monkeypatch.setitem(models.EMBEDDED_GENERATORS, "mini-any2any-v1", tmp_path / "none.safetensors")
    with pytest.raises(TokenizerNotFoundError, match=r"none\.safetensors is not in this package"):
        tmcodec.load_generator("mini-any2any-v1")


# --------------------------------------------------------------------------- vocabularies


def wordpiece(path: Path, *words: str) -> Path:
    """Write a vocabulary in the format and with the marks of TerraMind's."""
    tokenizers = pytest.importorskip("tokenizers")
    marks = ("[PAD]", "[UNK]", "[SOS]", "[EOS]", "[S_0]", "[S_1]", "[S_2]")
    vocabulary = {word: i for i, word in enumerate((*marks, *words))}
    tok = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tok.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tok.decoder = tokenizers.decoders.WordPiece()
    tok.add_tokens([tokenizers.AddedToken(m, normalized=False, special=True) for m in marks])
    tok.save(str(path))
    return path


@pytest.mark.parametrize(("place", "text"), [
    ((8.54, 47.38), "lat=47.50 lon=8.50 [EOS]"), ((0.125, -0.375), "lat=-0.50 lon=0.00 [EOS]"),
    ((-179.9, 0.2), "lat=0.25 lon=-180.00 [EOS]"), ((-0.125, -0.1), "lat=-0.00 lon=-0.00 [EOS]"),
])  # fmt: skip
def test_coordinates_as_terramind_writes_them(place: tuple[float, float], text: str) -> None:
    """Quarter degrees, half to even, latitude first."""
    assert coordinates_text(*place) == text


def test_words_by_an_imported_vocabulary(tmp_path: Path) -> None:
    """Import, encode, decode; the numbers are the places in the vocabulary."""
    path = wordpiece(tmp_path / "config.json", "lat=47.50", "lon=8.50", "a", "lake")
    run("models", "import", path, "--as", "terramind-v1-coords")
    run("models", "import", path, "--as", "terramind-v01-caption")
    words = Vocabulary()
    assert words.encode("coords", (8.54, 47.38)) == [7, 8, 3]
    assert words.encode("caption", "a lake") == [9, 10, 5, 3]
    assert words.coordinates([5, 7, 8, 6]) == (8.5, 47.5)
    assert words.coordinates([9, 9]) is None
    assert words.decode("caption", [5, 9, 10, 6, 7]) == "a lake"
    assert pickle.loads(pickle.dumps(words)).encode("coords", (8.54, 47.38)) == [7, 8, 3]


def test_what_is_no_name_is_refused_by_what_it_is(tiny: Generator, tmp_path: Path) -> None:
    for wrong in (123, None, b"mini-any2any-v1"):
        with pytest.raises(TokenizerNotFoundError, match="give a name or the path of a weights file"):
            load_generator(wrong)  # type: ignore[arg-type]
    save_generator(tmp_path / "mine.safetensors", tiny, "mine", {})
    assert load_generator(tmp_path / "mine.safetensors", "cpu").name == "mine"


def test_a_vocabulary_is_shown(tmp_path: Path) -> None:
    name = "terramind-v1-coords"
    assert f"run `tmcodec models pull {name}` first" in run("models", "show", name, status=1)
    path = tmp_path / "home" / "weights" / f"{name}.json"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"abc")
    facts = json.loads(run("models", "show", name, "--json"))
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of FIPS 180-2
    assert facts == {"name": name, "modality": "coords", "bytes": 3, "sha256": digest, "path": str(path)}
    assert digest in run("models", "show", name)


def test_a_vocabulary_that_is_not_there_or_none(tmp_path: Path) -> None:
    """The error says how to get it; what is no vocabulary is not imported."""
    pytest.importorskip("tokenizers")
    with pytest.raises(VocabularyError, match="models pull terramind-v1-coords"):
        Vocabulary().encode("coords", (0, 0))
    bad = tmp_path / "config.json"
    bad.write_text('{"model": 1}')
    assert "not a vocabulary" in run("models", "import", bad, "--as", "terramind-v1-coords", status=1)
    assert not (tmp_path / "home" / "weights" / "terramind-v1-coords.json").exists()
