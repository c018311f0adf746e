"""What ComfyUI loads: the list of nodes, and which new nodes stand for the old pack's."""

from comfy_api.latest import ComfyAPI, ComfyExtension, io

from vexpress.comfyui import host
from vexpress.comfyui.keypoint_nodes import KEYPOINT_NODES
from vexpress.comfyui.nodes import NODES
from vexpress.comfyui.old_nodes import OLD_NODES

SAME = (
    *("retarget_strategy", "fps", "seed", "num_inference_steps", "guidance_scale", "context_frames"),
    *("context_overlap", "reference_attention_weight", "audio_attention_weight"),
)
SAMPLER_INPUTS = {
    "model": "v_express_pipeline",
    "portrait": "ref_image_path",
    "audio": "audio_path",
    "kps": "kps_path",
    **{name: name for name in SAME},
}
REPLACEMENTS = {
    "Load_Image_Path": ("LoadImage", {"image": "image"}),
    "Load_Audio_Path": ("LoadAudio", {"audio": "audio_path"}),
    "Load_Video_Path": ("LoadVideo", {"file": "video_path"}),
    "Load_Kps_Path": ("VExpress_LoadKps", {"file": "kps_path"}),
    "V_Express_Sampler": ("VExpress_SampleToVideo", SAMPLER_INPUTS),
}
"""Old node -> the node that replaces it, and its inputs by those of the old one. Old nodes that are left out have no
counterpart with the same inputs; they stay, and run."""


class VExpressExtension(ComfyExtension):
    """The pack."""

    async def on_load(self) -> None:
        """Registers replacements where this ComfyUI has them."""
        api = ComfyAPI()
        if not (hasattr(io, "NodeReplace") and hasattr(api, "node_replacement")):
            return
        for schema in (node.define_schema() for node in OLD_NODES):
            if schema.node_id in REPLACEMENTS:
                new, inputs = REPLACEMENTS[schema.node_id]
                replacement = io.NodeReplace(
                    new_node_id=new,
                    old_node_id=schema.node_id,
                    old_widget_ids=[one.id for one in schema.inputs if isinstance(one, io.WidgetInput)],
                    input_mapping=[{"new_id": to, "old_id": given} for to, given in inputs.items()],
                    output_mapping=[{"new_idx": 0, "old_idx": 0}],
                )
                await api.node_replacement.register(replacement)

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """All nodes."""
        return [*NODES, *KEYPOINT_NODES, *OLD_NODES]


async def comfy_entrypoint() -> VExpressExtension:
    """What ComfyUI calls."""
    host.register_folders()
    return VExpressExtension()
