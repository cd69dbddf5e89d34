#!/usr/bin/env bash
# The GPU half of the project on a machine that has one: scripts/gpu_check.sh, in under 8 minutes, no network.
#
#   OUT=FOLDER    where the record goes (results/runs/gpu_check): gpu_check.md, and in pieces/ logs and tables
#   PYTHON=FILE   the interpreter (.venv/bin/python, or the one on the path)
#   TINY=1        the same pieces with almost nothing in them, on a processor, and with ten times the limits: shows
#                 that this script works
#
# Every piece has a time limit, and one that fails does not stop the others. Exit 0 where all went well, else 1.
set -u
cd "$(dirname "$0")/.." || exit 1
root=$PWD
out=${OUT:-results/runs/gpu_check}
mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
pieces="$out/pieces"
rm -rf "$pieces" "$out/gpu_check.md" && mkdir "$pieces" || exit 1
home=$(mktemp -d) || exit 1
trap 'rm -rf "$home"' EXIT
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)}
tiny=${TINY:-}
device=$([ -n "$tiny" ] && echo cpu || echo cuda)
patience=$([ -n "$tiny" ] && echo 10 || echo 1)
export XTRREP_HOME="$home" PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 NO_COLOR=1
failed=0
rows=""
begun=$SECONDS

# piece NAME SECONDS COMMAND...: run it under a limit, keep its output, note how it ended.
piece() {
  local name=$1 limit=$(($2 * patience)) start=$SECONDS code ended
  shift 2
  echo "run    $name (at most $limit s)" >&2
  timeout -k 5 "$limit" "$@" >"$pieces/$name.log" 2>&1
  code=$?
  case $code in
    0) ended=fine ;;
    124 | 137) ended="stopped after $limit s" ;;
    *) ended="FAILED, exit $code" ;;
  esac
  [ $code -eq 0 ] || failed=1
  echo "$ended  $name, $((SECONDS - start)) s" >&2
  rows+="| $name | $ended | $((SECONDS - start)) |"$'\n'
}

skip() {
  echo "skip   $1: $2" >&2
  rows+="| $1 | not run: $2 | 0 |"$'\n'
}

gpus=$("$python" -c 'import torch; print(torch.cuda.device_count())' 2>/dev/null || echo 0)
if [ "$gpus" -eq 0 ] && [ -z "$tiny" ]; then
  echo "error: torch sees no CUDA GPU" >&2
  echo "hint: TINY=1 tries the script itself on a processor" >&2
  exit 1
fi

xtrrep() { echo "$python" -m xtrrep "$@"; }
piece doctor 30 $(xtrrep doctor)
piece tests 70 "$python" -m pytest -m gpu -rs tests/test_exact_device.py tests/test_gpu.py
if [ -n "$tiny" ]; then
  objective="--batch 4 --length 24 --rounds 1"
  encode="--documents 12 --processor-documents 4 --batch 4 --tokens 24"
  search="--passages 300 --tokens 6 --queries 3 --cpu-queries 2 --k-prime 20 --rounds 1"
  run="train.steps=2 train.batch_size=2 train.n_doc=16 model.layers=1 data.max_queries=4"
else
  objective="" encode="" search="" run="train.steps=40 data.max_queries=200"
fi
piece objective 50 "$python" scripts/bench_gpu.py objective --device $device --out "$pieces/objective" $objective
piece encode 50 "$python" scripts/bench_gpu.py encode --device $device --out "$pieces/encode" $encode
piece search 100 "$python" scripts/bench_search.py --device $device --out "$pieces/search" $search
if [ -n "$tiny" ]; then
  skip calibrate "minutes on a processor"
else
  piece calibrate 40 $(xtrrep calibrate machine.device=$device)
fi
piece pipeline 90 $(xtrrep eval machine.device=$device $run)
if [ "$gpus" -ge 2 ]; then
  piece two-gpus 40 "$python" -m torch.distributed.run --standalone --nproc-per-node=2 -m xtrrep train \
    train.steps=8
else
  skip two-gpus "it needs two GPUs, here are $gpus"
fi

{
  echo "# GPU check"
  echo
  echo "$(date -u +%Y-%m-%d), commit ${XTRREP_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null || echo unknown)}," \
    "device $device, $((SECONDS - begun)) s in all."
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader 2>/dev/null | sed 's/^/- GPU: /'
  echo
  echo "| piece | ended | s |"
  echo "| --- | --- | --- |"
  printf '%s' "$rows"
  for name in objective encode search; do
    [ -f "$pieces/$name/table.md" ] && echo && cat "$pieces/$name/table.md"
  done
  for name in doctor tests calibrate pipeline two-gpus; do
    [ -f "$pieces/$name.log" ] && printf '\n## %s\n\n```text\n%s\n```\n' "$name" \
      "$(tr '\r' '\n' <"$pieces/$name.log" | grep -v '%|\|^$' | sed "s#$home#HOME#g" | tail -n 25 | cut -c1-200)"
  done
} >"$out/gpu_check.md"
echo "$out/gpu_check.md"
exit $failed
