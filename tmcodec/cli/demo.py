"""``tmcodec demo``: real scenes there and back."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tmcodec.cli.command import Command
from tmcodec.cli.options import (
    debug_option,
    device_option,
    echo_json,
    echo_rows,
    json_option,
    options,
    progress_bar,
    quiet_option,
    seed_option,
    steps_option,
)
from tmcodec.errors import RasterOpenError
from tmcodec.texts import human_bytes, human_ratio, human_seconds, three_digits

if TYPE_CHECKING:
    from tmcodec.codec.report import DecodeReport, EncodeReport
    from tmcodec.comparison import Comparison

DATA = Path(__file__).resolve().parent.parent / "data"
SCENES = {"S2L2A": DATA / "demo_s2l2a.tif", "S2L1C": DATA / "demo_s2l1c.tif"}
"""Sentinel-2 scenes by modality; the text beside each says whose it is."""


@dataclass(frozen=True)
class DemoResult:
    """What `run_demo` did."""

    picture: Path
    encoded: EncodeReport
    decoded: DecodeReport
    comparison: Comparison
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON."""
        return {
            "picture": str(self.picture),
            "encode": self.encoded.to_dict(),
            "decode": self.decoded.to_dict(),
            "compare": self.comparison.to_dict(),
            "seconds": self.seconds,
        }


@click.command("demo", cls=Command)
@click.argument(
    "folder", metavar="[DIR]", default="tmcodec-demo", type=click.Path(file_okay=False, path_type=Path)
)
@options(
    steps_option, seed_option, device_option, json_option, quiet_option, debug_option
)
def command(folder: Path, as_json: bool, quiet: bool, **choices: Any) -> None:
    """Take two real Sentinel-2 scenes there and back.

    The scenes ship with the package. For each, writes a copy, the token file, the
    reconstruction and a picture of both side by side to DIR (./tmcodec-demo), replacing what
    an earlier demo wrote there.
    """
    results = []
    for modality, scene in SCENES.items():
        results.append(run_demo(folder, scene=scene, modality=modality, quiet=quiet, **choices))
        if not (as_json or quiet):
            print_demo(results[-1])
    if as_json:
        echo_json([result.to_dict() for result in results])


def run_demo(
    folder: Path,
    *,
    scene: Path,
    modality: str,
    s2_offset: str = "auto",
    steps: int | None = None,
    seed: int | None = None,
    tokenizer: str | None = None,
    device: str = "auto",
    quiet: bool = True,
) -> DemoResult:
    """Encode `scene` in `folder`, decode it, compare, and draw the picture."""
    from tmcodec.codec.decode import decode
    from tmcodec.codec.encode import encode
    from tmcodec.comparison import compare

    if not scene.is_file():
        raise RasterOpenError(f"the demo scene {scene} is not there; reinstall tmcodec")
    start = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    original = folder / scene.name
    tokens, back = original.with_suffix(".tmc"), folder / f"{scene.stem}_decoded.tif"
    picture = original.with_suffix(".png")
    if not (original.exists() and original.samefile(scene)):
        shutil.copyfile(scene, original)
        if scene.with_suffix(".txt").is_file():  # the attribution goes where the scene goes
            shutil.copyfile(scene.with_suffix(".txt"), original.with_suffix(".txt"))
    with progress_bar("encoding", quiet) as progress:
        encoded = encode(original, tokens, modality=modality, s2_offset=s2_offset, tokenizer=tokenizer,
                         device=device, overwrite=True, progress=progress)
    with progress_bar("decoding", quiet) as progress:
        decoded = decode(tokens, back, steps=steps, seed=seed, tokenizer=tokenizer, device=device,
                         overwrite=True, progress=progress)
    # The raster as it was written, not the array: this also tests where it lies on the map.
    comparison = compare(back, original, modality=modality, s2_offset=encoded.s2_offset or "auto",
                         count_bytes_of=tokens, plot=picture, overwrite=True)
    return DemoResult(picture, encoded, decoded, comparison, time.perf_counter() - start)


def print_demo(result: DemoResult) -> None:
    """Say what was written and how good it is."""
    from tmcodec.metrics import ImageMetrics

    encoded, decoded, comparison = result.encoded, result.decoded, result.comparison
    metrics = comparison.metrics
    assert isinstance(metrics, ImageMetrics)
    place = comparison.crs_equal and comparison.transform_equal
    click.echo(f"{comparison.original} ({encoded.width} x {encoded.height} pixels, {encoded.bands} bands)")
    echo_rows([
        ("token file", encoded.path),
        ("reconstruction", decoded.path),
        ("side by side", str(result.picture)),
        ("size", f"{human_bytes(encoded.raw_bytes)} raw to {human_bytes(encoded.file_bytes)}, "
                 f"{human_ratio(encoded.ratio)}"),
        ("tokens", f"{encoded.tokens:,} of 16 x 16 pixels, {three_digits(encoded.bits_per_token)} bits each"),
        ("PSNR", f"{metrics.psnr:.2f} dB over all bands, peak {metrics.peak:g} {comparison.units}"),
        ("SSIM", f"{metrics.ssim:.4f}"),
        ("spectral angle", f"{metrics.sam:.2f} degrees" if metrics.sam is not None else ""),
        ("NDVI error", f"{metrics.ndvi_error:.4f} on average" if metrics.ndvi_error is not None else ""),
        ("on the map", "at the same place" if place else "NOT at the same place"),
        ("time", f"encode {human_seconds(encoded.seconds)}, decode {human_seconds(decoded.seconds)}, "
                 f"all {human_seconds(result.seconds)}"),
    ])
