"""What ComfyUI loads where this repository is cloned into custom_nodes/; nothing else imports it, and nothing happens
before ComfyUI calls."""

WEB_DIRECTORY = "./vexpress/comfyui/web"  # help pages


async def comfy_entrypoint():
    """The pack's nodes, from the package `vexpress` beside this file, whether or not it is installed, too."""
    import importlib.util
    import pathlib
    import sys

    if "vexpress" not in sys.modules:
        init = pathlib.Path(__file__).parent / "vexpress" / "__init__.py"
        spec = importlib.util.spec_from_file_location("vexpress", init)
        sys.modules["vexpress"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["vexpress"])
    from vexpress.comfyui.extension import comfy_entrypoint as load

    return await load()
