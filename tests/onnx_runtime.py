"""A module by ONNX Runtime."""

import warnings

import onnxruntime
import torch


def by_onnx_runtime(module, traced, inputs=None):
    """What ONNX Runtime computes from inputs, the traced ones if there are no others."""
    with warnings.catch_warnings():
        # From inside the exporter: its own use of deprecated parts of PyTorch and ONNX.
        warnings.simplefilter("ignore")
        model = torch.onnx.export(module.eval(), traced, dynamo=True, verbose=False).model_proto
    session = onnxruntime.InferenceSession(model.SerializeToString())
    names = [x.name for x in session.get_inputs()]
    inputs = traced if inputs is None else inputs
    given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
    return torch.from_numpy(session.run(None, given)[0])
