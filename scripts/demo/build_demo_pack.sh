#!/usr/bin/env bash
# Builds vexpress/demo_pack from nothing: data, autoencoder, audio encoder, head motion, face networks, the four stages.
#
#   apt-get install espeak-ng && scripts/demo/build_demo_pack.sh
#   scripts/demo/build_demo_pack.sh --continue  # from the pack that is there: its autoencoder and student learn on
#
# Some four hours on two cores, two to continue; all work is in runs/demo. Parts that do not need each other
# run side by side.
# The same command resumes: each finished part leaves runs/demo/done/PART, with the seconds that its last run took.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=runs/demo # training_configs/demo name it, too
pack=vexpress/demo_pack
python=${PYTHON:-python}
export OMP_NUM_THREADS=1 HOST_GPU_NUM=1 PYTHON=$python
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1 # fewer page faults: training is about a tenth faster
export CUDA_VISIBLE_DEVICES= # the recipe is for two cores; two processes could not share one GPU
mkdir -p "$work/done" "$work/logs"
exec 9>"$work/lock" # held by parts as well, which outlive a script that is cut off
flock -n 9 || {
    echo "error: a build is still running in $work; wait for it, or end its processes" >&2
    exit 1
}

part() { # part NAME COMMAND...: runs a part once
    local name=$1 started=$SECONDS
    shift
    [ -e "$work/done/$name" ] && return 0
    echo "$(date +%H:%M) $name"
    "$@" >>"$work/logs/$name.log" 2>&1 || {
        echo "error: $name failed; see $work/logs/$name.log" >&2
        return 1
    }
    echo "$((SECONDS - started)) s" >"$work/done/$name"
}

vae_arguments=() stage_4_arguments=()
if [ "${1:-}" = --continue ]; then
    vae_arguments=(--start_path "$work/start/sd-vae-ft-mse" --learning_rate 0.006 --joint_steps 2400 --decoder_steps 500)
    stage_4_arguments=(init.path="$work/start")
    kept=(audio_encoder {,audio_embeds_}motion_{train,choice} head_motion face_networks metric_networks stage_{1,2,3})
    keep() { # from the pack, where parts of the build leave what they make
        mkdir -p "$work/head_motion/export" "$work/insightface_models" || return 1
        cp -r "$pack" "$work/start" || return 1
        cp -r "$work/start/wav2vec2-base-960h" "$work/audio_encoder" || return 1
        cp -r "$work/start/v-express" "$work/head_motion/export/" || return 1
        cp -r "$work/start/insightface_models/models" "$work/insightface_models/" || return 1
        cp -r "$work/start/evaluation" "$work/evaluation_networks" || return 1
        for name in "${kept[@]}"; do
            echo "kept" >"$work/done/$name"
        done
    }
    part keep keep
fi

drawn() { # drawn NAME SPLIT CLIPS ARGUMENTS...: a set of drawn people
    part "$1" "$python" -m scripts.demo.make_drawn_dataset --output_dir "$work/$1" --split "$2" --num_clips "${@:3}"
}
drawn data train 640
drawn silence train 32 --silent --seed 3
drawn blinks train 160 --seed 4 --blink_rate 4 # closed lids are rare otherwise
drawn glances train 160 --seed 5 --glance_rate 2 # eyes that look up and down move by half a pixel
drawn heldout heldout 32
drawn heldout_pack heldout 10 --seconds 2 --seed 1
drawn heldout_choice heldout 16 --seconds 2 --seed 2 # to choose the sampling by

embed() { # embed NAME: audio states of a set
    part "audio_embeds_$1" "$python" scripts/prepare_dataset/extract_audio_embeddings.py \
        --meta_path "$work/$1/metadata.json" --audio_encoder_path "$work/audio_encoder"
}
audio_and_faces() {
    part audio_encoder "$python" -m scripts.demo.train_audio_encoder \
        --data_dir "$work/data" --heldout_dir "$work/heldout" --output_dir "$work/audio_encoder" || return 1
    for split in data silence blinks glances heldout heldout_pack; do
        embed "$split" || return 1
    done
    part motion_train "$python" -m scripts.demo.head_motion_law --output_dir "$work/motion_train" --num_clips 288 || return 1
    part motion_choice "$python" -m scripts.demo.head_motion_law --output_dir "$work/motion_choice" \
        --num_clips 32 --seed 1 || return 1 # to choose the exported network by
    embed motion_train || return 1
    embed motion_choice || return 1
    part head_motion vexpress train-motion --config training_configs/demo/motion.yaml || return 1
    part face_networks "$python" -m scripts.demo.train_face_networks --output_dir "$work/insightface_models" || return 1
    part metric_networks "$python" -m scripts.demo.train_metric_networks \
        --data_dir "$work/data" --output_dir "$work/evaluation_networks"
}

audio_and_faces &
side=$!
part vae "$python" -m scripts.demo.train_vae --output_dir "$work/vae" "${vae_arguments[@]}" &
vae=$!

# The stages need latents, which are final when the autoencoder's first phase ends, and the audio states.
until [ -e "$work/vae/joint/config.json" ] && [ -e "$work/done/audio_embeds_heldout_pack" ]; do
    kill -0 "$vae" 2>/dev/null || [ -e "$work/done/vae" ] || exit 1
    kill -0 "$side" 2>/dev/null || [ -e "$work/done/face_networks" ] || exit 1
    sleep 5
done
mkdir -p "$work/base_model"
for split in data silence blinks glances; do
    part "latents_$split" "$python" scripts/prepare_dataset/cache_latents.py --meta_path "$work/$split/metadata.json" \
        --cache_dir "$work/latents" --vae_path "$work/vae/joint" --width 128 --height 128
done
for stage in stage_1 stage_2; do
    part "$stage" ./train_stage.sh "training_configs/demo/$stage.yaml"
done
wait "$vae"
wait "$side"
# Both cores are free now: two processes of one sample each make the updates that one of two samples makes.
export HOST_GPU_NUM=2
part stage_3 ./train_stage.sh training_configs/demo/stage_3.yaml data.train_bs=1
part stage_4 ./train_stage.sh training_configs/demo/stage_4.yaml data.train_bs=1 "${stage_4_arguments[@]}"
part assemble "$python" -m scripts.demo.assemble_pack --work_dir "$work" --pack_dir "$pack"
part measure "$python" -m scripts.demo.measure_pack --model_dir "$pack" --num_clips 8 --output_path "$pack/figures.json"
part demo "$python" inference.py --model_dir "$pack" --output_path "$work/demo.mp4" --contact_sheet_path docs/demo.png
part gif "$python" -m scripts.demo.video_to_gif --video_path "$work/demo.mp4" --output_path docs/demo.gif
for file in "$work"/done/*; do
    printf '%-24s %s\n' "$(basename "$file")" "$(cat "$file")"
done
