#!/usr/bin/env bash
# Copies the program, its engine and LibTorch's libraries below the folder given: bin/graft and lib/graft/.
set -euo pipefail
prefix=${1:?usage: install.sh PREFIX}
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$prefix/bin" "$prefix/lib/graft" 2>/dev/null || {
    echo "graft install: cannot write below $prefix: choose another folder with PREFIX=, or use sudo." >&2
    exit 1
}
install -m 755 .build/release/graft "$prefix/bin/graft"
install -m 755 .build/release/libgraft_torch.so "$prefix/lib/graft/libgraft_torch.so"
for library in .graft/libtorch/current/lib/*.so*; do
    case $(basename "$library") in
        libtorch_python* | *_test.so | libbackend_with_compiler* | libaoti_custom_ops* | libshm*) ;;
        *) cp -L "$library" "$prefix/lib/graft/" ;;
    esac
done
echo "graft: installed, $prefix/bin/graft"
