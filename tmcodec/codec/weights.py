"""Weights files of the small tokenizers: safetensors with the configuration in the header.

The identity of a tokenizer is the SHA-256 of its content (configuration and tensors in a fixed
order), not of the file, so that a file rewritten by another tool, or one that leaves out what an embedded
tokenizer has, too (`save_difference`), keeps its tokens valid.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tmcodec.codec.models import EMBEDDED, find_weights
from tmcodec.codec.store import BASE, BASE_HASH
from tmcodec.errors import TargetWriteError, TmcodecError, TokenizerNotFoundError, WeightsError
from tmcodec.fsq.levels import check_levels
from tmcodec.modalities import get_modality
from tmcodec.networks.compand import KINDS
from tmcodec.networks.mini import MiniConfig, MiniNet
from tmcodec.texts import listed, shown
from tmcodec.tokenfile.metadata import MAX_NAME

FORMAT = "tmcodec-mini-1"
# Far above every published size, far below what would hurt: a header cannot make us allocate.
MAX_DIM, MAX_BLOCKS = 4096, 64


def content_hash(config: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """Return the SHA-256 (32 bytes) of a tokenizer.

    Hashed are the configuration as JSON (sorted keys, no spaces) and, in order of name, each tensor's
    name, dtype, shape and little-endian bytes; text parts end in a zero byte.
    """
    digest = hashlib.sha256(config_bytes(config))
    update_with_tensors(digest, tensors)
    return digest.digest()


def config_bytes(config: dict[str, Any]) -> bytes:
    """Return a configuration as content hashes see it."""
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode() + b"\0"


def update_with_tensors(digest: Any, tensors: dict[str, Tensor]) -> None:
    """Feed tensors to a hashlib object in order of name, as `content_hash` says."""
    for name in sorted(tensors):
        t = tensors[name].contiguous()
        shape = "x".join(map(str, t.shape))
        digest.update(f"{name}\0{str(t.dtype).removeprefix('torch.')}\0{shape}\0".encode())
        digest.update(t.flatten().view(torch.uint8).numpy())


def as_stored(net: MiniNet) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and tensors as a weights file holds them: plain JSON types, half precision."""
    tensors = {k: v.detach().cpu().half().contiguous() for k, v in net.state_dict().items()}
    return json.loads(json.dumps(net.cfg.to_dict())), tensors


def write_tensors(path: Path, tensors: dict[str, Tensor], notes: dict[str, str]) -> None:
    """Write a safetensors file.

    Raises
    ------
    TargetWriteError
        If the disk is full, or takes no more for another reason.
    """
    try:
        save_file(tensors, path, metadata=notes)
    except SafetensorError as err:
        raise TargetWriteError(
            f"{path.parent}: the weights were not written ({err}); free some space, or choose another folder"
        ) from err


def save_weights(path: Path, net: MiniNet, name: str, notes: dict[str, str]) -> bytes:
    """Write `net` in half precision to `path`; return its content hash."""
    config, tensors = as_stored(net)
    meta = {"format": FORMAT, "name": name, "config": json.dumps(config, sort_keys=True), **notes}
    write_tensors(path, tensors, meta)
    return content_hash(config, tensors)


def save_difference(path: Path, net: MiniNet, name: str, base: str, notes: dict[str, str]) -> bytes:
    """Write the tensors of `net` that the embedded tokenizer `base` has not; return the content hash of all.

    The header names the base and its content hash (``base``, ``base_sha256``), and `load_weights` takes the
    other tensors from there.
    """
    config, tensors = as_stored(net)
    _, raw, known = read_weights(find_weights(base), FORMAT, "weights of a tmcodec tokenizer")
    moved = {k: v for k, v in tensors.items() if k not in known or not torch.equal(v, known[k])}
    meta = {"format": FORMAT, "name": name, "config": json.dumps(config, sort_keys=True),
            BASE: base, BASE_HASH: content_hash(raw, known).hex(), **notes}  # fmt: skip
    write_tensors(path, moved, meta)
    return content_hash(config, tensors)


def _complete(meta: dict[str, str], stored: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return all tensors of a file, those of its base included where it has one."""
    if BASE not in meta:
        return stored
    if meta[BASE] not in EMBEDDED:
        raise WeightsError(f"{path}: its base, {shown(meta[BASE])}, is not embedded in this tmcodec")
    notes, raw, known = read_weights(EMBEDDED[meta[BASE]].path, FORMAT, "weights of a tmcodec tokenizer")
    if BASE in notes or content_hash(raw, known).hex() != meta.get(BASE_HASH):
        raise WeightsError(f"{path}: it is the difference to other weights than {meta[BASE]} has here")
    return {**known, **stored}


def check_config(raw: Any, path: Path) -> MiniConfig:
    """Validate a configuration read from `path` before anything is built from it."""
    try:
        cfg = MiniConfig.from_dict(raw)
        wrong = [f.name for f in fields(cfg) if not _is_a(getattr(cfg, f.name), str(f.type))]
        if wrong:
            raise TypeError(f"{', '.join(wrong)}: another kind of value")
        sizes = [cfg.dim, cfg.channels, cfg.refine, cfg.denoiser_dim, *cfg.levels]
        depths = [cfg.encoder_blocks, cfg.decoder_blocks, cfg.denoiser_blocks, cfg.kernel]
        sane = all(0 < n <= MAX_DIM for n in sizes) and all(0 <= n <= MAX_BLOCKS for n in depths)
    except (TypeError, AttributeError, RecursionError) as err:
        raise WeightsError(f"{path}: the configuration in its header is malformed ({err})") from err
    basis_shape = (cfg.components, cfg.channels) if cfg.residual_basis else (0, 0)
    sane &= 0 <= cfg.components <= cfg.channels
    sane &= all(len(row) == basis_shape[1] for row in cfg.residual_basis)
    sane &= len(cfg.residual_basis) == basis_shape[0]
    if not sane or cfg.kernel % 2 == 0 or cfg.kind not in ("patch", "height"):
        raise WeightsError(f"{path}: the configuration in its header has sizes out of range")
    _check_meaning(cfg, path)
    return cfg


def _is_a(value: object, kind: str) -> bool:
    """Tell whether a value is of a field's kind, as `MiniConfig` writes it; integers are numbers, too."""
    if kind.startswith("tuple["):
        inner = kind.removeprefix("tuple[").removesuffix(", ...]")
        return isinstance(value, tuple) and all(_is_a(item, inner) for item in value)
    if kind == "float":
        return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
    return type(value).__name__ == kind


def _check_meaning(cfg: MiniConfig, path: Path) -> None:
    """Refuse a configuration whose sizes are possible, but not for its modality."""
    try:
        row = get_modality(cfg.modality)
        check_levels(cfg.levels)
    except (TmcodecError, ValueError, TypeError) as err:
        raise WeightsError(f"{path}: {err}") from err
    if cfg.compand not in KINDS or not (math.isfinite(cfg.origin) and 0 < cfg.knee < math.inf):
        raise WeightsError(
            f"{path}: companding {cfg.compand!r} with origin {cfg.origin} and knee {cfg.knee}; choose one of "
            f"{', '.join(KINDS)}, a finite origin and a knee above 0"
        )
    channels = len(row.classes if row.categorical else row.bands)
    if cfg.channels != channels:
        raise WeightsError(f"{path}: channels is {cfg.channels}; {row.name} has {channels}")
    for name in ("mean", "std"):
        values = getattr(cfg, name)
        if len(values) not in (0, channels) or not all(map(math.isfinite, values)):
            raise WeightsError(f"{path}: {name} is {list(values)}; {row.name} needs {channels} numbers")
    if any(value <= 0 for value in cfg.std):
        raise WeightsError(f"{path}: std is {list(cfg.std)}; all must be above 0")
    residual = (*cfg.residual_std, *(v for row in cfg.residual_basis for v in row))
    if len(cfg.residual_std) not in (0, channels) or not all(map(math.isfinite, residual)):
        raise WeightsError(f"{path}: residual_std or residual_basis are not {channels} finite numbers")


def _check_shapes(cfg: MiniConfig, tensors: dict[str, Tensor], path: Path) -> None:
    """Compare names and shapes with the architecture; list what differs."""
    with torch.device("meta"):
        expected = {k: tuple(v.shape) for k, v in MiniNet(cfg).state_dict().items()}
    check_shapes(expected, {k: tuple(v.shape) for k, v in tensors.items()}, path)


def check_shapes(expected: dict[str, tuple[int, ...]], found: dict[str, tuple[int, ...]], path: Path) -> None:
    """Raise WeightsError with the missing, unexpected and misshapen keys, in groups."""
    groups = {
        "missing": sorted(expected.keys() - found.keys()),
        "unexpected": sorted(found.keys() - expected.keys()),
        "misshapen": sorted(k for k in expected.keys() & found.keys() if expected[k] != found[k]),
    }
    wrong = "; ".join(f"{what}: {_few(names)}" for what, names in groups.items() if names)
    if wrong:
        raise WeightsError(f"{path}: tensors do not fit the architecture ({wrong})")


def _few(names: list[str]) -> str:
    """Return the first five names and how many more there are."""
    return listed(names, most=5)


def read_weights(path: Path, form: str, what: str) -> tuple[dict[str, str], Any, dict[str, Tensor]]:
    """Read a safetensors file of ours: the header's strings, the configuration, not yet checked, the tensors.

    Parameters
    ----------
    path
        The file.
    form, what
        The format that its header must name, and what that is, for messages.

    Raises
    ------
    WeightsError
        If it is something else, or damaged.
    """
    try:
        with safe_open(path, framework="pt") as f:
            meta = f.metadata() or {}
            tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118  (no mapping)
    except (SafetensorError, OSError) as err:
        raise WeightsError(
            f"{path}: not a readable safetensors file ({err}); fetch or import it again"
        ) from err
    if meta.get("format") != form:
        raise WeightsError(f"{path}: not {what} (format {shown(meta.get('format'))})")
    try:
        raw = json.loads(meta["config"])
    except (KeyError, ValueError, RecursionError) as err:
        raise WeightsError(f"{path}: its header has no readable configuration") from err
    return meta, raw, tensors


def check_finite(tensors: dict[str, Tensor], path: Path) -> None:
    """Raise WeightsError where a tensor holds NaN or infinity."""
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not _finite(v)]
    if broken:
        raise WeightsError(f"{path}: not all numbers are finite in {_few(broken)}; its training has diverged")


def _finite(values: Tensor) -> bool:
    """Tell whether all numbers are finite. One that is not spoils the sum, and a sum is much faster."""
    return bool(torch.isfinite(values.float().sum())) or bool(torch.isfinite(values).all())


def load_weights(path: Path) -> tuple[MiniNet, str, bytes, dict[str, str]]:
    """Read a weights file.

    Returns
    -------
    net, name, sha256, metadata
        The network in float32 and eval mode; the name and content hash of the tokenizer; the
        header's strings.

    Raises
    ------
    TokenizerNotFoundError
        If there is no such file.
    WeightsError
        If it is not a weights file of this library, or is damaged.
    """
    if not path.is_file():
        raise TokenizerNotFoundError(f"no weights file {path}; `tmcodec models list` shows what is embedded")
    meta, raw, stored = read_weights(path, FORMAT, "weights of a tmcodec tokenizer")
    cfg, name = check_config(raw, path), meta.get("name", path.stem)
    if not 0 < len(name.encode(errors="replace")) <= MAX_NAME:
        raise WeightsError(f"{path}: its name, {shown(name)}, has not the 1 to {MAX_NAME} bytes that fit")
    tensors = _complete(meta, stored, path)
    _check_shapes(cfg, tensors, path)
    check_finite(tensors, path)
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten, and nobody asked for it
        net = MiniNet(cfg)
    net.load_state_dict({k: v.float() for k, v in tensors.items()})
    return net.eval(), name, content_hash(raw, tensors), meta
