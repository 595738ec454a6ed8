"""`make campaign`: the long random tests, each named by where it lies, with a seed and a count.

Every `tests/**/campaign_NAME.py` has `campaign(seed, count) -> str`, which raises when it finds
something wrong and else says in a few words what it did. The same seed and count give the
same campaign; `count` is about how many cases it tries.

    python -m tests.campaign --seed 1 --count 200 [--only NAME]
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).parent


def campaigns() -> dict[str, str]:
    """Name (what follows `campaign_`) to module of each campaign, sorted."""
    modules = {p.stem.removeprefix("campaign_"): p for p in sorted(HERE.glob("**/campaign_*.py"))}
    return {
        name: ".".join(p.relative_to(HERE.parent).with_suffix("").parts)
        for name, p in sorted(modules.items())
    }


def run(names: Sequence[str], seed: int, count: int, say: Callable[[str], None] = print) -> bool:
    """Run these campaigns, one after another; whether all went well."""
    modules = campaigns()
    good = True
    for name in names:
        say(f"{name}: seed {seed}, count {count} ...")
        began = time.monotonic()
        try:
            told = importlib.import_module(modules[name]).campaign(seed, count)
            result = f"ok: {told}" if told else "ok"
        except Exception:
            good = False
            result = f"FAILED\n{traceback.format_exc()}"
        say(f"{name}: seed {seed}, count {count}, {time.monotonic() - began:.1f} s: {result}")
    return good


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 0 when every campaign went well, 1 when one did not, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description="Run the campaigns.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--only", metavar="NAME", action="append", choices=list(campaigns()))
    chosen = parser.parse_args(arguments)
    names = chosen.only or list(campaigns())
    return 0 if run(names, chosen.seed, chosen.count, lambda line: print(line, flush=True)) else 1


if __name__ == "__main__":
    sys.exit(main())
