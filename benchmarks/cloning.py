"""
Fills a private Redis with copies of one real record, whatever its layout is.

The record is written by the storage itself; what it left in the server is then
looked up and copied there by a script, key by key and index entry by index
entry, so that a million records take seconds.
"""

from __future__ import annotations

import json

import redis

_CHUNK = 5_000

_COPY = """
local original, prefix = ARGV[1], ARGV[2]
local first, count = tonumber(ARGV[3]), tonumber(ARGV[4])
local keys, entries = cjson.decode(ARGV[5]), cjson.decode(ARGV[6])
local dumps, lives = {}, {}
for i, key in ipairs(keys) do
  dumps[i] = redis.call('DUMP', key)
  lives[i] = math.max(0, redis.call('PTTL', key))
end
local function rename(text, name)
  local at = string.find(text, original, 1, true)
  return string.sub(text, 1, at - 1) .. name .. string.sub(text, at + #original)
end
for number = first, first + count - 1 do
  local name = prefix .. string.format('%0' .. (#original - 1) .. '.0f', number)
  for i, key in ipairs(keys) do
    redis.call('RESTORE', rename(key, name), lives[i], dumps[i])
  end
  for _, entry in ipairs(entries) do
    local score = entry[3]
    if score ~= 'inf' then score = string.format('%.0f', score - number - 1) end
    redis.call('ZADD', entry[1], score, rename(entry[2], name))
  end
end
"""

_LONG_AGO = "1000000000000"


class Original:
    """
    One record that is to be copied; make it while it is alone. Used by one thread.
    """

    def __init__(self, client: redis.Redis, name: str) -> None:
        self.name = name
        self._copy = client.register_script(_COPY)
        self._keys: list[str] = []
        self._entries: list[tuple[str, str, str]] = []
        for key in map(bytes.decode, client.keys("*")):
            if name in key:
                self._keys.append(key)
            elif client.type(key) == b"zset":
                for member, score in client.zscan_iter(key, match=f"*{name}*"):
                    self._entries.append((key, member.decode(), f"{score:.0f}"))
        if not self._keys or not self._entries:
            raise AssertionError(f"Nothing is stored under {name}")

    def name_of(self, number: int) -> str:
        """
        Return the name of a copy, as long as that of the original.
        """
        return f"c{number:0>{len(self.name) - 1}}"

    def copy(self, count: int, *, first: int = 0) -> None:
        """
        Make so many copies, index entries included.
        """
        self._run("c", first, count, self._keys, self._entries)

    def copy_expired(self, count: int) -> None:
        """
        Leave what is left of so many records that Redis has expired by itself.
        """
        entries = [(index, member, _LONG_AGO) for index, member, _ in self._entries]
        self._run("x", 0, count, [], entries)

    def _run(
        self,
        prefix: str,
        first: int,
        count: int,
        keys: list[str],
        entries: list[tuple[str, str, str]],
    ) -> None:
        what = [json.dumps(keys), json.dumps(entries)]
        for start in range(first, first + count, _CHUNK):
            size = min(_CHUNK, first + count - start)
            self._copy(args=[self.name, prefix, start, size, *what])
