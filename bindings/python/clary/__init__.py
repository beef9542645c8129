"""Clary: attention in 4 and 8 bits on CPUs, for NumPy, PyTorch and anything with DLPack.

    import clary
    out = clary.attention(q, k, v, causal="bottom_right", precision="int8")

Hosts, each imported by name: clary.torch, clary.hf (transformers), clary.diffusers, clary.compat_sage, clary.onnx.
"""

from . import _lib
from ._lib import Error
from .core import HeadInfo, Info, Plan, PlanInfo, attention, info, merge, plan

__version__ = _lib.text(_lib.lib.clary_version())

__all__ = ["Error", "HeadInfo", "Info", "Plan", "PlanInfo", "__version__", "attention", "info", "merge", "plan"]
