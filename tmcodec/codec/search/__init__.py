"""Better tokens than the encoder's: looked for by decoding, and priced by what they take in the file."""

from tmcodec.codec.search.descent import count_bits, default_effort, search

__all__ = ["count_bits", "default_effort", "search"]
