"""Writes engine directories: a diffusion transformer as one ONNX graph per block, over the model's own weights.

The format is described in `models/README.md`. The way of a model through this package::

    choice     which of several checkpoints in a folder is the model's
    variant    the chosen ones under the names that diffusers looks for
    families   which graphs, tensors and settings a model needs          (a Plan)
    checkpoint where each parameter lies in the safetensors files
    template   one traced graph per kind of block, without weights
    bind       template + place of the parameters = one block's graph
    place      the weight files beside the graphs, or a reference to their folder
    manifest   manifest.json
    check      the graphs against PyTorch
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
