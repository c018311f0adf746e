"""Speech encoders of transformers: steps and longest input of each type, which layer is read, who made which states.

| `model_type` of config.json | hears | longest input |
|---|---|---|
| wav2vec2 (XLS-R too), hubert, wavlm | samples, normalised over the clip if its preprocessor says so | any |
| whisper (its encoder alone) | log-mel spectrum by its feature extractor | `max_source_positions` steps: 30 s |

`vexpress_layers` in config.json, beside the library's keys and saved along with them, says what is read: absent, the
last hidden state, as released; a number, that one of transformers' `hidden_states` (0 is before the first layer); a
list of numbers, one for each of these, their weighted sum.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor

from vexpress.errors import InputError

LAYERS_KEY = "vexpress_layers"
WHISPER_HOP = 160  # samples from one spectrum to the next; Whisper, section 2.2: 10 ms at 16 kHz
WHISPER_STRIDE = 2  # spectra per step: the second convolution's stride
STATES_HZ = 50.0  # of the released encoder: 16000 Hz / 320 samples
UNTRAINED = "masked_spec_embed"  # random where the file lacks it, and never read

Layers = int | tuple[float, ...] | None


def step_samples(config: PretrainedConfig) -> tuple[int, int]:
    """Samples that a step of the encoder needs, and samples from one step to the next.

    Whisper's steps lie in the middle of some 1000 samples, and silence stands for what is beyond the ends.
    """
    if config.model_type == "whisper":
        return WHISPER_HOP * WHISPER_STRIDE, WHISPER_HOP * WHISPER_STRIDE
    receptive_field, hop = 1, 1
    for kernel, stride in zip(config.conv_kernel, config.conv_stride):
        receptive_field, hop = receptive_field + (kernel - 1) * hop, hop * stride
    return receptive_field, hop


def count_steps(config: PretrainedConfig, num_samples: int) -> int:
    """Hidden states of so many samples; at least 1, since shorter speech is padded."""
    receptive_field, hop = step_samples(config)
    return max(0, num_samples - receptive_field) // hop + 1


def most_steps(config: PretrainedConfig) -> int | None:
    """Steps that the encoder takes at once; None: any number."""
    return config.max_source_positions if config.model_type == "whisper" else None


def normalises(processor: SequenceFeatureExtractor) -> bool:
    """Whether speech is brought to zero mean and unit variance before it is encoded."""
    return bool(getattr(processor, "do_normalize", False))


def check_width(config: PretrainedConfig, projection_width: int, field: str, value: str | None = None) -> None:
    """Raises an InputError of a field unless hidden states are as wide as the audio projection takes them."""
    if config.hidden_size != projection_width:
        raise InputError(
            f"its hidden states are {config.hidden_size} wide, the audio projection takes {projection_width}: give the "
            "encoder that the model was trained with",
            field,
            value,
        )


def read_layers(config: PretrainedConfig) -> Layers:
    """Which hidden states are read; see the module's description.

    Raises:
        ValueError: such layers cannot be.
    """
    layers = getattr(config, LAYERS_KEY, None)
    num_states = config.num_hidden_layers + 1
    if layers is None:
        return None
    if isinstance(layers, int) and not isinstance(layers, bool) and 0 <= layers < num_states:
        return layers
    is_list = isinstance(layers, list | tuple) and len(layers) == num_states
    if is_list and all(isinstance(w, int | float) and not isinstance(w, bool) and math.isfinite(w) for w in layers):
        return tuple(map(float, layers))
    allowed = f"a number from 0 to {num_states - 1}, or a list of {num_states} weights"
    raise ValueError(f"{LAYERS_KEY} is {layers!r}; allowed is {allowed}")


def hidden_states(
    encoder: PreTrainedModel, processor: SequenceFeatureExtractor, values: Tensor, device: torch.device | None = None
) -> Tensor:
    """Encodes what the encoder takes at once.

    Args:
        encoder: on any device, in any dtype.
        processor: for Whisper, makes the spectrum.
        values: (n,) samples, normalised if `normalises(processor)`; at least one step's, at most `most_steps`.
        device: where the encoder works; None is where it is.

    Returns:
        (m d), m = `count_steps`, on that device and in the encoder's dtype.
    """
    config, layers = encoder.config, read_layers(encoder.config)
    num_steps = count_steps(config, len(values))
    if config.model_type == "whisper":
        # What makes no whole step would change the spectrum's floor. Silence fills the window, as Whisper was trained.
        samples = values[: num_steps * WHISPER_HOP * WHISPER_STRIDE].numpy()
        heard = processor(samples, sampling_rate=processor.sampling_rate, return_tensors="pt").input_features
    else:
        heard = values[None]
    heard = heard.to(device or encoder.device, encoder.dtype)
    if layers is None:
        return encoder(heard).last_hidden_state[0, :num_steps]
    states = encoder(heard, output_hidden_states=True).hidden_states
    if isinstance(layers, int):
        return states[layers][0, :num_steps]
    return sum(weight * state[0, :num_steps] for weight, state in zip(layers, states))


@dataclass(frozen=True)
class EncoderRecord:
    """Who made hidden states: what stands in their file.

    Attributes:
        type: `model_type` of the encoder.
        digest: of its weights and what decides how they are used; empty where unknown.
        layers: which hidden states they are, see the module's description.
        states_hz: steps per second.
    """

    type: str = "wav2vec2"
    digest: str = ""
    layers: Layers = None
    states_hz: float = STATES_HZ

    def fits(self, other: "EncoderRecord") -> bool:
        """Whether both may be the same encoder: all that is known of both is alike."""
        is_alike = (self.type, self.layers, self.states_hz) == (other.type, other.layers, other.states_hz)
        return is_alike and (self.digest == other.digest or not (self.digest and other.digest))

    def __str__(self) -> str:
        layers = "last layer" if self.layers is None else f"layer {self.layers}"
        if isinstance(self.layers, tuple):
            layers = f"layers weighted {', '.join(f'{weight:g}' for weight in self.layers)}"
        return f"{self.type} {self.digest or '(weights unknown)'}, {layers}"

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_text(cls, text: Any) -> "EncoderRecord":
        """Reads what `to_text` wrote, from a file that is not trusted.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(text, str) or len(text) > 10_000:
            raise ValueError("is no short text")
        try:
            values = json.loads(text)
        except RecursionError as error:
            raise ValueError("is nested too deep") from error
        if not isinstance(values, dict) or values.keys() != cls.__dataclass_fields__.keys():
            raise ValueError("has other keys")
        layers, hz = values["layers"], values["states_hz"]
        is_layers = layers is None or type(layers) is int
        is_layers = is_layers or (isinstance(layers, list) and all(isinstance(w, float) for w in layers))
        is_text = all(isinstance(text, str) and len(text) <= 64 for text in (values["type"], values["digest"]))
        if not (is_layers and is_text and isinstance(hz, int | float) and 1 <= hz <= 10_000):
            raise ValueError("has values of other kinds")
        return cls(**values | {"layers": tuple(layers) if isinstance(layers, list) else layers})


def describe_encoder(encoder: PreTrainedModel, processor: SequenceFeatureExtractor) -> EncoderRecord:
    """Computes what is recorded of an encoder; a copy of it in fp16, or in another file format, has the same record."""
    config = encoder.config
    facts = [config.model_type, config.num_attention_heads, *step_samples(config)]
    digest = hashlib.sha256(repr([*facts, processor.sampling_rate, normalises(processor)]).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        if name != UNTRAINED:
            digest.update(f"{name} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().half().contiguous().numpy().data)
    states_hz = processor.sampling_rate / step_samples(config)[1]
    return EncoderRecord(config.model_type, digest.hexdigest()[:16], read_layers(config), states_hz)
