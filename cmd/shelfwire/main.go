// Command shelfwire keeps Shopify shops true to a Postgres database.
//
// It is the only place that reads flags and the environment, builds loggers and exits; everything that it runs takes
// its configuration as values.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/shelfwire/shelfwire/deploy/embedded"
)

// The exit codes of all commands.
const (
	exitOK    = 0
	exitError = 1 // also: what the command line names does not exist
	exitUsage = 2
	exitDrift = 3 // audit found drift, or compared nothing

	exitStopped = 130 // an interrupt ended the command before its end
)

func main() {
	embedded.ChildHook()
	// The first signal begins a clean stop; a second one is not caught any more and ends the process at once.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	context.AfterFunc(ctx, stop)
	os.Exit(execute(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// exitCode is an error that asks for an exit code of its own. A nil err says nothing more.
type exitCode struct {
	code int
	err  error
}

func (e *exitCode) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.code)
	}
	return e.err.Error()
}

func (e *exitCode) Unwrap() error { return e.err }

// version is that of the module, as the Go toolchain has noted it in the binary.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// execute runs one command line and returns its exit code.
func execute(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "shelfwire",
		Short: "Keeps Shopify shops true to a Postgres database",
		Long: "Shelfwire streams committed changes of a Postgres database through Kafka into Shopify shops, and keeps\n" +
			"every attempt on record in ClickHouse.",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.ArbitraryArgs, // judged by RunE
		RunE:          unknownCommand,
	}
	root.Version = version()
	began := false // a command that never began was called wrongly; those of the library say it in their own words
	root.PersistentPreRun = func(*cobra.Command, []string) { began = true }
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(runCommand(), initCommand(), checkCommand(), auditCommand(), replayCommand(), snapshotCommand(), batchesCommand(), holdsCommand(),
		campaignsCommand(), pauseCommand(), resumeCommand(), excludeCommand(), includeCommand(), statusCommand(), uninstallCommand(),
		shopCommand(), demoCommand(), benchCommand())
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return flagError(cmd, err, args) })
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var code *exitCode
	switch {
	case errors.As(err, &code):
	case !began:
		code = &exitCode{exitUsage, err}
	case ctx.Err() != nil: // whatever broke off, it broke off because it was told to
		_, _ = fmt.Fprintln(stderr, "stopped")
		return exitStopped
	default:
		code = &exitCode{exitError, err}
	}
	if code.err != nil {
		_, _ = fmt.Fprintln(stderr, "shelfwire:", code.err)
	}
	return code.code
}
