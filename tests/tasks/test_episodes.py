"""Episodes: fixed by their key alone, without repeats, uniform, and refused where impossible."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hidra_cli.api.data import Split
from hidra_cli.errors import DataError, UsageError
from hidra_cli.images.prepared import ClassTable, PreparedImages
from hidra_cli.system.random_streams import stream_key
from hidra_cli.tasks.episodes import EpisodeIndices, EpisodeSampler, _smallest, check_feasible
from hidra_cli.tasks.images import ImageSampler
from hidra_cli.tasks.shape import TaskShape

CPU = torch.device("cpu")


def table(counts: list[int], split: Split = "train", gap: int = 3) -> ClassTable:
    """Classes of these sizes, with images of other splits between them."""
    sizes = np.array(counts, np.int64)
    first = np.cumsum(sizes + gap) - sizes
    return ClassTable("toy", split, tuple(f"c{i}" for i in range(len(counts))), first, sizes)


def owner(classes: ClassTable, images: np.ndarray) -> np.ndarray:
    """The row of the class table that each image belongs to; −1 for none."""
    found = np.full(images.shape, -1)
    for row, (first, count) in enumerate(zip(classes.first, classes.counts, strict=True)):
        found[(images >= first) & (images < first + count)] = row
    return found


def same(a: EpisodeIndices, b: EpisodeIndices) -> bool:
    return (
        np.array_equal(a.classes, b.classes)
        and np.array_equal(a.support, b.support)
        and np.array_equal(a.query, b.query)
        and a.generator_keys == b.generator_keys
    )


SIZES = [9, 30, 7, 12, 8, 25, 11, 7, 10]
shapes = st.tuples(st.integers(2, 9), st.integers(1, 4), st.integers(1, 3))
episode_lists = st.lists(st.integers(0, 2**40), min_size=1, max_size=6)
keys = st.integers(0, 2**63 - 1)


@given(shape=shapes, episodes=episode_lists, seed=keys)
def test_every_episode_keeps_the_rules(
    shape: tuple[int, int, int], episodes: list[int], seed: int
) -> None:
    ways, shots, queries = shape
    classes = table(SIZES)
    found = EpisodeSampler(classes, [ways], [shots], queries, seed).indices(
        episodes, TaskShape(ways, shots)
    )
    tasks = len(episodes)
    assert found.classes.shape == (tasks, ways)
    assert found.support.shape == (tasks, ways * shots)
    assert found.query.shape == (tasks, ways * queries)
    assert len(found.generator_keys) == tasks
    for task in range(tasks):
        assert len(set(found.classes[task])) == ways
        images = np.concatenate([found.support[task], found.query[task]])
        assert len(set(images)) == len(images)  # no repeats, support and query disjoint
        # Ordered by class, and only images of that class.
        support = owner(classes, found.support[task]).reshape(ways, shots)
        query = owner(classes, found.query[task]).reshape(ways, queries)
        assert (support == found.classes[task][:, None]).all()
        assert (query == found.classes[task][:, None]).all()


@given(shape=shapes, episodes=episode_lists, seed=keys)
def test_an_episode_is_the_same_in_any_batch(
    shape: tuple[int, int, int], episodes: list[int], seed: int
) -> None:
    ways, shots, queries = shape
    one = EpisodeSampler(table(SIZES), [ways], [shots], queries, seed)
    other = EpisodeSampler(table(SIZES), [2, ways], [1, shots], queries, seed)
    together = one.indices(episodes, TaskShape(ways, shots))
    for position, episode in enumerate(episodes):
        alone = other.indices([episode], TaskShape(ways, shots))
        assert np.array_equal(alone.classes[0], together.classes[position])
        assert np.array_equal(alone.support[0], together.support[position])
        assert np.array_equal(alone.query[0], together.query[position])
        assert alone.generator_keys[0] == together.generator_keys[position]


@given(fewer=st.integers(2, 9), more=st.integers(2, 9), shots=st.integers(1, 4), seed=keys)
def test_more_ways_keep_the_first_classes_and_their_images(
    fewer: int, more: int, shots: int, seed: int
) -> None:
    fewer, more = sorted((fewer, more))
    sampler = EpisodeSampler(table(SIZES), [fewer, more], [shots], 2, seed)
    small, large = (sampler.indices(range(4), TaskShape(ways, shots)) for ways in (fewer, more))
    assert np.array_equal(small.classes, large.classes[:, :fewer])
    assert np.array_equal(small.support, large.support[:, : fewer * shots])
    assert np.array_equal(small.query, large.query[:, : fewer * 2])
    assert small.generator_keys == large.generator_keys


def test_other_seeds_splits_and_numbers_give_other_episodes() -> None:
    def first(seed: int, split: Split, episode: int) -> EpisodeIndices:
        sampler = EpisodeSampler(table([20] * 30, split), [5], [2], 3, seed)
        return sampler.indices([episode], TaskShape(5, 2))

    found = [first(s, p, e) for s in (0, 1, 2**62) for p in ("train", "val") for e in (0, 1, 2**40)]
    assert not any(same(a, b) for i, a in enumerate(found) for b in found[:i])
    assert len({key for episode in found for key in episode.generator_keys}) == len(found)
    assert same(first(1, "val", 7), first(1, "val", 7))


def test_the_first_episode_is_what_it_was_when_this_test_was_written() -> None:
    found = EpisodeSampler(table(SIZES), [3], [2], 1, seed=0).indices([0], TaskShape(3, 2))
    assert found.classes.tolist() == RECORDED["classes"]
    assert found.support.tolist() == RECORDED["support"]
    assert found.query.tolist() == RECORDED["query"]


# SHA-256 of the indices of 64 episodes, from the code that sorted all keys: recorded results are
# of these tasks, so that no change of the sampler may change them.
PINNED = {
    "few classes": ([9, 30, 7, 12, 8, 25, 11, 7, 10], 9, 4, 3, "469db1a5a0d0affc"),
    "many classes": ([20] * 4112, 5, 1, 15, "128f89aeb1718aa2"),
    "large classes": ([600] * 64, 20, 5, 15, "7cd54718023d1d8f"),
}


def digest(found: EpisodeIndices) -> str:
    whole = hashlib.sha256()
    for indices in (found.classes, found.support, found.query):
        whole.update(np.ascontiguousarray(indices).astype("<i8").tobytes())
    return whole.hexdigest()[:16]


@pytest.mark.parametrize("name", PINNED)
def test_episodes_are_those_of_recorded_results(name: str) -> None:
    sizes, ways, shots, queries, expected = PINNED[name]
    sampler = EpisodeSampler(table(sizes), [ways], [shots], queries, seed=2**40 + 1)
    assert digest(sampler.indices(range(3, 67), TaskShape(ways, shots))) == expected


def test_episodes_within_groups_are_those_of_recorded_results() -> None:
    sampler = EpisodeSampler(grouped(), [7], [1], 2, seed=2**40 + 1, within_groups=True)
    assert digest(sampler.indices(range(3, 67), TaskShape(7, 1))) == "27b233c74dc263b0"


@given(
    keys=st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=40, unique=True),
    number=st.integers(1, 40),
)
def test_the_smallest_keys_are_the_first_of_all_sorted(keys: list[int], number: int) -> None:
    number = min(number, len(keys))
    row = np.array([keys, keys[::-1]], np.uint64)
    assert np.array_equal(_smallest(row, number), np.argsort(row, axis=1)[:, :number])


def chi_square(counts: np.ndarray) -> float:
    """In standard deviations from its mean, for equally likely cells."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    statistic = ((counts - expected) ** 2 / expected).sum()
    return float((statistic - freedom) / np.sqrt(2 * freedom))


def test_classes_and_images_are_drawn_uniformly() -> None:
    sizes = [5, 40, 6, 12, 9, 5, 7, 20]
    classes = table(sizes)
    found = EpisodeSampler(classes, [2], [1], 3, seed=3).indices(range(4000), TaskShape(2, 1))
    drawn = np.bincount(found.classes.ravel(), minlength=8)
    # Without replacement: the spread is smaller than that of independent draws, never larger.
    assert chi_square(drawn) < 3
    firsts = np.bincount(found.classes[:, 0], minlength=8)
    assert abs(chi_square(firsts)) < 4
    pairs = Counter(map(tuple, found.classes.tolist()))
    assert len(pairs) == 8 * 7
    assert abs(chi_square(np.array(list(pairs.values())))) < 4
    for images in (found.support, found.query):
        for row, (first, count) in enumerate(zip(classes.first, sizes, strict=True)):
            inside = images[(images >= first) & (images < first + count)] - first
            spread = np.bincount(inside, minlength=count)
            assert chi_square(spread) < 4, row
            assert spread.min() > 0


def test_each_position_sees_every_image() -> None:
    found = EpisodeSampler(table([4, 4], gap=0), [2], [1], 3, seed=0).indices(
        range(2000), TaskShape(2, 1)
    )
    for position in range(6):
        column = found.query[:, position] % 4
        assert abs(chi_square(np.bincount(column, minlength=4))) < 4


def test_ways_and_shots_of_meta_batches_are_uniform_over_those_given() -> None:
    sampler = EpisodeSampler(table([30] * 12), [2, 5, 12], [1, 10], 5, seed=1)
    counts = Counter(sampler.shape(batch) for batch in range(3000))
    assert set(counts) == {(w, s) for w in (2, 5, 12) for s in (1, 10)}
    assert abs(chi_square(np.array(list(counts.values())))) < 4
    assert [sampler.shape(b) for b in (5, 3, 5)] == [
        EpisodeSampler(table([30] * 12), [2, 5, 12], [1, 10], 5, seed=1).shape(b) for b in (5, 3, 5)
    ]


def test_shapes_do_not_follow_the_episodes() -> None:
    a, b = (EpisodeSampler(table([30] * 12), range(2, 13), [1, 5], 5, seed=s) for s in (1, 2))
    assert [a.shape(i) for i in range(20)] != [b.shape(i) for i in range(20)]


def test_a_class_of_just_enough_images_is_enough() -> None:
    found = EpisodeSampler(table([6, 50], gap=0), [2], [1], 5, seed=0).indices(
        range(50), TaskShape(2, 1)
    )
    for task in range(50):
        images = np.concatenate([found.support[task], found.query[task]])
        assert set(images[images < 6]) == set(range(6))


def test_one_way_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 2 ways") as caught:
        check_feasible(table([9, 9]), [1, 2], [1], 1)
    assert caught.value.why == "--ways includes 1"


def test_too_few_classes_are_counted() -> None:
    with pytest.raises(DataError, match="toy has too few classes in its val split") as caught:
        check_feasible(table([9] * 4, "val"), range(2, 21), [1], 1)
    assert caught.value.why == "4 classes, but --ways asks for 20"
    assert caught.value.fix == "--ways 4 or fewer"


@pytest.mark.parametrize("sizes", [[], [9]])
def test_a_split_that_serves_no_task_is_refused(sizes: list[int]) -> None:
    with pytest.raises(DataError, match="too few classes") as caught:
        check_feasible(table(sizes), [2], [1], 1)
    assert caught.value.why.startswith(f"{len(sizes)} classes")
    assert "--ways" not in caught.value.fix


def test_a_class_too_small_is_named_with_what_it_has_and_needs() -> None:
    with pytest.raises(DataError, match="class 'c2' of toy has too few images") as caught:
        EpisodeSampler(table([9, 5, 4, 30]), [2], [1, 3], 3, seed=0)
    for part in ("has 4", "6", "2 of 4 classes in the train split"):
        assert part in caught.value.why
    assert "--shots" in caught.value.fix


@given(sizes=st.lists(st.integers(1, 12), min_size=1, max_size=9), shape=shapes)
@settings(max_examples=50)
def test_what_is_called_feasible_can_be_drawn(
    sizes: list[int], shape: tuple[int, int, int]
) -> None:
    ways, shots, queries = shape
    possible = len(sizes) >= ways and min(sizes) >= shots + queries
    if not possible:
        with pytest.raises(DataError):
            check_feasible(table(sizes), [ways], [shots], queries)
        return
    sampler = EpisodeSampler(table(sizes), [ways], [shots], queries, seed=0)
    drawn = sampler.indices(range(5), TaskShape(ways, shots))
    assert (owner(sampler.table, drawn.support) >= 0).all()


def toy_images() -> PreparedImages:
    """Image i is a (2, 3, 4) image full of distinct values of its own."""
    sizes = [6, 9, 7, 6]
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (int(offsets[-1]), 2, 3, 4)).astype(np.uint8)
    return PreparedImages(
        Path("toy.h5"),
        "toy",
        (2, 3, 4),
        offsets,
        np.array([0, 1, 0, 0], np.uint8),
        ("a", "b", "c", "d"),
        {"content_hash": "0"},
        pixels,
    )


def test_a_batch_holds_the_images_of_its_indices() -> None:
    images = toy_images()
    sampler = ImageSampler(images, "train", [3], [2], 4, seed=5, device=CPU)
    batch = sampler.batch([3, 11], TaskShape(3, 2))
    chosen = sampler.indices([3, 11], TaskShape(3, 2))
    assert (len(batch), batch.ways, batch.shots) == (2, 3, 2)
    for examples, indices, each in (
        (batch.support, chosen.support, 2),
        (batch.query, chosen.query, 4),
    ):
        assert examples.images.shape == (2, 3 * each, 2, 3, 4)
        assert examples.images.dtype == torch.float32
        expected = torch.from_numpy(images.images[indices]).float() / 255
        assert torch.equal(examples.images, expected)
        labels = torch.arange(3).repeat_interleave(each)
        assert torch.equal(examples.labels, labels.expand(2, -1))
        assert not np.isin(indices, range(6, 15)).any()  # class b is in another split


def test_a_task_is_its_row_of_the_batch_with_randomness_of_its_own() -> None:
    images = toy_images()
    sampler = ImageSampler(images, "train", [2], [1], 3, seed=5, device=CPU)
    batch = sampler.batch([0, 1], TaskShape(2, 1))
    task = batch.task(1)
    assert torch.equal(task.support_images, batch.support.images[1])
    assert torch.equal(task.query_images, batch.query.images[1])
    assert task.query_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert task.support_labels.tolist() == [0, 1]
    assert task.ways == 2
    draws = [torch.rand(3, generator=task.generator()) for _ in range(2)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], torch.rand(3, generator=batch.task(0).generator()))


@given(a=st.tuples(keys, st.text(max_size=5)), b=st.tuples(keys, st.text(max_size=5)))
def test_streams_of_other_names_are_other_streams(a: tuple[int, str], b: tuple[int, str]) -> None:
    assert (stream_key(*a) == stream_key(*b)) == (a == b)
    assert 0 <= stream_key(*a) < 2**64


RECORDED = {"classes": [[2, 7, 0]], "support": [[52, 48, 132, 126, 5, 3]], "query": [[54, 130, 11]]}


GROUPS = {"greek": 7, "latin": 4, "runes": 12}


def grouped() -> ClassTable:
    names = [f"{group}/{i}" for group, size in GROUPS.items() for i in range(size)]
    plain = table([8] * len(names))
    return ClassTable("toy", "train", tuple(names), plain.first, plain.counts)


@given(ways=st.integers(2, 12), seed=keys, episodes=episode_lists)
def test_within_groups_all_classes_of_a_task_share_a_group(
    ways: int, seed: int, episodes: list[int]
) -> None:
    classes = grouped()
    sampler = EpisodeSampler(classes, [ways], [1], 2, seed, within_groups=True)
    found = sampler.indices(episodes, TaskShape(ways, 1))
    for chosen in found.classes:
        names = [classes.names[row] for row in chosen]
        assert len(set(names)) == ways
        (group,) = {name.split("/")[0] for name in names}
        assert GROUPS[group] >= ways
    assert np.array_equal(owner(classes, found.support), found.classes)


def test_every_group_that_is_large_enough_gets_its_share() -> None:
    classes = grouped()
    sampler = EpisodeSampler(classes, [5], [1], 1, 3, within_groups=True)
    rows = sampler.indices(range(600), TaskShape(5, 1)).classes[:, 0]
    counts = Counter(classes.names[row].split("/")[0] for row in rows)
    assert set(counts) == {"greek", "runes"}
    assert abs(counts["greek"] - 300) < 60


def test_a_group_too_small_for_the_ways_is_told() -> None:
    with pytest.raises(DataError) as caught:
        EpisodeSampler(grouped(), [13], [1], 1, 0, within_groups=True)
    assert "the largest has 12 classes" in caught.value.why
