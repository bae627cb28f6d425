"""Token files (``.tmc``): bytes and integers, no networks. The format is ``docs/format.md``."""

from tmcodec.tokenfile.balance import Balance
from tmcodec.tokenfile.chunks import RawChunk
from tmcodec.tokenfile.coders import Coder, coders, get_coder, register_coder, unregister_coder
from tmcodec.tokenfile.geometry import TokenGrid, TokenWindow
from tmcodec.tokenfile.layer import MAX_PIXELS, Layer, LayerWindow
from tmcodec.tokenfile.metadata import FileMeta, LayerMeta
from tmcodec.tokenfile.prelude import MAX_HEADER, VERSION, VERSIONS
from tmcodec.tokenfile.reader import TokenFile
from tmcodec.tokenfile.stack import stack
from tmcodec.tokenfile.verify import Problem, VerifyReport, verify
from tmcodec.tokenfile.writer import TokenFileWriter

open = TokenFile.open

__all__ = [
    "MAX_HEADER",
    "MAX_PIXELS",
    "VERSION",
    "VERSIONS",
    "Balance",
    "Coder",
    "FileMeta",
    "Layer",
    "LayerMeta",
    "LayerWindow",
    "Problem",
    "RawChunk",
    "TokenFile",
    "TokenFileWriter",
    "TokenGrid",
    "TokenWindow",
    "VerifyReport",
    "coders",
    "get_coder",
    "open",
    "register_coder",
    "stack",
    "unregister_coder",
    "verify",
]
