"""The options of FiLM and activation that the layers have in common."""

from __future__ import annotations

from torch import nn

from .activations import ACTIVATIONS, FILM_POSITIONS
from .checks import check_choice, finite


class FilmOptions(nn.Module):
    """They are those of `film_kernels.conv_film` and `norm_film`, where the formulas stand. It stands before PyTorch's
    layer among the bases."""

    def _set_options(self, activation: str, negative_slope: float, film_position: str, gamma_offset: float) -> None:
        self.activation = check_choice("activation", activation, ACTIVATIONS)
        self.negative_slope = finite("negative_slope", negative_slope)
        self.film_position = check_choice("film_position", film_position, FILM_POSITIONS)
        self.gamma_offset = finite("gamma_offset", gamma_offset)

    def extra_repr(self) -> str:
        options = f"activation={self.activation!r}, film_position={self.film_position!r}"
        if self.activation == "leaky_relu":
            options += f", negative_slope={self.negative_slope}"
        if self.gamma_offset:
            options += f", gamma_offset={self.gamma_offset}"
        return f"{super().extra_repr()}, {options}"
