"""The nodes of ComfyUI.

`values`, `folders`, `keypoints` and `generation` hold what the nodes do, without any import of ComfyUI's. `host` asks
ComfyUI for devices, memory, folders and progress; `nodes`, `keypoint_nodes`, `old_nodes` and `old_file_nodes` are the
nodes, declared with `widgets`; `extension` is what ComfyUI loads, by the `__init__.py` at the root of the repository.
"""
