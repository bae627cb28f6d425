"""Thinking in modalities: an encoder that also sees what a frozen generator imagines (arXiv 2504.11171).

    import tmcodec
    from tmcodec.tim import ThinkingEncoder

    backbone = ThinkingEncoder(tmcodec.load_generator("terramind-v1-base"), think=["LULC"], inputs=["S2L2A"])
    layers = backbone({"S2L2A": x})          # one (B, N, D) for each block, x in physical units

The generator makes the tokens of a modality that is not there; the encoder, a copy of the generator's own
that is fine-tuned, sees inputs and tokens together. Importing this module after TerraTorch registers
`tmcodec_thinking_encoder` with TerraTorch's backbones; `register` does so at any time.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tmcodec.errors import ConditionError, GenerationError, MissingDependencyError, TargetError
from tmcodec.modalities import get_modality
from tmcodec.networks.generator.config import SEQUENCES
from tmcodec.networks.generator.model import Part

if TYPE_CHECKING:
    from tmcodec.generation.models import LoadedGenerator

MERGES = ("mean", "max", "concat", "dict", None)


class ThinkingEncoder(nn.Module):
    """Embeddings of inputs together with generated tokens, as a backbone.

    Parameters
    ----------
    generator
        From `tmcodec.load_generator`. It stays frozen, and is no submodule: its weights are neither trained
        nor saved with the encoder's, and copies share it.
    think
        Images whose tokens are generated where they are not given, each a condition of the next; one name
        or several.
    inputs
        Modalities that will be given, images and ``"coords"`` or ``"caption"``; embeddings of others are
        dropped. None keeps all.
    merge
        How images' embeddings become one: ``"mean"`` or ``"max"`` over the modalities that show something
        at a place, ``"concat"`` along channels, ``"dict"`` for none and one entry a modality, None for all
        tokens one after the other. The order is that of `inputs`, then `think`.
    decoding_steps, temperature, top_p
        Of the generation; see `tmcodec.generation.generate.generate`.
    seed
        Of the generation: equal inputs think alike.
    standardized
        Whether pixels come standardised with the modality table's statistics, as TerraTorch's data modules
        give them, instead of in physical units.

    Attributes
    ----------
    out_channels
        Channels of each layer, as TerraTorch expects.
    feature_info
        The same as timm has it: ``num_chs``, ``reduction`` and ``module`` of each layer.
    patch_size
        Side of a token in pixels; TerraTorch pads inputs to multiples of it.

    Raises
    ------
    GenerationError, ConditionError, TargetError, ModalityError
        If the generator does not know a modality, a thought is no image, `merge` is unknown, or a number is
        out of its range.
    """

    def __init__(
        self,
        generator: LoadedGenerator,
        think: Sequence[str] | str = ("LULC",),
        *,
        inputs: Sequence[str] | str | None = None,
        merge: str | None = "mean",
        decoding_steps: int = 1,
        temperature: float = 1.0,
        top_p: float = 0.8,
        seed: int = 0,
        standardized: bool = False,
    ) -> None:
        from tmcodec.generation.settings import Settings

        super().__init__()
        if merge not in MERGES:
            raise GenerationError(f"unknown merge {merge!r}; use {', '.join(map(str, MERGES))}")
        self.merge, self.standardized = merge, standardized
        self.settings = {"decoding_steps": decoding_steps, "temperature": temperature, "top_p": top_p,
                         "seed": seed}  # fmt: skip
        # In a tuple, a module is no submodule.
        self._generator = (generator,)
        cfg = generator.cfg
        self.inputs = _names(inputs) if inputs is not None else None
        self.think = _names(think)
        _check_thoughts(self.think)
        how = Settings(decoding_steps=decoding_steps, temperature=temperature, top_p=top_p)
        how.plans(cfg, self.think, ())  # refuses now what no forward pass could do
        self.encoder = generator.trainable()
        self.encoder.keep_encoder(self._keys())
        images = self._images()
        if merge == "concat" and inputs is None:
            raise GenerationError("merge 'concat' needs to know the modalities; give inputs")
        width = cfg.dim * (len(images) if merge == "concat" else 1)
        self.patch_size = cfg.patch
        self.out_channels = [width] * cfg.encoder_depth
        self.feature_info = [
            {"num_chs": width, "reduction": cfg.patch, "module": f"encoder.encoder.{i}"}
            for i in range(cfg.encoder_depth)
        ]

    @property
    def generator(self) -> LoadedGenerator:
        """The frozen generator."""
        return self._generator[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> ThinkingEncoder:
        """Copy the encoder; the generator, which never changes, is shared."""
        memo[id(self.generator)] = self.generator
        copied = self.__class__.__new__(self.__class__)
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def _images(self) -> list[str]:
        """Return the images of the inputs and thoughts, in their order."""
        return [n for n in dict.fromkeys((*(self.inputs or ()), *self.think)) if n not in SEQUENCES]

    def _keys(self) -> list[str]:
        """Return the keys of the inputs' and thoughts' embeddings."""
        from tmcodec.generation.settings import target_spec

        cfg = self.generator.cfg
        thought = [target_spec(cfg, name) for name in self.think]
        for spec in thought:
            if not spec.encoder:
                raise ConditionError(f"the generator takes no {spec.modality} tokens; think of another")
        wanted = set(self.inputs or (s.modality for s in cfg.modalities))
        known = {s.modality for s in cfg.modalities if s.encoder}
        if wanted - known and self.inputs is not None:
            raise ConditionError(f"the generator takes no {', '.join(sorted(wanted - known))}")
        given = [s.key for s in cfg.modalities if s.encoder and s.modality in wanted]
        return list(dict.fromkeys([*given, *(s.key for s in thought)]))

    def forward(self, inputs: Mapping[str, Any] | Tensor, **more: Any) -> list[Any]:
        """Return the embeddings of each block.

        Parameters
        ----------
        inputs
            By modality, what `tmcodec.generation.generate.generate` takes: tokens ``(B, rows, cols)``, pixels
            ``(B, C, H, W)``, ``"coords"``. A tensor alone is of the first of `inputs`.
        more
            More of the same, by keyword, which TerraTorch gives.

        Returns
        -------
        list
            For each block ``(B, N, D)``, the last one normalised; with merge ``"dict"`` a dictionary each.
            Zeros where nothing is known: at tokens of -1, and patches with a pixel that is not finite.

        Raises
        ------
        TmcodecError
            If inputs do not fit the generator.
        """
        if isinstance(inputs, Tensor):
            if not self.inputs:
                raise ConditionError("a tensor alone needs the constructor's inputs; give a dictionary")
            inputs = {self.inputs[0]: inputs}
        given = self._tokenized({_name(k): v for k, v in {**inputs, **more}.items()})
        parts = self._parts(self._ordered({**given, **self._thoughts(given)}))
        features, padding = self.encoder.features(list(parts.values()))
        sizes = {name: _count(part, self.generator.cfg.patch) for name, part in parts.items()}
        if padding is not None:
            features = [layer * ~padding[..., None] for layer in features]
        return [self._merged(layer, sizes, padding) for layer in features]

    def _tokenized(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return the inputs in physical units, pixels that the model takes as tokens alone encoded once."""
        from tmcodec.generation.conditions import encoder_spec, image_input

        ready = dict(given)
        for name, value in given.items():
            if name in SEQUENCES:
                continue
            if self.standardized:
                ready[name] = value = _physical(name, value)
            pixels = getattr(value, "ndim", 0) == 4
            if pixels and encoder_spec(self.generator.cfg, name, "pixels") is None:
                with torch.no_grad():
                    image = image_input(self.generator, name, value)
                ready[name] = image.known().unflatten(1, image.grid)
        return ready

    def _ordered(self, seen: dict[str, Any]) -> dict[str, Any]:
        """Return what the encoder sees in the order of the constructor's inputs and thoughts."""
        if self.merge == "concat" and not seen.keys() >= {*self._images()}:
            missing = ", ".join(n for n in self._images() if n not in seen)
            raise ConditionError(f"{missing} is not given; merge 'concat' needs all inputs")
        known = () if self.inputs is None else (*self.inputs, *self.think)
        return {name: seen[name] for name in dict.fromkeys((*known, *seen)) if name in seen}

    def _thoughts(self, given: Mapping[str, Any]) -> dict[str, Tensor]:
        """Generate what is missing, without gradients."""
        missing = [name for name in self.think if name not in given]
        if not missing:
            return {}
        with torch.no_grad():
            made = self.generator.generate(given, missing, order="chained", **self.settings)
        # A tensor of inference mode cannot take part in a recorded pass; its clone can.
        return {name: made.tokens[name].clone() for name in missing}

    def _parts(self, inputs: Mapping[str, Any]) -> dict[str, Part]:
        """Return what the encoder takes, on its own device."""
        from tmcodec.generation.conditions import image_inputs, sequence_inputs

        images = image_inputs(self.generator, inputs)
        batch = len(next(iter(images.values())).values) if images else 1
        words = sequence_inputs(self.generator, inputs, batch)
        parts = {**{name: image.part() for name, image in images.items()}, **words}
        device = self.encoder.encoder_norm.weight.device
        return {name: _moved(part, device) for name, part in parts.items()}

    def _merged(self, layer: Tensor, sizes: dict[str, int], padding: Tensor | None) -> Any:
        """Merge the embeddings ``(B, N, D)`` of all parts, zeros where `padding` ``(B, N)`` is True."""
        if self.merge is None:
            return layer
        split = dict(zip(sizes, layer.split(list(sizes.values()), 1), strict=True))
        if self.merge == "dict":
            return split
        images = [part for name, part in split.items() if name not in SEQUENCES]
        if self.merge == "concat":
            return torch.cat(images, -1)
        stacked = torch.stack(images, 1)
        if padding is None:
            return stacked.mean(1) if self.merge == "mean" else stacked.amax(1)
        gaps = zip(sizes, padding.split(list(sizes.values()), 1), strict=True)
        hidden = torch.stack([gap for name, gap in gaps if name not in SEQUENCES], 1)[..., None]
        if self.merge == "mean":
            return stacked.sum(1) / (~hidden).sum(1).clamp_min(1)
        return stacked.masked_fill(hidden, -torch.inf).amax(1).masked_fill(hidden.all(1), 0)


def _names(names: Sequence[str] | str) -> tuple[str, ...]:
    """Return names as the tables have them; a text is one name, as for `tmcodec.generation.generate`."""
    return tuple(_name(name) for name in ([names] if isinstance(names, str) else names))


def _name(name: str) -> str:
    return name.lower() if name.lower() in SEQUENCES else get_modality(name).name


def _physical(name: str, value: Any) -> Any:
    """Return standardised pixels ``(B, C, H, W)`` in physical units; tokens and classes as they are."""
    from tmcodec.generation.conditions import as_tensor

    row = get_modality(name)
    pixels = as_tensor(name, value)
    if row.categorical or pixels.ndim != 4:
        return value
    mean, std = (
        torch.tensor(v, dtype=torch.float32, device=pixels.device).view(-1, 1, 1) for v in (row.mean, row.std)
    )
    return pixels.float() * std + mean


def _check_thoughts(think: Sequence[str]) -> None:
    """Refuse thoughts that are no images, or named twice."""
    for name in think:
        if name in SEQUENCES:
            raise TargetError(f"{name} cannot be thought of; think of images, and give {name} as an input")
    if len(set(think)) < len(think):
        raise TargetError(f"thoughts {', '.join(think)}; name each once")


def _count(part: Part, patch: int) -> int:
    """Return how many embeddings a part gives."""
    if part.positions is not None or part.values.ndim == 2:
        return (part.values if part.positions is None else part.positions).shape[1]
    return part.values.shape[-2] * part.values.shape[-1] // patch**2


def _moved(part: Part, device: torch.device) -> Part:
    values, positions, padding = (
        None if t is None else t.to(device) for t in (part.values, part.positions, part.padding)
    )
    assert values is not None
    return Part(part.key, values, positions, part.grid, padding)


# --------------------------------------------------------------------------- TerraTorch


def tmcodec_thinking_encoder(
    model: str = "mini-any2any-v1",
    think: Sequence[str] | str = ("LULC",),
    modalities: Sequence[str] | str | None = None,
    *,
    checkpoint: str | None = None,
    device: str = "auto",
    standardized: bool = True,
    pretrained: bool = True,
    **choices: Any,
) -> ThinkingEncoder:
    """Build a `ThinkingEncoder` as TerraTorch's factories ask for one.

    Parameters
    ----------
    model, checkpoint, device
        Of `tmcodec.load_generator`.
    think, modalities
        Modalities to generate, and those given.
    standardized
        As `ThinkingEncoder`'s; TerraTorch's data modules standardise.
    pretrained
        Only True: thoughts of an untrained generator would be noise.
    choices
        Further parameters of `ThinkingEncoder`.

    Raises
    ------
    TmcodecError
    """
    from tmcodec.generation.models import load_generator

    if not pretrained:
        raise GenerationError("a thinking encoder needs trained weights; leave pretrained at true")
    generator = load_generator(model, device, checkpoint=checkpoint)
    return ThinkingEncoder(generator, think, inputs=modalities, standardized=standardized, **choices)


def register() -> None:
    """Register `tmcodec_thinking_encoder` with TerraTorch's backbones; a second call does nothing.

    Raises
    ------
    MissingDependencyError
        If TerraTorch is not installed.
    """
    precision = torch.get_float32_matmul_precision()
    try:
        from terratorch.registry import TERRATORCH_BACKBONE_REGISTRY as BACKBONES
    except ImportError as err:
        raise MissingDependencyError(f"TerraTorch cannot be imported ({err})") from err
    finally:
        torch.set_float32_matmul_precision(precision)  # importing TerraTorch sets "medium"
    BACKBONES.register(tmcodec_thinking_encoder)


if "terratorch.registry" in sys.modules:
    register()
