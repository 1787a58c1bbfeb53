"""The toy world: the same bytes everywhere, true ground truth, questions that keep to their rules."""

import hashlib
import itertools

import numpy as np
import pytest

from vkvdb.toyworld.choices import CHOICE_KINDS, choice
from vkvdb.toyworld.data import SLOT, slot
from vkvdb.toyworld.language import LETTERS, expressions, facts, referring, stage1_phrases, true_phrases, vocabulary
from vkvdb.toyworld.questions import KINDS, PLACED_KINDS, Asked, question
from vkvdb.toyworld.shapes import ALL_PARTS, BUILDERS, KEYPOINTS
from vkvdb.toyworld.world import (
    CATEGORIES,
    GRID,
    HELD_OUT_CATEGORIES,
    HELD_OUT_PARTS,
    PARTS,
    PATCH,
    SIZE,
    STYLES,
    box,
    cell_shares,
    clip,
    pair,
    render,
    scene,
    seeds,
)


def digest(*scenes):
    """One hash over images, instance maps, part maps and keypoints."""
    made = hashlib.sha256()
    for drawn in scenes:
        shown = render(drawn)
        for array in (shown.image, shown.instances, shown.parts):
            made.update(array.tobytes())
        made.update(repr(shown.keypoints).encode())
    return made.hexdigest()


# Another digest means another world: the shipped models were not trained on it.
GOLDEN_SCENES = "4f05597080f2aba03dc837b44664f06ff77884551d8c11272a4a1c753542d701"
GOLDEN_STYLES = "034b3070ae9e9f7191e6be526e810540c5e687828ee8c706ac1c79aa0fd258f1"
GOLDEN_CLIP = "b8a680b5d30fad3fada58bfda64cc4c1224a2e2ffad16afafb8cd45542241176"
GOLDEN_PAIR = "9071999f29e0fe3e69d2b30d6354398eb3bd49f9eb95bb6f08ea1eaa21ef33e1"


def test_drawings_are_the_same_bytes_on_every_machine():
    assert digest(*(scene(seed) for seed in seeds("test", 8))) == GOLDEN_SCENES
    assert digest(*(scene(5, style=style) for style in STYLES)) == GOLDEN_STYLES
    assert digest(*clip(3, frames=4)) == GOLDEN_CLIP
    matched = pair(11)
    assert digest(matched.source, matched.target) == GOLDEN_PAIR


def test_splits_share_no_seed():
    ranges = [seeds(split, 100_000_000) for split in ("train", "val", "test")]
    assert all(one.stop <= other.start for one, other in itertools.pairwise(ranges))
    with pytest.raises(KeyError):
        seeds("dev", 1)


def test_every_category_has_its_parts_and_keypoints_whatever_its_proportions():
    assert len(CATEGORIES) >= 10
    assert sum(len(names) >= 4 for names in KEYPOINTS.values()) >= 8
    for name, build in BUILDERS.items():
        for size in ((0, 0, 0, 0), (1000, 1000, 1000, 1000), (0, 1000, 0, 1000)):
            shape = build(size)
            assert tuple(dict.fromkeys(piece.part for piece in shape.pieces)) == PARTS[name]
            assert tuple(shape.keypoints) == KEYPOINTS[name]
            assert all(isinstance(value, int) for point in shape.keypoints.values() for value in point)
    assert set(HELD_OUT_CATEGORIES) < set(CATEGORIES)
    assert set(HELD_OUT_PARTS) < set(ALL_PARTS)


@pytest.mark.parametrize("seed", seeds("test", 25))
def test_ground_truth_of_a_scene_fits_its_drawing(seed):
    drawn = scene(seed)
    shown = render(drawn)
    assert shown.image.shape == (SIZE, SIZE, 3)
    assert shown.image.dtype == shown.instances.dtype == shown.parts.dtype == np.uint8
    assert ((shown.instances > 0) == (shown.parts > 0)).all()
    assert int(shown.instances.max()) <= len(drawn.things) == len(shown.keypoints)
    for index, (thing, points) in enumerate(zip(drawn.things, shown.keypoints, strict=True)):
        own = shown.instances == index + 1
        assert shown.parts[own].max(initial=0) <= len(PARTS[thing.category])
        assert tuple(points) == KEYPOINTS[thing.category]
        for point in points.values():
            if point.visible:
                assert own[int(point.y), int(point.x)]
        corners = box(shown.instances, index)
        if corners is not None:
            x0, y0, x1, y1 = corners
            assert own[y0:y1, x0:x1].sum() == own.sum()
            assert all(edge.any() for edge in (own[y0], own[y1 - 1], own[:, x0], own[:, x1 - 1]))


def test_cell_shares_are_means_over_patches():
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    mask[:PATCH, : PATCH // 2] = True
    shares = cell_shares(mask)
    assert shares.shape == (GRID, GRID)
    assert shares[0, 0] == 0.5
    assert shares.sum() == 0.5


def test_pairs_match_one_category_in_two_guises():
    for seed in range(20):
        matched = pair(seed, HELD_OUT_CATEGORIES)
        source, target = matched.source.things[0], matched.target.things[0]
        assert source.category == target.category == matched.category
        assert matched.category in HELD_OUT_CATEGORIES
        assert source.colour != target.colour
        assert source.proportions != target.proportions
        for drawn in (matched.source, matched.target):
            shown = render(drawn)
            assert all(shown.keypoints[0][name].visible for name in matched.names)
            # The truth survives the grid: a cell's centre is nearer than a tenth of the box.
            corners = box(shown.instances, 0)
            assert corners is not None
            allowed = 0.1 * max(corners[2] - corners[0], corners[3] - corners[1])
            for name in matched.names:
                point = shown.keypoints[0][name]
                there = [(int(value / PATCH) + 0.5) * PATCH for value in point[:2]]
                assert np.hypot(there[0] - point.x, there[1] - point.y) <= allowed + 1.5


def test_raw_pixels_and_cell_colours_do_not_solve_correspondence():
    right, total = {"raw": 0, "colour": 0}, 0
    for seed in seeds("test", 40):
        matched = pair(seed)
        shown = [render(drawn) for drawn in (matched.source, matched.target)]
        cells = [
            one.image.reshape(GRID, PATCH, GRID, PATCH, 3).swapaxes(1, 2).reshape(GRID * GRID, -1, 3) / 255.0
            for one in shown
        ]
        features = {
            "raw": [cell.reshape(GRID * GRID, -1) for cell in cells],
            "colour": [np.concatenate([cell.mean(1), cell.std(1)], axis=1) for cell in cells],
        }
        corners = box(shown[1].instances, 0)
        allowed = 0.1 * max(corners[2] - corners[0], corners[3] - corners[1])
        for name in matched.names:
            here, there = shown[0].keypoints[0][name], shown[1].keypoints[0][name]
            cell = int(here.y) // PATCH * GRID + int(here.x) // PATCH
            total += 1
            for kind, (source, target) in features.items():
                likeness = target @ source[cell] / np.linalg.norm(target, axis=1)
                row, column = divmod(int(likeness.argmax()), GRID)
                found = ((column + 0.5) * PATCH, (row + 0.5) * PATCH)
                right[kind] += np.hypot(found[0] - there.x, found[1] - there.y) <= allowed
    assert total > 150
    assert right["raw"] / total < 0.08
    assert right["colour"] / total < 0.15


def test_a_clip_keeps_its_things_and_its_background():
    frames = clip(7, frames=5)
    assert len({frame.background_seed for frame in frames}) == 1
    names = [[(thing.category, thing.colour) for thing in frame.things] for frame in frames]
    assert all(each == names[0] for each in names)
    assert any(frames[0].things[i].centre != frames[-1].things[i].centre for i in range(len(names[0])))


def test_expressions_pick_out_one_thing():
    several = 0
    for seed in seeds("test", 60):
        drawn = scene(seed)
        shown = render(drawn)
        known = facts(drawn, shown)
        texts = {fact.index: set(expressions(known, fact)) for fact in known}
        for one in known:
            for other in known:
                assert one is other or not texts[one.index] & texts[other.index]
        for expression in referring(drawn, shown):
            assert expression.text in texts[expression.target]
            assert expression.target not in expression.distractors
            several += bool(expression.distractors)
        assert referring(drawn, shown) == referring(drawn, shown)
    assert several > 40


def test_every_word_is_known_and_fits_a_byte():
    words = vocabulary()
    assert len(words) == len(set(words)) < 256
    assert {word for phrase in stage1_phrases() for word in phrase.split()} <= set(words)


def test_every_kind_of_question_is_asked_and_training_never_names_what_is_held_out():
    words, phrases = set(vocabulary()), set(stage1_phrases())
    asked_kinds = set()
    for seed in seeds("train", 120):
        drawn = scene(seed)
        shown = render(drawn)
        known = facts(drawn, shown)
        assert true_phrases(known, drawn.style) <= phrases
        generator = np.random.default_rng(seed)
        for kind in KINDS:
            found = question(kind, Asked(drawn, shown, known, held_out=False), generator)
            if found is None:
                continue
            asked_kinds.add(kind)
            said = [*found.text.split(), *found.answer.split()]
            assert set(said) <= words
            assert len(slot(found.text, found.answer)[0]) == SLOT
            assert not set(said) & set(HELD_OUT_PARTS)
            if kind in PLACED_KINDS:
                assert not set(said) & set(HELD_OUT_CATEGORIES)
    assert asked_kinds == set(KINDS)


def test_held_out_things_can_be_asked_about_in_evaluation():
    found = set()
    for seed in seeds("test", 80):
        drawn = scene(seed, categories=HELD_OUT_CATEGORIES)
        shown = render(drawn)
        asked = Asked(drawn, shown, facts(drawn, shown), held_out=True)
        one = question("at", asked, np.random.default_rng(seed))
        found |= set(one.answer.split()) if one else set()
    assert set(HELD_OUT_CATEGORIES) <= found


@pytest.mark.parametrize("kind", CHOICE_KINDS)
def test_choices_have_one_right_option_and_no_favourite_letter(kind):
    made = [one for one in (choice(kind, seed) for seed in range(60)) if one is not None]
    assert len(made) >= 30
    words = set(vocabulary())
    for one in made:
        assert 1 <= len(one.images) <= 3
        assert all(image.shape == (SIZE, SIZE, 3) and image.dtype == np.uint8 for image in one.images)
        assert one.answer in LETTERS[: len(one.options)]
        assert set(one.text.split()) <= words
        assert all(0 <= mark.x <= SIZE and 0 <= mark.y <= SIZE for mark in one.marks)
    places = [one.right for one in made]
    assert max(places.count(place) for place in set(places)) < 0.75 * len(made)
