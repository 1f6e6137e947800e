"""`python -m tokenmux.cli` is the command `tokenmux`."""

from tokenmux.cli.app import main

main()
