"""TerraMind's any-to-any transformer: configuration, layers, embeddings, model."""
