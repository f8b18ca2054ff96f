#!/usr/bin/env bash
# Writes the tables in README.md that the program itself knows.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
table=$(.build/release/graft methods --markdown)
begin='<!-- methods: written by `make docs` -->' end='<!-- /methods -->'
TABLE=$table BEGIN=$begin END=$end awk '
    $0 == ENVIRON["BEGIN"] { print; print ENVIRON["TABLE"]; skipping = 1 }
    $0 == ENVIRON["END"] { skipping = 0 }
    !skipping && $0 != ENVIRON["BEGIN"] { print }' README.md > README.md.new
mv README.md.new README.md
