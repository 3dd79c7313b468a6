"""Builds the compiled libraries. Everything else about the package is in pyproject.toml.

film_kernels._cpu   always: C++ kernels, compiled once for each instruction set and chosen from at run time.
film_kernels._cuda  where nvcc is found (CUDA_HOME, CUDA_PATH or PATH), whether or not there is a GPU, and whatever this
                    PyTorch was built for; FILM_KERNELS_CUDA=0 leaves it out. TORCH_CUDA_ARCH_LIST ("8.0;9.0+PTX")
                    says for which GPUs. FILM_KERNELS_HOPPER=1 adds the convolution by Hopper's own instructions where
                    CUTLASS's headers are found (CUTLASS_HOME, or the package nvidia-cutlass) and 9.0 is one of the
                    GPUs: it takes minutes to compile.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup

try:
    import torch
    from torch.utils import cpp_extension
except ImportError:
    raise SystemExit(
        "film_kernels is compiled against the PyTorch that is installed, which a build in isolation does not see.\n"
        "Install torch >= 2.11 first, then run: pip install --no-build-isolation ."
    ) from None

CSRC = Path("csrc")
sys.path.insert(0, str(CSRC / "cuda" / "hopper"))
import cutlass_headers  # noqa: E402

HEADERS = sorted([*CSRC.rglob("*.h"), *CSRC.rglob("*.cuh")])
TARGET_VERSION = "0x020a000000000000"  # the oldest torch whose stable ABI the libraries need: 2.10
KERNELS = [
    "cpu/depthwise_forward.cpp",
    "cpu/depthwise_grad_input.cpp",
    "cpu/depthwise_grad_weight.cpp",
    "cpu/forward.cpp",
    "cpu/grad_input.cpp",
    "cpu/grad_weight.cpp",
    "cpu/grad_weight_planes.cpp",
    "cpu/grad_weight_winograd.cpp",
    "cpu/library_is_faster.cpp",
    "cpu/norm.cpp",
    "cpu/norm_across_pixels.cpp",
    "cpu/norm_across_planes.cpp",
    "cpu/norm_modulate.cpp",
    "cpu/norm_pixels.cpp",
    "cpu/norm_planes.cpp",
    "cpu/norm_slope.cpp",
    "cpu/pack.cpp",
    "cpu/row_tile.cpp",
    "cpu/table.cpp",
    "cpu/tile.cpp",
]
COMPILE = [
    "-std=c++17",
    "-O3",
    "-fvisibility=hidden",
    "-ffp-contract=fast",
    "-fno-math-errno",  # or a square root is a call
    "-Wall",
    "-Wextra",
    "-Wno-psabi",
    "-Wno-maybe-uninitialized",
    f"-DTORCH_TARGET_VERSION={TARGET_VERSION}",
]
# Baseline first: the linker keeps the first copy of an inline function that several files hold: it must run anywhere.
ISA_FLAGS: dict[str, list[str]] = {"baseline": []}
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = ["-mavx2", "-mfma", "-mf16c"]
    ISA_FLAGS["avx512"] = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c"]
# Of AVX-512 alone, where the assembler knows tiles: what they multiply.
AMX_KERNELS = ["cpu/amx.cpp"]
# Of AVX-512 alone too, where the assembler knows AVX512_BF16: pairs of bfloat16.
PAIR_KERNELS = ["cpu/pair_kernels.cpp", "cpu/pair_tiles.cpp"]
ARCHITECTURES = "8.0;8.6;8.9;9.0;10.0;12.0+PTX"  # those of them that nvcc knows, unless TORCH_CUDA_ARCH_LIST is set


def find_nvcc() -> str | None:
    """CUDA_HOME's, CUDA_PATH's, or the one on PATH."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    path = os.pathsep.join([str(Path(home) / "bin") for home in homes] or [os.environ.get("PATH", os.defpath)])
    return shutil.which("nvcc", path=path)


def nvcc_folders(nvcc: str, what: str) -> list[str]:
    """Where this nvcc looks for headers ("-I") or libraries ("-L")."""
    command = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return re.findall(rf'"{what}([^"]+)"', said.split("cudafe")[0])


def nvcc_flags(nvcc: str) -> list[str]:
    """-gencode for each architecture: machine code, and PTX of the newest or where "+PTX" asks for it."""
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST")
    known = subprocess.run([nvcc, "--list-gpu-arch"], check=True, capture_output=True, text=True).stdout.split()
    names = [name for name in re.split(r"[;,\s]+", asked or ARCHITECTURES) if name]
    flags = []
    for name in names:
        match = re.fullmatch(r"(\d+)\.(\d+)([af]?)(\+PTX)?", name)
        if match is None:
            raise SystemExit(f"TORCH_CUDA_ARCH_LIST: {name!r} is not of the form 9.0, 9.0a or 9.0+PTX")
        major, minor, variant, ptx = match.groups()
        number = f"{major}{minor}{variant}"
        if asked is None and f"compute_{number}" not in known:
            continue
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if ptx:
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


def hopper_flags(nvcc: str) -> list[str] | None:
    """What csrc/cuda/hopper is compiled with, or None where it is left out; which of the two is printed."""
    if os.environ.get("FILM_KERNELS_HOPPER") != "1":
        reason = "FILM_KERNELS_HOPPER=1 asks for it"
    elif not any(re.fullmatch(r".*code=sm_90a?", flag) for flag in nvcc_flags(nvcc)):
        reason = "TORCH_CUDA_ARCH_LIST does not have 9.0"
    elif (folders := cutlass_headers.folders()) is None:
        reason = "CUTLASS's headers were not found (set CUTLASS_HOME, or pip install --no-deps nvidia-cutlass)"
    else:
        print(f"film_kernels._cuda: with Hopper's own instructions, by CUTLASS in {folders[0].parent}")
        return cutlass_headers.flags(folders)
    print(f"film_kernels._cuda: without Hopper's own instructions: {reason}")
    return None


def assembles(instruction: str, feature: str) -> bool:
    """Whether the compiler and its assembler know an instruction, and how to ask a processor for it."""
    if "avx512" not in ISA_FLAGS:
        return False
    compiler = shlex.split(os.environ.get("CXX") or sysconfig.get_config_var("CXX") or "c++")
    program = f'int main() {{ asm("{instruction}"); return __builtin_cpu_supports("{feature}"); }}'
    command = [*compiler, "-x", "c++", "-c", "-o", os.devnull, "-"]
    try:
        return subprocess.run(command, input=program, text=True, capture_output=True).returncode == 0
    except OSError:
        return False


def assembles_amx() -> bool:
    """As GCC 11 and LLVM 12 do; Linux lets a process ask for it."""
    return sys.platform == "linux" and assembles("tdpbf16ps %tmm2, %tmm1, %tmm0", "amx-tile")


def assembles_pairs() -> bool:
    """As GCC 10 and LLVM 9 do."""
    return assembles("vdpbf16ps %zmm2, %zmm1, %zmm0", "avx512bf16")


class BuildExtension(cpp_extension.BuildExtension):
    """Compiles the CPU kernels once for each instruction set, and the CUDA kernels with nvcc."""

    def initialize_options(self) -> None:
        super().initialize_options()
        # Where setuptools keeps what it compiled, but for editable installs, which would compile all of it each time.
        self.build_temp = f"build/temp.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"

    def build_extension(self, ext: Extension) -> None:
        if ext.name.endswith("_cpu"):
            self._compile_for_each_isa(ext)
        else:
            self._compile_with_nvcc(ext)
        super().build_extension(ext)

    def _compile_for_each_isa(self, ext: Extension) -> None:
        for isa, flags in ISA_FLAGS.items():
            ext.extra_objects += self.compiler.compile(
                [str(CSRC / source) for source in KERNELS + (OF_AVX512 if isa == "avx512" else [])],
                output_dir=str(Path(self.build_temp) / isa),
                include_dirs=ext.include_dirs,
                extra_postargs=[*ext.extra_compile_args, *flags, f"-DFILM_ISA={isa}"],
                depends=ext.depends,
            )

    def _compile_with_nvcc(self, ext: Extension) -> None:
        folder = Path(self.build_temp) / "cuda"
        folder.mkdir(parents=True, exist_ok=True)
        common = ["-std=c++17", "-O3", "-Xcompiler", "-fPIC,-fvisibility=hidden", f"-I{CSRC / 'cuda'}"]
        kinds = [(CSRC / "cuda", [*common, *nvcc_flags(NVCC)])]
        if HOPPER is not None:  # first, for it takes longest
            kinds.insert(0, (CSRC / "cuda" / "hopper", [*common, *HOPPER]))
        newest = max(path.stat().st_mtime for path in HEADERS)
        done_for = folder / "flags"  # objects made with other flags are made again
        all_flags = "\n".join(" ".join(flags) for _, flags in kinds)
        keep = done_for.exists() and done_for.read_text() == all_flags
        self.force = self.force or not keep  # and so is the library

        def compiled(job: tuple[Path, list[str]]) -> str:
            source, flags = job
            target = folder / f"{source.parent.name}_{source.stem}.o"
            made = target.stat().st_mtime if keep and target.exists() else 0
            if made < max(newest, source.stat().st_mtime):
                subprocess.run([NVCC, *flags, "-c", source, "-o", target], check=True)
            return str(target)

        jobs = [(source, flags) for sources, flags in kinds for source in sorted(sources.glob("*.cu"))]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            ext.extra_objects += pool.map(compiled, jobs)
        done_for.write_text(all_flags)


def extension(name: str, sources: list[Path], compile_args: list[str], **options) -> Extension:
    return cpp_extension.CppExtension(
        name,
        list(map(str, sources)),
        depends=list(map(str, HEADERS)),
        extra_compile_args=[*COMPILE, *compile_args],
        py_limited_api=True,
        **options,
    )


sanitize = os.environ.get("FILM_KERNELS_SANITIZE")  # "address,undefined", for the tests
sanitizer = [f"-fsanitize={sanitize}", "-fno-omit-frame-pointer", "-g1", "-O1"] if sanitize else []
AMX, PAIRS = assembles_amx(), assembles_pairs()
OF_AVX512 = [*(AMX_KERNELS if AMX else []), *(PAIR_KERNELS if PAIRS else [])]
CPU_FLAGS = [*sanitizer, *(["-DFILM_AMX"] if AMX else []), *(["-DFILM_PAIRS"] if PAIRS else [])]
extensions = [extension("film_kernels._cpu", sorted(CSRC.glob("*.cpp")), CPU_FLAGS, extra_link_args=sanitizer)]
sets = ", ".join([*ISA_FLAGS, *(["avx512_bf16"] if PAIRS else []), *(["amx"] if AMX else [])])
print(f"film_kernels._cpu: built for {sets} against torch {torch.__version__}")

NVCC = find_nvcc()
if sanitize or os.environ.get("FILM_KERNELS_CUDA") == "0":
    print("film_kernels._cuda: not built: FILM_KERNELS_CUDA=0" if not sanitize else "film_kernels._cuda: not sanitized")
elif NVCC is None:
    print("film_kernels._cuda: not built: nvcc was not found (set CUDA_HOME to the CUDA toolkit's folder)")
else:
    print(f"film_kernels._cuda: built with {NVCC} for {' '.join(nvcc_flags(NVCC))}")
    HOPPER = hopper_flags(NVCC)
    extensions.append(
        extension(
            "film_kernels._cuda",
            sorted((CSRC / "cuda").glob("*.cpp")),
            # USE_CUDA, or the stable ABI does not name the current stream
            ["-DUSE_CUDA", *(["-DFILM_HOPPER"] if HOPPER is not None else [])],
            include_dirs=[*nvcc_folders(NVCC, "-I"), str(CSRC / "cuda")],
            # its own copy of CUDA's runtime, so that it does not matter which one PyTorch brings
            library_dirs=nvcc_folders(NVCC, "-L"),
            libraries=["cudart_static", "dl", "rt", "pthread"],
        )
    )

setup(
    ext_modules=extensions,
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
