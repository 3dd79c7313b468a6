"""Plain PyTorch: the formulas every backend must equal.

`conv_film` and `norm_film` are what everybody writes by hand, with the arguments of the package's functions of these
names.
"""

from . import norm
from .broadcast import film
from .conv import backward, conv_film, convolution, forward, symmetric
from .norm import norm_film

__all__ = ["backward", "conv_film", "convolution", "film", "forward", "norm", "norm_film", "symmetric"]
