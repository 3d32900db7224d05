"""`python -m howlow`: the same as `howlow`."""

from howlow.cli import main

main()
