"""
Write ``orders.jsonl``: the orders that the demo sends, the same on every machine.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

HERE = Path(__file__).resolve().parent
ORDERS = 300
SEED = 20240229
CUSTOMERS = ("Ada", "Alan", "Barbara", "Edsger", "Frances", "Grace", "Jean", "Ken", "Margaret")


def main() -> None:
    """
    Draw the orders from a fixed seed and write one JSON object per line.
    """
    draw = random.Random(SEED)
    skus = [product["sku"] for product in json.loads((HERE / "catalog.json").read_text())]
    with (HERE / "orders.jsonl").open("w", encoding="utf-8") as out:
        for count in range(1, ORDERS + 1):
            order = {
                "number": f"A-{count:04}",
                "customer": draw.choice(CUSTOMERS),
                "product": draw.choice(skus),
                "quantity": draw.choice((1, 1, 1, 2, 2, 3)),
            }
            out.write(json.dumps(order) + "\n")


if __name__ == "__main__":
    main()
