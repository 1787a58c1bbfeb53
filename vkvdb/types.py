"""The nouns: where tokens are read, how they lie on the image, what a task gives. Samples are in `samples.py`.

Standard library only. Tensors are torch tensors; nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

from vkvdb.samples import Point, Sample

if TYPE_CHECKING:
    import PIL.Image
    import torch

# The order is that of the flow through the model; a site's number in the catalog stands on it: only ever append.
STAGES = ("encoder", "projector", "decoder", "floor", "ceiling")
PARTS = ("key", "key_unrotated", "value", "hidden", "position", "truth")
_LAYERS = 512
_PARTS = 8  # room for parts that are yet to come


@dataclass(frozen=True)
class Site:
    """Where tokens are read or changed: a part of a layer of a stage.

    `floor` and `ceiling` are no places in a model: a task puts there what one would score from the position alone, and
    what the truth scores once it is sent down to the grid and back.
    """

    stage: str
    layer: int
    part: str

    def __post_init__(self) -> None:
        if self.stage not in STAGES or self.part not in PARTS or not 0 <= self.layer < _LAYERS:
            raise ValueError(f"no such site: {self.stage} {self.layer} {self.part}")

    @property
    def number(self) -> int:
        """The site as the catalog's SMALLINT, the same for every model."""
        return (STAGES.index(self.stage) * _LAYERS + self.layer) * _PARTS + PARTS.index(self.part)

    @classmethod
    def from_number(cls, number: int) -> Site:
        rest, part = divmod(number, _PARTS)
        stage, layer = divmod(rest, _LAYERS)
        return cls(STAGES[stage], layer, PARTS[part])

    def __lt__(self, other: Site) -> bool:
        return self.number < other.number

    def __str__(self) -> str:
        return f"{self.stage}.{self.layer}.{self.part}"

    @classmethod
    def parse(cls, text: str) -> Site:
        stage, layer, part = text.split(".")
        return cls(stage, int(layer), part)


POSITION = Site("floor", 0, "position")
CEILING = Site("ceiling", 0, "truth")


@dataclass(frozen=True)
class TokenGrid:
    """The rows x columns of an image's tokens, and the part of the image that they cover.

    Pixels are (x, y) of the original image with the origin at its corner: the first pixel's centre is (0.5, 0.5).
    `window` is (left, top, right, bottom) in those pixels; it lies inside the image where the model crops, and
    reaches beyond it where the model pads. Cells divide it evenly. `positions` are the tokens' positions in the
    sequence, row by row; empty for a model without a sequence.

    The methods take floats as well as numpy arrays or torch tensors of any one shape.
    """

    rows: int
    cols: int
    window: tuple[float, float, float, float]
    positions: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.positions and len(self.positions) != self.rows * self.cols:
            raise ValueError(f"{len(self.positions)} positions on a grid of {self.rows} x {self.cols}")

    def to_grid(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Pixels to grid coordinates (column, row), in which cell (row, col) has its centre at (col + .5, row + .5)."""
        left, top, right, bottom = self.window
        return (x - left) / (right - left) * self.cols, (y - top) / (bottom - top) * self.rows

    def to_pixels(self, u: Any, v: Any) -> tuple[Any, Any]:
        """Grid coordinates (column, row) to pixels; the inverse of `to_grid`."""
        left, top, right, bottom = self.window
        return left + u / self.cols * (right - left), top + v / self.rows * (bottom - top)

    def cell(self, x: float, y: float) -> tuple[int, int] | None:
        """(row, col) of the cell that holds a pixel, or None where the model does not look."""
        u, v = self.to_grid(x, y)
        if 0 <= u < self.cols and 0 <= v < self.rows:
            return int(v), int(u)
        return None

    def centre(self, row: Any, col: Any) -> tuple[Any, Any]:
        """(x, y) in pixels of a cell's centre."""
        return self.to_pixels(col + 0.5, row + 0.5)


@dataclass(frozen=True)
class TokenStack:
    """Tokens of sites that share a shape: float tensor (sites, heads, rows, cols, dim) in the model's own dtype."""

    sites: tuple[Site, ...]
    tokens: torch.Tensor


Stacks = tuple[TokenStack, ...]


@dataclass(frozen=True)
class Capture:
    """What was read of one image: its tokens at every wanted site, on their grid, grouped into stacks of equal shape.

    Two captures of one job have the same stacks in the same order, so a task walks them side by side. `size` is the
    original image's (width, height); without it the image is taken to end where the grid's window does.
    """

    image: str
    view: str
    grid: TokenGrid
    stacks: Stacks
    size: tuple[int, int] | None = None

    @property
    def tokens(self) -> dict[Site, torch.Tensor]:
        """{site: (heads, rows, cols, dim)}; views, not copies."""
        return {site: stack.tokens[i] for stack in self.stacks for i, site in enumerate(stack.sites)}


# --- what an adapter reads --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImageFile:
    """An image of a dataset: `name` is what samples call it, `path` is relative to the dataset's root.

    `recipe` makes a derived image out of the file (`vkvdb.datasets._warp`); empty for the file as it is.
    """

    name: str
    path: str
    recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """Something wrong in a dataset: where, and what."""

    where: str
    what: str


@dataclass
class Reading:
    """What an adapter found under a root: images in dataset order, samples, and what is wrong with the annotations."""

    images: list[ImageFile] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


@runtime_checkable
class Dataset(Protocol):
    """An adapter: one file of `vkvdb/datasets`, whose last line is `DATASET = TheClass`.

    A dataset is called NAME-SPLIT, NAME being the file's stem. `layout` says in a line what lies where under the root;
    empty for a dataset that is made, not read (its images are written under the root it is given).
    """

    version: ClassVar[int]
    splits: ClassVar[tuple[str, ...]]
    layout: ClassVar[str]

    def read(self, root: Path, split: str) -> Reading:
        """Find images and samples of a split under a root. Raises BadDataset when the layout is not there."""
        ...


# --- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """What a task reads for one sample: images by name, and words whose last token's vector it wants."""

    images: tuple[str, ...]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scores:
    """Scores of one sample, one metric, at several sites.

    `values` is a float array (sites, heads + 1): a column for each head and, last, all heads concatenated; or
    (sites, 1) where a site has no heads. NaN means not defined: counted, and in no mean. `weight` is the sample's
    weight in its group's mean: a number, or an array of the shape of `values` where it differs (IoU is weighted by the
    union's pixels).
    """

    metric: str
    sites: tuple[Site, ...]
    values: Any
    weight: Any = 1.0


@runtime_checkable
class Task(Protocol):
    """A task: one file of `vkvdb/tasks`, a frozen dataclass whose fields are its parameters.

    The file's last line is `TASK = TheClass`.
    """

    version: ClassVar[int]
    takes: ClassVar[type[Sample]]
    metrics: ClassVar[tuple[str, ...]]

    def needs(self, sample: Any) -> Needs:
        """Which images and words the sample takes."""
        ...

    def score(
        self, sample: Any, captures: Mapping[str, Capture], texts: Mapping[str, Mapping[Site, torch.Tensor]]
    ) -> Iterable[Scores]:
        """Score one sample at every site of the captures, layers and heads batched inside.

        `captures` is {image name: Capture}; `texts` is {words: {site: (heads, dim)}}, the last token's vectors.
        """
        ...


@dataclass(frozen=True)
class Panel:
    """One image of a picture, and what is drawn over it, in pixels of the image.

    `points` are what was asked for or found, `right` says which of them are right (empty where none is judged), and
    `true_points` where they should be. `found` and `truth` are masks (height, width), bool arrays, one an object; None
    for an object that is not there.
    """

    image: str
    title: str
    points: Sequence[Point] = ()
    right: Sequence[bool] = ()
    true_points: Sequence[Point] = ()
    found: Sequence[Any] = ()
    truth: Sequence[Any] = ()


@runtime_checkable
class Pictured(Task, Protocol):
    """A task that can also show what it reads."""

    def picture(
        self, sample: Any, captures: Mapping[str, Capture], texts: Mapping[str, Mapping[Site, torch.Tensor]]
    ) -> Sequence[Panel]:
        """What is read of a sample at one site and head: the captures have no other site, and one head."""
        ...


# --- models -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SiteShape:
    """A site that a model has, and its heads x dim (one head where there are none)."""

    site: Site
    heads: int
    dim: int


@dataclass(frozen=True)
class Text:
    """What is to stand before an image, in exactly `tokens` tokens; of `cut` ones words at the end may be left away."""

    words: str
    tokens: int
    cut: bool = False


@runtime_checkable
class Prefixing(Protocol):
    """A loaded checkpoint that can also read each image after a text of its own."""

    def capture_after(
        self, texts: Sequence[Text], images: Sequence[PIL.Image.Image], sites: Sequence[Site]
    ) -> list[tuple[TokenGrid, Stacks]]:
        """As `Model.capture`, with a text before each image in place of the prefix that the model was loaded with.

        Raises BadOption for a text that does not fit its number of tokens.
        """
        ...


class Model(Protocol):
    """A loaded checkpoint: what a family's `load` gives."""

    device: str

    def capture(self, images: Sequence[PIL.Image.Image], sites: Sequence[Site]) -> list[tuple[TokenGrid, Stacks]]:
        """Read one block of images at some sites: for each image its grid and its tokens.

        Raises NothingCaptured for a site that yields nothing, NotFinite for a token that is not a number.
        """
        ...

    def text(self, words: str, sites: Sequence[Site]) -> dict[Site, torch.Tensor]:
        """{site: (heads, dim)} of the last token of some words, without an image; only sites that have one."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """How a checkpoint is loaded, and how images are shown to it; all but the device is part of the specification."""

    dtype: str | None = None
    attention: str = "sdpa"
    quantisation: str | None = None
    prefix: str = ""
    square: int | None = None
    view: str = "base"
    interventions: tuple[str, ...] = ()
    device: str = "auto"
    device_map: str = ""


@runtime_checkable
class Family(Protocol):
    """The code for an architecture: one file of `vkvdb/models`, named after transformers' `model_type`; last line
    `FAMILY = TheClass`. Everything but `load` reads the configuration alone and imports nothing heavy.

    A family without text vectors at some stages may say why, in `silent: ClassVar[Mapping[str, str]]`, {stage: reason}:
    `results` shows it (`why_undefined`) where a task asks for words.
    """

    version: ClassVar[int]
    checkpoint: ClassVar[bool]  # False for a family that needs no files
    views: ClassVar[tuple[str, ...]]  # what of an image can be read; `base` first

    @staticmethod
    def sites(config: Mapping[str, Any]) -> tuple[SiteShape, ...]:
        """Every site that the model has, in the order of the flow."""
        ...

    @staticmethod
    def cells(
        config: Mapping[str, Any],
        processor: Mapping[str, Any],
        width: int,
        height: int,
        square: int | None,
        *,
        view: str = "base",
    ) -> int:
        """How many cells the grid of an image of that size has, in a view."""
        ...

    @staticmethod
    def load(checkpoint: Any, options: LoadOptions) -> Model:
        """Load a `vkvdb.models._checkpoint.Checkpoint`. Raises BadCheckpoint."""
        ...


def group_sites(shapes: Iterable[SiteShape]) -> list[tuple[SiteShape, ...]]:
    """Sites as they are stacked: of equal heads x dim together, sorted; the same in captures, store and stream."""
    groups: dict[tuple[int, int], list[SiteShape]] = {}
    for shape in sorted(shapes, key=lambda s: s.site.number):
        groups.setdefault((shape.heads, shape.dim), []).append(shape)
    return [tuple(group) for group in groups.values()]
