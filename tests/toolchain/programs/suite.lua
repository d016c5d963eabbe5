-- Runs Lua's own test suite, in whose folder it is started, again and again, and then says how often in a file there. What
-- the suite tells of time, memory and addresses is never the same.
--     lua suite.lua TIMES FILE
-- Temporary files are in that folder, too. The suite leaves no globals, a hook, and a metatable of nil.
local open, load, pairs, debug, all, times, file = io.open, loadfile, pairs, debug, _G, tonumber(arg[1]), arg[2]

local temporary = 0
os.tmpname = function()
  temporary = temporary + 1
  return "temporary" .. temporary
end

dofile("before.lua")
_U = true
local globals = {}
for name, value in pairs(all) do globals[name] = value end
for _ = 1, times do
  for name, value in pairs(globals) do all[name] = value end
  load("all.lua")()
  debug.sethook()
  debug.setmetatable(nil, nil)
end
open(file, "w"):write(times, " times\n"):close()
