"""Tokenizers beside what one could use instead, at equal file size; needs the extra ``evaluate``."""
