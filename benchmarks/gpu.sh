#!/usr/bin/env bash
# The pieces of the gpu group in order, on one GPU, where there is neither Snakemake nor DVC.
#
#   KNOW_DATA=/folder/with/the/data bash benchmarks/gpu.sh [SUITE ...]
#
# Needs Python with what `pip install '.[benchmark]'` brings, except Snakemake and DVC, and no network. A piece that is
# finished is skipped, and one that was killed goes on where it was: call the script again, with a time limit if the
# machine has one (`timeout 540 bash benchmarks/gpu.sh`). The records of the finished pieces, a few MB, lie in work/records,
# for `python -m benchmarks merge` elsewhere.
#
#   DEVICE   cuda                    cpu runs the same pieces without a GPU, slowly
#   PYTHON   python3
set -euo pipefail
cd "$(dirname "$0")/.."
DEVICE=${DEVICE:-cuda} PYTHON=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 CUBLAS_WORKSPACE_CONFIG=:4096:8
[ $# -gt 0 ] || set -- gpu/vit-halves gpu/resnet18 gpu/resnet8 gpu/vit gpu/pvt gpu/shares

for suite in "$@"; do
  echo "== $suite"
  "$PYTHON" -m benchmarks run --suite "$suite" --device "$DEVICE" --results work/published
  mkdir -p "work/records/$suite"
  cp "work/published/$suite"/*.csv "work/published/$suite"/*.json "work/records/$suite/"
  if [ -d "work/published/$suite/known" ]; then cp -r "work/published/$suite/known" "work/records/$suite/"; fi
done
echo "records: work/records; in another checkout of the same commit: python -m benchmarks merge FOLDER"
