"""The program, whose drills don't wait long for a guest that does not power off.

python -m tests.boot.drilling ARGUMENT...
"""

from __future__ import annotations

import cloudmount.app.drill
from cloudmount.cli.main import main

if __name__ == "__main__":
    cloudmount.app.drill.OFF_SECONDS = cloudmount.app.drill.HUNG_OFF_SECONDS = 0.5
    main()
