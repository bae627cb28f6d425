"""Any-to-any generation: generators, sampling, token files in and out."""
