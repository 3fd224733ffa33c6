// Package config reads the one configuration file of Shelfwire: strictly, so that nothing starts with half of what
// was meant. Every error says file, line and column, and how to mend it.
package config

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/shelfwire/shelfwire/schemas/route"
)

// Config is the whole file. Keys are in snake case; durations are written like 500ms, 5s, 10m.
type Config struct {
	Source     Source          `yaml:"source"`
	Kafka      Kafka           `yaml:"kafka"`
	State      State           `yaml:"state"`
	ClickHouse ClickHouse      `yaml:"clickhouse"`
	Shops      map[string]Shop `yaml:"shops"`
	// Documents is the SQL query that returns, for $1 = product ids as text[], the rows (product_id, shop,
	// document). Either it or DocumentsFile is set.
	Documents     string `yaml:"documents"`
	DocumentsFile string `yaml:"documents_file"`
	// Routes say how a row of each captured table leads to its product. Either they or RoutesFile are set.
	Routes     []route.Route `yaml:"routes"`
	RoutesFile string        `yaml:"routes_file"`
	// Unrouted are tables, as schema.table, that the documents query reads and that need no route, as nobody changes
	// them while Shelfwire runs: a list of countries. What does change in them reaches a shop only when something else
	// touches the product. Default: none, so that check and run name every such table.
	Unrouted []string `yaml:"unrouted"`
	// Mirror writes tables once more, into the topics that the Debezium connector would write. Default: off.
	Mirror  Mirror  `yaml:"mirror"`
	Push    Push    `yaml:"push"`
	Guard   Guard   `yaml:"guard"`
	Batches Batches `yaml:"batches"`
	Metrics Metrics `yaml:"metrics"`
	Log     Log     `yaml:"log"`

	files files
}

// Source is the database whose changes are captured.
type Source struct {
	// URL is a Postgres connection string. The role needs REPLICATION and SELECT on the routed tables.
	URL Secret `yaml:"url"`
	// Slot and Publication are created when they are missing and the role may. Default "shelfwire".
	Slot        string `yaml:"slot"`
	Publication string `yaml:"publication"`
	// MaxConnections bounds the connections beside the one for replication. Default 4.
	MaxConnections int `yaml:"max_connections"`
	// StatementTimeout bounds every query of ours on this database. Default 30s.
	StatementTimeout time.Duration `yaml:"statement_timeout"`
	// Heartbeat is how often an idle database is given a logical message, so that the slot moves. Default 10s.
	Heartbeat time.Duration `yaml:"heartbeat"`
	// SnapshotChunk is how many rows of a table one chunk of a snapshot reads. Default 2000.
	SnapshotChunk int `yaml:"snapshot_chunk"`
	// SnapshotReaders is how many chunks are read at a time, each by a connection of its own. Default 2.
	SnapshotReaders int `yaml:"snapshot_readers"`
	// SnapshotRate bounds the rows a second that all of them read together. One that no server reaches, such as
	// 1000000000, is no bound. Default 20000.
	SnapshotRate int `yaml:"snapshot_rate"`
	// SenderTimeout is after what silence the server frees the slot of a process that was stopped or cut off, so that
	// another takes over. Shorter takes over sooner and forgives shorter pauses. Default 4s.
	SenderTimeout time.Duration `yaml:"sender_timeout"`
	// SpillDir is where large transactions wait for their commit. Default: the system's directory for temporary files.
	SpillDir string `yaml:"spill_dir"`
	// SpillLimitMB bounds what they take there. Beyond it the server keeps them on its own disk. Default 10240; -1: they
	// always stay with the server.
	SpillLimitMB int `yaml:"spill_limit_mb"`
	// WALAlertMB is how much WAL the slot may hold back before the log says so. Where the server has a limit of its own
	// (max_slot_wal_keep_size), it also says so when less than a quarter of that is left. Default 1024.
	WALAlertMB int  `yaml:"wal_alert_mb"`
	Heal       Heal `yaml:"heal"`
}

// Heal says what happens when the stream cannot go on where it stood: the slot is lost, was read by somebody else, or
// the database was restored.
type Heal struct {
	// Off stops capture with the commands to run, instead of taking a whole snapshot at once.
	Off bool `yaml:"off"`
	// Most is how many gaps are healed within an hour; one more stops capture. Default 3; -1: no bound.
	Most int `yaml:"most"`
}

// Kafka is where the topics are.
type Kafka struct {
	Brokers []string `yaml:"brokers"`
	// Prefix is put before each topic's name. Default "catalog.".
	Prefix string `yaml:"prefix"`
	// Partitions of the topics that are keyed by product. They cannot be changed later. Default 8.
	Partitions int `yaml:"partitions"`
	// Replication is the replication factor of topics that are created. Default: the broker's own.
	Replication int `yaml:"replication"`
	// Compression of the topics: none, gzip, snappy, lz4 or zstd. Default snappy.
	Compression string `yaml:"compression"`
	// Username and Password select SASL SCRAM-SHA-512. TLS encrypts the connection.
	Username string `yaml:"username"`
	Password Secret `yaml:"password"`
	TLS      bool   `yaml:"tls"`
}

// State is the database of Shelfwire's own.
type State struct {
	// URL is a Postgres connection string of a database that only Shelfwire uses: not the source database, so that
	// its rows are not decoded for the slot.
	URL Secret `yaml:"url"`
	// MaxConnections of each process, beside two for renewals of leases and one for the relay. Default 8.
	MaxConnections int `yaml:"max_connections"`
	// Keep is how long batches and campaigns can be looked at after they ended; what was sent for their items, for a
	// quarter of it. ClickHouse keeps outcomes for longer. Less keeps the state small. Default 720h (30 days).
	Keep time.Duration `yaml:"keep"`
}

// ClickHouse is where outcomes are kept for analysis. Without a URL nothing is loaded.
type ClickHouse struct {
	// URL has the form clickhouse://user:password@host:9000/database.
	URL Secret `yaml:"url"`
	// RetentionDays is how long rows are kept. Default 400.
	RetentionDays int `yaml:"retention_days"`
}

// Shop is one Shopify shop.
type Shop struct {
	// URL is the shop's address: https://example.myshopify.com.
	URL string `yaml:"url"`
	// Token is the Admin API access token.
	Token Secret `yaml:"token"`
	// Timeout bounds one request. Default 15s; at most half of push.lease.
	Timeout time.Duration `yaml:"timeout"`
}

// Push says how changes are gathered and sent.
type Push struct {
	// Quiet is how long a product must have been left alone before it is pushed. Default 500ms.
	Quiet time.Duration `yaml:"quiet"`
	// MaxWait bounds the wait of a product that is never left alone. Default 5s.
	MaxWait time.Duration `yaml:"max_wait"`
	// Content is Quiet and MaxWait for tables whose routes say lane: content. Default: the same.
	Content Wait `yaml:"content"`
	// Lease is how long a killed worker's products stay its own. Default 30s.
	Lease time.Duration `yaml:"lease"`
	// Drain is how long a stop waits for answers that are on their way. What it does not await is found again by its
	// intents. Default 20s.
	Drain time.Duration `yaml:"drain"`
	// StaleWait is how long a stock level waits when the shop's "available" is not what was left there, so that the
	// shop's own sales can reach the database first. Default 60s.
	StaleWait time.Duration `yaml:"stale_wait"`
}

// Wait says how long changes are gathered.
type Wait struct {
	Quiet   time.Duration `yaml:"quiet"`
	MaxWait time.Duration `yaml:"max_wait"`
}

// Guard holds pushes that would take too much off sale at once.
type Guard struct {
	// Share of a shop's products that may go off sale, or get the price 0, within Window. Default 0.2.
	Share float64 `yaml:"share"`
	// Floor is a number of products below which nothing is ever held. Default 50.
	Floor  int           `yaml:"floor"`
	Window time.Duration `yaml:"window"` // default 10m
}

// Batches says which transactions count as an upload run.
type Batches struct {
	Products int `yaml:"products"` // default 50
	Rows     int `yaml:"rows"`     // default 1000
}

// Metrics serves /metrics, /healthz, /readyz and /debug/pprof.
type Metrics struct {
	// Listen is host:port. Default 127.0.0.1:9464; "off" serves nothing.
	Listen string `yaml:"listen"`
}

// Log says what is logged.
type Log struct {
	Level  string `yaml:"level"`  // debug, info (default), warn, error
	Format string `yaml:"format"` // json (default) or text
}

// Error is a mistake in the configuration, at its place.
type Error struct {
	File         string
	Line, Column int // 0 where the whole file is meant
	Problem      string
	Mend         string
}

func (e *Error) Error() string {
	at := e.File
	if e.Line > 0 {
		at = fmt.Sprintf("%s:%d:%d", e.File, e.Line, e.Column)
	}
	return fmt.Sprintf("%s: %s; %s", at, e.Problem, e.Mend)
}

// Load reads and checks a file. getenv resolves ${NAME} in values; paths in the file are relative to it.
func Load(file string, getenv func(string) (string, bool)) (*Config, error) {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &Error{File: file, Problem: "there is no such file", Mend: "name one with -c, or let shelfwire init write one to start from"}
	}
	if err != nil {
		return nil, &Error{File: file, Problem: reason(err), Mend: "name a file that can be read with -c"}
	}
	c := &Config{}
	d := &decoder{file: file, dir: filepath.Dir(file), getenv: getenv}
	c.files.main = d
	if err := d.decode(raw, c); err != nil {
		return nil, err
	}
	if err := c.readFiles(d, getenv); err != nil {
		return nil, err
	}
	c.defaults()
	return c, c.check(d)
}

// reason is what the system says about a file, without its name.
func reason(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err.Error()
	}
	return err.Error()
}

// Complete fills defaults into a configuration that was made in code, and checks it as Load does.
func (c *Config) Complete() error {
	c.defaults()
	return c.check(c.decoderOf(""))
}

// readFiles reads what stands in files of its own.
func (c *Config) readFiles(d *decoder, getenv func(string) (string, bool)) error {
	if c.DocumentsFile != "" {
		if c.Documents != "" {
			return d.at("documents_file", "documents and documents_file are both set", "keep one of them")
		}
		b, err := os.ReadFile(d.path(c.DocumentsFile))
		if err != nil {
			return d.at("documents_file", d.path(c.DocumentsFile)+": "+reason(err), "name a file with the documents query")
		}
		c.Documents, c.files.documents = string(b), d.path(c.DocumentsFile)
	}
	if c.RoutesFile == "" {
		return nil
	}
	if len(c.Routes) > 0 {
		return d.at("routes_file", "routes and routes_file are both set", "keep one of them")
	}
	b, err := os.ReadFile(d.path(c.RoutesFile))
	if err != nil {
		return d.at("routes_file", d.path(c.RoutesFile)+": "+reason(err), "name a file that holds routes")
	}
	var f struct {
		Routes []route.Route `yaml:"routes"`
	}
	sub := &decoder{file: d.path(c.RoutesFile), dir: d.dir, getenv: getenv}
	c.files.routes = sub
	if err := sub.decode(b, &f); err != nil {
		return err
	}
	c.Routes = f.Routes
	return nil
}

func (c *Config) defaults() {
	str := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	num := func(n *int, v int) {
		if *n == 0 {
			*n = v
		}
	}
	dur := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	str(&c.Source.Slot, "shelfwire")
	str(&c.Source.Publication, "shelfwire")
	num(&c.Source.MaxConnections, 4)
	dur(&c.Source.StatementTimeout, 30*time.Second)
	dur(&c.Source.Heartbeat, 10*time.Second)
	num(&c.Source.SnapshotChunk, 2000)
	num(&c.Source.SnapshotReaders, 2)
	num(&c.Source.SnapshotRate, 20_000)
	dur(&c.Source.SenderTimeout, 4*time.Second)
	num(&c.Source.SpillLimitMB, 10<<10)
	num(&c.Source.WALAlertMB, 1<<10)
	num(&c.Source.Heal.Most, 3)
	str(&c.Kafka.Prefix, "catalog.")
	num(&c.Kafka.Partitions, 8)
	str(&c.Kafka.Compression, "snappy")
	str(&c.Mirror.Prefix, strings.TrimRight(c.Kafka.Prefix, "._-"))
	num(&c.State.MaxConnections, 8)
	dur(&c.State.Keep, 30*24*time.Hour)
	num(&c.ClickHouse.RetentionDays, 400)
	for name, s := range c.Shops {
		dur(&s.Timeout, 15*time.Second)
		c.Shops[name] = s
	}
	dur(&c.Push.Quiet, 500*time.Millisecond)
	dur(&c.Push.MaxWait, 5*time.Second)
	dur(&c.Push.Content.Quiet, c.Push.Quiet)
	dur(&c.Push.Content.MaxWait, max(c.Push.MaxWait, c.Push.Content.Quiet))
	dur(&c.Push.Lease, 30*time.Second)
	dur(&c.Push.Drain, 20*time.Second)
	dur(&c.Push.StaleWait, time.Minute)
	if c.Guard.Share == 0 {
		c.Guard.Share = 0.2
	}
	num(&c.Guard.Floor, 50)
	dur(&c.Guard.Window, 10*time.Minute)
	num(&c.Batches.Products, 50)
	num(&c.Batches.Rows, 1000)
	str(&c.Metrics.Listen, "127.0.0.1:9464")
	str(&c.Log.Level, "info")
	str(&c.Log.Format, "json")
}

var slotName = regexp.MustCompile(`^[a-z0-9_]{1,63}$`)

// check refuses what is complete in form and wrong in substance.
func (c *Config) check(d *decoder) error {
	switch {
	case c.Source.URL == "":
		return d.at("source", "source.url is missing", "set it to the Postgres connection string of your database")
	case !slotName.MatchString(c.Source.Slot):
		return d.at("source.slot", fmt.Sprintf("%q is no slot name", c.Source.Slot), "use lower-case letters, digits and _")
	case c.Source.SenderTimeout < time.Second:
		return d.at("source.sender_timeout", "a reader that pauses for less than a second would lose the slot", "use 4s")
	case len(c.Kafka.Brokers) == 0:
		return d.at("kafka", "kafka.brokers is missing", "list at least one host:port")
	case !slices.Contains([]string{"none", "gzip", "snappy", "lz4", "zstd"}, c.Kafka.Compression):
		return d.at("kafka.compression", fmt.Sprintf("%q is no compression", c.Kafka.Compression), "use none, gzip, snappy, lz4 or zstd")
	case c.State.URL == "":
		return d.at("state", "state.url is missing", "set it to a database that only Shelfwire uses")
	case c.State.URL == c.Source.URL:
		return d.at("state.url", "the state is in the source database", "use a database of its own, so that its rows are not decoded for the slot")
	case c.State.Keep < time.Hour:
		return d.at("state.keep", "batches would be gone before anybody has looked at them", "use 720h")
	case strings.TrimSpace(c.Documents) == "":
		return d.at("documents", "there is no documents query", "set documents or documents_file")
	case len(c.Routes) == 0:
		return d.at("routes", "there are no routes", "declare for each table how a row leads to its product")
	case len(c.Shops) == 0:
		return d.at("shops", "there are no shops", "name at least one shop with url and token")
	case c.Push.MaxWait < c.Push.Quiet:
		return d.at("push.max_wait", "max_wait is shorter than quiet", "make it at least as long")
	case c.Push.Content.MaxWait < c.Push.Content.Quiet:
		return d.at("push.content.max_wait", "max_wait is shorter than quiet", "make it at least as long")
	case c.Push.Lease < 2*time.Second:
		return d.at("push.lease", "a lease under 2s is lost at the first pause", "use 30s")
	case c.Guard.Share < 0 || c.Guard.Share > 1:
		return d.at("guard.share", fmt.Sprintf("%g is no share", c.Guard.Share), "use a number from 0 to 1, such as 0.2")
	case !slices.Contains([]string{"debug", "info", "warn", "error"}, c.Log.Level):
		return d.at("log.level", fmt.Sprintf("%q is no level", c.Log.Level), "use debug, info, warn or error")
	case !slices.Contains([]string{"json", "text"}, c.Log.Format):
		return d.at("log.format", fmt.Sprintf("%q is no format", c.Log.Format), "use json or text")
	}
	if err := c.checkShops(d); err != nil {
		return err
	}
	if err := c.checkRoutes(); err != nil {
		return err
	}
	if err := c.checkMirror(d); err != nil {
		return err
	}
	return c.checkUnrouted(d)
}

func (c *Config) checkShops(d *decoder) error {
	for name, s := range c.Shops {
		at := "shops." + name
		u, err := url.Parse(s.URL)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
			return d.at(at, fmt.Sprintf("shop %s has the url %q", name, s.URL), "use https://NAME.myshopify.com")
		case s.Token == "":
			return d.at(at, fmt.Sprintf("shop %s has no token", name), "set token: ${NAME_OF_AN_ENVIRONMENT_VARIABLE} or token: {file: PATH}")
		case s.Timeout > c.Push.Lease/2: // a lease is renewed every twentieth of it, and must outlast a request then
			return d.at(at+".timeout", fmt.Sprintf("a request of %s is longer than half the lease of %s", s.Timeout, c.Push.Lease), "shorten timeout or lengthen push.lease")
		}
	}
	return nil
}

var tableName = regexp.MustCompile(`^[^.]+\.[^.]+$`)

func (c *Config) checkRoutes() error {
	seen := map[string]bool{}
	for i, r := range c.Routes {
		at := fmt.Sprintf("routes.%d", i)
		n := 0
		for _, set := range []bool{r.Key != "", r.Parent != nil, r.Query != ""} {
			if set {
				n++
			}
		}
		switch {
		case !tableName.MatchString(r.Table):
			return c.At(at+".table", fmt.Sprintf("%q is no table of a route", r.Table), "write schema.table")
		case seen[r.Table]:
			return c.At(at+".table", r.Table+" has two routes", "keep one")
		case n != 1:
			return c.At(at, fmt.Sprintf("the route of %s has %d of key, parent and query", r.Table, n), "set exactly one: the column of the product id, a parent row, or a query that lists product ids")
		case r.Parent != nil && (r.Parent.Column == "" || r.Parent.Table == "" || r.Parent.ID == "" || r.Parent.Key == ""):
			return c.At(at, "the parent of "+r.Table+" is not complete", "set column, table, id and key")
		case r.Lane != "" && r.Lane != route.LaneContent:
			return c.At(at+".lane", fmt.Sprintf("%q is no lane of a route", r.Lane), "write content, or leave it out for prices and stock")
		case r.Lane != "" && r.Query != "":
			return c.At(at+".lane", "rows of "+r.Table+" concern many products, which go in the lane of campaigns", "leave lane out")
		}
		seen[r.Table] = true
	}
	return nil
}

// checkUnrouted refuses an exception that says nothing, or the opposite of a route.
func (c *Config) checkUnrouted(d *decoder) error {
	for i, t := range c.Unrouted {
		at := fmt.Sprintf("unrouted.%d", i)
		switch {
		case !tableName.MatchString(t):
			return d.at(at, fmt.Sprintf("%q is no table", t), "write schema.table")
		case slices.Contains(c.Tables(), t):
			return d.at(at, t+" has a route as well", "take it out of unrouted, or remove its route")
		case slices.Contains(c.Unrouted[:i], t):
			return d.at(at, t+" stands twice", "keep one")
		}
	}
	return nil
}

// Tables lists the captured tables in the order of their routes.
func (c *Config) Tables() []string {
	out := make([]string, len(c.Routes))
	for i, r := range c.Routes {
		out[i] = r.Table
	}
	return out
}
