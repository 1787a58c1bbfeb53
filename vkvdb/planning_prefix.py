"""From what a person typed to the jobs that compare texts before the image, all of one number of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vkvdb import prefixes
from vkvdb.errors import BadOption
from vkvdb.models._checkpoint import resolve
from vkvdb.models._prompt import chat_of
from vkvdb.paths import Home
from vkvdb.planning import Choices, Planned, find_dataset, score_jobs
from vkvdb.scoring import make_task, samples_of
from vkvdb.store import Store

RIGHT, WRONG, GENERIC = "a picture of a {category}", "a picture of a {wrong}", "a picture of a thing"
RANDOM, FILLER = "{random}", ""


def prefix_jobs(
    home: Home,
    store: Store,
    *,
    model: str,
    dataset: str,
    task: str,
    parameters: Mapping[str, Any],
    choices: Choices,
    tokens: int | None = None,
) -> list[Planned]:
    """A score job for each condition: filler, the right category, a generic text, a wrong category, random words, none.

    `tokens` is the length of all of them but none; the shortest that fits every text where it is not given. Where no
    image of the task has one category, right and wrong are left out. Raises BadOption, and what `score_jobs` raises.
    """
    found = resolve(model, home)
    if not any(s.site.stage == "decoder" for s in found.sites()):
        why = f"{found.family} reads no text before an image; name a vision-language model"
        raise BadOption(option="--model", value=model, why=why)
    if choices.prefix:
        raise BadOption(option="--prefix", value=choices.prefix, why="the conditions are its values here")
    made, manifest = make_task(task, parameters), find_dataset(store, dataset)
    samples = store.samples(manifest["hash"])
    mine = samples_of(made, samples, task, dataset)
    there = prefixes.categories(s for _, s in samples)
    images = {image for _, s in mine for image in made.needs(s).images}
    named = any(prefixes.fits(f"tokens=2:{RIGHT}", made.needs(s).images, there) for _, s in mine)
    several = len(frozenset().union(*there.values())) > 1 if there else False
    words = [FILLER, *([RIGHT] if named else []), GENERIC, *([WRONG] if named and several else []), RANDOM]
    if tokens is None:
        chat = chat_of(found)
        texts = {
            text.words
            for one in words
            if one not in (FILLER, RANDOM)
            for text in (prefixes.Template(2, one).of(image, there) for image in images)
            if text is not None
        }
        tokens = max(chat.length(text) for text in texts)
    planned = []
    for prefix in [*(str(prefixes.Template(tokens, one)) for one in words), ""]:
        planned += score_jobs(
            home,
            store,
            task=task,
            model=model,
            dataset=dataset,
            parameters=parameters,
            choices=replace(choices, prefix=prefix),
            controls=False,
        )
    return planned
