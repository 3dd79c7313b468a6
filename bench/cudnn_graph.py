"""cuDNN's own fused graph, convolution + bias + relu, through the package nvidia-cudnn-frontend; then FiLM in one pass.

cuDNN cannot take FiLM into that graph: its epilogue knows no side input per sample and channel.
https://docs.nvidia.com/deeplearning/cudnn/frontend/latest/operations/Convolutions.html
"""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor

from .conv_case import ConvCase
from .work import Call, Work


def why_not(work: Work) -> str | None:
    """Why the graph cannot be built for `work`, as far as it can be told beforehand, or None."""
    if not isinstance(work.row.case, ConvCase):
        return "the graph is of a convolution"
    if work.input.device.type != "cuda" or torch.version.hip is not None:
        return "it needs an NVIDIA GPU"
    if importlib.util.find_spec("cudnn") is None:
        return "the package nvidia-cudnn-frontend is not installed"
    if work.input.dim() != 4:
        return "the graph is built for 2d convolutions"
    return None


def build(work: Work) -> Call:
    """The call. Raises what cuDNN raises where no engine supports the graph (most want channels_last)."""
    import cudnn

    case = work.row.case
    assert isinstance(case, ConvCase) and work.bias is not None
    types = {torch.float32: cudnn.data_type.FLOAT, torch.float16: cudnn.data_type.HALF}
    handle = cudnn.create_handle()
    cudnn.set_stream(handle=handle, stream=torch.cuda.current_stream().cuda_stream)
    graph = cudnn.pygraph(
        io_data_type=types[work.input.dtype],
        intermediate_data_type=cudnn.data_type.FLOAT,
        compute_data_type=cudnn.data_type.FLOAT,
        handle=handle,
    )
    # cuDNN writes through pointers, behind autograd's back: it gets tensors that autograd does not watch.
    x, weight, gamma, beta = (work.leaves[name].detach() for name in ("input", "weight", "gamma", "beta"))
    bias = work.bias.detach().reshape(1, -1, 1, 1)

    def described(name: str, t: Tensor):
        return graph.tensor(name=name, dim=list(t.shape), stride=list(t.stride()), data_type=types[t.dtype])

    image, filters, shift = described("x", x), described("weight", weight), described("bias", bias)
    sides = [case.padding] * 2
    z = graph.conv_fprop(
        image=image, weight=filters, pre_padding=sides, post_padding=sides,
        stride=[case.stride] * 2, dilation=[case.dilation] * 2,
    )  # fmt: skip
    result = graph.bias(name="biased", input=z, bias=shift)
    if case.activation == "relu":
        result = graph.relu(name="activated", input=result)
    result.set_output(True)
    graph.validate()
    graph.build_operation_graph()
    graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    graph.check_support()
    graph.build_plans()
    workspace = torch.empty(graph.get_workspace_size(), device=x.device, dtype=torch.uint8)

    def call(input: Tensor) -> Tensor:
        y = torch.empty_like(work.grad)
        graph.execute({image: input.detach(), filters: weight, shift: bias, result: y}, workspace, handle=handle)
        return torch.addcmul(beta, y, gamma, out=y)

    return call
