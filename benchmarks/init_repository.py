#!/usr/bin/env python3
"""A new CloudMount repository whose frames have another size than `cloudmount init` gives them.

    CLOUDMOUNT_PASSPHRASE=... init_repository.py ADDRESS --frame-kib 256

The size of frames is an argument of the repository's, not of the command line. A program of its own,
so that a benchmark that measures others' memory imports nothing large.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # also when run as a file


def main() -> None:
    """The program of the module docstring."""
    from cloudmount.app.places import connect
    from cloudmount.crypto.phrase import new_phrase
    from cloudmount.repo.config import Geometry
    from cloudmount.repo.repository import Repository

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("address")
    parser.add_argument("--frame-kib", type=int, required=True)
    given = parser.parse_args()
    geometry = Geometry(frame=given.frame_kib << 10)
    with connect(given.address) as store:
        Repository.init(store, os.environ["CLOUDMOUNT_PASSPHRASE"], new_phrase(), geometry=geometry)


if __name__ == "__main__":
    main()
