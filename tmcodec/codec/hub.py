"""Fetching official checkpoints from the Hugging Face Hub, with errors that say how to go on."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

from tmcodec.codec.store import SOURCE_HASH, file_sha256
from tmcodec.codec.terramind_models import REVISION
from tmcodec.errors import DownloadError, MissingDependencyError


class HubFile(Protocol):
    """A file on the Hub, and the name that it gets here."""

    @property
    def name(self) -> str: ...
    @property
    def repo(self) -> str: ...
    @property
    def filename(self) -> str: ...
    @property
    def gated(self) -> bool: ...


def fetch(model: HubFile) -> Path:
    """Return the checkpoint in the Hub's cache, fetched first where it is not there.

    ``HF_HOME``, ``HF_HUB_OFFLINE``, ``HF_ENDPOINT`` and ``HF_TOKEN`` have the meaning that
    ``huggingface_hub`` gives them.

    Raises
    ------
    MissingDependencyError
        If ``huggingface_hub`` is not installed.
    DownloadError
        If the file cannot be had; one line that says how to go on offline.
    """
    hub = _hub()
    try:
        found = hub.hf_hub_download(repo_id=model.repo, filename=model.filename, revision=REVISION)
    except Exception as err:  # network stacks differ in what they raise
        raise DownloadError(f"{_reason(hub, model, err)}; {_way_out(model)}") from err
    return Path(found)


def fetch_with_source(model: HubFile) -> tuple[Path, dict[str, str]]:
    """Return what `fetch` returns, and where it is from, for the header of the imported file.

    Raises
    ------
    MissingDependencyError, DownloadError
        As `fetch`; and if the cached file is not the one that the Hub has.
    """
    path = fetch(model)
    origin = {"source_repo": model.repo, "source_revision": commit_of(path)}
    return path, {**origin, **_checked(path, model)}


def _checked(path: Path, model: HubFile) -> dict[str, str]:
    """Return the SHA-256 of a file in the Hub's cache, for its header; nothing where the Hub names none.

    ``huggingface_hub`` calls a large file by the SHA-256 that the Hub has of it, and does not check that.
    """
    file = path.resolve()
    if re.fullmatch("[0-9a-f]{64}", file.name) is None:
        return {}
    if file_sha256(file) != file.name:
        raise DownloadError(
            f"{file}: damaged, its SHA-256 is not the one that the Hub named; "
            f"delete it and run `tmcodec models pull {model.name}`"
        )
    return {SOURCE_HASH: file.name}


def cached(model: HubFile) -> Path | None:
    """Return the checkpoint if the Hub's cache has it, without any network."""
    try:
        found = _hub().try_to_load_from_cache(model.repo, model.filename, revision=REVISION)
    except MissingDependencyError:
        return None
    return Path(found) if isinstance(found, str) else None


def commit_of(path: Path) -> str:
    """Return the commit of a file in the Hub's cache, ``.../snapshots/<commit>/...``, or ``""``."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts[:-1] else ""


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as err:
        raise MissingDependencyError(
            "fetching weights needs huggingface_hub: pip install 'tmcodec[hub]', or pass checkpoint=PATH"
        ) from err
    return huggingface_hub


def _reason(hub: Any, model: HubFile, err: Exception) -> str:
    """Return what went wrong, in a few words."""
    errors = hub.errors
    where = f"{model.repo}/{model.filename}"
    if isinstance(err, errors.GatedRepoError):
        return f"{model.repo} is gated: ask for access on its page and set HF_TOKEN"
    if isinstance(err, errors.RepositoryNotFoundError):
        hint = " or needs access (set HF_TOKEN)" if model.gated else ""
        return f"{model.repo} was not found on the Hub{hint}"
    if isinstance(err, errors.RevisionNotFoundError):
        return f"{model.repo} has no revision {REVISION} on the Hub"
    if isinstance(err, errors.OfflineModeIsEnabled) or hub.constants.HF_HUB_OFFLINE:
        return f"{where} is not in the cache and HF_HUB_OFFLINE forbids to fetch it"
    if isinstance(err, errors.LocalEntryNotFoundError):  # the Hub was not reached: its cause says why
        return f"cannot fetch {where} ({_words(err.__cause__ or err)})"
    if isinstance(err, errors.EntryNotFoundError):
        return f"{model.repo} has no file {model.filename} on the Hub"
    return f"cannot fetch {where} ({_words(err)})"


def _words(err: BaseException) -> str:
    """Return the Hub's status, or the first line of what an exception says."""
    status = getattr(getattr(err, "response", None), "status_code", None)
    if status == 401:
        return "the Hub refuses the token, that of HF_TOKEN or of an earlier login"
    if status is not None:
        return f"the Hub answers with status {status}"
    return next(iter(str(err).strip().splitlines()), "").rstrip(".") or type(err).__name__


def _way_out(model: HubFile) -> str:
    file = model.filename
    return f"to go on offline, copy {file} here and run `tmcodec models import {file} --as {model.name}`"
