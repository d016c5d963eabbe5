-- Metatables, inheritance, closures, goto, integers and floats, sorting, collection, weak tables, finalizers, files.
local Animal = {}
Animal.__index = Animal
function Animal.new(name) return setmetatable({name = name}, Animal) end
function Animal:say() return self.name .. " " .. self:noise() end
local Dog = setmetatable({noise = function() return "barks" end}, {__index = Animal})
Dog.__index = Dog
print(setmetatable(Animal.new("it"), Dog):say())

local log = {}
local proxy = setmetatable({}, {
  __index = function(_, k) log[#log + 1] = "get " .. tostring(k); return k end,
  __newindex = function(_, k, v) log[#log + 1] = "set " .. tostring(k) .. "=" .. tostring(v) end,
  __call = function(_, ...) return select("#", ...), ... end,
  __len = function() return 42 end,
  __unm = function() return "minus" end,
  __concat = function(a, b) return type(a) .. type(b) end,
  __eq = function() return true end,
  __lt = function() return true end,
  __le = function() return false end,
  __idiv = function() return "floor" end,
  __shl = function() return "shift" end,
  __name = "proxy",
})
proxy.x = proxy.y
print(table.concat(log, ", "), #proxy, -proxy, proxy .. 1, 1 .. proxy, proxy == setmetatable({}, getmetatable(proxy)))
print(proxy < 1, proxy <= 1, proxy // 1, proxy << 1, proxy(nil, nil), rawlen(proxy), rawequal(proxy, proxy))

local counters = {}
for i = 1, 3 do
  local n = 0
  counters[i] = {up = function() n = n + i; return n end, get = function() return n end}
end
counters[1].up(); counters[3].up(); counters[3].up()
print(counters[1].get(), counters[2].get(), counters[3].get())

local i, closures = 1, {}
::top::
do
  local captured = i * 10
  closures[i] = function() captured = captured + 1; return captured end
  i = i + 1
  if i <= 3 then goto top end
end
print(closures[1](), closures[1](), closures[2](), closures[3]())
for row = 1, 3 do
  for column = 1, 3 do
    if column == row then goto continue end
    if row == 3 then goto done end
    io.write(row, column, " ")
    ::continue::
  end
end
::done::
print()

print(1 == 1.0, math.type(1), math.type(1.0), 7 // 2, -7 // 2, 7 // -2.0, -7 % 3, 7 % -3, -7.5 % 2, 2^10, 1 / 0, -1 / 0)
print(math.maxinteger + 1 == math.mininteger, math.mininteger // -1, 1 << 63, 1 << 64, -1 >> 60, ~0, 5 // 0.0, 0x7fp-3)
print(string.format("%.17g %a %g %i %x", 0.1, 1.5, 1e100, 42, 255), 1e15, 2^53, 123456789012345678, 3 | 4.0, "10" + 5, "0x10" * 1)
print(tostring(3.0), 1e300 * 1e10, math.tointeger(3.0), math.ult(1, -1), math.fmod(-7, 3), 10 // 3 * 3 + 10 % 3)
print(string.format("%.12f %.12f %.12f %.12f", math.sin(1), math.exp(1), math.log(10, 2), math.atan(1, 2)), math.pi)
print(pcall(function() for _ = 1, 10, 0 do end end))
for x = 1.0, 2.0, 0.25 do io.write(x, " ") end
for x = math.maxinteger - 1, math.maxinteger do io.write(x, " ") end
print()

local list, seed = {}, 42
for n = 1, 500 do
  seed = (seed * 1103515245 + 12345) % 2^31
  list[n] = seed // 1 % 1000 | 0
end
table.sort(list, function(a, b) return a > b end)
local sorted = true
for n = 2, #list do sorted = sorted and list[n - 1] >= list[n] end
print(sorted, #list, list[1], list[250], list[500], table.concat(table.move(list, 1, 3, 2, {0}), ","))
table.insert(list, 1, "first"); table.insert(list, "last")
print(table.remove(list, 1), table.remove(list), #list, table.unpack(list, 1, 3))

local weak, alive = setmetatable({}, {__mode = "v"}), {}
for n = 1, 100 do local object = {n}; weak[n] = object; if n % 10 == 0 then alive[#alive + 1] = object end end
collectgarbage()
local left = 0
for _ in pairs(weak) do left = left + 1 end
local ephemerons = setmetatable({}, {__mode = "k"})
for n = 1, 50 do local key = {}; ephemerons[key] = {key} end
collectgarbage()
print(left, next(ephemerons), #alive)
local finalized = 0
for mode = 1, 2 do
  collectgarbage(mode == 1 and "incremental" or "generational")
  for n = 1, 2000 do
    setmetatable({string.rep("x", n)}, {__gc = function() finalized = finalized + 1 end})
  end
  collectgarbage(); collectgarbage()
  print(collectgarbage("count") < 2000, finalized == mode * 2000)
end

local name = os.tmpname()
local file <close> = assert(io.open(name, "w+"))
file:setvbuf("full", 100)
for n = 1, 100 do assert(file:write(n, " ", n * n, "\n")) end
file:seek("set")
local sum = 0
for a, b in file:lines("n", "n") do sum = sum + a * b end
file:seek("end", -11)
print(sum, file:read("l"), file:read("a"), file:read("l"), file:read(0))
os.remove(name)
print(io.open(name) == nil, os.rename(name, name) == nil)
print(os.date("!%Y-%m-%d %H:%M:%S %j %A", 86400 * 365), os.getenv("no such variable"), type(os.clock()))
print(require("string") == string, load(string.dump(function(a, b) return a * b end))(6, 7), select(-1, 1, 2, 3))
