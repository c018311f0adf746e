#!/usr/bin/env bash
# Trains a stage, on one process or on many GPUs and nodes; or all three in order.
#
#   ./train_stage.sh training_configs/stage_1.yaml [key=value ...]
#   ./train_stage.sh --all training_configs [key=value ...]      # stage_1.yaml, stage_2.yaml, stage_3.yaml of a folder
#
# Environment, with defaults:
#   HOST_GPU_NUM  processes on this node: the number of GPUs, or 1 without any
#   HOST_NUM      nodes (1)
#   INDEX         this node's number, from 0 (0)
#   CHIEF_IP      address of node 0 (127.0.0.1)
#   CHIEF_PORT    its port (29500)
#   PYTHON        interpreter (python)
set -euo pipefail

usage() {
    sed -n '2,14s/^# \{0,1\}//p' "$0" >&2
    exit 2
}

here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python}
if [ -z "${HOST_GPU_NUM:-}" ]; then
    HOST_GPU_NUM=$(nvidia-smi --list-gpus 2>/dev/null | wc -l) || HOST_GPU_NUM=0
    [ "$HOST_GPU_NUM" -gt 0 ] || HOST_GPU_NUM=1
fi

run() {
    if [ "$HOST_GPU_NUM" -eq 1 ] && [ "${HOST_NUM:-1}" -eq 1 ]; then
        "$python" "$here/train.py" --config "$@"
    else
        "$python" -m torch.distributed.run --nproc_per_node "$HOST_GPU_NUM" --nnodes "${HOST_NUM:-1}" \
            --node_rank "${INDEX:-0}" --master_addr "${CHIEF_IP:-127.0.0.1}" --master_port "${CHIEF_PORT:-29500}" \
            "$here/train.py" --config "$@"
    fi
}

[ $# -ge 1 ] || usage
case "$1" in
-h | --help) usage ;;
--all)
    [ $# -ge 2 ] || usage
    folder=$2
    shift 2
    for stage in stage_1 stage_2 stage_3; do
        run "$folder/$stage.yaml" "$@"
    done
    ;;
*) run "$@" ;;
esac
