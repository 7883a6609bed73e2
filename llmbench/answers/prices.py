"""The prices of devices per hour that the user gives."""

from __future__ import annotations

import math
from collections.abc import Set

from llmbench.errors import LLMBenchError
from llmbench.sizing.items import decimal
from llmbench.spec.catalog import find_device_head

MOST_PRICE = 10**9
"""The largest price of one GPU per hour."""


def prices_of(price: float | str | None, devices: Set[str]) -> dict[str, float]:
    """Return the price of one GPU per hour by the name of the device. The key "" stands for all other devices.

    price: one number for all devices, or items such as `h100=2.5,l40s=1.1`. None: no price is known.
    devices: the names of the devices of the question.

    Raises LLMBenchError for an item without a number from 0 to MOST_PRICE, for a device that is unknown or not in the
    question, for a second price of a device, and for a price of all other devices if there are none.
    """
    prices: dict[str, float] = {}
    for item in [] if price is None else str(price).split(","):
        name, equals, number = item.rpartition("=")
        try:
            value = decimal(number.strip())
        except ValueError:
            value = math.nan
        if not 0 <= value <= MOST_PRICE:
            raise LLMBenchError(
                f"--price {item[:40]}: needs a number from 0 to {MOST_PRICE:,}",
                hint="for example --price 2.5, or --price h100=2.5,l40s=1.1",
            )
        device = find_device_head(name.strip()).name if equals else ""
        if device and device not in devices:
            raise LLMBenchError(
                f"--price {item[:40]}: the question is not about {device}",
                hint=f"add --device {device}, or leave out this price",
            )
        if device in prices:
            raise LLMBenchError(f"--price {item[:40]}: {device or 'the price of all devices'} is given twice")
        prices[device] = value
    if "" in prices and devices <= prices.keys():
        raise LLMBenchError(
            f"--price {prices['']:g}: is for all other devices, and each device of the question has a price of its own",
            hint="leave out this price",
        )
    return prices
