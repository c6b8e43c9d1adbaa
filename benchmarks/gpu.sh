#!/usr/bin/env bash
# The pieces of the gpu group in order, on one GPU, where there is neither Snakemake nor DVC.
#
#   KNOW_DATA=/folder/with/the/data bash benchmarks/gpu.sh [SUITE ...]
#
# Needs Python with what `pip install '.[benchmark]'` brings, except Snakemake and DVC, and no network. A piece that is
# finished is skipped, and one that was killed goes on where it was: call the script again, with a time limit if the
# machine has one (`timeout 540 bash benchmarks/gpu.sh`).
#
#   DEVICE   cuda                    cpu runs the same pieces without a GPU, slowly
#   OUT      work/records            the records of the finished pieces, a few MB, for `python -m benchmarks merge` elsewhere
#   PYTHON   python3
set -euo pipefail
cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda} OUT=${OUT:-work/records} PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
[ $# -gt 0 ] || set -- gpu/resnet18 gpu/resnet8 gpu/vit gpu/pvt gpu/shares

finished=()
for suite in "$@"; do
  echo "== $suite"
  "$PYTHON" -m benchmarks run --suite "$suite" --device "$DEVICE" --results work/published
  finished+=("$suite")
  mkdir -p "$OUT/$suite"
  cp "work/published/$suite"/*.csv "work/published/$suite"/*.json "$OUT/$suite/"
done

echo
echo "== tuned accuracy, difference to naive in points"
"$PYTHON" - "$OUT" "${finished[@]}" <<'PYTHON'
import json, sys

folder, *suites = sys.argv[1:]
for suite in suites:
    with open(f"{folder}/{suite}/metrics.json") as file:
        for cell, arms in json.load(file).items():
            naive = arms["naive"]["tuned"]
            print(f"{suite}  {cell}  naive {naive:.2f}")
            for arm, accuracy in arms.items():
                print(f"    {arm:30}{accuracy['tuned'] - naive:+7.2f}")
PYTHON
echo "records: $OUT; elsewhere, in a checkout of the same commit: python -m benchmarks merge FOLDER"
