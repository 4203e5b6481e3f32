"""What a dataset takes: GPU hours, cores that feed the GPUs, bytes of parts, and money.

    python benchmarks/capacity.py --images N [--images-per-second-gpu R] [--decode-per-core R]
        [--gpus N] [--bytes-per-image B] [--price-gpu-hour P] [--price-core-hour P]

Arithmetic alone. The defaults are recorded in docs/operations.md; prices are the user's, and
without them no cost is told.
"""

import argparse
import math
from dataclasses import dataclass

from rich.console import Console

out = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Capacity:
    """What all images take; `cores` decode for all GPUs."""

    gpu_hours: float
    hours: float
    cores: int
    output_bytes: float


def capacity(images: int, gpus: int, rate: float, decoded: float, size: float) -> Capacity:
    """`rate` and `decoded` are images a second of a GPU and of a core."""
    gpu_hours = images / rate / 3600
    cores = math.ceil(gpus * rate / decoded)
    return Capacity(gpu_hours, gpu_hours / gpus, cores, images * size)


def main() -> None:
    """Print the arithmetic, a line each."""
    options = _options()
    need = capacity(
        options.images,
        options.gpus,
        options.images_per_second_gpu,
        options.decode_per_core,
        options.bytes_per_image,
    )
    out.print(f"GPU hours     {need.gpu_hours:.2f}")
    out.print(f"hours         {need.hours:.2f} on {options.gpus} GPUs")
    out.print(f"decode cores  {need.cores}")
    out.print(f"output        {need.output_bytes / 1e9:.2f} GB")
    if None not in (options.price_gpu_hour, options.price_core_hour):
        cost = need.gpu_hours * options.price_gpu_hour
        cost += need.hours * need.cores * options.price_core_hour
        out.print(f"cost          {cost:.2f}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What a dataset takes.")
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=1)
    parser.add_argument("--images-per-second-gpu", type=float, default=927)
    parser.add_argument("--decode-per-core", type=float, default=250)
    parser.add_argument("--bytes-per-image", type=float, default=537)
    parser.add_argument("--price-gpu-hour", type=float)
    parser.add_argument("--price-core-hour", type=float)
    return parser.parse_args()


if __name__ == "__main__":
    main()
