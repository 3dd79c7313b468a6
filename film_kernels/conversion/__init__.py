"""Finds FiLM sites in a user's model, and swaps them for calls of `film_kernels.conv_film`.

Sites are found in graphs, never by the names of classes; one matcher (`matching.py`) serves `find_film`, `fuse` and
torch.compile's backend.
"""

from .capture import find_film
from .fused import fuse
from .site import Site

__all__ = ["Site", "find_film", "fuse"]
