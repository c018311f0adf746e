"""Whisper's encoder on its own, from a folder with or without the decoder."""

from transformers import PreTrainedModel  # noqa: F401 - diffusers finds here how a saved pipeline's part is loaded
from transformers.models.whisper.modeling_whisper import WhisperEncoder


class WhisperSpeechEncoder(WhisperEncoder):
    """Log-mel spectrum (b c t) -> hidden states (b t/2 d), t fixed by the configuration.

    A class of ours, since transformers does not export its own by name, and a saved pipeline loads by name.
    """

    _keys_to_ignore_on_load_unexpected = [r"^(model\.)?decoder\.", r"^proj_out\."]
