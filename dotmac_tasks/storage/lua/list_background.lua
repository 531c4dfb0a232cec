-- Look up one page of a listing, newest first.
--
-- KEYS: listing
-- ARGV: the order below which to start, how many
-- Returns: id, order, id, order, ...

return redis.call(
  'ZREVRANGEBYSCORE', KEYS[1], ARGV[1], '-inf', 'WITHSCORES', 'LIMIT', 0, ARGV[2]
)
