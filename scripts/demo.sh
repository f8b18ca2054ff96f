#!/usr/bin/env bash
# Builds the demo and runs it; see Examples/Demo.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
quiet=$([ -t 1 ] || echo --quiet)
${SWIFT:-swift} build -c release $quiet --product Demo
scripts/place-engine.sh .build/release
exec .build/release/Demo
