"""The checks of a vision-language checkpoint, against transformers' own processor and a plain run of its model.

The plain run shares nothing with a capture: it is given what the checkpoint's processor makes of images and a whole
prompt, question and tiles included, and keeps its keys and values in transformers' own cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch

from vkvdb.models._capture import Block
from vkvdb.models._checks import EXACT, TOLERANCE, Finding, Tally, Tokens, pictures, relative, tokens_of
from vkvdb.models._reader import Prompt, Reader
from vkvdb.models._token_map import BASE, ImageToken, TokenMap
from vkvdb.models._vlm import tower_grid
from vkvdb.types import Site

if TYPE_CHECKING:
    import PIL.Image

    from vkvdb.models._checkpoint import Checkpoint

QUESTIONS = ("What is left of the red one?", "Where?")
PREFIX = "Look for the red one."
# Sizes of which only the tokens are counted: long, tall, small, large.
COUNTED = ((1000, 310), (310, 1000), (97, 61), (61, 97), (640, 427), (1400, 1000))


@dataclass(frozen=True)
class Plain:
    """A plain run of one prompt: its ids, and what the cache holds at every layer, (heads, positions, dim)."""

    ids: list[int]
    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    def at(self, positions: Sequence[int]) -> dict[Site, torch.Tensor]:
        """Keys and values of some positions."""
        where = torch.tensor(positions)
        parts = (("key", self.keys), ("value", self.values))
        return {Site("decoder", n, part): kept[:, where] for part, layers in parts for n, kept in enumerate(layers)}


class VlmChecks:
    """Runs the checks on one loaded checkpoint."""

    def __init__(self, reader: Reader, checkpoint: Checkpoint) -> None:
        self.reader = reader
        self.processor = processor_of(reader, checkpoint)
        self.images = pictures()
        self.tolerance = TOLERANCE[reader.model.dtype]
        self.sites = list(reader.shapes)
        self.cached = [s for s in self.sites if s.part in ("key", "value")]

    def run(self) -> Iterator[Finding]:
        """Every check, one after another."""
        yield self.token_map()
        yield self.same_inputs()
        for view in self.reader.family.views:
            tail = "" if len(self.reader.family.views) == 1 else f" ({view})"
            block = self.reader.block(self.images[:2], view)
            yield from self.projections(block, view, tail)
            yield from self.projector(block, view, tail)
            yield self.text_after(view, tail)
        yield self.prefix()
        yield self.batch()
        yield self.padding()
        yield self.early_stop()

    # --- runs ---

    def read(self, block: Block, sites: Sequence[Site]) -> list[dict[Site, torch.Tensor]]:
        return [tokens_of(stacks) for _, stacks in self.reader.read(block, sites)]

    def processed(self, text: str, images: Sequence[PIL.Image.Image]) -> Any:
        """What transformers' own processor makes of a prompt, on the model's device."""
        bos = self.reader.tokenizer.bos_token
        once = not (bos and text.startswith(bos))
        shown = [self.reader.squared(i) for i in images]
        made = self.processor(images=[shown], text=[text], add_special_tokens=once, return_tensors="pt")
        return made.to(self.reader.device, self.reader.model.dtype)

    @torch.inference_mode()
    def plain(self, image: PIL.Image.Image, prefix: str = "") -> Plain:
        """The whole prompt as a person would run it."""
        inputs = self.processed(self.reader.chat.question(QUESTIONS[0], prefix=prefix), [image])
        cache = self.reader.parts.body(**inputs, use_cache=True).past_key_values
        keys, values = ([getattr(layer, part)[0].cpu() for layer in cache.layers] for part in ("keys", "values"))
        return Plain(inputs["input_ids"][0].tolist(), keys, values)

    # --- checks ---

    def token_map(self) -> Finding:
        """Positions counted by the token map, by the processor and by the model."""
        tally = Tally("token map = processor = model", EXACT)
        for image in [*self.images, *pictures(COUNTED)]:
            inputs = self.processed(self.reader.beginning, [image])
            counted = int((inputs["input_ids"] == self.reader.image_id).sum())
            told = self.reader.map_of(image)
            rows = sum(1 for _ in told.tokens())
            tally.add(abs(told.count - counted) + abs(rows - counted), f"{image.width} x {image.height}")
            if image in self.images:
                tally.add(abs(len(self.features(inputs)[0]) - counted), f"features of {image.width} x {image.height}")
        return tally.finding()

    def same_inputs(self) -> Finding:
        """Token ids and pixels of whole prompts, ours and the processor's."""
        tally = Tally("token ids and pixels = processor", EXACT)
        for image in self.images:
            text = self.reader.chat.question(QUESTIONS[0])
            own, theirs = self.reader.prompts([Prompt(text, (image,))]).inputs, self.processed(text, [image])
            for name in ("input_ids", "pixel_values"):
                tally.add(relative(own[name].float()[None], theirs[name].float()[None]), name)
        return tally.finding()

    def projections(self, block: Block, view: str, tail: str) -> Iterator[Finding]:
        """The cache holds what the projections gave: keys rotated by where their token stands, values as they are."""
        layers, rotary = self.reader.parts.layers, self.reader.parts.rotary
        made: dict[tuple[int, str], torch.Tensor] = {}
        with ExitStack() as undo:
            for n, layer in enumerate(layers):
                for name in ("k_proj", "v_proj"):
                    module: Any = getattr(layer.self_attn, name)
                    undo.callback(
                        module.register_forward_hook(
                            lambda _m, _i, out, at=(n, name): made.__setitem__(at, out.detach())
                        ).remove
                    )
            read = self.read(block, [s for s in self.sites if s.stage == "decoder" and s.part != "hidden"])
        keys, values = Tally(f"keys = k_proj, rotated{tail}", self.tolerance), Tally(f"values = v_proj{tail}", EXACT)
        before = Tally(f"unrotated keys = k_proj{tail}", self.tolerance)
        for row, (image, tokens) in enumerate(zip(self.images, read, strict=False)):
            where, places = self.expected(image, view)
            for n in range(len(layers)):
                heads = self.reader.shapes[Site("decoder", n, "key")].heads
                projected = in_heads(made[n, "k_proj"][row], heads)[:, where]
                with torch.inference_mode():
                    cos, sin = self.reader.parts.rotation(rotary(projected, places.to(projected.device)))
                first, second = projected.chunk(2, dim=-1)
                turned = projected * cos + torch.cat((-second, first), dim=-1) * sin
                keys.compare(tokens, {Site("decoder", n, "key"): turned})
                before.compare(tokens, {Site("decoder", n, "key_unrotated"): projected})
                values.compare(tokens, {Site("decoder", n, "value"): in_heads(made[n, "v_proj"][row], heads)[:, where]})
        yield from (keys.finding(), before.finding(), values.finding())

    def expected(self, image: PIL.Image.Image, view: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Where a capture's cells stand, and their rotary places, from the prompt's ids and the token map alone.

        Places are (axes, 1, cells), or (1, cells) where positions have one axis.
        """
        start = self.reader.chat.ids(self.reader.beginning, [1]).index(self.reader.image_id)
        cells = cells_of(self.reader.map_of(image, whole=view != BASE), view)
        places = [self.reader.family.place(start, start + k, token.row, token.col) for k, token in cells]
        axes = torch.tensor(places).T
        return torch.tensor([start + k for k, _ in cells]), axes[:, None] if len(axes) > 1 else axes

    def projector(self, block: Block, view: str, tail: str) -> Iterator[Finding]:
        """What stands at the grid's positions is, cell by cell, what the model's own `get_image_features` gives, and
        what the projector makes of the tower's cell.
        """
        after, before = (
            (s for s in self.sites if s.stage == "projector"),
            (s for s in self.sites if s.stage == "encoder"),
        )
        projector, tower = next(after), next(before)
        own = Tally(f"projector = get_image_features{tail}", self.tolerance)
        through = Tally(f"projector of the tower = projector{tail}", self.tolerance)
        for n, (image, tokens) in enumerate(zip(self.images, self.read(block, [tower, projector]), strict=False)):
            features = self.features(self.processed(self.reader.beginning, [image]))[0]
            cells = torch.tensor([k for k, _ in cells_of(self.reader.map_of(image), view)])
            own.add(relative(tokens[projector], features[cells][None]), projector)
            if block.tower[n].index.shape == block.tower[n].size:  # not resampled after the projector
                through.add(relative(self.project(tokens[tower]), tokens[projector]), tower)
        yield from (own.finding(), through.finding())

    @torch.inference_mode()
    def project(self, tower: torch.Tensor) -> torch.Tensor:
        """Send cells (1, cells, dim) of the tower's output through the projector alone."""
        pieces = tower[0].reshape(tower.shape[1] * self.reader.parts.merged, -1)
        made: torch.Tensor = self.reader.parts.projector(pieces.to(self.reader.device))
        return made[None].cpu()

    @torch.inference_mode()
    def features(self, inputs: Mapping[str, Any]) -> list[torch.Tensor]:
        """The model's own image features, (positions, dim) an image."""
        body: Any = self.reader.parts.body
        wanted = set(signature(body.get_image_features).parameters)
        out = body.get_image_features(**{k: v for k, v in inputs.items() if k in wanted}, return_dict=True)
        return [f.cpu() for f in out.pooler_output]

    def text_after(self, view: str, tail: str) -> Finding:
        """A capture, which ends with the image, and the whole prompt, which goes on with a question."""
        tally = Tally(f"text after = without{tail}", self.tolerance)
        for image in self.images:
            (tokens,) = self.read(self.reader.block([image], view), self.cached)
            tally.compare(tokens, self._plainly(image, view))
        return tally.finding()

    def _plainly(self, image: PIL.Image.Image, view: str, prefix: str = "") -> Tokens:
        """A view's keys and values out of a plain run: the token map counted from the first image token."""
        run = self.plain(image, prefix)
        start = run.ids.index(self.reader.image_id)
        return run.at([start + k for k, _ in cells_of(self.reader.map_of(image), view)])

    def prefix(self) -> Finding:
        """A prefix moves the image, and the capture is that of the whole prompt with the prefix in it."""
        tally = Tally("prefix before the image", self.tolerance)
        image, chat = self.images[0], self.reader.chat
        plain, block = (
            self.reader.prompts([Prompt(chat.beginning(prefix), (image,))], whole=False) for prefix in ("", PREFIX)
        )
        start = block.grids[0].positions[0]
        whole = chat.question(QUESTIONS[0], prefix=PREFIX)
        before = self.processed(whole, [image])["input_ids"][0, :start].tolist()
        stands = whole.index(PREFIX) < whole.index(chat.image) and self.reader.image_id not in before
        same = block.inputs["input_ids"][0, :start].tolist() == before
        moved = start > plain.grids[0].positions[0]
        tally.add(float(not (stands and same and moved)), "the ids before the image")
        tally.compare(self.read(block, self.cached)[0], self._plainly(image, BASE, PREFIX))
        return tally.finding()

    def batch(self) -> Finding:
        """Images of different sizes together, and each alone, at every site."""
        tally = Tally("batch = single", self.tolerance)
        together = self.read(self.reader.block(self.images), self.sites)
        for image, tokens in zip(self.images, together, strict=True):
            tally.compare(tokens, self.read(self.reader.block([image]), self.sites)[0])
        return tally.finding()

    def padding(self) -> Finding:
        """Whole prompts of different lengths together, the shorter padded, and each alone."""
        tally = Tally("padded = not padded", self.tolerance)
        texts = [self.reader.chat.question(words) for words in QUESTIONS]
        prompts = [Prompt(text, (image,)) for text, image in zip(texts, self.images, strict=False)]
        together = self.read(self.reader.prompts(prompts), self.cached)
        for prompt, tokens in zip(prompts, together, strict=True):
            tally.compare(tokens, self.read(self.reader.prompts([prompt]), self.cached)[0])
        return tally.finding()

    def early_stop(self) -> Finding:
        """Each layer read alone, with nothing run beyond it, and all layers in one go."""
        tally = Tally("early stop = full depth", EXACT)
        block = self.reader.block(self.images[:1])
        (whole,) = self.read(block, self.sites)
        for site in self.sites:
            if site.part in ("value", "hidden"):
                tally.compare(self.read(block, [site])[0], {site: whole[site]})
        return tally.finding()


def in_heads(projected: torch.Tensor, heads: int) -> torch.Tensor:
    """(positions, heads x dim) as a projection gives it, to (heads, positions, dim)."""
    return projected.view(len(projected), heads, -1).transpose(0, 1)


def cells_of(told: TokenMap, view: str) -> list[tuple[int, ImageToken]]:
    """(offset from the image's first position, token) of a view's cells, in order."""
    return [(k, token) for k, token in enumerate(told.tokens()) if token.view == view and token.kind != "newline"]


def processor_of(reader: Reader, checkpoint: Checkpoint) -> Any:
    """transformers' own processor of a checkpoint, without a video side (which needs torchvision).

    What an old checkpoint's files leave out is told by its configuration.
    """
    import transformers

    own: Any = getattr(transformers, reader.family.processor_class)
    composed = type(own.__name__, (own,), {"get_attributes": classmethod(lambda _: ["image_processor", "tokenizer"])})
    settings = _told_by_config(checkpoint.config) if "vision_feature_select_strategy" in checkpoint.config else {}
    assert checkpoint.path is not None
    file = checkpoint.path / "processor_config.json"
    if file.is_file():
        settings |= json.loads(file.read_text(encoding="utf-8"))
    known = set(signature(own.__init__).parameters) - {
        "self",
        "kwargs",
        "image_processor",
        "tokenizer",
        "video_processor",
    }
    chosen = {name: value for name, value in settings.items() if name in known and name != "chat_template"}
    return composed(image_processor=reader.image_processor, tokenizer=reader.tokenizer, **chosen)


def _told_by_config(config: Mapping[str, Any]) -> dict[str, Any]:
    strategy, (_, patch, cells) = config["vision_feature_select_strategy"], tower_grid(config)
    told = {
        "patch_size": patch,
        "vision_feature_select_strategy": strategy,
        "num_additional_image_tokens": int(strategy == "default"),
        "num_image_tokens": cells * cells,
    }
    return told | ({"vision_aspect_ratio": config["vision_aspect_ratio"]} if "vision_aspect_ratio" in config else {})
