package torture

import (
	"context"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
	"github.com/shelfwire/shelfwire/deploy/embedded/postgres"
)

// sourceServer is the Postgres of one trial after the other. Trials kill it and put others in its place.
type sourceServer struct {
	t   *testing.T // of the trial that runs
	all *testing.T // of all of them: it keeps the directories
	dir string
	// port stays the same from start to start; 0: any.
	port int

	mu     sync.Mutex
	server *postgres.Server
}

func newSourceServer(t *testing.T) *sourceServer {
	t.Helper()
	s := &sourceServer{t: t, all: t, dir: embeddedtest.Dir(t)}
	s.start(nil)
	t.Cleanup(func() { _ = s.now().Stop() })
	return s
}

func (s *sourceServer) start(params map[string]string) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*time.Minute)
	defer cancel()
	server, err := embeddedtest.StartPostgres(ctx, postgres.Config{Dir: s.dir, Port: s.port, Params: params})
	require.NoError(s.t, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.server = server
}

// now is the server as it runs, or has run last.
func (s *sourceServer) now() *postgres.Server {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.server
}

func (s *sourceServer) url(database string) string { return s.now().URL(database) }

func (s *sourceServer) addr() string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.now().Port()))
}

// revive starts the server again where a trial has failed while it was down.
func (s *sourceServer) revive() {
	s.t.Helper()
	select {
	case <-s.now().Done():
		s.start(nil)
	default:
	}
}

// drop removes a database with its slots, once nobody reads from them any more.
func (s *sourceServer) drop(database string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.url("postgres"))
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(ctx) }()
	for left := 1; left > 0; rest(ctx, 10*time.Millisecond) {
		_, _ = conn.Exec(ctx, `SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1 AND NOT active`, database)
		if err := conn.QueryRow(ctx, `SELECT count(*) FROM pg_replication_slots WHERE database = $1`, database).Scan(&left); err != nil {
			return err
		}
	}
	_, err = conn.Exec(ctx, `DROP DATABASE IF EXISTS `+database+` WITH (FORCE)`)
	return err
}

// copy copies the files of the server, which must not run.
func (s *sourceServer) copy() *sourceServer {
	s.t.Helper()
	to := embeddedtest.Dir(s.all)
	out, err := exec.Command("cp", "-a", s.dir+"/.", to).CombinedOutput() //nolint:noctx // ends by itself
	require.NoError(s.t, err, string(out))
	return &sourceServer{t: s.t, all: s.all, dir: to}
}

// standBy starts a copy as a standby of primary. slots says whether those of the copy stay.
func (s *sourceServer) standBy(primary *sourceServer, slots bool) {
	s.t.Helper()
	script := `touch "$1/standby.signal" && chown --reference="$1/PG_VERSION" "$1/standby.signal"`
	if !slots {
		script += ` && rm -rf "$1"/pg_replslot/*`
	}
	out, err := exec.Command("sh", "-c", script, "sh", filepath.Join(s.dir, "pgdata")).CombinedOutput() //nolint:noctx // ends by itself
	require.NoError(s.t, err, string(out))
	s.start(map[string]string{"primary_conninfo": strings.ReplaceAll(primary.url(""), "/?", "?")})
}

// replace has another server take the place of this one, which has ended.
func (s *sourceServer) replace(other *sourceServer) {
	_ = os.RemoveAll(s.dir) // the copies of a long run would fill the disk
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dir, s.server = other.dir, other.now()
}

// exec runs a statement on a connection of its own. It waits for a server that is on its way.
func (s *sourceServer) exec(database, sql string, args ...any) {
	s.t.Helper()
	s.with(database, func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, sql, args...)
		return err
	})
}

func (s *sourceServer) with(database string, f func(context.Context, *pgx.Conn) error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, s.url(database))
	require.NoError(s.t, err)
	defer func() { _ = conn.Close(ctx) }()
	require.NoError(s.t, f(ctx, conn))
}

// broker is a Kafka of three nodes in memory, whose connections can be cut.
type broker struct {
	cluster *kfake.Cluster
	addrs   []string

	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

func newBroker(t *testing.T) *broker {
	t.Helper()
	b := &broker{conns: map[net.Conn]struct{}{}}
	var err error
	b.cluster, err = kfake.NewCluster(kfake.NumBrokers(3), kfake.ListenFn(func(network, address string) (net.Listener, error) {
		l, err := (&net.ListenConfig{}).Listen(context.Background(), network, address)
		return brokerListener{l, b}, err
	}))
	require.NoError(t, err)
	t.Cleanup(b.cluster.Close)
	b.addrs = b.cluster.ListenAddrs()
	return b
}

type brokerListener struct {
	net.Listener
	b *broker
}

func (l brokerListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.b.mu.Lock()
		l.b.conns[c] = struct{}{}
		l.b.mu.Unlock()
	}
	return c, err
}

// cut ends all connections: what was asked for may have been done, and its answer is lost.
func (b *broker) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for c := range b.conns {
		_ = c.Close()
	}
	clear(b.conns)
}

// brokerErrors are answers that a broker gives now and then. Those of a time out come after the deed.
var brokerErrors = []kfake.Fault{
	{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.RequestTimedOut},
	{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicasAfterAppend},
	{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotLeaderForPartition},
	{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas},
	{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.KafkaStorageError},
	{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.UnknownTopicOrPartition},
	{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.CoordinatorNotAvailable},
	{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.NotCoordinator},
	{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.ConcurrentTransactions},
	{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.UnknownServerError},
	{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.CoordinatorLoadInProgress},
	{Keys: []kmsg.Key{kmsg.InitProducerID}, Err: kerr.ConcurrentTransactions},
	{Keys: []kmsg.Key{kmsg.AddPartitionsToTxn}, Err: kerr.ConcurrentTransactions},
	{Keys: []kmsg.Key{kmsg.FindCoordinator}, Err: kerr.CoordinatorNotAvailable},
	{Keys: []kmsg.Key{kmsg.Fetch}, Err: kerr.NotLeaderForPartition},
	{Keys: []kmsg.Key{kmsg.ListOffsets}, Err: kerr.LeaderNotAvailable},
}

// trouble makes the broker err for a while.
func (b *broker) trouble(rng *rand.Rand) (end func()) {
	var faults []kfake.Fault
	for range 1 + rng.IntN(4) {
		f := brokerErrors[rng.IntN(len(brokerErrors))]
		f.Count = 1 + rng.IntN(3)
		faults = append(faults, f)
	}
	switch rng.IntN(4) {
	case 0:
		b.cluster.ShufflePartitionLeaders()
	case 1:
		b.cluster.RehashCoordinators()
	case 2:
		b.cut()
	}
	return b.cluster.Fault(faults...).Remove
}
