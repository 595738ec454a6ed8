#!/usr/bin/env bash
# Pins demo.txt and test.txt anew from pyproject.toml (needs `uv` on PATH, any recent one):
#     requirements/compile.sh            keeps what is pinned as far as pyproject allows
#     requirements/compile.sh --upgrade  takes today's releases
# One resolution for CPython 3.11 and later on every system, with the hash of every file
# of each release, so the same lists install on x86_64 and aarch64. build.in pins what
# the editable install itself is built with. No index address is written into the lists.
set -euo pipefail
cd "$(dirname "$0")/.."
compile() {
    local out=$1
    shift
    UV_CUSTOM_COMPILE_COMMAND=requirements/compile.sh uv pip compile --quiet --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --no-emit-find-links --output-file "$out" "$@" >/dev/null
}
compile requirements/test.txt pyproject.toml requirements/build.in --extra azure --group test "$@"
# demo.txt is a subset at the same versions.
compile requirements/demo.txt pyproject.toml requirements/build.in --constraint requirements/test.txt "$@"
