"""Diffusers' models and pipelines as they are on PyPI: dictionaries of their own under underscore names, and a pipeline
whose submodule is fused."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

from film_kernels import find_film, fuse
from tests.helpers.conversion.equality import assert_as_good, counted_calls, fused_copy

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DConditionModel, UNet2DModel


class Eager(nn.Module):
    """A UNet of a sample, a time step for each image, and words if it is conditional."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, sample, timestep, *words):
        return self.unet(sample, timestep, *words, return_dict=False)


def small(kind: type, time: str) -> nn.Module:
    torch.manual_seed(0)
    options: dict = {"layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8, "in_channels": 1, "out_channels": 1}
    if kind is UNet2DModel:
        options |= {"block_out_channels": (8, 16), "attention_head_dim": 4}
        options |= {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    else:
        options |= {"block_out_channels": (8,), "attention_head_dim": 2, "cross_attention_dim": 6}
        options |= {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
    return kind(resnet_time_scale_shift=time, **options).eval()


def arguments(kind: type, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(2, 1, 8, 8)] + ([(2, 3, 6)] if kind is UNet2DConditionModel else [])
    sample, *words = (torch.randn(shape, generator=generator) for shape in shapes)
    return sample, torch.tensor([3, 700 - seed]), *words


@pytest.mark.parametrize("time", ["default", "scale_shift"])
@pytest.mark.parametrize("kind", [UNet2DModel, UNet2DConditionModel], ids=lambda kind: kind.__name__)
def test_unets(kind, time):
    model = Eager(small(kind, time))
    fused = Eager(fused_copy(model.unet))
    draws = [arguments(kind, seed) for seed in range(2)]
    sites = find_film(model, draws[0], norms=True)
    blocks = [name for name, module in model.named_modules() if type(module).__name__ == "ResnetBlock2D"]
    expected = {("unet.conv_norm_out", "group_norm silu", "norm_film")}
    for block in blocks:
        expected.add((f"{block}.norm1", "group_norm silu", "norm_film"))
        if time == "default":  # the time step is added behind the convolution, in front of the norm
            expected.add((f"{block}.conv1", "conv2d shift", "conv_film"))
            expected.add((f"{block}.norm2", "group_norm silu", "norm_film"))
        else:
            expected.add((f"{block}.conv1", "conv2d group_norm film silu", "norm_film"))
    assert {(site.path, " ".join(site.order), site.operator) for site in sites} == expected
    assert len(blocks) >= 5 and len(sites) == len(expected)
    with counted_calls() as calls:
        assert_as_good(model, fused, draws)
    assert len(calls) == len(draws) * len(sites)
    assert fused.unet.config == model.unet.config and fused.unet.config.sample_size == 8


def test_a_part_of_a_pipeline(tmp_path):
    pipe = DDPMPipeline(unet=small(UNet2DModel, "default"), scheduler=DDPMScheduler(num_train_timesteps=10))
    pipe.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 2, "output_type": "np", "return_dict": False}
    (expected,) = pipe(generator=torch.Generator().manual_seed(1), **options)
    plain = copy.deepcopy(pipe.unet)
    unet = pipe.unet
    pipe.unet = fuse(pipe.unet)
    assert pipe.unet is unet and type(pipe.unet) is UNet2DModel and pipe.components["unet"] is unet
    assert pipe.config.unet == ("diffusers", "UNet2DModel")
    with counted_calls() as calls:
        (found,) = pipe(generator=torch.Generator().manual_seed(1), **options)
    assert len(calls) >= 2 * 18
    torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected), rtol=1e-3, atol=1e-3)
    pipe.save_pretrained(tmp_path)
    again = UNet2DModel.from_pretrained(tmp_path, subfolder="unet", local_files_only=True)
    assert again.config.norm_num_groups == 4
    torch.testing.assert_close(again.state_dict(), plain.state_dict())
