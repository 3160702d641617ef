"""`python -m fastdecode`: see cli/command.py."""

import sys

from .cli.command import command

if __name__ == "__main__":
    sys.exit(command())
