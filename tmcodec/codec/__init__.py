"""The codec: tokenizers, token files and rasters put together."""
