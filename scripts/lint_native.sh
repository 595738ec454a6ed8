#!/usr/bin/env bash
# Format, clippy and unit tests of native/, where a Rust toolchain is on PATH: `make setup` sees to that,
# and its build has fetched the crates.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../native"
if ! command -v cargo >/dev/null; then
    echo "native: no cargo on PATH, nothing of it was checked"
    exit 0
fi
PYO3_PYTHON=$(cd .. && pwd)/.venv/bin/python
export PYO3_PYTHON
cargo fmt --check
cargo clippy --quiet --all-targets --locked --offline -- -D warnings
# The tests run outside of Python, so they need its library where it is not built in.
LD_LIBRARY_PATH=$("$PYO3_PYTHON" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))') \
    cargo test --quiet --lib --locked --offline
echo "native: format and clippy clean, unit tests passed"
