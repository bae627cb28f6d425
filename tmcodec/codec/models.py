"""Which tokenizers there are, and loading them by name. No torch until one is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tmcodec.errors import TokenizerNotFoundError
from tmcodec.modalities import MODALITIES

if TYPE_CHECKING:
    from tmcodec.codec.tokenizer import Tokenizer

WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


@dataclass(frozen=True)
class Model:
    """A tokenizer that can be loaded by name.

    Attributes
    ----------
    name, modality
        Its name, and the key of the modality table.
    path
        Weights file.
    """

    name: str
    modality: str
    path: Path

    @property
    def size(self) -> int:
        """Size of the weights file in bytes."""
        return self.path.stat().st_size


EMBEDDED = {
    f"mini-{m.lower()}-v1": Model(f"mini-{m.lower()}-v1", m, WEIGHTS / f"mini-{m.lower()}-v1.safetensors")
    for m in MODALITIES
}


def default_model(modality: str) -> str:
    """Return the name of the embedded tokenizer of a modality."""
    return f"mini-{modality.lower()}-v1"


def find_weights(name: str) -> Path:
    """Return the weights file of an embedded name or of a path.

    Raises
    ------
    TokenizerNotFoundError
        If `name` is neither.
    """
    if name in EMBEDDED:
        return EMBEDDED[name].path
    path = Path(name)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    known = ", ".join(EMBEDDED)
    raise TokenizerNotFoundError(
        f"no tokenizer {name!r}; pass --tokenizer with a .safetensors file or one of {known}"
    )


def load_tokenizer(name: str, device: str = "auto") -> Tokenizer:
    """Load a tokenizer by name or from a weights file.

    Parameters
    ----------
    name
        An embedded name such as ``"mini-s2l2a-v1"``, or the path of a ``.safetensors`` file.
    device
        ``"auto"``, ``"cpu"`` or ``"cuda"``.

    Raises
    ------
    TokenizerNotFoundError, WeightsError, DeviceError
    """
    path = find_weights(name)
    from tmcodec.codec.tokenizer import cached

    return cached(path, device)
