"""Orders and masks are pure functions of their coordinates, and look random."""

import numpy as np
import pytest
import torch
from torch.func import vmap

from workers.training.nets.randomness import epoch_order, epoch_orders, keep_mask, key, mix


def mask(rate=0.3, seed=1, step=0, salt=0, shape=(16, 32)):
    return keep_mask(
        shape,
        rate=torch.tensor(rate, dtype=torch.float64),
        seed=torch.tensor(seed),
        step=torch.tensor(step),
        salt=salt,
    )


def test_mix_is_a_permutation_of_words():
    words = mix(torch.arange(1 << 16))
    assert words.min() >= 0
    assert words.max() < 1 << 32
    assert len(words.unique()) == 1 << 16


@pytest.mark.parametrize("rows", [1, 2, 17, 1437])
def test_epoch_order_is_a_permutation(rows):
    assert torch.equal(epoch_order(3, 5, rows).sort().values, torch.arange(rows))


def test_batched_orders_equal_single_ones():
    seeds, epochs = torch.tensor([0, 7, 7, 2**63 - 1]), torch.tensor([0, 0, 1, 9])
    batched = epoch_orders(seeds, epochs, 100)
    for lane in range(4):
        assert torch.equal(batched[lane], epoch_order(int(seeds[lane]), int(epochs[lane]), 100))


def test_orders_differ_by_seed_epoch_and_high_seed_bits():
    orders = [epoch_order(s, e, 50).tolist() for s, e in [(0, 0), (0, 1), (1, 0), (1 << 32, 0)]]
    assert len({tuple(o) for o in orders}) == 4


def test_every_row_visits_every_place():
    places = epoch_orders(torch.arange(4000), torch.zeros(4000, dtype=torch.int64), 8)
    counts = np.array([np.bincount(places[:, c].numpy(), minlength=8) for c in range(8)])
    # 4000 draws over 8 places: mean 500, standard deviation 21; six of them are 126.
    assert np.abs(counts - 500).max() < 126


def test_order_values_are_pinned():
    # A changed generator would silently change every seeded study and break resumed trials.
    assert epoch_order(42, 3, 8).tolist() == PINNED_ORDER


def test_mask_values_are_pinned():
    assert mask(rate=0.5, seed=9, step=4, salt=1, shape=(2, 8)).int().tolist() == PINNED_MASK


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.9])
def test_mask_drops_at_its_rate(rate):
    kept = mask(rate=rate, shape=(256, 256)).double().mean()
    assert abs(kept - (1 - rate)) < 0.01


def test_masks_of_steps_layers_rows_and_seeds_are_uncorrelated():
    base = mask(rate=0.5, shape=(64, 64))
    others = [mask(rate=0.5, shape=(64, 64), **{w: 1 + b}) for w, b in COORDINATES]
    for other in [*others, base.roll(1, 0), base.roll(1, 1)]:
        agreement = (base == other).double().mean()
        # 4096 cells: standard deviation 0.0078
        assert abs(agreement - 0.5) < 0.045


def test_longer_batch_and_wider_layer_keep_the_words():
    small, large = mask(shape=(10, 20)), mask(shape=(16, 64))
    assert torch.equal(small, large[:10, :20])


def test_masks_under_vmap_equal_single_ones():
    rates = torch.tensor([0.0, 0.2, 0.7], dtype=torch.float64)
    seeds, steps = torch.tensor([1, 2, 1]), torch.tensor([0, 3, 9])
    batched = vmap(lambda r, s, t: keep_mask((4, 5), rate=r, seed=s, step=t, salt=2))(
        rates, seeds, steps
    )
    for lane in range(3):
        single = mask(float(rates[lane]), int(seeds[lane]), int(steps[lane]), 2, (4, 5))
        assert torch.equal(batched[lane], single)


def test_keys_of_neighbouring_coordinates_differ():
    seeds, words = torch.arange(64)[:, None] << 26, torch.arange(64)
    keys = torch.stack([key(seeds, use, words) for use in range(4)])
    assert len(keys.unique()) == keys.numel()


COORDINATES = [("step", 0), ("step", 1), ("salt", 0), ("salt", 1), ("seed", 1), ("seed", 1 << 32)]
PINNED_ORDER = [7, 3, 2, 5, 1, 4, 6, 0]
PINNED_MASK = [[0, 0, 0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 1, 0, 1, 1]]
