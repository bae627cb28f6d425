"""``tmcodec train``: resume, stages, starting points, refusals. Needs the extra ``train``."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from training_helpers import SMALL

pytest.importorskip("lightning")
pytest.importorskip("jsonargparse")

from click.testing import CliRunner
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping

from tmcodec.cli import cli
from tmcodec.cli.train import translate
from tmcodec.codec.weights import load_weights, save_weights
from tmcodec.errors import ConfigError
from tmcodec.networks.mini import MiniConfig, MiniNet
from tmcodec.training import run as training
from tmcodec.training.monitors import SCORES, check_monitors
from tmcodec.training.starting import net_of_checkpoint

Config = Callable[..., Path]

KILLED = """
import os, signal, sys
from tmcodec.training import run
from lightning.pytorch import Callback

class Kill(Callback):
    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        if trainer.global_step == 3 and batch_idx % 2:  # in the middle of an accumulated step
            os.kill(os.getpid(), signal.SIGKILL)

sys.modules["killing"] = type(sys)("killing")
sys.modules["killing"].Kill = Kill
Kill.__module__ = "killing"
run.run("fit", ["-c", sys.argv[1], "--trainer.callbacks+=killing.Kill"])
"""


def fit(path: Path, *args: str) -> Any:
    """Train in this process."""
    return training.run("fit", ["-c", str(path), *args])


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint as plain tensors."""
    return torch.load(path, weights_only=True)


def same(a: Any, b: Any) -> bool:
    """Compare nested states bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def test_a_killed_run_goes_on_to_the_same_weights(config: Config, tmp_path: Path) -> None:
    whole, broken = (
        config(
            name=n,
            trainer={
                "max_steps": 6,
                "accumulate_grad_batches": 2,
                "val_check_interval": 2,
                "check_val_every_n_epoch": None,
            },
            data={"epoch": 10},
            model={"balance": True},
        )
        for n in ("whole", "broken")
    )
    fit(whole)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(broken)], capture_output=True, timeout=120, check=False
    )
    assert killed.returncode == -9, killed.stderr
    last = tmp_path / "broken" / "last.ckpt"
    assert load(last)["global_step"] == 3
    fit(broken, f"--ckpt_path={last}")
    a, b = load(tmp_path / "whole" / "last.ckpt"), load(last)
    assert a["global_step"] == b["global_step"] == 6
    assert same(a["state_dict"], b["state_dict"])
    assert same(a["moving_average"], b["moving_average"])
    assert same(a["optimizer_states"], b["optimizer_states"])
    assert a["tokenizer_config"] == b["tokenizer_config"]


def test_a_run_goes_on_in_the_middle_of_a_step(config: Config, tmp_path: Path) -> None:
    often = {"accumulate_grad_batches": 3, "val_check_interval": 2, "check_val_every_n_epoch": None}
    place = {"dirpath": str(tmp_path / "kept"), "save_top_k": -1}
    kept = {"class_path": "ModelCheckpoint", "init_args": place}
    changes = {"trainer": {"max_steps": 4, **often}, "data": {"epoch": 12}}
    paths = [config(name=name, **changes) for name in ("whole", "again")]
    fit(paths[0], f"--trainer.callbacks+={kept}")
    middle = tmp_path / "kept" / "epoch=0-step=1.ckpt"
    found = load(middle)
    assert found["TokenizerData"] == {"given": 4}  # a step of three, and the first batch of the next
    trained = {f"net.{n}" for n, _ in net_of_checkpoint(middle).named_parameters() if "denoiser" not in n}
    assert found["accumulated_gradients"].keys() == trained
    assert "accumulated_gradients" not in load(tmp_path / "whole" / "last.ckpt")
    fit(paths[1], f"--ckpt_path={middle}")
    a, b = (load(tmp_path / n / "last.ckpt") for n in ("whole", "again"))
    assert a["global_step"] == b["global_step"] == 4
    assert same(a["state_dict"], b["state_dict"])
    assert same(a["optimizer_states"], b["optimizer_states"])


def test_figures_stay_until_the_next_validation(config: Config, tmp_path: Path) -> None:
    fit(config())  # validates after four steps of five
    last = tmp_path / "run" / "last.ckpt"
    measured = load(last)["tokenizer_metrics"]
    assert {"val/loss", "val/psnr"} <= measured.keys()
    fit(config(), "--trainer.max_steps=6", f"--ckpt_path={last}")
    found = load(last)
    assert found["global_step"] == 6
    assert found["tokenizer_metrics"] == measured


@pytest.mark.parametrize("limit", ["3", "0.6"])
def test_an_epoch_ends_where_the_trainer_limits_it(limit: str, config: Config) -> None:
    options = ["--trainer.max_steps=-1", "--trainer.max_epochs=3", f"--trainer.limit_train_batches={limit}"]
    options += ["--trainer.accumulate_grad_batches=2", "--data.epoch=10"]  # 5 batches, of which 3 are taken
    found = fit(config(), *options)
    assert found.trainer.global_step == found.trainer.estimated_stepping_batches == 6
    assert found.datamodule.state_dict() == {"given": 9}


def test_the_weights_file_decodes_and_holds_the_average(config: Config, tmp_path: Path) -> None:
    callbacks = [
        {"class_path": "MovingAverage"},
        {"class_path": "WeightsFile", "init_args": {"name": "mine"}},
        {"class_path": "ModelCheckpoint", "init_args": {"dirpath": str(tmp_path / "run"), "save_last": True}},
    ]
    path = config("LULC")
    fit(path, "--trainer.max_steps=2", f"--trainer.callbacks={callbacks}")
    net, name, _, notes = load_weights(tmp_path / "run" / "mine.safetensors")
    assert (name, notes["training"]) == ("mine", "stage mean, 2 steps")
    average = net_of_checkpoint(tmp_path / "run" / "last.ckpt")
    for key, value in average.state_dict().items():
        assert torch.equal(value.half().float(), net.state_dict()[key]), key


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """Return weights to go on from; untrained, but with statistics."""
    torch.manual_seed(1)
    cfg = MiniConfig("NDVI", 1, (8, 8, 8, 6, 5), **SMALL, mean=(0.3,), std=(0.3,))
    path = tmp_path / "start.safetensors"
    save_weights(path, MiniNet(cfg), "start", {})
    return path


@pytest.mark.parametrize(
    ("stage", "moves"),
    [
        ("decoder", "decoder."),
        ("denoiser", "denoiser."),
        ("chain", "denoiser."),
        ("distill", "denoiser."),
        ("energy", "denoiser."),
    ],
)
def test_stages_move_their_part_alone(
    stage: str, moves: str, config: Config, trained: Path, tmp_path: Path
) -> None:
    before = load_weights(trained)[0]
    path = config(model={"net": None, "stage": stage, "start": str(trained), "optimizer": {"lr": 0.01}})
    fit(path, "--trainer.max_steps=2")
    after = load(tmp_path / "run" / "last.ckpt")["state_dict"]
    changed = {k for k, v in before.state_dict().items() if not torch.equal(v, after[f"net.{k}"])}
    assert changed
    assert all(name.startswith(moves) for name in changed)
    x = torch.rand(1, 1, 64, 64)
    later = net_of_checkpoint(tmp_path / "run" / "last.ckpt").eval()
    tokens = [net.fsq.latents_to_indices(net.latents(x)) for net in (before, later)]
    assert torch.equal(*tokens)


def test_a_run_goes_on_from_a_checkpoint_of_another_stage(config: Config, tmp_path: Path) -> None:
    fit(config(name="first"), "--trainer.max_steps=1")
    start = str(tmp_path / "first" / "last.ckpt")
    second = config(name="second", model={"net": None, "stage": "denoiser", "start": start})
    module = fit(second, "--trainer.max_steps=1").model
    assert module.net.cfg.mean == net_of_checkpoint(Path(start)).cfg.mean != ()
    assert len(module.net.cfg.residual_std) == 1


@pytest.mark.parametrize(
    ("model", "why"),
    [
        ({"optimizer": {"kind": "adamw"}}, "optimizer moves other parameters"),
        ({"rate": 0.1}, "do not both have rate_model"),
        ({"net": None, "stage": "decoder", "start": "first"}, "of stage mean, not decoder; .*model.start"),
    ],
)
@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="AdamW is the only optimizer")
def test_a_checkpoint_of_other_training_is_refused(
    model: dict[str, Any], why: str, config: Config, tmp_path: Path
) -> None:
    fit(config(name="first"), "--trainer.max_steps=1")
    last = tmp_path / "first" / "last.ckpt"
    if "start" in model:
        model = {**model, "start": str(last)}
    with pytest.raises(ConfigError, match=why):
        fit(config(name="other", model=model), f"--ckpt_path={last}")


def test_a_checkpoint_of_no_tokenizer_is_refused(config: Config, tmp_path: Path) -> None:
    fit(config(name="first"), "--trainer.max_steps=1")
    last = tmp_path / "first" / "last.ckpt"
    found = load(last)
    del found["tokenizer_config"]
    torch.save(found, last)
    with pytest.raises(ConfigError, match="not of a tokenizer"):
        fit(config(name="first"), f"--ckpt_path={last}")


def test_statistics_are_measured_once_and_kept(config: Config, tmp_path: Path) -> None:
    path = config("S1GRD")
    result = CliRunner().invoke(cli, ["train", "stats", "-c", str(path), "--json"])
    assert result.exit_code == 0, result.output
    module = fit(path, "--trainer.max_steps=1").model
    assert str(list(module.net.cfg.mean))[1:8] in result.output
    saved = MiniConfig.from_dict(json.loads(load(tmp_path / "run" / "last.ckpt")["tokenizer_config"]))
    assert saved.mean == module.net.cfg.mean


@pytest.mark.parametrize("rank", [0, 1])
def test_every_process_measures_what_one_does(rank: int, config: Config, trained: Path) -> None:
    model = {"net": None, "stage": "denoiser", "start": str(trained)}
    built = training.build(["-c", str(config(model=model))], False)
    data, module = built.datamodule, built.model
    alone = module._residual_components(data)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=2)
    assert [b["number"].tolist() for b in data.loader("train", 8, True)] == [
        [4 * i + 2 * rank, 4 * i + 2 * rank + 1] for i in range(2)
    ]
    assert torch.equal(module._residual_components(data), alone)


def test_validate_and_test_use_the_averaged_weights(config: Config, tmp_path: Path) -> None:
    path = config()
    fit(path)
    last = str(tmp_path / "run" / "last.ckpt")
    averaged = training.run("test", ["-c", str(path), f"--ckpt_path={last}"]).trainer.callback_metrics
    bare = ["--trainer.callbacks=[]"]
    raw = training.run("test", ["-c", str(path), f"--ckpt_path={last}", *bare]).trainer.callback_metrics
    assert float(averaged["test/psnr"]) != float(raw["test/psnr"])
    again = training.run("validate", ["-c", str(path), f"--ckpt_path={last}"]).trainer.callback_metrics
    assert float(again["val/psnr"]) == pytest.approx(float(averaged["test/psnr"]), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"trainer": {"max_stepz": 3}}, "max_stepz"),
        ({"model": {"losses": [{"name": "lpipz"}]}}, "unknown loss 'lpipz'"),
        ({"model": {"losses": [{"name": "mse", "options": {"power": 3}}]}}, "no option 'power'"),
        ({"model": {"losses": [{"name": "ndvi"}]}}, "NDVI"),
        ({"model": {"losses": []}}, "model.losses is empty"),
        ({"model": {"losses": [{"name": "mse", "weight": -1}]}}, "loss mse: its weight is -1"),
        ({"model": {"losses": [{"name": "mse", "weight": float("nan")}]}}, "its weight is nan"),
        ({"model": {"stage": "decoder"}}, "model.start"),
        ({"model": {"net": None}}, "model.net"),
        ({"data": {"side": 40}}, "data.side"),
        ({"data": {"wrap": 0.5}}, "wrap"),
        ({"data": {"seed": -1}}, "workers and seed not below"),
        ({"model": {"rate": -0.1}}, "model.hold and model.rate are weights"),
        (
            {"trainer": {"callbacks": [{"class_path": "WeightsFile", "init_args": {"name": "runs/s2"}}]}},
            "WeightsFile: 'runs/s2' is no name for a file",
        ),
        ({"data": {"blend": 15}}, "data.warp and data.blend are chances"),
        ({"model": {"start": "mini-s2l2a-v9"}}, "model.start: mini-s2l2a-v9 is neither a file nor"),
        ({"trainer": {"max_steps": -1, "max_epochs": -1}}, "max_steps"),
    ],
)
def test_wrong_configurations_are_one_line(change: dict[str, Any], says: str, config: Config) -> None:
    result = CliRunner().invoke(cli, ["train", "fit", "-c", str(config(**change))])
    assert result.exit_code == 1, result.output
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("tmcodec: error: ")
    assert says in message


@pytest.mark.parametrize("stage", ["denoiser", "chain", "distill", "energy"])
def test_class_maps_have_no_sampling_stage(stage: str, config: Config, tmp_path: Path) -> None:
    cfg = MiniConfig("LULC", 10, (5, 5, 5), **SMALL)
    save_weights(tmp_path / "a.safetensors", MiniNet(cfg), "a", {})
    model = {"net": None, "stage": stage, "start": str(tmp_path / "a.safetensors")}
    with pytest.raises(ConfigError, match=f"stage {stage} trains .*; take mean or decoder"):
        training.build(["-c", str(config("LULC", model=model))], run_it=False)


def test_a_loss_may_be_there_twice(config: Config) -> None:
    options = [{"name": "charbonnier", "weight": 0.5, "options": {"epsilon": e}} for e in (0.03, 3.0)]
    model = fit(config(model={"losses": options}), "--trainer.max_steps=1").model
    ones = torch.ones(2, 1, 32, 32)
    found = model.compare(ones, 0 * ones, ones > 0)
    assert found["charbonnier"].item() == pytest.approx(0.5 * (math.hypot(1, 0.03) - 0.03))
    assert found["charbonnier-2"].item() == pytest.approx(0.5 * (math.hypot(1, 3) - 3), rel=1e-4)
    assert {"charbonnier", "charbonnier-2"} <= model.figures()


def test_class_weights_need_ids_that_stay(config: Config) -> None:
    weighted = {"losses": [{"name": "cross_entropy", "options": {"class_weights": [1.0] * 9 + [2.0]}}]}
    with pytest.raises(ConfigError, match=r"set data\.radiometry to false"):
        fit(config("LULC", model=weighted))
    fit(config("LULC", model=weighted, data={"radiometry": False}), "--trainer.max_steps=1")


def test_data_of_another_modality_are_refused(config: Config, corpus: Callable[[str], Path]) -> None:
    path = config("NDVI")
    source = {"class_path": "RasterFolder", "init_args": {"path": str(corpus("DEM")), "modality": "DEM"}}
    with pytest.raises(ConfigError, match="the data are DEM"):
        fit(path, f"--data.train=[{source}]", "--data.val=null")


@pytest.mark.parametrize("has", [True, False])
def test_bf16_is_for_processors_that_compute_in_it(
    has: bool, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "has_bf16", lambda device: has)
    args = ["train", "fit", "-c", str(config()), "--fast-dev-run", "--trainer.precision=bf16-mixed"]
    result = CliRunner().invoke(cli, args)
    assert result.exit_code == 0, result.output
    built = training.build(["-c", str(config()), "--trainer.accelerator=cpu", args[-1]], run_it=False)
    assert built.trainer.precision == ("bf16-mixed" if has else "32-true")
    other = ["--trainer.accelerator=cpu", "--trainer.precision=16-mixed"]
    mixed = training.build(["-c", str(config()), *other], run_it=False)
    assert mixed.trainer.precision == ("bf16-mixed" if has else "32-true")  # as Lightning reads it there


def test_the_learning_rate_finder_leaves_no_other_trace(config: Config, tmp_path: Path) -> None:
    found = fit(config(), "--lr_find=true")
    assert found.model.lr != 0.01
    assert found.trainer.global_step == 5
    assert found.datamodule.state_dict() == {"given": 5}
    assert load(tmp_path / "run" / "last.ckpt")["moving_average_step"] == 5


def test_pictures_go_to_tensorboard(config: Config, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    callbacks = [{"class_path": "Reconstructions", "init_args": {"count": 2}}]
    fit(
        config("S2L2A"),
        "--trainer.logger=true",
        f"--trainer.callbacks={callbacks}",
        "--trainer.max_steps=4",
        "--trainer.log_every_n_steps=1",
    )
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "lightning_logs" / "version_0"))
    events.Reload()
    assert events.Tags()["images"] == ["val/0", "val/1"]
    shown = events.Images("val/0")[0]
    assert (shown.height, shown.width) == (32, 96)
    assert {"val/psnr", "val/loss", "train/mse", "data/skipped"} <= set(events.Tags()["scalars"])


def test_a_missing_package_is_one_line() -> None:
    code = "import sys; sys.modules['lightning'] = None; from tmcodec.cli import main; main(['train', 'fit'])"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.returncode == 1
    assert found.stderr.startswith("tmcodec: error: training needs the package lightning")
    assert found.stderr.count("\n") == 1


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from tmcodec.cli import cli
for args in (["--help"], ["train", "--help"], ["train", "fit", "--help"]):
    try:
        cli(args)
    except SystemExit:
        pass
print("heavy:", sorted({"torch", "lightning", "jsonargparse", "numpy"} & set(sys.modules)))
"""
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert found.stdout.endswith("heavy: []\n"), found.stdout + found.stderr


def test_early_stopping_ends_a_run(config: Config) -> None:
    stop = {"monitor": "val/psnr", "mode": "max", "patience": 1, "min_delta": 1000}
    callbacks = [{"class_path": "EarlyStopping", "init_args": stop}]
    found = fit(config(), "--trainer.max_steps=100", "--data.epoch=2", f"--trainer.callbacks={callbacks}")
    assert found.trainer.global_step == 2  # the second validation is no better than the first


@pytest.mark.parametrize("callback", ["ModelCheckpoint", "EarlyStopping"])
@pytest.mark.parametrize("name", ["val/psnr", "val/lost"])
def test_what_is_not_measured_cannot_be_monitored(callback: str, name: str, config: Config) -> None:
    callbacks = [{"class_path": callback, "init_args": {"monitor": name}}]
    model = {"stage": "energy", "start": "mini-ndvi-v2", "net": None}
    path = config(model=model, data={"side": 32, "val_crops": 2})
    said = f"{callback} monitors {name}, which stage energy .* val/energy, val/loss"
    with pytest.raises(ConfigError, match=said):
        fit(path, f"--trainer.callbacks={callbacks}")


@pytest.mark.parametrize("callback", ["ModelCheckpoint", "EarlyStopping"])
def test_monitors_without_validation_are_refused(callback: str, config: Config) -> None:
    def start(monitor: str, *args: str) -> None:
        callbacks = [{"class_path": callback, "init_args": {"monitor": monitor}}]
        fit(config(), "--trainer.max_steps=1", f"--trainer.callbacks={callbacks}", *args)

    with pytest.raises(ConfigError, match="monitors val/loss, but nothing is validated"):
        start("val/loss", "--data.val=null")
    with pytest.raises(ConfigError, match=r"monitors train/psnr, which stage mean .* train/hold, train/loss"):
        start("train/psnr")
    if callback == "ModelCheckpoint":
        start("train/loss", "--data.val=null")


class Told(Callback):
    """Waits for figures in a way of its own."""

    def __init__(self) -> None:
        self.monitor = {"val/lost": "min"}


def test_what_others_measure_can_be_monitored(config: Config, tmp_path: Path) -> None:
    place = {"dirpath": str(tmp_path / "kept"), "mode": "max", "every_n_train_steps": 1, "save_top_k": 1}
    for name in ("step", "epoch"):  # Lightning's own
        callbacks = [{"class_path": "ModelCheckpoint", "init_args": {"monitor": name, **place}}]
        fit(config(), "--trainer.max_steps=2", f"--trainer.callbacks={callbacks}")
    assert list((tmp_path / "kept").glob("*step=2.ckpt"))
    stop = EarlyStopping("another/score")
    for callback in (stop, Told()):
        check_monitors(Trainer(logger=False, callbacks=[callback]), ["loss"], "it")


@pytest.mark.parametrize("command", ["validate", "test"])
def test_there_is_nothing_to_validate_without_sources(command: str, config: Config) -> None:
    with pytest.raises(ConfigError, match=r"data\.val name"):
        training.run(command, ["-c", str(config()), "--data.val=null"])


@pytest.mark.parametrize("words", ["fit", "validate", "test", "stats", "tokens", "generator fit"])
def test_a_command_without_a_configuration_asks_for_one(words: str) -> None:
    result = CliRunner().invoke(cli, ["train", *words.split()])
    assert result.exit_code == 2
    assert "give a configuration: -c FILE" in result.output


def test_the_figures_named_are_those_measured(config: Config) -> None:
    rated = {"rate": 0.01, "losses": [{"name": "mse"}, {"name": "gradient"}]}
    stages: list[dict[str, Any]] = [
        rated,
        *({"stage": s, "start": "mini-ndvi-v2", "net": None} for s in ("decoder", "denoiser", "energy")),
        {"stage": "distill", "start": "mini-ndvi-v2", "net": None, "chain_steps": 2, "teacher_steps": 3},
    ]
    for model in stages:
        path = config(model=model, data={"side": 32, "val_crops": 2, "epoch": 2}, trainer={"callbacks": []})
        done = fit(path, "--trainer.max_steps=1")
        measured = {k for k in done.trainer.callback_metrics if k.startswith("val/")}
        assert measured == {f"val/{k}" for k in done.model.figures()}
        trained = {k for k in done.trainer.callback_metrics if k.startswith("train/")}
        assert trained == {f"train/{k}" for k in set(done.model.figures()) - SCORES}


@pytest.mark.parametrize("modality", ["NDVI", "LULC", "DEM"])
def test_a_hundred_steps_learn_something(modality: str, config: Config) -> None:
    path = config(modality, trainer={"callbacks": [], "max_steps": 100}, data={"epoch": 200, "val_crops": 8})
    score = "val/accuracy" if modality == "LULC" else "val/loss"
    first = float(fit(path, "--trainer.max_steps=1", "--data.epoch=2").trainer.callback_metrics[score])
    last = float(fit(path).trainer.callback_metrics[score])
    assert last > first + 0.02 if modality == "LULC" else last < first - 0.1


@pytest.mark.parametrize(
    ("option", "why"),
    [
        ("--model.net.channels=2", "channels is 2; NDVI has 1"),
        ("--model.net.std=[0]", r"std is \[0.0\]; all must be above 0"),
        ("--model.net.mean=[0.1,0.2]", "mean is .*; NDVI needs 1 numbers"),
        ("--model.net.mean=[.nan]", "mean is .*; NDVI needs 1 numbers"),
        ("--model.net.levels=[1]", r"levels \(1,\) must be"),
        ("--model.net.levels=[]", r"levels \(\) must be"),
        ("--model.net.compand=foo", "companding 'foo' .* linear, sqrt, asinh"),
        ("--model.net.knee=0", "companding .* knee above 0"),
        ("--model.optimizer.lr=-1", "lr is -1.0; give a number above 0"),
        ("--model.optimizer.weight_decay=-1", "weight_decay is -1.0"),
        ("--model.optimizer.betas=[0.9,1]", "betas"),
        ("--trainer.accelerator=gpu", "(?i)accelerator|gpu"),
        ("--trainer.precision=bf16-true", "precision is bf16-true, .* bf16-mixed, 16-mixed or 32-true"),
        ("--trainer.precision=64", "precision is 64, .* bf16-mixed"),
        ("--trainer.strategy=ddpp", "trainer: .*strategy='ddpp'"),
    ],
)
def test_values_that_cannot_be_are_one_line(option: str, why: str, config: Config) -> None:
    if "gpu" in option and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ConfigError, match=why) as found:
        training.run("fit", ["-c", str(config()), option])
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("kind", ["cut", "text", "weights", "tensors"])
def test_a_file_that_is_no_checkpoint_is_one_line(kind: str, config: Config, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {}, "global_step": 3}, path)
    if kind == "cut":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "text":
        path.write_text("no checkpoint")
    elif kind == "weights":
        torch.save({"a": torch.zeros(3)}, path)
    else:
        torch.save(torch.zeros(3), path)
    why = "cut short" if kind in ("cut", "text") else "holds no training state; weights go into model.start"
    with pytest.raises(ConfigError, match=f"ckpt_path: .*a.ckpt .*{why}"):
        training.run("fit", ["-c", str(config()), "--ckpt_path", str(path)])


@pytest.mark.parametrize("command", ["fit", "stats", "tokens", "generator fit"])
def test_a_configuration_of_another_encoding_is_one_line(command: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_bytes("# für Ötztal\n".encode("latin-1"))
    result = CliRunner().invoke(cli, ["train", *command.split(), "-c", str(tmp_path / "a.yaml")])
    assert result.exit_code == 1
    assert result.stderr.startswith("tmcodec: error: ")
    assert "a.yaml: not a text in UTF-8" in result.stderr


@pytest.mark.parametrize("command", ["fit", "tokens"])
def test_a_configuration_without_end_is_one_short_line(command: str, tmp_path: Path) -> None:
    deep = "a.yaml: nested too deeply for a configuration"
    for text, words in (
        ("[" * 5000, deep), ("[" * 300 + "]" * 300, deep), ("model: &a\n  net: *a\n", deep),
        (f"model: {{{', '.join(f'key{i}: {i}' for i in range(200))}}}", "key"),
    ):  # fmt: skip
        (tmp_path / "a.yaml").write_text(text)
        result = CliRunner().invoke(cli, ["train", command, "-c", str(tmp_path / "a.yaml")])
        assert result.exit_code == 1
        assert result.stderr.startswith("tmcodec: error: ") and words in result.stderr
        assert len(result.stderr) < 600


def test_flags_with_and_without_values() -> None:
    assert translate(("--overwrite", "--fast-dev-run", "-c", "a")) == [
        "--overwrite=true", "--trainer.fast_dev_run=true", "-c", "a",
    ]  # fmt: skip
    assert translate(("--overwrite", "false", "--lr_find")) == ["--overwrite", "false", "--lr_find=true"]
    assert translate(("--fast-dev-run", "true")) == ["--trainer.fast_dev_run", "true"]
    assert translate(("--overwrite=true",)) == ["--overwrite=true"]
