"""What the figures belong to: the machine and the versions."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from pathlib import Path

import torch

import film_kernels


def describe(device: torch.device) -> dict[str, str]:
    """Words for a report: the device, and the version of everything that takes part."""
    said = {"device": name(device)}
    if device.type == "cpu":
        said["threads"] = str(torch.get_num_threads())
        said["vector instructions"] = torch.backends.cpu.get_cpu_capability()
        if film_kernels.available_backends()["cpu"] is None:
            said["film_kernels' own"] = torch.ops.film_kernels_cpu.instruction_sets().partition(" ")[0]
    else:
        said["CUDA"] = str(torch.version.cuda or torch.version.hip)
        said["cuDNN"] = str(torch.backends.cudnn.version())
        said["float32 convolutions"] = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
    peers = ("onnxruntime", "openvino") if device.type == "cpu" else ("nvidia-cudnn-frontend",)
    for package in ("triton", *peers):
        said[package] = _version(package)
    said |= {"torch": torch.__version__, "film_kernels": film_kernels.__version__, "Python": platform.python_version()}
    return said


def name(device: torch.device) -> str:
    """The model of the CPU or GPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def folder_name(device: torch.device) -> str:
    """The name of the folder for its results: letters, digits and dashes."""
    parts = [name(device)]
    if device.type == "cpu":
        parts += [torch.backends.cpu.get_cpu_capability(), f"{torch.get_num_threads()} threads"]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(parts).lower()).strip("-")


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: *(.+)", info.read_text()) if info.exists() else None
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
