#!/usr/bin/env bash
# scripts/setup.sh demo|test|bench
#
# Makes this checkout ready for `make demo`, `make test` or `make bench`: the system
# packages of scripts/apt-packages.txt that are missing, and one virtual environment
# (.venv, editable install) at the versions pinned with hashes in requirements/; the native
# driver in it, built with cargo (which the demo does without where there is none); for test
# and bench also Azurite in tests/azurite/node_modules. Each target holds all of the one
# before it, so going from demo to test only adds. A second run finds its stamp (a hash of
# everything that decides the result) and does nothing. Prints what it installs and why.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

target=${1:-}
case $target in
    demo) level=1 requirements=requirements/demo.txt ;;
    test) level=2 requirements=requirements/test.txt ;;
    bench) level=3 requirements=requirements/test.txt ;;
    *) echo "usage: scripts/setup.sh demo|test|bench" >&2; exit 2 ;;
esac

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

# Two at once would write into the same environment.
exec 9<scripts/setup.sh
flock 9

# --- Python ---------------------------------------------------------------------------

python= python_is= can_venv=
for candidate in python3 python3.11 python3.12 python3.13 python3.14; do
    # Whether it can make a virtual environment by itself, and which interpreter it is.
    if python_is=$("$candidate" -c '
import importlib.util as i, sys
print("yes" if i.find_spec("ensurepip") else "no", sys.version, sys.base_prefix)
sys.exit(sys.version_info < (3, 11))' 2>/dev/null); then
        read -r can_venv python_is <<<"${python_is//$'\n'/ }"
        python=$(command -v "$candidate")
        break
    fi
done
[ -n "$python" ] || die "no Python 3.11 or later on PATH; on Debian 12: apt-get install python3"

# --- System packages ------------------------------------------------------------------

has_ensurepip() { [ "$can_venv" = yes ]; }
has_node18() { node -e 'process.exit(parseInt(process.versions.node) >= 18 ? 0 : 1)' 2>/dev/null; }
has_cargo() {
    local version
    version=$(cargo --version 2>/dev/null) || return 1
    [[ $version =~ ^cargo\ ([0-9]+)\.([0-9]+) ]] &&
        ((BASH_REMATCH[1] > 1 || BASH_REMATCH[1] == 1 && BASH_REMATCH[2] >= 85))
}
has_libpython() {
    "$python" -c 'import os, sys, sysconfig as s
sys.exit(not os.path.exists(os.path.join(*s.get_config_vars("LIBDIR", "LDLIBRARY"))))'
}
has_npm() { command -v npm >/dev/null; }

# Prints "package<TAB>why" for each package of this target that is not installed.
missing_packages() {
    local installed package wanted unless why
    installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' 2>/dev/null | sed -n 's/^installed //p')
    while IFS='|' read -r package wanted unless why; do
        package=${package//[[:space:]]/} wanted=${wanted//[[:space:]]/} unless=${unless//[[:space:]]/}
        case $wanted in demo) wanted=1 ;; test) wanted=2 ;; bench) wanted=3 ;; *) die "apt-packages.txt: $package: $wanted" ;; esac
        [ "$wanted" -le "$level" ] || continue
        [[ $'\n'$installed$'\n' != *$'\n'"$package"$'\n'* ]] || continue
        [ "$unless" = - ] || ! "has_$unless" || continue
        printf '%s\t%s\n' "$package" "${why# }"
    done < <(grep -v '^#' scripts/apt-packages.txt)
}

install_packages() {
    local missing packages root=()
    missing=$(missing_packages)
    [ -n "$missing" ] || return 0
    mapfile -t packages < <(cut -f1 <<<"$missing")
    say "system packages that are missing here:"
    awk -F'\t' '{ printf "setup:   %-17s %s\n", $1, $2 }' <<<"$missing" >&2
    command -v apt-get >/dev/null || die "no apt-get here: install these, by whatever name your system has for them"
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || die "not root and no sudo; as root: apt-get install ${packages[*]}"
        root=(sudo)
    fi
    local apt=("${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 -q)
    "${apt[@]}" update >&2 || say "apt-get update failed; going on with the package lists that are here"
    "${apt[@]}" install -y --no-install-recommends "${packages[@]}" >&2 ||
        die "could not install them (see above); by hand, as root: apt-get install ${packages[*]}"
}

# --- Python packages and Azurite ------------------------------------------------------

# One hash of all that decides what is installed; the path, because .venv can't be moved.
stamp() {
    { echo "$PWD $python_is"; cat pyproject.toml scripts/setup.sh "$1"; } | sha256sum
}

install_python() {
    local made=none
    [ ! -x .venv/bin/python ] || made=$(cat .venv/.setup 2>/dev/null) || made=none
    [ "$made" != "$(stamp requirements/test.txt)" ] || return 0 # holds demo's too
    [ "$made" != "$(stamp $requirements)" ] || return 0
    say "Python packages of $requirements into .venv, with $("$python" --version)"
    .venv/bin/python -c 'import pip' 2>/dev/null || "$python" -m venv --clear .venv
    rm -f .venv/.setup
    local pip=(.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-input)
    "${pip[@]}" --require-hashes --only-binary :all: -r $requirements
    "${pip[@]}" --no-deps --no-build-isolation --editable .
    stamp $requirements >.venv/.setup
}

native_stamp() {
    { echo "$PWD $python_is"; cat native/*.toml native/Cargo.lock native/*.pyi native/src/*; } | sha256sum
}

install_native() {
    local pip=(.venv/bin/python -m pip --disable-pip-version-check)
    [ "$(cat .venv/.native 2>/dev/null)" != "$(native_stamp)" ] || return 0
    if ! has_cargo; then
        [ "$level" = 1 ] || die "tests need cargo 1.85 or later; on PATH is $(command -v cargo || echo none)"
        [ -e .venv/.native ] || return 0
        rm .venv/.native
        say "the native driver here was built from other sources, and there is no cargo: it is removed"
        "${pip[@]}" uninstall --quiet --yes cloudmount-native
        return 0
    fi
    say "the native driver into .venv, with $(cargo --version): a minute or two"
    rm -f .venv/.native
    if ! PATH=$PWD/.venv/bin:$PATH "${pip[@]}" install --quiet --no-input \
        --no-deps --no-build-isolation --force-reinstall ./native; then
        [ "$level" = 1 ] || die "the native driver can't be built, see above"
        "${pip[@]}" uninstall --quiet --yes cloudmount-native
        say "the native driver can't be built here, see above; the demo goes on without it"
        return 0
    fi
    native_stamp >.venv/.native
}

# The Python layer of Windows' winfspy, which is the same everywhere; the tests put a stand-in below it.
install_winfspy() {
    local pin folder=.venv/winfspy-windows
    pin=$(sed -n '/^winfspy==/,/[^\\]$/p' requirements/test.txt | sed -e '1s/ ;.*\\$/ \\/' -e '/#/d')
    [ "$(cat $folder/.pin 2>/dev/null)" != "$pin" ] || return 0
    say "winfspy for Windows into $folder, for the tests of the Windows drive"
    rm -rf $folder
    mkdir -p $folder/wheel
    echo "$pin" >$folder/wheel/requirements.txt
    .venv/bin/python -m pip --disable-pip-version-check download --quiet --no-input --no-deps --require-hashes \
        --only-binary :all: --platform win_amd64 --python-version 3.11 --dest $folder/wheel \
        -r $folder/wheel/requirements.txt
    .venv/bin/python -m zipfile -e $folder/wheel/winfspy-*.whl $folder
    rm -r $folder/wheel
    echo "$pin" >$folder/.pin
}

install_azurite() {
    local folder=tests/azurite now
    now=$(cat $folder/package.json $folder/package-lock.json $folder/.npmrc | sha256sum)
    [ "$(cat $folder/node_modules/.setup 2>/dev/null)" != "$now" ] || return 0
    has_node18 || die "tests need Node 18 or later for Azurite; node on PATH is $(command -v node || echo missing) $(node --version 2>/dev/null)"
    say "Azurite $(sed -n 's/.*"azurite": "\(.*\)".*/\1/p' $folder/package.json) into $folder/node_modules, with Node $(node --version)"
    (cd $folder && npm ci --loglevel=error >&2)
    echo "$now" >$folder/node_modules/.setup
}

install_packages
install_python
install_native
[ "$level" = 1 ] || install_winfspy
[ "$level" = 1 ] || install_azurite
