"""`python -m cleanup.engine`: the engine without a site."""

import sys

from cleanup.engine.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
