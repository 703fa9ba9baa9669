"""`python -m checkpointer`."""

import sys

from checkpointer.cli import main

if __name__ == "__main__":
    sys.exit(main())
