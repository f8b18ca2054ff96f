#!/usr/bin/env bash
# Gives readers broken files that libFuzzer chooses by the code that they reach: fuzz-coverage.sh SECONDS [READER ...]
# Files that reach new code are kept in .build-fuzz/corpus for the next run, defects in .build-fuzz/defects.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
seconds=$1
shift
swift=${SWIFT:-swift}
folder=.build-fuzz

resources=$("$swift" -print-target-info | sed -n 's/.*"runtimeResourcePath": "\(.*\)".*/\1/p')
runtime=$resources/clang/lib/linux/libclang_rt.fuzzer_no_main-$(uname -m).a
if [ ! -f "$runtime" ]; then
    echo "fuzz-coverage: skipped, because this Swift toolchain has no libFuzzer ($runtime)"
    exit 0
fi

echo "fuzz-coverage: building with coverage counters (the first time takes minutes) ..."
# The counters are for compiling alone: linked with -sanitize=fuzzer, a program cannot have its own main.
"$swift" build --quiet --scratch-path "$folder" -c release --product Fuzzer -Xswiftc -DGUIDED \
    -Xswiftc -Xfrontend -Xswiftc -sanitize=fuzzer -Xlinker "$runtime" -Xlinker -lstdc++
scripts/place-engine.sh "$folder/release"

[ $# -gt 0 ] || mapfile -t readers < <("$folder/release/Fuzzer")
failed=0
for reader in "${@:-${readers[@]}}"; do
    log=$folder/$reader.log
    if OMP_NUM_THREADS=1 SWIFT_BACKTRACE=enable=no \
        nice "$folder/release/Fuzzer" guided "$reader" "$folder" "$seconds" >"$log" 2>&1; then
        edges=$(grep -oE 'cov: [0-9]+' "$log" | tail -n 1 | tr -dc 0-9)
        runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
        echo "$reader: $runs files, $edges edges reached, no defect"
    else
        failed=1
        grep -aE '^defect|ERROR: libFuzzer|Fatal error|Test unit written' "$log" || tail -n 5 "$log"
        echo "$reader: a defect (all of it: $log; again: $folder/release/Fuzzer replay $reader FILE)"
    fi
done
exit $failed
