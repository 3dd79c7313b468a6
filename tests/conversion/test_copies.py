"""Copies of fused models are fused, and their own."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref

import torch
from torch import nn

from film_kernels import fuse
from tests.helpers.conversion.net import ARGS, Net, check, plain_like
from tests.helpers.conversion.spellings import K


def test_copies_are_their_own():
    class Copying(Net):
        def __deepcopy__(self, memo):
            memo[id(self)] = new = type(self).__new__(type(self))
            for name, value in self.__dict__.items():
                object.__setattr__(new, name, copy.deepcopy(value, memo))
            return new

    class Stateful(Net):
        def __getstate__(self):
            return self.__dict__

    for kind in (Net, Copying, Stateful):
        model = fuse(kind())
        model(*ARGS)
        shallow = copy.copy(model)
        shallow.strength = 3.0
        check(shallow, plain_like(model, strength=3.0))
        for other in (copy.deepcopy(model), *([pickle.loads(pickle.dumps(model))] if kind is Net else [])):
            nn.init.ones_(other.conv.weight)
            check(other, plain_like(other))
        check(model, plain_like(model))
    averaged = torch.optim.swa_utils.AveragedModel(model)
    nn.init.ones_(model.conv.weight)
    averaged.update_parameters(model)
    check(averaged, plain_like(model))


def test_graph_modules_are_copied():
    model = torch.fx.symbolic_trace(Net())
    fuse(model)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        nn.init.ones_(other.conv.weight)
        plain = Net()
        plain.load_state_dict(other.state_dict())
        torch.testing.assert_close(other(*ARGS), plain(*ARGS), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(*ARGS), plain(*ARGS), atol=1e-2)


def test_replicas_run_as_they_are():
    model = fuse(Net())
    model(*ARGS)
    replica = model._replicate_for_data_parallel()
    replica.conv = nn.Conv2d(3, K, 3, padding=1)
    plain = Net()
    plain.conv = replica.conv
    check(replica, plain, calls=0)


def test_the_collector_frees_it():
    model = fuse(Net())
    model(*ARGS)
    reference = weakref.ref(model.conv)
    del model
    gc.collect()
    assert reference() is None
