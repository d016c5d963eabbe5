-- pcall, xpcall, error with values, levels, tracebacks, stack overflow, errors in handlers and finalizers.
local function without_place(...)
  local shown = table.pack(...)
  for i = 1, shown.n do shown[i] = tostring(shown[i]):gsub("[^%s:]+%.lua:%d+:", "PLACE:") end
  print(table.concat(shown, " | ", 1, shown.n))
end

without_place(pcall(error))
without_place(pcall(error, "text", 0))
without_place(pcall(function() error("text") end))
without_place(pcall(error, setmetatable({}, {__tostring = function() return "an object" end})))
without_place(pcall(function() local t = nil; return t.x end))
without_place(pcall(function() return 1 < "2" end))
without_place(pcall(function() return {} .. "x" end))
without_place(pcall(function() return 1 // 0 end))
without_place(pcall(function() return 2^53 | 0.5 end))
without_place(pcall(string.rep, "x", -1))
without_place(pcall(string.rep))
without_place(pcall(setmetatable, 1, {}))
without_place(pcall(load, "return +"))
without_place(load("x = = 1", "=chunk"))
without_place(load("for i = 1, 10 do goto away end", "=chunk"))
without_place(load("local x <const> = 1; x = 2", "=chunk"))

without_place(xpcall(function(...) error(select("#", ...)) end, function(e) return "handled " .. tostring(e) end, 1, 2, 3))
without_place(xpcall(error, function() error("again") end, "once"))

local function forever() return 1 + forever() end
local ok, message = pcall(forever)
print(ok, message:match("stack overflow"))

-- As deep as the C stack is allowed to be: pcall in pcall.
local function deep(n) if n == 0 then error("bottom", 0) end return pcall(deep, n - 1) end
print(select("#", deep(150)), select(-2, deep(150)))
local depth = 0
local function nest() depth = depth + 1; return select(2, pcall(string.gsub, "x", "x", nest)) end
print(type(nest()), depth > 30)

local trace = debug.traceback("trace", 1)
print(trace:match("^trace\nstack traceback:"), select(2, trace:gsub("\n", "")) > 1)
local log = {}
do
  local ok, e = pcall(function()
    local a <close> = setmetatable({}, {__close = function(_, e) log[#log + 1] = "a " .. tostring(e) end})
    local b <close> = setmetatable({}, {__close = function(_, e) log[#log + 1] = "b " .. tostring(e); error("in b", 0) end})
    error("body", 0)
  end)
  print(ok, e, table.concat(log, ", "))
end
print(select("#", pcall(table.unpack, {}, 1, 100)), pcall(table.unpack, {}, 1, 1e8))
assert(not pcall(assert, false, "message"))
print(select(2, pcall(assert, nil)), select(2, pcall(assert, false, 42)))
