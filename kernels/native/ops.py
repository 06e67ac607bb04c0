"""The library's functions as ops, with the names and signatures of `reference` and `gemm.fused`.

Tensors are float32 on the processor; inputs may have any strides, channels-last ones are read
without a copy, outputs are channels-last. Everything else is declined with NotCoveredError.
"""

import ctypes
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from ..buffer_pool import POOL
from ..errors import NotCoveredError
from ..geometry import Activation, ConvGeometry, FusedActivation, IntPair
from ..reference import upsample_nearest2d_forward
from ..weight_cache import forget, kept_from_second_use
from .library import Geometry

_ACTIVATIONS = {None: 0, "relu": 1, "sigmoid": 2}
_SQUARE = ConvGeometry(padding=(1, 1))
# A vector of 16 channels that holds fewer wastes what Winograd saves.
_LEAST_WINOGRAD_CHANNELS = 8


class NativeOps:
    """The ops of one compiled library.

    Args:
        instruction_set: that it was compiled for.
        library: from `open_library`.
    """

    def __init__(self, instruction_set: str, library: ctypes.CDLL) -> None:
        self.instruction_set = instruction_set
        self._library = library
        self._threads = 0

    def conv2d_forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        activation: Activation = None,
    ) -> Tensor:
        """Native implementation of `reference.conv2d_forward`."""
        return self.conv2d_fused(input, weight, bias, geometry, activation)

    def conv2d_fused(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        activation: FusedActivation = None,
        upsample: IntPair = (1, 1),
        unshuffle: int = 1,
        shuffle: int = 1,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Native implementation of `gemm.fused.conv2d_fused`."""
        self._begin(input, weight, bias, residual)
        image = input
        if upsample != (1, 1):
            image = upsample_nearest2d_forward(image, upsample)
        if unshuffle > 1:
            image = self.pixel_unshuffle(image, unshuffle)
        added = residual if shuffle == 1 else None
        output = self._conv_forward(image, weight, bias, geometry, activation, added)
        if image is not input:
            POOL.free(image)
        if shuffle == 1:
            return output
        shuffled = self.pixel_shuffle(output, shuffle, residual)
        POOL.free(output)
        return shuffled

    def conv2d_backward(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        geometry: ConvGeometry,
        output: Tensor | None = None,
        needs_input_grad: bool = True,
        residual: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Native implementation of `reference.conv2d_backward`."""
        self._begin(grad_output, input, weight, output, residual)
        residual = _as_output(residual, input.shape)
        grad, image, gate = _nhwc(grad_output), _nhwc(input), _optional_nhwc(output)
        grad_weight, grad_bias = _new_like(weight), _new_vector(len(weight))
        grad_input = (
            _new_image(image, image.shape[3], image.shape[1:3]) if needs_input_grad else None
        )
        if _is_winograd(weight, geometry, grad.shape[1:3]):
            self._winograd_weights(image, grad, gate, geometry.padding, grad_weight, grad_bias)
            if grad_input is not None:
                self._winograd(
                    grad, gate, weight, True, geometry.padding, None, None, residual, grad_input
                )
        else:
            grad = self._relu_backward(grad, gate, grad_bias)
            self._direct_weights(image, grad, geometry, grad_weight)
            if grad_input is not None:
                self._direct(grad, weight, geometry, True, None, None, residual, grad_input)
        return _nchw(grad_input), grad_weight, grad_bias

    def conv_transpose2d_forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        activation: Activation = None,
    ) -> Tensor:
        """Native implementation of `reference.conv_transpose2d_forward`."""
        return self.conv_transpose2d_fused(input, weight, bias, geometry, activation)

    def conv_transpose2d_fused(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        activation: FusedActivation = None,
        residual: Tensor | None = None,
    ) -> Tensor:
        """Native implementation of `gemm.fused.conv_transpose2d_fused`."""
        self._begin(input, weight, bias, residual)
        size = geometry.conv_transpose2d_output_size(input.shape[2:], weight.shape[2:])
        channels = weight.shape[1] * geometry.groups
        _check_channels(input, len(weight), bias, channels)
        image = _nhwc(input)
        output = _new_image(image, channels, size)
        ends = bias, activation, _as_output(residual, (len(image), channels, *size))
        if _is_winograd(weight, geometry, size):
            self._winograd(image, None, weight, True, geometry.padding, *ends, output)
        else:
            self._direct(image, weight, geometry, True, *ends, output)
        return output.permute(0, 3, 1, 2)

    def conv_transpose2d_backward(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        geometry: ConvGeometry,
        output: Tensor | None = None,
        needs_input_grad: bool = True,
        residual: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Native implementation of `reference.conv_transpose2d_backward`."""
        self._begin(grad_output, input, weight, output, residual)
        residual = _as_output(residual, input.shape)
        image = _nhwc(input)
        grad_weight, grad_bias = _new_like(weight), _new_vector(grad_output.shape[1])
        grad = self._relu_backward(_nhwc(grad_output), _optional_nhwc(output), grad_bias)
        grad_input = (
            _new_image(image, image.shape[3], image.shape[1:3]) if needs_input_grad else None
        )
        if _is_winograd(weight, geometry, image.shape[1:3]):
            self._winograd_weights(grad, image, None, geometry.padding, grad_weight, None)
            if grad_input is not None:
                self._winograd(
                    grad, None, weight, False, geometry.padding, None, None, residual, grad_input
                )
        else:
            self._direct_weights(grad, image, geometry, grad_weight)
            if grad_input is not None:
                self._direct(grad, weight, geometry, False, None, None, residual, grad_input)
        return _nchw(grad_input), grad_weight, grad_bias

    def residual_pair(
        self,
        input: Tensor,
        weight1: Tensor,
        bias1: Tensor | None,
        weight2: Tensor,
        bias2: Tensor | None,
    ) -> Tensor:
        """Return input + conv(relu(conv(input))), both 3×3 with padding 1, in one pass."""
        self._begin(input, weight1, bias1, weight2, bias2)
        image = _nhwc(input)
        n, height, width, channels = image.shape
        is_winograd = all(_is_winograd(w, _SQUARE, (height, width)) for w in (weight1, weight2))
        if not is_winograd:
            hidden = self.conv2d_fused(input, weight1, bias1, _SQUARE, "relu")
            result = self.conv2d_fused(hidden, weight2, bias2, _SQUARE, residual=input)
            POOL.free(hidden)
            return result
        output = _new_image(image, channels, (height, width))
        first = self._winograd_packed(weight1, False)
        second = self._winograd_packed(weight2, False, scratch="second U")
        bias1, bias2 = _dense(bias1), _dense(bias2)
        self._library.denoise_winograd_residual(
            *(_ptr(image), n, height, width, channels, len(weight1)),
            *(_ptr(first), _ptr(bias1), _ptr(second), _ptr(bias2), _ptr(output)),
        )
        return output.permute(0, 3, 1, 2)

    def sigmoid_forward(self, input: Tensor) -> Tensor:
        """Native implementation of `reference.sigmoid_forward`."""
        self._begin(input)
        with torch.inference_mode(False):
            output = torch.empty_like(input)
        return self._sigmoid(input, output)

    def sigmoid_forward_(self, input: Tensor) -> Tensor:
        """Native implementation of `reference.sigmoid_forward_`."""
        self._begin(input)
        return self._sigmoid(input, input)

    def _sigmoid(self, input: Tensor, output: Tensor) -> Tensor:
        # Both in one order of elements, without gaps.
        if input.stride() != output.stride() or not _is_dense(output):
            raise NotCoveredError("elements in no order of memory")
        self._library.denoise_sigmoid(_ptr(input), input.numel(), _ptr(output))
        return output

    def mse_loss(self, input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Native implementation of `reference.mse_loss`."""
        self._begin(input, target)
        if input.shape != target.shape:
            raise NotCoveredError(f"{tuple(input.shape)} and {tuple(target.shape)}")
        # Both in one order of elements: channels-last, as outputs are, also when they were cropped.
        is_last = input.ndim == 4 and input.stride(1) == 1
        layout = torch.channels_last if is_last else torch.contiguous_format
        input, target = (t.contiguous(memory_format=layout) for t in (input, target))
        with torch.inference_mode(False):
            grad = torch.empty_like(input)
        loss = self._library.denoise_mse(_ptr(input), _ptr(target), input.numel(), _ptr(grad))
        return torch.tensor(loss, dtype=input.dtype), grad

    def sgd_step(
        self,
        parameters: list[Tensor],
        grads: list[Tensor],
        velocities: list[Tensor],
        lr: float | Tensor,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> list[Tensor]:
        """Native implementation of `reference.sgd_step`."""
        self._begin(*parameters, *grads, *velocities)
        if not all(t.is_contiguous() for t in (*parameters, *grads, *velocities)):
            raise NotCoveredError("elements in no order of memory")
        sizes = (ctypes.c_int64 * len(parameters))(*(p.numel() for p in parameters))
        self._library.denoise_sgd(
            *(len(parameters), _pointers(parameters), _pointers(grads)),
            *(_pointers(velocities) if velocities else None, sizes),
            *(float(lr), momentum, int(nesterov), weight_decay),
        )
        forget(parameters)
        return parameters

    def orthogonalize(self, matrices: Sequence[Tensor], steps: int = 5) -> list[Tensor]:
        """Native implementation of `reference.orthogonalize`."""
        self._begin(*matrices)
        results = [_new_like(matrix) for matrix in matrices]
        # The largest first, so that the threads end together.
        order = sorted(range(len(matrices)), key=lambda i: matrices[i].numel(), reverse=True)
        dense = [matrices[i].contiguous() for i in order]
        array = ctypes.c_int64 * len(dense)
        rows, columns = (array(*(matrix.shape[axis] for matrix in dense)) for axis in (0, 1))
        self._library.denoise_orthogonalize(
            *(
                len(dense),
                _pointers(dense),
                _pointers([results[i] for i in order]),
                rows,
                columns,
                steps,
            )
        )
        return results

    def normalize(self, input: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
        """Native implementation of `reference.normalize`."""
        self._begin(input)
        n, channels, height, width = input.shape
        output = _new_image(input, channels, (height, width))
        array = ctypes.c_float * channels
        shift, scale = (
            array(*(values if len(values) == channels else [values[0]] * channels))
            for values in (mean, std)
        )
        self._library.denoise_normalize(
            *(_ptr(input), _strides(input), n, channels, height, width),
            *(shift, scale, _ptr(output)),
        )
        return output.permute(0, 3, 1, 2)

    def pixel_unshuffle(self, input: Tensor, factor: int) -> Tensor:
        """Native implementation of `geometry.pixel_unshuffle`."""
        self._begin(input)
        n, channels, height, width = input.shape
        h, w = height // factor, width // factor
        output = _new_image(input, channels * factor**2, (h, w))
        self._library.denoise_pixel_unshuffle(
            _ptr(input), _strides(input), n, channels, h, w, factor, _ptr(output)
        )
        return output.permute(0, 3, 1, 2)

    def pixel_shuffle(self, input: Tensor, factor: int, residual: Tensor | None = None) -> Tensor:
        """Native implementation of `geometry.pixel_shuffle`, plus `residual`."""
        self._begin(input, residual)
        image = _nhwc(input)
        n, height, width, channels = image.shape
        shape = (n, channels // factor**2, height * factor, width * factor)
        if residual is not None and residual.shape != shape:
            raise NotCoveredError(f"a residual {tuple(residual.shape)} of {shape}")
        output = _new_image(image, channels // factor**2, (height * factor, width * factor))
        self._library.denoise_pixel_shuffle(
            *(_ptr(image), n, channels // factor**2, height, width, factor),
            *(_ptr(residual), None if residual is None else _strides(residual), _ptr(output)),
        )
        return output.permute(0, 3, 1, 2)

    def _begin(self, *tensors: Tensor | None) -> None:
        """Decline what the library cannot do; compute with as many threads as torch.

        Raises:
            NotCoveredError: another precision or device, or an empty tensor.
        """
        for tensor in tensors:
            if tensor is None:
                continue
            if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise NotCoveredError(f"{tensor.dtype} on {tensor.device}")
            if not tensor.numel():
                raise NotCoveredError("an empty tensor")
        threads = torch.get_num_threads()
        if threads != self._threads:
            self._threads = threads
            self._library.denoise_threads(threads)

    def _conv_forward(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: ConvGeometry,
        activation: FusedActivation,
        residual: Tensor | None,
    ) -> Tensor:
        _check_channels(input, weight.shape[1] * geometry.groups, bias, len(weight))
        image = _nhwc(input)
        size = geometry.conv2d_output_size(image.shape[1:3], weight.shape[2:])
        output = _new_image(image, len(weight), size)
        ends = bias, activation, _as_output(residual, (len(image), len(weight), *size))
        if _is_winograd(weight, geometry, size):
            self._winograd(image, None, weight, False, geometry.padding, *ends, output)
        else:
            self._direct(image, weight, geometry, False, *ends, output)
        return output.permute(0, 3, 1, 2)

    def _winograd(
        self,
        image: Tensor,
        gate: Tensor | None,
        weight: Tensor,
        is_transposed: bool,
        padding: IntPair,
        bias: Tensor | None,
        activation: FusedActivation,
        residual: Tensor | None,
        output: Tensor,
    ) -> None:
        """Convolve; transposed, with the turned filter and what is left of a padding of 2."""
        pad_h, pad_w = (2 - p for p in padding) if is_transposed else padding
        n, height, width, channels = image.shape
        packed, bias = self._winograd_packed(weight, is_transposed), _dense(bias)
        self._library.denoise_winograd_conv(
            *(_ptr(image), _ptr(gate), n, height, width, channels, pad_h, pad_w),
            *(_ptr(packed), _ptr(bias), _ACTIVATIONS[activation], _ptr(residual)),
            *(_ptr(output), *output.shape[1:]),
        )

    def _winograd_packed(self, weight: Tensor, is_transposed: bool, scratch: str = "U") -> Tensor:
        """The transformed weights; in the named scratch memory where they are not kept."""
        small, large = weight.shape[:2]
        # Channels in, out; distance between two filters of out, of in.
        sizes = (small, large, 9, large * 9) if is_transposed else (large, small, large * 9, 9)

        def pack(packed: Tensor) -> None:
            values = weight.contiguous()
            self._library.denoise_winograd_pack(
                _ptr(values), *sizes, int(is_transposed), _ptr(packed)
            )

        size = self._library.denoise_winograd_size(*sizes[:2])
        kind = self.instruction_set, "winograd", is_transposed
        return _packed(weight, kind, size, pack, scratch)

    def _winograd_weights(
        self,
        large: Tensor,
        small: Tensor,
        gate: Tensor | None,
        padding: IntPair,
        grad_weight: Tensor,
        grad_bias: Tensor | None,
    ) -> None:
        self._library.denoise_winograd_weights(
            *(_ptr(large), *large.shape, *padding, _ptr(small), _ptr(gate), *small.shape[1:]),
            *(_ptr(grad_weight), _ptr(grad_bias)),
        )

    def _direct(
        self,
        image: Tensor,
        weight: Tensor,
        geometry: ConvGeometry,
        is_transposed: bool,
        bias: Tensor | None,
        activation: FusedActivation,
        residual: Tensor | None,
        output: Tensor,
    ) -> None:
        large, small = (output, image) if is_transposed else (image, output)
        shape = _geometry(large, small, weight, geometry)

        def pack(packed: Tensor) -> None:
            values = weight.contiguous()
            self._library.denoise_direct_pack(shape, int(is_transposed), _ptr(values), _ptr(packed))

        size = self._library.denoise_direct_size(shape, int(is_transposed))
        kind = self.instruction_set, "direct", is_transposed, geometry
        packed, bias = _packed(weight, kind, size, pack, "U"), _dense(bias)
        library = self._library
        run = library.denoise_direct_transpose if is_transposed else library.denoise_direct_forward
        run(
            *(shape, _ptr(image), _ptr(packed), _ptr(bias), _ACTIVATIONS[activation]),
            *(_ptr(residual), _ptr(output)),
        )

    def _direct_weights(
        self, large: Tensor, small: Tensor, geometry: ConvGeometry, grad_weight: Tensor
    ) -> None:
        shape = _geometry(large, small, grad_weight, geometry)
        self._library.denoise_direct_weights(shape, _ptr(large), _ptr(small), _ptr(grad_weight))

    def _relu_backward(self, grad: Tensor, gate: Tensor | None, grad_bias: Tensor) -> Tensor:
        """The gradient where the output is positive; its sums go to grad_bias."""
        result = grad if gate is None else _new_like(grad)
        channels = grad.shape[3]
        self._library.denoise_relu_backward(
            *(_ptr(grad), _ptr(gate), grad.numel() // channels, channels),
            *(_ptr(result), _ptr(grad_bias)),
        )
        return result


def _is_winograd(weight: Tensor, geometry: ConvGeometry, size: Sequence[int]) -> bool:
    """Whether tiles of 4×4 outputs, of `size` in all, take fewer products than the taps."""
    small, large, kh, kw = weight.shape
    if (kh, kw) != (3, 3) or geometry.stride != (1, 1) or geometry.dilation != (1, 1):
        return False
    if geometry.groups > 1:
        return False
    if min(small, large) < _LEAST_WINOGRAD_CHANNELS:
        return False
    height, width = size
    tiles = -(-height // 4) * -(-width // 4)
    return 36 * tiles <= 0.8 * 9 * height * width


def _packed(
    weight: Tensor, kind: Hashable, size: int, pack: Callable[[Tensor], None], scratch: str
) -> Tensor:
    """What `pack` makes of a weight; kept from its second use on, so training keeps nothing."""

    def make() -> Tensor:
        packed = _new_vector(size)
        pack(packed)
        return packed

    kept = kept_from_second_use(weight, kind, make)
    if kept is None:
        kept = POOL.scratch(scratch, size, weight, weight.dtype)
        pack(kept)
    return kept


def _check_channels(input: Tensor, channels: int, bias: Tensor | None, bias_size: int) -> None:
    """Leave it to gemm to say what is wrong."""
    if input.ndim != 4 or input.shape[1] != channels:
        raise NotCoveredError(f"{tuple(input.shape)} for {channels} channels")
    if bias is not None and bias.shape != (bias_size,):
        raise NotCoveredError(f"a bias {tuple(bias.shape)} for {bias_size} channels")


def _as_output(residual: Tensor | None, shape: Sequence[int]) -> Tensor | None:
    """(N, H, W, C) in the output's layout.

    Raises:
        NotCoveredError: it would have to be broadcast.
    """
    if residual is None:
        return None
    if tuple(residual.shape) != tuple(shape):
        raise NotCoveredError(f"a residual {tuple(residual.shape)} of {tuple(shape)}")
    return _nhwc(residual)


def _geometry(large: Tensor, small: Tensor, weight: Tensor, geometry: ConvGeometry) -> Geometry:
    n, large_h, large_w, large_c = large.shape
    return Geometry(
        *(n, large_h, large_w, large_c, *small.shape[1:]),
        *(*weight.shape[2:], *geometry.stride, *geometry.padding, *geometry.dilation),
        large_c // weight.shape[1],
    )


def _nhwc(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1).contiguous()


def _optional_nhwc(image: Tensor | None) -> Tensor | None:
    return None if image is None else _nhwc(image)


def _nchw(image: Tensor | None) -> Tensor | None:
    return None if image is None else image.permute(0, 3, 1, 2)


def _new_image(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """Uninitialised, (N, H, W, C)."""
    with torch.inference_mode(False):
        return POOL.alloc((len(like), *size, channels), like)


def _new_like(tensor: Tensor) -> Tensor:
    with torch.inference_mode(False):
        return torch.empty(tensor.shape)


def _new_vector(size: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.empty(size)


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements, in some order, fill their memory."""
    layouts = [torch.contiguous_format]
    if tensor.ndim == 4:
        layouts.append(torch.channels_last)
    return any(tensor.is_contiguous(memory_format=layout) for layout in layouts)


def _dense(vector: Tensor | None) -> Tensor | None:
    return None if vector is None else vector.contiguous()


def _ptr(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _strides(image: Tensor) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * 4)(*image.stride())
