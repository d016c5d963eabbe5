-- The clock and the calendar: time of the day through libc and kernel, dates there and back, files with names of their own.
local now = os.time()
print(now > 1500000000, os.difftime(now + 90, now), os.clock() >= 0, math.type(now))
for _, t in ipairs{0, 86399, 951782400, 1078012800, 1234567890, 4102444799} do
  print(t, os.date("!%Y-%m-%d %H:%M:%S %j %w", t))
  local d = os.date("*t", t)
  assert(os.time(d) == t)
  d.day = d.day + 400
  assert(os.difftime(os.time(d), t) // 3600 >= 400 * 24 - 2)
end
print(os.date("!%c", 0), os.date("!%x %X %p %A %B", 1e9))
local d = {year = 2020, month = 14, day = -3, hour = 12}
os.time(d)
print(d.year, d.month, d.day, d.yday, d.wday)
for _, wrong in ipairs{{year = 2020}, {year = 2020, month = 1, day = 1.5}, {year = 1 << 40, month = 1, day = 1}} do
  print(pcall(os.time, wrong))
end
print(pcall(os.date, "%Ez", 0), os.getenv("no such variable"))
local name = os.tmpname()
local file = assert(io.open(name, "w"))
file:write("here"):close()
print(io.open(name):read("a"), os.rename(name, name .. ".moved"), os.remove(name .. ".moved"), io.open(name) == nil)
