"""`python -m deploy.report`."""

import sys

from deploy.report.write import main

if __name__ == "__main__":
    sys.exit(main())
