"""What a caller asks of the decoding loop, checked, and turned into a plan for each target."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

from tmcodec.errors import GenerationError, TargetError
from tmcodec.generation.decoding import Plan
from tmcodec.generation.guidance import check_guidance, check_trust
from tmcodec.generation.means import CodeMeans, code_means
from tmcodec.generation.sampling import Sampling
from tmcodec.generation.schedules import token_schedule
from tmcodec.modalities import get_modality
from tmcodec.networks.generator.config import SEQUENCES, GeneratorConfig, ModalitySpec
from tmcodec.texts import shown

CHAINING = ("chained", "independent")
MAX_SAMPLES = 64
DECODING_STEPS = 8
"""Default decoding steps. TerraTorch's is 1."""
TOP_P = 0.8
"""Default share of the nucleus, TerraTorch's."""


def condition_name(name: str) -> str:
    """Return the name under which a condition or target is known, however it is written."""
    return name.lower() if name.lower() in SEQUENCES else name.upper()


@dataclass(frozen=True)
class Settings:
    """How to generate; the parameters are those of `tmcodec.generation.generate.generate`.

    Raises
    ------
    GenerationError
        If a name is unknown or a number out of its range.
    """

    order: str = "chained"
    schedule: str = "nearest"
    token_schedule: str | None = None
    decoding_steps: int | Mapping[str, int] | Sequence[int] = DECODING_STEPS
    temperature: float = 1.0
    top_p: float | None = TOP_P
    top_k: int | None = None
    filtering: str = "tempered"
    guidance: float | Mapping[str, float] | None = None
    samples: int = 1
    choice: str = "draw"
    trust: float | None = None

    def __post_init__(self) -> None:
        if self.order not in CHAINING:
            raise GenerationError(f"unknown order {self.order!r}; choose one of {', '.join(CHAINING)}")
        if not isinstance(self.samples, Integral) or not 1 <= self.samples <= MAX_SAMPLES:
            raise GenerationError(f"{shown(self.samples)} samples; give 1 to {MAX_SAMPLES}")
        token_schedule(self.token_schedule, self.schedule, 1, 1)  # refuses unknown names
        check_trust(self.trust, self.guidance)
        self.sampling  # noqa: B018  (refuses what is out of range)

    @property
    def chained(self) -> bool:
        """Whether each target is a condition of the next."""
        return self.order == "chained"

    @property
    def sampling(self) -> Sampling:
        """Temperature and filters."""
        return Sampling(self.temperature, self.top_k, self.top_p, self.filtering, self.choice)

    def plans(
        self,
        cfg: GeneratorConfig,
        targets: Sequence[str],
        conditions: Sequence[str],
        none: bool = False,
        numbers: Container[str] = (),
        trust: float = 1.0,
    ) -> list[Plan]:
        """Return a plan for each image target.

        Parameters
        ----------
        cfg
            Of the network.
        targets, conditions
            Names of what to make and of what is given.
        none
            Whether there may be no target.
        numbers
            Modalities whose tokens are numbers.
        trust
            The generator's own, where none is asked for.

        Raises
        ------
        ModalityError
            If a target is no modality.
        TargetError
            If the network has no such target, there is none, or it is named twice.
        GenerationError
            If steps are out of range or guidance names something else.
        """
        specs = [target_spec(cfg, name) for name in targets]
        names = [spec.modality for spec in specs]
        if not (names or none) or len(set(names)) < len(names):
            raise TargetError(f"targets {', '.join(names) or 'none'}; name each once, one at least")
        guidance = self._guidance()
        check_guidance(guidance, [*conditions, *names])
        steps = self._steps(names)
        for count in steps:
            token_schedule(self.token_schedule, self.schedule, 1, count)
        return [
            Plan(
                spec, count, self.schedule, self.token_schedule, self.sampling, guidance,
                trust if self.trust is None else self.trust,
                self._codes(spec, numbers) if self.choice == "mean" else None,
                self._codes(spec, numbers) if self.schedule == "nearest" else None,
            )
            for spec, count in zip(specs, steps, strict=True)
        ]  # fmt: skip

    def check_drawn(self, plans: Sequence[Plan]) -> None:
        """Refuse several samples of what has one answer: they would be equal, and their spread zero.

        Raises
        ------
        GenerationError
        """
        if self.samples > 1 and plans and not any(plan.drawn for plan in plans):
            raise GenerationError(
                f"{self.samples} samples would be equal, since nothing is drawn; draw tokens, take "
                "several decoding steps in random order, or ask for one sample"
            )

    def _guidance(self) -> float | Mapping[str, float] | None:
        """Return the weights by the names that conditions have: modalities in capitals."""
        if not isinstance(self.guidance, Mapping):
            return self.guidance
        return {condition_name(name): weight for name, weight in self.guidance.items()}

    def _codes(self, spec: ModalitySpec, numbers: Container[str]) -> CodeMeans | None:
        """Return the codes of a target's tokens; None of words.

        Raises
        ------
        GenerationError
            If its tokens have none.
        """
        if spec.kind != "tokens":
            return None
        levels = spec.levels or get_modality(spec.modality).levels
        if math.prod(levels) != spec.vocabulary:
            raise GenerationError(
                f"{spec.modality} has {spec.vocabulary} tokens without codes; draw them, by schedule roar or "
                "maskgit"
            )
        return code_means(tuple(levels), spec.modality in numbers)

    def _steps(self, names: list[str]) -> list[int]:
        """Return the decoding steps of each target."""
        steps = self.decoding_steps
        if isinstance(steps, int | Integral):  # NumPy's, too
            return [int(steps)] * len(names)
        if isinstance(steps, Mapping):
            steps = {condition_name(name): count for name, count in steps.items()}
            strange = sorted(set(steps) - set(names))
            if strange:
                raise GenerationError(f"decoding_steps names {', '.join(strange)}, which is no target here")
            return [steps.get(name, DECODING_STEPS) for name in names]
        if isinstance(steps, str) or not hasattr(steps, "__len__"):
            raise GenerationError(f"decoding_steps {shown(steps)}; give a number, one a target, or by name")
        if len(steps) != len(names):
            raise GenerationError(f"{len(steps)} decoding_steps for {len(names)} targets; give one each")
        return list(steps)


def target_spec(cfg: GeneratorConfig, name: str) -> ModalitySpec:
    """Return how a target comes out of the network.

    Raises
    ------
    ModalityError, TargetError
    """
    sequence = name.lower() in SEQUENCES
    modality = name.lower() if sequence else get_modality(name).name
    spec = cfg.find(modality, "sequence" if sequence else "tokens")
    if spec is None or not spec.decoder:
        made = [s.modality for s in cfg.modalities if s.decoder]
        raise TargetError(f"the generator does not make {modality}; it makes {', '.join(made)}")
    return spec
