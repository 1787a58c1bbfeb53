from __future__ import annotations

import numpy as np
import pytest
import torch

from vkvdb.errors import BadOption
from vkvdb.samples import Question
from vkvdb.tasks import choices
from vkvdb.tasks.choices import Choices, reading_of, ring
from vkvdb.types import Capture, Site, TokenGrid, TokenStack

SITES = tuple(Site("decoder", n, "value") for n in range(3))


def capture(name, tokens, size=(112, 112)):
    grid = TokenGrid(*tokens.shape[2:4], (0.0, 0.0, float(size[0]), float(size[1])))
    return Capture(name, "base", grid, (TokenStack(SITES, tokens),), size)


def draw(seed, rows=7, cols=7):
    return torch.randn(3, 2, rows, cols, 5, generator=torch.Generator().manual_seed(seed))


def question(group, images, answer, options, marks=()):
    return Question(
        id="q", group=group, cluster="q", shown=images, text="which ?", answer=answer, options=options, marks=marks
    )


def scored(sample, captures, task=None):
    named = {c.image: c for c in captures}
    rows = {s.metric: s for s in (task or Choices()).score(sample, named, {})}
    assert all(r.sites == SITES for r in rows.values())
    return rows["correct"].values, rows["chosen"].values


def each_head(tokens):
    """Heads one by one, then all channels side by side: (sites, heads + 1, cells, dim)."""
    flat = tokens.flatten(2, 3).double().numpy()
    for site in flat:
        yield [*site, np.concatenate(list(site), -1)]


def cosine(a, b):
    return (a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum())


def plain(kind, shown, cells=()):
    """The option that each reading picks, one head at a time."""
    picked = []
    for heads in zip(*(each_head(t) for t in shown), strict=True):
        row = []
        for tokens in zip(*heads, strict=True):
            if kind == "art_style":
                of = [x.T @ x / len(x) for x in tokens]
            elif kind == "visual_similarity":
                of = [x.mean(0) for x in tokens]
            else:
                of = [tokens[min(n, 1)][at].mean(0) for n, at in enumerate(cells)]
            row.append(int(np.argmax([cosine(of[0], o) for o in of[1:]])))
        picked.append(row)
    return np.array(picked)


@pytest.mark.parametrize("kind", ["art_style", "visual_similarity"])
@pytest.mark.parametrize("seed", range(4))
def test_images_are_picked_as_in_the_plain_loop(kind, seed):
    shown = [draw(seed), draw(seed + 10, 5, 9), draw(seed + 20), draw(seed + 30)]
    names = ("a", "b", "c", "d")
    sample = question(kind, names, "two", ("one", "two", "three"))
    right, chosen = scored(sample, [capture(n, t) for n, t in zip(names, shown, strict=True)])
    expected = plain(kind, shown)
    assert (chosen == expected).all()
    assert (right == (expected == 1)).all()
    assert len(np.unique(expected)) > 1


def test_points_are_picked_as_in_the_plain_loop():
    marks = ((30.0, 30.0), (20.0, 80.0), (90.0, 20.0), (60.0, 60.0))
    sample = question("Semantic_Correspondence", ("a", "b"), "B", ("A", "B", "C"), marks)
    one, two = capture("a", draw(1, 14, 14)), capture("b", draw(2, 14, 14))
    cells = [ring(m, c, 0.05) for m, c in zip(marks, (one, two, two, two), strict=True)]
    _, chosen = scored(sample, [one, two])
    shown = [c.stacks[0].tokens for c in (one, two)]
    assert (chosen == plain("points", shown, cells)).all()


def test_the_right_point_is_found_under_its_mark():
    marks = ((30.0, 30.0), (20.0, 80.0), (90.0, 20.0))
    sample = question("choice-correspondence", ("a", "b"), "B", ("A", "B"), marks)
    tokens = [draw(1, 14, 14), draw(2, 14, 14)]
    one, two = (capture(n, t) for n, t in zip("ab", tokens, strict=True))
    for mark, to, said in ((marks[0], 0, 1.0), (marks[2], 1, 1.0), (marks[1], 1, -1.0)):
        for cell in ring(mark, one, 0.05):
            tokens[to][:, :, cell // 14, cell % 14] = said
    right, _ = scored(sample, [one, two])
    assert (right == 1).all()


def test_a_ring_touches_no_marked_pixel():
    shown = capture("a", draw(1, 14, 14))
    for mark in ((56.0, 56.0), (30.5, 71.2), (0.0, 0.0), (112.0, 50.0)):
        rows, cols = np.divmod(ring(mark, shown, 0.05), 14)
        assert len(rows) >= 3
        for row, col in zip(rows, cols, strict=True):
            x = np.clip(mark[0], 8 * col, 8 * col + 8) - mark[0]
            y = np.clip(mark[1], 8 * row, 8 * row + 8) - mark[1]
            assert 5.6 <= np.hypot(x, y) < 13.6


def test_a_coarse_grid_has_a_ring_all_the_same():
    assert list(ring((10.0, 10.0), capture("a", draw(1, 2, 2)), 0.05)) == [1, 2]


def test_images_that_the_tokens_do_not_tell_apart_are_no_choice():
    same = draw(3)
    sample = question("art_style", ("a", "b", "c"), "one", ("one", "two"))
    right, chosen = scored(sample, [capture(n, t) for n, t in zip("abc", (draw(1), same, same.clone()), strict=True)])
    assert (chosen == -1).all()
    assert (right == 0).all()


def test_what_has_no_reading_needs_no_image_and_gives_no_row():
    counting = question("Counting", ("a",), "2", ("1", "2"))
    unmarked = question("Visual_Correspondence", ("a", "b"), "A", ("A", "B"))
    for sample in (counting, unmarked):
        assert reading_of(sample) == ""
        assert Choices().needs(sample).images == ()
        assert list(Choices().score(sample, {}, {})) == []


def test_pieces_change_nothing(monkeypatch):
    names = ("a", "b", "c")
    sample = question("Art_Style", names, "one", ("one", "two"))
    shown = [capture(n, draw(i)) for i, n in enumerate(names)]
    whole = scored(sample, shown)
    monkeypatch.setattr(choices, "room", lambda _: 1)
    assert all((a == b).all() for a, b in zip(whole, scored(sample, shown), strict=True))


def test_parameters_are_checked():
    for bad in (0.0, 0.3):
        with pytest.raises(BadOption, match="mark"):
            Choices(mark=bad)
