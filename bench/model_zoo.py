"""The models that `python -m bench.models` measures: as their packages have them, with random weights, in sizes that
two cores run in a fraction of a second. `bench/requirements-models.txt` has the packages."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from operator import attrgetter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .case import in_words
from .model_packages import read
from .model_written import Clevr, MicroTCN, PDEUNet

Inputs = tuple[Any, ...] | Mapping[str, Any]  # by position or by name, as find_film takes them
Made = tuple[nn.Module, Inputs]  # a model and its inputs


@dataclass(frozen=True)
class Model:
    """A model and how it is called. `make(small)`, with sizes that take no time where `small`, raises NotInstalled."""

    name: str
    make: Callable[[bool], Made]
    result: Callable[[Any], Tensor] = lambda y: y  # the tensor in what it returns

    def made(self, small: bool = False) -> Made:
        """The same numbers at every call, in eval mode. No parameter starts alike everywhere, so that none drops out of
        a comparison, as behind a last convolution of zeros."""
        torch.manual_seed(0)
        module, inputs = self.make(small)
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.numel() and (parameter == parameter.flatten()[0]).all():
                    parameter.add_(torch.randn_like(parameter), alpha=0.05)
        return module.eval(), inputs

    def call(self, module: nn.Module, inputs: Inputs) -> Tensor:
        """The result of `module`, which is this model or what became of it."""
        return self.result(module(**inputs) if isinstance(inputs, Mapping) else module(*inputs))


def tensors(inputs: Inputs) -> list[Tensor]:
    """Those among a model's inputs."""
    values = inputs.values() if isinstance(inputs, Mapping) else inputs
    return [value for value in values if isinstance(value, Tensor)]


def sizes(inputs: Inputs) -> str:
    """4x3x32x32, 4."""
    return ", ".join(in_words(t.shape) if t.dim() else "a step" for t in tensors(inputs))


def _diffusers(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(read("diffusers", "diffusers"), name)


def _unet(time: str) -> Callable[[bool], Made]:
    def make(small: bool) -> Made:
        channels, size, batch = ((32, 64), 8, 1) if small else ((64, 128), 32, 4)
        model = _diffusers("UNet2DModel")(
            sample_size=size, in_channels=3, out_channels=3, layers_per_block=2, block_out_channels=channels,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, resnet_time_scale_shift=time,
        )  # fmt: skip
        return model, (torch.randn(batch, 3, size, size), torch.tensor(10))

    return make


def _conditional_unet(small: bool) -> Made:
    channels, size, batch = ((32, 32, 64), 8, 1) if small else ((32, 64, 64), 32, 2)
    model = _diffusers("UNet2DConditionModel")(
        sample_size=size, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=channels,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32,
        attention_head_dim=8,
    )  # fmt: skip
    return model, (torch.randn(batch, 4, size, size), torch.tensor(10), torch.randn(batch, 16, 32))


def _dit(small: bool) -> Made:
    heads, layers, size, batch = (2, 1, 8, 1) if small else (6, 6, 32, 1)
    model = _diffusers("DiTTransformer2DModel")(
        num_attention_heads=heads, attention_head_dim=64, in_channels=4, out_channels=8, num_layers=layers,
        sample_size=size, patch_size=2, num_embeds_ada_norm=1000, norm_type="ada_norm_zero",
    )  # fmt: skip
    step, label = torch.full((batch,), 10), torch.full((batch,), 3)
    return model, {"hidden_states": torch.randn(batch, 4, size, size), "timestep": step, "class_labels": label}


def _lucidrains(small: bool) -> Made:
    name = "denoising_diffusion_pytorch"
    absent = ("torchvision", "scipy", "ema_pytorch", "accelerate", "pytorch_fid")
    package = read(f"{name}.{name}", "denoising-diffusion-pytorch", [name], absent)
    dim, size, batch = (16, 16, 1) if small else (48, 32, 2)
    model = package.Unet(dim=dim, dim_mults=(1, 2) if small else (1, 2, 4))
    return model, (torch.randn(batch, 3, size, size), torch.full((batch,), 10))


def _dalle2(small: bool) -> Made:
    absent = ("torchvision", "kornia", "resize_right", "rotary_embedding_torch", "x_clip", "coca_pytorch",
              "vector_quantize_pytorch", "dalle2_pytorch.tokenizer", "dalle2_pytorch.vqgan_vae")  # fmt: skip
    package = read("dalle2_pytorch.dalle2_pytorch", "dalle2-pytorch", ["dalle2_pytorch"], absent)
    dim, size, batch = (16, 16, 1) if small else (48, 32, 2)
    model = package.Unet(
        dim=dim, dim_mults=(1, 2) if small else (1, 2, 4), image_embed_dim=64, cond_dim=32, attn_heads=4,
        cond_on_image_embeds=True,
    )  # fmt: skip
    return model, {"x": torch.randn(batch, 3, size, size), "time": torch.full((batch,), 10),
                   "image_embed": torch.randn(batch, 64)}  # fmt: skip


def _minimagen(small: bool) -> Made:
    package = read("minimagen.Unet", "minimagen einops-exts", ["minimagen"], ("transformers", "resize_right"))
    dim, size, batch = (16, 16, 1) if small else (64, 32, 2)
    model = package.Unet(dim=dim, dim_mults=(1, 2), layer_attns=(False, True), layer_cross_attns=(False, True))
    return model, {"x": torch.randn(batch, 3, size, size), "time": torch.full((batch,), 10),
                   "text_embeds": torch.randn(batch, 16, 512), "text_mask": torch.ones(batch, 16).bool()}  # fmt: skip


def _lerobot(small: bool) -> Made:
    above = "lerobot.policies.diffusion"
    own = ("lerobot.policies.pretrained", "lerobot.policies.utils", f"{above}.configuration_diffusion")
    package = read(
        f"{above}.modeling_diffusion", "lerobot", ["lerobot", "lerobot.policies", above], ("torchvision", *own)
    )
    config = SimpleNamespace(  # what the network reads of the policy's configuration, in its defaults but for down_dims
        action_feature=SimpleNamespace(shape=(2,)), down_dims=(16, 32) if small else (128, 256, 512), kernel_size=5,
        n_groups=8, diffusion_step_embed_dim=128, use_film_scale_modulation=True,
    )  # fmt: skip
    batch = 2 if small else 16
    model = package.DiffusionConditionalUnet1d(config, global_cond_dim=32)
    return model, (torch.randn(batch, 16, 2), torch.full((batch,), 10), torch.randn(batch, 32))


def _monai(small: bool) -> Made:
    package = read("monai.networks.nets.diffusion_model_unet", "monai")
    channels, size, batch = ((16, 32), 16, 1) if small else ((32, 64, 64), 32, 4)
    model = package.DiffusionModelUNet(
        spatial_dims=2, in_channels=1, out_channels=1, num_res_blocks=1 if small else 2, channels=channels,
        attention_levels=(False,) * (len(channels) - 1) + (True,), norm_num_groups=16, num_head_channels=16,
    )  # fmt: skip
    return model, (torch.randn(batch, 1, size, size), torch.full((batch,), 10))


def _nablafx(act: str) -> Callable[[bool], Made]:
    def make(small: bool) -> Made:
        package = read("nablafx.processors.tcn", "nablafx", ["nablafx", "nablafx.processors"], ("rational",))
        blocks, width, samples = (2, 8, 64) if small else (8, 32, 16384)
        model = package.TCN(
            num_controls=3, num_blocks=blocks, channel_width=width, kernel_size=5, residual=True, cond_type="film",
            act_type=act,
        )  # fmt: skip
        return model, (torch.randn(2, 1, samples), torch.randn(2, 3))

    return make


def _microtcn(small: bool) -> Made:
    blocks, channels, samples = (2, 8, 400) if small else (4, 32, 65536)
    return MicroTCN(blocks, channels), (torch.randn(1, 1, samples), torch.rand(1, 2))


def _ivadomed(small: bool) -> Made:
    package = read("ivadomed.models", "ivadomed", ["ivadomed"], ("torchvision",))
    depth, filters, size, batch = (2, 8, 16, 2) if small else (3, 32, 64, 2)
    model = package.FiLMedUnet(
        depth=depth, n_metadata=8, film_layers=[1] * (2 * depth + 2), n_filters=filters, drop_rate=0.4
    )
    return model, (torch.randn(batch, 1, size, size), torch.rand(batch, 8))


def _score(name: str) -> Callable[[bool], Made]:
    def make(small: bool) -> Made:
        package = read("score_models.architectures", "score-models", ["score_models"], ("torch_ema", "scipy"))
        width, size, batch = (16, 8, 1) if small else (64, 32, 1)
        model = getattr(package, name)(
            channels=1, nf=width, ch_mult=(1, 2), num_res_blocks=1 if small else 2, activation_type="swish"
        )
        return model, (torch.rand(batch), torch.randn(batch, 1, size, size))

    return make


def _pde(norm: bool) -> Callable[[bool], Made]:
    def make(small: bool) -> Made:
        channels, size, batch = (8, 8, 2) if small else (64, 64, 1)
        return PDEUNet(channels, norm), (torch.randn(batch, 3, size, size), torch.rand(batch, 2))

    return make


def _clevr(small: bool) -> Made:
    channels, batch = (8, 2) if small else (128, 16)
    return Clevr(channels), (torch.randn(batch, 256, 14, 14), torch.randn(batch, 4096))


MODELS = {
    model.name: model
    for model in (
        Model("diffusers UNet2DModel, scale_shift", _unet("scale_shift"), attrgetter("sample")),
        Model("diffusers UNet2DModel, default", _unet("default"), attrgetter("sample")),
        Model("diffusers UNet2DConditionModel", _conditional_unet, attrgetter("sample")),
        Model("diffusers DiT", _dit, attrgetter("sample")),
        Model("denoising-diffusion-pytorch Unet", _lucidrains),
        Model("dalle2-pytorch Unet", _dalle2, lambda y: y[0] if isinstance(y, tuple) else y),
        Model("minimagen Unet", _minimagen),
        Model("lerobot DiffusionConditionalUnet1d", _lerobot),
        Model("monai DiffusionModelUNet", _monai),
        Model("nablafx TCN, tanh", _nablafx("tanh")),
        Model("nablafx TCN, prelu", _nablafx("prelu")),
        Model("micro-tcn", _microtcn),
        Model("ivadomed FiLMedUnet", _ivadomed),
        Model("score-models NCSN++", _score("NCSNpp")),
        Model("score-models DDPM", _score("DDPM")),
        Model("pdearena U-Net, GroupNorm", _pde(True)),
        Model("pdearena U-Net, no norm", _pde(False)),
        Model("CLEVR FiLM blocks", _clevr),
    )
}
