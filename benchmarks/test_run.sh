#!/usr/bin/env bash
# A test run of docs/accuracy.md, in processes that share the GPUs: documents first, then rules, then the report.
# Run from the repository's root, with sa_compile[eval] installed. A second call goes on where the first stopped
# (--resume). A run itself is made once.
#
# FOLDER has to outlast the machine: results are read from there. smollm2, gemma and example need what `fetch-texts
# --collection d` writes, in textsd, and the first two what `fetch-model` does, in models/smollm2-135m and models/gemma3-270m.
#
#   RUN=smollm2 benchmarks/test_run.sh FOLDER [PROCESSES] [MINUTES A STAGE] [REVISION]
set -euo pipefail
folder=${1:?"give a folder for documents, results and logs"}
processes=${2:-8}
minutes=${3:-30}
revision=${4:-$(git rev-parse HEAD)}
python=${PYTHON:-python}
recall="--tasks recall_number recall_word recall_place"
unseen="--split test --seed 83 --corpus textsd"
retrieval="--tasks needle multikey kv vt0 vt1 vt2 babi1 --lengths 4096 8192 16384 32768 --texts 12"
means="peak=1,budget=1,means=1"  # blocks that are left out count by their mean: the default before the budget
others=""
sparsity=0
case ${RUN:?"say which: smollm2, gemma, example, seventh or peers"} in
  smollm2)
    model=models/smollm2-135m
    plan="$unseen --lengths 4096 8192 --count 150 --texts 16 $recall"
    claims=adaptive ;;
  gemma)
    model=models/gemma3-270m
    plan="$unseen --lengths 8192 16384 32768 --count 60 --texts 12 $recall"
    claims=adaptive ;;
  example)
    model=examples/model
    plan="$unseen --lengths 4096 8192 16384 32768 --count 80 --texts 12"
    claims=adaptive ;;
  seventh)
    model=examples/model
    plan="--split test --seed 9 --count 800 $retrieval"
    sparsity=1
    claims="adaptive:$means adaptive:tau=0.5,landmarks=7,$means chunked" ;;
  peers)  # ours first, then the others
    model=examples/model
    plan="--split test --seed 3 --count 200 $retrieval"
    sparsity=1
    claims="chunked chunked:alpha=0.9 oracle:alpha=0.9 oracle:alpha=0.95 oracle:alpha=0.98
      xattention:tau=0.9+sink+w2+last128 xattention:tau=0.95+sink+w2+last128 xattention:tau=0.98+sink+w2+last128"
    for tau in 0.1 0.2 0.3 0.4; do claims="$claims adaptive:tau=$tau,landmarks=7,$means adaptive:tau=$tau,$means"; done
    others="peers" ;;
  *) echo "RUN must be smollm2, gemma, example, seventh or peers, got '$RUN'" >&2; exit 2 ;;
esac
plan="--model $model $plan"
export OMP_NUM_THREADS=1
gpus=$(nvidia-smi --list-gpus | wc -l)

stage() {  # rules
  for ((shard = 1; shard <= processes; shard++)); do
    CUDA_VISIBLE_DEVICES=$((shard % gpus)) "$python" -m sa_compile eval $plan --documents "$folder/documents.npz" --shard "$shard/$processes" \
      --rules $1 --sparsity $sparsity --minutes "$minutes" --resume --revision "$revision" \
      --json "$folder/shard-$shard.json" > "$folder/shard-$shard.log" 2>&1 &
  done
  wait
}

mkdir -p "$folder"
[ -e "$folder/documents.npz" ] || "$python" -m sa_compile eval-documents $plan --out "$folder/documents.npz"
stage "$claims"
[ -z "$others" ] || stage "$claims $others"
"$python" -m sa_compile eval-report "$folder"/shard-*.json --out "$folder/report" --merged "$folder/test.json"
