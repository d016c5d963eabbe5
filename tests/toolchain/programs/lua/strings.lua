-- Patterns, formats, packing, UTF-8, long strings, and a little text processing.
print(("hello world"):find("o w"), ("hello"):find("l+"), ("hello"):find("xyz"), ("a.b"):find(".", 1, true), ("aaa"):find("a", -1))
print(("key = value"):match("^(%w+)%s*=%s*(%w+)$"), ("2024-05-06"):match("(%d+)-(%d+)-(%d+)"))
print(("THE (quick) fox"):find("%((%a+)%)"), ("f(a(b)c)d"):match("%b()"), ("THE (quick) fox"):gsub("%f[%a]%a+", string.lower))
print(("abc"):gsub("", "-"), ("abc"):gsub(".", {a = 1, b = "two", c = false}), ("hello"):gsub("l", "L", 1), ("x^2"):gsub("%^", "%%"))
print(("  trim me  "):match("^%s*(.-)%s*$") .. "|", ("a,b,,c"):gsub(",", ";"), ("abc"):gsub("%w", "%0%0"), ("ab"):gsub("(a)(b)", "%2%1"))
for word, at in ("one two  three"):gmatch("(%a+)()") do io.write(word, "@", at, " ") end
print(("position"):match("()si()"))
print(pcall(string.gsub, "x", "(", ""), pcall(string.find, "x", "[a"), pcall(string.rep, "x", 1 << 40, ""))
print(pcall(string.match, string.rep("a", 300000), string.rep("a?", 300000) .. "b"))
print(string.format("%5d|%-5d|%05d|%+d|%x|%X|%#o|%c|%s|%10.3s|%q", 42, 42, 42, 42, 255, 255, 8, 65, "text", "abcdef", 'a "quoted"\n\0text'))
print(string.format("%e %.3e %G %10.2f %-10.2f| %q %q %q", 12345.678, 0.00012, 1e-10, 3.14159, 2.5, 1 / 3, math.mininteger, 0x7fffffff))
print(("%s %s"):format(nil, true), #string.format("%99.99f", -1e308), tostring(-0.0), string.format("%.0f", 0.5), 1e15, 1e16, 0.1 + 0.2)
print(("abc"):byte(1, -1), string.char(72, 105), ("abc"):rep(3, "-"), ("abc"):reverse(), ("abc"):upper(), ("abc"):sub(-2), ("abc"):sub(2, 10))
local packed = string.pack("<i4 >I2 z s1 d j B", -2, 513, "zero", "one", 1.5, math.mininteger, 255)
print(#packed, packed:byte(1, 6), string.unpack("<i4 >I2 z s1 d j B", packed))
print(string.packsize("!8 i1 i8 i2"), pcall(string.pack, "i1", 200), ("%02x"):rep(4, " "):format(string.pack(">I3 !4 Xi4", 1):byte(1, 4)))
print(utf8.char(72, 228, 8364, 128512), utf8.len("häß€😀"), utf8.codepoint("€", 1), utf8.offset("a€b", 3), utf8.len("\xff"), #utf8.charpattern)
for at, code in utf8.codes("aä€") do io.write(at, ":", code, " ") end
print("\u{48}\x49\74\z
       joined", [[
long
string]], #[==[]]]==], "\065\10\\" == "A\n\\")
print(tonumber("  0x1p4  "), tonumber("1e"), tonumber("10", 2), tonumber("zz", 36), tonumber("8", 8), tonumber("1_000"), tonumber("0x"), 0xffffffffffffffff)
print("a" < "b", "a" < "B", "" < "a", "a\0b" < "a\0c", "10" < "9", #"\0\0\0")

-- Words of a text that is made here, counted and shown by count and name.
local seed, words, counts = 7, {"lorem", "ipsum", "dolor", "sit", "amet"}, {}
local text = {}
for n = 1, 2000 do
  seed = seed * 48271 % 2147483647
  text[n] = words[seed % #words + 1] .. (seed % 7 == 0 and ", " or " ")
end
for word in table.concat(text):gmatch("%a+") do counts[word] = (counts[word] or 0) + 1 end
table.sort(words, function(a, b) return counts[a] ~= counts[b] and counts[a] > counts[b] or counts[a] == counts[b] and a < b end)
for _, word in ipairs(words) do io.write(word, "=", counts[word], " ") end
print()
local buffer = {}
for n = 1, 300 do buffer[#buffer + 1] = ("%d%s"):format(n, string.rep("=", n % 5)) end
local joined = table.concat(buffer, "\n")
local hash = 0
for at = 1, #joined do hash = (hash * 31 + joined:byte(at)) & 0xffffffff end
print(#joined, hash, select(2, joined:gsub("\n", "\n")), joined:sub(-8))
