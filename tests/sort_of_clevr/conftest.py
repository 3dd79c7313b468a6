"""A dataset of 40 images and a network trained on it, once for all of these tests. The example is imported where it is
used, for what it needs is optional."""

from __future__ import annotations

import importlib.util

import pytest
import torch

MISSING = [name for name in ("PIL", "matplotlib", "tqdm") if importlib.util.find_spec(name) is None]


def pytest_collect_file(file_path):
    """Skips the folder, and says so, where the example cannot be imported."""
    if MISSING:
        pytest.skip(f"the example needs {', '.join(MISSING)}", allow_module_level=True)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    return one_thread


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A folder with a dataset of 40 images."""
    from examples.sort_of_clevr.__main__ import main

    folder = tmp_path_factory.mktemp("dataset")
    assert main(["generate", "--images", "40", "--data", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def vocabulary(dataset):
    from examples.sort_of_clevr import data

    return data.load_vocabulary(dataset)


@pytest.fixture(scope="session")
def splits(dataset, vocabulary):
    from examples.sort_of_clevr import data

    return data.load_splits(dataset, vocabulary, progress=False)


@pytest.fixture(scope="session")
def trained(dataset, tmp_path_factory):
    """The results of a run that nothing interrupted."""
    from examples.sort_of_clevr.__main__ import main
    from tests.helpers.clevr_example import SMALL

    folder = tmp_path_factory.mktemp("results") / "of training"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(["train", "--data", str(dataset), "--output", str(folder), *map(str, SMALL)]) == 0
    torch.set_num_threads(before)
    return folder
