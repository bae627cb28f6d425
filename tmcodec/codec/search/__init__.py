"""Better tokens than the encoder's: looked for by decoding, and priced by what they take in the file."""

from tmcodec.codec.search.descent import default_effort, search

__all__ = ["default_effort", "search"]
