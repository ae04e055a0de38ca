"""`python -m deploy.fleet`."""

import sys

from deploy.fleet.command import main

if __name__ == "__main__":
    sys.exit(main())
