"""An ONNX model with the operator Attention, run by ONNX's reference evaluator with Clary inside."""

import clary.onnx
import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

shapes = {"Q": [1, 8, 200, 64], "K": [1, 2, 200, 64], "V": [1, 2, 200, 64]}
node = onnx.helper.make_node("Attention", ["Q", "K", "V"], ["Y"], is_causal=1, softcap=20.0)
graph = onnx.helper.make_graph(
    [node],
    "attention",
    [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in shapes.items()],
    [onnx.helper.make_tensor_value_info("Y", onnx.TensorProto.FLOAT, None)],
)
model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 23)])

rng = np.random.default_rng(0)
inputs = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
(expected,) = ReferenceEvaluator(model).run(None, inputs)
for precision in ("exact", "int8"):
    (out,) = ReferenceEvaluator(model, new_ops=clary.onnx.ops(precision=precision)).run(None, inputs)
    error = np.linalg.norm(out - expected) / np.linalg.norm(expected)
    print(f"{precision:5} relative L2 distance to ONNX's own: {error:.1e}")
