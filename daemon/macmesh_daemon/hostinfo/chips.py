"""Published memory bandwidth of Apple's chips.

Sources: Apple's newsroom announcements and technical specifications of the Macs with each chip ("100GB/s
    memory bandwidth" and the like). Where one chip name was sold with two memory configurations, the table
    tells them apart by the GPU cores that go with them, and says the smaller figure when the core count is
    not known.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chip:
    """One row: a chip as the system names it."""

    name: str
    bandwidth_gb_per_s: float
    #: The row holds from this number of GPU cores up.
    least_gpu_cores: int = 0


# One announcement or specification page per line of the table; figures in 10^9 bytes per second.
_CHIPS = (
    Chip(
        "Apple M1", 68.25
    ),  # LPDDR4X-4266, 128 bit: Mac mini (M1, 2020), technical specifications give 68.25
    Chip("Apple M1 Pro", 200.0),  # MacBook Pro (2021): "200GB/s memory bandwidth"
    Chip("Apple M1 Max", 400.0),  # MacBook Pro (2021): "400GB/s memory bandwidth"
    Chip("Apple M1 Ultra", 800.0),  # Mac Studio (2022): "800GB/s memory bandwidth"
    Chip("Apple M2", 100.0),  # MacBook Air (M2, 2022): "100GB/s memory bandwidth"
    Chip("Apple M2 Pro", 200.0),  # MacBook Pro (2023)
    Chip("Apple M2 Max", 400.0),  # MacBook Pro (2023)
    Chip("Apple M2 Ultra", 800.0),  # Mac Studio (2023)
    Chip("Apple M3", 100.0),  # MacBook Pro (Nov 2023)
    Chip("Apple M3 Pro", 150.0),  # MacBook Pro (Nov 2023)
    Chip("Apple M3 Max", 300.0),  # MacBook Pro (Nov 2023), 14-core CPU with 30-core GPU
    Chip("Apple M3 Max", 400.0, least_gpu_cores=40),  # same, 16-core CPU with 40-core GPU
    Chip("Apple M3 Ultra", 819.0),  # Mac Studio (2025): "819GB/s memory bandwidth"
    Chip("Apple M4", 120.0),  # Mac mini (2024): "120GB/s memory bandwidth"
    Chip("Apple M4 Pro", 273.0),  # Mac mini (2024): "273GB/s memory bandwidth"
    Chip("Apple M4 Max", 410.0),  # MacBook Pro (2024), 14-core CPU with 32-core GPU
    Chip("Apple M4 Max", 546.0, least_gpu_cores=40),  # same, 16-core CPU with 40-core GPU
    Chip("Apple M5", 153.0),  # MacBook Pro (Oct 2025): "153GB/s of unified memory bandwidth"
)


def published_bandwidth_gb_per_s(chip: str, gpu_cores: int = 0) -> float:
    """Return the published memory bandwidth of a chip in GB/s (10⁹ bytes), 0 where the table lacks it.

    Args:
        chip: As ``sysctl machdep.cpu.brand_string`` gives it, such as ``Apple M4 Max``.
        gpu_cores: GPU cores; 0 where unknown.
    """
    rows = [row for row in _CHIPS if row.name == chip and row.least_gpu_cores <= gpu_cores]
    return rows[-1].bandwidth_gb_per_s if rows else 0.0
