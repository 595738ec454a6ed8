"""The program with a shorter patience for its store, so that tests of dead links take seconds.

python -m tests.boot.program SECONDS ARGUMENT...
"""

from __future__ import annotations

import sys

import cloudmount.app.boot
from cloudmount.cli.main import main

if __name__ == "__main__":
    cloudmount.app.boot.IO_TIMEOUT = float(sys.argv.pop(1))
    main()
