"""Copies between host and device: packing is tested here as CUDA uses it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from denoise_batch.device import Transfer

CPU = torch.device("cpu")
shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3]))
dtypes = st.sampled_from([torch.uint8, torch.uint16, torch.float32])


@given(st.lists(st.tuples(shapes, dtypes), min_size=1, max_size=6))
def test_tensors_packed_into_one_block_come_out_as_they_went_in(
    parts: list[tuple[tuple[int, int, int], torch.dtype]],
) -> None:
    tensors = [(torch.rand(shape) * 200).to(dtype) for shape, dtype in parts]
    arrived = Transfer(CPU, is_packed=True).upload(tensors)
    assert len({tensor.untyped_storage().data_ptr() for tensor in arrived}) == 1
    for tensor, there in zip(tensors, arrived, strict=True):
        assert there.dtype == tensor.dtype
        assert torch.equal(there, tensor)


def test_on_the_cpu_nothing_is_copied() -> None:
    transfer, tensor = Transfer(CPU), torch.rand(4, 5, 3)
    (there,) = transfer.upload([tensor])
    (back,) = transfer.download([there]).wait()
    assert back.data_ptr() == tensor.data_ptr()


def test_views_arrive_contiguous() -> None:
    view = torch.rand(6, 8, 3)[1:5, 2:7]
    (there,) = Transfer(CPU, is_packed=True).upload([view])
    assert torch.equal(there, view)
    (back,) = Transfer(CPU).download([view]).wait()
    assert back.is_contiguous()


def test_marks_measure_time() -> None:
    transfer = Transfer(CPU)
    first, second = transfer.mark(), transfer.mark()
    assert 0 <= first.seconds_until(second) < 10
