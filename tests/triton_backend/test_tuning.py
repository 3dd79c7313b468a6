"""The rule that orders entries, and the file that `autotune` writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch

from film_kernels.backends.triton import autotune, norm_tuning, store, tuning
from film_kernels.backends.triton.backend import TritonConvFilm
from film_kernels.backends.triton.norm_backend import TritonNormFilm
from film_kernels.problems import norm_film
from tests.helpers import norm_cases
from tests.helpers.cases import Case, problem_of, tensors_of

CASE = Case("tuned", (1, 3, 4, 5), (8, 3, 2, 2))


@pytest.fixture
def file(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "triton.json"
    monkeypatch.setenv("FILM_KERNELS_TUNING", str(path))
    monkeypatch.setattr(autotune, "_REPEATS", 1)
    monkeypatch.setattr(autotune, "_WARM_UP", 0)
    autotune.forget()
    yield path
    autotune.forget()


def gpu_problem(input, weight, dtype=torch.float16):
    tensors = tensors_of(Case("gpu", input, weight, padding=weight[2] // 2), torch.float32)
    problem = problem_of(Case("gpu", input, weight, padding=weight[2] // 2), tensors)
    return problem._replace(device=torch.device("cuda"), dtype=dtype)


def entries_on(gpu, problem, kernel):
    from film_kernels.backends.triton import launch

    with launch.recording(gpu):
        return tuning.entries(problem, kernel)


def test_the_rule_needs_no_device_and_follows_the_class_of_the_problem():
    few = gpu_problem((4, 3, 64, 64), (64, 3, 3, 3))
    wide = gpu_problem((4, 64, 56, 56), (128, 64, 3, 3))
    small = gpu_problem((1, 64, 4, 4), (64, 64, 3, 3))
    assert entries_on("nvidia", few, "forward")[0].flat and entries_on("nvidia", few, "grad_weight")[0].flat
    assert not entries_on("nvidia", few, "grad_input")[0].flat
    assert entries_on("nvidia", few, "forward")[0].products == 32  # 27 products in one step
    assert entries_on("nvidia", few, "forward")[0].channels == 64  # all channels in one tile: the input is read once
    first, tiny = (entries_on("nvidia", problem, "forward")[0] for problem in (wide, small))
    assert first.positions > tiny.positions
    for gpu in ("nvidia", "cdna", "rdna", "intel"):
        for problem in (few, wide, small):
            for kernel in tuning.KERNELS:
                found = entries_on(gpu, problem, kernel)
                assert len({entry[1:] for entry in found}) == len(found)
                assert all(size & (size - 1) == 0 and size >= 16 for entry in found for size in entry[1:4])


def run_backward(problem, tensors, backend):
    y, kept = backend.forward(problem, tensors, True)
    return y, backend.backward(problem, torch.ones_like(y), kept, tensors, (True,) * 5)


@pytest.mark.parametrize(("keep", "kernels"), [("bits", {"grad_input", "grad_weight"}), ("least", {"recompute"})])
def test_autotune_times_once_remembers_and_reads_again(file, keep, kernels):
    case = replace(CASE, keep=keep)
    tensors = tensors_of(case, torch.float32)
    problem = problem_of(case, tensors)
    backend = TritonConvFilm()
    run_backward(problem, tensors, backend)
    assert not file.exists()  # nothing is timed by itself
    with autotune.autotune():
        tuned = run_backward(problem, tensors, backend)
    (record,) = json.loads(file.read_text())["records"].values()
    assert set(record) == {"forward", *kernels, "whole"} and set(record["whole"]) == {"forward", "backward"}
    written = file.read_bytes()
    with autotune.autotune():
        run_backward(problem, tensors, backend)
    assert file.read_bytes() == written
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # no temporary file is left

    content = json.loads(written)
    (key,) = content["records"]
    assert "film_kernels 0.1.0" in key and "float32" in key
    slowest = tuning.entries(problem, "forward")[-1]
    content["records"][key]["forward"]["entry"] = list(slowest)
    file.write_text(json.dumps(content))
    autotune.forget()
    seen = []
    autotune.run(problem, "forward", seen.append)
    assert seen == [slowest]
    for one, other in zip(tuned[1], run_backward(problem, tensors, backend)[1], strict=True):
        torch.testing.assert_close(one, other)


def test_a_block_of_autotune_is_every_threads(file):
    """On a GPU autograd runs backward in a thread of its own."""
    tensors = tensors_of(CASE, torch.float32)
    problem, entry = problem_of(CASE, tensors), tuning.entries(problem_of(CASE, tensors), "forward")[-1]
    seen = []

    def elsewhere():
        autotune.run(problem, "forward", lambda chosen: seen.append((autotune.is_timing(problem), chosen)))

    for block in (autotune.pinned({"forward": entry}), autotune.autotune()):
        with block:
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
    assert seen[0] == (False, entry) and seen[1][0]
    assert not autotune.is_timing(problem)


def test_autotune_times_norms_against_the_plain_formula(file):
    case = norm_cases.Case((2, 6, 5, 5), "group", 2, "silu", dtype=torch.float32)
    tensors = norm_cases.tensors_of(case)
    problem, kernels = norm_cases.problem_of(case, tensors), TritonNormFilm()
    with autotune.autotune():
        tuned = run_backward(problem, tensors, kernels)
    (record,) = json.loads(file.read_text())["records"].values()
    assert set(record) == {*norm_tuning.KERNELS, "whole"} and set(record["whole"]) == {"forward", "backward"}
    written = file.read_bytes()
    content = json.loads(written)
    for kernel in norm_tuning.KERNELS:
        found = norm_tuning.entries(problem, kernel)
        assert len(found) > 1 and found[0].name == "usual"
        content["records"][autotune._name(problem, "ieee")][kernel]["entry"] = list(found[-1])
    file.write_text(json.dumps(content))
    autotune.forget()
    seen = []
    for kernel in norm_tuning.KERNELS:
        autotune.run(problem, kernel, seen.append)
    assert seen == [norm_tuning.entries(problem, kernel)[-1] for kernel in norm_tuning.KERNELS]
    for one, other in zip(tuned[1], run_backward(problem, tensors, kernels)[1], strict=True):
        torch.testing.assert_close(one, other)


def test_norms_serve_where_they_were_measured_to_be_faster(monkeypatch):
    rows = (8, 64)
    shapes = ((8, 64, 16, 16), rows[1:], rows[1:], rows, rows)
    kinds = [(torch.Size(shape), torch.float32, torch.device("cuda"), torch.strided) for shape in shapes]
    problem = norm_film.problem_of(kinds, False, ("group", 32, 1e-5, "silu", 0.01, "pre", 1.0, 1))
    for record, slow in (
        ({}, True),
        ({"forward": {"ours": 1.0, "vendor": 2.0}}, False),
        ({"forward": {"ours": 1.0, "vendor": 2.0}, "backward": {"ours": 4.0, "vendor": 2.0}}, True),
    ):
        monkeypatch.setattr(autotune, "_record", lambda problem, how, record=record: {"whole": record})
        assert TritonNormFilm().is_slow(problem) == slow
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with autotune.autotune():
        assert not TritonNormFilm().is_slow(problem)
    assert TritonNormFilm().is_slow(problem._replace(device=torch.device("cpu")))


def test_the_faster_one_serves(file):
    problem = problem_of(CASE, tensors_of(CASE, torch.float32))
    assert not autotune.is_measured_to_be_faster(problem)  # nothing was measured
    for vendor, faster in ((0.5, False), (2.0, True)):
        whole = {"forward": {"ours": 1.0, "vendor": vendor}}
        store.save(file, autotune._name(problem, autotune.precision(problem)), {"whole": whole})
        autotune.forget()
        assert autotune.is_measured_to_be_faster(problem) == faster


BROKEN_RECORDS = '{"format": "film_kernels triton measurements 1", "records": [1]}'


NESTED = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("content", [
    "", "{", "[1, 2]", '{"records": {}}', BROKEN_RECORDS, b"\xff", NESTED, '{"records": ' + "1" * 10_000 + "}",
])  # fmt: skip
def test_a_broken_or_foreign_file_is_ignored_with_a_warning_and_left_alone(file, content):
    file.parent.mkdir()
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    before = file.read_bytes()
    tensors = tensors_of(CASE, torch.float32)
    problem = problem_of(CASE, tensors)
    with pytest.warns(UserWarning, match="film_kernels ignores the tuning file"):
        y, _ = TritonConvFilm().forward(problem, tensors, False)
    with pytest.warns(UserWarning, match="film_kernels ignores the tuning file"):
        assert not store.save(file, "key", {})
    assert file.read_bytes() == before and y.isfinite().all()


def fill_with_a_pipe(file):
    os.mkfifo(file)


def fill_with_too_much(file):
    with file.open("wb") as stream:
        stream.truncate(store._LARGEST + 1)


@pytest.mark.parametrize("fill", [Path.mkdir, fill_with_a_pipe, fill_with_too_much, lambda file: file.symlink_to(file)])
def test_what_is_no_file_of_ours_is_ignored_with_a_warning(file, fill):
    file.parent.mkdir()
    fill(file)
    with pytest.warns(UserWarning, match="film_kernels ignores the tuning file"):
        assert not store.save(file, "key", {})


def test_a_name_that_no_file_can_have_is_ignored_with_a_warning():
    for name in ("a\0b", "a" * 5000, "\udc80" * 300):
        with pytest.warns(UserWarning, match="film_kernels ignores the tuning file"):
            assert not store.save(Path(name), "key", {})


def test_without_a_home_there_still_is_a_path(monkeypatch):
    for name in ("HOME", "XDG_CACHE_HOME", "FILM_KERNELS_TUNING"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", mock.Mock(side_effect=KeyError("a user of that number")))
    assert store.path() == Path(tempfile.gettempdir()) / "film_kernels" / "triton.json"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_symbolic_link_is_written_through(file, tmp_path, is_there):
    target = tmp_path / "elsewhere" / "shared.json"
    file.parent.mkdir()
    file.symlink_to(target)
    if is_there:
        assert store.save(target, "first", {"forward": {}})
        target.chmod(0o664)
    assert store.save(file, "second", {"forward": {}})
    assert file.is_symlink() and set(store.load(target)) == ({"first", "second"} if is_there else {"second"})
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    assert not is_there or target.stat().st_mode & 0o777 == 0o664


def test_writers_at_the_same_moment_leave_a_whole_file(file):
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda number: store.save(file, str(number), {"forward": {}}), range(40)))
    assert set(store.load(file)) == {str(number) for number in range(40)}


def test_a_record_that_is_nested_too_deeply_is_not_written_again(file):
    assert store.save(file, "first", {})
    before = file.read_bytes()
    with mock.patch("json.dumps", side_effect=RecursionError), pytest.warns(UserWarning, match="cannot remember"):
        assert not store.save(file, "second", {})
    assert file.read_bytes() == before and [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("whole", [[1], None, 3, "forward", {"forward": 1}, {"forward": {"ours": "1", "vendor": "2"}},
                                   {"forward": {"ours": 10**400, "vendor": 2.0}}])  # fmt: skip
def test_times_that_make_no_sense_are_measured_again(file, whole):
    problem = problem_of(CASE, tensors_of(CASE, torch.float32))
    store.save(file, autotune._name(problem, autotune.precision(problem)), {"whole": whole})
    autotune.forget()
    assert not autotune.is_measured_to_be_faster(problem)
    autotune.compare(problem, "forward", lambda: None, lambda: None)
    (record,) = store.load(file).values()
    assert set(record["whole"]["forward"]) == {"ours", "vendor"} and isinstance(
        record["whole"]["forward"]["ours"], float
    )


def test_a_record_that_makes_no_sense_is_not_used(file):
    problem = problem_of(CASE, tensors_of(CASE, torch.float32))
    name = autotune._name(problem, autotune.precision(problem))
    store.save(file, name, {"forward": {"entry": ["large", 10**9]}, "grad_input": 3, "whole": [1]})
    autotune.forget()
    seen = []
    for kernel in tuning.KERNELS:
        autotune.run(problem, kernel, seen.append)
    assert seen == [tuning.entries(problem, kernel)[0] for kernel in tuning.KERNELS]
    assert not autotune.is_measured_to_be_faster(problem)


def test_a_folder_that_cannot_be_written_costs_only_a_warning(file):
    file.parent.write_text("not a folder")
    with pytest.warns(UserWarning, match="cannot"):
        assert not store.save(file, "key", {})


def test_an_entry_without_room_gives_way_to_the_next(file):
    from triton.runtime.errors import OutOfResources

    wide = Case("wide", (1, 40, 4, 5), (70, 40, 1, 1))
    problem = problem_of(wide, tensors_of(wide, torch.float32))
    tried = []

    def start(entry):
        tried.append(entry)
        if len(tried) == 1:
            raise OutOfResources(300_000, 200_000, "shared memory")
        return entry

    first, second = tuning.entries(problem, "forward")[:2]
    assert autotune.run(problem, "forward", start) == second and tried == [first, second]
    assert autotune.run(problem, "forward", start) == second and tried == [first, second, second]


def test_without_triton_the_package_imports_and_says_what_is_missing():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util as util; find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'triton' else find(name, *rest)\n"
        "import film_kernels\n"
        "from film_kernels.backends.triton.backend import Triton\n"
        "from film_kernels.backends.triton.autotune import autotune\n"
        "with autotune(): pass\n"
        "print(Triton().unavailable())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "triton is not installed" in done.stdout
