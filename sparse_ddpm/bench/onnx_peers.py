"""onnxruntime and OpenVINO, on one ONNX graph with dense weights and a fixed batch."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparse_ddpm.bench.engines import Job
from sparse_ddpm.bench.source import program_of
from sparse_ddpm.program import Program


def denoiser(program: Program, batch: int) -> bytes:
    """The network as ONNX: ``model_output = network(x [batch, C, H, W], film [1, columns])``."""
    from functools import partial

    from onnx import TensorProto, helper
    from sparse_ddpm_export.form import Form
    from sparse_ddpm_export.graph import Graph
    from sparse_ddpm_export.model import images, make_model
    from sparse_ddpm_export.operations import Context, emit_program, film_of

    graph = Graph(("x", "film", "model_output"), Form("dense"))
    context = Context(graph, program.shapes, partial(film_of, graph, "film"))
    graph.deliver(emit_program(context, program, "x"), "model_output")
    columns = [1, program.time.columns]
    film = helper.make_tensor_value_info("film", TensorProto.FLOAT, columns)
    inputs = [images("x", program.input_shape, batch), film]
    outputs = [images("model_output", program.shapes[program.output], batch)]
    return bytes(make_model(graph, "denoiser", inputs, outputs, {}, "").SerializeToString())


class OrtRunner:
    """Steps of an ``onnxruntime.InferenceSession``."""

    def __init__(self, session: Any, film: NDArray[np.float32], description: str) -> None:
        self.session = session
        self.film = film
        self.description = description
        self.details: dict[str, Any] = {}

    def load(self, x: NDArray[np.float32]) -> None:
        self.x = x

    def step(self, index: int) -> NDArray[np.float32]:
        feeds = {"x": self.x, "film": self.film[index : index + 1]}
        output: NDArray[np.float32] = self.session.run(None, feeds)[0]
        return output

    def array(self, output: NDArray[np.float32]) -> NDArray[np.float32]:
        return output


def build_ort(job: Job) -> OrtRunner:
    """onnxruntime on the CPU, all optimisations, memory planned for a fixed batch."""
    import onnxruntime

    program = program_of(job)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(
        denoiser(program, job.batch), options, providers=["CPUExecutionProvider"]
    )
    film = program.time.table(np.array(job.timesteps)).astype(np.float32)
    return OrtRunner(session, film, f"onnxruntime {onnxruntime.__version__}, {job.threads} threads")


class OpenVinoRunner:
    """Steps of an OpenVINO infer request."""

    def __init__(self, request: Any, film: NDArray[np.float32], description: str) -> None:
        self.request = request
        self.film = film
        self.description = description
        self.details: dict[str, Any] = {}

    def load(self, x: NDArray[np.float32]) -> None:
        self.x = x

    def step(self, index: int) -> Any:
        feeds = {"x": self.x, "film": self.film[index : index + 1]}
        return self.request.infer(feeds, share_inputs=True, share_outputs=True)[0]

    def array(self, output: Any) -> NDArray[np.float32]:
        return np.array(output, dtype=np.float32)


def build_openvino(job: Job, precision: str = "f32") -> OpenVinoRunner:
    """OpenVINO on the CPU for latency; ``precision``: the inference precision hint."""
    import openvino

    program = program_of(job)
    core = openvino.Core()
    model = core.read_model(denoiser(program, job.batch))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": precision,
    }
    compiled = core.compile_model(model, "CPU", settings)
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    film = program.time.table(np.array(job.timesteps)).astype(np.float32)
    description = f"openvino {openvino.__version__}, precision {used}, {job.threads} threads"
    return OpenVinoRunner(compiled.create_infer_request(), film, description)
