"""Pre-training of any-to-any transformers on token files: corpus, budgets, batches, module, command line."""
