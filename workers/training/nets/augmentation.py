"""Random flips and crops of training images, where they lie, without any generator.

    B   rows of a batch
    C   channels
    H   height
    W   width

What happens to a row is a pure function of (trial seed, optimizer step, place in the batch), as its
dropout masks are, so that every step on every device sees the same images.
"""

import torch
from torch import Tensor

from workers.training.nets.randomness import WORD, Domain, row_words


def augmented(images: Tensor, *, flip: Tensor, crop: Tensor, seed: Tensor, step: Tensor) -> Tensor:
    """Return the images, some mirrored left to right, each moved by up to `crop` pixels.

    A crop pads an image by its outermost pixels, then cuts the size it had out of it.

    Args:
        images: [B, C, H, W].
        flip: Scalar float64, the probability of a flip.
        crop: Scalar int64, the pixels of padding on each side.
        seed: Scalar int64, the trial's.
        step: Scalar int64, optimizer steps taken before this one.
    """
    rows, channels, height, width = images.shape
    words = row_words(rows, 3, domain=Domain.AUGMENT, seed=seed, step=step)  # [B, 3]
    mirrored = words[:, 0] < (flip.to(torch.float64) * (WORD + 1)).to(torch.int64)  # [B]
    down, right = ((words[:, axis, None] % (2 * crop + 1)) - crop for axis in (1, 2))  # [B, 1]
    line = (torch.arange(height, device=images.device) + down).clamp(0, height - 1)  # [B, H]
    column = (torch.arange(width, device=images.device) + right).clamp(0, width - 1)  # [B, W]
    column = torch.where(mirrored[:, None], width - 1 - column, column)
    moved = images.gather(2, line[:, None, :, None].expand(rows, channels, height, width))
    return moved.gather(3, column[:, None, None, :].expand(rows, channels, height, width))
