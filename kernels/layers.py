"""Layers: convolutions and their initialisation, ReLU, Sigmoid, shuffles, upsampling, padding.

Names, arguments, weight shapes, initialisation and errors are torch's.
"""

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from .block import Block, InputGrad, accumulate_grad, add
from .buffer_pool import POOL, shares_memory
from .dispatch import Gradients, ops_for
from .errors import ShapeError
from .geometry import (
    Activation,
    ConvGeometry,
    Int2,
    IntPair,
    Shape,
    check_image,
    check_nchw,
    integer,
    pair,
)
from .padding import PADDING_MODES, Padding, PaddingMode, copied_positions, same_padding
from .reference import relu_backward, relu_forward
from .weight_cache import cast
from .work import WORK


class Convolution(Block):
    """Base of both convolutions: arguments, parameters, precision, the fused activation.

    Attributes:
        padding: the argument, as a pair or torch's word for it.
        geometry: what the ops are given.
        input_padding: what is added around the input before; None where the op adds zeros itself.
    """

    parameter_names = ("weight", "bias")
    transposed: ClassVar[bool] = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Int2,
        geometry: ConvGeometry,
        bias: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.in_channels = integer(in_channels, "in_channels", minimum=1)
        self.out_channels = integer(out_channels, "out_channels", minimum=1)
        self.kernel_size = pair(kernel_size, "kernel_size", minimum=1)
        self.geometry = geometry
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ShapeError(
                    f"{name}={getattr(self, name)} is not a multiple of groups={self.groups}"
                )
        self.padding: IntPair | str = geometry.padding
        self.padding_mode: PaddingMode = "zeros"
        self.input_padding: Padding | None = None
        first, second = self.out_channels, self.in_channels
        if self.transposed:
            first, second = second, first
        weight = torch.empty(first, second // self.groups, *self.kernel_size)
        self.weight = kaiming_uniform_(weight, generator)
        self.bias = (
            bias_uniform_(torch.empty(out_channels), self.weight, generator) if bias else None
        )

    @property
    def stride(self) -> IntPair:
        """Distance between two positions of the kernel."""
        return self.geometry.stride

    @property
    def dilation(self) -> IntPair:
        """Distance between kernel taps."""
        return self.geometry.dilation

    @property
    def groups(self) -> int:
        """Equal parts of the channels, each convolved by itself."""
        return self.geometry.groups

    @property
    def saves_output(self) -> bool:
        """Only with an activation, and `Sequential` asks convolutions without one."""
        return False

    @abstractmethod
    def output_size(self, size: Sequence[int]) -> IntPair:
        """Return (oh, ow) for an input of (H, W).

        Raises:
            ShapeError: the output would be empty, or the input is too small for the padding.
        """

    @abstractmethod
    def _convolve(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        residual: Tensor | None = None,
    ) -> Tensor:
        """The op of forward."""

    @abstractmethod
    def _gradients(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        output: Tensor | None,
        needs_input_grad: bool,
        residual: Tensor | None = None,
    ) -> Gradients:
        """The op of backward."""

    def output_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return (N, out_channels, oh, ow) for an input of (N, in_channels, H, W), or without N.

        Raises:
            ShapeError: wrong number of channels, or an input too small for any output.
        """
        check_image(shape, self.in_channels, f"{type(self).__name__} input")
        return (*shape[:-3], self.out_channels, *self.output_size(shape[-2:]))

    def forward(
        self, input: Tensor, activation: Activation = None, residual: Tensor | None = None
    ) -> Tensor:
        """(N, in_channels, H, W) → (N, out_channels, oh, ow), the activation, plus `residual`.

        One image (in_channels, H, W) gives one without N, as in torch.

        Raises:
            ShapeError: wrong number of channels, or an input too small for any output.
        """
        self.output_shape(input.shape)
        dtype = self.compute_dtype or self.weight.dtype
        input, weight = input.to(dtype), cast(self.weight, dtype)
        bias = None if self.bias is None else cast(self.bias, dtype)
        is_batch = input.ndim == 4
        image = input if is_batch else input[None]
        if residual is not None and not is_batch:
            residual = residual[None]
        padded = image if self.input_padding is None else self.input_padding.pad(image)
        output = self._convolve(padded, weight, bias, activation, residual)
        result = output if is_batch else output[0]
        WORK.add(weight, input.shape, result.shape)
        self._save((padded, output if activation else None, weight), result)
        if not self.training and not shares_memory(padded, image):
            POOL.free(padded)
        return result

    def forward_plus(self, input: Tensor, residual: Tensor) -> Tensor:
        """Return `forward(input) + residual`."""
        dtype = self.compute_dtype or self.weight.dtype
        # In mixed precision a sum with a float32 image is float32, which no launch could write.
        is_fused = residual.dtype == dtype and ops_for(input.device).has_fused_kernels
        if is_fused and residual.shape == self.output_shape(input.shape):
            return self.forward(input, None, residual)
        return super().forward_plus(input, residual)

    def backward_plus(self, grad_output: Tensor, residual: Tensor) -> Tensor:
        """Return `backward(grad_output) + residual`."""
        dtype = self.compute_dtype or self.weight.dtype
        if residual.dtype != dtype:
            return super().backward_plus(grad_output, residual)
        result: Tensor = self._backward(grad_output, True, residual)
        return result

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """Add to weight.grad and bias.grad, and return the gradient of the input."""
        return self._backward(grad_output, needs_input_grad, None)

    def _backward(
        self, grad_output: Tensor, needs_input_grad: bool, residual: Tensor | None
    ) -> InputGrad:
        input, output, weight = self._pop_saved(grad_output)
        is_batch = grad_output.ndim == 4
        grad_output = grad_output.to(weight.dtype)
        if not is_batch:
            grad_output = grad_output[None]
            residual = None if residual is None else residual[None]
        around = self.input_padding
        added = residual if around is None else None
        grad_input, grad_weight, grad_bias = self._gradients(
            grad_output, input, weight, output, needs_input_grad, added
        )
        accumulate_grad(self.weight, grad_weight)
        if self.bias is not None:
            accumulate_grad(self.bias, grad_bias)
        self._notify_grad_ready()
        if grad_input is None:
            return None
        if around is not None:
            grad_input = around.fold(grad_input)
            grad_input = grad_input if residual is None else add(grad_input, residual)
        return grad_input if is_batch else grad_input[0]

    def extra_repr(self) -> str:
        """As torch's."""
        plain = ConvGeometry()
        shown = f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}"
        shown += f", stride={self.stride}"
        values = {
            "padding": (self.padding, plain.padding),
            "dilation": (self.dilation, plain.dilation),
            "output_padding": (self.geometry.output_padding, plain.output_padding),
            "groups": (self.groups, plain.groups),
            "bias": (self.bias is not None, True),
            "padding_mode": (self.padding_mode, "zeros"),
        }
        for name, (value, default) in values.items():
            if value != default:
                shown += f", {name}={value}"
        return shown


class Conv2d(Convolution):
    """2-D convolution (cross-correlation, as in torch) over (N, in_channels, H, W).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: extent of the kernel, one integer or (kh, kw).
        stride: step between output positions.
        padding: pixels added on each side; "same" adds what keeps the size, "valid" none.
        dilation: distance between kernel taps.
        groups: equal parts of the channels, each convolved by itself.
        bias: whether a bias is added.
        padding_mode: what is added: "zeros", "reflect", "replicate" or "circular".
        generator: randomness of the initial weights; torch's global generator by default.

    Attributes:
        weight: (out_channels, in_channels / groups, kh, kw).
        bias: (out_channels,) or None.

    Raises:
        ShapeError: an argument out of range.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Int2,
        stride: Int2 = 1,
        padding: Int2 | str = 0,
        dilation: Int2 = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: PaddingMode = "zeros",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ShapeError(f"padding={padding!r}: give one integer or two, 'same' or 'valid'")
        if padding_mode not in PADDING_MODES:
            raise ShapeError(f"padding_mode={padding_mode!r}: choose from {PADDING_MODES}")
        geometry = ConvGeometry(
            pair(stride, "stride", minimum=1),
            (0, 0) if isinstance(padding, str) else pair(padding, "padding", minimum=0),
            pair(dilation, "dilation", minimum=1),
            groups=integer(groups, "groups", minimum=1),
        )
        super().__init__(in_channels, out_channels, kernel_size, geometry, bias, generator)
        self.padding_mode = padding_mode
        rows, columns = ((sides, sides) for sides in geometry.padding)
        if isinstance(padding, str):
            self.padding = padding
        if padding == "same":
            if self.stride != (1, 1):
                raise ShapeError(f"padding='same' takes stride 1, not {self.stride}")
            extents = zip(self.kernel_size, self.dilation, strict=True)
            rows, columns = (same_padding(d * (k - 1) + 1) for k, d in extents)
        is_symmetric = rows[0] == rows[1] and columns[0] == columns[1]
        if is_symmetric and padding_mode == "zeros":
            self.geometry = replace(geometry, padding=(rows[0], columns[0]))
        elif any(rows + columns):
            self.geometry = replace(geometry, padding=(0, 0))
            self.input_padding = Padding(rows, columns, padding_mode)

    def output_size(self, size: Sequence[int]) -> IntPair:
        """As `ConvGeometry.conv2d_output_size`, of the padded input."""
        if self.input_padding is not None:
            self.input_padding.check(size)
            size = self.input_padding.size(size)
        return self.geometry.conv2d_output_size(size, self.kernel_size)

    def _convolve(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        residual: Tensor | None = None,
    ) -> Tensor:
        ops, arguments = ops_for(input.device), (input, weight, bias, self.geometry, activation)
        if residual is None:
            return ops.conv2d_forward(*arguments)
        return ops.conv2d_fused(*arguments, residual=residual)

    def _gradients(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        output: Tensor | None,
        needs_input_grad: bool,
        residual: Tensor | None = None,
    ) -> Gradients:
        op = ops_for(input.device).conv2d_backward
        return op(grad_output, input, weight, self.geometry, output, needs_input_grad, residual)


class ConvTranspose2d(Convolution):
    """Transposed 2-D convolution, the adjoint of Conv2d, over (N, in_channels, H, W).

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: extent of the kernel, one integer or (kh, kw).
        stride: distance in the output between the kernels of two neighbouring input pixels.
        padding: rows and columns cut off each side of the output.
        output_padding: rows and columns added at the bottom and right; less than stride
            (or dilation).
        groups: equal parts of the channels, each convolved by itself.
        bias: whether a bias is added.
        dilation: distance between kernel taps.
        padding_mode: only "zeros", as in torch.
        generator: randomness of the initial weights; torch's global generator by default.

    Attributes:
        weight: (in_channels, out_channels / groups, kh, kw).
        bias: (out_channels,) or None.

    Raises:
        ShapeError: an argument out of range.
    """

    transposed = True

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Int2,
        stride: Int2 = 1,
        padding: Int2 = 0,
        output_padding: Int2 = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Int2 = 1,
        padding_mode: PaddingMode = "zeros",
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if padding_mode != "zeros":
            raise ShapeError(
                f"padding_mode={padding_mode!r}: a transposed convolution has only 'zeros'"
            )
        geometry = ConvGeometry(
            pair(stride, "stride", minimum=1),
            pair(padding, "padding", minimum=0),
            pair(dilation, "dilation", minimum=1),
            pair(output_padding, "output_padding", minimum=0),
            integer(groups, "groups", minimum=1),
        )
        super().__init__(in_channels, out_channels, kernel_size, geometry, bias, generator)
        # An input that is large enough for any padding: only the arguments can be wrong here.
        down, across = geometry.padding
        self.output_size((1 + 2 * down, 1 + 2 * across))

    @property
    def output_padding(self) -> IntPair:
        """Rows and columns added at the bottom and right."""
        return self.geometry.output_padding

    def output_size(self, size: Sequence[int]) -> IntPair:
        """As `ConvGeometry.conv_transpose2d_output_size`."""
        return self.geometry.conv_transpose2d_output_size(size, self.kernel_size)

    def _convolve(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation,
        residual: Tensor | None = None,
    ) -> Tensor:
        ops, arguments = ops_for(input.device), (input, weight, bias, self.geometry, activation)
        if residual is None:
            return ops.conv_transpose2d_forward(*arguments)
        return ops.conv_transpose2d_fused(*arguments, residual=residual)

    def _gradients(
        self,
        grad_output: Tensor,
        input: Tensor,
        weight: Tensor,
        output: Tensor | None,
        needs_input_grad: bool,
        residual: Tensor | None = None,
    ) -> Gradients:
        op = ops_for(input.device).conv_transpose2d_backward
        return op(grad_output, input, weight, self.geometry, output, needs_input_grad, residual)


class ReLU(Block):
    """max(x, 0), elementwise (course paper, II-D)."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the same shape."""
        output = relu_forward(input)
        self._save(output, output)
        return output

    def forward_in_place(self, input: Tensor) -> Tensor:
        """max(x, 0) in the place of x."""
        return input.clamp_min_(0)

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """grad_output where the output was positive, 0 elsewhere."""
        output = self._pop_saved(grad_output)
        return relu_backward(grad_output, output) if needs_input_grad else None


class Sigmoid(Block):
    """1/(1 + e^−x), elementwise and without overflow (course paper, II-D)."""

    def forward(self, input: Tensor) -> Tensor:
        """Any shape; the same shape, values in [0, 1]."""
        output = ops_for(input.device).sigmoid_forward(input)
        self._save(output, output)
        return output

    def forward_in_place(self, input: Tensor) -> Tensor:
        """1/(1 + e^−x) in the place of x."""
        return ops_for(input.device).sigmoid_forward_(input)

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """grad_output · σ · (1 − σ)."""
        output = self._pop_saved(grad_output)
        if not needs_input_grad:
            return None
        return ops_for(output.device).sigmoid_backward(grad_output, output)


class PixelUnshuffle(Block):
    """(N, C, H·r, W·r) → (N, C·r², H, W), the inverse of PixelShuffle.

    Raises:
        ShapeError: downscale_factor below 1.
    """

    def __init__(self, downscale_factor: int) -> None:
        super().__init__()
        if downscale_factor < 1:
            raise ShapeError(f"downscale_factor={downscale_factor}: must be at least 1")
        self.downscale_factor = downscale_factor

    def output_shape(self, shape: Sequence[int]) -> Shape:
        """Return (N, C·r², H, W) for an input of (N, C, H·r, W·r).

        Raises:
            ShapeError: height or width is not a multiple of the factor.
        """
        check_nchw(shape, None, "PixelUnshuffle input")
        batch, channels, height, width = shape
        factor = self.downscale_factor
        if height % factor or width % factor:
            raise ShapeError(f"PixelUnshuffle: {height}x{width} is not a multiple of {factor}")
        return batch, channels * factor**2, height // factor, width // factor

    def forward(self, input: Tensor) -> Tensor:
        """Height and width must be multiples of the factor.

        Raises:
            ShapeError: they are not.
        """
        self.output_shape(input.shape)
        output = ops_for(input.device).pixel_unshuffle(input, self.downscale_factor)
        self._save((), output)
        return output

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """Every pixel has moved, so the gradient moves back."""
        self._pop_saved(grad_output)
        if not needs_input_grad:
            return None
        return ops_for(grad_output.device).pixel_shuffle(grad_output, self.downscale_factor)

    def extra_repr(self) -> str:
        """As torch's."""
        return f"downscale_factor={self.downscale_factor}"


class PixelShuffle(Block):
    """(N, C·r², H, W) → (N, C, H·r, W·r) (Shi et al., "sub-pixel convolution", 2016).

    Raises:
        ShapeError: upscale_factor below 1.
    """

    def __init__(self, upscale_factor: int) -> None:
        super().__init__()
        if upscale_factor < 1:
            raise ShapeError(f"upscale_factor={upscale_factor}: must be at least 1")
        self.upscale_factor = upscale_factor

    def forward(self, input: Tensor) -> Tensor:
        """The number of channels must be a multiple of r².

        Raises:
            ShapeError: it is not.
        """
        check_nchw(input.shape, None, "PixelShuffle input")
        square = self.upscale_factor**2
        if input.shape[1] % square:
            raise ShapeError(
                f"PixelShuffle: {input.shape[1]} channels are not a multiple of {square}"
            )
        output = ops_for(input.device).pixel_shuffle(input, self.upscale_factor)
        self._save((), output)
        return output

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """Every pixel has moved, so the gradient moves back."""
        self._pop_saved(grad_output)
        if not needs_input_grad:
            return None
        return ops_for(grad_output.device).pixel_unshuffle(grad_output, self.upscale_factor)

    def extra_repr(self) -> str:
        """As torch's."""
        return f"upscale_factor={self.upscale_factor}"


class NearestUpsample2d(Block):
    """Repeat every pixel `scale_factor` times down and across (course paper, II-C).

    Raises:
        ShapeError: a factor that is not a whole number of at least 1.
    """

    def __init__(self, scale_factor: Int2) -> None:
        super().__init__()
        self.scale_factor = pair(scale_factor, "scale_factor", minimum=1)

    def output_shape(self, shape: Sequence[int]) -> Shape:
        """Return (N, C, H·sh, W·sw) for an input of (N, C, H, W).

        Raises:
            ShapeError: not four dimensions, or an empty image.
        """
        check_nchw(shape, None, "NearestUpsample2d input")
        down, across = self.scale_factor
        return shape[0], shape[1], shape[2] * down, shape[3] * across

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) → (N, C, H·sh, W·sw)."""
        self.output_shape(input.shape)
        output = ops_for(input.device).upsample_nearest2d_forward(input, self.scale_factor)
        self._save((), output)
        return output

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """The sum of the gradients of each pixel's copies."""
        self._pop_saved(grad_output)
        if not needs_input_grad:
            return None
        op = ops_for(grad_output.device).upsample_nearest2d_backward
        return op(grad_output, self.scale_factor)

    def extra_repr(self) -> str:
        """As torch's."""
        return f"scale_factor={self.scale_factor}"


class Normalize(Block):
    """(x − mean)/std per channel: network inputs of mean 0 and deviation 1.

    Args:
        mean: one value, or one per channel, in the input's unit.
        std: one value, or one per channel, above 0.

    Raises:
        ShapeError: lengths that contradict each other, or a std that is not above 0.
    """

    def __init__(self, mean: float | Sequence[float], std: float | Sequence[float]) -> None:
        super().__init__()
        self.mean = _as_tuple(mean)
        self.std = _as_tuple(std)
        lengths = {len(self.mean), len(self.std)} - {1}
        if len(lengths) > 1 or 0 in lengths or not all(s > 0 for s in self.std):
            raise ShapeError(
                f"Normalize: mean={mean}, std={std}: give one value or one per channel, std above 0"
            )
        self._channels = lengths.pop() if lengths else None

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W); the same shape."""
        self.check(input.shape)
        self._save((), input)
        return ops_for(input.device).normalize(input, self.mean, self.std)

    def check(self, shape: Sequence[int]) -> None:
        """Raise unless `shape` is (N, C, H, W) with as many channels as there are values.

        Raises:
            ShapeError: it is not.
        """
        check_nchw(shape, self._channels, "Normalize input")

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """grad_output / std."""
        self._pop_saved(grad_output)
        if not needs_input_grad:
            return None
        return grad_output / grad_output.new_tensor(self.std).view(-1, 1, 1)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"mean={self.mean}, std={self.std}"


def _as_tuple(value: float | Sequence[float]) -> tuple[float, ...]:
    return (float(value),) if isinstance(value, (int, float)) else tuple(map(float, value))


class ReflectPadded(Block):
    """Pad by reflection to sizes that `body` accepts, run it, and cut the padding off again.

    `body` must return images of its input's size. Reflection does not repeat the edge pixel and
    goes back and forth as often as needed, so that even a 1×1 image can be padded (torch stops at
    size − 1).

    Args:
        body: the block inside.
        multiple: padded height and width are multiples of it.
        minimum: padded height and width are at least this.
        margin: pixels of reflected context on every side, at least.

    Raises:
        ShapeError: multiple or minimum below 1, or margin below 0.
    """

    def __init__(self, body: Block, multiple: int, minimum: int = 1, margin: int = 0) -> None:
        super().__init__()
        if multiple < 1 or minimum < 1 or margin < 0:
            raise ShapeError(
                f"ReflectPadded: multiple={multiple}, minimum={minimum}, margin={margin}"
            )
        self.body = body
        self.multiple = multiple
        self.minimum = minimum
        self.margin = margin

    def named_children(self) -> Iterator[tuple[str, Block]]:
        """Yield the body, named "body"."""
        yield "body", self.body

    def padded_size(self, size: int) -> int:
        """Return the extent that `body` sees for an image of extent `size`."""
        wanted = max(size + 2 * self.margin, self.minimum)
        return -(-wanted // self.multiple) * self.multiple

    def indices(self, size: int, device: torch.device) -> Tensor:
        """Return the image position that each position of a padded extent mirrors."""
        positions = torch.arange(-self.margin, self.padded_size(size) - self.margin, device=device)
        return copied_positions(positions, size, "reflect")

    def pad(self, input: Tensor) -> Tensor:
        """Return (N, C, H, W) of any size between its reflections, as the body sees it."""
        return self._padding(input.shape[2:]).pad(input)

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, H, W) of any size; the body's output, cut to H×W.

        Raises:
            ShapeError: an empty image, or the body does not keep the size.
        """
        check_nchw(input.shape, None, "ReflectPadded input")
        height, width = input.shape[2:]
        padding = self._padding((height, width))
        inside = self._run(padding.pad(input), input)
        padded_size = padding.size((height, width))
        if inside.shape[2:] != padded_size:
            raise ShapeError(
                f"ReflectPadded: the body turned an image of size {padded_size[0]}x"
                f"{padded_size[1]} into one of size {inside.shape[2]}x{inside.shape[3]}; it must "
                "keep the size"
            )
        bottom, right = self.margin + height, self.margin + width
        output = inside[:, :, self.margin : bottom, self.margin : right]
        self._save(padding, output)
        return output

    def backward(self, grad_output: Tensor, needs_input_grad: bool = True) -> InputGrad:
        """Zero where the output was cut off; each pixel sums the gradients of its reflections."""
        padding: Padding = self._pop_saved(grad_output)
        framed = replace(padding, mode="zeros").pad(grad_output)
        grad = self.body.backward(framed, needs_input_grad)
        return padding.fold(grad) if needs_input_grad else None

    def _padding(self, size: Sequence[int]) -> Padding:
        """What is added around an image of (H, W) = `size`."""
        rows, columns = (
            (self.margin, self.padded_size(extent) - extent - self.margin) for extent in size
        )
        return Padding(rows, columns, "reflect")

    def _run(self, padded: Tensor, input: Tensor) -> Tensor:
        inside = self.body.forward(padded)
        if not self.training and not any(shares_memory(padded, kept) for kept in (input, inside)):
            POOL.free(padded)
        return inside


def kaiming_uniform_(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill a convolution's weight from U(−b, b), b = √3 · gain / √fan_in with gain = √(1/3).

    torch's default for every convolution: He et al., "Delving deep into rectifiers" (2015), with
    the leaky slope a = √5, so that b is 1/√fan_in.

    Args:
        weight: (out_channels, in_channels, kh, kw), or (in, out, kh, kw) of a transposed one;
            torch counts shape[1]·kh·kw as the fan-in of both.
        generator: source of randomness; torch's global one by default.
    """
    gain = math.sqrt(2.0 / (1 + math.sqrt(5) ** 2))
    bound = math.sqrt(3.0) * (gain / math.sqrt(fan_in(weight)))
    return weight.uniform_(-bound, bound, generator=generator)


def kaiming_normal_(weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill a weight from N(0, 2/fan_in), which keeps the deviation through a ReLU (He et al.)."""
    return weight.normal_(0.0, math.sqrt(2.0 / fan_in(weight)), generator=generator)


def bias_uniform_(bias: Tensor, weight: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Fill a bias from U(−1/√fan_in, 1/√fan_in) of its weight."""
    bound = 1 / math.sqrt(fan_in(weight))
    return bias.uniform_(-bound, bound, generator=generator)


def fan_in(weight: Tensor) -> int:
    """Return the number of inputs that torch counts per output: shape[1]·kh·kw."""
    return weight[0].numel()
