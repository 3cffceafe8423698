"""`python -m flagshim`."""

from flagshim.cli import main

main()
