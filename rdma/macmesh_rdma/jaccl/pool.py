"""What the buffers of MLX's jaccl backend cost, from the constants that it is compiled with. Pure.

The constants are those of the headers that the wheel of MLX 0.32.4 ships (``distributed/jaccl/lib/jaccl``); none
can be set. The memory is neither MLX's nor Metal's: it is allocated and registered by the backend.
"""

FRAME_BYTES = 4096
BUFFER_SIZES = 8
NUM_BUFFERS = 2
_CLASS_BYTES = NUM_BUFFERS * FRAME_BYTES * ((1 << BUFFER_SIZES) - 1)
_LARGEST_BUFFER_BYTES = FRAME_BYTES << (BUFFER_SIZES - 1)


def jaccl_pool_bytes(ranks: int, wires: int) -> int:
    """Bytes of one rank's buffers, in a mesh or a ring, whichever has more.

    A mesh has for each rank and cable ``NUM_BUFFERS`` of each size, and twice as many for scattering; and two
    staging buffers of the largest size. A ring has four times ``NUM_BUFFERS`` of each size for each cable.

    Args:
        ranks: of the group.
        wires: cables between each two ranks.
    """
    mesh_bytes = 3 * ranks * wires * _CLASS_BYTES + 2 * _LARGEST_BUFFER_BYTES
    return max(mesh_bytes, 4 * wires * _CLASS_BYTES)
