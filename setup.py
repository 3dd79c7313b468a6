"""Builds the compiled libraries. Everything else about the package is in pyproject.toml.

film_kernels._cpu   always: C++ kernels, compiled once for each instruction set and chosen from at run time.
"""

import os
import platform
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    raise SystemExit(
        "film_kernels is compiled against the PyTorch that is installed, which a build in isolation does not see.\n"
        "Install torch >= 2.10 first, then run: pip install --no-build-isolation ."
    ) from None

CSRC = Path("csrc")
TARGET_VERSION = "0x020a000000000000"  # the oldest torch whose stable ABI the libraries need: 2.10
KERNELS = ["cpu/forward.cpp", "cpu/grad_input.cpp", "cpu/grad_weight.cpp", "cpu/table.cpp"]
COMPILE = [
    "-std=c++17",
    "-O3",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
]
# Baseline first: the linker keeps the first copy of an inline function that several files hold: it must run anywhere.
ISA_FLAGS: dict[str, list[str]] = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]


class BuildExtension(cpp_extension.BuildExtension):
    """Compiles the kernel files of an extension once for each instruction set, with that set's flags."""

    def build_extension(self, ext: Extension) -> None:
        for isa, flags in ISA_FLAGS.items():
            ext.extra_objects += self.compiler.compile(
                [str(CSRC / source) for source in KERNELS],
                output_dir=str(Path(self.build_temp) / isa),
                include_dirs=ext.include_dirs,
                extra_postargs=[*ext.extra_compile_args, *flags, f"-DFILM_ISA={isa}"],
                depends=ext.depends,
            )
        super().build_extension(ext)


sanitize = os.environ.get("FILM_KERNELS_SANITIZE")  # "address,undefined", for the tests
sanitizer = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g", "-O1"] if sanitize else []
cpu = cpp_extension.CppExtension(
    "film_kernels._cpu",
    [str(CSRC / "library.cpp")],
    depends=[str(path) for path in sorted(CSRC.rglob("*.h"))],
    extra_compile_args=[*COMPILE, f"-DTORCH_TARGET_VERSION={TARGET_VERSION}", *sanitizer],
    extra_link_args=sanitizer,
    py_limited_api=True,
)
print(f"film_kernels._cpu: built for {', '.join(ISA_FLAGS)} against torch {torch.__version__}")

setup(
    ext_modules=[cpu],
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
