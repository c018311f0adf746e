"""The networks of other libraries: image autoencoder and audio encoder, loaded as strictly as our own."""

import inspect
import math
import textwrap
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import AutoencoderDC, AutoencoderKL, AutoencoderTiny
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.utils.logging import disable_progress_bar

from vexpress.audio_encoders import UNTRAINED, WHISPER_HOP, WHISPER_STRIDE, normalises, read_layers
from vexpress.diffusion.latents import Autoencoder
from vexpress.errors import InputError, first_line
from vexpress.model_folder import LAYOUT, read_config
from vexpress.weights.bounds import check_archive, check_counts
from vexpress.weights.state_dicts import check_finite

AUTOENCODERS = {kind.__name__: kind for kind in (AutoencoderKL, AutoencoderDC, AutoencoderTiny)}
REGISTERED = {
    "AutoencoderDC": ("latents_mean", "latents_std"),
    "AutoencoderTiny": ("block_out_channels", "latents_mean", "latents_std"),
}
"""Class -> what its configuration holds beside arguments of its constructor."""

MISSING_IS_HARMLESS = {UNTRAINED: "wav2vec2 and its kin read it in their own training only"}
UNEXPECTED_IS_HARMLESS = {
    "lm_head.": "the released wav2vec2 file has a head that turns hidden states into letters",
    UNTRAINED: "see above",
    **dict.fromkeys(("quantizer.", "project_q.", "project_hid."), "XLS-R has what its own training compares with"),
}
"""Prefix of weights that a file may hold and the network has not -> why. Old names of the VAE's attention are no
matter of this: the library renames them."""
SPEECH_ENCODERS = {
    "wav2vec2": ("Wav2Vec2Model", "Wav2Vec2FeatureExtractor"),
    "hubert": ("HubertModel", "Wav2Vec2FeatureExtractor"),
    "wavlm": ("WavLMModel", "Wav2Vec2FeatureExtractor"),
    "whisper": (None, "WhisperFeatureExtractor"),
}
"""`model_type` -> classes of transformers, imported when they are needed; None is one of ours."""
ATTENTION = {"wav2vec2": "sdpa", "hubert": "sdpa", "wavlm": "eager", "whisper": "sdpa"}
"""`model_type` -> the library's attention that is used: the fastest that it has for it without other packages."""
CODE_KEYS = {
    **dict.fromkeys(("attn_implementation", "_attn_implementation"), (None, "eager", "sdpa")),
    **dict.fromkeys(("experts_implementation", "_experts_implementation", "quantization_config"), (None,)),
}
"""Key of a configuration by which the library fetches a kernel, native code, from a hub -> values that do not."""
ADAPTER_FILE = "adapter_config.json"  # the library would put it on the weights by itself
WHISPER_FOLDER = r"^(?:model\.)?encoder\."  # what stands before the encoder's names where the decoder is there, too


def load_vae(
    folder: str | PathLike,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    field: str = "vae_path",
) -> Autoencoder:
    """Loads the image autoencoder, of the class that its configuration names.

    Raises:
        InputError: it cannot be loaded, its configuration asks for what it has not, or weights are missing, unexpected
            or not finite; `field` is named.
    """
    config = _read_config(folder, field)
    class_name = str(config.get("_class_name", AutoencoderKL.__name__))
    if class_name not in AUTOENCODERS:
        raise InputError(f"_class_name is {class_name}: must be {' or '.join(AUTOENCODERS)}", field, folder)
    known = {*inspect.signature(AUTOENCODERS[class_name].__init__).parameters, *REGISTERED.get(class_name, ())}
    if unknown := [key for key in config if key not in known and not key.startswith("_")]:
        raise InputError(f"config.json: {class_name} has no {', '.join(unknown)}", field, folder)
    if class_name == "AutoencoderKL":
        _check_switch(config, "act_fn", "silu", field, folder)
    with _quiet_diffusers():
        vae = _load_model(AUTOENCODERS[class_name], folder, field, torch_dtype=dtype, low_cpu_mem_usage=False)
    if class_name == "AutoencoderTiny":
        _check_tiny(vae.config, field, folder)
    for name in ("scaling_factor", "shift_factor", "latents_mean", "latents_std"):
        _check_latent_scale(name, vae.config.get(name), vae.config.latent_channels, field, folder)
    if (vae.config.get("latents_mean") is None) != (vae.config.get("latents_std") is None):
        raise InputError("config.json: latents_mean and latents_std go together", field, folder)
    return vae.to(device)


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without the library's warning that it ignores what is in `REGISTERED`; it keeps them, and we read them."""
    before = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        yield
    finally:
        diffusers_logging.set_verbosity(before)


def _check_tiny(config: Mapping[str, Any], field: str, folder: str | PathLike) -> None:
    """What its class takes without a word, and fails at when it runs, or gives pictures of another size."""
    for part in ("encoder", "decoder"):
        if len(set(widths := config[f"{part}_block_out_channels"])) != 1:
            raise InputError(f"{part}_block_out_channels {widths}: AutoencoderTiny works at one width", field, folder)
    num_encoder, num_decoder = len(config["num_encoder_blocks"]), len(config["num_decoder_blocks"])
    if num_encoder != num_decoder or config["upsampling_scaling_factor"] != 2:
        problem = (
            f"{num_encoder} stages that halve the size and {num_decoder} that enlarge it by "
            f"{config['upsampling_scaling_factor']}: must be as many, by 2"
        )
        raise InputError(problem, field, folder)


def load_audio_encoder(
    folder: str | PathLike,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    field: str = "audio_encoder_path",
) -> tuple[PreTrainedModel, SequenceFeatureExtractor]:
    """Loads the audio encoder, of the type that its config.json names, and its feature extractor.

    Raises:
        InputError: one of them cannot be loaded, their configurations ask for what they have not, or weights are
            missing, unexpected or not finite; `field` is named.
    """
    disable_progress_bar()  # one that is gone within a second, in the middle of the program's own
    config = load_audio_config(folder, field)
    network_name, processor_name = SPEECH_ENCODERS[config.model_type]
    processor = _from_pretrained(getattr(transformers, processor_name), folder, field)
    if not isinstance(processor.sampling_rate, int) or not 1000 <= processor.sampling_rate <= 1_000_000:
        raise InputError(f"sampling_rate {processor.sampling_rate!r}: must be 1000 to 1000000 Hz", field, folder)
    options = {"dtype": dtype, "attn_implementation": ATTENTION[config.model_type]}
    if config.model_type == "whisper":
        _check_whisper(config, processor, field, folder)
        return _load_whisper(folder, field, **options).to(device), processor
    is_released = config.model_type == "wav2vec2"  # of the others, each has its own
    for name, expected in {"feature_size": 1, **({"do_normalize": True} if is_released else {})}.items():
        _check_switch(vars(processor), name, expected, field, folder)
    encoder = _load_model(getattr(transformers, network_name), folder, field, **options)
    return encoder.to(device), processor


def load_audio_config(folder: str | PathLike, field: str = "audio_encoder_path") -> PretrainedConfig:
    """Reads the configuration of an audio encoder, and checks what its weights do not show.

    Raises:
        InputError: it is missing, of another type, or asks for what the encoders have not; `field` is named.
    """
    values = _read_config(folder, field)
    model_type = values.get("model_type", "wav2vec2")
    if model_type not in SPEECH_ENCODERS:
        raise InputError(f"model_type is {model_type!r}; allowed are {', '.join(SPEECH_ENCODERS)}", field, folder)
    for name, allowed in CODE_KEYS.items():
        if values.get(name) not in allowed:
            shown = textwrap.shorten(repr(values[name]), 80)
            advice = f"allowed is {' or '.join(filter(None, allowed))}" if any(allowed) else "leave it out"
            raise InputError(f"config.json: {name} is {shown}, which may run other code; {advice}", field, folder)
    try:
        config = type(transformers.AutoConfig.for_model(model_type)).from_dict(values)
        read_layers(config)
    except Exception as error:  # of values of other kinds, the library raises anything
        raise InputError(f"config.json: {first_line(error)}", field, folder) from error
    if model_type == "whisper":
        _check_switch(values, "activation_function", "gelu", field, folder)
        return config
    for name in ("hidden_act", "feat_extract_activation"):
        _check_switch(values, name, "gelu", field, folder)
    # Both forms of the encoder have weights of the same names: only the norm of the first layers tells them apart.
    _check_switch(values, "do_stable_layer_norm", config.feat_extract_norm == "layer", field, folder)
    _check_switch(values, "add_adapter", False, field, folder)  # which would change the steps
    return config


def _check_whisper(
    config: PretrainedConfig, processor: SequenceFeatureExtractor, field: str, folder: str | PathLike
) -> None:
    """Raises an InputError if the spectrum is not what the encoder takes."""
    if normalises(processor):
        raise InputError("do_normalize is True, and these weights go with False alone", field, folder)
    _check_switch(vars(processor), "hop_length", WHISPER_HOP, field, folder)
    window = (config.num_mel_bins, config.max_source_positions * WHISPER_STRIDE)
    found = (processor.feature_size, processor.nb_max_frames)
    if found != window:
        raise InputError(
            f"preprocessor_config.json makes spectra of {found[0]} x {found[1]} (feature_size, chunk_length), the "
            f"encoder takes {window[0]} x {window[1]} (num_mel_bins, max_source_positions)",
            field,
            folder,
        )


def _load_whisper(folder: str | PathLike, field: str, dtype: torch.dtype, **options) -> PreTrainedModel:
    from vexpress.models.whisper_encoder import WhisperSpeechEncoder  # half a second, which no other needs

    options |= {"dtype": dtype, "key_mapping": {WHISPER_FOLDER: ""}}
    loaded = _load_model(WhisperSpeechEncoder, folder, field, **options)
    # One that was loaded with other names cannot be saved (transformers 5.23): a clean one takes its weights.
    encoder = WhisperSpeechEncoder(loaded.config).to(dtype)
    encoder.load_state_dict(loaded.state_dict())
    return encoder.eval()


def _read_config(folder: str | PathLike, field: str) -> dict:
    if not Path(folder).is_dir():  # the libraries take a missing folder for the name of a model on a hub
        raise InputError("no such folder", field, folder)
    try:
        config = read_config(Path(folder) / "config.json")
        check_counts(config)
        return config
    except InputError as error:
        raise InputError(str(error), field, folder) from error


def _check_switch(config: Mapping[str, Any], name: str, expected: Any, field: str, folder: str | PathLike) -> None:
    """A switch that no weight depends on: changed, it would give other results without a word."""
    if config.get(name, expected) != expected:
        raise InputError(f"{name} is {config[name]!r}, and these weights go with {expected!r} alone", field, folder)


def _check_latent_scale(name: str, value: Any, num_channels: int, field: str, folder: str | PathLike) -> None:
    """Scale and shift of latents: None, or finite numbers; a scale is above 0."""
    if value is None and name != "scaling_factor":
        return
    is_list = name.startswith("latents_")
    numbers = list(value) if isinstance(value, list | tuple) and is_list else [value]
    fits = len(numbers) == (num_channels if is_list else 1)
    fits = fits and all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
    if not fits or (name in ("scaling_factor", "latents_std") and min(numbers) <= 0):
        raise InputError(f"{name} {value!r} scales no latents of {num_channels} channels", field, folder)


def _load_model(library_class: type, folder: str | PathLike, field: str, **options) -> nn.Module:
    _check_files(Path(folder), field)
    model, info = _from_pretrained(library_class, folder, field, output_loading_info=True, **options)
    problems = {
        "missing": [name for name in info["missing_keys"] if name not in MISSING_IS_HARMLESS],
        "unexpected": [n for n in info["unexpected_keys"] if not n.startswith(tuple(UNEXPECTED_IS_HARMLESS))],
        "misshapen": [str(key) for key in info["mismatched_keys"]],
    }
    if any(problems.values()):
        found = "; ".join(f"{len(n)} {kind}: {', '.join(sorted(n)[:4])}" for kind, n in problems.items() if n)
        raise InputError(f"weights not fit for {library_class.__name__}: {found}", field, folder)
    for name, tensor in model.state_dict().items():
        if name not in MISSING_IS_HARMLESS:
            check_finite(name, tensor, f"`{field}` {folder}")
    return model.eval()


def _check_files(folder: Path, field: str) -> None:
    """Looks at the files of a folder before the library reads weights out of any of them.

    Raises:
        InputError: an archive that is packed, or an adapter, which would change the weights.
    """
    if (folder / ADAPTER_FILE).exists():
        raise InputError(f"holds an adapter ({ADAPTER_FILE}); merge it into the weights", field, folder)
    for path in folder.rglob("*"):  # an index may name files of any suffix, at any depth
        try:
            if path.is_file():
                check_archive(path)
        except InputError as error:
            raise InputError(f"{path.name}: {error.problem}", field, folder) from error
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{path.name}: cannot be read ({first_line(error)})", field, folder) from error


def _from_pretrained(library_class: type, folder: str | PathLike, field: str, **options):
    try:
        return library_class.from_pretrained(folder, local_files_only=True, **options)
    except Exception as error:  # parsers of damaged files raise anything
        raise InputError(f"holds no {library_class.__name__} ({first_line(error)})", field, folder) from error


def save_frozen_parts(
    folder: str | PathLike,
    vae: Autoencoder,
    audio_encoder: PreTrainedModel,
    audio_processor: SequenceFeatureExtractor,
) -> None:
    """Writes image autoencoder and audio encoder into a folder of the released layout."""
    folder = Path(folder)
    vae.save_pretrained(folder / LAYOUT["vae_path"])
    audio_encoder.save_pretrained(folder / LAYOUT["audio_encoder_path"])
    audio_processor.save_pretrained(folder / LAYOUT["audio_encoder_path"])
