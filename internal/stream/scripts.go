package stream

import (
	"context"

	"github.com/redis/go-redis/v9"
)

// scripts are the steps that must happen as one. Redis does not undo what a
// script did before it failed, so each first does what may fail, and records
// that it is done last. They use only commands of the minimal access list in
// Fault C02: there is no DEL in it, so a key is dropped by giving it one
// more millisecond.
type scripts struct {
	claim        *redis.Script
	coolDown     *redis.Script
	deadLetter   *redis.Script
	dropIdle     *redis.Script
	lease        *redis.Script
	moveChat     *redis.Script
	publish      *redis.Script
	readCoolDown *redis.Script
	store        *redis.Script
	total        *redis.Script
	unlease      *redis.Script
}

func newScripts() scripts {
	return scripts{
		claim:        redis.NewScript(claimLua),
		coolDown:     redis.NewScript(coolDownLua),
		deadLetter:   redis.NewScript(deadLetterLua),
		dropIdle:     redis.NewScript(dropIdleLua),
		lease:        redis.NewScript(leaseLua),
		moveChat:     redis.NewScript(moveChatLua),
		publish:      redis.NewScript(publishLua),
		readCoolDown: redis.NewScript(readCoolDownLua),
		store:        redis.NewScript(storeLua),
		total:        redis.NewScript(totalLua),
		unlease:      redis.NewScript(unleaseLua),
	}
}

// run sends the script's digest, and its source where the server does not know
// it. A nil reply is not an error here.
func run(ctx context.Context, s *redis.Script, on *redis.Client, op string, keys []string, args ...any) (any, error) {
	reply, err := s.Run(ctx, on, keys, args...).Result()
	if err == redis.Nil { //nolint:errorlint // the library returns it unwrapped
		return nil, nil
	}
	if err != nil {
		return nil, fail(ctx, op, err)
	}
	return reply, nil
}

// runInt is run for scripts that answer with a number.
func runInt(ctx context.Context, s *redis.Script, on *redis.Client, op string, keys []string, args ...any) (int64, error) {
	reply, err := run(ctx, s, on, op, keys, args...)
	if err != nil {
		return 0, err
	}
	n, ok := reply.(int64)
	if !ok {
		return 0, fail(ctx, op, replyError{"number"})
	}
	return n, nil
}

// runString is run for scripts that answer with a string.
func runString(ctx context.Context, s *redis.Script, on *redis.Client, op string, keys []string, args ...any) (string, error) {
	reply, err := run(ctx, s, on, op, keys, args...)
	if err != nil {
		return "", err
	}
	text, ok := reply.(string)
	if !ok {
		return "", fail(ctx, op, replyError{"string"})
	}
	return text, nil
}

// claimLua gives this consumer the oldest pending entries of another one.
// KEYS: stream. ARGV: group, other consumer, this consumer, count.
// Answers {entries, ids whose entries are gone}. XCLAIM drops those from the
// pending list without a word, so this is where they are noticed.
const claimLua = `
local ids = {}
for _, p in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', ARGV[4], ARGV[2])) do
  ids[#ids + 1] = p[1]
end
local entries, deleted = {}, {}
for _, id in ipairs(ids) do
  local e = redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, id)[1]
  if e and e[2] then
    entries[#entries + 1] = e
  else
    deleted[#deleted + 1] = id
  end
end
return {entries, deleted}
`

// dropIdleLua deletes consumers that own nothing and were idle for long. Both
// are checked in the same step, because deleting a consumer with pending entries
// would lose them for ever.
// KEYS: stream. ARGV: group, idle milliseconds, this consumer.
const dropIdleLua = `
local dropped = 0
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local c = {}
  for i = 1, #flat, 2 do c[flat[i]] = flat[i + 1] end
  if c.pending == 0 and c.idle >= tonumber(ARGV[2]) and c.name ~= ARGV[3] then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], c.name)
    dropped = dropped + 1
  end
end
return dropped
`

// leaseLua takes or renews a lease. KEYS: lease. ARGV: holder, milliseconds.
const leaseLua = `
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
`

// unleaseLua gives a lease up. KEYS: lease. ARGV: holder.
const unleaseLua = `
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', 1)
return 1
`

// storeLua announces a result store unless another one is announced, which is
// then the answer. KEYS: store. ARGV: uuid, milliseconds.
const storeLua = `
local other = redis.call('GET', KEYS[1])
if other and other ~= ARGV[1] then return other end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ''
`

// coolDownLua never shortens a cool-down. The key holds the time of its end by
// the server's clock. KEYS: cool-down. ARGV: milliseconds.
const coolDownLua = `
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local until_ = now + ARGV[1]
if tonumber(redis.call('GET', KEYS[1]) or 0) < until_ then
  redis.call('SET', KEYS[1], string.format('%.0f', until_), 'PX', ARGV[1])
end
return 0
`

// readCoolDownLua answers with the remaining milliseconds. KEYS: cool-down.
const readCoolDownLua = `
local until_ = tonumber(redis.call('GET', KEYS[1]) or 0)
local t = redis.call('TIME')
return math.max(0, until_ - (t[1] * 1000 + math.floor(t[2] / 1000)))
`

// publishLua adds an update once. KEYS: stream, marker. ARGV: seconds the marker
// lives, channel or ”, channel message, then the fields.
// The marker holds the entry's id, and nothing while the steps are not all done:
// a script that failed half way (the stream is of another type, the channel is
// not allowed, no memory) leaves an empty marker and can be repeated.
const publishLua = `
if (redis.call('GET', KEYS[2]) or '') ~= '' then return 0 end
redis.call('XLEN', KEYS[1])
redis.call('SET', KEYS[2], '', 'EX', ARGV[1])
if ARGV[2] ~= '' then redis.call('PUBLISH', ARGV[2], ARGV[3]) end
local fields = {}
for i = 4, #ARGV do fields[#fields + 1] = ARGV[i] end
local id = redis.call('XADD', KEYS[1], '*', unpack(fields))
redis.call('SET', KEYS[2], id, 'EX', ARGV[1])
return 1
`

// deadLetterLua adds a dead letter once and answers with its id, each time.
// KEYS: dead-letter stream, marker. ARGV: seconds the marker lives, then the
// fields.
const deadLetterLua = `
local id = redis.call('GET', KEYS[2]) or ''
if id ~= '' then return id end
redis.call('SET', KEYS[2], '', 'EX', ARGV[1])
local fields = {}
for i = 2, #ARGV do fields[#fields + 1] = ARGV[i] end
id = redis.call('XADD', KEYS[1], '*', unpack(fields))
redis.call('SET', KEYS[2], id, 'EX', ARGV[1])
return id
`

// moveChatLua moves items from a list to a stream. KEYS: list, stream, probe.
// ARGV: most items to move.
// LPOP works on a server without free memory and XADD does not, so an item could
// be lost between the two. Writing the probe and asking for the stream's length
// fails first in that case, and where the stream is of another type.
const moveChatLua = `
redis.call('XLEN', KEYS[2])
redis.call('SET', KEYS[3], '1', 'EX', 60)
local moved = 0
while moved < tonumber(ARGV[1]) do
  local item = redis.call('LPOP', KEYS[1])
  if not item then break end
  redis.call('XADD', KEYS[2], '*', 'source', 'list', 'data', item)
  moved = moved + 1
end
return moved
`

// totalLua is one step of one process in the limit over all processes. Whatever
// the step is for, it also drops what has expired and hands free permits to the
// waiters at the head, so a permit is passed on in the very step that frees it.
// KEYS: held, queue, waiters, limits, epoch.
// ARGV: process, its limit (0: it leaves), milliseconds a permit lives, a waiter
// lives, the pause after the epoch began, channel, then three counted lists:
// holders that are done, holders to renew, waiters as pairs of holder and order
// (0 at the first time).
// Answers {1 while permits are granted at all, holders granted in this step,
// for each waiter 0 if it holds a permit, else its order}.
const totalLua = `
local held, queue, waiters, limits, epoch = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local process, own_limit = ARGV[1], tonumber(ARGV[2])
local permit_ms, waiter_ms, pause_ms, channel = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local t = redis.call('TIME')
local us = t[1] * 1000000 + t[2]
local now = math.floor(us / 1000)
local function int(n) return string.format('%.0f', n) end
local next_arg = 7
local function take(width)
  local list, n = {}, tonumber(ARGV[next_arg])
  for i = 1, n * width do list[i] = ARGV[next_arg + i] end
  next_arg = next_arg + n * width + 1
  return list
end
local done, renew, ask = take(1), take(1), take(2)

-- An epoch that is missing, or from another life of Redis, means that it forgot
-- who holds permits, or what the last second changed of that. The holders announce
-- themselves again during the pause.
local info = redis.pcall('INFO', 'server')
local life = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or '0'
local began, its_life = string.match(redis.call('GET', epoch) or '', '^(%d+):(%x+)$')
began = tonumber(began)
if not began or began > now or its_life ~= life then
  began = now
  redis.call('SET', epoch, int(now) .. ':' .. life)
end
local granting = now - began >= pause_ms

local own = own_limit .. ':' .. process
for _, m in ipairs(redis.call('ZRANGE', limits, 0, -1)) do
  if m ~= own and string.match(m, '^%d+:(.*)$') == process then redis.call('ZREM', limits, m) end
end
if own_limit > 0 then redis.call('ZADD', limits, int(now + permit_ms), own) end
for _, m in ipairs(redis.call('ZRANGE', limits, '-inf', '(' .. int(now), 'BYSCORE')) do
  redis.call('ZREM', limits, m)
end
local limit
for _, m in ipairs(redis.call('ZRANGE', limits, 0, -1)) do
  local n = tonumber(string.match(m, '^(%d+):'))
  if n and (not limit or n < limit) then limit = n end
end

for _, h in ipairs(done) do
  redis.call('ZREM', held, h)
  redis.call('ZREM', queue, h)
  redis.call('ZREM', waiters, h)
end
for _, h in ipairs(renew) do redis.call('ZADD', held, int(now + permit_ms), h) end
for _, h in ipairs(redis.call('ZRANGE', held, '-inf', '(' .. int(now), 'BYSCORE')) do
  redis.call('ZREM', held, h)
end

-- Orders are times, but never equal and never running backwards.
local tail = redis.call('ZRANGE', queue, -1, -1, 'WITHSCORES')[2]
local order = math.max(us, (tonumber(tail) or 0) + 1)
local mine, answers = {}, {}
for i = 1, #ask, 2 do
  local h = ask[i]
  mine[h] = true
  -- ZADD XX INCR 0 asks for the score with a right every user has.
  if redis.call('ZADD', held, 'XX', 'INCR', 0, h) then
    redis.call('ZADD', held, int(now + permit_ms), h)
  else
    local first = ask[i + 1]
    if first == '0' then first = int(order); order = order + 1 end
    redis.call('ZADD', queue, 'NX', first, h)
    redis.call('ZADD', waiters, int(now + waiter_ms), h)
  end
end
for _, h in ipairs(redis.call('ZRANGE', waiters, '-inf', '(' .. int(now), 'BYSCORE')) do
  redis.call('ZREM', queue, h)
  redis.call('ZREM', waiters, h)
end

local granted = {}
local free = (limit or 0) - redis.call('ZCARD', held)
if granting and free > 0 then
  granted = redis.call('ZRANGE', queue, 0, free - 1)
  for _, h in ipairs(granted) do
    redis.call('ZREM', queue, h)
    redis.call('ZREM', waiters, h)
    redis.call('ZADD', held, int(now + permit_ms), h)
    if not mine[h] then redis.call('PUBLISH', channel, h) end
  end
end
for i = 1, #ask, 2 do
  local score = redis.call('ZADD', queue, 'XX', 'INCR', 0, ask[i])
  answers[#answers + 1] = score and int(tonumber(score)) or '0'
end
return {granting and 1 or 0, granted, answers}
`
