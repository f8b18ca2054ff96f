#!/usr/bin/env bash
# Puts the engine for the chosen LibTorch beside the binaries in each folder named that exists.
# The copy is renamed into place: a running program may have the old one mapped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
engine=$(make --no-print-directory -f scripts/engine.mk path)
for folder in "$@"; do
    [ -d "$folder" ] || continue
    target=$folder/libgraft_torch.so
    if ! cmp -s "$engine" "$target"; then
        cp "$engine" "$target.$$" && mv "$target.$$" "$target"
    fi
done
