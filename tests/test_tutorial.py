"""The tutorial in examples/: its command line end to end, its data, and the two forms of its network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")

from examples import scenes, tutorial  # noqa: E402

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture
def own(tmp_path):
    """A user's folder: pictures of several modes and sizes, and their captions. Returns (folder, CSV file)."""
    folder = tmp_path / "own"
    folder.mkdir()
    Image.new("RGB", (80, 50), "red").save(folder / "a.png")
    Image.new("L", (20, 90), 100).save(folder / "b.jpg")
    Image.new("RGBA", (64, 64), (0, 0, 255, 128)).save(folder / "c.png")
    captions = folder / "captions.csv"
    captions.write_text('image,caption\na.png,a red wall\nb.jpg,"grey, tall: $5 or $6_"\nc.png,blau und klein\n')
    return folder, captions


def outcome(capsys, *argv):
    """The exit code, stdout and stderr of the tutorial with these arguments."""
    try:
        code = tutorial.main([str(a) for a in argv])
    except SystemExit as exit:
        code = exit.code
    return code, *capsys.readouterr()


def losses_in(printed):
    """The (plain, fused) losses of each epoch."""
    return [(float(a), float(b)) for a, b in re.findall(r"^ +\d+ +([\d.]+) +([\d.]+) +\S+$", printed, re.M)]


def assert_is_a_figure(path):
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG" and min(picture.size) > 500


def test_drawn_scenes_from_start_to_end(tmp_path, capsys):
    output = tmp_path / "demo.png"
    code, printed, _ = outcome(capsys, "--count", 40, "--epochs", 2, "--output", output)
    assert code == 0
    losses = losses_in(printed)
    assert len(losses) == 2
    for plain, fused in losses:
        assert fused == pytest.approx(plain, rel=1e-4)
    assert losses[1][0] < losses[0][0] and losses[1][1] < losses[0][1]
    kept = re.search(r"kept by autograd: plain ([\d,]+) bytes, fused ([\d,]+) bytes", printed)
    plain_bytes, fused_bytes = (int(n.replace(",", "")) for n in kept.groups())
    assert plain_bytes >= 32 * 10 * 62 * 62 * 4 > 15 * fused_bytes > 0
    assert re.search(r"time in training steps: plain [\d.]+ s, fused [\d.]+ s", printed)
    assert "largest difference of the losses" in printed
    assert_is_a_figure(output)


def test_own_pictures(own, tmp_path, capsys):
    output = tmp_path / "demo.png"
    code, printed, _ = outcome(capsys, "--images", own[0], "--captions", own[1], "--epochs", 1, "--output", output)
    assert code == 0
    assert printed.startswith("3 pictures") and len(losses_in(printed)) == 1
    assert_is_a_figure(output)


def test_plain_and_fused_share_a_state_dict():
    plain, fused = tutorial.JointNetwork(fused=False), tutorial.JointNetwork(fused=True)
    assert list(plain.state_dict()) == list(fused.state_dict())
    assert set(plain.image_network.state_dict()) == {"conv.weight", "conv.bias"}
    fused.load_state_dict(plain.state_dict())
    plain.load_state_dict(fused.state_dict())
    images, embeddings = torch.rand(2, 3, 64, 64), torch.randn(2, 100)
    out = plain(images, embeddings)
    assert out.shape == (2, 10, 62, 62)
    torch.testing.assert_close(fused(images, embeddings), out)


def test_the_dataset(own):
    pairs = scenes.read_captions(*own)
    assert pairs[1] == (own[0] / "b.jpg", "grey, tall: $5 or $6_")
    embeddings = torch.stack([tutorial.embed(caption) for _, caption in pairs])
    teacher = tutorial.JointNetwork(fused=False)
    data = tutorial.CaptionedPictures([path for path, _ in pairs], embeddings, teacher)
    assert len(data) == 3
    image, embedding, target = data[1]
    assert image.shape == (3, 64, 64) and image.dtype == torch.float32
    assert torch.equal(data[0][0][:, 5, 5], torch.tensor([1.0, 0.0, 0.0]))
    assert torch.equal(embedding, embeddings[1])
    torch.testing.assert_close(target, teacher(image[None], embedding[None])[0].detach())
    assert not target.requires_grad


@pytest.mark.parametrize("content", [None, b"", b"not a picture", "cut"], ids=["missing", "empty", "text", "cut"])
def test_a_picture_that_cannot_be_used_is_named(own, capsys, content, tmp_path):
    folder, captions = own
    path = folder / "a.png"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:60] if content == "cut" else content)
    data = tutorial.CaptionedPictures([path], torch.zeros(1, 100), tutorial.JointNetwork(fused=False))
    with pytest.raises(scenes.PictureError, match=re.escape(str(path))):
        data[0]
    arguments = ["--images", folder, "--captions", captions, "--output", tmp_path / "demo.png"]
    code, _, err = outcome(capsys, *arguments)
    assert code == 1
    assert f"error: {path}" in err or f"no picture {path}" in err
    assert "Traceback" not in err
    assert not (tmp_path / "demo.png").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "empty file"),
        (b"image,caption\n", "no rows"),
        (b"caption,image\nred,a.png\n", "first line must be 'image,caption'"),
        (b"file,text,id\na.png,red,1\n", "first line must be 'image,caption'"),
        (b"image,caption\na.png,red, and wide\n", "line 2: 3 columns"),
        (b"image,caption\na.png,red\nb.jpg\n", "line 3: 1 columns"),
        (b"image,caption\na.png,\n", "line 2: the caption is empty"),
        (b"image,caption\n,red\n", "line 2: the image is empty"),
        (b"image,caption\nz.png,red\n", "line 2: there is no picture"),
        (b"image,caption\na.png,\xff\xfe\n", "not a CSV file in UTF-8"),
        (b"image,caption\na\0b.png,red\n", ": "),  # Python 3.10's csv says it before the file is looked for
        (b"image,caption\n" + b"x" * 5000 + b".png,red\n", "line 2: cannot look for the picture"),
        (b"image,caption\na.png," + b"x" * 200_000 + b"\n", "not a CSV file in UTF-8: field larger"),
    ],
)
def test_captions_that_cannot_be_used(own, capsys, content, message, tmp_path):
    folder, captions = own
    captions.write_bytes(content)
    code, _, err = outcome(capsys, "--images", folder, "--captions", captions, "--output", tmp_path / "demo.png")
    assert code == 1
    assert message in err and str(captions) in err


@pytest.mark.parametrize(
    "options, code, message",
    [
        (["--images", "{folder}"], 2, "go together"),
        (["--captions", "{captions}"], 2, "go together"),
        (["--images", "{folder}", "--captions", "{captions}", "--count", "3"], 2, "--count"),
        (["--images", "{folder}/none", "--captions", "{captions}"], 1, "no such folder"),
        (["--images", "{folder}", "--captions", "{folder}/none.csv"], 1, "none.csv"),
        (["--images", "{folder}", "--captions", "{folder}"], 1, "cannot read it"),
        (["--epochs", "0"], 2, "--epochs"),
        (["--count", "-1"], 2, "--count"),
        (["--seed", "x"], 2, "--seed"),
        (["--output", "{folder}/none/demo.png"], 2, "--output"),
        (["--output", "{folder}/demo.txt"], 2, "--output"),
        (["--output", "{folder}/a\0b.png"], 2, "--output"),
        (["--images", "{folder}", "--captions", "a\0b"], 1, "a\0b"),
        (["--images", "a\0b", "--captions", "{captions}"], 1, "no such folder"),
    ],
)
def test_options_that_cannot_be_used(own, capsys, monkeypatch, tmp_path, options, code, message):
    monkeypatch.chdir(tmp_path)
    options = [option.format(folder=own[0], captions=own[1]) for option in options]
    got, _, err = outcome(capsys, *options)
    assert got == code
    assert message in err and "Traceback" not in err


def test_runs_as_a_file_from_anywhere(tmp_path):
    command = [sys.executable, str(CHECKOUT / "examples" / "tutorial.py"), "--images", "x"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "go together" in done.stderr and "Traceback" not in done.stderr


def test_an_embedding_is_the_same_in_every_process():
    embedding = tutorial.embed("A red circle")
    assert embedding.shape == (100,)
    assert embedding.nonzero().flatten().tolist() == [49, 58, 90]
    assert torch.equal(embedding, tutorial.embed("a RED, circle!"))
    assert not torch.equal(embedding, tutorial.embed("a blue circle"))
    assert embedding.norm().item() == pytest.approx(tutorial.EMBEDDING_NORM)
    assert torch.equal(tutorial.embed("!"), torch.zeros(100))


def test_the_same_seed_draws_the_same_scenes(tmp_path):
    written = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        folder = tmp_path / name
        folder.mkdir()
        captions = scenes.write_scenes(folder, 3, seed)
        pairs = scenes.read_captions(folder, captions)
        assert all("background" in caption for _, caption in pairs)
        written.append([path.read_bytes() for path in sorted(folder.iterdir())])
    assert written[0] == written[1] != written[2]
