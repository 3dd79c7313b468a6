"""`fuse`: the same outputs, gradients and names, with the sites in one call each and everything else as it was."""

from __future__ import annotations

import copy
import inspect
import io
import operator
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import refusals
from equality import assert_as_good, assert_equal, counted_calls, outputs_and_gradients
from film_kernels import find_film, fuse
from spellings import SPELLINGS, K, Together, Written, batch_norm, inputs, tall


class Block(nn.Module):
    """conv -> BatchNorm -> FiLM -> relu, with gamma and beta from a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, K, 3, padding=1)
        self.norm = batch_norm()
        self.film = nn.Linear(5, 2 * K)

    def forward(self, x, e):
        gamma, beta = tall(self.film(e)).chunk(2, 1)
        return F.relu((1 + gamma) * self.norm(self.conv(x)) + beta)


def block_inputs(batch: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(s, generator=generator).to(dtype) for s in ((batch, 3, 8, 7), (batch, 5)))


@pytest.fixture(scope="module")
def spelled():
    """All spellings in one model and what `fuse` makes of it, in float64."""
    torch.manual_seed(1)
    model = Together(Written(spelling) for spelling in SPELLINGS).double()
    return model, fuse(model)


def test_every_spelling_is_equal_and_one_call(spelled):
    model, fused = spelled
    with counted_calls() as calls:
        fused(*inputs())
    assert len(calls) == len(SPELLINGS)
    assert_equal(model, fused, inputs())


def test_by_the_error_rule():
    torch.manual_seed(1)
    chosen = ("gamma first", "silu", "activation last", "BatchNorm, FiLM, relu", "BatchNorm, relu, FiLM", "residual")
    model = Together(Written(s) for s in SPELLINGS if s.name in chosen)
    fused = fuse(model)
    assert_as_good(model, fused, [inputs(dtype=torch.float32, seed=seed) for seed in range(4)])
    model, fused = model.bfloat16(), fused.bfloat16()
    assert_as_good(model, fused, [inputs(dtype=torch.bfloat16, seed=seed) for seed in range(4)])


def test_what_is_refused_is_as_it_was():
    torch.manual_seed(1)
    no_dropout = [case for case in (*refusals.REFUSED, *refusals.NOT_FILM) if "dropout" not in case.name]
    model = Together(refusals.Refused(case) for case in no_dropout)
    fused = fuse(model)
    model.eval()
    with counted_calls() as calls:
        fused.train()
        results = fused(*inputs(dtype=torch.float32))
    assert not calls
    torch.testing.assert_close(results, model.train()(*inputs(dtype=torch.float32)))


def test_parameters_are_shared_under_their_names():
    model = Block()
    fused = fuse(model, block_inputs())
    assert fused is not model and type(fused).__name__ == "Block" and isinstance(fused, Block)
    assert fused.state_dict().keys() == model.state_dict().keys()
    for (name, p), (other_name, q) in zip(model.named_parameters(), fused.named_parameters(), strict=True):
        assert name == other_name and p is q
    assert fused.conv is model.conv and fuse(fused) is fused
    assert inspect.signature(fused.forward) == inspect.signature(model.forward)
    with counted_calls() as calls:
        fused(*block_inputs())
        model(*block_inputs())
    assert calls == ["relu pre"]
    fused.register_buffer("only_here", torch.zeros(1))
    assert "only_here" not in model.state_dict()


def test_sites_in_a_row_and_around_residuals():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))

        def forward(self, x, g, b):
            for conv in self.convs:
                x = x + tall(g) * conv(torch.relu(x)).tanh() + tall(b)
            return torch.relu(self.convs[0](torch.relu(self.convs[1](x)) * tall(g))) * tall(b)

    model = Tower().double()
    fused, args = fuse(model), [torch.randn(s, dtype=torch.float64) for s in ((2, 3, 6, 5), (2, 3), (2, 3))]
    with counted_calls() as calls:
        fused(*args)
    assert calls == ["tanh post"] * 4 + ["relu post"] * 2
    assert_equal(model, fused, args)


def test_mode_is_followed():
    model = Block()
    fused, args = fuse(model), block_inputs()
    for training, calls_expected in ((False, 1), (True, 0), (False, 1)):
        fused.train(training)
        with counted_calls() as calls:
            twin = copy.deepcopy(model)
            found, expected = fused(*args), twin(*args)
        assert len(calls) == calls_expected, training
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(fused.norm.running_mean, twin.norm.running_mean)


def test_control_flow_and_what_cannot_be_traced():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.seen = Block(), []

        def forward(self, x, e=None):
            self.seen.append(x.shape[0])
            if e is None:
                return x
            if x.sum().item() > 0:  # a graph break
                x = -x
            y = self.block(x, e)
            return y + torch.from_numpy(x.detach().numpy()).sum()

    model = Branches()
    fused, (x, e) = fuse(model), block_inputs()
    for sign in (1, -1):
        with counted_calls() as calls:
            found = fused(sign * x, e)
        assert calls == ["relu pre"]
        torch.testing.assert_close(found, model(sign * x, e))
    assert torch.equal(fused(x), x)
    assert model.seen == [2] * 5  # the list is the same object in both
    with pytest.raises(AttributeError, match="missing"):
        fused.missing  # noqa: B018


def test_batch_sizes_change_without_end():
    model = Block()
    fused = fuse(model)
    for batch in range(1, 14):  # more than Dynamo compiles a function for
        args = block_inputs(batch)
        with counted_calls() as calls:
            torch.testing.assert_close(fused(*args), model(*args))
        assert len(calls) == 1, batch


def test_many_models_of_a_class():
    for _ in range(10):
        fused = fuse(Block())
        with counted_calls() as calls:
            fused(*block_inputs())
        assert len(calls) == 1


def test_copies_pickles_and_saves():
    model = Block()
    fused, args = fuse(model), block_inputs()
    expected = fused(*args)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    copies = (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.load(file, weights_only=False))
    for other in copies:
        assert other.conv is not fused.conv
        with counted_calls() as calls:
            torch.testing.assert_close(other(*args), expected)
        assert len(calls) == 1
    plain = Block()
    plain.load_state_dict(fused.state_dict())
    torch.testing.assert_close(plain(*args), expected)


def test_one_dimension_and_frozen_parts():
    class Audio(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(2, K, 5, dilation=2, padding="same", bias=False)
            self.norm = nn.BatchNorm1d(K, affine=False).eval()

        def forward(self, x, g, b):
            return torch.tanh(self.norm(self.conv(x)) * g[..., None] + b.unsqueeze(-1))

    model = Audio().double()
    fused = fuse(model)
    args = [torch.randn(s, dtype=torch.float64) for s in ((3, 2, 20), (3, K), (3, K))]
    assert_equal(model, fused, args)
    model.conv.requires_grad_(False)
    assert_equal(model, fused, args)
    assert outputs_and_gradients(fused, args)[1]["conv.weight"] is None


def test_autocast_gives_the_dtypes_it_gave():
    model = Block()
    fused, args = fuse(model), block_inputs()
    exact = copy.deepcopy(model).double()(*block_inputs(dtype=torch.float64))
    with torch.autocast("cpu", dtype=torch.bfloat16), counted_calls() as calls:
        found, expected = fused(*args), model(*args)
    assert len(calls) == 1 and found.dtype == expected.dtype == torch.bfloat16
    assert (found.double() - exact).norm() <= 2 * (expected.double() - exact).norm()


def test_checkpointed_blocks_are_fused_too():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.drop = Block(), nn.Dropout(0.5)

        def forward(self, x, e):
            run = lambda x, e: self.drop(self.block(x, e))  # noqa: E731
            return torch.utils.checkpoint.checkpoint(run, x, e, use_reentrant=False).square()

    model = Checkpointed().train()
    model.block.eval()
    fused, args = fuse(model), block_inputs()
    with counted_calls() as calls:
        torch.manual_seed(5)
        found = outputs_and_gradients(fused, args)
    assert calls == ["relu pre"] * 2  # once more in backward
    torch.manual_seed(5)
    torch.testing.assert_close(found, outputs_and_gradients(model, args), rtol=1e-4, atol=1e-4)
    (site,) = find_film(model, args)
    assert site.path == "block.conv"


def test_whoever_traces_or_transforms_sees_the_model_itself():
    model = Block()
    fused, args = fuse(model), block_inputs()
    expected = model(*args)
    names = {n.target for n in torch.export.export(fused, args).graph.nodes if n.op == "call_function"}
    assert all(str(name).startswith("aten.") for name in names - {operator.getitem})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.testing.assert_close(torch.jit.trace(fused, args)(*args), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(fused)(*args), expected)
    values = dict(fused.named_parameters())
    loss = lambda p: torch.func.functional_call(fused, p, args).square().sum()  # noqa: E731
    gradients = torch.func.grad(loss)(values)
    expected.square().sum().backward()
    torch.testing.assert_close(gradients["conv.weight"], model.conv.weight.grad, rtol=1e-4, atol=1e-4)


def test_nothing_to_fuse():
    model = nn.Sequential(nn.Conv2d(3, K, 3), nn.ReLU())
    assert fuse(model, torch.randn(1, 3, 5, 5)) is model
    training = Block().train()
    assert fuse(training, block_inputs()) is training  # its BatchNorm works on the batch
    with pytest.raises(TypeError, match="model must be"):
        fuse("model")
