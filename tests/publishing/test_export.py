"""`tmcodec models export`: what is written, what it says, and what it must not say."""

from __future__ import annotations

import hashlib
import json
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open

pytest.importorskip("yaml")

import yaml

import tmcodec
from tmcodec.cli import cli
from tmcodec.codec.lineage import Lineage, Origin, tokens_digest
from tmcodec.codec.terramind_weights import open_checkpoint
from tmcodec.codec.weights import load_weights
from tmcodec.errors import ConfigError, TargetExistsError, UploadError, WeightsError
from tmcodec.modalities import MODALITIES
from tmcodec.networks.mini import MiniConfig, MiniNet
from tmcodec.networks.terramind.config import TerraMindConfig
from tmcodec.publishing import hub
from tmcodec.publishing.export import export_run
from tmcodec.publishing.runs import find_run, recipe_of
from tmcodec.training import starting
from tmcodec.training.terramind_net import TerraMindNet

SIZES = {"dim": 8, "encoder_blocks": 1, "decoder_blocks": 1, "kernel": 3, "refine": 8, "denoiser_dim": 8,
         "denoiser_blocks": 1}  # fmt: skip
SECRET = "/home/somebody/secret/data"


def mini_net(modality: str = "NDVI", seed: int = 0) -> MiniNet:
    """Return a small untrained tokenizer."""
    row = MODALITIES[modality]
    torch.manual_seed(seed)
    categorical = row.categorical
    return MiniNet(
        MiniConfig(
            modality,
            len(row.classes) or len(row.bands),
            row.levels,
            mean=() if categorical else row.mean,
            std=() if categorical else row.std,
            **{**SIZES, "denoiser_blocks": 0 if categorical else 1},  # type: ignore[arg-type]
        )
    )


def write_run(folder: Path, net: Any, layout: str = "mini", **extra: Any) -> Path:
    """Write what Lightning and the module leave of a run; return its folder."""
    (folder / "checkpoints").mkdir(parents=True)
    state = {f"net.{k}": v for k, v in net.state_dict().items()}
    average = {k: v + 0.5 for k, v in state.items() if k.startswith("net.decoder.")}
    saved = {
        "state_dict": state,
        starting.CONFIG_KEY: json.dumps(net.cfg.to_dict()),
        starting.LAYOUT_KEY: layout,
        starting.AVERAGE_KEY: average,
        starting.STAGE_KEY: "decoder",
        starting.METRICS_KEY: {"val/psnr": 31.25, "val/loss": 0.5},
        "global_step": 1234,
        **extra,
    }
    torch.save(saved, folder / "checkpoints" / "last.ckpt")
    source = {"class_path": "tmcodec.training.sources.RasterFolder",
              "init_args": {"path": f"{SECRET}/ndvi-corpus", "modality": "NDVI", "weight": 0.75}}  # fmt: skip
    config = {
        "trainer": {"max_steps": 2000, "default_root_dir": f"{SECRET}/runs", "precision": "32-true",
                    "callbacks": [{"class_path": "MovingAverage", "init_args": {"decay": 0.998}},
                                  {"class_path": "WeightsFile",
                                   "init_args": {"name": "x", "licence": "CC-BY-4.0"}}]},
        "model": {"stage": "decoder", "start": f"{SECRET}/old.safetensors", "net": {"dim": 8},
                  "losses": [{"name": "lpips", "options": {"trunk_weights": f"{SECRET}/alexnet.pth"}}]},
        "data": {"train": [source], "side": 160, "batch": 8, "workers": 2},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a run's folder."""
    return write_run(tmp_path / "lightning_logs" / "version_0", mini_net())


def export(*args: str) -> Result:
    """Run ``tmcodec models export``."""
    return CliRunner().invoke(cli, ["models", "export", *args])


def test_a_run_becomes_a_folder(run: Path, tmp_path: Path) -> None:
    result = export(str(run), "--name", "my-ndvi-v1", "-o", str(tmp_path / "out"))
    assert result.exit_code == 0, result.output
    names = {"my-ndvi-v1.safetensors", "README.md", "item.json", "SHA256SUMS"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == names
    net, name, sha256, notes = load_weights(tmp_path / "out" / "my-ndvi-v1.safetensors")
    assert (name, notes["licence"]) == ("my-ndvi-v1", "CC-BY-4.0")
    assert notes["training"] == "stage decoder, 1234 steps"
    assert sha256.hex()[:12] in result.output
    modes = {p.stat().st_mode for p in (tmp_path / "out").iterdir()}
    assert len(modes) == 1  # whoever may read the card may read the weights
    plain = mini_net().state_dict()
    for key, value in net.state_dict().items():
        expected = plain[key] + 0.5 if key.startswith("decoder.") else plain[key]
        assert torch.equal(value, expected.half().float()), key
    for line in (tmp_path / "out" / "SHA256SUMS").read_text().splitlines():
        digest, file = line.split("  ")
        assert hashlib.sha256((tmp_path / "out" / file).read_bytes()).hexdigest() == digest
        names.discard(file)
    assert names == {"SHA256SUMS"}


def test_the_exported_weights_encode_and_decode(run: Path, tmp_path: Path) -> None:
    export_run(run, "a-tokenizer", tmp_path / "out")
    tok = tmcodec.load_tokenizer(str(tmp_path / "out" / "a-tokenizer.safetensors"), "cpu")
    assert tok.decode(tok.encode(torch.rand(1, 1, 32, 48))).shape == (1, 1, 32, 48)


def test_the_card_has_the_hubs_front_matter_and_the_facts(run: Path, tmp_path: Path) -> None:
    export_run(run, "my-ndvi-v1", tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert (meta["license"], meta["library_name"]) == ("cc-by-4.0", "tmcodec")
    assert {"earth-observation", "ndvi"} <= set(meta["tags"])
    for fact in ("15,360 tokens", "ndvi-corpus", "0.75", "1,234 steps", "31.25", "old.safetensors",
                 "alexnet.pth", "moving_average: 0.998", "## Limits", "CC-BY-4.0"):  # fmt: skip
        assert fact in body, fact


@pytest.mark.parametrize("modality", ["NDVI", "LULC", "S2L2A"])
def test_nothing_leaks(modality: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", mini_net(modality))
    export_run(run, "my-model", tmp_path / "out")
    texts = [p.read_text() for p in (tmp_path / "out").iterdir() if p.suffix != ".safetensors"]
    with safe_open(tmp_path / "out" / "my-model.safetensors", framework="pt") as f:
        texts.append(json.dumps(f.metadata()))
    for text in texts:
        assert "secret" not in text
        assert str(tmp_path) not in text
        assert str(Path.home()) not in text or str(Path.home()) == "/"
        assert not re.search(r"(?<![\w.])/(home|root|work|tmp|Users)/", text)
        assert socket.gethostname() not in text or len(socket.gethostname()) < 4


def test_the_item_has_what_stac_and_mlm_require(run: Path, tmp_path: Path) -> None:
    """Required fields of STAC 1.1 items, of MLM 1.4 and of the file extension, from their specifications."""
    export_run(run, "my-ndvi-v1", tmp_path / "out")
    item = json.loads((tmp_path / "out" / "item.json").read_text())
    assert {"type", "stac_version", "id", "geometry", "properties", "links", "assets"} <= item.keys()
    assert (item["type"], item["stac_version"], item["geometry"]) == ("Feature", "1.1.0", None)
    assert "bbox" not in item  # prohibited without a geometry
    assert any(re.fullmatch(r"https://stac-extensions.github.io/mlm/v1\.\d+\.\d+/schema.json", e)
               for e in item["stac_extensions"])  # fmt: skip
    p = item["properties"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", p["datetime"])
    required = ("name", "architecture", "tasks", "framework", "input", "output")
    assert all(p[f"mlm:{key}"] for key in required)
    assert re.fullmatch(r"[a-zA-Z][a-zA-Z0-9_.-]+[a-zA-Z0-9]", p["mlm:name"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", p["mlm:framework_version"])
    assert p["mlm:total_parameters"] == sum(t.numel() for t in mini_net().state_dict().values())
    for found, key in ((p["mlm:input"], "input"), (p["mlm:output"], "result")):
        for entry in found:
            array = entry[key]
            assert entry["name"]
            assert len(array["shape"]) == len(array["dim_order"]) == len(set(array["dim_order"]))
            assert all(n == -1 or n > 0 for n in array["shape"])
            assert array["data_type"] in ("float32", "int32")
    assert p["mlm:input"][0]["value_scaling"] == [
        {"type": "z-score", "mean": MODALITIES["NDVI"].mean[0], "stddev": MODALITIES["NDVI"].std[0]}
    ]
    assert (p["mlm:pretrained"], p["mlm:pretrained_source"]) == (True, "old.safetensors")
    weights = item["assets"]["weights"]
    assert "mlm:model" in weights["roles"]
    assert weights["mlm:artifact_type"]
    assert [b["name"] for b in weights["bands"]] == p["mlm:input"][0]["bands"] == ["NDVI"]
    for asset in item["assets"].values():
        data = (tmp_path / "out" / asset["href"]).read_bytes()
        assert asset["file:size"] == len(data)
        assert asset["file:checksum"] == "1220" + hashlib.sha256(data).hexdigest()


def test_curves_and_classes_have_no_z_score(tmp_path: Path) -> None:
    net = mini_net("S2L2A")
    curved = MiniNet(MiniConfig.from_dict({**net.cfg.to_dict(), "compand": "sqrt", "knee": 60.0}))
    for i, made in enumerate((curved, mini_net("LULC"))):
        export_run(write_run(tmp_path / f"run{i}", made), "a-model", tmp_path / f"out{i}")
        item = json.loads((tmp_path / f"out{i}" / "item.json").read_text())
        assert item["properties"]["mlm:input"][0]["value_scaling"] is None


def test_terraminds_layout_is_exported_in_official_keys(tmp_path: Path) -> None:
    row = MODALITIES["NDVI"]
    cfg = TerraMindConfig("NDVI", 1, row.levels, "unet", row.mean, row.std, dim=24, depth=1, heads=2,
                          unet_channels=32, unet_blocks=1)  # fmt: skip
    run = write_run(tmp_path / "run", TerraMindNet(cfg), "terramind")
    done = export_run(run, "my-terramind", tmp_path / "out")
    opened = open_checkpoint(tmp_path / "out" / "my-terramind.safetensors")
    assert (opened.name, opened.config, opened.sha256.hex()) == ("my-terramind", cfg, done.facts.sha256)


def test_whose_tokens_it_decodes_is_verified_again(tmp_path: Path) -> None:
    net, old = mini_net(), Origin("old", b"\7" * 32)
    for name, digest, expected in (("same", tokens_digest(net), [old]), ("other", b"\1" * 32, [])):
        key = {starting.LINEAGE_KEY: Lineage(digest, (old,)).to_json()}
        out = tmp_path / f"{name}-out"
        done = export_run(write_run(tmp_path / name, net, **key), "my-model", out)
        assert [Origin(n, bytes.fromhex(s)) for n, s in done.facts.decodes] == expected
        assert ("decodes" in load_weights(out / "my-model.safetensors")[3]) == bool(expected)
        assert ("also decodes tokens of" in (out / "README.md").read_text()) == bool(expected)


def write_report(path: Path, sha256: str, modality: str = "NDVI") -> Path:
    """Write a report on the weights `sha256` under another name, on other weights, and on a codec."""
    rows = [
        {"method": "my@1", "measure": "psnr", "mean": 29.5, "low": 28.0, "high": 31.0, "count": 7},
        {"method": "other@1", "measure": "psnr", "mean": 33.0, "low": 32.0, "high": 34.0, "count": 7},
        {"method": "jp2", "measure": "psnr", "mean": 27.0, "low": None, "high": None, "count": 7},
    ]
    methods = [
        {"key": "my@1", "kind": "tokenizer", "tokenizer": "my"},
        {"key": "other@1", "kind": "tokenizer", "tokenizer": "other"},
        {"key": "jp2", "kind": "codec", "tokenizer": "my"},
    ]
    use = [{"tokenizer": "my", "weights_sha256": sha256}, {"tokenizer": "other", "weights_sha256": "0b" * 32}]
    plain = {"modality": modality, "methods": methods, "summary": rows, "token_use": use}
    path.write_text(json.dumps(plain))
    return path


def test_figures_of_an_evaluation_come_before_the_runs(run: Path, tmp_path: Path) -> None:
    sha256 = export_run(run, "my-model", tmp_path / "first").facts.sha256
    report = write_report(tmp_path / "report.json", sha256)
    done = export_run(run, "my-model", tmp_path / "out", report=report)
    assert [(f.name, f.value) for f in done.facts.figures] == [("psnr (my@1)", 29.5)]
    assert "7 scenes, 95 % interval 28 to 31" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ConfigError, match="a report on DEM"):
        export_run(run, "my-model", tmp_path / "out2", report=write_report(report, sha256, "DEM"))
    assert not (tmp_path / "out2").exists()


def test_a_report_on_other_weights_is_refused(run: Path, tmp_path: Path) -> None:
    report = write_report(tmp_path / "report.json", "0a" * 32)
    result = export(str(run), "--name", "my-model", "-o", str(tmp_path / "out"), "--report", str(report))
    assert result.exit_code == 1 and result.stderr.count("\n") == 1
    own = export_run(run, "my-model", tmp_path / "first").facts.sha256
    for sha256 in (own, "0a" * 32, "0b" * 32):
        assert sha256 in result.stderr
    assert not (tmp_path / "out").exists()


def test_no_half_folder_is_left(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(tmp_path.iterdir())

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tmcodec.publishing.export.write_card", fail)
    with pytest.raises(KeyboardInterrupt):
        export_run(run, "my-model", tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


def test_an_existing_folder_is_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(TargetExistsError):
        export_run(run, "my-model", tmp_path / "out")


@pytest.mark.parametrize(
    "name", ["mini-s2l2a-v2", "terramind-v1-s2l2a", "a/b", "../up", "", "a", "ä-ö", "x" * 200]
)
def test_bad_names_are_refused(name: str, run: Path, tmp_path: Path) -> None:
    result = export(str(run), "--name", name, "-o", str(tmp_path / "out"))
    assert result.exit_code == 1
    assert result.stderr.startswith("tmcodec: error: ")
    assert not (tmp_path / "out").exists()


def test_bad_runs_are_refused(tmp_path: Path, run: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="no checkpoint"):
        find_run(tmp_path / "empty")
    with pytest.raises(ConfigError, match="no such run"):
        find_run(tmp_path / "nowhere")
    (tmp_path / "broken.ckpt").write_bytes(b"PK\3\4 broken")
    with pytest.raises(WeightsError):
        export_run(tmp_path / "broken.ckpt", "my-model", tmp_path / "out")
    write_run(tmp_path / "lightning_logs" / "version_1", mini_net())
    with pytest.raises(ConfigError, match="several checkpoints"):
        find_run(tmp_path)
    (run / "config.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not a run's configuration"):
        find_run(run)
    assert find_run(tmp_path / "lightning_logs" / "version_1").checkpoint.name == "last.ckpt"


@pytest.mark.parametrize("place", ["", "checkpoints", "lightning_logs/version_3/checkpoints"])
def test_a_folder_that_two_fits_wrote_to_is_refused(place: str, tmp_path: Path) -> None:
    """Lightning writes last-v1.ckpt beside the last.ckpt of another fit; which one is meant is not known."""
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "last-v1.ckpt").touch()
    (folder / "epoch=0-step=8.ckpt").touch()
    assert find_run(tmp_path).checkpoint == folder / "last-v1.ckpt"
    (folder / "last.ckpt").touch()
    with pytest.raises(ConfigError, match=r"last-v1\.ckpt, .*last\.ckpt") as caught:
        find_run(tmp_path)
    assert "\n" not in str(caught.value)
    assert find_run(folder / "last.ckpt").checkpoint == folder / "last.ckpt"


def test_recipes_survive_odd_configurations() -> None:
    for odd in ({}, {"model": None}, {"model": {"losses": 3}}, {"trainer": {"callbacks": "x"}}, {"data": []}):
        assert isinstance(recipe_of(odd), dict)


# --------------------------------------------------------------------------- the Hub


class Api:
    """Stands in for the Hub's client; keeps what it was asked for."""

    calls: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012

    def create_repo(self, repo: str, **options: Any) -> None:
        self.calls.append((repo, options))

    def upload_folder(self, **options: Any) -> str:
        self.calls.append((options["repo_id"], options))
        return "https://hub.example/commit/1"


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that puts a client in the place of the Hub's."""
    huggingface_hub = pytest.importorskip("huggingface_hub")

    def set_up(token: str | None = "t", api: type = Api, offline: bool = False) -> None:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
        monkeypatch.setattr(huggingface_hub, "HfApi", api)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)

    return set_up


def test_pushing_is_asked_for(run: Path, tmp_path: Path, fake_hub: Callable[..., Any]) -> None:
    fake_hub()
    Api.calls.clear()
    export(str(run), "--name", "my-model", "-o", str(tmp_path / "one"))
    assert Api.calls == []
    args = ("--name", "my-model", "-o", str(tmp_path / "two"), "--push-to-hub", "me/my-model")
    result = export(str(run), *args)
    assert result.exit_code == 0, result.output
    assert [repo for repo, _ in Api.calls] == ["me/my-model"] * 2
    assert Api.calls[0][1]["private"] is True
    assert Api.calls[1][1]["folder_path"] == str(tmp_path / "two")
    assert "https://hub.example/commit/1" in result.output


def test_pushing_without_token_network_or_with_offline_mode_is_one_line(
    run: Path, tmp_path: Path, fake_hub: Callable[..., Any]
) -> None:
    class Broken(Api):
        def create_repo(self, repo: str, **options: Any) -> None:
            raise OSError("no route to host")

    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"token": None}, "HF_TOKEN"),
        ({"api": Broken}, "no route to host"),
        ({"offline": True}, "HF_HUB_OFFLINE"),
    )
    for i, (setting, says) in enumerate(cases):
        fake_hub(**setting)
        out = tmp_path / f"out{i}"
        result = export(str(run), "--name", "my-model", "-o", str(out), "--push-to-hub", "me/x")
        assert result.exit_code == 1
        assert result.stderr.count("\n") == 1
        assert says in result.stderr
        assert (out / "item.json").is_file()
    with pytest.raises(UploadError):
        hub.push_to_hub(tmp_path / "out0", "me/x")
