package postgres

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/stretchr/testify/require"

	"github.com/shelfwire/shelfwire/deploy/embedded/embeddedtest"
)

// slowConn takes its time over some writes, as a process does that is not given the processor.
type slowConn struct {
	net.Conn
	slow atomic.Int32 // writes that are still slow
}

func (c *slowConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if c.slow.Add(-1) >= 0 {
		<-time.After(60 * time.Millisecond) // the driver's patience is 15 ms
	}
	return n, err
}

// A driver that was slow to write reads in the background, and would keep the first answer to itself.
func TestTakeOverLeavesNoReadBehind(t *testing.T) {
	cfg, err := pgconn.ParseConfig(embeddedtest.NewDatabase(t, embeddedtest.Postgres(t)))
	require.NoError(t, err)
	cfg.RuntimeParams["replication"] = "database"
	var conn *slowConn
	cfg.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, addr)
		conn = &slowConn{Conn: c}
		return conn, err
	}
	for slow := range int32(3) { // none, the last one before, and also takeOver's own
		pg, err := pgconn.ConnectConfig(t.Context(), cfg)
		require.NoError(t, err)
		conn.slow.Store(slow)
		require.NoError(t, pg.Exec(t.Context(), "SELECT 1").Close())
		raw, err := takeOver(t.Context(), pg)
		require.NoError(t, err)
		w := newWire(raw, 1<<10, 0)
		require.NoError(t, w.send('Q', []byte("IDENTIFY_SYSTEM\x00")))
		require.NoError(t, w.fill(time.Now().Add(20*time.Second)), "%d slow writes: the driver has read the answer", slow)
		typ, _, err := w.next()
		require.NoError(t, err)
		require.Equal(t, byte('T'), typ, "RowDescription")
		require.NoError(t, raw.Close())
	}
}
