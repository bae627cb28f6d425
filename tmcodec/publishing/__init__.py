"""Publishing a trained tokenizer: weights, model card, STAC item and checksums in one folder."""
