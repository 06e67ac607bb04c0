"""What every block keeps to: its gradient, its memory, its parameters and their names.

A new block joins by a line in BLOCKS.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from gradcheck import gradcheck_block
from tolerances import assert_block_parity, assert_parity, each_dtype
from torch import Tensor, nn

from denoise_batch.kernels import (
    SGD,
    Block,
    Conv2d,
    ConvTranspose2d,
    NearestUpsample2d,
    Normalize,
    PixelShuffle,
    PixelUnshuffle,
    ReflectPadded,
    ReLU,
    Residual,
    Sequential,
    ShapeError,
    Sigmoid,
    StateError,
    UNetLevel,
    UpsampleConv2d,
)


def smooth(conv: Conv2d | ConvTranspose2d) -> Conv2d | ConvTranspose2d:
    """`conv` with outputs of at least 1/2 in size for inputs in [−1, 1]: no ReLU meets its kink."""
    dim = 1 if isinstance(conv, Conv2d) else 0
    conv.weight *= 0.5 / conv.weight.abs().sum(dim=(dim, 2, 3), keepdim=True)
    conv.bias.copy_(torch.tensor([-1.0, 1.0]).repeat(conv.out_channels)[: conv.out_channels])
    return conv


def report_like() -> Sequential:
    """Architecture 1 in small, 10×10 → 4×4 → 10×10; ReLU's outputs go up to 3/2, hence the /3."""
    first, second = smooth(Conv2d(3, 4, 4, 2)), smooth(ConvTranspose2d(4, 6, 3, padding=1))
    second.weight /= 3
    return Sequential(first, ReLU(), second, ReLU(), ConvTranspose2d(6, 3, 4, 2), Sigmoid())


def u_net_level() -> UNetLevel:
    """Full and half resolution, every part with its own weights."""
    return UNetLevel(
        encoder=Conv2d(3, 3, 3, padding=1),
        down=Conv2d(3, 5, 2, stride=2),
        inner=Sequential(Residual(Conv2d(5, 5, 3, padding=1)), Sigmoid()),
        up=ConvTranspose2d(5, 3, 2, stride=2),
        decoder=Conv2d(3, 3, 1),
    )


# All take (N, 3, H, W), and in gradcheck values in [−1, 1] away from 0.
BLOCKS: dict[str, Callable[[], Block]] = {
    "conv": lambda: Conv2d(3, 4, (3, 2), stride=(2, 1), padding=1),
    "conv-no-bias": lambda: Conv2d(3, 4, 3, dilation=2, padding=2, bias=False),
    "conv-transpose": lambda: ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
    "nearest-upsample": lambda: NearestUpsample2d((2, 3)),
    "upsample-conv": lambda: UpsampleConv2d(2, 3, 4, 3, padding=1),
    "relu": ReLU,
    "sigmoid": Sigmoid,
    "standardize": lambda: Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 4.0)),
    "sequential": report_like,
    "padded": lambda: ReflectPadded(Conv2d(3, 2, 3, padding=1), multiple=4, minimum=12, margin=2),
    "shuffle": lambda: ReflectPadded(Sequential(PixelUnshuffle(2), PixelShuffle(2)), multiple=2),
    "residual": lambda: Residual(Conv2d(3, 3, 3, padding=1)),
    "skip": lambda: ReflectPadded(u_net_level(), multiple=2),
    "nested": lambda: Sequential(
        Normalize(0.5, 2.0), ReflectPadded(Sequential(report_like()), 10, 10)
    ),
}
with_parameters = [name for name, build in BLOCKS.items() if build().parameters()]


@pytest.fixture(params=list(BLOCKS))
def block(request: pytest.FixtureRequest) -> Block:
    torch.manual_seed(0)
    return BLOCKS[request.param]()


@pytest.fixture(params=with_parameters)
def parametric(request: pytest.FixtureRequest) -> Block:
    torch.manual_seed(0)
    return BLOCKS[request.param]()


def an_input(dtype: torch.dtype = torch.float32) -> Tensor:
    """Batch 3, an odd height, away from 0."""
    signs = torch.randint(0, 2, (3, 3, 9, 10)) * 2 - 1
    return signs * (0.1 + 0.8 * torch.rand(3, 3, 9, 10, dtype=dtype))


def tree(block: Block) -> Iterator[Block]:
    yield block
    for _, child in block.named_children():
        yield from tree(child)


def test_gradient_passes_gradcheck(block: Block) -> None:
    gradcheck_block(block, an_input(torch.float64))


@each_dtype
def test_sequential_matches_torch_nn(dtype: torch.dtype) -> None:
    block = Sequential(
        Conv2d(3, 5, 3, padding=1), ReLU(), Sequential(Conv2d(5, 3, 1), Sigmoid()), ReLU()
    )
    module = nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(5, 3, 1), nn.Sigmoid()),
        nn.ReLU(),
    )
    assert_block_parity(block, module, torch.randn(3, 3, 7, 5, dtype=dtype))


@each_dtype
def test_residual_matches_autograd(dtype: torch.dtype) -> None:
    class TorchResidual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, input: Tensor) -> Tensor:
            return input + self.body(input)

    block = Residual(Conv2d(3, 3, 3, padding=1))
    assert_block_parity(block, TorchResidual(), torch.randn(2, 3, 5, 7, dtype=dtype))


@each_dtype
def test_skip_matches_autograd(dtype: torch.dtype) -> None:
    class TorchSkip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Conv2d(3, 3, 3, padding=1)
            self.down = nn.Conv2d(3, 5, 2, stride=2)
            self.inner = nn.Sequential(nn.Sequential(), nn.Sigmoid())
            self.inner[0].body = nn.Conv2d(5, 5, 3, padding=1)
            self.up = nn.ConvTranspose2d(5, 3, 2, stride=2)
            self.decoder = nn.Conv2d(3, 3, 1)

        def forward(self, input: Tensor) -> Tensor:
            encoded = self.encoder(input)
            coarse = self.down(encoded)
            coarse = self.inner[1](coarse + self.inner[0].body(coarse))
            return self.decoder(encoded + self.up(coarse))

    assert_block_parity(u_net_level(), TorchSkip(), torch.randn(2, 3, 6, 8, dtype=dtype))


def test_a_relu_behind_a_convolution_is_the_same_alone_and_fused() -> None:
    conv, relu, input = Conv2d(3, 4, 3), ReLU(), an_input()
    fused = Sequential(conv, relu)
    expected = relu(conv(input))
    grad_output = torch.randn_like(expected)
    grad_input = conv.backward(relu.backward(grad_output))
    gradients = [parameter.grad for parameter in conv.parameters()]
    conv.zero_grad()
    assert_parity(fused(input), expected)
    assert_parity(fused.backward(grad_output), grad_input, "grad_input")
    for parameter, grad in zip(conv.parameters(), gradients, strict=True):
        assert_parity(parameter.grad, grad, "parameter")


def test_an_empty_sequential_is_the_identity() -> None:
    input = an_input()
    assert torch.equal(Sequential()(input), input)
    assert torch.equal(Sequential().backward(input), input)


def test_a_sequential_gives_its_blocks_by_position() -> None:
    blocks = (ReLU(), Sigmoid())
    assert len(Sequential(*blocks)) == 2
    assert [Sequential(*blocks)[index] for index in (0, 1)] == list(blocks)


def test_calling_a_block_is_calling_forward(block: Block) -> None:
    input = an_input()
    assert torch.equal(block(input), block.forward(input))


def test_the_order_in_the_batch_makes_no_difference(block: Block) -> None:
    block.to(dtype=torch.float64)
    input, order = an_input(torch.float64), torch.tensor([2, 0, 1])
    output = block(input)
    grad_output = torch.randn_like(output)
    grad_input = block.backward(grad_output)
    gradients = [parameter.grad for parameter in block.parameters()]
    block.zero_grad()
    assert_parity(block(input[order]), output[order])
    assert_parity(block.backward(grad_output[order]), grad_input[order], "grad_input")
    for parameter, grad in zip(block.parameters(), gradients, strict=True):
        assert_parity(parameter.grad, grad, "parameter")


def test_a_batch_is_its_images_one_by_one(block: Block) -> None:
    block.to(dtype=torch.float64)
    input = an_input(torch.float64)
    output = block(input)
    grad_output = torch.randn_like(output)
    grad_input = block.backward(grad_output)
    gradients = [parameter.grad for parameter in block.parameters()]
    block.zero_grad()
    for index in range(len(input)):
        one = slice(index, index + 1)
        assert_parity(block(input[one]), output[one])
        assert_parity(block.backward(grad_output[one]), grad_input[one], "grad_input")
    for parameter, grad in zip(block.parameters(), gradients, strict=True):
        assert_parity(parameter.grad, grad, "parameter")


def test_gradients_add_up_over_two_backward_calls(parametric: Block) -> None:
    parametric.to(dtype=torch.float64)
    totals = [torch.zeros_like(parameter) for parameter in parametric.parameters()]
    passes = []
    for _ in range(2):
        input = an_input(torch.float64)
        passes.append((input, torch.randn_like(parametric(input))))
        parametric.backward(passes[-1][1])
        for total, parameter in zip(totals, parametric.parameters(), strict=True):
            total += parameter.grad
        parametric.zero_grad()
    for input, grad_output in passes:
        parametric(input)
        parametric.backward(grad_output)
    for total, parameter in zip(totals, parametric.parameters(), strict=True):
        assert_parity(parameter.grad, total, "sum of gradients")


def test_zero_grad_forgets_every_gradient(parametric: Block) -> None:
    parametric.backward(torch.ones_like(parametric(an_input())))
    assert all(parameter.grad is not None for parameter in parametric.parameters())
    parametric.zero_grad()
    assert all(parameter.grad is None for parameter in parametric.parameters())


def test_without_the_input_s_gradient_the_others_are_the_same_and_nothing_is_kept(
    block: Block,
) -> None:
    input = an_input()
    grad_output = torch.randn_like(block(input))
    block.backward(grad_output)
    gradients = [parameter.grad for parameter in block.parameters()]
    block.zero_grad()
    block(input)
    assert block.backward(grad_output, needs_input_grad=False) is None
    assert all(part._saved is None for part in tree(block))
    for parameter, grad in zip(block.parameters(), gradients, strict=True):
        assert_parity(parameter.grad, grad, "parameter")


def test_clear_saved_drops_what_forward_saved(block: Block) -> None:
    grad_output = torch.ones_like(block(an_input()))
    block.clear_saved()
    assert all(part._saved is None for part in tree(block))
    with pytest.raises(StateError):
        block.backward(grad_output)


def test_bfloat16_computation_leaves_parameters_and_gradients_in_float32(parametric: Block) -> None:
    input = an_input()
    expected = parametric(input)
    grad_output = torch.randn_like(expected)
    parametric.backward(grad_output)
    gradients = [parameter.grad for parameter in parametric.parameters()]
    parametric.zero_grad()
    output = parametric.set_compute_dtype(torch.bfloat16)(input)
    torch.testing.assert_close(output.float(), expected, rtol=0.05, atol=0.05)
    parametric.backward(grad_output.to(output.dtype))
    for parameter, grad in zip(parametric.parameters(), gradients, strict=True):
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        scale = grad.abs().max().item()
        torch.testing.assert_close(parameter.grad, grad, rtol=0, atol=0.05 * scale)
    parametric.set_compute_dtype(None)
    assert torch.equal(parametric(input), expected)


def test_the_input_is_not_changed_in_either_mode(block: Block) -> None:
    input = an_input()
    before = input.clone()
    block(input)
    block.eval()(input)
    assert torch.equal(input, before)


def test_a_residual_around_the_identity_leaves_its_input_alone() -> None:
    input = torch.ones(1, 1, 2, 2)
    output = Residual(Sequential()).eval()(input)
    assert (output == 2).all()
    assert (input == 1).all()


def test_a_skip_around_the_identity_leaves_its_input_alone() -> None:
    input = torch.ones(1, 1, 2, 2)
    output = UNetLevel(*(Sequential() for _ in range(5))).eval()(input)
    assert (output == 2).all()
    assert (input == 1).all()


def test_backward_leaves_grad_output_and_parameters_alone(block: Block) -> None:
    input = an_input()
    output = block(input)
    parameters = [parameter.clone() for parameter in block.parameters()]
    copies = input.clone(), output.clone()
    grad_output = torch.ones_like(output)
    block.backward(grad_output)
    assert torch.equal(input, copies[0])
    assert torch.equal(output, copies[1])
    assert (grad_output == 1).all()
    assert all(map(torch.equal, block.parameters(), parameters))


def test_backward_without_forward_is_refused(block: Block) -> None:
    with pytest.raises(StateError, match=r"\.backward: call forward in training mode first"):
        block.backward(torch.zeros(3, 3, 9, 10))


WRONG_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda grad: grad.transpose(2, 3),
    "one-image": lambda grad: grad[:1],
    "one-column-less": lambda grad: grad[..., :-1],
}


@pytest.mark.parametrize("wrong", WRONG_SHAPES)
def test_a_gradient_of_another_shape_than_the_output_is_refused(block: Block, wrong: str) -> None:
    grad_output = WRONG_SHAPES[wrong](torch.ones_like(block(an_input())))
    with pytest.raises(ShapeError, match="grad_output has shape"):
        block.backward(grad_output)
    assert all(parameter.grad is None for parameter in block.parameters())


def test_one_forward_serves_one_backward(block: Block) -> None:
    grad_output = torch.ones_like(block(an_input()))
    block.backward(grad_output)
    assert all(part._saved is None for part in tree(block)), "nothing is kept any longer"
    with pytest.raises(StateError):
        block.backward(grad_output)


def test_inference_mode_keeps_nothing_and_refuses_backward(block: Block) -> None:
    input = an_input()
    expected = block(input)
    assert block.eval() is block
    assert all(part._saved is None and not part.training for part in tree(block))
    output = block(input)
    assert torch.equal(output, expected)
    assert all(part._saved is None for part in tree(block))
    with pytest.raises(StateError):
        block.backward(torch.ones_like(output))
    assert all(parameter.grad is None for parameter in block.parameters())


def test_training_mode_comes_back(block: Block) -> None:
    block.eval()
    assert block.train() is block
    assert all(part.training for part in tree(block))
    grad_output = torch.ones_like(block(an_input()))
    assert block.backward(grad_output).shape == (3, 3, 9, 10)


def test_output_carries_no_autograd_graph(block: Block) -> None:
    output = block(an_input())
    assert not output.requires_grad
    assert not block.backward(torch.ones_like(output)).requires_grad


def test_parameters_have_torchs_names_in_torchs_order() -> None:
    block = Sequential(Conv2d(3, 4, 3), ReLU(), Sequential(ConvTranspose2d(4, 3, 3, bias=False)))
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Sequential(nn.ConvTranspose2d(4, 3, 3, bias=False))
    )
    assert list(block.state_dict()) == list(module.state_dict())
    assert [p.shape for p in block.parameters()] == [p.shape for p in module.parameters()]


def test_state_dict_round_trip_gives_the_same_output(parametric: Block) -> None:
    input = an_input()
    expected = parametric(input)
    state = {name: value.clone() for name, value in parametric.state_dict().items()}
    identities = [id(parameter) for parameter in parametric.parameters()]
    for parameter in parametric.parameters():
        parameter.uniform_(-1, 1)
    assert not torch.equal(parametric(input), expected)
    parametric.load_state_dict(state)
    assert torch.equal(parametric(input), expected)
    assert [id(parameter) for parameter in parametric.parameters()] == identities
    for name, value in parametric.state_dict().items():
        assert value.data_ptr() != state[name].data_ptr(), "copied, not shared"


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda state: state.pop("2.bias"), r"missing \['2.bias'\]"),
        (lambda state: state.update(extra=torch.zeros(1)), r"unknown \['extra'\]"),
        (lambda state: state.update({"2.bias": torch.zeros(5)}), r"2\.bias .*\(5,\).*\(2,\)"),
        (lambda state: state.update({"0.bias": torch.zeros(1)}), r"0\.bias .*\(1,\).*\(4,\)"),
    ],
    ids=["missing", "unknown", "last-shape", "broadcastable-shape"],
)
def test_a_state_that_does_not_fit_changes_nothing(
    spoil: Callable[[dict[str, Tensor]], object], named: str
) -> None:
    block = Sequential(Conv2d(3, 4, 3), ReLU(), Conv2d(4, 2, 3))
    before = {name: value.clone() for name, value in block.state_dict().items()}
    state = {name: torch.zeros_like(value) for name, value in before.items()}
    spoil(state)
    with pytest.raises(ShapeError, match=named):
        block.load_state_dict(state)
    for name, value in block.state_dict().items():
        assert torch.equal(value, before[name])


def test_to_keeps_the_tensors_identity_so_that_an_optimiser_still_moves_them(
    parametric: Block,
) -> None:
    optimizer = SGD(parametric.parameters(), lr=0.5)
    identities = [id(parameter) for parameter in parametric.parameters()]
    parametric.backward(torch.ones_like(parametric(an_input())))
    gradients = [parameter.grad for parameter in parametric.parameters()]
    assert parametric.to(dtype=torch.float64) is parametric
    assert [id(parameter) for parameter in parametric.parameters()] == identities
    before = [parameter.clone() for parameter in parametric.parameters()]
    for parameter, grad in zip(parametric.parameters(), gradients, strict=True):
        assert parameter.dtype == torch.float64
        assert torch.equal(parameter.grad, grad.double())
    optimizer.step()
    for parameter, old, grad in zip(parametric.parameters(), before, gradients, strict=True):
        assert_parity(parameter, old - 0.5 * grad.double())
    assert parametric(an_input(torch.float64)).dtype == torch.float64


def test_to_a_device_alone_keeps_the_dtype(parametric: Block) -> None:
    before = [parameter.clone() for parameter in parametric.parameters()]
    parametric.to("cpu")
    assert all(map(torch.equal, parametric.parameters(), before))


def test_repr_is_torchs() -> None:
    block = Sequential(
        Conv2d(3, 24, 4, stride=2),
        ReLU(),
        Sequential(ConvTranspose2d(24, 3, 3, 2, (1, 0), 1, bias=False), Sigmoid()),
    )
    module = nn.Sequential(
        nn.Conv2d(3, 24, 4, stride=2),
        nn.ReLU(),
        nn.Sequential(nn.ConvTranspose2d(24, 3, 3, 2, (1, 0), 1, bias=False), nn.Sigmoid()),
    )
    assert repr(block) == repr(module)
    for options in (
        {"padding": (0, 1), "dilation": 2},
        {"padding": "same", "groups": 2, "bias": False, "padding_mode": "reflect"},
        {"padding": "valid", "padding_mode": "circular"},
    ):
        assert repr(Conv2d(2, 4, 3, **options)) == repr(nn.Conv2d(2, 4, 3, **options))
    options = {"stride": 3, "output_padding": 1, "groups": 2, "bias": False, "dilation": (1, 2)}
    ours, theirs = ConvTranspose2d(2, 4, 3, **options), nn.ConvTranspose2d(2, 4, 3, **options)
    assert repr(ours) == repr(theirs)


def test_every_block_has_a_repr_that_names_it(block: Block) -> None:
    assert repr(block).startswith(f"{type(block).__name__}(")


def test_an_input_of_autograd_is_refused_with_what_to_do_instead(block: Block) -> None:
    input = an_input().requires_grad_()
    with pytest.raises(StateError, match=r"requires grad.*pass input\.detach\(\)"):
        block(input)
    assert not block(input.detach()).requires_grad


def test_an_array_is_refused_with_how_to_convert_it(block: Block) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(ShapeError, match=r"not ndarray: convert .*torch\.from_numpy"):
        block(numpy.zeros((8, 8, 3), "float32"))


def test_an_image_without_a_batch_is_refused_with_how_to_add_one() -> None:
    with pytest.raises(ShapeError, match=r"expected 4 dimensions.*image\[None\]"):
        PixelUnshuffle(2)(torch.zeros(3, 8, 8))
