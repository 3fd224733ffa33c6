package postgres_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/connectors/postgres"
	"github.com/shelfwire/shelfwire/schemas/change"
)

// schemaChanges are what may happen to tables in the middle of the stream, each with rows before and behind it. want are
// parts of the records in order.
var schemaChanges = []struct {
	name, sql string
	want      []string
}{
	{
		"a column is added", `INSERT INTO a VALUES (1, 'x'); ALTER TABLE a ADD n int DEFAULT 7; UPDATE a SET s = 'y'; INSERT INTO a VALUES (2, 'z', NULL)`,
		[]string{`"after":{"id":1,"s":"x"}`, `"after":{"id":1,"s":"y","n":7}`, `"after":{"id":2,"s":"z","n":null}`},
	},
	{
		"within a transaction", `BEGIN; INSERT INTO a VALUES (3, 'x', 1); ALTER TABLE a ADD m int; UPDATE a SET m = 4 WHERE id = 3; SAVEPOINT s; ALTER TABLE a DROP n; INSERT INTO a VALUES (4, 'gone'); ROLLBACK TO s; UPDATE a SET n = 5 WHERE id = 3; COMMIT`,
		[]string{`{"id":3,"s":"x","n":1}`, `{"id":3,"s":"x","n":1,"m":4}`, `{"id":3,"s":"x","n":5,"m":4}`},
	},
	{"a column is dropped", `ALTER TABLE a DROP m, DROP n; UPDATE a SET s = 'd' WHERE id = 3`, []string{`"after":{"id":3,"s":"d"}`}},
	{"a column is renamed", `ALTER TABLE a RENAME s TO t; UPDATE a SET t = 'r' WHERE id = 3`, []string{`"after":{"id":3,"t":"r"}`}},
	{"the key is renamed", `ALTER TABLE a RENAME id TO nr; UPDATE a SET t = 'k' WHERE nr = 3; ALTER TABLE a RENAME nr TO id`, []string{`{"nr":3} `}},
	{
		"a type is changed", `ALTER TABLE a ALTER id TYPE text; INSERT INTO a VALUES ('six', 'x'); DELETE FROM a WHERE id = 'six'`,
		[]string{`{"id":"six"} `, `{"id":"six"} `},
	},
	{
		"the key is another one", `ALTER TABLE a DROP CONSTRAINT a_pkey, ADD u int; TRUNCATE a; ALTER TABLE a ADD PRIMARY KEY (u, id); INSERT INTO a VALUES ('b', 'x', 1)`,
		[]string{`"op":"t"`, `{"u":1,"id":"b"} `},
	},
	{"a table is renamed", `ALTER TABLE a RENAME TO z; INSERT INTO z VALUES ('c', 'x', 2); ALTER TABLE z RENAME TO a`, []string{`"table":"z"`}},
	{
		"the replica identity is changed", `ALTER TABLE a REPLICA IDENTITY FULL; UPDATE a SET t = 'full'; ALTER TABLE a REPLICA IDENTITY DEFAULT; UPDATE a SET t = 'default'`,
		[]string{`"before":{"id":"b","t":"x","u":1}`, `"before":{"id":"c","t":"x","u":2}`, `"before":null`, `"before":null`},
	},
	{
		"an index is the replica identity", `ALTER TABLE a ALTER t SET NOT NULL; CREATE UNIQUE INDEX a_t ON a (t, id); ALTER TABLE a REPLICA IDENTITY USING INDEX a_t; UPDATE a SET t = 'i' WHERE id = 'b'; ALTER TABLE a REPLICA IDENTITY DEFAULT`,
		[]string{`"before":{"id":"b","t":"default"}`},
	},
	{
		"the publication is changed", `ALTER PUBLICATION shelfwire DROP TABLE b; INSERT INTO b VALUES (1); ALTER PUBLICATION shelfwire ADD TABLE b; INSERT INTO b VALUES (2)`,
		[]string{`"after":{"id":2}`},
	},
	{
		"a column list and a row filter", `ALTER PUBLICATION shelfwire DROP TABLE b; ALTER PUBLICATION shelfwire ADD TABLE b WHERE (id > 10); INSERT INTO b VALUES (3), (11); UPDATE b SET id = 4 WHERE id = 11`,
		[]string{`"after":{"id":11}`, `"op":"d"`},
	},
	{
		"a partition is attached", `INSERT INTO p VALUES (1, 'eu'); CREATE TABLE p_us (region text NOT NULL, id int NOT NULL); INSERT INTO p_us VALUES ('us', 2); ALTER TABLE p ATTACH PARTITION p_us FOR VALUES IN ('us'); INSERT INTO p VALUES (3, 'us'); UPDATE p SET region = 'eu' WHERE id = 3; ALTER TABLE p DETACH PARTITION p_us; INSERT INTO p_us VALUES ('us', 4)`,
		[]string{`{"region":"eu","id":1} `, `{"region":"us","id":3} `, `"op":"d"`, `{"region":"eu","id":3} `},
	},
	{"TRUNCATE", `TRUNCATE a, b; INSERT INTO a VALUES ('e', 'x', 3)`, []string{`"op":"t"`, `"op":"t"`, `"op":"c"`}},
	{
		"an unchanged TOASTed value", `INSERT INTO w VALUES (1, 1, repeat('0123456789', 900)); UPDATE w SET n = 2; ALTER TABLE w REPLICA IDENTITY FULL; UPDATE w SET n = 3; ALTER TABLE w REPLICA IDENTITY DEFAULT; UPDATE w SET id = 5`,
		[]string{`"big":"0123`, `"n":2,"big":"__debezium_unavailable_value"`, `"n":3,"big":"0123`, `"n":3,"big":"__debezium_unavailable_value"`},
	},
	{"a table is dropped", `INSERT INTO g VALUES (1); DROP TABLE g`, []string{`{"id":1} `}},
	{"a table of its name is made", `CREATE TABLE g (id text PRIMARY KEY); ALTER PUBLICATION shelfwire ADD TABLE g; INSERT INTO g VALUES ('one')`, []string{`{"id":"one"} `}},
}

// records reads up to now: the key and the envelope of each change, without what differs between two readers.
func (d *database) records(st *postgres.Stream) (list []string) {
	d.t.Helper()
	d.each(st, func(c *change.Change) {
		image := c.After
		if image == nil {
			image = c.Before
		}
		key, _ := change.AppendKey(nil, c.Relation, image)
		mirror, _ := change.AppendMessageKey(nil, c.Relation, image)
		list = append(list, fmt.Sprintf("%s %s %s %s", key, mirror, c.Position, change.AppendEnvelope(nil, c, &change.Envelope{})))
	})
	return list
}

// Whoever reads each change as it happens and whoever reads all of them when everything has happened get the same records,
// by the catalog as it was when the WAL was written.
func TestSchemaChangesAreTheSameReadLater(t *testing.T) {
	d := newDatabase(t, `CREATE TABLE a (id int PRIMARY KEY, s text); CREATE TABLE b (id int PRIMARY KEY); CREATE TABLE g (id int PRIMARY KEY)`,
		`CREATE TABLE p (id int, region text, PRIMARY KEY (region, id)) PARTITION BY LIST (region); CREATE TABLE p_eu PARTITION OF p FOR VALUES IN ('eu')`,
		`CREATE TABLE w (id int PRIMARY KEY, n int, big text); ALTER TABLE w ALTER big SET STORAGE external`)
	now, later := d.both("public.a", "public.b", "public.g", "public.p", "public.w")
	st := stream(t, now, 0)
	var live []string
	reads := 0
	read := func() {
		reads++
		live = append(live, d.records(st)...)
	}
	for _, c := range schemaChanges {
		for part := range strings.SplitSeq(c.sql, "; ") {
			d.exec(part)
			if !strings.HasPrefix(c.sql, "BEGIN") {
				read() // before the next statement changes the catalog
			}
		}
		read()
	}
	t.Run("live", func(t *testing.T) {
		rest := live
		for _, c := range schemaChanges {
			require.GreaterOrEqual(t, len(rest), len(c.want), c.name)
			for i, want := range c.want {
				require.Contains(t, rest[i], want, "%s: %d", c.name, i)
			}
			rest = rest[len(c.want):]
		}
		require.Empty(t, rest)
	})
	st = stream(t, later, 0)
	var caught []string
	for range reads { // each ended with a mark
		caught = append(caught, d.records(st)...)
	}
	for i := range min(len(live), len(caught)) {
		require.Equal(t, live[i], caught[i], i)
	}
	require.Len(t, caught, len(live))
}
