"""The tutorial this package grew out of: an image network that a text network modulates by FiLM, trained jointly.

The image network is Conv2d 3 -> 10, ReLU, FiLM; the text network is Linear 100 -> 20, cut into gamma and beta. Both
are trained twice from the same weights on the same batches, plain and fused, and the two are compared.

    python -m examples.tutorial                                             # on drawn scenes
    python -m examples.tutorial --images DIR --captions FILE.csv            # on your own pictures
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

if not __package__:  # run as a file: its own folder is on the path, the checkout is not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples.arguments import at_least, available_device, print_any_name
from examples.memory import kept_bytes
from examples.scenes import PictureError, read_captions, write_scenes
from film_kernels import FiLM, FiLMGenerator, FusedFiLM

IMAGE_SIZE = 64  # pixels a side
EMBEDDING_SIZE = 100
EMBEDDING_NORM = 4.0  # about that of a dozen words that are counted once or twice
CHANNELS = 10
BATCH = 32
LEARNING_RATE = 1e-3


class ImageNetwork(nn.Module):
    """Conv2d 3 -> 10 with 3x3 kernels, ReLU, FiLM. Plain and fused have the same state_dict."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.conv = FusedFiLM(3, CHANNELS, 3) if fused else nn.Conv2d(3, CHANNELS, 3)
        self.film = FiLM()

    def forward(self, images: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
        """images (N, 3, H, W), gamma and beta (N, 10); returns (N, 10, H - 2, W - 2)."""
        if self.fused:
            return self.conv(images, gamma, beta)
        return self.film(torch.relu(self.conv(images)), gamma, beta)


class JointNetwork(nn.Module):
    """The image network and the text network that modulates it."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.image_network = ImageNetwork(fused)
        self.text_network = FiLMGenerator(EMBEDDING_SIZE, CHANNELS)

    def forward(self, images: Tensor, embeddings: Tensor) -> Tensor:
        """images (N, 3, H, W), embeddings (N, 100); returns (N, 10, H - 2, W - 2)."""
        gamma, beta = self.text_network(embeddings)
        return self.image_network(images, gamma, beta)


def embed(caption: str) -> Tensor:
    """The caption as a hashed bag of words, (100,) floats: each word adds 1 or -1 at a place of its own.

    The norm is the same for all captions, so that a long one does not outweigh a short one."""
    bag = torch.zeros(EMBEDDING_SIZE)
    for word in re.findall(r"\w+", caption.lower()):
        digest = hashlib.sha256(word.encode()).digest()  # the same in every process, which hash() is not
        bag[int.from_bytes(digest[:8], "little") % EMBEDDING_SIZE] += 1.0 if digest[8] & 1 else -1.0
    return EMBEDDING_NORM * F.normalize(bag, dim=0)


def load_image(path: Path) -> Tensor:
    """The picture in RGB, (3, 64, 64) floats in [0, 1]. Raises PictureError for a missing or broken file."""
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    except FileNotFoundError as error:
        raise PictureError(f"{path}: there is no such picture") from error
    except Exception as error:  # whatever bad data make Pillow stumble over
        raise PictureError(f"{path}: cannot read it as a picture: {error}") from error
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255


class CaptionedPictures(Dataset):
    """(image (3, 64, 64) from its file, text embedding (100,), target (10, 62, 62)) for each picture.

    `teacher(images, embeddings)` makes a target when it is asked for: stored, they would be 150 kB a picture."""

    def __init__(self, paths: Sequence[Path], embeddings: Tensor, teacher: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.paths, self.embeddings, self.teacher = paths, embeddings, teacher

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """What the loader calls for a batch, so that the teacher sees it at once."""
        images, embeddings = torch.stack([load_image(self.paths[i]) for i in indices]), self.embeddings[list(indices)]
        with torch.no_grad():
            targets = self.teacher(images, embeddings)
        return list(zip(images, embeddings, targets, strict=True))


class Run:
    """One network in training, with its mean loss an epoch and the seconds that its steps took."""

    def __init__(self, network: JointNetwork) -> None:
        self.network = network
        self.optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)  # of both networks
        self.losses: list[float] = []
        self.seconds = 0.0

    def step(self, images: Tensor, embeddings: Tensor, targets: Tensor) -> float:
        """One step of Adam on a batch, moved to the network's device; returns its loss."""
        device = next(self.network.parameters()).device
        images, embeddings, targets = (t.to(device) for t in (images, embeddings, targets))
        start = time.perf_counter()
        loss = F.mse_loss(self.network(images, embeddings), targets)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        said = loss.item()  # which a GPU's work is waited for
        self.seconds += time.perf_counter() - start
        return said


def train(plain: Run, fused: Run, pictures: CaptionedPictures, epochs: int, seed: int) -> None:
    """Trains both on the same shuffled batches and prints the mean losses an epoch."""
    loader = DataLoader(pictures, batch_size=BATCH, shuffle=True, generator=torch.Generator().manual_seed(seed))
    order = [plain, fused]
    print(f"{'epoch':>5}  {'plain loss':>12}  {'fused loss':>12}  {'difference':>10}")
    for epoch in range(1, epochs + 1):
        sums = {plain: 0.0, fused: 0.0}
        for batch in tqdm(loader, desc=f"epoch {epoch}/{epochs}", unit="batch", leave=False):
            for run in order:
                sums[run] += run.step(*batch) * len(batch[0])
            order.reverse()  # neither is always the one that finds the batch in the caches
        for run, total in sums.items():
            run.losses.append(total / len(pictures))
        a, b = plain.losses[-1], fused.losses[-1]
        print(f"{epoch:5d}  {a:12.6f}  {b:12.6f}  {abs(a - b):10.1e}", flush=True)


def draw_figure(plain: Run, fused: Run, image: Tensor, captions: Sequence[str], output: Path) -> None:
    """Writes a PNG file: both loss curves, and the fused network's feature maps of `image` under each caption."""
    figure = Figure(figsize=(17, 11.5), layout="constrained")
    heights = [1.4] + [1.1] * len(captions)
    top, *rows = figure.subfigures(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    curves, picture = top.subplots(1, 2, width_ratios=[3, 1])
    epochs = range(1, len(plain.losses) + 1)
    curves.plot(epochs, plain.losses, "-", color="tab:orange", linewidth=6, alpha=0.5, label="plain")
    curves.plot(epochs, fused.losses, "o--", color="tab:blue", label="fused")
    curves.set(title="Training loss, plain and fused", xlabel="epoch", ylabel="mean squared error", yscale="log")
    curves.set_xticks(epochs[:: 1 + len(epochs) // 20])
    curves.grid(which="both", alpha=0.3)
    curves.legend()
    picture.imshow(image.permute(1, 2, 0).numpy())
    picture.set(title="The image", xlabel="x (pixels)", ylabel="y (pixels)")

    embeddings = torch.stack([embed(caption) for caption in captions])
    with torch.no_grad():
        gamma, beta = fused.network.text_network(embeddings)
        maps = fused.network(image.expand(len(captions), -1, -1, -1), embeddings).numpy()
    for index, (row, caption) in enumerate(zip(rows, captions, strict=True)):
        said = textwrap.shorten(caption, 120, placeholder=" ...")
        row.suptitle(f"The fused network's feature maps under “{said}”", parse_math=False)
        axes = row.subplots(1, CHANNELS, sharey=True)
        for channel, axis in enumerate(axes):
            of_channel = maps[:, channel]  # one scale for all captions, so that they can be compared
            shown = axis.imshow(of_channel[index], vmin=of_channel.min(), vmax=of_channel.max())
            modulation = rf"$\gamma$ {gamma[index, channel]:+.2f}, $\beta$ {beta[index, channel]:+.2f}"
            axis.set_title(f"channel {channel}\n{modulation}", fontsize=9)
            axis.set_xlabel("x (pixels)", fontsize=8)
            axis.tick_params(labelsize=7)
            bar = row.colorbar(shown, ax=axis, location="bottom")
            bar.ax.tick_params(labelsize=7)
            bar.ax.locator_params(nbins=3)
            bar.set_label("output", fontsize=8)
        axes[0].set_ylabel("y (pixels)", fontsize=8)
    rows[-1].supxlabel(
        "A channel has one colour scale for both captions. A map of one colour: ReLU gives zero everywhere, and only "
        "beta is left.", fontsize=9,
    )  # fmt: skip
    figure.savefig(output, format="png", dpi=100)


def compare(pairs: Sequence[tuple[Path, str]], epochs: int, seed: int, output: Path, device: torch.device) -> None:
    """Trains plain and fused on the pictures and captions, prints how they compare, and writes the figure."""
    embeddings = torch.stack([embed(caption) for _, caption in pairs])
    torch.manual_seed(seed + 1)  # not the students' seed: the teacher has other weights
    teacher = JointNetwork(fused=False)
    torch.manual_seed(seed)
    plain, fused = Run(JointNetwork(fused=False)), Run(JointNetwork(fused=True))
    fused.network.load_state_dict(plain.network.state_dict())
    for run in (plain, fused):
        run.network.to(device)

    pictures = CaptionedPictures([path for path, _ in pairs], embeddings, teacher)
    batch = (
        torch.rand(BATCH, 3, IMAGE_SIZE, IMAGE_SIZE, device=device),
        torch.randn(BATCH, EMBEDDING_SIZE, device=device),
    )
    plain_bytes, fused_bytes = (kept_bytes(run.network, *batch) for run in (plain, fused))
    where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else f"on {device}"
    print(f"{len(pictures)} pictures, batches of {BATCH}, {where}")
    train(plain, fused, pictures, epochs, seed)

    largest = max(abs(a - b) for a, b in zip(plain.losses, fused.losses, strict=True))
    print(f"largest difference of the losses: {largest:.1e}")
    print(f"time in training steps: plain {plain.seconds:.2f} s, fused {fused.seconds:.2f} s, "
          f"plain / fused {plain.seconds / fused.seconds:.2f}")  # fmt: skip
    print(f"kept by autograd: plain {plain_bytes:,} bytes, fused {fused_bytes:,} bytes, "
          f"plain / fused {plain_bytes / fused_bytes:.1f}")  # fmt: skip
    first_ones = pictures.__getitems__(range(min(BATCH, len(pictures))))
    shown = max(range(len(first_ones)), key=lambda i: first_ones[i][2].std(dim=(1, 2)).sum())  # with most to see
    farthest = int((embeddings - embeddings[shown]).norm(dim=1).argmax())  # the caption least like its own
    fused.network.cpu()
    draw_figure(plain, fused, first_ones[shown][0], [pairs[shown][1], pairs[farthest][1]], output)
    print(f"wrote {output}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code: 0, or 1 where a file cannot be used (argparse exits with 2)."""
    parser = argparse.ArgumentParser(prog="tutorial", description="Trains the tutorial's networks, plain and fused.")
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of your own pictures")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="their captions: a CSV file, image,caption")
    parser.add_argument("--count", type=at_least(1), help="scenes to draw where no pictures are given (default: 800)")
    parser.add_argument("--epochs", type=at_least(1), default=10, help="default: %(default)s")
    parser.add_argument("--seed", type=at_least(0), default=0, help="default: %(default)s")
    parser.add_argument("--device", type=available_device, default="cpu", help="cpu, cuda, ... (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("demo.png"), help="default: %(default)s")
    print_any_name()
    options = parser.parse_args(argv)
    if (options.images is None) != (options.captions is None):
        parser.error("--images and --captions go together: give both or neither")
    if options.images is not None and options.count is not None:
        parser.error("--count is for drawn scenes: it cannot be given with --images")
    if options.output.suffix != ".png" or "\0" in options.output.name or not options.output.parent.is_dir():
        parser.error(f"--output must be a .png file in a folder that exists, got {options.output}")
    try:
        with tempfile.TemporaryDirectory() as folder:
            images, captions = options.images, options.captions
            if images is None:
                images = Path(folder)
                captions = write_scenes(images, options.count or 800, options.seed)
            elif not images.is_dir():
                raise PictureError(f"{images}: there is no such folder of pictures")
            compare(read_captions(images, captions), options.epochs, options.seed, options.output,
                    options.device)  # fmt: skip
    except (PictureError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
