"""The command line: ``dd2 …``, one file a command."""

from dd2_lightning.cli.main import main

__all__ = ["main"]
