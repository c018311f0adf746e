#!/usr/bin/env bash
# Makes what tests/comfyui need: a Python environment for a checkout of ComfyUI (6 GB, some minutes), kept apart from
# every other. Prints the two variables to set.
#
#     scripts/make_comfyui_env.sh /path/to/ComfyUI /path/to/new_environment
#     TORCH="torch==2.9.1 torchvision==0.24.1 torchaudio==2.9.1" scripts/make_comfyui_env.sh ...    # other versions
set -euo pipefail
if [ $# -ne 2 ] || [ ! -f "$1/main.py" ] || [ ! -f "$1/comfyui_version.py" ]; then
    echo "usage: $0 CHECKOUT_OF_COMFYUI NEW_ENVIRONMENT" >&2
    exit 2
fi
checkout=$(realpath "$1") environment=$(realpath -m "$2") here=$(dirname "$(realpath "$0")")
torch=${TORCH:-torch==2.14.1 torchvision==0.29.1 torchaudio==2.11.0}
python3 -m venv "$environment"
pip=("$environment/bin/pip" --disable-pip-version-check install --quiet)

# torchaudio has no build that names this torch as its own, and works without that.
read -ra wanted <<<"$torch"
"${pip[@]}" "${wanted[@]:0:2}"
"${pip[@]}" --no-deps "${wanted[2]}"
grep -vE '^torch(vision|audio)?$' "$checkout/requirements.txt" >"$environment/comfyui_requirements.txt"
"${pip[@]}" -r "$environment/comfyui_requirements.txt" -r "$here/../requirements-comfyui.txt"
echo "export COMFYUI_DIR=$checkout COMFYUI_PYTHON=$environment/bin/python"
