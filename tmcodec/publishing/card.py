"""The model card: a README with the metadata that the Hugging Face Hub reads."""

from __future__ import annotations

import re
from typing import Any

from tmcodec.publishing.facts import Facts

PATCH = 16
SPDX = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]*")

TAGS = ("earth-observation", "remote-sensing", "tokenizer", "compression", "fsq", "safetensors", "stac-mlm")

LIMITS = (
    "A reconstruction is a picture of what the tokens say, not a measurement: fine structure is smoothed or, "
    "with more than one sampling step, drawn. Do not read single pixels off it.",
    "The figures hold for the data they were measured on. Places, sensors, processing and seasons unlike the "
    "training data can come out worse, without a sign of it.",
    "Tokens belong to these weights: only a decoder whose weights file lists this tokenizer decodes them.",
)


def write_card(facts: Facts) -> str:
    """Return the card as Markdown with YAML front matter."""
    parts = [
        f"---\n{_yaml(front_matter(facts))}---",
        f"# {facts.name}",
        _summary(facts),
        "## Use\n\n" + _use(facts),
        "## Data\n\n" + _data(facts),
        "## Recipe\n\n" + _recipe(facts),
        "## Figures\n\n" + _figures(facts),
        "## Limits\n\n" + "\n".join(f"- {line}" for line in LIMITS),
        "## Licence\n\n" + (facts.licence or "Not stated; ask before you use or pass on these weights."),
    ]
    return "\n\n".join(parts) + "\n"


def front_matter(facts: Facts) -> dict[str, Any]:
    """Return the card's metadata, keys as the Hub knows them."""
    licence: dict[str, Any] = {"license": facts.licence.lower()}
    if not SPDX.fullmatch(facts.licence):
        licence = {"license": "other", "license_name": "see-below" if facts.licence else "not-stated"}
    return {**licence, "library_name": "tmcodec", "tags": [*TAGS, facts.modality.name.lower()]}


def _yaml(values: dict[str, Any]) -> str:
    import yaml  # type: ignore[import-untyped]

    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)
    return text


def _summary(facts: Facts) -> str:
    row = facts.modality
    lines = [
        f"A tokenizer for {row.title} ({row.name}): every {PATCH} × {PATCH} pixels become one of "
        f"{facts.codes:,} tokens, and tokens become pixels again. Made with tmcodec {facts.version}.",
        "",
        "| | |",
        "|---|---|",
        f"| network | {facts.architecture} |",
        f"| parameters | {facts.parameters:,} |",
        f"| FSQ levels | {' '.join(map(str, facts.config['levels']))} |",
        f"| bands | {' '.join(row.bands)} |",
        f"| units | {row.units} |",
        f"| content hash | `{facts.sha256}` |",
        f"| exported | {facts.created} |",
    ]
    if facts.commit:
        lines.append(f"| commit of the exporting code | `{facts.commit}` |")
    lines += [f"| also decodes tokens of | {name} (`{sha256[:12]}…`) |" for name, sha256 in facts.decodes]
    return "\n".join(lines)


def _use(facts: Facts) -> str:
    weights = f"--tokenizer {facts.name}.safetensors"
    return (
        "```bash\npip install tmcodec\n"
        f"tmcodec encode scene.tif scene.tmc {weights} --modality {facts.modality.name}\n"
        f"tmcodec decode scene.tmc back.tif {weights}\n```\n\n"
        "`SHA256SUMS` has the files' checksums (`sha256sum -c SHA256SUMS`), `item.json` the same facts as a "
        "STAC item of the Machine Learning Model extension."
    )


def _data(facts: Facts) -> str:
    if not facts.sources:
        return "The run's configuration was not kept; what it was trained on is not known here."
    rows = ["| source | kind | modality | weight |", "|---|---|---|---|"]
    for source in facts.sources:
        cells = (source.get(key, "") for key in ("name", "kind", "modality", "weight"))
        rows.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    return "\n".join(rows)


def _recipe(facts: Facts) -> str:
    trained = f"Stage `{facts.stage}`" if facts.stage else "Stage not recorded"
    text = f"{trained}, {facts.steps:,} steps of the optimizer."
    return f"{text}\n\n```yaml\n{_yaml(facts.recipe)}```" if facts.recipe else text


def _figures(facts: Facts) -> str:
    if not facts.figures:
        return "None were kept."
    rows = ["| measure | value | on |", "|---|---|---|"]
    rows += [f"| {_cell(f.name)} | {f.value:.4g} | {_cell(f.note)} |" for f in facts.figures]
    return "\n".join(rows)


def _cell(value: Any) -> str:
    """Return text that cannot break out of a table's cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
