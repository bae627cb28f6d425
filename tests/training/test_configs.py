"""Every configuration that ships is parsed and instantiated, and one of them runs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from training_helpers import SMALL, write_raster

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

import yaml

from tmcodec.modalities import MODALITIES
from tmcodec.training import run as training
from tmcodec.training.recipes import RECIPES

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(p.relative_to(CONFIGS).as_posix() for p in CONFIGS.rglob("*.yaml"))
FOLDERS = {"S2L1C_no_B10": "S2L2A", "S2L1C_reflectance": "S2L1C", "LULC_worldcover": "LULC"}
"""What stands in for folders that are named after no modality."""


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[[str], Path]:
    """Return a function that copies a configuration with small data and a small network."""

    def make(name: str) -> Path:
        config: dict[str, Any] = yaml.safe_load((CONFIGS / name).read_text())
        for source in config["data"]["train"] + config["data"]["val"]:
            args = source["init_args"]
            modality = FOLDERS.get(Path(args["path"]).name, Path(args["path"]).name)
            args["path"] = str(write_raster(tmp_path / args["path"] / "a.tif", modality))
            if args.get("class_map") == "worldcover":
                args["class_map"] = "1:1,2:2,3:3,4:4,5:5,6:6,7:7,8:8,9:9"
        if config["model"].get("start", "").endswith("-mean.safetensors"):
            config["model"]["start"] = "mini-s2l2a-v1"
        if "net" in config["model"]:
            sizes = {k: v for k, v in SMALL.items() if k != "denoiser_blocks"}
            config["model"]["net"] = {**config["model"]["net"], **sizes}
            config["model"].pop("start", None)
        config["trainer"].update(logger=False, enable_progress_bar=False, accelerator="cpu")
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
    cli = training.build(["-c", str(tiny(name))], run_it=False)
    assert cli.model.modality.name == cli.datamodule.modality
    batch = next(iter(cli.datamodule.train_dataloader()))
    assert batch["values"].shape[1] == len(cli.model.modality.bands)
    assert len(cli.model.terms) == len(cli.model._losses)
    assert any(p.requires_grad for p in cli.model.parameters())


@pytest.mark.parametrize("name", ["mini/lulc.yaml", "finetune/decoder-only.yaml"])
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
