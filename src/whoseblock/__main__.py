"""``python -m whoseblock``."""

from whoseblock.cli import main

main()
