"""Evaluate the embedded tokenizers on the shared validation rasters: a report a modality, and tables.

    python benchmarks/evaluate.py --data ../shared/data --out REPORTS [--modality S2L2A] [--lpips WEIGHTS.pth]

Folders, offsets and step counts are those of docs/evaluation.md. ``--table`` prints the tables of reports
that are there already, without evaluating anything.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from tmcodec.evaluation.baselines import BASELINES
from tmcodec.evaluation.intervals import Interval
from tmcodec.evaluation.page import signed
from tmcodec.evaluation.report import EQUAL, Method, Report
from tmcodec.evaluation.run import evaluate
from tmcodec.modalities import MODALITIES

STEPS = (1, 2, 4, 10)
MEASURED = {
    "psnr": 2, "ssim": 3, "sam": 2, "ergas": 2, "lpips": 3, "ndvi_error": 4, "spectrum_error": 1,
    "beyond_sigma": 1, "accuracy": 3, "miou": 3,
}
"""Measures of the second table and their digits."""


@dataclass(frozen=True)
class Corpus:
    """Folders of the validation and the training rasters, and Sentinel-2's offset by file name."""

    val: tuple[str, ...]
    train: tuple[str, ...]
    offsets: tuple[tuple[str, str], ...] = ()


CORPORA = {m: Corpus((m,), (m,)) for m in MODALITIES} | {
    "S2L2A": Corpus(("S2L2A",), ("S2L2A",), (("terramesh_433D*", "present"), ("*", "absent"))),
    "S2L1C": Corpus(("S2L1C",), ("S2L1C",), (
        ("terramesh_38D*", "absent"), ("terramesh_*", "present"), ("*", "absent"),
    )),
    "LULC": Corpus(("LULC", "LULC_nlcd8"), ("LULC",)),
}


def run(name: str, args: argparse.Namespace) -> Report:
    """Evaluate one modality and write its report."""
    corpus, tokenizers = CORPORA[name], args.tokenizer or ()
    return evaluate(
        [args.data / "val" / folder for folder in corpus.val],
        train=[args.data / "train" / folder for folder in corpus.train],
        tokenizers=tokenizers, modality=name, steps=STEPS, baselines=args.baselines.split(","),
        s2_offset_of=corpus.offsets, report=args.out / name.lower(), overwrite=True, lpips=args.lpips,
        progress=lambda done, total: print(f"{name}: {done} of {total}", flush=True),
    )


def large_scenes(report: Report) -> Report:
    """Return the report of the scenes of more than 200 pixels on a side."""
    names = {s.name for s in report.scenes if min(s.width, s.height) > 200}
    return Report.from_dict({
        **report.to_dict(),
        "scenes": [s for s in report.to_dict()["scenes"] if s["name"] in names],
        "entries": [e for e in report.to_dict()["entries"] if e["scene"] in names],
    })


def row(label: str, report: Report) -> str:
    """Return one line: the tokenizer, its rivals at the file's size, the difference to the best codec."""
    first = next(m for m in report.methods if m.kind == "tokenizer")
    digits = 3 if report.score == "accuracy" else 2

    def cell(method: Method | None) -> str:
        if method is None or not report.of(method.key):
            return "–"
        value = report.mean(method.key, report.score)
        count = "" if value.count == len(report.scenes) else f" ({value.count})"
        return f"{value.mean:.{digits}f}{count}" if value.mean is not None else "–"

    def baseline(name: str, headers: str = "counted") -> Method | None:
        found = [m for m in report.methods if (m.baseline, m.headers, m.factor) == (name, headers, EQUAL)]
        return found[0] if found else None

    best = report.best_codec(first.tokenizer)
    gap = report.difference(first.key, best.key, report.score) if best else Interval(None, None, None, 0)
    size = sum(e.bytes or 0 for e in report.of(first.key)) / len(report.scenes)
    cells = [label, first.tokenizer, str(len(report.scenes)), f"{size:.0f}", cell(first)]
    cells += [cell(baseline(n)) for n in ("jp2", "jxl", "avif", "webp", "blocks")]
    free = report.best_codec(first.tokenizer, "free")
    cells += [cell(free), cell(baseline("blocks", "none")), cell(baseline("kmeans", "none"))]
    cells.append(signed(gap, digits))
    return "| " + " | ".join(cells) + " |"


def measures(label: str, report: Report) -> list[str]:
    """Return a line for each step count and for the best codec: all measures."""
    first = next(m for m in report.methods if m.kind == "tokenizer")
    best = report.best_codec(first.tokenizer)
    lines = []
    for method in [*(m for m in report.methods if m.kind == "tokenizer"), *([best] if best else [])]:
        cells = [label, method.title]
        for key, digits in MEASURED.items():
            mean = report.mean(method.key, key).mean
            cells.append("–" if mean is None else f"{mean:.{digits}f}")
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def tables(reports: dict[str, Report]) -> list[str]:
    """Return the tables of docs/evaluation.md."""
    shown = {}
    for name, report in reports.items():
        shown[name] = report
        if name == "S2L2A":
            shown = {**shown, "S2L2A, larger": large_scenes(report)}
    lines = [
        "| modality | tokenizer | scenes | bytes | 1 step | JPEG 2000 | JPEG XL | AVIF | WebP | "
        "blocks, 8 bits | best, headers free | blocks, unquantized | k-means | 1 step − best codec |",
        "|---|" + "---|" * 13,
    ]
    lines += [row(label, report) for label, report in shown.items()]
    titles = "PSNR | SSIM | SAM | ERGAS | LPIPS | NDVI error | spectrum | beyond ±1σ | accuracy | mIoU"
    lines += ["", f"| modality | method | {titles} |", "|---|" + "---|" * 11]
    lines += [line for label, report in shown.items() for line in measures(label, report)]
    lines += ["", "| tokenizer | tokens | different | entropy | perplexity | bits a token, with headers |",
              "|---|" + "---|" * 5]
    for report in reports.values():
        for use in report.token_use:
            lines.append(f"| {use.tokenizer} | {use.tokens:,} | {use.used:,} | {use.entropy:.2f} | "
                         f"{use.perplexity:.0f} | {use.bits:.2f}, {use.file_bits:.2f} |")
    return lines


def main() -> None:
    """Evaluate what is asked for and print the tables."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--data", type=Path, default=Path("../shared/data"))
    ap.add_argument("--out", type=Path, required=True, help="folder that gets a report for each modality")
    ap.add_argument("--modality", action="append", choices=list(MODALITIES))
    ap.add_argument("--tokenizer", action="append", help="with one --modality: others than the embedded one")
    ap.add_argument("--baselines", default=",".join(BASELINES), help="kmeans takes longest")
    ap.add_argument("--lpips", type=Path)
    ap.add_argument("--table", action="store_true", help="print what is in --out; evaluate nothing")
    args = ap.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    names = args.modality or list(MODALITIES)
    if args.table:
        reports = {n: Report.load(args.out / n.lower()) for n in names if (args.out / n.lower()).is_dir()}
    else:
        reports = {n: run(n, args) for n in names}
    print("\n".join(tables(reports)))


if __name__ == "__main__":
    main()
