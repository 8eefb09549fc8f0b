#!/usr/bin/env bash
# The fourth, fifth, sixth or seventh test run of docs/accuracy.md, in processes that share the GPUs: documents first, then rules,
# then the report. Run from the repository's root, with sa_compile[eval] installed. A second call goes on where the
# first stopped (--resume). A run itself is made once.
#
# FOLDER has to outlast the machine: results are read from there.
#
#   RUN=fifth benchmarks/test_run.sh FOLDER [PROCESSES] [MINUTES A STAGE] [REVISION]
set -euo pipefail
folder=${1:?"give a folder for documents, results and logs"}
processes=${2:-8}
minutes=${3:-30}
revision=${4:-$(git rev-parse HEAD)}
python=${PYTHON:-python}
lengths="4096 8192 16384 32768"
tasks="needle multikey kv vt0 vt1 vt2 babi1"
others=""
count=200
case ${RUN:?"say which: fourth, fifth, sixth or seventh"} in
  fourth)  # claims first, then the other peers
    seed=3
    claims="adaptive:tau=0.1,landmarks=7 adaptive:tau=0.2,landmarks=7 adaptive:tau=0.3,landmarks=7 adaptive:tau=0.4,landmarks=7
      adaptive:tau=0.1 adaptive:tau=0.2 adaptive:tau=0.3 adaptive:tau=0.4
      chunked chunked:alpha=0.9
      oracle:alpha=0.9 oracle:alpha=0.95 oracle:alpha=0.98
      xattention:tau=0.9+sink+w2+last128 xattention:tau=0.95+sink+w2+last128 xattention:tau=0.98+sink+w2+last128"
    others="peers" ;;
  fifth)
    seed=5
    claims="adaptive adaptive:tau=0.1 adaptive:tau=0.3 adaptive:tau=0.4
      adaptive:tau=0.1,landmarks=7 adaptive:tau=0.4,landmarks=7 chunked" ;;
  sixth)
    seed=7
    claims="adaptive adaptive:tau=0.4,landmarks=7 adaptive:tau=0.5,landmarks=7" ;;
  seventh)
    seed=9
    count=800
    claims="adaptive adaptive:tau=0.5,landmarks=7 chunked" ;;
  *) echo "RUN must be fourth, fifth, sixth or seventh, got '$RUN'" >&2; exit 2 ;;
esac
documents=(--model examples/model --split test --seed $seed --lengths $lengths --tasks $tasks --count $count --texts 12)
export OMP_NUM_THREADS=1
gpus=$(nvidia-smi --list-gpus | wc -l)

stage() {  # rules
  for ((shard = 1; shard <= processes; shard++)); do
    CUDA_VISIBLE_DEVICES=$((shard % gpus)) "$python" -m sa_compile eval "${documents[@]}" --documents "$folder/documents.npz" --shard "$shard/$processes" \
      --rules $1 --minutes "$minutes" --sparsity 1 --resume --revision "$revision" \
      --json "$folder/shard-$shard.json" > "$folder/shard-$shard.log" 2>&1 &
  done
  wait
}

mkdir -p "$folder"
[ -e "$folder/documents.npz" ] || "$python" -m sa_compile eval-documents "${documents[@]}" --out "$folder/documents.npz"
stage "$claims"
[ -z "$others" ] || stage "$claims $others"
"$python" -m sa_compile eval-report "$folder"/shard-*.json --out "$folder/report" --merged "$folder/test.json"
