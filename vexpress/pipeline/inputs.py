"""Checks of what the pipeline is given. What can be converted is; all else is refused by name, in one line."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vexpress.errors import InputError, first_line
from vexpress.media.images import given_to_rgb
from vexpress.media.keypoints import MAX_KPS_PX
from vexpress.models.attributes import ATTRIBUTES
from vexpress.options import CALL, SamplingOptions, option_fields

MAX_SIZE_PX = next(field.metadata["high"] for field in fields(SamplingOptions) if field.name == "image_height")
OUTPUT_TYPES = ("pil", "np", "pt", "latent", "generator")
TENSOR_INPUTS = ("latents",)
"""What `callback_on_step_end` may ask for."""


def sampling_options(options: SamplingOptions | None, changes: dict[str, Any]) -> SamplingOptions:
    """The table's options, or those given, with keyword arguments of a call.

    Raises:
        InputError: no such option, one that takes no effect in the pipeline, or a value out of bounds.
    """
    if options is None:
        options = SamplingOptions()
    if not isinstance(options, SamplingOptions):
        raise InputError("must be SamplingOptions or None", "options", _kind(options))
    allowed = [field.name for field in option_fields(CALL)]
    for name in changes:
        if name not in allowed:
            raise InputError(f"is no option of the pipeline; there are {', '.join(allowed)}", name)
    return options.changed(**{name: _as_number(value) for name, value in changes.items()})


def check_number(field: str, value: Any, low: float, high: float) -> None:
    """Raises an InputError unless `value` is a number, low to high."""
    if isinstance(value, bool) or not isinstance(value, int | float | Fraction) or not low <= value <= high:
        raise InputError(f"must be {low} to {high}", field, value)


def check_choice(field: str, value: Any, choices: Sequence[str]) -> None:
    """Raises an InputError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"must be one of {', '.join(choices)}", field, repr(value))


def check_callback(callback: Any, tensor_inputs: Any) -> None:
    """Raises an InputError unless these are a callable, or None, and names among `TENSOR_INPUTS`."""
    if callback is not None and not callable(callback):
        raise InputError("must be callable", "callback_on_step_end", _kind(callback))
    if isinstance(tensor_inputs, str) or not set(tensor_inputs) <= set(TENSOR_INPUTS):
        allowed = f"must be a list of names among {', '.join(TENSOR_INPUTS)}"
        raise InputError(allowed, "callback_on_step_end_tensor_inputs", tensor_inputs)


def check_generator(generator: Any) -> None:
    """Raises an InputError unless this is a torch.Generator or None."""
    if generator is not None and not isinstance(generator, torch.Generator):
        raise InputError("must be one torch.Generator", "generator", _kind(generator))


def check_device(device: Any) -> torch.device:
    """Turns a device's name into the device.

    Raises:
        InputError: there is no such device.
    """
    try:
        return torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
        raise InputError(f"is no device of this machine ({first_line(error)})", "device", device) from error


def prepare_image(image: Any, height: Any, width: Any, multiple: int) -> Image.Image:
    """Checks a portrait, and resizes it.

    Args:
        image: a picture, which is taken as a viewer shows it, or an array (H W 3) uint8.
        height: px; None takes the picture's. Likewise `width`.
        multiple: of which height and width must be multiples.

    Returns:
        RGB, of the size asked for.

    Raises:
        InputError: no such picture, or a size that does not work.
    """
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3:
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise InputError("must be a PIL image or an array (H, W, 3) uint8", "reference_image", _kind(image))
    size = {}
    for name, given, own in (("width", width, image.width), ("height", height, image.height)):
        size[name] = own if given is None else _as_number(given)
        is_whole = type(size[name]) is int
        if not is_whole or not 0 < size[name] <= MAX_SIZE_PX or size[name] % multiple:
            raise InputError(f"must be a multiple of {multiple}, up to {MAX_SIZE_PX}", name, size[name])
    image = given_to_rgb(image, "reference_image")
    return image.resize((size["width"], size["height"]), Image.Resampling.LANCZOS)


def prepare_audio_tokens(tokens: Any, shape: tuple[int, ...], waveform: Any) -> Tensor:
    """Checks audio tokens, beside which there is no waveform.

    Args:
        tokens: (1 f m d) floating point, a tensor or an array.
        shape: that they must have.
        waveform: the other argument, which must be None.

    Returns:
        The same as a tensor.

    Raises:
        InputError: both are given, another shape or type, or values that are not finite.
    """
    if waveform is not None:
        raise InputError("is given beside `audio_waveform`; leave one of them out", "audio_tokens")
    tokens = as_tensor(tokens, "audio_tokens")
    if tokens.shape != shape or not tokens.is_floating_point():
        raise InputError(
            f"must be of shape {shape} and of floating point, not {tuple(tokens.shape)} of {tokens.dtype}",
            "audio_tokens",
        )
    _as_finite(tokens, "audio_tokens")
    return tokens


def prepare_waveform(waveform: Any, field: str = "audio_waveform") -> Tensor:
    """Checks speech, (n,) floating point: a tensor, an array or a list of numbers.

    Returns:
        (n,) float32 on the CPU.

    Raises:
        InputError: another shape or type, or values that are not finite.
    """
    waveform = as_tensor(waveform, field)
    if not waveform.is_floating_point():
        raise InputError(f"must be of floating point, not {waveform.dtype}", field)
    if waveform.ndim != 1 or not len(waveform):
        raise InputError("must be of shape (n,), n > 0", field, tuple(waveform.shape))
    return _as_finite(waveform, field)


def prepare_kps(kps: Any, field: str = "kps_sequence") -> Tensor:
    """Checks keypoints, (f 3 2) px: a tensor, an array or a list of numbers.

    Returns:
        (f 3 2) float32 on the CPU.

    Raises:
        InputError: another shape or type, or values that are not finite or far off.
    """
    kps = as_tensor(kps, field)
    if kps.is_complex() or kps.dtype is torch.bool:
        raise InputError(f"must hold real numbers, not {kps.dtype}", field)
    if kps.ndim != 3 or not len(kps) or kps.shape[1:] != (3, 2):
        raise InputError("must be of shape (f, 3, 2), f > 0", field, tuple(kps.shape))
    kps = _as_finite(kps, field)
    if kps.abs().max() > MAX_KPS_PX:
        raise InputError(f"is {float(kps.abs().max()):.3g} px from 0; allowed are up to {MAX_KPS_PX} px", field)
    return kps


def prepare_attributes(attributes: Any, field: str = "attributes") -> Tensor:
    """Checks attributes, (f 6) in the order of `vexpress.models.attributes.ATTRIBUTES`; NaN is not known.

    Returns:
        (f 6) float32 on the CPU.

    Raises:
        InputError: another shape or type, or values out of range.
    """
    values = as_tensor(attributes, field)
    if values.is_complex() or values.dtype is torch.bool:
        raise InputError(f"must hold real numbers, not {values.dtype}", field)
    if values.ndim != 2 or not len(values) or values.shape[1] != len(ATTRIBUTES):
        raise InputError(f"must be of shape (f, {len(ATTRIBUTES)}), f > 0", field, tuple(values.shape))
    values = values.to("cpu", torch.float32)
    for name, (low, high), column in zip(ATTRIBUTES, ATTRIBUTES.values(), values.T):
        if ((column < low) | (column > high)).any():
            raise InputError(f"must have {name} from {low:g} to {high:g}, or NaN", field)
    return values


def prepare_latents(latents: Any, shape: tuple[int, ...]) -> Tensor:
    """Checks initial noise.

    Returns:
        float32 on the CPU.

    Raises:
        InputError: another shape or type, or values that are not finite.
    """
    latents = as_tensor(latents, "latents")
    if not latents.is_floating_point():
        raise InputError(f"must be of floating point, not {latents.dtype}", "latents")
    if latents.shape != shape:
        raise InputError(f"must be of shape {shape}", "latents", tuple(latents.shape))
    return _as_finite(latents, "latents")


def replacement_of(callback: Callable, pipeline: Any, names: Sequence[str]) -> Callable[[int, Tensor, Tensor], Any]:
    """Makes diffusers' `callback_on_step_end` one of (step, timestep, latents) that gives the latents to go on with.

    Raises:
        InputError: when called, if the callback returns something else than a dictionary or None.
    """

    def on_step(step: int, timestep: Tensor, latents: Tensor) -> Tensor | None:
        # Copies, since latents are overwritten by the next step, and a callback may keep what it got or gave.
        returned = callback(pipeline, step, timestep, {"latents": latents.clone()} if names else {})
        if returned is None:
            return None
        if not isinstance(returned, dict):
            raise InputError("must return a dictionary", "callback_on_step_end", _kind(returned))
        if "latents" not in returned:
            return None
        return prepare_latents(returned["latents"], latents.shape).clone()

    return on_step


def _as_number(value: Any) -> Any:
    """A number of Python's in place of one of numpy's or of a tensor of no dimension."""
    is_scalar = isinstance(value, np.generic) or (isinstance(value, Tensor | np.ndarray) and value.ndim == 0)
    return value.item() if is_scalar else value


def as_tensor(value: Any, field: str) -> Tensor:
    """A tensor of an array or of numbers.

    Raises:
        InputError: it is none, or an odd one.
    """
    try:
        if isinstance(value, list | tuple):
            value = np.asarray(value, dtype=np.float32)
        if isinstance(value, np.ndarray):
            # A copy, since an array may be read-only or of another byte order, which tensors cannot be.
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("=")))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"must be a tensor, or an array of numbers ({first_line(error)})", field) from error
    if not isinstance(value, Tensor):
        raise InputError("must be a tensor, or an array of numbers", field, _kind(value))
    if value.layout is not torch.strided or value.is_meta or value.is_quantized:
        raise InputError("must be a plain tensor", field)
    return value.detach()


def _as_finite(value: Tensor, field: str) -> Tensor:
    value = value.to("cpu", torch.float32)
    if not value.isfinite().all():
        raise InputError("must be finite: it holds infinities or values that are no number", field)
    return value


def _kind(value: Any) -> str:
    return type(value).__name__
