package child

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
)

// rolePrefix begins the name (argv[0]) of a process that Reexec started. It is
// what ps shows, and what tells such a process from one that a user started: no
// variable of the environment has to be read, or could be inherited by mistake.
const rolePrefix = "shelfwire-embedded-"

// Reexec is a command that runs this very executable again in a role of its
// own, which [Hook] recognises there. config must be JSON-encodable and without
// secrets: ps shows it.
func Reexec(role string, config any) (*exec.Cmd, error) {
	b, err := json.Marshal(config)
	if err != nil {
		return nil, fmt.Errorf("configuration of the %s process: %w", role, err)
	}
	path := "/proc/self/exe" // this binary even when its file has been replaced since
	if runtime.GOOS != "linux" {
		if path, err = os.Executable(); err != nil {
			return nil, err
		}
	}
	return &exec.Cmd{Path: path, Args: []string{rolePrefix + role, string(b)}}, nil
}

// Hook does nothing in an ordinary process. In one that [Reexec] started in the
// role, it decodes the configuration into config, calls run and ends the process
// with its outcome: it does not return.
func Hook(role string, config any, run func() error) {
	if len(os.Args) != 2 || os.Args[0] != rolePrefix+role {
		return
	}
	err := json.Unmarshal([]byte(os.Args[1]), config)
	if err == nil {
		err = run()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", role, err)
		os.Exit(1) //nolint:forbidigo // this process has no main of its own
	}
	os.Exit(0) //nolint:forbidigo // as above
}
