"""What ``tmcodec models`` says and does of any-to-any transformers and their vocabularies. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tmcodec.codec.store import GENERATOR_FORMAT, WeightsHeader, read_stored, stored_path
from tmcodec.codec.terramind_models import OFFICIAL
from tmcodec.errors import TokenizerNotFoundError
from tmcodec.generation.models import EMBEDDED_GENERATORS, OFFICIAL_GENERATORS
from tmcodec.generation.vocabulary import VOCABULARIES, vocabulary_path

if TYPE_CHECKING:
    from tmcodec.codec.hub import HubFile

KIND = "any-to-any"


def generator_facts() -> list[dict[str, Any]]:
    """Return what the list says of all generators and vocabularies, without reading their tensors."""
    embedded = [
        _file_facts(name, KIND, path, "embedded", "missing or damaged")
        for name, path in EMBEDDED_GENERATORS.items()
    ]
    official = [
        _hub_facts(generator, _file_facts(name, KIND, stored_path(name), "imported", ""))
        for name, generator in OFFICIAL_GENERATORS.items()
    ]
    words = [
        _hub_facts(vocabulary, _words_facts(name, vocabulary.modality))
        for name, vocabulary in VOCABULARIES.items()
    ]
    return [*embedded, *official, *words]


def _file_facts(name: str, kind: str, path: Path, where: str, otherwise: str) -> dict[str, Any]:
    header = read_stored(path, GENERATOR_FORMAT) if path.is_file() else None
    if header is None:
        return {"name": name, "modality": kind, "usable": False, "where": otherwise}
    return {**header_facts(name, header), "where": where}


def _words_facts(name: str, modality: str) -> dict[str, Any]:
    where = "imported" if vocabulary_path(name).is_file() else ""
    return {"name": name, "modality": modality, "usable": False, "where": where}


def _hub_facts(official: HubFile, facts: dict[str, Any]) -> dict[str, Any]:
    """Fill in where to get what is not here."""
    if facts["where"]:
        return facts
    from tmcodec.codec.hub import cached

    where = "cached" if cached(official) is not None else "gated" if official.gated else "obtainable"
    return {**facts, "where": where, "repository": official.repo}


def header_facts(name: str, header: WeightsHeader) -> dict[str, Any]:
    """Return what the list says of a weights file."""
    return {
        "name": name,
        "modality": KIND,
        "usable": True,
        "parameters": header.parameters,
        "bytes": header.size,
        "sha256": header.sha256,
        "path": str(header.path),
    }


def generator_header(name: str) -> WeightsHeader | None:
    """Return the header of a generator's file by its name or path; None where it is no generator's.

    Raises
    ------
    TokenizerNotFoundError
        If it is a generator's name and the file is not here.
    """
    from tmcodec.generation.models import find_generator

    if name in EMBEDDED_GENERATORS or name in OFFICIAL_GENERATORS:
        return read_stored(find_generator(name), GENERATOR_FORMAT)
    path = Path(name)
    return read_stored(path, GENERATOR_FORMAT) if path.is_file() else None


def words_facts(name: str) -> dict[str, Any] | None:
    """Return what is known about a stored vocabulary; None where `name` is no vocabulary's.

    Raises
    ------
    TokenizerNotFoundError
        If it is not here.
    """
    if name not in VOCABULARIES:
        return None
    path = vocabulary_path(name)
    if not path.is_file():
        raise TokenizerNotFoundError(
            f"{name} is not on this computer; run `tmcodec models pull {name}` first"
        )
    return {**_stored_words(name, path), "modality": VOCABULARIES[name].modality}


def pull_other(name: str) -> dict[str, Any] | None:
    """Fetch and import a generator or vocabulary; None where `name` is a tokenizer's.

    Raises
    ------
    TokenizerNotFoundError
        If `name` is official nowhere.
    DownloadError, MissingDependencyError, WeightsError, VocabularyError
    """
    from tmcodec.generation.models import pull_generator, pull_vocabulary

    if name in VOCABULARIES:
        return _stored_words(name, pull_vocabulary(name))
    if name in OFFICIAL_GENERATORS:
        return _stored(pull_generator(name))
    if name not in OFFICIAL:
        known = ", ".join((*OFFICIAL, *OFFICIAL_GENERATORS, *VOCABULARIES))
        raise TokenizerNotFoundError(
            f"no official tokenizer, generator or vocabulary {name!r}; choose one of {known}"
        )
    return None


def import_other(path: Path, name: str | None) -> dict[str, Any] | None:
    """Import a generator or vocabulary; None where neither the name nor the file is one's.

    Raises
    ------
    MissingDependencyError, WeightsError, VocabularyError
    """
    from tmcodec.generation.models import generator_of_file, import_generator_file, import_vocabulary

    if name in VOCABULARIES:
        return _stored_words(name, import_vocabulary(path, VOCABULARIES[name]))
    official = None if name is not None else generator_of_file(path)
    chosen = name if official is None else official.name
    if chosen in OFFICIAL_GENERATORS:
        return _stored(import_generator_file(path, chosen))
    return None


def _stored(found: Any) -> dict[str, Any]:
    return {"name": found.name, "bytes": found.path.stat().st_size, "sha256": found.sha256.hex(),
            "path": str(found.path)}  # fmt: skip


def _stored_words(name: str, path: Path) -> dict[str, Any]:
    import hashlib

    content = path.read_bytes()
    return {"name": name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(),
            "path": str(path)}  # fmt: skip
