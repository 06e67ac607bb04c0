"""Out of memory in every spelling, and what only sounds like it."""

import pytest
import torch

from denoise_batch.kernels.errors import is_out_of_memory

SPELLINGS = [
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 15.77 GiB",
    "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
    "CUDA driver error: out of memory",
    "cudaHostAlloc(&ptr, size, cudaHostAllocDefault) failed",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
    "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
    "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
    "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "cuFFT error: CUFFT_ALLOC_FAILED",
    "cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`",
    "Triton Error [CUDA]: out of memory",
    "HIP out of memory. Tried to allocate 20.00 MiB",
    "miopenStatusAllocFailed",
    "XPU out of memory. Tried to allocate 2.00 GiB",
    "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
    "MPS backend out of memory (MPS allocated: 8.9 GB, other allocations: 1 GB, max: 9.07 GB)",
    "Invalid buffer size: 12.50 GiB",
    "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried",
    "DefaultCPUAllocator: not enough memory: you tried to allocate 80 bytes",
    "Cannot allocate memory",
]
OTHERS = [
    "out of resource: shared memory, Required: 180224, Hardware limit: 101376",
    "ptxas fatal: Register allocation failed with register count of '64'",
    "CUDA error: an illegal memory access was encountered",
    "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(handle)`",
    "Expected all tensors to be on the same device, but found at least two devices",
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_memory_ran_out(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(ValueError(text))


def test_memory_ran_out_by_type() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("no"))
    assert is_out_of_memory(MemoryError())


@pytest.mark.parametrize("text", OTHERS)
def test_memory_did_not_run_out(text: str) -> None:
    assert not is_out_of_memory(RuntimeError(text))
