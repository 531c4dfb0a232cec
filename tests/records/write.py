"""
Keeps what this version writes, for the tests of every later one; run by hand at each release.

Writes the folder ``tests/records/<version>`` with

* ``redis.json``: every kind of record, as a Redis held it;
* ``read.json``: what this version reads of them;
* ``answers.json``: what it answers to a retry of each request;
* ``golden.json``: fingerprints, keys and payload bytes of all samples.

A folder that is there is not written again: it is what people have in their Redis. Remove it first
where its version is not released yet and a change of what it writes was meant.

Samples are in ``tests/support/record_samples.py``, the form of the files in ``stored_records.py``
beside it. Needs ``redis-server`` and what ``make test`` needs::

    PYTHONPATH=.:tests python tests/records/write.py
"""

from __future__ import annotations

import configparser
import json
from pathlib import Path
from typing import Any

import redis

from dotmac_tasks.storage import RedisStorage
from support.record_samples import make_golden, read_records, write_records
from support.redis_server import RedisServer
from support.stored_records import PREFIX, dump, names_of_records

HERE = Path(__file__).parent


def main() -> None:
    """
    Write the folder of the version in setup.cfg.
    """
    parser = configparser.ConfigParser()
    parser.read(HERE.parents[1] / "setup.cfg")
    folder = HERE / parser["metadata"]["version"]
    folder.mkdir()
    with RedisServer() as server, redis.Redis.from_url(server.url()) as client:
        storage = RedisStorage(client=client, prefix=PREFIX, timeout=10)
        answers = write_records(storage)
        records = dump(client)
        read = read_records(storage, names_of_records(records))
        storage.close()
    write(folder / "redis.json", records)
    write(folder / "read.json", read)
    write(folder / "answers.json", answers)
    write(folder / "golden.json", make_golden())


def write(file: Path, data: Any) -> None:
    """
    Write a file that a person can read.
    """
    file.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
