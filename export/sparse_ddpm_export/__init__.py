"""Program to ONNX: small files that standard runtimes load without plug-ins.

Where to look: `denoiser` puts the model together, `operations` has one function for each operation
of a Program, `packing` stores a sparse weight as bytes and values that the graph itself decodes,
`graph` collects nodes and initializers. Importing this without the ``onnx`` extra raises
`MissingDependencyError`.
"""

from sparse_ddpm.errors import MissingDependencyError, expected

try:
    import onnx as _onnx  # noqa: F401 - asked for here so that its absence has one clear error
except ImportError as error:
    wanted = "to be installed for ONNX export: pip install 'sparse-ddpm[onnx]'"
    raise MissingDependencyError(expected("onnx", wanted, error)) from None

from sparse_ddpm_export.check import Check
from sparse_ddpm_export.denoiser import export_denoiser
from sparse_ddpm_export.export import Export
from sparse_ddpm_export.form import DTYPES, OPSET, OPSETS, WEIGHTS, Form
from sparse_ddpm_export.packing import pack, pack_nibbles, unpack, unpack_nibbles
from sparse_ddpm_export.sampler import Baked, export_sampler, export_step

__all__ = [
    "DTYPES",
    "OPSET",
    "OPSETS",
    "WEIGHTS",
    "Baked",
    "Check",
    "Export",
    "Form",
    "export_denoiser",
    "export_sampler",
    "export_step",
    "pack",
    "pack_nibbles",
    "unpack",
    "unpack_nibbles",
]
