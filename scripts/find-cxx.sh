#!/bin/sh
# Prints the C++ compiler for the engine: $GRAFT_CXX, else the clang++ of the Swift toolchain, else one on PATH.
if [ -n "${GRAFT_CXX:-}" ]; then
    echo "$GRAFT_CXX"
    exit 0
fi
swift=$(command -v "${SWIFT:-swift}" 2>/dev/null) && beside=$(dirname "$(readlink -f "$swift")")/clang++
if [ -n "${beside:-}" ] && [ -x "$beside" ]; then
    echo "$beside"
    exit 0
fi
command -v clang++ || command -v g++ || echo clang++
