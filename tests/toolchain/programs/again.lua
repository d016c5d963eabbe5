-- Runs Lua programs again and again, all that they write collected, and writes how often, and what came of it:
--     lua again.lua TIMES PROGRAM...
-- Each time must be as the first was.
local written = {}

local function note(...)
  for at = 1, select("#", ...) do written[#written + 1] = tostring((select(at, ...))) end
end

function print(...)
  note(...)
  note("\n")
end

io.write = note
os.tmpname = function() return "temporary" end

local function digest(text)
  local sum = 5381
  for at = 1, #text do sum = (sum * 33 ~ text:byte(at)) & 0xffffffffffff end
  return sum
end

local first
for time = 1, tonumber(arg[1]) do
  written = {}
  for at = 2, #arg do dofile(arg[at]) end
  local now = digest(table.concat(written))
  first = first or now
  assert(now == first, "time " .. time)
end
io.stdout:write(arg[1], " times ", first, "\n")
