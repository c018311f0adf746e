#!/usr/bin/env bash
# Trains a stage, on one process or on many GPUs and nodes; or all stages in order.
#
#   ./train_stage.sh training_configs/stage_1.yaml [key=value ...]
#   ./train_stage.sh --all training_configs [key=value ...]      # stage_1.yaml, stage_2.yaml, ... of a folder
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
    HOST_GPU_NUM=$("$python" -c 'import torch; print(max(1, torch.cuda.device_count()))' 2>/dev/null) || {
        echo "error: '$python' cannot import torch; activate the environment of requirements.txt, or set PYTHON" >&2
        exit 2
    }
fi

# SIGTERM and Ctrl-C go on to the training processes, which save and stop; then a stage that is not done fails.
run() {
    local launch=() status=0
    if [ "$HOST_GPU_NUM" -ne 1 ] || [ "${HOST_NUM:-1}" -ne 1 ]; then
        launch=(-m vexpress.cli.launch --nproc_per_node "$HOST_GPU_NUM" --nnodes "${HOST_NUM:-1}"
            --node_rank "${INDEX:-0}" --master_addr "${CHIEF_IP:-127.0.0.1}" --master_port "${CHIEF_PORT:-29500}")
    fi
    PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" "$python" "${launch[@]}" "$here/train.py" --config "$@" &
    local child=$!
    trap 'kill -TERM "$child"' TERM INT
    wait "$child" || status=$?
    while kill -0 "$child" 2>/dev/null; do
        status=0
        wait "$child" || status=$?
    done
    trap - TERM INT
    return "$status"
}

[ $# -ge 1 ] || usage
case "$1" in
-h | --help) usage ;;
--all)
    [ $# -ge 2 ] || usage
    folder=$2
    shift 2
    for override in "$@"; do
        case "$override" in
        init.* | output_dir=* | train_stage=*)
            echo "error: $override would go to all stages; set it in the stage's file in $folder" >&2
            exit 2
            ;;
        esac
    done
    for config in "$folder"/stage_[0-9].yaml; do
        run "$config" "$@"
    done
    ;;
*) run "$@" ;;
esac
