"""Networks of TerraMind's layout, with the official checkpoints' parameter names. No torch in `config`."""
