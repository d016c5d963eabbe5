local seed, list, strings, counts = 42, {}, {}, {}
for n = 1, 100000 do
  seed = seed * 48271 % 2147483647
  list[n] = seed
  strings[n] = string.format("%x", seed):rep(2, "-")
end
table.sort(list)
for _, text in ipairs(strings) do
  local key = text:gsub("%d", ""):sub(1, 2)
  counts[key] = (counts[key] or 0) + #text
end
local sum = 0
for _, count in pairs(counts) do sum = sum + count end
print(list[1], list[#list], sum)
