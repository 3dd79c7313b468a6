"""film_kernels: convolution, ReLU and FiLM in one pass, with a backward that keeps one bit an element."""

from . import reference
from .backends import available_backends, use_backend
from .backends.triton.autotune import autotune
from .conversion import Site, find_film, fuse
from .functional import conv_film, film
from .modules import FiLM, FiLMGenerator, FusedFiLM, FusedFiLM1d

__version__ = "0.1.0"
__all__ = [
    "FiLM",
    "FiLMGenerator",
    "FusedFiLM",
    "FusedFiLM1d",
    "Site",
    "autotune",
    "available_backends",
    "conv_film",
    "film",
    "find_film",
    "fuse",
    "reference",
    "use_backend",
]
