"""``python -m vitdomains``: the command ``vitdomains``."""

import sys

from vitdomains.cli import main

if __name__ == "__main__":
    sys.exit(main())
