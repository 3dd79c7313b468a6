"""Run by tests/test_cuda.py in a process of its own: does the library named by FILM_KERNELS_CUDA_EMULATOR compute what
plain PyTorch does, in every order of warps? Prints what differs, and returns 1 for it."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from tests.helpers.cases import NAMES, Case, incoming_gradient, run, tensors_of

CASES = (
    Case("several_steps", (2, 24, 9, 7), (72, 24, 3, 3), padding=1, keep="bits"),
    Case("one_step", (2, 24, 9, 7), (72, 24, 1, 1), keep="bits"),
)
SEEDS = range(5)


def main() -> int:
    set_seed = ctypes.CDLL(os.environ["FILM_KERNELS_CUDA_EMULATOR"]).film_emulator_set_seed
    wrong = set()
    for case in CASES:
        tensors = tensors_of(case, torch.float16, channels_last=True)
        grad = incoming_gradient(case, tensors)
        expected = run(case, tensors, grad, "reference", torch.float32)
        for seed in SEEDS:
            set_seed(seed)
            try:
                found = run(case, tensors, grad, "cuda", torch.float16)
            except RuntimeError as error:
                print(f"stopped: {error}")
                return 1
            for name, one, other in zip(NAMES, found, expected, strict=True):
                if not torch.allclose(one.float() / other.abs().max(), other / other.abs().max(), atol=1e-2):
                    wrong.add(name)
    print("differs:", *sorted(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
