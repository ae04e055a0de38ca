"""`python -m deploy.study`."""

import sys

from deploy.study.runner import main

if __name__ == "__main__":
    sys.exit(main())
