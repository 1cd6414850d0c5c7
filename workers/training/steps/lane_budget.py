"""How many lanes a group has: by what they hold of the caches and of the memory.

lane    weights, gradients and two optimizer slots of one network
batch   what one lane's forward pass keeps for its backward pass
order   the rows of an epoch in their order, by lane
"""

import torch
from torch import Tensor, nn

from workers.training.data.room import free_on_gpu
from workers.training.nets import networks
from workers.training.steps.groups import GroupSpec, dtype_of

CPU_LANES, GPU_LANES = (4, 32), (1, 512)  # fewest and most of a full group
SMALL = 4  # a small group has this fraction of a full one's lanes
STATE_COPIES = 4  # weights, gradients, two slots
CPU_STATE_BYTES = 8 << 20  # weights, gradients and slots beyond this fall out of the caches
GPU_STATE_SHARE = 0.3  # of the free memory
CPU_ACTIVATION_BYTES = 1 << 30  # of all lanes' batches; a trainer's memory has to hold them
GPU_ACTIVATION_SHARE = 0.4  # of the free memory
CPU_ORDER_BYTES = 1 << 30
GPU_ORDER_SHARE = 0.2  # of the free memory
ORDER_BYTES = 32  # of a row's place in an epoch: the number itself, and what it is drawn with
KEPT_ROWS = 2
EVALUATION_BYTES = 6 << 20  # of what one layer puts out, for all lanes
FEWEST_ROWS = 16  # of an evaluation: fewer are all overhead


def capacity(device: torch.device) -> int:
    """Return how many trials a trainer can usefully hold: a group at work, one to follow."""
    return 2 * (CPU_LANES[1] if device.type == "cpu" else GPU_LANES[1])


def group_sizes(group: GroupSpec) -> tuple[int, int]:
    """Return the lanes of a small and of a full group, by the memory of state and activations."""
    module = networks.build(group.network, inputs=group.inputs, outputs=group.outputs)
    itemsize = dtype_of(group.precision).itemsize
    # What is not trained is shared by all lanes, or held once by each.
    lane = STATE_COPIES * itemsize * sum(p.numel() for p in module.parameters() if p.requires_grad)
    fewest, most = CPU_LANES if group.device.type == "cpu" else GPU_LANES
    if group.device.type == "cpu":
        room, wide, long = CPU_STATE_BYTES, CPU_ACTIVATION_BYTES, CPU_ORDER_BYTES
    else:
        free = free_on_gpu(group.device)
        room, wide = int(free * GPU_STATE_SHARE), int(free * GPU_ACTIVATION_SHARE)
        long = int(free * GPU_ORDER_SHARE)
    batch = group.batch_size * itemsize * kept_numbers(module, group.row)
    # Too few lanes to pay are raised to `fewest`, for caches only cost speed; activations and
    # orders that do not fit cost the trainer.
    full = min(max(_power(room // max(lane, 1)), fewest), most, _power(wide // max(batch, 1)))
    full = min(full, _lanes_of_orders(group, long))
    return max(1, full // SMALL), full


def native_sizes(group: GroupSpec) -> tuple[int, int]:
    """Return the lanes of a small and of a full group of native code.

    It trains one lane after the other, so that only their orders are held together.
    """
    full = min(CPU_LANES[1], _lanes_of_orders(group, CPU_ORDER_BYTES))
    return min(CPU_LANES[0], full), full


def _lanes_of_orders(group: GroupSpec, room: int) -> int:
    """Return for how many lanes there is room for the order of an epoch's rows."""
    return _power(room // (ORDER_BYTES * group.rows))


def evaluation_rows(module: nn.Module, rows: Tensor, most: int, lanes: int = 1) -> int:
    """Return how many rows to evaluate at once on a CPU: what one layer puts out stays in a cache.

    Measured: with all rows at once a residual network took 2.4 times as long, a CNN 1.6 times.

    Args:
        rows: [N, …], of which the first are sent through the module, in evaluation mode.
        most: Rows that are enough for any network.
        lanes: How many networks take each row.
    """
    largest = max(rows[:1].numel(), 1)
    given = rows[:KEPT_ROWS]

    def note(_: nn.Module, __: object, output: object) -> None:
        nonlocal largest
        if isinstance(output, Tensor):
            largest = max(largest, output.numel() // len(given))

    leaves = [part for part in module.modules() if next(part.children(), None) is None]
    hooks = [leaf.register_forward_hook(note) for leaf in leaves]
    try:
        with torch.no_grad():
            module(given)
    finally:
        for hook in hooks:
            hook.remove()
    return max(FEWEST_ROWS, min(most, EVALUATION_BYTES // (4 * largest * lanes)))


def kept_numbers(module: nn.Module, inputs: networks.InputShape) -> int:
    """Return how many numbers a row's forward pass keeps for its backward pass, about."""
    # By storage, so that views of one tensor count once; weights are counted as state.
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes() // tensor.itemsize
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = module(torch.zeros(KEPT_ROWS, *inputs))
    del outputs
    return sum(kept.values()) // KEPT_ROWS


def _power(number: int) -> int:
    """Return the largest power of two up to the number, at least 1."""
    return 1 << max(0, number.bit_length() - 1)
