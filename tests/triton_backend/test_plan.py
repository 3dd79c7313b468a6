"""How a kernel is started: what Triton compiled is found again by the tensors' dtypes and alignment."""

from __future__ import annotations

import torch

from film_kernels.backends.triton import launch, plan

CPU = torch.device("cpu")


class Kernel:
    """In place of a kernel of Triton's: says what was asked of it."""

    arg_names = ("x", "size", "y", "BLOCK")

    def __init__(self):
        self.lookups, self.starts = [], []

    def __getitem__(self, grid):
        def look_up(**arguments):
            self.lookups.append((grid, arguments))
            return Compiled(self)

        return look_up


class Compiled:
    packed_metadata = ()

    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return lambda *ordered: self.kernel.starts.append((grid, ordered))


def of(kernel, programs=3):
    return plan.Plan(kernel, programs, {"size": 5, "BLOCK": 16}, CPU, 4, 2)


def test_a_second_start_does_not_look_up():
    kernel, x = Kernel(), torch.zeros(32)
    a_plan = of(kernel)
    a_plan.start({"x": x, "y": None})
    assert kernel.lookups == [((3, 1, 1), {"x": x, "y": None, "size": 5, "BLOCK": 16, "num_warps": 4, "num_stages": 2})]
    another = torch.zeros(32)
    a_plan.start({"x": another, "y": None})
    assert len(kernel.lookups) == 1
    ((grid, ordered),) = kernel.starts
    assert grid == (3, 1, 1) and ordered[0] is another and ordered[1:] == (5, None, 16)


def test_what_was_compiled_for_other_tensors_is_not_used():
    kernel, x = Kernel(), torch.zeros(64)
    a_plan = of(kernel)
    kinds = [x[:32], x[1:33], x[:32].half(), None]  # another alignment, another dtype, and none
    for first in kinds:
        a_plan.start({"x": first, "y": x[:32]})
    a_plan.start({"x": x[:32], "y": None})
    assert len(kernel.lookups) == 5 and not kernel.starts
    for first in kinds:
        a_plan.start({"x": first, "y": x[:32]})
    assert len(kernel.lookups) == 5 and len(kernel.starts) == 4


def test_no_programs_are_no_start():
    kernel = Kernel()
    of(kernel, programs=0).start({"x": None, "y": None})
    assert not kernel.lookups


def test_what_is_recorded_is_not_started():
    kernel, x = Kernel(), torch.zeros(32)
    with launch.recording("nvidia") as launches:
        of(kernel).start({"x": x, "y": None})
    ((recorded, arguments, *how),) = launches
    assert recorded is kernel and arguments["x"] is x and arguments["size"] == 5 and how == [4, 2]
    assert not kernel.lookups
