"""What nodes are declared with: their types, and inputs from the options table with bounds, choices and help."""

from collections.abc import Iterable
from dataclasses import Field

import folder_paths
from comfy_api.latest import io

from vexpress.comfyui import folders
from vexpress.comfyui.values import UNSET
from vexpress.errors import InputError
from vexpress.fields import kind_of

CATEGORY = "V-Express"
Model = io.Custom("V_EXPRESS_PIPELINE")
"""By the old pack's name, so that its loader serves the new nodes, too."""
Kps = io.Custom("VEXPRESS_KPS")

FLOAT_STEP, FLOAT_ROUND = 0.01, 0.001


def option_inputs(fields: Iterable[Field]) -> list[io.Input]:
    """One input for each field made by `vexpress.fields.option`, by the field's name."""
    return [_option_input(field) for field in fields]


def _option_input(field: Field) -> io.Input:
    facts, kind = field.metadata, kind_of(field)
    unit = f", in {facts['unit']}" if facts["unit"] else ""
    common = {"tooltip": facts["help"] + unit, "default": field.default}
    if facts["choices"]:
        choices = [UNSET, *facts["choices"]] if facts["optional"] else list(facts["choices"])
        made = io.Combo.Input(field.name, options=choices, **(common | {"default": field.default or UNSET}))
    elif kind is str:
        made = io.String.Input(field.name, **(common | {"default": field.default or ""}))
    elif kind is bool:
        made = io.Boolean.Input(field.name, **common)
    elif kind is int:
        step = facts["multiple"] or 1
        bounds = {"min": facts["low"], "max": facts["high"], "step": step}
        made = io.Int.Input(field.name, control_after_generate=field.name == "seed" or None, **bounds, **common)
    else:
        bounds = {"min": facts["low"], "max": facts["high"], "step": FLOAT_STEP, "round": FLOAT_ROUND}
        made = io.Float.Input(field.name, **bounds, **common)
    if facts.get("advanced"):  # by hand, since older versions have no argument for it
        made.extra_dict = {**made.extra_dict, "advanced": True}
    return made


def check_input_file(name: str | None, field: str) -> bool | str:
    """What `validate_inputs` answers of a name in the input folder; None is what another node gives."""
    try:
        if name is not None:
            folders.file_in(folder_paths.get_input_directory(), name, field)
    except InputError as error:
        return str(error)
    return True
