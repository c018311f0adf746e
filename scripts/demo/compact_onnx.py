"""Stores the weights of ONNX files in half precision; they are computed with in single precision as before."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from vexpress.files import replacing

SMALLEST_SIZE = 256  # values; fewer are kept as they are


def write_compact(source: Path, target: Path) -> None:
    """Writes a network with its large weights as float16, each followed by a cast to float32.

    onnxruntime folds such casts when it loads the file.
    """
    model = onnx.load(source)
    large = {
        tensor.name: tensor
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) >= SMALLEST_SIZE
    }
    nodes = []
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            if (tensor := large.pop(name, None)) is not None:  # before its first use
                half = numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), f"{name}_half")
                tensor.CopyFrom(half)
                nodes.append(helper.make_node("Cast", [half.name], [name], to=TensorProto.FLOAT))
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.checker.check_model(model)
    with replacing(target) as temporary:
        onnx.save(model, temporary)
