"""The command line: ``tmcodec encode|decode|info|verify|models|compare|stack|demo``."""

from tmcodec.cli.group import cli, main

__all__ = ["cli", "main"]
