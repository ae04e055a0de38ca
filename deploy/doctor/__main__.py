"""`python -m deploy.doctor`."""

import sys

from deploy.doctor.command import main

if __name__ == "__main__":
    sys.exit(main())
