"""Every exception that tmcodec raises on purpose.

One root, one class for each way to fail. The classes also inherit the builtin
that a generic handler would expect (``OSError``, ``ValueError``, ``KeyError``).
Messages are one line and end with what to do about it.
"""

from __future__ import annotations


class TmcodecError(Exception):
    """Root of all errors of this package."""


# --------------------------------------------------------------------------- token files


class TokenFileError(TmcodecError):
    """A token file cannot be used; the subclasses say why."""


class SourceError(TokenFileError, OSError):
    """The source of a token file cannot be read at random places."""


class NotATokenFileError(TokenFileError, ValueError):
    """The first bytes are not those of a token file."""


class LineEndingError(NotATokenFileError):
    """The file went through a text-mode transfer that rewrote its line endings."""


class UnsupportedVersionError(TokenFileError, ValueError):
    """The file has a major format version that this reader does not know."""


class UnknownSectionError(TokenFileError, ValueError):
    """The header has a mandatory section that this reader does not know."""


class TruncatedFileError(TokenFileError, OSError):
    """The file ends before the length that its header states."""


class TrailingDataError(TokenFileError, OSError):
    """The file goes on after the length that its header states."""


class HeaderChecksumError(TokenFileError, OSError):
    """The header's CRC32C differs from the stored one."""


class MetadataError(TokenFileError, ValueError):
    """A header field is malformed, missing, repeated or out of its range."""


class ChunkError(TokenFileError, ValueError):
    """A chunk cannot be decoded; the subclasses say why."""


class ChunkChecksumError(ChunkError, OSError):
    """A chunk's CRC32C differs from the stored one."""


class UnknownCoderError(ChunkError):
    """A chunk names a coder that is not registered, or trained tables of one that are not installed."""


class TokenRangeError(ChunkError):
    """A token lies outside its codebook."""


class LimitExceededError(TokenFileError, ValueError):
    """Decoding would take more memory or pixels than the caller allowed."""


class LayerNotFoundError(TokenFileError, KeyError):
    """The file has no layer of that name, or no such time step."""

    def __str__(self) -> str:  # KeyError would print the repr of the message
        return str(self.args[0]) if self.args else ""


class StackError(TokenFileError, ValueError):
    """Token files do not fit together into one stack."""


# --------------------------------------------------------------------------- tokenizers


class TokenizerError(TmcodecError):
    """A tokenizer cannot be used; the subclasses say why."""


class TokenizerNotFoundError(TokenizerError, KeyError):
    """No tokenizer has that name, and no file that path."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class WeightsError(TokenizerError, ValueError):
    """A weights file is damaged or does not belong to the architecture it names."""


class TokenizerMismatchError(TokenizerError, ValueError):
    """The tokens were made with other weights than those at hand."""


class ShapeError(TokenizerError, ValueError):
    """An array has not the shape that a tokenizer takes."""


class DeviceError(TokenizerError, ValueError):
    """The requested device is not there."""


class PrecisionError(TokenizerError, ValueError):
    """The precision is unknown."""


class SamplerError(TokenizerError, ValueError):
    """The sampler is unknown, or cannot do what was asked for."""


class SearchError(TokenizerError, ValueError):
    """The search for better tokens cannot run as it was asked for."""


class UploadError(TokenizerError, OSError):
    """Weights cannot be published: no network, no access, or offline mode."""


class DownloadError(TokenizerError, OSError):
    """Weights cannot be fetched: no network, no access, or offline mode and not in the cache."""


# --------------------------------------------------------------------------- rasters


class RasterError(TmcodecError):
    """A raster cannot be used; the subclasses say why."""


class RasterOpenError(RasterError, OSError):
    """The raster cannot be opened or read."""


class RasterWriteError(RasterError, OSError):
    """The raster cannot be written."""


class ModalityError(RasterError, ValueError):
    """The modality is unknown, or the raster does not tell which one it is."""


class BandError(RasterError, ValueError):
    """The raster has not the bands that the modality needs."""


class OffsetUnknownError(RasterError, ValueError):
    """The metadata does not say whether Sentinel-2's radiometric offset is in the data."""


class UnitsError(RasterError, ValueError):
    """The values cannot be in the units that the modality expects."""


class WindowError(RasterError, ValueError):
    """A window is empty or lies outside the raster."""


class SizeMismatchError(RasterError, ValueError):
    """Two rasters to compare have not the same size."""


class TargetExistsError(TmcodecError, FileExistsError):
    """The target exists and overwriting was not asked for."""


class TargetFolderError(TmcodecError, FileNotFoundError):
    """The folder that the target should lie in does not exist."""


class TargetNameError(TmcodecError, ValueError):
    """The target is the source, no file at all, or its suffix says something else than what is written."""


class TargetWriteError(TmcodecError, OSError):
    """The target takes nothing, or took less than there was to write."""


class BackendError(TmcodecError, RuntimeError):
    """The kernels asked for are unknown, or cannot run here."""


class MissingDependencyError(TmcodecError, ImportError):
    """An optional package is needed and not installed."""


# --------------------------------------------------------------------------- training


class ConfigError(TmcodecError, ValueError):
    """A training configuration has an unknown key, a value of the wrong kind, or parts that do not fit."""


class CorpusError(TmcodecError, ValueError):
    """Training data are missing, empty, damaged or of the wrong kind; the message names the file."""


# --------------------------------------------------------------------------- generation


class GenerationError(TmcodecError, ValueError):
    """What was asked of a generator cannot be done; the subclasses say why where they can."""


class ConditionError(GenerationError):
    """An input is no condition that the generator knows, or has the wrong form."""


class TargetError(GenerationError):
    """The generator cannot make that target."""


class GridMismatchError(GenerationError):
    """Inputs do not lie on the same pixels: other footprints, resolutions or token grids."""


class VocabularyError(GenerationError):
    """Coordinates or a caption were given, and the generator has no vocabulary for them."""


# --------------------------------------------------------------------------- evaluation


class EvaluationError(TmcodecError, ValueError):
    """An evaluation cannot be made: unknown baselines, tokenizers of two modalities, unusable rasters."""
