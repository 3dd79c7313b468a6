"""The kernels written once in Triton: NVIDIA, AMD and Intel GPUs, and the CPU under TRITON_INTERPRET=1.

triton is optional; nothing here imports it before a problem is served.
"""
