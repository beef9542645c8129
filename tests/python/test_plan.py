"""Plans, merging, what is known about the machine, and calls from several threads and processes."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import subprocess
import sys

import clary
import numpy as np
import oracle
import pytest
import torch
from conftest import qkv


def test_a_plan_runs_like_the_call(rng):
    arrays = qkv(rng)
    mask = rng.random((37, 53)) < 0.5
    plan = clary.plan(*arrays, mask=mask, precision="int8", return_lse=True, threads=1)
    out, lse = plan.run(*arrays)
    expected, expected_lse = clary.attention(*arrays, mask=mask, precision="int8", return_lse=True)
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(lse, expected_lse)
    assert repr(plan).startswith("<clary.Plan q [2, 4, 37, 24], k [2, 2, 53, 24], v [2, 2, 53, 16], int8 on ")
    assert "1 threads" in repr(plan) and plan.info.tiles_partial == 2 * 4 * 3 and plan.info.precision == "int8"
    assert plan.info.start == "int8" and plan.info.flops > 0 and plan.info.workspace_bytes > 0
    assert plan.describe().startswith("problem:") and "37 queries x 53 keys" in plan.describe()


def test_a_plan_reads_its_mask_when_it_runs(rng):
    arrays = qkv(rng)
    mask = np.ones((37, 53), bool)
    plan = clary.plan(*arrays, mask=mask, precision="exact")
    first = plan.run(*arrays)
    mask[:, 20:] = False
    np.testing.assert_array_equal(plan.run(*arrays), clary.attention(*arrays, mask=mask, precision="exact"))
    assert not np.array_equal(first, plan.run(*arrays))


def test_a_plan_is_for_one_shape(rng):
    q, k, v = qkv(rng)
    plan = clary.plan(q, k, v)
    with pytest.raises(ValueError, match=r"k: \[2, 2, 52, 24\] with strides .* is not what the plan was made for"):
        plan.run(q, k[:, :, :52], v)
    with pytest.raises(ValueError, match="q: .*16 bits"):
        plan.run(q.astype(np.float16), k, v)
    with pytest.raises(TypeError, match="v: is a PyTorch tensor"):
        plan.run(q, k, torch.from_numpy(v))
    with pytest.raises(ValueError, match="head: is 4, allowed are 0 to 3"):
        plan.head(0, 4)
    with pytest.raises(TypeError, match=r"downcast: is not an argument of plan\(\)"):
        clary.plan(q, k, v, downcast=True)


@pytest.mark.parametrize("library", [np.asarray, torch.from_numpy])
def test_merge_of_disjoint_keys(library, rng):
    q, k, v = qkv(rng)
    expected, expected_lse = oracle.attention(q, k, v)
    cuts = [0, 10, 10, 31, 53]  # one part has no keys at all
    parts = [
        clary.attention(*map(library, (q, k[:, :, a:b], v[:, :, a:b])), precision="exact", return_lse=True)
        for a, b in zip(cuts, cuts[1:])
    ]
    out, lse = clary.merge([p[0] for p in parts], [p[1] for p in parts])
    assert type(out) is type(library(q)) and oracle.errors(out, expected).l2 < 2e-6
    assert np.abs(oracle.double(lse) - expected_lse).max() < 1e-5


def test_merge_layouts_types_and_neutral_parts(rng):
    outs = [rng.standard_normal((2, 9, 3, 5)).astype(np.float16) for _ in range(2)]
    lses = [np.full((2, 3, 9), x, np.float32) for x in (np.log(3.0), 0)]
    out, lse = clary.merge(outs, lses, layout="bshd")
    assert out.dtype == np.float16 and lse.dtype == np.float32
    assert np.allclose(out, outs[0] * 0.75 + outs[1] * 0.25, atol=2e-3) and np.allclose(lse, np.log(4))
    outs[1][:], lses[1][:] = np.nan, -np.inf
    out, lse = clary.merge(outs, lses, layout="bshd")
    np.testing.assert_array_equal(out, outs[0])
    nothing, lse = clary.merge([outs[1]] * 2, [lses[1]] * 2, layout="bshd")
    assert not nothing.any() and np.isneginf(lse).all()
    huge = clary.merge([outs[0]] * 2, [np.full((2, 3, 9), x, np.float32) for x in (1e30, -1e30)], layout="bshd")
    np.testing.assert_array_equal(huge[0], outs[0])


def test_merge_refuses(rng):
    out, lse = np.ones((2, 3, 9, 5), np.float32), np.ones((2, 3, 9), np.float32)
    for outs, lses, words in (
        ([], [], "lses: has 0 parts and outs has 0"),
        ([out], [], "lses: has 0 parts and outs has 1"),
        ([out, out[:1]], [lse, lse], "outs: batch size is 1, must be that of out, 2"),
        ([out], [lse[:, :, :8]], r"lse: shape\[2\] is 8, must be that of its output, 9"),
        ([out[0]], [lse], "out: has 3 dimensions"),
    ):
        with pytest.raises(ValueError, match=words):
            clary.merge(outs, lses)
    with pytest.raises(ValueError, match="layout: is 'x'"):
        clary.merge([out], [lse], layout="x")
    with pytest.raises(TypeError, match="lses: is a PyTorch tensor"):
        clary.merge([out], [torch.from_numpy(lse)])
    with pytest.raises(ValueError, match="lses: is f16, must be f32"):
        clary.merge([out, out], [lse, lse.astype(np.float16)])


def test_info():
    info = clary.info()
    assert info.version == clary.__version__ and info.cpu and info.isas[info.isa] and info.isas["scalar"]
    assert info.threads == torch.get_num_threads() and info.library.endswith(".so")


def test_threads_follow_torch(rng):
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            assert repr(clary.plan(*qkv(rng))).endswith(f"{threads} threads>")
    finally:
        torch.set_num_threads(before)


def test_calls_from_many_threads(rng):
    arrays = qkv(rng, lq=64, lk=200)
    expected = {p: clary.attention(*arrays, precision=p) for p in ("exact", "int8", "int4")}

    def call(i: int) -> bool:
        precision = list(expected)[i % 3]
        return np.array_equal(clary.attention(*arrays, precision=precision, threads=1 + i % 2), expected[precision])

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(200)))


def child(plan: clary.Plan, arrays: list[np.ndarray], queue: multiprocessing.Queue) -> None:
    try:
        plan.run(*arrays)
    except clary.Error as error:
        queue.put((str(error), clary.attention(*arrays, threads=2)))


def test_forked_children_have_threads_of_their_own(rng):
    arrays = qkv(rng, lq=64, lk=200)
    plan = clary.plan(*arrays, threads=2)
    expected = plan.run(*arrays)
    fork = multiprocessing.get_context("fork")
    queue = fork.Queue()
    process = fork.Process(target=child, args=(plan, arrays, queue))
    process.start()
    message, out = queue.get(timeout=60)
    process.join(60)
    assert process.exitcode == 0 and "was made before this process was forked" in message
    np.testing.assert_array_equal(out, expected)


def test_an_instruction_set_that_is_not_there():
    code = "import numpy, clary; x = numpy.ones((1, 1, 1, 8), 'f4'); clary.attention(x, x, x)"
    run = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "CLARY_ISA": "z80"}, capture_output=True, text=True
    )
    assert run.returncode == 1 and 'CLARY_ISA: "z80" is not known' in run.stderr
    missing = {**os.environ, "CLARY_LIBRARY": "/no/such/libclary.so"}
    run = subprocess.run([sys.executable, "-c", code], env=missing, capture_output=True, text=True)
    assert run.returncode == 1 and "clary: there is no library at /no/such/libclary.so" in run.stderr
