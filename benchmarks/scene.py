"""A whole Sentinel-2 tile, 10980 x 10980 x 12: time, memory and where the time goes, against JPEG 2000.

    python benchmarks/scene.py [--source ../shared/data/train/S2L1C/virginia_coast_north.tif] [--size 10980]

The scene is a VRT that repeats a real 10 m scene (B10 left out) on a grid, so that both codecs read the
same bytes. Each run is a process of its own; its peak resident memory is what the kernel says.
JPEG 2000 is GDAL's OpenJPEG driver, lossy at QUALITY 1 (about 1 % of the bytes: less work than more) and
lossless off, with all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import rasterio

BANDS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13)
NAMES = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")

JPEG2000 = """
import sys, rasterio, rasterio.shutil
with rasterio.Env(GDAL_NUM_THREADS="ALL_CPUS", GDAL_CACHEMAX=256):
    rasterio.shutil.copy(sys.argv[1], sys.argv[2], driver="JP2OpenJPEG", QUALITY="1", REVERSIBLE="NO",
                         YCBCR420="NO")
"""


def make_vrt(source: Path, size: int, path: Path) -> None:
    """Write a VRT of `size` x `size` pixels that repeats `source` to the right and downwards."""
    with rasterio.open(source) as src:
        width, height, crs, transform = src.width, src.height, src.crs.to_wkt(), src.transform.to_gdal()
    lines = [f'<VRTDataset rasterXSize="{size}" rasterYSize="{size}"><SRS>{crs}</SRS>']
    lines.append(f"<GeoTransform>{', '.join(map(str, transform))}</GeoTransform>")
    lines.append('<Metadata><MDI key="TMCODEC_S2_OFFSET">absent</MDI></Metadata>')
    for band, (index, name) in enumerate(zip(BANDS, NAMES, strict=True), 1):
        lines.append(f'<VRTRasterBand dataType="UInt16" band="{band}"><Description>{name}</Description>')
        for row in range(0, size, height):
            for col in range(0, size, width):
                w, h = min(width, size - col), min(height, size - row)
                lines.append(
                    f'<SimpleSource><SourceFilename relativeToVRT="0">{source.resolve()}</SourceFilename>'
                    f'<SourceBand>{index}</SourceBand><SrcRect xOff="0" yOff="0" xSize="{w}" ySize="{h}"/>'
                    f'<DstRect xOff="{col}" yOff="{row}" xSize="{w}" ySize="{h}"/></SimpleSource>'
                )
        lines.append("</VRTRasterBand>")
    path.write_text("\n".join([*lines, "</VRTDataset>"]))


def measure(command: list[str]) -> dict[str, Any]:
    """Run a command; wall-clock seconds, peak resident memory in GB, and what it printed."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        printed = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[:6]} ended with status {process.returncode}")
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak_gb": usage.ru_maxrss * 1024 / 1e9, "printed": printed}


def main() -> None:
    """Run everything and print one table."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = Path("../shared/data/train/S2L1C/virginia_coast_north.tif")
    ap.add_argument("--source", type=Path, default=source)
    ap.add_argument("--size", type=int, default=10980)
    ap.add_argument("--json", type=Path)
    ap.add_argument("--no-jpeg", action="store_true")
    args = ap.parse_args()
    tmcodec = [sys.executable, "-m", "tmcodec"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder:
        vrt, tmc, tif, jp2 = (str(Path(folder) / f"scene.{s}") for s in ("vrt", "tmc", "tif", "jp2"))
        make_vrt(args.source, args.size, Path(vrt))
        runs = {"encode": measure([*tmcodec, "encode", vrt, tmc, "--modality", "S2L2A", "--json"])}
        if not args.no_jpeg:
            runs["JPEG 2000"] = measure([sys.executable, "-c", JPEG2000, vrt, jp2])
            runs["JPEG 2000"]["bytes"] = Path(jp2).stat().st_size
        runs["decode"] = measure([*tmcodec, "decode", tmc, tif, "--json"])
        runs["encode"]["bytes"] = Path(tmc).stat().st_size
    raw = args.size**2 * len(BANDS) * 2
    print(f"{args.size} x {args.size} x {len(BANDS)} uint16, {raw / 1e9:.2f} GB raw, {os.cpu_count()} cores")
    for name, run in runs.items():
        size = f"{run['bytes'] / 1e6:8.3f} MB, 1 : {raw / run['bytes']:.0f}" if "bytes" in run else ""
        print(f"{name:10s} {run['seconds']:7.1f} s  peak {run['peak_gb']:.2f} GB  {size}")
        if name in ("encode", "decode"):
            stages = json.loads(run.pop("printed"))["timings"]
            run["timings"] = stages
            print("           " + ", ".join(f"{k} {v:.1f} s" for k, v in stages.items()))
    if "JPEG 2000" in runs:
        share = runs["encode"]["seconds"] / runs["JPEG 2000"]["seconds"]
        print(f"encode takes {share:.2f} of the time of JPEG 2000")
    if args.json:
        args.json.write_text(json.dumps(runs, indent=1))


if __name__ == "__main__":
    main()
