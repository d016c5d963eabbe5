-- Inserts, updates, joins, transactions, triggers, views, windows, JSON, dates, blobs, VACUUM: everything it writes is decided here.
PRAGMA page_size = 1024;
PRAGMA cache_size = 50;
PRAGMA journal_mode = DELETE;
CREATE TABLE customer(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, city TEXT, balance REAL DEFAULT 0.0);
CREATE TABLE purchase(id INTEGER PRIMARY KEY AUTOINCREMENT, customer INT REFERENCES customer, day TEXT, amount REAL CHECK(amount > 0), note BLOB);
CREATE INDEX purchase_customer ON purchase(customer, day);
CREATE TABLE log(what TEXT, n INT);
CREATE TRIGGER spent AFTER INSERT ON purchase BEGIN
  UPDATE customer SET balance = balance - new.amount WHERE id = new.customer;
END;
CREATE TRIGGER removed AFTER DELETE ON purchase BEGIN INSERT INTO log VALUES ('removed', old.id); END;

BEGIN;
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500)
INSERT INTO customer(id, name, city)
SELECT i, printf('name %04d', i * 7919 % 1000), char(65 + i % 5) || substr('alpha beta gamma delta', 1 + i % 17, 5) FROM n;
WITH RECURSIVE n(i, seed) AS (SELECT 1, 12345 UNION ALL SELECT i + 1, (seed * 1103515245 + 12345) % 2147483648 FROM n WHERE i < 8000)
INSERT INTO purchase(customer, day, amount, note)
SELECT 1 + seed % 500, date('2020-01-01', (seed / 500 % 1000) || ' days'), 1 + seed % 9973 / 7.0, CASE WHEN i % 10 = 0 THEN zeroblob(i % 700) ELSE hex(seed) END
FROM n;
COMMIT;

SELECT count(*), round(sum(amount), 6), min(day), max(day), sum(length(note)) FROM purchase;
SELECT city, count(*), round(avg(balance), 6) FROM customer GROUP BY city ORDER BY 2 DESC, 1 LIMIT 7;
SELECT c.name, count(p.id) AS times, printf('%.4f', sum(p.amount)) FROM customer c LEFT JOIN purchase p ON p.customer = c.id
GROUP BY c.id HAVING times > 20 ORDER BY sum(p.amount) DESC LIMIT 5;
EXPLAIN QUERY PLAN SELECT * FROM purchase WHERE customer = 3 AND day > '2021';

BEGIN;
DELETE FROM purchase WHERE id % 3 = 0;
SAVEPOINT inner_one;
UPDATE purchase SET amount = amount * 2 WHERE customer IN (SELECT id FROM customer WHERE city LIKE 'A%');
SELECT changes(), (SELECT count(*) FROM log);
ROLLBACK TO inner_one;
UPDATE purchase SET note = upper(note) || '-' || id WHERE id BETWEEN 100 AND 200;
RELEASE inner_one;
SELECT count(*), round(sum(amount), 6) FROM purchase;
ROLLBACK;
SELECT count(*), (SELECT count(*) FROM log) FROM purchase;

BEGIN;
DELETE FROM purchase WHERE id % 4 = 1;
COMMIT;
SELECT count(*), total(n) FROM log;
INSERT INTO customer(id, name) VALUES (501, 'name 0001');
INSERT OR IGNORE INTO customer(id, name) VALUES (501, 'name 0001');
INSERT INTO customer(id, name, balance) VALUES (1, 'other', 5) ON CONFLICT(id) DO UPDATE SET balance = balance + excluded.balance;
INSERT INTO purchase(customer, amount) VALUES (1, -5);
SELECT changes(), total_changes() > 10000;

SELECT day, sum(amount) OVER w, row_number() OVER w, lag(id, 2, -1) OVER w, printf('%.3f', avg(amount) OVER (ORDER BY day, id ROWS 3 PRECEDING))
FROM purchase WHERE customer = 77 WINDOW w AS (PARTITION BY substr(day, 1, 4) ORDER BY day, id) ORDER BY day, id LIMIT 6;
CREATE VIEW yearly AS SELECT substr(day, 1, 4) AS year, sum(amount) AS spent, group_concat(DISTINCT customer % 5) AS kinds FROM (SELECT * FROM purchase ORDER BY id) GROUP BY 1;
SELECT year, round(spent, 5), length(kinds) FROM yearly;
SELECT json_extract('{"a":[1,2,{"b":"c"}],"d":1.5e3}', '$.a[2].b', '$.d'), json_group_array(id) FROM (SELECT id FROM customer ORDER BY name LIMIT 4);
SELECT key, value, type FROM json_each('{"x":null,"y":[true,false],"z":"\u00e9"}');
SELECT date('2024-02-29', '+1 year'), strftime('%J %W %s', '2001-09-09 01:46:40'), julianday('2000-01-01'), time(3661, 'unixepoch');
SELECT 9223372036854775807 + 1, 7 / 2, -7 % 3, 1e308 * 10, 0.1 + 0.2, CAST('12abc' AS INT), typeof(1 / 2.0), abs(-9.5), round(2.5), 5 << 3, ~5;
SELECT upper('straße'), instr('hello', 'll'), replace('aXbX', 'X', '--'), trim('  x '), quote(x'00ff'), unicode('€'), hex('äö'), 'ABC' LIKE 'a_c', 'abc' GLOB 'a*';
SELECT sqrt(2), pow(2, 0.5), sin(1), ln(10), 3.14159265358979, 1.0 / 3, 123456789.125, 1e-7, 100.0;
WITH RECURSIVE queen(row, placed) AS (
  SELECT 0, '' UNION ALL
  SELECT row + 1, placed || c.value FROM queen, json_each('[0,1,2,3,4,5]') AS c
  WHERE row < 6 AND NOT EXISTS (
    SELECT 1 FROM json_each('[0,1,2,3,4,5]') AS r WHERE r.value < row
    AND (CAST(substr(placed, r.value + 1, 1) AS INT) = c.value OR abs(substr(placed, r.value + 1, 1) - c.value) = row - r.value)))
SELECT placed FROM queen WHERE row = 6 ORDER BY 1;

CREATE TABLE wide AS SELECT a.id AS x, b.id AS y, a.id * b.id AS product FROM customer a JOIN customer b ON b.id <= 20 WHERE a.id <= 100;
CREATE UNIQUE INDEX wide_place ON wide(y, x);
ALTER TABLE wide ADD COLUMN extra TEXT DEFAULT 'none';
UPDATE wide SET extra = product || ' ' || x WHERE product % 7 = 0;
SELECT count(*), sum(product), count(DISTINCT extra) FROM wide WHERE y > 3 AND x BETWEEN 10 AND 90;
SELECT max(product) FROM wide GROUP BY x % 10 EXCEPT SELECT 200 UNION SELECT -1 ORDER BY 1 DESC LIMIT 4;
PRAGMA integrity_check;
DROP TABLE log;
DELETE FROM wide WHERE x > 50;
VACUUM;
ANALYZE;
PRAGMA page_size;
PRAGMA integrity_check;
SELECT count(*) FROM sqlite_schema;
SELECT count(*), sum(product), max(extra) FROM wide;
