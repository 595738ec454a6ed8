#!/usr/bin/env bash
# scripts/run_tests.sh [ARGUMENTS FOR PYTEST]
#
# All tests, a process for each core and one more (at most 4), as many of them wait; each with whole files. Many
# run real machines, links and kills, and share the machine with whatever else it does: where at most FEW fail,
# these are run once more, one after the other with nothing beside them, and what passed only then is named at
# the end, because it is a fault to be mended all the same: in the test or in the program. What fails twice, or
# more than a few, fails the suite.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly FEW=4
pytest=(.venv/bin/python -m pytest)

rm -f .pytest_cache/v/cache/lastfailed
processes=$(($(nproc) + 1))
status=0
"${pytest[@]}" -n $((processes < 4 ? processes : 4)) --dist loadfile "$@" || status=$?
[ "$status" = 1 ] || exit "$status" # 1: tests failed; others: interrupted, wrong usage, none found

mapfile -t failed < <(.venv/bin/python -c '
import json
print(*json.load(open(".pytest_cache/v/cache/lastfailed")), sep="\n")')
if [ "${#failed[@]}" = 0 ] || [ "${#failed[@]}" -gt "$FEW" ]; then exit 1; fi
printf 'tests: failed beside others, now once more alone: %s\n' "${failed[@]}"
"${pytest[@]}" "${failed[@]}"
printf 'tests: UNSTEADY, to be mended: %s failed beside others and passed alone\n' "${failed[@]}"
