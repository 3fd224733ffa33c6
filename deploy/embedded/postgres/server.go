// Package postgres runs a private, real PostgreSQL server with
// wal_level=logical on loopback, also when the caller is root.
//
// The server is a child of this process: `postgres` itself, not pg_ctl, which
// would detach it. It goes away with its parent, however that ends (Linux).
// fsync and full_page_writes are off: what is committed survives the death of
// any process, not that of the machine.
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// user is the superuser that initdb creates.
const user = "postgres"

// Config of one server.
type Config struct {
	// Dir holds the server's data, password and log between starts. It is
	// created. When the caller is root, every directory on the way must be
	// enterable by the user postgres (or nobody): embedded.BaseDir gives one. Required.
	Dir string
	// Port on 127.0.0.1; 0 takes a free one. Give the last one again to let
	// clients find a restarted server.
	Port int
	// Params are server settings, over the defaults of this package.
	Params map[string]string
	// Progress is told, in sentences for a person, what takes time. Nil: nobody is.
	Progress func(message string)

	// BinDir names the directory with initdb and postgres. Nothing else is
	// tried then. Empty: an installed one (14 to 18), else a pinned one from where
	// it was unpacked before, else that is fetched.
	BinDir string
	// Major is the version to run: 14 to 18 where it is installed, else 15, 17 or
	// 18, which are fetched. 0 takes what is there. Data keeps the version that made
	// it: another one asked for is an error.
	Major int
	// Pinned takes the pinned version even where another one is installed.
	Pinned bool
	// Jar is a file with the binaries of the pinned version, instead of fetching them.
	Jar string
	// RepositoryURL is the base of a Maven repository, asked when mvn is not
	// there or gives nothing. Empty: none.
	RepositoryURL string
	// CacheDir keeps the unpacked binaries. Empty: below embedded.BaseDir.
	CacheDir string
}

func (c Config) progress(format string, args ...any) {
	if c.Progress != nil {
		c.Progress(fmt.Sprintf(format, args...))
	}
}

// Server is a running or ended server. Its methods may be called concurrently.
type Server struct {
	port     int
	password string
	proc     *child.Server
}

// Start makes a cluster in c.Dir when there is none, runs the server on it and
// returns when it takes connections. A second start on the same directory is an
// error that says so.
func Start(ctx context.Context, c Config) (*Server, error) {
	if c.Dir == "" {
		return nil, errors.New("start postgres: no directory")
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	c.Dir = dir
	account, err := host.Unprivileged()
	if err != nil {
		return nil, err
	}
	if err := host.MkdirAll(c.Dir); err != nil {
		return nil, fmt.Errorf("start postgres: %w", err)
	}
	if err := account.CanReach(c.Dir); err != nil {
		return nil, err
	}
	lock, err := host.TryLock(filepath.Join(c.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("start postgres: another one runs in %s: %w", c.Dir, err)
	}
	s, err := start(ctx, c, account, lock)
	if err != nil {
		lock.Unlock()
		return nil, fmt.Errorf("start postgres in %s: %w", c.Dir, err)
	}
	return s, nil
}

func start(ctx context.Context, c Config, account *host.Account, lock *host.Lock) (*Server, error) {
	cl := cluster{dir: c.Dir, account: account}
	major, err := cl.major()
	if err != nil {
		return nil, err
	}
	if major != 0 && c.Major != 0 && major != c.Major {
		return nil, fmt.Errorf("the data was made by PostgreSQL %d, and %d was asked for", major, c.Major)
	}
	bin, err := resolve(ctx, c, cmp.Or(major, c.Major))
	if err != nil {
		return nil, err
	}
	if err := account.CanReach(bin); err != nil {
		return nil, err
	}
	password, err := cl.password()
	if err != nil {
		return nil, err
	}
	if major == 0 {
		c.progress("Creating a PostgreSQL cluster in %s", cl.data())
		if err := cl.init(ctx, bin, password); err != nil {
			return nil, err
		}
	}
	s := &Server{password: password}
	s.proc, err = child.Serve(ctx, lock, passing, func() (_ *child.Process, err error) {
		s.port = c.Port
		if s.port == 0 {
			if s.port, err = host.FreePort(ctx); err != nil {
				return nil, err
			}
		}
		return s.run(ctx, c, cl, bin)
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// passing are the reasons of a failed start that go away: the port was taken
// between looking and binding; the backends of a killed server have not noticed
// its death yet; the server of a killed parent is still shutting down.
var passing = []string{"Address already in use", "still in use", `"postmaster.pid" already exists`}

// settings are the defaults below Config.Params. The slots and senders are for
// many tests, or a demo and a curious user, on one server.
func settings(port int) map[string]string {
	return map[string]string{
		"listen_addresses": "127.0.0.1", "port": strconv.Itoa(port), "unix_socket_directories": "",
		"wal_level": "logical", "max_wal_senders": "40", "max_replication_slots": "40",
		"max_connections": "150",
		"fsync":           "off", "full_page_writes": "off", "synchronous_commit": "on",
		"logging_collector": "off", "lc_messages": "C", // passing and tests read the log
	}
}

// run starts the server and returns when it takes connections.
func (s *Server) run(ctx context.Context, c Config, cl cluster, bin string) (*child.Process, error) {
	params := settings(s.port)
	maps.Copy(params, c.Params)
	args := []string{"-D", cl.data()}
	for k, v := range params {
		args = append(args, "-c", k+"="+v)
	}
	cmd := exec.Command(filepath.Join(bin, "postgres"), args...) //nolint:noctx // it outlives ctx, which only bounds the start
	cmd.Dir, cmd.Env, cmd.SysProcAttr = c.Dir, environ(c.Dir), cl.account.Attr()
	// SIGQUIT is the shutdown that waits for nobody: a fast one (SIGINT) waits for
	// replication clients, and one that hangs would keep an orphan alive.
	proc, err := child.Start(cmd, filepath.Join(c.Dir, "postgres.log"), syscall.SIGQUIT)
	if err != nil {
		return nil, err
	}
	return proc, proc.AwaitReady(ctx, func() (bool, error) { return cl.ready(proc.PID()), nil })
}

// Port on 127.0.0.1.
func (s *Server) Port() int { return s.port }

// PID of the postmaster. For a crash, call Kill: it takes the backends too.
func (s *Server) PID() int { return s.proc.PID() }

// URL is the connection string of a database, as superuser.
func (s *Server) URL(db string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(user, s.password),
		Host: net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)), Path: "/" + db, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// Done is closed when the server has ended, for whatever reason, and its
// directory is free for another start.
func (s *Server) Done() <-chan struct{} { return s.proc.Done() }

// Log is the end of what the server has logged since it started.
func (s *Server) Log() string { return s.proc.Log() }

// Stop disconnects the clients, writes a checkpoint and ends the server. A
// logical replication client holds that up until it has been sent everything:
// close it first, or after 4 s the server is ended without a checkpoint, and an
// error says so. The next start then recovers; nothing committed is lost.
func (s *Server) Stop() error {
	return s.proc.Stop(
		s.proc.Signal(syscall.SIGINT, 4*time.Second),
		s.proc.Signal(syscall.SIGQUIT, 6*time.Second),
	)
}

// Kill ends the server with SIGKILL, as a crash would: the postmaster and, on
// Linux, every process of it at the same moment. (A postmaster that is killed
// alone leaves processes that go on with their statements, and may even commit.)
func (s *Server) Kill() {
	killBackends(s.proc.PID())
	s.proc.Kill()
}
