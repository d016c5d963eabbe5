-- Generators, producers and consumers, errors and closing across coroutines, coroutines in coroutines.
local function range(n)
  return coroutine.wrap(function() for i = 1, n do coroutine.yield(i) end end)
end

local function filter(keep, source)
  return coroutine.wrap(function()
    for value in source do if keep(value) then coroutine.yield(value) end end
  end)
end

-- A sieve of as many filters as there are primes below 200, each in the next one.
local primes, source = {}, range(200)
source()
while true do
  local prime = source()
  if not prime then break end
  primes[#primes + 1] = prime
  source = filter(function(n) return n % prime ~= 0 end, source)
end
print(#primes, table.concat(primes, " ", #primes - 4))

local thread = coroutine.create(function(...)
  local sum = select("#", ...)
  while true do sum = sum + coroutine.yield(sum) end
end)
print(coroutine.resume(thread, "a", nil, "c"))
print(coroutine.resume(thread, 10), coroutine.status(thread), coroutine.isyieldable(thread))
print(coroutine.resume(thread, {}))
print(coroutine.status(thread), coroutine.resume(thread))

-- Yields across pcall, metamethods, iterators and table.sort's refusal.
local vector = setmetatable({}, {
  __add = function(_, n) return coroutine.yield("add " .. n) end,
  __index = function(_, key) return coroutine.yield("index " .. key) end,
})
local steps = coroutine.wrap(function()
  local ok, message = pcall(function()
    local got = vector + 1
    error("after " .. got .. " " .. vector.field)
  end)
  coroutine.yield(tostring(ok) .. " " .. message:gsub("^.-:%d+: ", ""))
  return select(2, pcall(table.sort, {3, 2, 1}, function() coroutine.yield() end))
end)
print(steps(), steps("one"), steps("two"))
print(steps())

do
  local closed = {}
  local open = coroutine.create(function()
    local first <close> = setmetatable({}, {__close = function() closed[#closed + 1] = "first" end})
    local second <close> = setmetatable({}, {__close = function(_, e) closed[#closed + 1] = "second" end})
    coroutine.yield()
  end)
  coroutine.resume(open)
  print(coroutine.close(open), coroutine.status(open), table.concat(closed, " "))
end

local function permutations(list, n)
  if n <= 1 then
    coroutine.yield(table.concat(list))
  else
    for i = 1, n do
      list[n], list[i] = list[i], list[n]
      permutations(list, n - 1)
      list[n], list[i] = list[i], list[n]
    end
  end
end
local all = {}
for one in coroutine.wrap(function() permutations({"a", "b", "c", "d"}, 4) end) do all[#all + 1] = one end
table.sort(all)
print(#all, all[1], all[2], all[#all])
