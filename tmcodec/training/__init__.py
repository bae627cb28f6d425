"""Training of the embedded tokenizers: data, recipes, loops. Nothing here runs at encode or decode."""
