"""film_kernels: FiLM joined with what stands before and after it, a convolution or a normalisation and an activation,
in operators with a backward of their own."""

from . import reference
from .backends import available_backends, use_backend
from .backends.triton.autotune import autotune
from .conversion import Site, find_film, fuse
from .functional import conv_film, film, norm_film
from .modules import FiLM, FiLMGenerator, FusedFiLM, FusedFiLM1d
from .norm_modules import BatchNormFiLM, LayerNormFiLM, NormFiLM, RMSNormFiLM

__version__ = "0.1.0"
__all__ = [
    "BatchNormFiLM",
    "FiLM",
    "FiLMGenerator",
    "FusedFiLM",
    "FusedFiLM1d",
    "LayerNormFiLM",
    "NormFiLM",
    "RMSNormFiLM",
    "Site",
    "autotune",
    "available_backends",
    "conv_film",
    "film",
    "find_film",
    "fuse",
    "norm_film",
    "reference",
    "use_backend",
]
