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
[ $# -gt 0 ] || set -- gpu/vit-halves gpu/resnet18 gpu/resnet8 gpu/vit gpu/pvt gpu/shares

for suite in "$@"; do
  echo "== $suite"
  "$PYTHON" -m benchmarks run --suite "$suite" --device "$DEVICE" --results work/published
  mkdir -p "$OUT/$suite"
  cp "work/published/$suite"/*.csv "work/published/$suite"/*.json "$OUT/$suite/"
  if [ -d "work/published/$suite/known" ]; then cp -r "work/published/$suite/known" "$OUT/$suite/"; fi
done
echo "records: $OUT; elsewhere, in a checkout of the same commit: python -m benchmarks merge FOLDER"
