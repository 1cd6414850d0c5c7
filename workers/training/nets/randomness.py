"""Random numbers as a pure function of (trial seed, when, where).

A trial's data order and dropout masks must not depend on which step trains it (plain or fused), in
which lane, beside which other lanes, or on which device, and must survive a checkpoint without any
generator state. So nothing here has state: every number is a 32-bit hash of its coordinates.

    order   (seed, epoch)                  -> a permutation of the training rows
    mask    (seed, step, layer, position)  -> keep or drop, position = (row of the batch, feature)
    image   (seed, step, row of the batch) -> flip and crop (augmentation.py)

Integers are 32-bit words held in int64 tensors: every product below stays under 2**63, so nothing
overflows, and eager, vmap, inductor and CUDA give the same bits. Seeds, steps and rates may be
batched by vmap.

Source: the mixer is the two-round 32-bit permutation (16, 21f0aaad, 15, 735a2d97, 15) of
https://github.com/skeeto/hash-prospector.
"""

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor

WORD = 0xFFFFFFFF
_FIRST, _SECOND = 0x21F0AAAD, 0x735A2D97  # odd, below 2**31: a product with a word fits in int64
_GOLDEN = 0x61C88647  # odd: makes distant words of neighbours
_INDEX_BITS = 31  # a row index beside a 32-bit hash in one int64


class Domain(IntEnum):
    """What a number is for, so that equal coordinates of two uses share nothing."""

    ORDER = 1
    MASK = 2
    SPLIT = 3
    AUGMENT = 4


def mix(x: Tensor) -> Tensor:
    """Return a pseudo-random permutation of 32-bit words, elementwise."""
    # Xor-shifts and odd products are each invertible on 32-bit words, so the whole is: no two
    # positions of a stream share a word.
    x = x ^ (x >> 16)
    x = (x * _FIRST) & WORD
    x = x ^ (x >> 15)
    x = (x * _SECOND) & WORD
    return x ^ (x >> 15)


def key(seed: Tensor, use: int, word: Tensor) -> Tensor:
    """Hash a 64-bit seed, what the number is for, and a 32-bit word to one word; all broadcast."""
    high = mix(((seed >> 32) + use) & WORD)
    return mix((word + mix((seed & WORD) ^ high)) & WORD)


def words_at(first: Tensor, second: Tensor, position: Tensor) -> Tensor:
    """Return the word at each position (< 2**32) of the stream with keys (first, second).

    One `mix` with the second key added half-way: with the first alone, two streams whose keys are
    close would hold the same words in another order.
    """
    x = position ^ first
    x = x ^ (x >> 16)
    x = (x * _FIRST + second) & WORD
    x = x ^ (x >> 15)
    x = (x * _SECOND) & WORD
    return x ^ (x >> 15)


def epoch_orders(seeds: Tensor, epochs: Tensor, rows: int) -> Tensor:
    """Return each lane's row order for its epoch.

    Rows are sorted by their hash; the row itself stands in the low bits, so no two keys are equal
    and any sorting algorithm on any device gives the same permutation.

    Args:
        seeds: [K] int64.
        epochs: [K] int64, counted from 0.
        rows: n, below 2**31.

    Returns:
        [K, n] int64.
    """
    first = key(seeds, Domain.ORDER, epochs)[:, None]  # [K, 1]
    second = mix(first ^ _GOLDEN)  # [K, 1]
    position = torch.arange(rows, dtype=torch.int64, device=seeds.device)  # [n]
    # [K, n]: 32 bits of hash above 31 of the row make 63, so that no key is negative.
    keys = (words_at(first, second, position) << _INDEX_BITS) | position
    return _sorted(keys) & ((1 << _INDEX_BITS) - 1)


def epoch_order(seed: int, epoch: int, rows: int) -> Tensor:
    """Return one trial's row order for an epoch, [n] int64 on the CPU."""
    return epoch_orders(torch.tensor([seed]), torch.tensor([epoch]), rows)[0]


def keep_mask(
    shape: Sequence[int], *, rate: Tensor, seed: Tensor, step: Tensor, salt: int
) -> Tensor:
    """Return a dropout mask: False with probability `rate`.

    The word of a row depends on its number in the batch and on the feature, not on the shape: rows
    appended to fill a batch, or columns appended to fill a width, leave the others' words alone.

    Args:
        shape: [B, …] of what is masked.
        rate: Scalar float64 in [0, 1).
        seed: Scalar int64, the trial's.
        step: Scalar int64, optimizer steps taken before this one.
        salt: The layer's number in its network.

    Returns:
        `shape` bool.
    """
    first, second = _row_keys(shape[0], seed=seed, step=step, use=Domain.MASK + (salt << 8))
    features = 1
    for size in shape[1:]:
        features *= size
    position = torch.arange(features, dtype=torch.int64, device=seed.device)
    words = words_at(first[:, None], second, position)  # [B, features]
    # Compared as integers: a float32 of the word would round, and drop by device.
    threshold = (rate.to(torch.float64) * (WORD + 1)).to(torch.int64)
    return (words >= threshold).reshape(tuple(shape))


def row_words(rows: int, count: int, *, domain: Domain, seed: Tensor, step: Tensor) -> Tensor:
    """Return [rows, count] words of one step; a row's depend on its number in the batch alone."""
    first, second = _row_keys(rows, seed=seed, step=step, use=domain)
    position = torch.arange(count, dtype=torch.int64, device=seed.device)
    return words_at(first[:, None], second, position)


def _row_keys(rows: int, *, seed: Tensor, step: Tensor, use: int) -> tuple[Tensor, Tensor]:
    """Return ([B], scalar) keys of one use of random numbers in one step."""
    layer = key(seed, use, step)
    row = torch.arange(rows, dtype=torch.int64, device=seed.device)  # [B]
    return mix((row * _GOLDEN + layer) & WORD), mix(layer ^ _GOLDEN)


def _sorted(keys: Tensor) -> Tensor:
    """Sort along the last axis. NumPy's vectorised sort is several times faster on a CPU."""
    if keys.device.type == "cpu":
        return torch.from_numpy(np.sort(keys.numpy(), axis=-1))
    return torch.sort(keys, dim=-1).values
