//go:build linux && (amd64 || arm64) && !noembedded

package clickhouse

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"github.com/ebitengine/purego"
	"golang.org/x/sys/unix"
)

// stopTimeout bounds a clean end inside the engine's own process.
const stopTimeout = 20 * time.Second

// available says whether this build has the engine.
func available() error { return nil }

// run is the engine: it returns when that has ended. It owns the process.
func (e engine) run() error {
	runtime.LockOSThread()
	if e.Lib == "" { // Dlopen("") would return the main program without an error
		return errors.New("no path of libchdb")
	}
	lib, err := purego.Dlopen(e.Lib, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return fmt.Errorf("load %s: %w", e.Lib, err)
	}
	var (
		commandLine func(argc int32, argv unsafe.Pointer) unsafe.Pointer
		resultError func(result unsafe.Pointer) string
	)
	purego.RegisterLibFunc(&commandLine, lib, "chdb_query_cmdline")
	purego.RegisterLibFunc(&resultError, lib, "chdb_result_error")

	boot, err := e.bootScript()
	if err != nil {
		return err
	}
	idle, release, err := os.Pipe()
	if err != nil {
		return err
	}
	parent, err := unix.FcntlInt(0, unix.F_DUPFD_CLOEXEC, 3) // the pipe to the parent, before a terminal takes its place
	if err != nil {
		return fmt.Errorf("keep the pipe to the parent: %w", err)
	}
	terminal, err := stdinTerminal()
	if err != nil {
		return fmt.Errorf("terminal for the engine: %w", err)
	}
	go io.Copy(io.Discard, terminal) //nolint:errcheck // its prompt interests nobody, but must not fill the buffer

	var stopping atomic.Bool
	go func() {
		// The parent never writes: the end of its pipe is the wish to stop.
		_, _ = io.Copy(io.Discard, os.NewFile(uintptr(parent), "parent"))
		stopping.Store(true)
		time.AfterFunc(stopTimeout, func() { os.Exit(3) }) //nolint:forbidigo // the engine hangs: this is its whole process
		_, _ = terminal.WriteString("exit\n")              // for the prompt that follows the query files
		_ = release.Close()
	}()
	return e.call(commandLine, resultError, boot, idle, &stopping)
}

// bootScript is a pipe with the statements that start the listeners and then
// write their ports, which is the sign of readiness.
func (e engine) bootScript() (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(w, "SYSTEM START LISTEN HTTP;\nSYSTEM START LISTEN TCP;\n"+
		"SELECT getServerPort('http_port'), getServerPort('tcp_port') INTO OUTFILE '%s' TRUNCATE FORMAT TSV;\n", e.PortsFile)
	return r, errors.Join(err, w.Close()) // far below the pipe's capacity: the write cannot block
}

func (e engine) call(
	commandLine func(int32, unsafe.Pointer) unsafe.Pointer, resultError func(unsafe.Pointer) string,
	boot, idle *os.File, stopping *atomic.Bool,
) error {
	fd := func(f *os.File) string { return "/proc/self/fd/" + strconv.Itoa(int(f.Fd())) }
	args := []string{
		"clickhouse", "--config-file", e.ConfigFile, "--path", e.Data,
		"--listen_host", "127.0.0.1", "--http_port", strconv.Itoa(e.HTTPPort), "--tcp_port", strconv.Itoa(e.TCPPort),
		"--interactive", "--disable_suggestion", "--history_file", e.HistoryFile, "--progress", "off", "--highlight", "0",
		"--queries-file", fd(boot), "--queries-file", fd(idle),
	}
	argv := make([]*byte, len(args)+1)
	var pin runtime.Pinner
	defer pin.Unpin()
	for i, arg := range args {
		b := append([]byte(arg), 0)
		argv[i] = &b[0]
		pin.Pin(argv[i])
	}
	pin.Pin(&argv[0])
	result := commandLine(int32(len(args)), unsafe.Pointer(&argv[0]))
	runtime.KeepAlive(argv)
	runtime.KeepAlive(boot)
	runtime.KeepAlive(idle)
	if result != nil {
		if reason := resultError(result); reason != "" {
			return errors.New(reason)
		}
	}
	if !stopping.Load() {
		return errors.New("it ended without being asked to: the reason stands above")
	}
	return nil
}

// stdinTerminal puts a new terminal on descriptor 0 and returns its other end.
// The engine decides by isatty(0) whether it is interactive, and when it is not,
// one bad connection ends it.
func stdinTerminal() (*os.File, error) {
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/ptmx: %w", err)
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock: %w", err)
	}
	n, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return nil, fmt.Errorf("number: %w", err)
	}
	slave, err := unix.Open("/dev/pts/"+strconv.Itoa(n), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/pts/%d: %w", n, err)
	}
	if err := unix.Dup3(slave, 0, 0); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(master), "terminal"), syscall.Close(slave)
}
