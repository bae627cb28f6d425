"""Networks of the tokenizers: tensors in, tensors out."""
