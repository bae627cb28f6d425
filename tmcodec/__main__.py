"""``python -m tmcodec``."""

from tmcodec.cli import main

main()
