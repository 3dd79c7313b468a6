"""The CPU library's operators that take their options in one tensor: they give what those give that take lists, and
refuse what those refuse."""

from __future__ import annotations

import pytest
import torch

import film_kernels
from film_kernels.activations import ACTIVATIONS
from film_kernels.arguments import kinds_of
from film_kernels.backends.compiled import options_tensor
from film_kernels.problems import conv_film
from tests.helpers.door_calls import calls
from tests.helpers.packed_calls import PACKED, packed_call
from tests.helpers.spoiling import ABSURD, ABSURD_NUMBERS, freed
from tests.norm_film.hostile import right_calls

assert film_kernels.available_backends()["cpu"] is None
LIBRARY = torch.ops.film_kernels_cpu
NAMES = pytest.mark.parametrize("name", PACKED)


def arguments_of(name, activation=1, channels_last=False):
    if name.startswith("norm"):
        return right_calls((2, 4, 5, 6), activation=activation, channels_last=channels_last)[name][1]
    return calls((2, 4, 7, 8), (10, 4, 3, 3), activation=activation, channels_last=channels_last)[name]


def by_lists(name, arguments):
    return getattr(LIBRARY, name)(**arguments)


def by_a_tensor(name, arguments):
    found = getattr(LIBRARY, PACKED[name])(**packed_call(arguments))
    return (found,) if isinstance(found, torch.Tensor) else found


@NAMES
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", range(len(ACTIVATIONS)))
def test_results_are_those_of_lists(name, channels_last, activation):
    arguments = arguments_of(name, activation, channels_last)
    found, expected = by_a_tensor(name, arguments), by_lists(name, arguments)
    for one, other in zip(found, expected, strict=False):
        assert torch.equal(one, other) and one.stride() == other.stride()
    assert len(found) == (4 if name.endswith("copy") else 1)


@pytest.mark.parametrize("name", [name for name in PACKED if name.endswith("copy")])
@pytest.mark.parametrize("asked", [(True, True), (True, False), (False, True), (False, False)])
def test_copies_are_those_that_are_asked_for(name, asked):
    arguments = arguments_of(name)
    arguments = {**arguments, "copy_bias": asked[0], "copy_beta": asked[1]}
    for wide in (False, True):  # with gaps between the elements too
        for factor in ("bias", "beta"):
            tensor = arguments[factor]
            arguments[factor] = tensor.repeat_interleave(2, -1)[..., ::2] if wide else tensor
        for copied, factor, copy in zip(asked, ("bias", "beta"), by_a_tensor(name, arguments)[2:], strict=True):
            if copied:
                assert torch.equal(copy, arguments[factor]) and copy.data_ptr() != arguments[factor].data_ptr()
            else:
                assert copy is None
    assert by_a_tensor(name, {**arguments, "bias": None, "beta": None})[2:] == (None, None)


@NAMES
def test_options_are_checked_as_lists_are(name):
    arguments = arguments_of(name)
    for option, absurd in (("geometry", ABSURD), ("numbers", ABSURD_NUMBERS)):
        right = arguments[option]
        for place in range(len(right)):
            for value in absurd:
                wrong = {**arguments, option: [*right[:place], value, *right[place + 1 :]]}
                said = [answer(name, wrong) for answer in (words_of_lists, words_of_a_tensor)]
                assert said[0] == said[1], (option, place, value)


def words_of_lists(name, arguments):
    return words(by_lists, name, arguments)


def words_of_a_tensor(name, arguments):
    return words(by_a_tensor, name, arguments)


def words(by, name, arguments):
    """What it raises, or None."""
    try:
        by(name, arguments)
    except RuntimeError as error:
        return str(error).partition("film_kernels: ")[2].partition("\n")[0]
    return None


@NAMES
def test_other_tensors_are_no_options(name):
    arguments = packed_call(arguments_of(name))
    right = arguments["options"]
    for wrong in (
        right.double(), right.int(), right[:-1], torch.cat([right, right[:1]]), right[:0], right[0], right[None],
        right.repeat_interleave(2)[::2], right[:1].expand(right.shape), freed(right), freed(right, 8), None,
    ):  # fmt: skip
        with pytest.raises(RuntimeError, match=r"film_kernels: .*options"):
            getattr(LIBRARY, PACKED[name])(**{**arguments, "options": wrong})
    for wrong in (right.to("meta"), right.to_sparse()):
        with pytest.raises((RuntimeError, NotImplementedError)):
            getattr(LIBRARY, PACKED[name])(**{**arguments, "options": wrong})


def test_they_are_made_of_a_record_whoever_watches():
    tensors = (torch.randn(1, 4, 5, 6), torch.randn(6, 4, 3, 3), None, None, None)
    options = (1, 1, 1, 1, "leaky_relu", 0.25, "post", 0.5, "fast")
    with torch.inference_mode(), torch.device("meta"):
        made = options_tensor(conv_film.problem_of(kinds_of(tensors), True, options))
    assert not made.is_inference() and made.device.type == "cpu"
    assert made[:11].tolist() == [1, 1, 1, 5, 1, 1, 1, 6, 1, 2, 0] and made[-1] == 1
    assert made[11:13].view(torch.float64).tolist() == [0.25, 0.5]


@NAMES
def test_the_schemas_hold(name):
    """Nothing is written into, and no result shares its memory with an argument."""
    operator = getattr(LIBRARY, PACKED[name]).default
    torch.library.opcheck(operator, (), packed_call(arguments_of(name)), test_utils=("test_schema",))
