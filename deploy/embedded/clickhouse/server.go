package clickhouse

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shelfwire/shelfwire/deploy/embedded/internal/child"
	"github.com/shelfwire/shelfwire/deploy/embedded/internal/host"
)

// Config of one engine.
type Config struct {
	// Dir holds data, configuration, password and logs between starts. It is
	// created. Required.
	Dir string
	// Port of the native protocol on 127.0.0.1; 0 takes a free one. Give the
	// last one again to let clients find a restarted engine.
	Port int
	// HTTPPort on 127.0.0.1, for curl and the page /play; 0 takes a free one.
	HTTPPort int
	// MemoryLimit of the engine in bytes; what exceeds it is an error of the
	// query. 0 is 2 GiB. At rest it uses 0.2 GB.
	MemoryLimit int64
	// Progress is told, in sentences for a person, what takes time. Nil: nobody is.
	Progress func(message string)

	// LibPath names libchdb.so, 26.6 or later. Nothing else is tried then.
	// Empty: the pinned one from the cache, else from Tarball, from npm, from
	// RegistryURL.
	LibPath string
	// Tarball is a file with the pinned npm package, instead of fetching it.
	Tarball string
	// RegistryURL is the base of an npm registry, asked when npm is not there or
	// gives nothing. Empty: none.
	RegistryURL string
	// CacheDir keeps the library, 0.6 GB. Empty: below the user's cache directory.
	CacheDir string
}

func (c Config) progress(format string, args ...any) {
	if c.Progress != nil {
		c.Progress(fmt.Sprintf(format, args...))
	}
}

// Server is a running or ended engine. Its methods may be called concurrently.
type Server struct {
	port, httpPort int
	password       string
	proc           *child.Server
	stdin          io.Closer
}

// Start runs the engine on c.Dir and returns when it takes connections. A second
// start on the same directory is an error that says so.
func Start(ctx context.Context, c Config) (*Server, error) {
	if c.Dir == "" {
		return nil, errors.New("start clickhouse: no directory")
	}
	if err := available(); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(c.Dir)
	if err != nil {
		return nil, fmt.Errorf("start clickhouse: %w", err)
	}
	c.Dir = dir
	if c.MemoryLimit == 0 {
		c.MemoryLimit = 2 << 30
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("start clickhouse: %w", err)
	}
	lib, err := library(ctx, c)
	if err != nil {
		return nil, err
	}
	lock, err := host.TryLock(filepath.Join(c.Dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("start clickhouse: another one runs in %s: %w", c.Dir, err)
	}
	s, err := start(ctx, c, lib, lock)
	if err != nil {
		lock.Unlock()
		return nil, fmt.Errorf("start clickhouse in %s: %w", c.Dir, err)
	}
	return s, nil
}

func start(ctx context.Context, c Config, lib string, lock *host.Lock) (*Server, error) {
	l := layout{dir: c.Dir}
	password, err := l.write(c.MemoryLimit)
	if err != nil {
		return nil, err
	}
	s := &Server{password: password}
	s.proc, err = child.Serve(ctx, lock, passing, func() (_ *child.Process, err error) {
		s.port, s.httpPort = c.Port, c.HTTPPort
		for _, port := range []*int{&s.port, &s.httpPort} {
			if *port == 0 {
				if *port, err = host.FreePort(ctx); err != nil {
					return nil, err
				}
			}
		}
		return s.run(ctx, l, lib)
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}

// passing are the reasons of a failed start that go away: a port was taken
// between looking and binding; the engine of a killed parent is not quite gone.
var passing = []string{"Address already in use", "Cannot lock file"}

// bootFailed precedes the reason in what the engine prints.
const bootFailed = "Received exception:\n"

// run starts the engine process and waits for the file with its ports.
func (s *Server) run(ctx context.Context, l layout, lib string) (*child.Process, error) {
	// A fresh name per start: a stale file is never read as readiness.
	f, err := os.CreateTemp(l.conf(), "ports-*.tsv")
	if err != nil {
		return nil, err
	}
	ports := f.Name()
	defer os.Remove(ports)
	if err := f.Close(); err != nil {
		return nil, err
	}
	cmd, err := child.Reexec(role, engine{
		Lib: lib, Data: l.data(), ConfigFile: l.config(), PortsFile: filepath.Base(ports),
		HistoryFile: filepath.Join(l.dir, "history"), TCPPort: s.port, HTTPPort: s.httpPort,
	})
	if err != nil {
		return nil, err
	}
	cmd.Dir = l.conf()
	cmd.Env = append(os.Environ(), "HOME="+l.conf())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must not reach it before its clients are closed
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, err
	}
	// A crash loses nothing that was acknowledged, so there is no reason to let
	// the engine of a dead parent linger for a clean end.
	proc, err := child.Start(cmd, l.stderr(), syscall.SIGKILL)
	if err != nil {
		return nil, err
	}
	return proc, proc.AwaitReady(ctx, func() (bool, error) {
		b, err := os.ReadFile(ports)
		if err == nil && bytes.HasSuffix(b, []byte("\n")) {
			return true, nil
		}
		// When a boot statement fails, for instance because a port is taken, the
		// engine prints that and waits, without listeners, for the next file.
		if _, reason, failed := strings.Cut(proc.Log(), bootFailed); failed && strings.HasSuffix(reason, ")") {
			return false, &child.StartError{Reason: "the engine cannot listen", Log: strings.TrimSpace(reason)}
		}
		return false, nil
	})
}

// Addr is the host:port of the native protocol.
func (s *Server) Addr() string { return loopback(s.port) }

// HTTPAddr is the host:port of the HTTP interface.
func (s *Server) HTTPAddr() string { return loopback(s.httpPort) }

// Port of the native protocol, HTTPPort that of HTTP.
func (s *Server) Port() int { return s.port }

// HTTPPort is the port of the HTTP interface.
func (s *Server) HTTPPort() int { return s.httpPort }

// User is the login of clients.
func (s *Server) User() string { return user }

// Password belongs to User.
func (s *Server) Password() string { return s.password }

// PID of the engine process: kill it with SIGKILL for a crash.
func (s *Server) PID() int { return s.proc.PID() }

// URL is a connection string for the native protocol. The database need not
// exist for it to be a valid one; "default" always does.
func (s *Server) URL(db string) string {
	u := url.URL{Scheme: "clickhouse", User: url.UserPassword(user, s.password), Host: s.Addr(), Path: "/" + db}
	return u.String()
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// Done is closed when the engine has ended, for whatever reason, and its
// directory is free for another start.
func (s *Server) Done() <-chan struct{} { return s.proc.Done() }

// Log is the end of what the engine has printed since it started.
func (s *Server) Log() string { return s.proc.Log() }

// Stop ends the engine. Close all clients before: an open connection delays it by 5 s.
func (s *Server) Stop() error {
	return s.proc.Stop(child.Step{Ask: s.stdin.Close, Wait: 10 * time.Second})
}

// Kill ends the engine with SIGKILL, as a crash would.
func (s *Server) Kill() {
	s.proc.Kill()
}
