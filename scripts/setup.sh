#!/usr/bin/env bash
# Fetches what Graft needs into .graft: LibTorch, the demo's model and data and, on request, the tests' Python.
#
#   scripts/setup.sh            what building and running need
#   scripts/setup.sh oracle     also the Python environment that the tests compare with
#
# LIBTORCH=<version> or LIBTORCH=<folder holding include/ and lib/> selects another LibTorch; the choice is kept.
# PYTHON=<interpreter> selects the Python that downloads. What is already there is left alone.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
PYTHON=${PYTHON:-python3}
SWIFT=${SWIFT:-swift}
export PYTHON SWIFT

fail() {
    echo "graft set-up: $*" >&2
    exit 1
}

# The set-up's own folder may be a link to one that several checkouts share.
if [ ! -d .graft ]; then
    mkdir .graft 2>/dev/null || [ -d .graft ] || fail "cannot make the folder $root/.graft: check its permissions."
fi
mkdir -p .graft/stamps 2>/dev/null || fail "cannot write to $root/.graft: check its permissions and the disk's space."

cxx=$(scripts/find-cxx.sh)

# Compiles and links a small program, which shows that the C++ headers and the linker are there.
cxx_works() {
    local scratch result=0
    scratch=$(mktemp -d)
    printf '#include <string>\nint main() { return static_cast<int>(std::string().size()); }\n' >"$scratch/probe.cpp"
    "$cxx" -std=c++20 "$scratch/probe.cpp" -o "$scratch/probe" >/dev/null 2>&1 || result=1
    rm -rf "$scratch"
    return $result
}

# Whether C++ programs find a header.
has_header() {
    echo "#include <$1>" | "$cxx" -DPCRE2_CODE_UNIT_WIDTH=8 -std=c++20 -fsyntax-only -x c++ - >/dev/null 2>&1
}

missing_packages() {
    command -v git >/dev/null || echo git
    if ! command -v "$PYTHON" >/dev/null; then
        echo python3 python3-pip python3-venv
    else
        "$PYTHON" -m pip --version >/dev/null 2>&1 || echo python3-pip
        "$PYTHON" -c 'import ensurepip, venv' >/dev/null 2>&1 || echo python3-venv
    fi
    if ! cxx_works; then
        echo g++ libpcre2-dev zlib1g-dev libgloo-dev
        return
    fi
    has_header pcre2.h || echo libpcre2-dev
    has_header zlib.h || echo zlib1g-dev
    # The headers of the library that LibTorch's processes talk through; LibTorch holds the library itself.
    has_header gloo/context.h || echo libgloo-dev
}

check_system() {
    local found stamp=.graft/stamps/system packages
    found="2 $(command -v "$SWIFT" || true) $cxx $(command -v "$PYTHON" || true) $(command -v git || true)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$found" ]; then return; fi

    command -v "$SWIFT" >/dev/null || fail "Swift was not found: install Swift 6.1 or newer (swift.org/install)."
    packages=$(missing_packages | tr '\n' ' ')
    packages=${packages% }
    if [ -n "$packages" ]; then
        command -v apt-get >/dev/null || fail "please install what Debian calls $packages, then run this again."
        [ "$(id -u)" = 0 ] || fail "please run: sudo apt-get install $packages"
        echo "System packages: installing $packages"
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $packages; } \
            >.graft/apt.log 2>&1 || fail "apt-get could not install $packages: see $root/.graft/apt.log."
        cxx=$(scripts/find-cxx.sh)
        packages=$(missing_packages | tr '\n' ' ')
        [ -z "$packages" ] || fail "these packages are installed but do not work: $packages"
        found="2 $(command -v "$SWIFT") $cxx $(command -v "$PYTHON") $(command -v git)"
    fi
    { printf '%s' "$found" >"$stamp.$$" && mv "$stamp.$$" "$stamp"; } 2>/dev/null ||
        fail "cannot write to $root/.graft: check its permissions and the disk's space."
}

check_system
exec "$PYTHON" scripts/fetch.py "$root" "$@"
