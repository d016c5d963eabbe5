local function entry(i, j) return 1 / ((i + j) * (i + j + 1) / 2 + i + 1) end
local n, u, v = 300, {}, {}
local function multiply(from, to, transposed)
  for i = 0, n - 1 do
    local sum = 0
    for j = 0, n - 1 do sum = sum + (transposed and entry(j, i) or entry(i, j)) * from[j] end
    to[i] = sum
  end
end
for i = 0, n - 1 do u[i] = 1 end
local w = {}
for _ = 1, 10 do
  multiply(u, w); multiply(w, v, true)
  multiply(v, w); multiply(w, u, true)
end
local uv, vv = 0, 0
for i = 0, n - 1 do uv = uv + u[i] * v[i]; vv = vv + v[i] * v[i] end
print(string.format("%.9f", math.sqrt(uv / vv)))
