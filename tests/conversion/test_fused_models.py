"""What users do with a fused model: copy, save, switch its mode, export, differentiate twice."""

from __future__ import annotations

import copy
import io
import operator
import pickle
import warnings

import torch
from torch import nn

from film_kernels import find_film, fuse
from tests.helpers.conversion.block import Block, block_inputs
from tests.helpers.conversion.equality import assert_equal, counted_calls, fused_copy, outputs_and_gradients
from tests.helpers.conversion.spellings import K


def test_copies_pickles_and_saves():
    fused, args = fuse(Block()), block_inputs()
    expected = fused(*args)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    copies = (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.load(file, weights_only=False))
    for other in copies:
        assert other.conv is not fused.conv and type(other) is Block
        with counted_calls() as calls:
            torch.testing.assert_close(other(*args), expected)
            nn.init.zeros_(other.film.weight)  # of the copy alone
            assert not torch.allclose(other(*args), expected)
        assert len(calls) == 2
    torch.testing.assert_close(fused(*args), expected)
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
    fused = fused_copy(model)
    args = [torch.randn(s, dtype=torch.float64) for s in ((3, 2, 20), (3, K), (3, K))]
    assert_equal(model, fused, args)
    model.conv.requires_grad_(False)
    fused.conv.requires_grad_(False)
    assert_equal(model, fused, args)
    assert outputs_and_gradients(fused, args)[1]["conv.weight"] is None


def test_autocast_gives_the_dtypes_it_gave():
    model = Block()
    fused, args = fused_copy(model), block_inputs()
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
    fused, args = fused_copy(model), block_inputs()
    with counted_calls() as calls:
        torch.manual_seed(5)
        found = outputs_and_gradients(fused, args)
    assert calls == ["relu pre"] * 2  # once more in backward
    torch.manual_seed(5)
    torch.testing.assert_close(found, outputs_and_gradients(model, args), rtol=1e-4, atol=1e-4)
    (site,) = find_film(model, args)
    assert site.path == "block.conv"


def test_a_fused_block_in_a_checkpoint():
    model, args = Block(), block_inputs()
    fused = fused_copy(model)

    class Around(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, *args):
            return torch.utils.checkpoint.checkpoint(self.block, *args, use_reentrant=False)

    with counted_calls() as calls:
        found = outputs_and_gradients(Around(fused), args)
    assert calls == ["relu pre"] * 2
    torch.testing.assert_close(found, outputs_and_gradients(Around(model), args), rtol=1e-4, atol=1e-4)


def test_double_backward():
    model = Block().double()
    found = []
    for m in (model, fused_copy(model)):
        x, e = (t.requires_grad_() for t in block_inputs(dtype=torch.float64))
        (slope,) = torch.autograd.grad(m(x, e).square().sum(), x, create_graph=True)
        slope.square().sum().backward()
        found.append([e.grad, *(p.grad for p in m.parameters() if p.grad is not None)])
    torch.testing.assert_close(*found, rtol=1e-8, atol=1e-8)


def test_whoever_traces_or_transforms_sees_the_model_itself():
    model = Block()
    fused, args = fused_copy(model), block_inputs()
    expected = model(*args)
    names = {n.target for n in torch.export.export(fused, args).graph.nodes if n.op == "call_function"}
    assert all(str(name).startswith("aten.") for name in names - {operator.getitem})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.testing.assert_close(torch.jit.trace(fused, args)(*args), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(fused)(*args), expected)
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    with counted_calls() as calls:
        torch.testing.assert_close(compiled(*args), expected)
    assert not calls
    values = dict(fused.named_parameters())
    loss = lambda p: torch.func.functional_call(fused, p, args).square().sum()  # noqa: E731
    gradients = torch.func.grad(loss)(values)
    expected.square().sum().backward()
    torch.testing.assert_close(gradients["conv.weight"], model.conv.weight.grad, rtol=1e-4, atol=1e-4)


def test_mode_is_followed():
    model = Block()
    fused, args = fused_copy(model), block_inputs()
    for training, expected_calls in ((False, ["relu pre"]), (True, ["batch relu pre"]), (False, ["relu pre"])):
        fused.train(training), model.train(training)
        with counted_calls() as calls:
            found, expected = fused(*args), model(*args)
        assert calls == expected_calls, training
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(fused.state_dict(), model.state_dict())


def test_batch_sizes_change_without_end():
    model = Block()
    fused = fused_copy(model)
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
