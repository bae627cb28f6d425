"""A STAC item of the Machine Learning Model extension (MLM), version 1.4.

https://stac-extensions.github.io/mlm/ ; sizes and checksums by the file extension, whose checksums are
multihashes: 0x12 (SHA-256), 0x20 (32 bytes), the digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from tmcodec.publishing.facts import Facts

MLM = "https://stac-extensions.github.io/mlm/v1.4.0/schema.json"
FILE = "https://stac-extensions.github.io/file/v2.1.0/schema.json"


@dataclass(frozen=True)
class Published:
    """A file beside the item: its size in bytes and its SHA-256 in hex."""

    size: int
    sha256: str

    @property
    def multihash(self) -> str:
        """The checksum as the file extension writes it."""
        return f"1220{self.sha256}"


def make_item(facts: Facts, files: Mapping[str, Published]) -> dict[str, Any]:
    """Return the item as plain types.

    Parameters
    ----------
    facts
        What is known about the tokenizer.
    files
        By name; ``<name>.safetensors`` and ``README.md`` become assets.
    """
    weights, card = f"{facts.name}.safetensors", "README.md"
    return {
        "type": "Feature",
        "stac_version": "1.1.0",
        "stac_extensions": [MLM, FILE],
        "id": facts.name,
        "geometry": None,  # it is for no place
        "properties": properties(facts),
        "links": [],
        "assets": {
            "weights": {
                "href": f"./{weights}",
                "title": "Weights",
                "type": "application/octet-stream; application=safetensors",
                "roles": ["mlm:model", "mlm:weights", "data"],
                "mlm:artifact_type": "safetensors",
                "bands": [{"name": name} for name in facts.modality.bands],
                **_file(files[weights]),
            },
            "card": {
                "href": f"./{card}",
                "title": "Model card",
                "type": "text/markdown",
                "roles": ["metadata"],
                **_file(files[card]),
            },
        },
    }


def _file(published: Published) -> dict[str, Any]:
    return {"file:size": published.size, "file:checksum": published.multihash}


def properties(facts: Facts) -> dict[str, Any]:
    """Return the item's properties."""
    return {
        "datetime": facts.created,
        "description": f"Tokenizer for {facts.modality.title}: {facts.architecture}.",
        "license": facts.licence or "other",
        "mlm:name": facts.name,
        "mlm:architecture": facts.architecture,
        "mlm:tasks": ["generative"],
        "mlm:framework": "PyTorch",
        "mlm:framework_version": _framework_version(),
        "mlm:total_parameters": facts.parameters,
        **pretraining(facts),
        "mlm:accelerator_constrained": False,
        "mlm:input": [model_input(facts)],
        "mlm:output": [tokens_output(facts), pixels_output(facts)],
        "mlm:hyperparameters": {
            "layout": facts.layout,
            "levels": list(facts.config["levels"]),
            "sha256": facts.sha256,
            "stage": facts.stage,
            "steps": facts.steps,
        },
    }


def pretraining(facts: Facts) -> dict[str, Any]:
    """Say whether other weights came first, and which; nothing where the recipe is not known."""
    model = facts.recipe.get("model")
    if model is None:
        return {}
    start = model.get("start")
    return {"mlm:pretrained": start is not None, "mlm:pretrained_source": start}


def _framework_version() -> str:
    """Return torch's version as semantic versioning wants it."""
    return metadata.version("torch").split("+")[0]


def model_input(facts: Facts) -> dict[str, Any]:
    """Return the picture that goes in: physical units; scaled inside the model as `value_scaling` says."""
    return {
        "name": facts.modality.name,
        "description": f"{facts.modality.title}, {facts.modality.units}",
        "bands": list(facts.modality.bands),
        "input": _array([-1, facts.channels, -1, -1], ["batch", "channel", "height", "width"], "float32"),
        "value_scaling": value_scaling(facts),
        "resize_type": None,
        "pre_processing_function": {"format": "python", "expression": "tmcodec:encode"},
    }


def value_scaling(facts: Facts) -> list[dict[str, Any]] | None:
    """Return one z-score a band; nothing for classes, or where a curve comes before it."""
    mean, std = facts.config.get("mean") or (), facts.config.get("std") or ()
    if not mean or facts.config.get("compand", "linear") != "linear":
        return None
    return [
        {"type": "z-score", "mean": float(m), "stddev": float(s)} for m, s in zip(mean, std, strict=True)
    ]


def tokens_output(facts: Facts) -> dict[str, Any]:
    """Return what encoding gives."""
    return {
        "name": "tokens",
        "description": f"One of {facts.codes} tokens for every 16 x 16 pixels.",
        "tasks": ["generative"],
        "result": _array([-1, -1, -1], ["batch", "height", "width"], "int32"),
        "post_processing_function": None,
    }


def pixels_output(facts: Facts) -> dict[str, Any]:
    """Return what decoding gives."""
    return {
        "name": "reconstruction",
        "description": "The picture that the tokens stand for, in the units of the input.",
        "tasks": ["generative"],
        "result": _array([-1, facts.channels, -1, -1], ["batch", "channel", "height", "width"], "float32"),
        "post_processing_function": {"format": "python", "expression": "tmcodec:decode"},
    }


def _array(shape: list[int], order: list[str], dtype: str) -> dict[str, Any]:
    return {"shape": shape, "dim_order": order, "data_type": dtype}
