"""Measures generated videos: `vexpress evaluate`, with a meter for the mouths of drawn faces."""

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from vexpress.cli.evaluate import main
from vexpress.cli.program import run_program

if TYPE_CHECKING:
    import numpy as np

    from vexpress.evaluation.faces import FaceTrack


def measure_drawn(frames: "np.ndarray", target: "np.ndarray | None", faces: "FaceTrack | None") -> "np.ndarray | None":
    """The mouth meter of drawn faces, which reads colours around the target keypoints."""
    if "scripts" not in sys.modules:  # called by path, this folder is on Python's path and not the one above it
        here = Path(__file__).parent
        spec = importlib.util.spec_from_file_location(
            "scripts", here / "__init__.py", submodule_search_locations=[str(here)]
        )
        sys.modules["scripts"] = importlib.util.module_from_spec(spec)
    from scripts.demo.mouth_meter import measure_mouth

    return None if target is None else measure_mouth(frames, target)


METERS = {"drawn": measure_drawn}

if __name__ == "__main__":
    sys.exit(run_program(lambda: main(meters=METERS)))
