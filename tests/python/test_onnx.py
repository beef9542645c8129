"""clary.onnx against the node tests that the package onnx generates, and against its reference implementation."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnx")

# isort: off
import onnx  # noqa: E402
import onnx.backend.test.case.node as node_cases  # noqa: E402
import onnx.backend.test.case.node.attention  # noqa: E402  (importing it makes the cases)
from onnx import TensorProto, helper  # noqa: E402
from onnx.backend.test.runner import Runner  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

import clary.onnx  # noqa: E402
# isort: on

# Cases of "..._expanded" graphs have no Attention node in them.
CASES = {
    case.name: case
    for case in node_cases._NodeTestCases
    if any(node.op_type == "Attention" for node in case.model.graph.node)
}
# They also ask for the scores, which are not offered; their other outputs are compared.
WITH_SCORES = [
    "test_attention_23_fullymasked_qk_matmul_output_mode3_zero",
    "test_attention_24_fullymasked_qk_matmul_output_mode3_zero",
    "test_attention_24_qk_matmul_output_mode3_softmax_precision",
    "test_attention_3d_with_past_and_present_qk_matmul",
    "test_attention_3d_with_past_and_present_qk_matmul_bias",
    "test_attention_3d_with_past_and_present_qk_matmul_softcap",
    "test_attention_3d_with_past_and_present_qk_matmul_softmax",
    "test_attention_4d_with_past_and_present_qk_matmul",
    "test_attention_4d_with_past_and_present_qk_matmul_bias",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_3d_mask_causal",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask",
    "test_attention_4d_with_past_and_present_qk_matmul_bias_4d_mask_causal",
    "test_attention_4d_with_qk_matmul",
    "test_attention_4d_with_qk_matmul_bias",
    "test_attention_4d_with_qk_matmul_softcap",
    "test_attention_4d_with_qk_matmul_softmax",
    "test_attention_local_window_gqa_rank4_mask",
]
# Hidden keys hold values of 1000 there, which widen the 8-bit scales of the visible ones; the guard sees that.
NEEDS_GUARD = "test_attention_4d_softcap_neginf_mask_poison"
INT8_L1, INT8_NMSE = 1e-2, 5e-4  # sum |d| / sum |ref|, sum d^2 / sum ref^2


def without_scores(model: Any) -> Any:
    model = copy.deepcopy(model)
    del model.graph.node[0].output[3:]
    outputs = [output for output in model.graph.output if output.name != "qk_matmul_output"]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    return model


def run(name: str, change: Any = None, **options: Any) -> tuple[list[Any], list[Any]]:
    """(outputs, expected outputs) of a case; `change` gets the inputs by name first."""
    case = CASES[name]
    model = without_scores(case.model)
    (inputs, expected), *more = case.data_sets
    assert not more
    feeds = dict(zip((value.name for value in model.graph.input), inputs))
    if change is not None:
        change(feeds)
    outputs = ReferenceEvaluator(model, new_ops=clary.onnx.ops(**options)).run(None, feeds)
    assert len(outputs) == len(model.graph.output) >= 1
    return outputs, expected[: len(outputs)]


def test_the_suite_is_there() -> None:
    assert len(CASES) >= 93
    assert {case.model.opset_import[0].version for case in CASES.values()} == {23, 24, 25}
    assert sorted(n for n, case in CASES.items() if len(case.model.graph.node[0].output) > 3) == WITH_SCORES


@pytest.mark.parametrize("name", CASES)
def test_exact(name: str) -> None:
    outputs, expected = run(name)
    Runner.assert_similar_outputs(expected, outputs, CASES[name].rtol, CASES[name].atol)


@pytest.mark.parametrize("name", CASES)
def test_int8(name: str) -> None:
    outputs, expected = run(name, precision="int8", guard=0.02 if name == NEEDS_GUARD else None)
    out, reference = outputs[0].astype(np.float64), expected[0].astype(np.float64)
    d = out - reference
    assert np.abs(d).sum() <= INT8_L1 * np.abs(reference).sum()
    assert np.square(d).sum() <= INT8_NMSE * np.square(reference).sum()
    for present, wanted in zip(outputs[1:], expected[1:]):
        np.testing.assert_array_equal(present, wanted)


def test_int8_is_not_exact() -> None:
    """That the precision reaches the library: with more rows than are computed exactly under every preset."""

    def lengthen(feeds: Any) -> None:
        feeds["Q"] = np.tile(feeds["Q"], (1, 1, 8, 1))

    int8, exact = (run("test_attention_4d", lengthen, precision=x)[0][0] for x in ("int8", "exact"))
    assert exact.shape[2] > 16
    assert not np.array_equal(int8, exact)


@pytest.mark.parametrize("name", CASES)
def test_a_wrong_result_is_noticed(name: str) -> None:
    """Values 5 % larger, the rest as it is: the comparison of test_exact must refuse what comes out."""
    outputs, expected = run(name, change=lambda feeds: feeds.update(V=(feeds["V"] * 1.05).astype(feeds["V"].dtype)))
    with pytest.raises(AssertionError):
        Runner.assert_similar_outputs(expected, outputs, CASES[name].rtol, CASES[name].atol)


@pytest.mark.parametrize("name", WITH_SCORES)
def test_scores_are_refused_by_name(name: str) -> None:
    case = CASES[name]
    feeds = dict(zip((value.name for value in case.model.graph.input), case.data_sets[0][0]))
    with pytest.raises(NotImplementedError, match="qk_matmul_output"):
        ReferenceEvaluator(case.model, new_ops=clary.onnx.ops()).run(None, feeds)


# ---- against the reference implementation ------------------------------------------------------------------------


def reference(inputs: dict[str, Any], attributes: dict[str, Any], opset: int = 25) -> list[Any]:
    """What onnx's own implementation computes in float64."""
    names = ["Q", "K", "V", "attn_mask", "past_key", "past_value", "nonpad_kv_seqlen"]
    node = helper.make_node("Attention", [n if n in inputs else "" for n in names], ["Y", "pk", "pv"], **attributes)
    doubles = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in inputs.items()}
    if "attn_mask" in doubles:  # causality in onnx 1.23 takes the number of queries from the mask: no broadcast there
        mask = doubles["attn_mask"]
        queries = inputs["Q"].shape[-2 if inputs["Q"].ndim == 4 else 1]
        doubles["attn_mask"] = np.broadcast_to(mask, (*mask.shape[:-2], queries, mask.shape[-1]))
    values = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), None) for n, a in doubles.items()
    ]
    results = [helper.make_tensor_value_info(n, TensorProto.DOUBLE, None) for n in node.output]
    graph = helper.make_graph([node], "g", values, results)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    return list(ReferenceEvaluator(model).run(None, doubles))


def random_call(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Inputs and attributes of opset 25: every combination of cache, mask, window, causality, rank and grouping."""
    random = np.random.default_rng(seed)
    batch, group, hkv = random.integers(1, 4, 3)
    lq, lk, past = random.integers(1, 9), random.integers(1, 12), random.integers(0, 6)
    dk, dv = random.integers(1, 17, 2)

    def normal(*shape: int) -> Any:
        return random.standard_normal(shape).astype(np.float32)

    inputs = {"Q": normal(batch, hkv * group, lq, dk), "K": normal(batch, hkv, lk, dk), "V": normal(batch, hkv, lk, dv)}
    attributes: dict[str, Any] = {"is_causal": int(random.integers(2))}
    total = lk
    cache = random.integers(3)
    if cache == 1:
        inputs |= {"past_key": normal(batch, hkv, past, dk), "past_value": normal(batch, hkv, past, dv)}
        total += past
    elif cache == 2:
        inputs["nonpad_kv_seqlen"] = random.integers(0, lk + 1, batch)
    if random.integers(2):
        shape = [int(size) if random.integers(2) else 1 for size in (batch, hkv * group, lq)]
        mask = normal(*shape[random.integers(4) :], random.integers(1, total + 1))
        inputs["attn_mask"] = mask > 0 if random.integers(2) else np.where(mask > -1, mask, -np.inf)
    for side in ("left_window_size", "right_window_size"):
        attributes[side] = int(random.integers(-1, 5))
    if random.integers(2):
        attributes |= {"softcap": 2.0, "scale": 0.3}
    if random.integers(2):  # three dimensions
        attributes |= {"q_num_heads": int(hkv * group), "kv_num_heads": int(hkv)}
        for name in "QKV":
            array = inputs[name].transpose(0, 2, 1, 3)
            inputs[name] = array.reshape(*array.shape[:2], -1)
    return inputs, attributes


@pytest.mark.parametrize("block", range(8))
def test_random_calls(block: int) -> None:
    for seed in range(block * 40, block * 40 + 40):
        inputs, attributes = random_call(seed)
        wanted = reference(inputs, attributes)
        got = clary.onnx.attention(**inputs, **attributes)
        for a, b in zip(got, wanted):
            assert a.shape == b.shape and a.dtype == np.float32, seed
            np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6, err_msg=f"seed {seed}: {attributes}")


def test_inputs_are_left_alone() -> None:
    inputs, attributes = random_call(5)
    before = {name: array.copy() for name, array in inputs.items()}
    clary.onnx.attention(**inputs, **attributes)
    for name, array in before.items():
        np.testing.assert_array_equal(inputs[name], array)


def test_a_whole_model() -> None:
    """x -> projections -> Attention -> projection, with one evaluator and with the other."""
    random = np.random.default_rng(0)
    weights = {n: random.standard_normal((32, 32)).astype(np.float32) / 6 for n in ("wq", "wk", "wv", "wo")}
    nodes = [helper.make_node("MatMul", ["x", w], [w[1]]) for w in ("wq", "wk", "wv")]
    nodes.append(helper.make_node("Attention", ["q", "k", "v"], ["y"], q_num_heads=4, kv_num_heads=4, is_causal=1))
    nodes.append(helper.make_node("MatMul", ["y", "wo"], ["z"]))
    x, z = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", "l", 32]) for n in "xz")
    graph = helper.make_graph(nodes, "g", [x], [z], [onnx.numpy_helper.from_array(w, n) for n, w in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)])
    onnx.checker.check_model(model)
    feeds = {"x": random.standard_normal((2, 50, 32)).astype(np.float32)}
    (wanted,) = ReferenceEvaluator(model).run(None, feeds)
    (got,) = ReferenceEvaluator(model, new_ops=clary.onnx.ops()).run(None, feeds)
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


# ---- what is refused ---------------------------------------------------------------------------------------------

F32 = np.zeros((2, 3, 4, 8), np.float32)
FLAT = np.zeros((2, 4, 24), np.float32)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (NotImplementedError, "qk_matmul_output", {"qk_matmul_output_mode": 0}),
        (ValueError, "softmax_precision: is 7", {"softmax_precision": 7}),
        (ValueError, "is_causal: is 2", {"is_causal": 2}),
        (ValueError, "left_window_size: is -2", {"left_window_size": -2}),
        (TypeError, "right_window_size: is 1.5", {"right_window_size": 1.5}),
        (ValueError, "q_num_heads: is 2, but Q", {"q_num_heads": 2}),
        (ValueError, "q_num_heads: is None", {"Q": FLAT, "K": FLAT, "V": FLAT}),
        (ValueError, "kv_num_heads: is 5", {"Q": FLAT, "K": FLAT, "V": FLAT, "q_num_heads": 3, "kv_num_heads": 5}),
        (ValueError, "K: has 3 dimensions", {"K": FLAT}),
        (ValueError, "V: has batch size 1", {"V": F32[:1]}),
        (TypeError, "Q: is a list", {"Q": [[1.0]]}),
        (TypeError, "downcast=True", {"Q": F32.astype(np.float64)}),
        (ValueError, "past_key, past_value", {"past_key": F32}),
        (ValueError, "past_value: is float32", {"past_key": F32, "past_value": F32[:, :, :1]}),
        (ValueError, "nonpad_kv_seqlen", {"past_key": F32, "past_value": F32, "nonpad_kv_seqlen": np.array([1, 2])}),
        (ValueError, "nonpad_kv_seqlen", {"nonpad_kv_seqlen": np.array([1, 5])}),
        (ValueError, "nonpad_kv_seqlen", {"nonpad_kv_seqlen": np.array([1.0, 2.0])}),
        (ValueError, "attn_mask", {"attn_mask": np.ones((4, 5), bool)}),
        (ValueError, "attn_mask", {"attn_mask": np.ones((), bool)}),
        (TypeError, "attn_mask", {"attn_mask": [[True]]}),
        (TypeError, "dropout", {"dropout": 0.1}),
    ],
)
def test_refused(error: type[Exception], message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(error, match=message):
        clary.onnx.attention(**({"Q": F32, "K": F32, "V": F32} | arguments))


def test_downcast() -> None:
    inputs, attributes = random_call(3)
    doubles = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in inputs.items()}
    out = clary.onnx.attention(**doubles, **attributes, downcast=True)[0]
    assert out.dtype == np.float64
    np.testing.assert_allclose(out, reference(inputs, attributes)[0], rtol=2e-5, atol=2e-6)


def test_empty_batch() -> None:
    out, _, _ = clary.onnx.attention(F32[:0], F32[:0], F32[:0], nonpad_kv_seqlen=np.zeros(0, np.int64))
    assert out.shape == (0, 3, 4, 8)
