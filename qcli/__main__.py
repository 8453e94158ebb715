"""`python -m qcli`."""

import sys

from qcli.cli import main

if __name__ == "__main__":
    sys.exit(main())
