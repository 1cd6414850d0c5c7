"""What a network of one's own may take from ours: layers that train the same on every backend."""

from workers.training.nets.layers import BatchNorm as BatchNorm
from workers.training.nets.layers import Dropout as Dropout
