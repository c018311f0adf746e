"""What a request may hold, made of the tables of options: JSON schema, checks, and values from form fields."""

import dataclasses
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from vexpress.data.attribute_curves import read_curves
from vexpress.errors import InputError
from vexpress.fields import allowed_values, kind_of
from vexpress.options import PRESETS, MotionOptions, SamplingOptions, preset_values
from vexpress.server.settings import ServeSettings

SERVERS_OWN = ("dtype", "test_stage", "windows_per_batch", "face_models")
"""Options that whoever starts the service decides on."""
FILE_FIELDS = {
    "portrait": "picture of a face: PNG, JPEG, WebP",
    "audio": "speech: any sound or video file",
    "kps": "keypoints: .npz, .safetensors or .pth",
    "driving_video": "video whose head motion is followed",
}
"""Files of a request, and what they are."""
TEXT_FIELDS = {
    "text": "what is spoken in place of `audio`, where the server has espeak-ng",
    "voice": "voice of `text`, one of those that /v1/info lists",
    "portrait_example": "name of an example in place of `portrait`",
    "audio_example": "name of an example in place of `audio`",
    "motion_example": "name of an example in place of `driving_video`",
    "preset": "name of a preset of options; values that are given count more",
}
SPEECH_FIELDS = ("audio", "audio_example", "text", "voice")
"""Fields that say what is spoken."""
TRUE, FALSE = ("true", "1", "on", "yes"), ("false", "0", "off", "no")
MAX_TEXT_BYTES = 16 * 1024  # of an option's or a field's text: a curve of two minutes at 30 frames per second
JSON_TYPES = {int: "integer", float: "number", bool: "boolean", str: "string"}


def option_fields() -> list[dataclasses.Field]:
    """The options that a request may set."""
    fields = [*dataclasses.fields(SamplingOptions), *dataclasses.fields(MotionOptions)]
    return [field for field in fields if field.name not in SERVERS_OWN]


def upper_bounds(settings: ServeSettings) -> dict[str, float]:
    """Bounds of this service that are closer than the table's."""
    return {
        "image_width": settings.max_px,
        "image_height": settings.max_px,
        "num_inference_steps": settings.max_steps,
    }


def option_schema(field: dataclasses.Field, default: Any, most: float | None = None) -> dict[str, Any]:
    """JSON schema of an option."""
    facts = field.metadata
    unit = f" ({facts['unit']})" if facts["unit"] else ""
    schema: dict[str, Any] = {"type": JSON_TYPES[kind_of(field)], "description": facts["help"] + unit}
    if facts["choices"] is not None:
        schema["enum"] = list(facts["choices"])
    elif kind_of(field) is str:
        schema["maxLength"] = MAX_TEXT_BYTES
    for key, name in (("low", "minimum"), ("high", "maximum"), ("multiple", "multipleOf")):
        if facts[key] is not None:
            schema[name] = facts[key]
    if most is not None:
        schema["maximum"] = min(most, schema.get("maximum", most))
    if default is not None:
        schema["default"] = default
    return schema


def request_schema(defaults: SamplingOptions, settings: ServeSettings, as_form: bool) -> dict[str, Any]:
    """JSON schema of a request for a video.

    Args:
        defaults: the model's.
        settings: limits of this service.
        as_form: of multipart/form-data, whose files are binary; else of JSON, whose files are base64.
    """
    what = {"format": "binary"} if as_form else {"contentEncoding": "base64"}
    properties: dict[str, Any] = {
        name: {"type": "string", **what, "description": help} for name, help in FILE_FIELDS.items()
    }
    properties |= {name: {"type": "string", "description": help} for name, help in TEXT_FIELDS.items()}
    properties["text"]["maxLength"] = settings.max_text
    properties["preset"]["enum"] = list(PRESETS)
    bounds = upper_bounds(settings)
    for field in option_fields():
        default = getattr(defaults, field.name, field.default)
        properties[field.name] = option_schema(field, default, bounds.get(field.name))
    return {"type": "object", "properties": properties, "additionalProperties": False}


def parse_options(
    given: Mapping[str, Any], defaults: SamplingOptions, settings: ServeSettings, is_text: bool
) -> tuple[SamplingOptions, MotionOptions]:
    """Options of a request.

    Args:
        given: values by name, `preset` among them; files and other fields are left out already.
        defaults: the model's.
        settings: limits of this service.
        is_text: values are texts, as forms have them.

    Raises:
        InputError: no such option, a value of another type or out of bounds.
    """
    fields = {field.name: field for field in option_fields()}
    values = dict(given)
    preset = values.pop("preset", None) or None
    if preset is not None and (not isinstance(preset, str) or preset not in PRESETS):
        raise InputError(f"must be one of {', '.join(PRESETS)}", "preset", preset)
    values = {**preset_values(preset, vars(defaults)), **values} if preset else values
    for name in values:
        if name not in fields:
            raise InputError("is no field of a request; /docs lists them", name[:100])
    _check_texts(values)
    if is_text:
        values = {name: _from_text(fields[name], value) for name, value in values.items()}
    values = {name: value for name, value in values.items() if value is not None}
    for name, value in values.items():
        if kind_of(fields[name]) is float and type(value) is int:  # 1 and 1.0 are one value, in metadata as well
            values[name] = float(max(-sys.maxsize, min(value, sys.maxsize)))
    for name, most in upper_bounds(settings).items():
        if isinstance(values.get(name), int) and values[name] > most:
            raise InputError(f"this service makes up to {most}", name, values[name])
    motion_names = {field.name for field in dataclasses.fields(MotionOptions)}
    motion = MotionOptions(**{name: value for name, value in values.items() if name in motion_names})
    read_curves(motion, reads_files=False)  # the texts come from another machine
    sampling = defaults.changed(**{name: value for name, value in values.items() if name not in motion_names})
    return sampling, motion


def _check_texts(values: Mapping[str, Any]) -> None:
    """Checks texts before they are read and kept.

    Raises:
        InputError: one is too long, or holds half a character, which JSON can name and UTF-8 cannot.
    """
    for name, value in values.items():
        if not isinstance(value, str):
            continue
        try:
            is_short = len(value) <= MAX_TEXT_BYTES and len(value.encode()) <= MAX_TEXT_BYTES
        except UnicodeEncodeError as error:
            raise InputError("is no text of whole characters", name) from error
        if not is_short:
            raise InputError(f"is longer than {MAX_TEXT_BYTES // 1024} KB", name)


def _from_text(field: dataclasses.Field, value: Any) -> Any:
    """A form's text as a value of the option's type; None if it is empty."""
    kind, text = kind_of(field), value
    if not isinstance(text, str):
        return value  # a preset's
    if text == "":
        return None
    try:
        if kind is bool:
            return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}[text.lower()]
        number = kind(text)
    except (KeyError, ValueError) as error:
        raise InputError(f"must be {allowed_values(field)}", field.name, text[:100]) from error
    if kind is float and not math.isfinite(number):
        raise InputError(f"must be {allowed_values(field)}", field.name, text[:100])
    return number


def read_json_object(body: bytes) -> dict[str, Any]:
    """Reads a request's JSON.

    Raises:
        InputError: it is no JSON object.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InputError("the body is no valid JSON") from error
    if not isinstance(values, dict):
        raise InputError("the body must be a JSON object")
    return values
