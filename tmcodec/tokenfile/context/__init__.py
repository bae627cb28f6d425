"""The context coder: tokens in fewer bits, because neighbours are alike. Integers only."""
