"""Flips and crops of images: what they may do, how often, and that nothing else decides it."""

import pytest
import torch
from torch.nn import functional as F

from tests.unit.training import builders
from tuner_service.errors import DataError
from workers.training.data import DatasetCache
from workers.training.nets.augmentation import augmented
from workers.training.steps.groups import group_of

ROWS = 300
IMAGES = torch.arange(ROWS * 2 * 4 * 5, dtype=torch.float64).reshape(ROWS, 2, 4, 5)


def changed(images=IMAGES, *, flip=0.0, crop=0, seed=1, step=0):
    return augmented(
        images,
        flip=torch.tensor(flip, dtype=torch.float64),
        crop=torch.tensor(crop),
        seed=torch.tensor(seed),
        step=torch.tensor(step),
    )


def test_nothing_changes_without_flip_and_crop():
    assert torch.equal(changed(), IMAGES)


def test_flips_mirror_at_their_rate():
    assert torch.equal(changed(flip=1.0), IMAGES.flip(-1))
    some = changed(flip=0.3)
    mirrored = (some == IMAGES.flip(-1)).flatten(1).all(1)
    assert (mirrored | (some == IMAGES).flatten(1).all(1)).all()
    assert mirrored.double().mean() == pytest.approx(0.3, abs=0.08)


def test_crops_are_windows_of_the_padded_image_each_as_likely():
    padded = F.pad(IMAGES, (1, 1, 1, 1), mode="replicate")
    windows = torch.stack([padded[..., y : y + 4, x : x + 5] for y in range(3) for x in range(3)])
    which = (windows == changed(crop=1)).flatten(2).all(2)  # [9, B]
    assert torch.equal(which.sum(0), torch.ones(ROWS, dtype=torch.int64))
    assert which.sum(1).min() > ROWS / 9 / 2


def test_images_depend_on_seed_step_and_place_alone():
    whole = changed(flip=0.5, crop=2)
    assert torch.equal(changed(IMAGES[:7], flip=0.5, crop=2), whole[:7])
    assert not torch.equal(changed(flip=0.5, crop=2, seed=2), whole)
    assert not torch.equal(changed(flip=0.5, crop=2, step=1), whole)


def test_trials_that_augment_have_their_own_group_and_need_images():
    device = torch.device("cpu")

    def group(name, **changes):
        spec = builders.spec(dataset=builders.dataset(name), **changes)
        data = DatasetCache(device, directories=()).get(
            spec.dataset, targets="classes", dtype=torch.float32
        )
        return group_of(spec, data, device=device, group_network=dict)

    plain, flipped, cropped = (
        group("digits", **changes) for changes in ({}, {"random_flip": 0.5}, {"random_crop": 1})
    )
    assert (plain.augments, flipped.augments) == (False, True)
    assert plain.key != flipped.key == cropped.key
    with pytest.raises(DataError, match=r"need images.*\(4,\)"):
        group("iris", random_crop=1)
