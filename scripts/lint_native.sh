#!/usr/bin/env bash
# Format and clippy of native/, where a Rust toolchain is on PATH. Nothing that users or
# `make demo` run needs Rust as long as native/ is empty, so a machine without it only says so.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../native"
if ! command -v cargo >/dev/null; then
    echo "native: no cargo on PATH, its format and clippy were not checked"
    exit 0
fi
cargo fmt --check
cargo clippy --quiet --all-targets --locked --offline -- -D warnings
echo "native: format and clippy clean"
