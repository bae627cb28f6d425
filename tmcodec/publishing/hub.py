"""Putting an exported folder on the Hugging Face Hub, when asked to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tmcodec.errors import MissingDependencyError, UploadError


def push_to_hub(folder: Path, repo: str) -> str:
    """Upload an exported folder to a model repository, which is made where there is none (private).

    ``HF_TOKEN``, ``HF_HOME``, ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` have the meaning that
    ``huggingface_hub`` gives them.

    Returns
    -------
    str
        Address of the commit.

    Raises
    ------
    MissingDependencyError
        If ``huggingface_hub`` is not installed.
    UploadError
        If there is no token, no network or no permission; the folder stays.
    """
    hub = _hub()
    kept = f"the files are in {folder}"
    if hub.constants.HF_HUB_OFFLINE:
        raise UploadError(f"HF_HUB_OFFLINE is set; unset it to push to {repo} ({kept})")
    if not hub.get_token():
        raise UploadError(f"no Hugging Face token; run `hf auth login` or set HF_TOKEN ({kept})")
    try:
        api = hub.HfApi()
        api.create_repo(repo, repo_type="model", private=True, exist_ok=True)
        done = api.upload_folder(
            repo_id=repo, folder_path=str(folder), commit_message=f"{folder.name} by tmcodec models export"
        )
    except Exception as err:  # network stacks differ in what they raise
        reason = next(iter(str(err).strip().splitlines()), "") or type(err).__name__
        raise UploadError(f"cannot push to {repo}: {reason}; check network and rights ({kept})") from err
    return str(done)


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.constants
    except ImportError as err:
        raise MissingDependencyError("pushing needs huggingface_hub: pip install 'tmcodec[hub]'") from err
    return huggingface_hub
