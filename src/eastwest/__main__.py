"""`python -m eastwest`: how a supervisor starts a role with the interpreter that it runs on itself."""

import sys

from eastwest.cli import main

if __name__ == "__main__":
    sys.exit(main())
