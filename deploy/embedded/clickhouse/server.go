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
	proc           *child.Process
	stdin          io.Closer
	done           chan struct{}
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
	s, err := start(ctx, c, lib)
	if err != nil {
		lock.Unlock()
		return nil, fmt.Errorf("start clickhouse in %s: %w", c.Dir, err)
	}
	go func() {
		// The directory is free before anyone learns of the end, so that whoever
		// waits for Done can start again at once.
		<-s.proc.Done()
		lock.Unlock()
		close(s.done)
	}()
	return s, nil
}

func start(ctx context.Context, c Config, lib string) (*Server, error) {
	l := layout{dir: c.Dir}
	password, err := l.write(c.MemoryLimit)
	if err != nil {
		return nil, err
	}
	// As with Postgres: a port that was taken between looking and binding, and
	// the engine of a killed parent that is not quite gone yet, pass with time.
	deadline := time.Now().Add(startRetry)
	var last error
	for {
		s := &Server{port: c.Port, httpPort: c.HTTPPort, password: password, done: make(chan struct{})}
		for _, port := range []*int{&s.port, &s.httpPort} {
			if *port == 0 {
				if *port, err = host.FreePort(ctx); err != nil {
					return nil, err
				}
			}
		}
		err := s.run(ctx, l, lib)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, errors.Join(last, err)
		}
		if !passing(err) || time.Now().After(deadline) {
			return nil, err
		}
		last = err
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// bootFailed precedes the reason in what the engine prints.
const bootFailed = "Received exception:\n"

// startRetry is how long Start tries against what passes with time.
const startRetry = 10 * time.Second

// startError is an engine that did not become ready.
type startError struct{ reason, log string }

func (e *startError) Error() string { return e.reason + ": " + e.log }

func passing(err error) bool {
	var failed *startError
	if !errors.As(err, &failed) {
		return false
	}
	for _, reason := range []string{"Address already in use", "Cannot lock file"} {
		if strings.Contains(failed.log, reason) {
			return true
		}
	}
	return false
}

// run starts the engine process and waits for the file with its ports.
func (s *Server) run(ctx context.Context, l layout, lib string) error {
	// A fresh name per start: a stale file is never read as readiness.
	f, err := os.CreateTemp(l.conf(), "ports-*.tsv")
	if err != nil {
		return err
	}
	ports := f.Name()
	defer os.Remove(ports)
	if err := f.Close(); err != nil {
		return err
	}
	cmd, err := child.Reexec(role, engine{
		Lib: lib, Data: l.data(), ConfigFile: l.config(), PortsFile: filepath.Base(ports),
		HistoryFile: filepath.Join(l.dir, "history"), TCPPort: s.port, HTTPPort: s.httpPort,
	})
	if err != nil {
		return err
	}
	cmd.Dir = l.conf()
	cmd.Env = append(os.Environ(), "HOME="+l.conf())
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C must not reach it before its clients are closed
	if s.stdin, err = cmd.StdinPipe(); err != nil {
		return err
	}
	// A crash loses nothing that was acknowledged, so there is no reason to let
	// the engine of a dead parent linger for a clean end.
	if s.proc, err = child.Start(cmd, l.stderr(), syscall.SIGKILL); err != nil {
		return err
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.proc.Kill()
			return ctx.Err()
		case <-s.proc.Done():
			return &startError{reason: fmt.Sprintf("the engine ended at once (%v)", s.proc.Err()), log: s.proc.Log()}
		case <-tick.C:
			b, err := os.ReadFile(ports)
			if err == nil && bytes.HasSuffix(b, []byte("\n")) {
				return nil
			}
			// When a boot statement fails, for instance because a port is taken, the
			// engine prints that and waits, without listeners, for the next file.
			if _, reason, failed := strings.Cut(s.proc.Log(), bootFailed); failed && strings.HasSuffix(reason, ")") {
				s.proc.Kill()
				return &startError{reason: "the engine cannot listen", log: strings.TrimSpace(reason)}
			}
		}
	}
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
func (s *Server) Done() <-chan struct{} { return s.done }

// Log is the end of what the engine has printed since it started.
func (s *Server) Log() string { return s.proc.Log() }

// Stop ends the engine. Close all clients before: an open connection delays it by 5 s.
func (s *Server) Stop() error {
	err := s.proc.Stop(child.Step{Ask: s.stdin.Close, Wait: 10 * time.Second})
	<-s.done
	return err
}

// Kill ends the engine with SIGKILL, as a crash would.
func (s *Server) Kill() {
	s.proc.Kill()
	<-s.done
}
